"""Files over HTTP, in the shape of OpenAI's endpoint."""

from __future__ import annotations

import asyncio
import io
import json
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import soundfile
from dragoman.model.backend import Floats
from dragoman.stream.config import SessionOptions
from dragoman.stream.engine import Engine
from dragoman.stream.files import read_form
from dragoman.stream.source import ArraySource
from starlette.datastructures import FormData, UploadFile

from .fakes import ScriptedBackend, speech
from .live import Clock, Live, breath, make_engine, run, serving
from .patience import LoopClock, run_ahead

TEXT = "the quick brown fox jumps over a lazy dog."
EDGE = "----------an-edge"


def audio(form: str = "FLAC", text: str = TEXT, sample_rate: int = 16_000) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, np.concatenate([speech(text, silence_s=1.0), speech("five trains", silence_s=1.0)]), sample_rate, format=form)
    return out.getvalue()


def body(file: bytes | None, **fields: str) -> bytes:
    parts = [f'--{EDGE}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode() for name, value in fields.items()]
    if file is not None:
        head = f'--{EDGE}\r\nContent-Disposition: form-data; name="file"; filename="talk.flac"\r\nContent-Type: audio/flac\r\n\r\n'
        parts.append(head.encode() + file + b"\r\n")
    return b"".join(parts) + f"--{EDGE}--\r\n".encode()


def post(live: Live, data: bytes, kind: str = f"multipart/form-data; boundary={EDGE}") -> tuple[int, str, dict[str, str]]:
    request = urllib.request.Request(live.http + "/v1/audio/transcriptions", data, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read().decode(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(), dict(error.headers)


def ask(data: bytes, engine: Engine | None = None, **parts: Any) -> tuple[int, str, dict[str, str]]:
    async def test() -> tuple[int, str, dict[str, str]]:
        async with serving(engine or make_engine(**parts)) as live:
            answer = await asyncio.to_thread(post, live, data)
            while live.engine.streams:
                await breath()
            return answer

    return run(test())


@pytest.mark.parametrize("form", ["FLAC", "WAV", "OGG"])
def test_json_is_the_default(form: str) -> None:
    status, text, headers = ask(body(audio(form), model="whisper-1"))
    assert (status, json.loads(text)) == (200, {"text": f"{TEXT} five trains"})
    assert headers["content-type"] == "application/json"


def test_text() -> None:
    assert ask(body(audio(), response_format="text"))[:2] == (200, f"{TEXT} five trains\n")


def test_srt_and_vtt() -> None:
    _, srt, _ = ask(body(audio(), response_format="srt"))
    assert re.match(r"1\n00:00:00,\d{3} --> 00:00:0\d,\d{3}\nthe quick brown fox", srt)
    assert re.search(r"\n2\n00:00:0[45],\d{3} --> 00:00:0\d,\d{3}\nfive trains\n", srt)
    _, vtt, _ = ask(body(audio(), response_format="vtt"))
    assert vtt.startswith("WEBVTT\n\n00:00:00.") and "five trains" in vtt


def test_verbose_json_has_segments_and_words() -> None:
    _, text, _ = ask(body(audio(), response_format="verbose_json", **{"timestamp_granularities[]": "word", "language": "en"}))
    said = json.loads(text)
    assert (said["task"], said["language"], said["text"]) == ("transcribe", "en", f"{TEXT} five trains")
    assert said["duration"] == pytest.approx(6.4)
    assert [segment["text"].strip() for segment in said["segments"]] == [TEXT, "five trains"]
    assert [word["word"] for word in said["words"]] == f"{TEXT} five trains".split()
    needed = {"id", "seek", "start", "end", "text", "tokens", "temperature", "avg_logprob", "compression_ratio", "no_speech_prob"}
    assert all(needed <= set(segment) and None not in segment.values() for segment in said["segments"]), "OpenAI's type has them all"
    assert all(0 < segment["compression_ratio"] < 2.4 for segment in said["segments"]), "Whisper takes more for a loop"
    assert all(before["end"] <= after["start"] for before, after in zip(said["segments"], said["segments"][1:], strict=False))


def test_server_sent_events() -> None:
    status, text, headers = ask(body(audio(), stream="true"))
    events = [json.loads(line.removeprefix("data: ")) for line in text.split("\n\n") if line]
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    assert [event["type"] for event in events[:-1]] == ["transcript.text.delta"] * (len(events) - 1) and len(events) > 3
    assert "".join(event["delta"] for event in events[:-1]) == events[-1]["text"] == f"{TEXT} five trains"


@pytest.mark.parametrize(
    ("data", "status", "code", "says"),
    [
        (body(None, model="x"), 400, "bad_message", "no file in its field 'file'"),
        (body(audio(), response_format="docx"), 400, "bad_message", "'docx', expected one of json, text, srt"),
        (body(audio(), response_format="srt", stream="true"), 400, "bad_message", "expected json or text"),
        (body(audio(), language="xx"), 400, "bad_task", "does not transcribe 'xx'"),
        (body(b"no audio at all"), 400, "bad_audio", "talk.flac: "),
        (body(b""), 400, "bad_audio", "talk.flac: "),
        (b"garbage", 400, "bad_message", ""),
    ],
)
def test_errors_have_openais_shape(data: bytes, status: int, code: str, says: str) -> None:
    got, text, _ = ask(data)
    error = json.loads(text)["error"]
    assert (got, error["code"], error["type"]) == (status, code, "invalid_request_error")
    assert says in error["message"] and "/tmp" not in error["message"]


def test_a_file_that_breaks_off_is_an_error() -> None:
    whole = audio()
    status, text, _ = ask(body(whole[: len(whole) // 2]))
    assert status == 400 and "broken after" in json.loads(text)["error"]["message"]


def test_a_form_of_another_kind() -> None:
    async def test() -> tuple[int, str, dict[str, str]]:
        async with serving(make_engine()) as live:
            return await asyncio.to_thread(post, live, b'{"file": "x"}', "application/json")

    status, text, _ = run(test())
    assert status == 400 and "no file" in text


def test_an_upload_that_is_too_large() -> None:
    status, text, _ = ask(body(bytes(1_100_000)), upload_mb=1)
    assert status == 413 and "larger than 1 MB" in text


def test_a_full_server_refuses_with_retry_after() -> None:
    async def test() -> tuple[int, str, dict[str, str]]:
        async with serving(make_engine(max_sessions=1)) as live:
            await live.engine.open()
            return await asyncio.to_thread(post, live, body(audio()))

    status, text, headers = run(test())
    assert status == 503 and headers["retry-after"] == "5" and json.loads(text)["error"]["code"] == "overloaded"


def test_a_failing_model_is_a_server_error() -> None:
    backend = ScriptedBackend()
    backend.fail_next = "listen"
    status, text, _ = ask(body(audio()), make_engine(backend))
    assert status == 500 and json.loads(text)["error"]["type"] == "server_error"


class Hold:
    """A server's model hears nothing of its files until ``release``, or until the server closes them."""

    def __init__(self, live: Live) -> None:
        self._engine, self._over = live.engine, False
        opened = live.engine.open

        async def held(*args: Any, **kwargs: Any) -> Any:
            stream = await opened(*args, **kwargs)
            prepare = stream.prepare
            stream.prepare = lambda: (self._over or stream.closed) and prepare()
            return stream

        live.engine.open = held  # type: ignore[method-assign]

    async def began(self) -> None:
        """Until a file is at work."""
        while not (self._engine.active and self._engine.active[0].inbox.received_ms):
            await breath()

    def release(self) -> None:
        self._over = True
        for stream in self._engine.active:
            stream.tell()


async def send(live: Live, data: bytes, version: str = "1.1") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Post. ``version`` 1.0: the answer comes as it is, not in chunks."""
    reader, writer = await asyncio.open_connection("127.0.0.1", live.port)
    head = f"POST /v1/audio/transcriptions HTTP/{version}\r\nHost: 127.0.0.1:{live.port}\r\nContent-Length: {len(data)}\r\n"
    writer.write((head + f"Content-Type: multipart/form-data; boundary={EDGE}\r\n\r\n").encode() + data)
    await writer.drain()
    return reader, writer


async def leave(live: Live, data: bytes, *, after_bytes: int, first: Callable[[], bool] = lambda: True) -> None:
    """Post, read so much of the answer, wait for what must come ``first``, and be gone."""
    reader, writer = await send(live, data)
    while not live.engine.streams or not first():
        await breath()
    if after_bytes:
        await reader.readexactly(after_bytes)
    writer.transport.abort()
    while live.engine.streams:
        await breath()


def test_a_client_that_leaves_costs_nothing_more() -> None:
    async def test() -> None:
        async with serving(make_engine()) as live:
            Hold(live)
            await leave(live, body(audio()), after_bytes=0)

    run(test())


def test_a_file_is_not_closed_while_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """libsndfile takes the whole process down if it is."""
    go, began, reading = threading.Event(), threading.Event(), threading.Event()
    closed_while: list[bool] = []

    class Slow(ArraySource):
        def blocks(self) -> Iterator[Floats]:
            reading.set()
            began.set()
            go.wait(20)
            reading.clear()
            yield from super().blocks()

        def close(self) -> None:
            closed_while.append(reading.is_set())

    monkeypatch.setattr("dragoman.stream.files._store", lambda *_: Slow(speech("the quick")))

    async def test() -> None:
        async with serving(make_engine()) as live:
            leaving = asyncio.create_task(leave(live, body(audio()), after_bytes=0, first=began.is_set))
            while not began.is_set():
                await breath()
            for _ in range(2000):  # the client is gone: time enough to close too early
                await breath()
            go.set()
            await leaving
            while not closed_while:
                await breath()

    run(test())
    assert closed_while == [False]


def test_a_client_that_leaves_in_the_middle_of_its_events() -> None:
    async def test() -> int:
        async with serving(make_engine()) as live:
            await leave(
                live, body(audio(text=" ".join([TEXT, "we met them again", "nobody knew why"] * 3)), stream="true"), after_bytes=200
            )
            return live.engine.opened_count

    assert run(test()) == 1


@pytest.mark.parametrize("live", ["false", "true"])
def test_a_file_that_outlasts_the_draining_is_no_shorter_file(live: str) -> None:
    clock = Clock()

    async def test() -> tuple[int, str, dict[str, str]]:
        async with serving(make_engine(clock=clock, drain_s=30, queue_ms=1000)) as server:
            Hold(server)
            asking = asyncio.create_task(asyncio.to_thread(post, server, body(audio(text=" ".join([TEXT] * 3)), stream=live)))
            while not (server.engine.streams and server.engine.active[0].inbox.full):
                await breath()
            server.engine.drain()
            clock.now_s += 31
            server.engine.tick()
            return await asking

    status, text, _ = run(test())
    assert "the server is stopping" in text and "transcript.text.done" not in text
    assert status == (200 if live == "true" else 503)


def test_an_upload_takes_a_place_while_it_comes_in() -> None:
    async def test() -> tuple[list[int], int]:
        async with serving(make_engine(max_sessions=1)) as live:
            reader, writer = await asyncio.open_connection("127.0.0.1", live.port)
            data = body(audio())
            head = f"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n"
            writer.write(head.encode() + f"Content-Type: multipart/form-data; boundary={EDGE}\r\n\r\n".encode() + data[:1000])
            while not live.engine._opening:  # pyright: ignore[reportPrivateUsage]
                await breath()
            refused = await asyncio.to_thread(post, live, data)
            writer.write(data[1000:])
            answer = await reader.readuntil(b"\r\n")
            writer.close()
            while live.engine.streams:
                await breath()
            later = await asyncio.to_thread(post, live, data)
            return [refused[0], int(answer.split()[1]), later[0]], len(live.engine._opening)  # pyright: ignore[reportPrivateUsage]

    assert run(test()) == ([503, 200, 200], 0)


# A long file


@pytest.mark.parametrize(
    ("fields", "sign", "signs"),
    [
        ({}, "\n", 3),
        ({"response_format": "verbose_json"}, "\n", 3),
        ({"stream": "true"}, ": still at work\n\n", 4),
        ({"response_format": "text"}, "", 0),
    ],
)
def test_something_comes_while_a_long_file_is_heard(fields: dict[str, str], sign: str, signs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """For 70 s nothing is heard: white space from 30 s on, comments from 15 s on, every 15 s. Plain text begins with the text."""

    async def test() -> tuple[str, str]:
        async with serving(make_engine()) as live:
            hold, clock = Hold(live), LoopClock(live, monkeypatch)
            reader, writer = await send(live, body(audio(), **fields), "1.0")
            await hold.began()
            head = await reader.readuntil(b"\r\n\r\n") if "stream" in fields else b""
            await clock.forward(70, step_s=1, answered=False)
            hold.release()
            whole = (head + await reader.read()).decode()
            writer.close()
            while live.engine.streams:
                await breath()
            return whole[: whole.index("\r\n\r\n")], whole[whole.index("\r\n\r\n") + 4 :]

    head, told = run_ahead(test())
    assert head.startswith("HTTP/1.1 200 ") and ("x-accel-buffering: no" in head) == (signs > 0)
    rest = told.removeprefix(sign * signs)
    assert len(told) - len(rest) == len(sign) * signs and not rest.startswith(("\n", ":"))
    events = [json.loads(line.removeprefix("data: ")) for line in rest.split("\n\n") if line.startswith("data: ")]
    text = rest.strip() if "text" in fields.values() else events[-1]["text"] if events else json.loads(told)["text"]
    assert text == f"{TEXT} five trains"


@pytest.mark.parametrize(("form", "after_s", "status"), [("json", 25, 500), ("json", 35, 200), ("text", 35, 500)])
def test_an_error_after_white_space_is_in_the_body(form: str, after_s: int, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = ScriptedBackend()

    async def test() -> tuple[int, str, dict[str, str]]:
        async with serving(make_engine(backend)) as live:
            hold, clock = Hold(live), LoopClock(live, monkeypatch)
            asking = asyncio.create_task(asyncio.to_thread(post, live, body(audio(), response_format=form)))
            await hold.began()
            await clock.forward(after_s, step_s=1, answered=False)
            backend.fail_next = "listen"
            hold.release()
            return await asking

    got, text, headers = run_ahead(test())
    assert (got, headers["content-type"]) == (status, "application/json")
    assert json.loads(text)["error"]["type"] == "server_error" and text.startswith("\n") == (status == 200)


def test_a_client_that_leaves_after_white_space_costs_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with serving(make_engine()) as live:
            hold, clock = Hold(live), LoopClock(live, monkeypatch)
            reader, writer = await send(live, body(audio()))
            await hold.began()
            await clock.forward(35, step_s=1, answered=False)
            await reader.readuntil(b"\r\n\r\n")
            writer.transport.abort()
            while live.engine.streams:
                await breath()

    run_ahead(test())


@pytest.mark.parametrize("wish", [{"response_format": "json"}, {"response_format": "verbose_json"}, {"stream": True}])
def test_the_client_library_waits_for_a_long_file(wish: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is, and with less patience than it has by itself: the file takes five times as long."""
    openai = pytest.importorskip("openai", reason="needs the extra dev")

    async def ask(live: Live) -> str:
        async with openai.AsyncOpenAI(base_url=live.http + "/v1", api_key="none is needed", max_retries=0, timeout=40.0) as client:
            answer = await client.audio.transcriptions.create(file=("talk.flac", audio()), model="whisper-1", **wish)
            return [event async for event in answer][-1].text if "stream" in wish else answer.text

    async def test() -> str:
        async with serving(make_engine()) as live:
            hold, clock = Hold(live), LoopClock(live, monkeypatch)
            asking = asyncio.create_task(ask(live))
            await hold.began()
            await clock.forward(200, step_s=1, answered=False)
            hold.release()
            return await asking

    assert run_ahead(test()) == f"{TEXT} five trains"


@pytest.mark.parametrize("name", ["language", "languages[]"])
def test_a_form_may_name_a_region(name: str) -> None:
    form = FormData([("file", UploadFile(io.BytesIO())), (name, "pt-BR"), ("to_language", "ZH_cn")])
    options = read_form(form, SessionOptions(), translate=True).options
    assert (options.language, options.targets) == ("pt", ("zh",))
