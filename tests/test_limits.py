"""Keys, TLS, and limits for each visitor: the real server on loopback, with clients that have a key and clients that do not."""

from __future__ import annotations

import asyncio
import io
import json
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from dragoman.clients import connect as connecting
from dragoman.clients.cli import main
from dragoman.clients.connect import Wanted, read_key
from dragoman.clients.remote import Remote
from dragoman.model.errors import ConfigError, OverloadedError, ProtocolError
from dragoman.stream import files
from dragoman.stream.access import Visitor
from dragoman.stream.config import Options
from dragoman.stream.events import Ended, Event, Final
from dragoman.stream.protocol import Notice, WireError
from dragoman.stream.server import listen_on
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from .fakes import speech
from .live import Clock, Live, breath, make_engine, pcm, run, serving

KEY, OTHER = "a-key-of-sixteen-letters", "another-key-for-these-tests"
DATA = Path(__file__).parent / "data"
TEXT = "the quick brown fox"
AUDIO = pcm(speech(TEXT, silence_s=1.0))
EDGE = "----------an-edge"


def upload(samples: np.ndarray) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, samples, 16_000, format="WAV")
    head = f'--{EDGE}\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n'
    return head.encode() + out.getvalue() + f"\r\n--{EDGE}--\r\n".encode()


def fetch(url: str, key: str | None, data: bytes | None = None) -> tuple[int, str]:
    headers = {"Content-Type": f"multipart/form-data; boundary={EDGE}"} | ({"Authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def words(remote: Remote) -> list[str]:
    await remote.send(AUDIO, last=True)
    return [event.text.strip() async for event in remote if isinstance(event, Final)]


@pytest.mark.parametrize(
    ("path", "free"),
    [
        ("/", True),
        ("/app.js", True),
        ("/healthz", True),
        ("/v1/info", False),
        ("/metrics", False),
        ("/v1/audio/transcriptions", False),
        ("/nothing", False),
        ("//v1/info", False),
        ("/healthz/../v1/info", False),
        ("/%2e%2e/v1/info", False),
    ],
)
def test_what_needs_a_key(path: str, free: bool, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<h1>captions</h1>")
    (tmp_path / "app.js").write_text("export {}")

    async def test() -> list[tuple[int, str]]:
        async with serving(make_engine(keys=[OTHER, KEY]), tmp_path) as live:
            return [await asyncio.to_thread(fetch, live.http + path, key) for key in (None, KEY + "x", KEY)]

    without, wrong, right = run(test())
    assert without == wrong and (without[0] == 200) == free and right[0] != 401
    if not free:
        told = json.loads(without[1])
        assert without[0] == 401 and told["error"]["code"] == "invalid_api_key" and told["err_code"] == "INVALID_AUTH"
        assert told["code"] == "unauthorized" and KEY not in without[1]


def test_how_busy_the_server_is_needs_a_key() -> None:
    async def test() -> list[Any]:
        async with serving(make_engine(keys=[KEY])) as live:
            return [json.loads((await asyncio.to_thread(fetch, live.http + "/healthz", key))[1]) for key in (None, KEY)]

    without, with_key = run(test())
    assert without == {"status": "ok"} and with_key["sessions"] == 0


@pytest.mark.parametrize(
    "path",
    [
        "/v1/stream",
        "/v1/realtime?intent=transcription",
        "/v1/realtime/translations",
        "/v1/listen?encoding=linear16&sample_rate=16000",
        "/healthz",  # no path is free for a socket
    ],
)
def test_no_socket_opens_without_a_key(path: str) -> None:
    async def test() -> int:
        async with serving(make_engine(keys=[KEY])) as live:
            with pytest.raises(InvalidStatus) as caught:
                async with connect(f"ws://127.0.0.1:{live.port}{path}"):
                    pass
            assert not live.engine.streams
            return caught.value.response.status_code

    assert run(test()) == 401


@pytest.mark.parametrize(
    ("path", "subprotocols", "chosen"),
    [
        ("/v1/stream", ["bearer", KEY], "bearer"),  # our page
        ("/v1/realtime?intent=transcription", ["realtime", f"openai-insecure-api-key.{KEY}"], "realtime"),
        ("/v1/listen?encoding=linear16&sample_rate=16000", ["token", KEY], "token"),
        ("/v1/listen?encoding=linear16&sample_rate=16000", ["bearer", KEY], "bearer"),
    ],
)
def test_a_browser_shows_its_key_as_a_subprotocol(path: str, subprotocols: Any, chosen: str) -> None:
    async def test() -> str | None:
        async with serving(make_engine(keys=[KEY])) as live:
            async with connect(f"ws://127.0.0.1:{live.port}{path}", subprotocols=subprotocols) as socket:
                return socket.subprotocol

    assert run(test()) == chosen


def test_our_client_shows_its_key() -> None:
    async def test() -> tuple[list[str], str, str]:
        told: list[str] = []
        async with serving(make_engine(keys=[KEY])) as live:
            for key in (None, OTHER):
                with pytest.raises(ProtocolError) as caught:
                    async with Remote(live.http, key=key):
                        pass
                told.append(str(caught.value))
            async with Remote(live.http, key=KEY) as remote:
                return await words(remote), *told

    heard, without, wrong = run(test())
    assert heard == [TEXT]
    assert "asks for a key; expected one in DRAGOMAN_KEY or --key-file" in without and "does not know this key" in wrong
    assert OTHER not in wrong


def test_the_clients_of_others_show_their_key() -> None:
    openai: Any = pytest.importorskip("openai", reason="needs the extra dev")

    async def test() -> tuple[str, int, str]:
        async with serving(make_engine(keys=[KEY])) as live:
            file = ("a.wav", upload(speech(TEXT, silence_s=1.0)).split(b"\r\n\r\n", 1)[1].rsplit(b"\r\n--", 1)[0])
            async with openai.AsyncOpenAI(base_url=live.http + "/v1", api_key=KEY) as client:
                said = await client.audio.transcriptions.create(model="any", file=file)
            async with openai.AsyncOpenAI(base_url=live.http + "/v1", api_key=OTHER) as stranger:
                with pytest.raises(openai.AuthenticationError) as caught:
                    await stranger.audio.transcriptions.create(model="any", file=file)
            async with client.realtime.connect(extra_query={"intent": "transcription"}) as connection:
                created = await connection.recv()
            return said.text, caught.value.status_code, created.type

    assert run(test()) == (TEXT, 401, "session.created")


def test_a_session_comes_back_only_with_the_key_that_opened_it() -> None:
    async def test() -> tuple[str, bool]:
        async with serving(make_engine(keys=[KEY, OTHER])) as live:
            url, start = live.ws, '{"type": "start", "sample_rate": 16000}'
            async with connect(url, additional_headers={"Authorization": f"Bearer {KEY}"}) as socket:
                await socket.send(start)
                session = json.loads(await socket.recv())["session"]
                socket.transport.abort()
            answers: list[Any] = []
            for key in (OTHER, KEY):
                async with connect(url, additional_headers={"Authorization": f"Token {key}"}) as socket:
                    await socket.send(json.dumps({"type": "resume", "session": session, "after_seq": 0}))
                    answers.append(json.loads(await socket.recv()))
            return answers[0]["code"], answers[1]["resumed"]

    assert run(test()) == ("unknown_session", True)


@pytest.mark.parametrize(
    ("limit", "first", "second", "kind"),
    [
        ("sessions_per_key", Visitor("k1", "a"), Visitor("k2", "a"), "key"),
        ("sessions_per_address", Visitor("k", "a1"), Visitor("k", "a2"), "address"),
    ],
)
def test_sessions_of_one_visitor(limit: str, first: Visitor, second: Visitor, kind: str) -> None:
    async def test() -> None:
        async with make_engine(max_sessions=5, **{limit: 2}) as engine:
            streams = [await engine.open(visitor=first) for _ in range(2)]
            with pytest.raises(OverloadedError, match=f"2 of 2 sessions of this {kind}"):
                await engine.open(visitor=first)
            await engine.open(visitor=second)
            await engine.open()  # an engine without a server knows no visitors
            engine.discard(streams[0])
            await engine.open(visitor=first)
            with pytest.raises(OverloadedError, match="5 of 5"):
                for _ in range(3):
                    await engine.open(visitor=Visitor("k3", "a3"))

    run(test())


def test_sessions_that_are_being_opened_count(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> list[bool]:
        async with make_engine(sessions_per_key=1) as engine:
            visitor = Visitor("k", "a")
            opened = await asyncio.gather(*(engine.open(visitor=visitor) for _ in range(4)), return_exceptions=True)
            return [isinstance(each, OverloadedError) for each in opened]

    assert run(test()) == [False, True, True, True]


def test_the_address_is_that_of_the_connection_unless_a_proxy_says_another() -> None:
    async def addresses(**options: Any) -> list[str]:
        async with serving(make_engine(**options)) as live:
            for told in ("203.0.113.5", "198.51.100.1, 203.0.113.6"):
                async with connect(live.ws, additional_headers={"X-Forwarded-For": told}) as socket:
                    await socket.send('{"type": "start", "sample_rate": 16000}')
                    await socket.recv()
            return [stream.visitor.address for stream in live.engine.streams.values()]

    assert run(addresses()) == ["127.0.0.1", "127.0.0.1"]
    assert run(addresses(proxies=["127.0.0.1"])) == ["203.0.113.5", "203.0.113.6"]


def test_a_session_ends_when_its_time_is_up() -> None:
    clock = Clock()

    async def test() -> tuple[list[Notice], list[Event]]:
        async with make_engine(session_s=100, clock=clock) as engine:
            stream = await engine.open()
            stream.attach(clock)
            await stream.push(AUDIO[:38_400])
            heard: list[Any] = []

            async def follow() -> None:
                heard.extend([item async for item in stream.follow(clock)])

            following = asyncio.create_task(follow())
            for clock.now_s in (1069.0, 1071.0, 1099.0, 1101.0):
                engine.tick()
                for _ in range(20):
                    await breath()
            await following
            return [item for item in heard if isinstance(item, Notice)], [item[1] for item in heard if isinstance(item, tuple)]

    notices, events = run(test())
    assert [(notice.code, notice.within_s) for notice in notices] == [("time_limit", 29.0)]
    assert isinstance(events[-1], Ended) and events[-2].text.strip() == "the quick brown"  # type: ignore[union-attr]


def test_a_change_of_settings_does_not_begin_the_time_anew() -> None:
    clock = Clock()
    append = json.dumps({"type": "input_audio_buffer.append", "audio": "AAAA" * 400})
    manual = {"type": "session.update", "session": {"type": "transcription", "audio": {"input": {"turn_detection": None}}}}

    async def test() -> int:
        async with serving(make_engine(session_s=100, clock=clock)) as live:
            async with connect(f"ws://127.0.0.1:{live.port}/v1/realtime?intent=transcription") as socket:
                await socket.send(append)
                while not live.engine.stats().audio_ms:
                    await breath()
                clock.now_s += 60
                await socket.send(json.dumps(manual))
                await socket.send(append)
                while live.engine.opened_count < 2 or not live.engine.active:
                    await breath()
                clock.now_s += 41
                live.engine.tick()
                with pytest.raises(ConnectionClosed) as caught:
                    while True:
                        await socket.recv()
                assert caught.value.rcvd is not None
                return caught.value.rcvd.code

    assert run(test()) == 1000


def test_our_client_ends_with_a_session_whose_time_is_up(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A microphone goes on for ever; the command must not."""
    clock, asked_to_stop = Clock(), []

    class Endless:
        sample_rate, channels = 16_000, 1

        def blocks(self) -> Any:
            while True:
                yield np.zeros((1600, 1), np.float32)

        def close(self) -> None:
            asked_to_stop.append(True)

    monkeypatch.setattr(connecting, "open_source", lambda path: Endless())

    async def test() -> int:
        async with serving(make_engine(session_s=10, clock=clock)) as live:
            wanted = Wanted(live.http, file=Path("x.wav"))
            ending = asyncio.create_task(asyncio.to_thread(connecting.connect, wanted, "txt"))
            while not live.engine.stats().audio_ms:
                await breath()
            clock.now_s += 11
            live.engine.tick()
            return await ending

    assert run(test()) == 0 and asked_to_stop
    assert "the server has ended the session" in capsys.readouterr().err


@pytest.mark.parametrize("honest", [True, False])
def test_a_file_longer_than_a_session_is_refused(honest: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its header before any work is done, or on the way, if the header does not tell."""
    if not honest:
        inner = files.open_source

        def lying(*args: Any) -> Any:
            source = inner(*args)
            source.duration_s = None
            return source

        monkeypatch.setattr(files, "open_source", lying)
    long = np.zeros(16_000 * 12, np.float32)

    async def test() -> tuple[tuple[int, str], int, int]:
        async with serving(make_engine(session_s=10)) as live:
            answer = await asyncio.to_thread(fetch, live.http + "/v1/audio/transcriptions", None, upload(long))
            fine = await asyncio.to_thread(fetch, live.http + "/v1/audio/transcriptions", None, upload(long[: 16_000 * 9]))
            return answer, fine[0], live.engine.stats().audio_ms

    (status, text), fine, _ = run(test())
    assert (status, fine) == (413, 200) and "longer than 10 s" in text


async def post_slowly(live: Live, parts: list[bytes], promised: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", live.port)
    head = f"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary={EDGE}\r\n"
    writer.write(f"{head}Content-Length: {promised}\r\n\r\n".encode())
    for part in parts:
        writer.write(part)
    answer = await reader.readuntil(b"}}")
    writer.close()
    return answer


def test_an_upload_that_stops_in_the_middle_is_ended() -> None:
    body = upload(speech(TEXT))

    async def test() -> tuple[bytes, int]:
        async with serving(make_engine(idle_s=0.05)) as live:
            return await post_slowly(live, [body[:1000]], len(body)), len(live.engine.streams)

    answer, streams = run(test())
    assert answer.startswith(b"HTTP/1.1 408") and b"the upload is too slow" in answer and streams == 0


def test_an_upload_drop_by_drop_is_ended() -> None:
    """Each byte comes in time, the whole would take days."""
    clock = Clock()

    async def drops() -> Any:
        clock.now_s += 50
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def test() -> int:
        receive = files._bounded(drops, 1, 60.0, clock)  # pyright: ignore[reportPrivateUsage]
        for number in range(100):
            try:
                await receive()
            except WireError as error:
                assert error.code == "idle"
                return number
        return -1

    async def waits() -> Any:
        await asyncio.Event().wait()

    async def late() -> None:
        with pytest.raises(WireError, match="too slow"):
            await files._bounded(waits, 1, 0.0, clock)()  # pyright: ignore[reportPrivateUsage]

    run(late())
    assert run(test()) == 1


def test_a_socket_whose_first_message_does_not_come_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dragoman.stream.native._FIRST_S", 0.05)

    async def test() -> dict[str, Any]:
        async with serving(make_engine()) as live, connect(live.ws) as socket:
            return json.loads(await socket.recv())

    assert run(test())["code"] == "idle"


def test_audio_of_many_channels_waits_in_a_bounded_amount() -> None:
    """Ten seconds of 32 channels at 192 kHz in floats would be a quarter of a gigabyte for one session."""
    from dragoman.stream.inbox import Inbox

    inbox = Inbox(192_000, 32, "float32", high_ms=10_000)
    taken = 0
    while not inbox.full:
        inbox.put(bytes(1024 * 1024))
        taken += 1
    assert 30 <= taken <= 33
    speech_like = Inbox(48_000, 2, "float32", high_ms=10_000)
    speech_like.put(bytes(48_000 * 8 * 9))
    assert not speech_like.full, "what is usual is not touched"


def tls() -> dict[str, Any]:
    return {"tls_cert": DATA / "tls_cert.pem", "tls_key": DATA / "tls_key.pem"}


def test_everything_over_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(DATA / "tls_cert.pem"))  # what a client trusts

    async def test() -> tuple[list[str], int]:
        async with serving(make_engine(keys=[KEY], **tls())) as live:
            async with Remote(f"https://localhost:{live.port}", key=KEY) as remote:
                heard = await words(remote)
            status, _ = await asyncio.to_thread(fetch, f"https://localhost:{live.port}/v1/info", KEY)
            return heard, status

    assert run(test()) == ([TEXT], 200)


def test_a_client_without_trust_or_tls_gets_nothing() -> None:
    async def test() -> list[str]:
        async with serving(make_engine(**tls())) as live:
            told: list[str] = []
            for url in (f"https://localhost:{live.port}", live.http):
                with pytest.raises(ProtocolError) as caught:
                    async with Remote(url):
                        pass
                told.append(str(caught.value))
            return told

    over_tls, plain = run(test())
    assert "self-signed certificate" in over_tls or "self signed certificate" in over_tls
    assert "cannot connect" in plain


def test_old_tls_is_not_spoken() -> None:
    async def test() -> None:
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning):
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        async with serving(make_engine(**tls())) as live:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asyncio.open_connection("127.0.0.1", live.port, ssl=old)

    run(test())


def test_the_world_is_refused_before_the_model_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--host", "0.0.0.0", "--port", "0", "--model", str(tmp_path / "none")]) == 1
    said = capsys.readouterr().err
    assert "without a key every machine that reaches this address could use the server" in said and "--open-to-all" in said


def test_the_world_may_come_with_a_key_or_if_insisted() -> None:
    for options in ({"keys": [KEY]}, {"open_to_all": True}):
        listen_on(Options.model_validate({"server": {"host": "0.0.0.0", "port": 0, **options}})).close()


def test_the_key_of_the_command(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(f"{KEY}\n")
    assert read_key(path, {"DRAGOMAN_KEY": OTHER}) == KEY and read_key(None, {"DRAGOMAN_KEY": OTHER}) == OTHER
    assert read_key(None, {}) is None and read_key(None, {"DRAGOMAN_KEY": ""}) is None
    path.write_text(f"{KEY} {OTHER}")
    with pytest.raises(ConfigError, match="expected one key"):
        read_key(path, {})
    with pytest.raises(ConfigError, match="No such file"):
        read_key(tmp_path / "nowhere", {})
    assert KEY not in repr(Wanted("localhost", key=KEY))


def test_who_sends_a_key_in_the_clear_is_told() -> None:
    assert Remote("captions.example").is_in_the_clear and not Remote("localhost:8000").is_in_the_clear
    assert not Remote("https://captions.example").is_in_the_clear


def test_no_key_reaches_the_log(caplog: pytest.LogCaptureFixture) -> None:
    for name in ("uvicorn.error", "dragoman", None):
        caplog.set_level("INFO", logger=name)

    async def test() -> None:
        async with serving(make_engine(keys=[KEY])) as live:
            for key in (KEY, OTHER):
                await asyncio.to_thread(fetch, live.http + "/v1/info", key)
                try:
                    async with connect(live.ws, subprotocols=["bearer", key]) as socket:  # type: ignore[list-item]
                        await socket.send("nonsense")
                        await socket.recv()
                except InvalidStatus:
                    pass

    run(test())
    server_side = [record.getMessage() for record in caplog.records if record.name.startswith(("uvicorn", "dragoman"))]
    ours = [text for text in server_side if not text.startswith(("<", ">"))]
    assert ours and not any(KEY in text or OTHER in text for text in ours)
