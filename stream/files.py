"""``POST /v1/audio/transcriptions`` and ``translations``: a whole file in, its text out, in the shape of OpenAI's endpoints."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import tempfile
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from ..model.backend import Floats
from ..model.errors import AudioFormatError
from ..model.prompt import Task, language_code
from .access import Visitor
from .captions import CueTimes, cut_cues, spread, srt, vtt
from .config import SessionOptions
from .engine import Engine
from .events import Final, Partial, Translation, whole_words
from .live import Stream
from .protocol import WireError, failure
from .source import AudioSource, open_source

Form = Literal["json", "text", "srt", "vtt", "verbose_json"]
FORMS: tuple[Form, ...] = ("json", "text", "srt", "vtt", "verbose_json")
_BLOCK_MS = 1000
_SLOWEST_BYTES_S = 4_000  # of an upload, on average
# Clients and proxies give up on a connection on which nothing comes: nginx after 60 s. White space before JSON and comments between
# events are for them; readers of either skip it.
_SILENT_S = 30.0  # until an answer in JSON begins with white space: from then on its status is 200, whatever comes
_BEAT_S = 15.0  # between two signs of life
_WHITE_SPACE, _COMMENT = "\n", ": still at work\n\n"
_BEGUN_EARLY: tuple[Form, ...] = ("json", "verbose_json")  # whose readers skip white space: in captions and plain text it would stay
# OpenAI's type of a segment has these too. The detector has found speech, decoding is greedy, and our tokens mean nothing to others.
_NOT_MEASURED: dict[str, Any] = {"no_speech_prob": 0.0, "temperature": 0.0, "seek": 0, "tokens": []}
_STATUS = {"idle": 408, "bad_audio": 400, "bad_message": 400, "bad_task": 400, "too_large": 413, "overloaded": 503, "draining": 503}


@dataclass(frozen=True, slots=True)
class Wish:
    """What the form asked for."""

    file: UploadFile
    form: Form
    options: SessionOptions
    words: bool  # word times in verbose_json
    live: bool  # stream=true: server-sent events as the text appears
    target: str | None = None  # the language to translate into


async def transcriptions(request: Request) -> Response:
    """Endpoint of ``/v1/audio/transcriptions``. Every error has OpenAI's shape: {"error": {message, type, param, code}}."""
    return await _answered(request, translate=False)


async def translations(request: Request) -> Response:
    """Endpoint of ``/v1/audio/translations``; into English, unless the form has ``to_language`` (ours, and vLLM's)."""
    return await _answered(request, translate=True)


async def _answered(request: Request, *, translate: bool) -> Response:
    try:
        return await _serve(request, request.app.state.engine, translate=translate)
    except ClientDisconnect:
        return Response(status_code=499)  # nobody reads it
    except Exception as error:
        return error_response(error)


def error_response(error: Exception) -> Response:
    """An error → its status and OpenAI's shape."""
    told = failure(error)
    status, message, code = _STATUS.get(told.code, 500), told.message, str(told.code)
    if isinstance(error, HTTPException):
        status, message, code = error.status_code, str(error.detail), "bad_message"
    kind = "invalid_request_error" if status < 500 else "server_error"
    headers = {} if told.retry_after_s is None else {"retry-after": str(max(1, round(told.retry_after_s)))}
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": code}}, status, headers)


async def _serve(request: Request, engine: Engine, *, translate: bool) -> Response:
    visitor = cast(Visitor, getattr(request.state, "visitor", Visitor()))
    server = engine.options.server
    folder = tempfile.TemporaryDirectory(prefix="dragoman-", ignore_cleanup_errors=True)
    try:
        with engine.place(visitor):  # before a large file is taken in for nothing, and so that not many are at once
            bounded = Request(request.scope, _bounded(request.receive, server.upload_mb, server.idle_s, engine.clock))
            async with bounded.form(max_files=1, max_fields=32) as form:
                wish = read_form(form, engine.options.session, translate=translate)
                engine.loaded.prompts.check(Task(wish.options.language, wish.options.targets, wish.options.glossary))
                source = await asyncio.to_thread(_store, wish.file, Path(folder.name) / "upload")
        _check_length(source.duration_s, server.session_s)
        stream = await engine.open(  # nobody else can have asked for the place meanwhile
            wish.options,
            sample_rate=source.sample_rate,
            channels=source.channels,
            encoding="float32",
            background=True,
            visitor=visitor,
        )
    except BaseException:
        folder.cleanup()
        raise
    return await _respond(request, _Job(engine, stream, source, folder), wish)


async def _respond(request: Request, job: _Job, wish: Wish) -> Response:
    """What the form asked for, whole if it comes soon. The job is closed by the end, by its response or without one."""
    if wish.live:
        return _JobResponse(job, _beating(job.sent_events(), _COMMENT), "text/event-stream")

    def told(finals: list[Final]) -> Response:
        return answer(wish.form, finals, language=wish.options.language, duration_s=job.heard_s, words=wish.words, target=wish.target)

    async with AsyncExitStack() as closing:
        closing.push_async_callback(job.close)
        finals = await job.whole(request, _SILENT_S if wish.form in _BEGUN_EARLY else None)
        if finals is not None:
            return told(finals)
        closing.pop_all()  # the response closes it
    return _JobResponse(job, _beating(job.late(told), _WHITE_SPACE), "application/json")


def read_form(form: FormData, options: SessionOptions, *, translate: bool = False) -> Wish:
    """The fields we know; all others (``model``, ``prompt``, ``temperature``, …) are taken and change nothing. Raises WireError."""
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise WireError("bad_message", "the form has no file in its field 'file', expected audio (WAV, FLAC, Ogg, MP3)")
    wanted = str(form.get("response_format") or "json")
    if wanted not in FORMS:
        raise WireError("bad_message", f"response_format is {wanted[:40]!r}, expected one of {', '.join(FORMS)}")
    live = str(form.get("stream") or "false").lower() in ("true", "1")
    if live and wanted not in ("json", "text"):
        raise WireError("bad_message", f"stream is true and response_format {wanted!r}, expected json or text")
    if live and translate:
        raise WireError("bad_message", "stream is true; a translation comes whole (the socket /v1/stream translates live)")
    target = language_code(str(form.get("to_language") or "en")) if translate else None
    languages = [str(language) for language in form.getlist("languages[]")]
    if len(languages) > 1:
        raise WireError("bad_message", f"languages are {', '.join(languages)[:60]}, expected one: a session hears one language")
    language = language_code(str(form.get("language") or "".join(languages) or options.language))
    glossary = tuple(str(word)[:200] for word in form.getlist("keywords[]")) or options.glossary
    changes = {"language": language, "glossary": glossary, "targets": () if target is None else (target,)}
    options = options.model_copy(update=changes)
    words = "word" in form.getlist("timestamp_granularities[]") and not translate  # a translation's words have no times
    return Wish(file, wanted, options, words, live, target)


def answer(
    form: Form, finals: list[Final], *, language: str, duration_s: float, words: bool = False, target: str | None = None
) -> Response:
    """The segments of a file → the response in the form that was asked for. ``target``: they are translations into it."""
    text = " ".join(final.text.strip() for final in finals if final.text.strip())
    if form == "json":
        return JSONResponse({"text": text})
    if form == "text":
        return PlainTextResponse(text + "\n")
    if form in ("srt", "vtt"):
        return PlainTextResponse(_captions(form == "srt", finals))
    task = "transcribe" if target is None else "translate"
    said: dict[str, Any] = {"task": task, "language": target or language, "duration": duration_s, "text": text}
    said["segments"] = [
        {
            "id": number,
            "start": final.start_ms / 1000,
            "end": final.end_ms / 1000,
            "text": final.text,
            **({} if target else {"avg_logprob": float(np.mean([word.logprob for word in final.words])) if final.words else 0.0}),
            "compression_ratio": _compression_ratio(final.text),
            **_NOT_MEASURED,
        }
        for number, final in enumerate(final for final in finals if final.text)
    ]
    if words:
        said["words"] = [
            {"word": word.text.strip(), "start": word.start_ms / 1000, "end": word.end_ms / 1000}
            for final in finals
            for word in whole_words(final.words)
        ]
    return JSONResponse(said)


def _compression_ratio(text: str) -> float:
    """As Whisper has it: large for text that repeats itself."""
    said = text.encode()
    return len(said) / len(zlib.compress(said))


def _captions(as_srt: bool, finals: list[Final]) -> str:
    times, out = CueTimes(), io.StringIO()
    cues = [cue for final in finals for cue in times.push(cut_cues(final.words))]
    if not as_srt:
        out.write("WEBVTT\n\n")
    for number, cue in enumerate([*cues, *times.close()], 1):
        out.write(srt(number, cue) if as_srt else vtt(cue))
    return out.getvalue()


class _Job:
    """One file on its way through one stream."""

    def __init__(self, engine: Engine, stream: Stream, source: AudioSource, folder: tempfile.TemporaryDirectory[str]) -> None:
        self._engine, self._stream, self._source, self._folder = engine, stream, source, folder
        stream.attach(self)
        self._cut_off: WireError | None = None  # the server closed the stream before all of the file was in it
        self._feeder = asyncio.create_task(self._feed())
        self._work: asyncio.Task[list[Final]] | None = None

    @property
    def heard_s(self) -> float:
        """Of the file, taken in so far."""
        return self._stream.inbox.received_ms / 1000

    async def whole(self, request: Request, within_s: float | None) -> list[Final] | None:
        """All segments; None when they take longer, and then ``late`` has them. Raises ClientDisconnect when the client leaves: its file
        then costs nothing more."""
        work = self._work = asyncio.create_task(self._finals())
        gone = asyncio.create_task(_disconnected(request))
        try:
            done, _ = await asyncio.wait((work, gone), timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
        if work in done:
            return work.result()
        if gone in done:
            raise ClientDisconnect
        return None

    async def late(self, told: Callable[[list[Final]], Response]) -> AsyncIterator[str]:
        """White space at once, at last the answer's body: ``told`` makes it of the segments that ``whole`` did not wait for. An error has
        the body that it would have had earlier; its status is lost."""
        assert self._work is not None, "whole has begun the work"
        yield _WHITE_SPACE
        try:
            response = told(await self._work)
        except Exception as error:
            response = error_response(error)
        yield bytes(response.body).decode()

    async def sent_events(self) -> AsyncIterator[str]:
        """Server-sent events: transcript.text.delta as text is committed, at last transcript.text.done."""
        said, said_segment = "", -1
        try:
            async for item in self._stream.follow(self):
                if not (isinstance(item, tuple) and isinstance(item[1], Partial | Final) and item[1].delta):
                    continue
                delta, segment = item[1].delta, item[1].segment
                if segment != said_segment:  # as ``answer`` joins segments
                    delta, said_segment = (" " if said else "") + delta.lstrip(), segment
                said += delta
                yield _event({"type": "transcript.text.delta", "delta": delta})
            await self._check_whole()
            yield _event({"type": "transcript.text.done", "text": said})
        except Exception as error:
            yield _event({"type": "error", **json.loads(bytes(error_response(error).body))})

    async def close(self) -> None:
        """Whatever happened: the stream's place is free again, the file is gone."""
        tasks: list[asyncio.Task[Any]] = [task for task in (self._feeder, self._work) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._engine.discard(self._stream)
        self._source.close()
        await asyncio.to_thread(self._folder.cleanup)

    async def _finals(self) -> list[Final]:
        """The segments; where a translation was asked for, with its text in place of what was said."""
        finals: list[Final] = []
        async for item in self._stream.follow(self):
            event = item[1] if isinstance(item, tuple) else None
            if isinstance(event, Final):
                finals.append(event)
            elif isinstance(event, Translation):
                words = tuple(spread(event.text, event.start_ms, event.end_ms))
                finals[-1] = replace(finals[-1], text=event.text, words=words)
        await self._check_whole()
        return finals

    async def _check_whole(self) -> None:
        """A stream that the server closed ends like any other, and may do so before the feeder knows. Raises WireError."""
        await asyncio.wait([self._feeder])
        if self._cut_off is not None:
            raise self._cut_off

    async def _feed(self) -> None:
        blocks = self._source.blocks()
        try:
            while (block := await _next(blocks)) is not None:
                if self._stream.closed:
                    self._cut_off = WireError(
                        "draining", f"the server is stopping, {self.heard_s:.0f} s into the file; send it again later"
                    )
                    raise self._cut_off
                await self._stream.push(np.ascontiguousarray(block, dtype="<f4").tobytes())
                _check_length(self.heard_s, self._engine.options.server.session_s)
            self._stream.finish()
        except AudioFormatError as error:  # the file is broken in the middle
            self._stream.fail(_told(error, self._source.name))
        except WireError as error:
            self._stream.fail(error)  # too long; or the stream has ended, and its follower is told why


async def _next(blocks: Iterator[Floats]) -> Floats | None:
    """The next block, read in a thread. Cancelled, it waits for the thread: closing a file that is being read takes the process down."""
    reading = asyncio.ensure_future(asyncio.to_thread(next, blocks, None))
    try:
        return await asyncio.shield(reading)
    except asyncio.CancelledError:
        await asyncio.gather(reading, return_exceptions=True)
        raise


async def _beating(pieces: AsyncIterator[str], beat: str) -> AsyncIterator[str]:
    """The pieces, and ``beat`` whenever none has come for a while."""
    while True:
        coming = asyncio.ensure_future(anext(pieces, None))
        try:
            while not (await asyncio.wait((coming,), timeout=_BEAT_S))[0]:
                yield beat
        finally:
            coming.cancel()
        piece = coming.result()
        if piece is None:
            return
        yield piece


class _JobResponse(StreamingResponse):
    """A body that comes bit by bit, and cleans up even when the client never read any of it."""

    def __init__(self, job: _Job, body: AsyncIterator[str], media_type: str) -> None:
        # nginx would otherwise keep small pieces to itself until they are a large one.
        super().__init__(body, media_type=media_type, headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._job.close()


def _store(upload: UploadFile, path: Path) -> AudioSource:
    """The upload as a file that can be sought in. Raises AudioFormatError under the name that the client gave it."""
    with path.open("wb") as out:
        shutil.copyfileobj(upload.file, out)
    try:
        return open_source(path, _BLOCK_MS)
    except AudioFormatError as error:
        raise _told(error, str(path), upload.filename or "the file") from error


def _told(error: AudioFormatError, path: str, name: str = "the file") -> AudioFormatError:
    """The same error without a path of the server."""
    return AudioFormatError(str(error).replace(path, name[:80]))


def _event(mapping: dict[str, Any]) -> str:
    return f"data: {json.dumps(mapping, ensure_ascii=False)}\n\n"


def _check_length(duration_s: float | None, longest_s: float | None) -> None:
    if longest_s is not None and (duration_s or 0.0) > longest_s:
        raise WireError("too_large", f"the audio is longer than {longest_s:g} s, the limit of this server")


def _bounded(receive: Receive, most_mb: int, idle_s: float, clock: Callable[[], float]) -> Receive:
    """``receive`` that raises 413 once a body is larger than ``most_mb``, and 408 when it comes too slowly: ``idle_s`` in all for nothing,
    and longer by what has arrived at the slowest speed that a client may have."""
    taken_bytes, waited_s = 0, 0.0

    async def bounded() -> Message:
        nonlocal taken_bytes, waited_s
        began_s, left_s = clock(), idle_s + taken_bytes / _SLOWEST_BYTES_S - waited_s
        try:
            async with asyncio.timeout(left_s):
                message = await receive()
        except TimeoutError as error:
            raise WireError("idle", f"the upload is too slow: {taken_bytes} bytes came in {waited_s + left_s:.0f} s") from error
        spent_s = clock() - began_s
        if spent_s > left_s:
            raise WireError("idle", f"the upload is too slow: {taken_bytes} bytes came in {waited_s + spent_s:.0f} s")
        waited_s += spent_s
        taken_bytes += len(cast(bytes, message.get("body", b"")))
        if taken_bytes > most_mb * 1_000_000:
            raise WireError("too_large", f"the upload is larger than {most_mb} MB")
        return message

    return bounded


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
