"""The Python client against the real server, through lost connections and refusals."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import soundfile
from dragoman.clients import remote as remote_module
from dragoman.clients.microphone import Device, Heard
from dragoman.clients.remote import Outbox, Remote, Restart, socket_url
from dragoman.model.errors import AudioFormatError, ConfigError, DeviceError, DragomanError, OverloadedError, ProtocolError, TaskError
from dragoman.stream.events import Dropped, Event, Final, Translation
from dragoman.stream.server import Server, listen_on, make_app
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response
from websockets.protocol import State

from .fakes import speech
from .flaky import wire
from .listeners import check_promises, finals, session, transcribe
from .live import breath, make_engine, pcm, run, serving

TEXT = "the quick brown fox jumps over a lazy dog."


async def no_pause(seconds: float) -> None:
    await breath()


async def talk(remote: Remote, *audio: bytes) -> list[Event]:
    for part in audio:
        await remote.send(part)
    await remote.finish()
    return [event async for event in remote]


def test_the_same_events_as_without_a_server() -> None:
    audio = pcm(speech(TEXT, silence_s=1.0))

    async def test() -> list[Event]:
        async with serving(make_engine()) as live, Remote(live.http, targets=["de"]) as remote:
            events = await talk(remote, audio)
            assert remote.ready is not None and remote.ready.targets == ("de",) and remote.progress is not None
            return events

    events = run(test())
    assert events == transcribe(session(targets=["de"]), np.frombuffer(audio, "<i2"))


def test_leaving_at_the_last_event_closes_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runner is often still closing at that moment, and is cancelled in the middle of it."""
    opened: list[ClientConnection] = []

    async def open_socket(*args: Any, **kwargs: Any) -> ClientConnection:
        opened.append(await connect(*args, **kwargs))
        return opened[-1]

    monkeypatch.setattr(remote_module, "open_socket", open_socket)

    async def test() -> None:
        async with serving(make_engine()) as live:
            async with Remote(live.ws) as remote:
                await talk(remote, pcm(speech("the quick", silence_s=1.0)))
            assert [socket.state for socket in opened] == [State.CLOSED]

    run(test())


@pytest.mark.parametrize("losses", [1, 3])
def test_connections_are_lost_and_no_word_is(losses: int) -> None:
    samples = speech("the quick brown fox jumps over a lazy dog. we met them again on monday,", silence_s=1.0)
    parts = [pcm(part) for part in np.array_split(samples, 12)]

    async def test() -> list[Event]:
        async with serving(make_engine()) as live, Remote(live.ws, pause=no_pause) as remote:
            reading = asyncio.create_task(_read(remote))
            for number, part in enumerate(parts):
                await remote.send(part)
                if number % 4 == 1 and number // 4 < losses:
                    heard = (number + 1) * len(part) // 2 // 16
                    while live.engine.stats().audio_ms < heard - 1500:
                        await breath()
                    for connection in list(live.server.server_state.connections):
                        connection.transport.abort()  # type: ignore[union-attr]
                    await breath()
            await remote.finish()
            events = await reading
            assert len(live.engine.streams) == 1 and live.engine.opened_count == 1
            return events

    events = run(test())
    check_promises(events)
    assert " ".join(finals(events)) == "the quick brown fox jumps over a lazy dog. we met them again on monday,"
    assert events[-1].clocks.processed_ms == len(samples) // 16


async def _read(remote: Remote) -> list[Event]:
    return [event async for event in remote]


def test_a_server_that_stays_away_is_given_up_after_its_own_time() -> None:
    waited: list[float] = []

    async def pause(seconds: float) -> None:
        waited.append(seconds)

    async def test() -> None:
        engine = make_engine(resume_s=20)
        taken = listen_on(engine.options)
        opened = asyncio.Event()
        server = Server(make_app(engine), taken, opened.set)
        async with engine:
            running = asyncio.create_task(server.run_until_stopped())
            await opened.wait()
            async with Remote(f"127.0.0.1:{taken.getsockname()[1]}", pause=pause) as remote:
                server.should_exit = True
                await running
                taken.close()
                with pytest.raises(ProtocolError, match="cannot connect"):
                    await _read(remote)

    run(test())
    assert waited == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0]


def test_a_live_stream_waits_for_its_server_without_end() -> None:
    """Of what is said meanwhile the newest two minutes are kept."""
    waited, why, restarts = list[float](), list[Exception](), list[Restart]()
    minute = pcm(np.zeros(16_000 * 60, np.float32))

    async def test() -> list[Event]:
        said = asyncio.Event()
        async with serving(make_engine(resume_s=20)) as one, serving(make_engine()) as two, wire(one.port) as line:

            async def pause(seconds: float) -> None:
                waited.append(seconds)
                if len(waited) == 40:
                    await said.wait()
                    line.upstream = two.port

            async with Remote(
                f"127.0.0.1:{line.port}", live=True, pause=pause, restarted=restarts.append, unreachable=why.append
            ) as remote:
                reading = asyncio.create_task(_read(remote))
                await remote.send(pcm(speech("the quick", silence_s=1.0)))
                while remote.progress is None or remote.progress.clocks["committed_ms"] < 800:
                    await breath()
                line.upstream = 1
                line.cut()
                for _ in range(5):
                    await remote.send(minute)
                await remote.send(pcm(speech("brown fox", silence_s=1.0)))
                said.set()
                while not two.engine.opened_count:
                    await breath()
                await remote.finish()
                return await reading

    events = run(test())
    check_promises(events)
    assert waited == [0.5, 1.0, 2.0, 4.0, *[8.0] * 36] and [type(error) for error in why] == [ProtocolError]
    assert finals(events) == ["the quick", "brown fox"]
    ((at_ms, lost_ms),) = [(event.at_ms, event.duration_ms) for event in events if isinstance(event, Dropped)]
    assert 0 <= 1800 + 300_000 + 1800 - 120_000 - (at_ms + lost_ms) < 250 and restarts == [Restart(at_ms + lost_ms, lost_ms)]
    assert events[-1].clocks.received_ms == 1800 + 300_000 + 1800


@pytest.mark.parametrize("code", ["unauthorized", "bad_task", "bad_message", "internal", "replaced"])
def test_what_no_patience_cures_ends_a_live_stream_at_once(code: str) -> None:
    async def refuse(socket: ServerConnection) -> None:
        await socket.recv()
        await socket.send(json.dumps({"type": "error", "code": code, "message": "no"}))

    def keep_out(socket: ServerConnection, request: Request) -> Response | None:
        return socket.respond(401, "") if code == "unauthorized" else None

    async def no_patience(seconds: float) -> None:
        raise AssertionError("waited")

    async def test() -> None:
        refusing = serve(refuse, "127.0.0.1", 0, process_request=keep_out)
        async with serving(make_engine()) as live, wire(live.port) as line, refusing as server:
            async with Remote(f"127.0.0.1:{line.port}", live=True, pause=no_patience) as remote:
                line.upstream = next(iter(server.sockets)).getsockname()[1]
                line.cut()
                with pytest.raises(DragomanError, match="asks for a key" if code == "unauthorized" else "no"):
                    await _read(remote)

    run(test())


def test_refusals_are_the_errors_of_the_library() -> None:
    async def test() -> None:
        async with serving(make_engine(max_sessions=1)) as live:
            with pytest.raises(TaskError, match="does not translate into 'xx'"):
                async with Remote(live.ws, targets=["xx"]):
                    pass
            async with Remote(live.ws) as remote:
                with pytest.raises(OverloadedError) as caught:
                    async with Remote(live.ws):
                        pass
                assert caught.value.retry_after_s > 0
                with pytest.raises(AudioFormatError, match="3 bytes"):
                    await remote.send(bytes(3))
                await remote.finish()
                with pytest.raises(DragomanError, match="after finish"):
                    await remote.send(bytes(2))

    run(test())


def test_nobody_there() -> None:
    async def test() -> None:
        with pytest.raises(ProtocolError, match="cannot connect to ws://127.0.0.1:1/v1/stream"):
            async with Remote("127.0.0.1:1"):
                pass

    run(test())


def test_arguments_are_checked_at_once() -> None:
    with pytest.raises(AudioFormatError, match="'opus', expected one of pcm_s16le, pcm_f32le"):
        Remote("localhost", encoding="opus")
    with pytest.raises(ConfigError, match="sample_rate"):
        Remote("localhost", sample_rate=44)
    for url in ("ftp://x", "ws://", "http:///v1"):
        with pytest.raises(ConfigError, match="is no address of a server"):
            Remote(url)


@pytest.mark.parametrize(
    ("url", "socket"),
    [
        ("localhost:8000", "ws://localhost:8000/v1/stream"),
        ("http://host:8000/", "ws://host:8000/v1/stream"),
        ("https://host", "wss://host/v1/stream"),
        ("wss://host/behind/a/proxy", "wss://host/behind/a/proxy"),
    ],
)
def test_addresses(url: str, socket: str) -> None:
    assert socket_url(url) == socket


@pytest.mark.parametrize("url", ["localhost:99999", "localhost:abc", "[::1", "ftp://host", "http://", ""])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ConfigError, match="is no address of a server; expected e.g. localhost:8000"):
        socket_url(url)


def test_a_gap_longer_than_a_message_may_tell() -> None:
    """20 minutes at 16 kHz: two messages, one gap."""

    async def test() -> list[Event]:
        async with serving(make_engine()) as live, Remote(live.ws) as remote:
            await remote.send(pcm(speech("the quick", silence_s=1.0)))
            await remote.lose(16_000 * 1200)
            return await talk(remote, pcm(speech("brown fox", silence_s=1.0)))

    events = run(test())
    assert sum(event.duration_ms for event in events if isinstance(event, Dropped)) == 1_200_000
    assert finals(events) == ["the quick", "brown fox"]


def test_what_fails_in_sending_reaches_the_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Outbox) -> None:
        raise ValueError("out of order")

    async def test() -> None:
        async with serving(make_engine()) as live, Remote(live.ws) as remote:
            monkeypatch.setattr(Outbox, "take", broken)
            await remote.finish()
            with pytest.raises(ValueError, match="out of order"):
                _ = [event async for event in remote]

    run(test())


def test_a_gap_is_sent_in_its_place() -> None:
    async def test() -> list[Event]:
        async with serving(make_engine()) as live, Remote(live.ws) as remote:
            await remote.send(pcm(speech("the quick", silence_s=1.0)))
            await remote.lose(16_000)
            return await talk(remote, pcm(speech("brown fox", silence_s=1.0)))

    events = run(test())
    assert [(event.at_ms, event.duration_ms) for event in events if isinstance(event, Dropped)] == [(1800, 1000)]
    assert finals(events) == ["the quick", "brown fox"]


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 40)), max_size=12), st.lists(st.integers(0, 100), max_size=6))
def test_an_outbox_sends_again_what_was_not_received(parts: list[tuple[bool, int]], losses: list[int]) -> None:
    """Whatever is lost: the receiver gets every sample once and in order."""
    outbox, received, total = Outbox(2, 16, 10**6), bytearray(), 0
    for is_gap, count in parts:
        if is_gap:
            outbox.skip(count)
        else:
            outbox.add(b"".join(int.to_bytes(total + at, 2, "little") for at in range(count)))
        total += count
    for keep in [*losses, 10**6]:
        sent = bytearray()
        while (piece := outbox.take()) is not None:
            assert not isinstance(piece, bytes) or len(piece) <= 32
            sent += piece if isinstance(piece, bytes) else b"\xff\xff" * piece
        received += sent[: 2 * keep]  # the rest was on its way when the connection was lost
        outbox.go_back(len(received) // 2)
    expected, at = bytearray(), 0
    for is_gap, count in parts:
        expected += b"\xff\xff" * count if is_gap else b"".join(int.to_bytes(at + n, 2, "little") for n in range(count))
        at += count
    assert received == expected and outbox.waiting_samples == 0


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 40), st.integers(0, 6)), max_size=12), st.integers(0, 60))
def test_an_outbox_that_keeps_the_newest_tells_the_rest_as_a_gap(parts: list[tuple[bool, int, int]], received: int) -> None:
    """Whatever was sent before: after a lost connection every sample that was kept comes, in its place."""
    outbox, total, silent = Outbox(2, 16, 50), 0, set[int]()
    for is_gap, count, takes in parts:
        if is_gap:
            outbox.skip(count)
            silent |= set(range(total, total + count))
        else:
            outbox.add(b"".join(int.to_bytes(total + at, 2, "little") for at in range(count)))
        total += count
        outbox.keep_newest()
        for _ in range(takes):
            outbox.take()
    received = min(received, total)
    outbox.go_back(received)
    sent = bytearray()
    while (piece := outbox.take()) is not None:
        sent += piece if isinstance(piece, bytes) else b"\xff\xff" * piece
    numbers = np.frombuffer(bytes(sent), "<u2")
    assert len(numbers) == total - received
    for number, got in enumerate(numbers, received):
        kept = number not in silent and number >= total - 50
        assert got == number if kept else got in (number, 0xFFFF)


def test_the_example_runs(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "talk.wav", speech(TEXT, silence_s=1.0), 16_000)
    example = Path(__file__).parents[1] / "examples" / "remote_captions.py"

    async def test() -> tuple[bytes, bytes]:
        async with serving(make_engine()) as live:
            arguments = [str(example), str(tmp_path / "talk.wav"), live.http]
            running = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            return await running.communicate()

    out, err = run(test())
    assert (out.decode().strip(), err) == (TEXT, b"")


def test_connect_shows_what_transcribe_would(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dragoman.clients.cli import main

    soundfile.write(tmp_path / "talk.wav", speech(TEXT, silence_s=1.0), 16_000)

    async def test() -> list[int]:
        async with serving(make_engine()) as live:
            wanted: list[list[str]] = [["--to", "de"], ["--srt"], ["--to", "xx"]]
            commands = [["connect", live.http, str(tmp_path / "talk.wav"), *more] for more in wanted]
            return [await asyncio.to_thread(main, command) for command in commands]

    assert run(test()) == [0, 0, 1]
    out, err = capsys.readouterr()
    assert out.startswith(f"{TEXT}\n[de] dethe dequick") and "00:00:00," in out
    assert err == "dragoman: this model does not translate into 'xx'; it knows de, es, fr\n"


def test_connect_captions_what_the_server_is_configured_to_translate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dragoman.clients.cli import main

    soundfile.write(tmp_path / "talk.wav", speech(TEXT, silence_s=1.0), 16_000)

    async def test() -> int:
        async with serving(make_engine(targets=["de"])) as live:
            return await asyncio.to_thread(main, ["connect", live.http, str(tmp_path / "talk.wav"), "--srt"])

    assert run(test()) == 0
    out = capsys.readouterr().out
    assert "00:00:00," in out and "dethe dequick" in out


class FakeMicrophone:
    """Stands in for a microphone; what it records, ``blocks``, is the subclass's."""

    device = Device(0, "a fake", 1, 16_000, True)
    sample_rate, channels = 16_000, 1

    def __init__(self, device: int | None, *, loopback: bool) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None: ...

    def stop(self) -> None: ...


@pytest.mark.parametrize("unplugged", [False, True])
def test_connect_sends_the_microphone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], unplugged: bool) -> None:
    from dragoman.clients import connect

    class Fake(FakeMicrophone):
        """Speaks two words, loses half a second, speaks two more, and may be unplugged."""

        def blocks(self) -> Any:
            for text, lost_samples in (("the quick", 0), ("brown fox", 8_000)):
                samples = (speech(text, silence_s=1.0) * 32767).astype(np.int16)[:, None]
                for block in np.array_split(samples, 10):
                    yield Heard(block, lost_samples)
                    lost_samples = 0
            if unplugged:
                raise DeviceError("a fake stopped: unplugged?")

    monkeypatch.setattr(connect, "Microphone", Fake)

    async def test() -> int:
        async with serving(make_engine()) as live:
            return await asyncio.to_thread(connect.connect, connect.Wanted(live.http, targets=["de"]), "json")

    if unplugged:
        with pytest.raises(DeviceError, match="unplugged"):
            run(test())
    else:
        assert run(test()) == 0
    out, err = capsys.readouterr()
    assert '"dropped"' in out and out.count('"translation"') == 2 and "listening to a fake" in err


def test_connect_outlasts_the_sessions_of_a_microphone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The server ends the first one; what is said after that is heard by the second."""
    from dragoman.clients import connect

    may_go_on = threading.Event()

    class Fake(FakeMicrophone):
        def blocks(self) -> Any:
            for text in ("the quick", "brown fox"):
                yield Heard((speech(text, silence_s=1.0) * 32767).astype(np.int16)[:, None], 0)
                assert may_go_on.wait(20)

    monkeypatch.setattr(connect, "Microphone", Fake)

    async def test() -> int:
        async with serving(make_engine()) as live:
            talking = asyncio.create_task(asyncio.to_thread(connect.connect, connect.Wanted(live.http), "txt"))
            while not live.engine.active or live.engine.active[0].inbox.received_ms < 1800:
                await breath()
            live.engine.active[0].close()
            while live.engine.opened_count < 2:
                await breath()
            may_go_on.set()
            return await talking

    assert run(test()) == 0
    out, err = capsys.readouterr()
    assert "the quick" in out and "brown fox" in out
    assert err == "listening to a fake; Ctrl-C ends\nthe server has ended this session; another one goes on from 1.8 s\n"


def test_an_error_in_the_middle_of_a_file_comes_after_its_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dragoman.clients.connect import Wanted, connect

    soundfile.write(tmp_path / "talk.flac", np.concatenate([speech(TEXT, silence_s=1.0)] * 4), 16_000)
    whole = (tmp_path / "talk.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(whole[: len(whole) // 2])

    async def test() -> None:
        async with serving(make_engine()) as live:
            with pytest.raises(AudioFormatError, match="broken after"):
                await asyncio.to_thread(connect, Wanted(live.http, tmp_path / "cut.flac"), "txt")

    run(test())
    assert TEXT in capsys.readouterr().out


def test_events_have_their_types() -> None:
    async def test() -> list[Event]:
        async with serving(make_engine()) as live, Remote(live.ws, targets=["fr"]) as remote:
            return await talk(remote, pcm(speech("the quick", silence_s=1.0)))

    events = run(test())
    assert [event.language for event in events if isinstance(event, Translation)] == ["fr"]
    assert [event.words[0].text for event in events if isinstance(event, Final)] == ["the"]


def test_ctrl_c_brings_the_text_of_all_that_was_sent(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "talk.wav", np.concatenate([speech("the quick brown fox"), speech(TEXT, silence_s=60.0)]), 16_000)
    command = ["-m", "dragoman.clients", "connect", "--realtime", "--json"]

    async def test() -> tuple[bytes, bytes, int | None]:
        async with serving(make_engine()) as live:
            running = await asyncio.create_subprocess_exec(
                sys.executable, *command, live.http, str(tmp_path / "talk.wav"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            assert running.stdout is not None
            first = await running.stdout.readline()
            running.send_signal(signal.SIGINT)
            out, err = await running.communicate()
            return first + out, err, running.returncode

    out, err, code = run(test())
    kinds = [json.loads(line)["type"] for line in out.splitlines()]
    assert (kinds[0], kinds[-2:], code, err) == ("speech_started", ["final", "ended"], 0, b"")
    assert json.loads(out.splitlines()[-1])["audio_ms"] < 10_000


def test_a_second_ctrl_c_waits_for_nobody(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "talk.wav", speech(TEXT, silence_s=60.0), 16_000)
    command = ["-m", "dragoman.clients", "connect", "--realtime", "--json"]

    async def test() -> int | None:
        async with serving(make_engine()) as live:
            running = await asyncio.create_subprocess_exec(
                sys.executable, *command, live.http, str(tmp_path / "talk.wav"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            while not live.engine.streams:
                await breath()
            (stream,) = live.engine.streams.values()
            stream.prepare = lambda: False  # type: ignore[method-assign]  # the server takes everything and hears nothing any more
            while not stream.inbox.received_samples:
                await breath()
            running.send_signal(signal.SIGINT)
            while not stream.inbox.finished:
                await breath()
            running.send_signal(signal.SIGINT)
            await running.communicate()
            return running.returncode

    assert run(test()) == 130
