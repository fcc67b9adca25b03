"""Connections that are lost and servers that are killed in the middle of a talk: text and times are those of an unbroken run."""

from __future__ import annotations

import asyncio
import difflib
import re
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import soundfile
from dragoman.clients.connect import _tell_restart, _tell_unreachable  # pyright: ignore[reportPrivateUsage]
from dragoman.clients.remote import Outbox, Remote, Restart
from dragoman.clients.retelling import Retelling
from dragoman.model.errors import ProtocolError
from dragoman.stream import Session, SessionOptions, load_model
from dragoman.stream.events import Dropped, Ended, Event, Final, Translation
from dragoman.stream.protocol import WireError, progress
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.asyncio.server import ServerConnection, serve

from .fakes import ScriptedBackend, scripted_translation, speech
from .flaky import HEARD_BY, hearing, long_talk, wire
from .listeners import check_promises, finals, session, transcribe
from .live import Clock, breath, make_engine, pcm, run, serving
from .patience import LoopClock, run_ahead

BLOCK = 4000  # samples in a push


async def no_pause(seconds: float) -> None:
    await breath()


async def say(remote: Remote, audio: bytes) -> None:
    for start in range(0, len(audio), 2 * BLOCK):
        await remote.send(audio[start : start + 2 * BLOCK])
    await remote.finish()


async def paced(remote: Remote, audio: bytes, sample_rate: int) -> None:
    """At most two seconds ahead of what was heard, so that whatever happens happens in the middle."""
    step = sample_rate // 4
    for number, start in enumerate(range(0, len(audio), 2 * step)):
        while number * 250 - (0 if remote.progress is None else remote.progress.clocks["processed_ms"]) > 2000:
            news = remote._room  # pyright: ignore[reportPrivateUsage]
            news.clear()
            await news.wait()
        await remote.send(audio[start : start + 2 * step])
    await remote.finish()


async def read(remote: Remote) -> list[Event]:
    return [event async for event in remote]


# Lost connections


def broken(minutes: float, disconnects: int, seed: int) -> tuple[list[Event], list[Event], int]:
    """A talk over a wire that breaks at random → its events, those of an unbroken run, how often the wire broke."""
    samples, _ = long_talk(minutes, seed)
    audio = pcm(samples)
    random = np.random.default_rng(seed)
    each = len(audio) // disconnects  # a connection carries a little less audio than its share, with its messages

    def budgets() -> Iterator[int | None]:
        for _ in range(disconnects):
            yield int(random.uniform(0.05, 1.4) * each)
        while True:
            yield None

    async def test() -> tuple[list[Event], int]:
        async with serving(make_engine(targets=["de"], block_ms=320)) as live, wire(live.port, budgets()) as line:
            async with Remote(f"127.0.0.1:{line.port}", pause=no_pause) as remote:
                saying = asyncio.create_task(say(remote, audio))
                events = await read(remote)
                await saying
            assert live.engine.opened_count == 1, "one session throughout"
            return events, line.cuts

    events, cuts = asyncio.run(asyncio.wait_for(test(), 300))
    return events, transcribe(session(targets=["de"], block_ms=320), np.frombuffer(audio, "<i2"), range(0, len(samples), BLOCK)), cuts


def test_ten_disconnects_in_half_a_minute() -> None:
    events, whole, cuts = broken(0.4, 12, seed=1)
    assert cuts >= 10 and events == whole


@pytest.mark.soak
def test_ten_minutes_with_a_hundred_disconnects() -> None:
    """Every event, its words and its times are those of a run without a network."""
    events, whole, cuts = broken(10.0, 130, seed=2)
    assert cuts >= 100, cuts
    check_promises(events)
    assert events == whole and isinstance(events[-1], Ended)


# Killed servers


def check_like(events: list[Event], whole: list[Event]) -> None:
    """The same text, words, times and translations; how often unstable text was told may differ."""
    check_promises(events)
    for kind in (Final, Translation):
        assert [event for event in events if isinstance(event, kind)] == [event for event in whole if isinstance(event, kind)]
    assert isinstance(events[-1], Ended) and events[-1] == whole[-1]


@pytest.mark.parametrize("seed", range(2))
def test_killed_servers_are_replaced_and_the_text_is_whole(seed: int) -> None:
    """Three servers after each other, none of which knows anything of those before."""
    samples, sentences = long_talk(0.25, seed)
    audio, random = pcm(samples), np.random.default_rng(seed)
    restarts: list[Restart] = []

    async def test() -> list[Event]:
        parts: dict[str, Any] = {"targets": ["de"], "block_ms": 320}
        async with serving(make_engine(**parts)) as one, serving(make_engine(**parts)) as two, serving(make_engine(**parts)) as three:

            def budgets() -> Iterator[int | None]:
                yield int(len(audio) * random.uniform(0.2, 0.5))
                line.upstream = two.port
                yield None  # asks for its session, which is unknown there
                yield int(len(audio) * random.uniform(0.2, 0.4))
                line.upstream = three.port
                while True:
                    yield None

            async with wire(one.port, budgets()) as line:
                async with Remote(f"127.0.0.1:{line.port}", pause=no_pause, restarted=restarts.append) as remote:
                    saying = asyncio.create_task(paced(remote, audio, 16_000))
                    events = await read(remote)
                    await saying
                    assert remote.progress is not None and remote.progress.clocks["received_ms"] <= len(samples) // 16
        return events

    events = run(test())
    assert len(restarts) == 2 and restarts[0].at_ms <= restarts[1].at_ms
    assert not any(restart.lost_ms for restart in restarts) and not [event for event in events if isinstance(event, Dropped)]
    assert finals(events) == sentences
    assert [event.text for event in events if isinstance(event, Translation)] == [scripted_translation(text, "de") for text in sentences]
    check_like(events, transcribe(session(targets=["de"], block_ms=320), np.frombuffer(audio, "<i2")))


def test_a_session_that_was_left_too_long_is_begun_anew() -> None:
    restarts: list[Restart] = []

    async def test() -> list[Event]:
        async with serving(make_engine()) as live, wire(live.port) as line:
            async with Remote(f"127.0.0.1:{line.port}", pause=no_pause, restarted=restarts.append) as remote:
                await remote.send(pcm(speech("the quick brown fox", silence_s=1.0)))
                first = [event async for event in _until_final(remote)]
                await remote.send(pcm(speech("jumps")))
                while not live.engine.active or live.engine.active[0].inbox.received_ms < 3000:
                    await breath()
                live.engine.streams.clear()
                line.cut()
                await remote.send(pcm(speech("over", silence_s=1.0)), last=True)
                return first + await read(remote)

    events = run(test())
    check_promises(events)
    assert finals(events) == ["the quick brown fox", "jumps over"] and len(restarts) == 1


async def _until_final(remote: Remote) -> Any:
    async for event in remote:
        yield event
        if isinstance(event, Final):
            return


@pytest.mark.parametrize("why", ["the server stops", "the time is up"])
def test_a_live_stream_outlasts_its_session(why: str) -> None:
    """The server ends it in order. What is said after that is heard by the next one, and nobody is told of an end."""
    restarts, waited = list[Restart](), list[float]()
    before, after = (pcm(speech(text, silence_s=1.0)) for text in ("the quick brown fox", "jumps over"))

    async def test() -> list[Event]:
        clock = Clock()
        async with serving(make_engine(clock=clock)) as one, serving(make_engine()) as two, wire(one.port) as line:
            said = asyncio.Event()
            slow = await one.engine.open()
            slow.prepare = lambda: False  # type: ignore[method-assign]  # keeps a server that stops from having stopped

            async def pause(seconds: float) -> None:
                waited.append(seconds)
                await said.wait()
                line.upstream = two.port

            async with Remote(f"127.0.0.1:{line.port}", live=True, pause=pause, restarted=restarts.append) as remote:
                reading = asyncio.create_task(read(remote))
                await remote.send(before + pcm(speech("jumps")))
                while len(one.engine.active) < 2 or one.engine.active[1].inbox.received_ms < 3000:
                    await breath()
                if why == "the server stops":
                    one.server.stop()
                    clock.now_s += 30
                else:
                    one.engine.active[1].close()
                while not restarts:
                    await breath()
                await remote.send(after)
                said.set()
                while one.engine.opened_count + two.engine.opened_count < 3:
                    await breath()
                await remote.finish()
                return await reading

    events = run(test())
    check_promises(events)
    assert finals(events) == ["the quick brown fox", "jumps", "jumps over"]
    assert [isinstance(event, Ended) for event in events].index(True) == len(events) - 1
    assert events[-1].clocks.processed_ms == (len(before) + len(after)) // 32 + 400
    assert restarts == [Restart(3000, ended=True)]
    assert waited == ([0.5] if why == "the server stops" else []), "a server that stops cannot know when the next one comes"


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("code", ["idle", "draining"])
def test_a_session_that_breaks_off_is_followed_by_another_where_it_is_live(code: Literal["idle", "draining"], live: bool) -> None:
    async def test() -> list[Event]:
        async with serving(make_engine()) as served, Remote(served.ws, live=live, pause=no_pause) as remote:
            await remote.send(pcm(speech("the quick brown fox")))
            while not served.engine.active or served.engine.active[0].inbox.received_ms < 1600:
                await breath()
            (stream,) = served.engine.active
            served.engine.streams.clear()
            stream.fail(WireError(code, "it breaks off"))
            while live and served.engine.opened_count < 2:
                await breath()
            if live:
                await remote.send(pcm(speech("jumps", silence_s=1.0)), last=True)
            return await read(remote)

    if live:
        assert finals(run(test())) == ["the quick brown fox jumps"]
    else:
        with pytest.raises(WireError, match="it breaks off"):
            run(test())


def test_a_server_that_this_audio_kills_is_not_tried_for_ever() -> None:
    tries = count()

    async def test() -> None:
        async with serving(make_engine()) as live:

            def budgets() -> Iterator[int | None]:
                for number in tries:
                    live.engine.streams.clear()  # it knows nothing of what was before
                    yield 20_000 if number < 20 else None

            async with wire(live.port, budgets()) as line, Remote(f"127.0.0.1:{line.port}", pause=no_pause) as remote:
                saying = asyncio.create_task(say(remote, pcm(speech("the quick brown fox jumps over"))))
                with pytest.raises(ProtocolError, match="no session"):
                    await read(remote)
                await asyncio.gather(saying, return_exceptions=True)

    run(test())
    assert next(tries) < 12


def test_a_live_stream_goes_on_behind_the_audio_that_kills_servers() -> None:
    restarts: list[Restart] = []

    async def test() -> list[Event]:
        async with serving(make_engine()) as live, wire(live.port) as line:
            address = f"127.0.0.1:{line.port}"
            async with Remote(address, live=True, pause=no_pause, restarted=restarts.append) as remote:
                await remote.send(pcm(speech("the quick")))
                for died in range(4):
                    while live.engine.opened_count < 1 + died or not live.engine.active or live.engine.active[0].inbox.received_ms < 800:
                        await breath()
                    live.engine.streams.clear()
                    line.cut()
                while len(restarts) < 4:
                    await breath()
                await remote.send(pcm(speech("brown fox", silence_s=1.0)), last=True)
                return await read(remote)

    events = run(test())
    check_promises(events)
    (dropped,) = (event for event in events if isinstance(event, Dropped))
    assert [restart.lost_ms for restart in restarts] == [0, 0, 0, dropped.duration_ms]
    assert dropped.duration_ms == 800 and finals(events) == ["brown fox"]


def test_a_new_server_that_is_full_is_waited_for() -> None:
    """All clients of a server that was killed come back at once, and not all of them are let in at first."""
    waited: list[float] = []

    async def test() -> list[Event]:
        async with serving(make_engine(max_sessions=1)) as live:
            other = None

            async def pause(seconds: float) -> None:
                waited.append(seconds)
                assert other is not None
                live.engine.discard(other)

            async with wire(live.port) as line, Remote(f"127.0.0.1:{line.port}", pause=pause) as remote:
                await remote.send(pcm(speech("the quick")))
                live.engine.streams.clear()
                other = await live.engine.open()
                line.cut()
                await remote.send(pcm(speech("brown fox", silence_s=1.0)), last=True)
                return await read(remote)

    events = run(test())
    assert finals(events) == ["the quick brown fox"] and waited == [5.0], "the server said when to come again"


def test_what_cannot_be_heard_again_is_told_as_lost() -> None:
    """Audio of more than two minutes that no server has told to the end is not kept."""
    restarts: list[Restart] = []
    quiet = pcm(np.zeros(16_000, np.float32))

    async def test() -> list[Event]:
        async with serving(make_engine()) as live, wire(live.port) as line:
            async with Remote(f"127.0.0.1:{line.port}", pause=no_pause, restarted=restarts.append) as remote:
                remote._outbox._keep_samples = 2 * 16_000  # pyright: ignore[reportPrivateUsage]
                remote._forget = lambda: None  # type: ignore[method-assign]  # as if nothing had been told to the end
                for _ in range(6):
                    await remote.send(quiet)
                while remote.progress is None or remote.progress.clocks["received_ms"] < 6000:
                    await breath()
                told = remote._retelling  # pyright: ignore[reportPrivateUsage]
                told._clocks, told._open = type(told._clocks)(0, 0, 0), None  # pyright: ignore[reportPrivateUsage]
                live.engine.streams.clear()
                line.cut()
                await remote.send(pcm(speech("brown fox", silence_s=1.0)), last=True)
                return await read(remote)

    events = run(test())
    (dropped,) = (event for event in events if isinstance(event, Dropped))
    assert restarts[0].lost_ms == dropped.duration_ms > 0 and dropped.at_ms + dropped.duration_ms == restarts[0].at_ms
    assert finals(events)[-1].endswith("brown fox")


@pytest.mark.soak
def test_a_real_server_is_killed_and_started_again(clips: Path) -> None:
    """``dragoman serve`` with the model of the package, SIGKILL in the middle of a sentence, and once more in the next one. How busy the
    machine is decides a little of what such a small model writes: its segments are compared, its words only roughly."""
    audio, sample_rate = soundfile.read(clips / "lighthouse.ogg", dtype="int16")
    kills_ms, restarts = [2_500, 7_500], list[Restart]()

    async def start(port: int) -> tuple[asyncio.subprocess.Process, int]:
        arguments = ["serve", "--port", str(port), "--threads", "1"]
        server = await asyncio.create_subprocess_exec(sys.executable, "-m", "dragoman.clients", *arguments, stderr=asyncio.subprocess.PIPE)
        assert server.stderr is not None
        said = ""
        while not (found := re.search(r"ready: http://localhost:(\d+)", said)):
            line = (await server.stderr.readline()).decode()
            assert line, said
            said += line
        return server, int(found[1])

    async def talk() -> list[Event]:
        server, port = await start(0)
        try:
            events: list[Event] = []
            async with Remote(f"127.0.0.1:{port}", sample_rate=sample_rate, restarted=restarts.append) as remote:
                saying = asyncio.create_task(paced(remote, audio.tobytes(), sample_rate))
                async for event in remote:
                    events.append(event)
                    if kills_ms and event.clocks.processed_ms > kills_ms[0]:
                        del kills_ms[0]
                        server.kill()
                        await server.wait()
                        server, _ = await start(port)
                await saying
            return events
        finally:
            server.kill()
            await server.wait()

    events = asyncio.run(asyncio.wait_for(talk(), 300))
    check_promises(events)
    assert len(restarts) == 2 and not any(restart.lost_ms for restart in restarts)
    whole = transcribe(Session(load_model(), SessionOptions(), sample_rate=sample_rate), audio)
    segments, expected = ([event for event in each if isinstance(event, Final)] for each in (events, whole))
    # To a frame: the detector of a new session has heard nothing before the moment it goes on from, which is another one each time.
    assert [event.start_ms for event in segments] == pytest.approx([event.start_ms for event in expected], abs=40)
    words, expected_words = (" ".join(event.text for event in each).split() for each in (segments, expected))
    assert difflib.SequenceMatcher(a=words, b=expected_words, autojunk=False).ratio() > 0.6
    assert abs(len(words) - len(expected_words)) <= 4, "nothing is said twice, nothing is left out"
    assert events[-1] == whole[-1]


def test_connect_says_that_a_server_was_lost(capsys: pytest.CaptureFixture[str]) -> None:
    _tell_restart(Restart(12_400))
    _tell_restart(Restart(12_400, 3_000))
    said = "the server has lost this session; another one goes on from 12.4 s"
    assert capsys.readouterr().err == f"{said}\n{said}; 3.0 s before that are lost\n"
    _tell_unreachable(ProtocolError("cannot connect to ws://captions.example"))
    assert capsys.readouterr().err == "cannot connect to ws://captions.example; trying again\n"


# Without a network

DEAF = ScriptedBackend(lambda _: "", tokenizer=HEARD_BY.tokenizer)
BABBLING = ScriptedBackend(lambda heard: " ".join(["quick"] * (len(heard) // 15)), tokenizer=HEARD_BY.tokenizer)


@settings(max_examples=25)
@given(st.data())
def test_whatever_was_told_when_a_server_dies_stays_and_nothing_is_missing(data: st.DataObject) -> None:
    """Servers die after any event; the next one hears from where everything had been told to the end."""
    seed = data.draw(st.integers(0, 3))
    targets, translation = data.draw(st.sampled_from([((), "stable"), (("de",), "stable"), (("de", "fr"), "draft")]))
    retelling = Retelling()
    retelling.targets = targets
    told: list[Event] = []
    for number in range(3):
        start_ms = retelling.resume_ms if number else 0
        if number:
            assert retelling.restart(start_ms) == []
        heard = hearing(seed, start_ms, targets, translation)
        if number < 2:
            heard = heard[: data.draw(st.integers(0, len(heard) - 1))]
        told += [each for event in heard for each in retelling.tell(event)]
    check_like(told, hearing(seed, 0, targets, translation))
    assert finals(told) == long_talk(0.1, seed)[1]


@settings(max_examples=25)
@given(st.data())
def test_another_hearing_changes_nothing_that_was_told(data: st.DataObject) -> None:
    """The next server may be another model, or busy: then the rest of a segment differs, but not what was told of it."""
    seed = data.draw(st.integers(0, 3))
    samples, first = long_talk(0.1, seed)[0], hearing(seed, 0, ("de",))
    retelling = Retelling()
    retelling.targets = ("de",)
    cut = data.draw(st.integers(1, len(first) - 1))
    told = [each for event in first[:cut] for each in retelling.tell(event)]
    assert told == first[:cut], "as long as no server is lost, nothing is changed"
    start_ms = retelling.resume_ms
    retelling.restart(start_ms)
    other = data.draw(st.sampled_from(["slower", "deaf", "other words", "shorter segments"]))
    if other in ("deaf", "other words"):
        heard = transcribe(session(DEAF if other == "deaf" else BABBLING, targets=["de"]), samples[start_ms * 16 :])
    else:
        heard = hearing(seed, start_ms, ("de",), block_ms=1280 if other == "slower" else 320, longest_s=None if other == "slower" else 2.0)
    told += [each for event in heard for each in retelling.tell(event)]
    check_promises(told)
    assert told[:cut] == first[:cut]
    assert isinstance(told[-1], Ended) and told[-1].audio_ms == len(samples) // 16
    if other == "slower":
        assert finals(told) == finals(first)


def test_progress_of_events_that_are_on_their_way_is_not_trusted() -> None:
    """What it says is committed may be in an event that was lost with the server."""
    retelling = Retelling()
    events = transcribe(session(), speech("the quick", silence_s=2.0))
    message = progress(events[-1].clocks, 0, 0, len(events))
    retelling.progressed(message, complete=False)
    assert retelling.resume_ms == 0
    retelling.progressed(message, complete=True)
    assert retelling.resume_ms == events[-1].clocks.committed_ms


def test_an_outbox_keeps_what_a_new_server_would_need() -> None:
    outbox = Outbox(2, 100, 300)
    outbox.add(bytes(2 * 1000))
    while outbox.take() is not None:
        pass
    outbox.forget(500)
    assert (outbox.first, outbox.waiting_samples) == (0, 1000), "not received yet"
    outbox.confirm(600)
    assert (outbox.first, outbox.waiting_samples) == (600, 400) and outbox.take() is None
    outbox.confirm(900)
    assert outbox.first == 700, "no more than 300 are kept"
    outbox.forget(850)
    outbox.start_over(850)
    assert (outbox.first, outbox.waiting_samples) == (800, 150)
    again = outbox.take()
    assert isinstance(again, bytes) and len(again) == 100, "from the middle of a piece"


def test_a_network_that_dies_without_a_word_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No FIN and no RST, as when Wi-Fi changes: without a ping of the server's for so long, the connection is taken for lost."""
    samples, _ = long_talk(0.4, 1)
    audio = pcm(samples)

    async def test() -> tuple[list[Event], int]:
        async with serving(make_engine(block_ms=320)) as live, wire(live.port) as line:
            async with Remote(f"127.0.0.1:{line.port}", pause=no_pause) as remote:
                reading = asyncio.create_task(read(remote))
                await remote.send(audio[: len(audio) // 4])
                while remote.progress is None or remote.progress.clocks["processed_ms"] < 2000:
                    await breath()
                line.stall()
                await remote.send(audio[len(audio) // 4 :], last=True)
                await LoopClock(live, monkeypatch).forward(50, step_s=5, answered=False)
                return await reading, live.engine.opened_count

    events, opened = run_ahead(test())
    assert opened == 1 and events == transcribe(session(block_ms=320), np.frombuffer(audio, "<i2"))


def test_a_server_that_takes_connections_and_never_answers_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    reached = asyncio.Event()

    async def deaf(socket: ServerConnection) -> None:
        await socket.recv()
        reached.set()
        await socket.wait_closed()

    async def test() -> None:
        async with serving(make_engine()) as live, serve(deaf, "127.0.0.1", 0, ping_interval=None) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            opening = asyncio.create_task(Remote(f"127.0.0.1:{port}").__aenter__())
            await reached.wait()
            await LoopClock(live, monkeypatch).forward(60, step_s=5, answered=False)
            with pytest.raises(ProtocolError, match="takes connections and does not answer"):
                await opening

    run_ahead(test())
