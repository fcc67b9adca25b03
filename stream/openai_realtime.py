"""The socket ``/v1/realtime?intent=transcription``: OpenAI's realtime transcription on our sessions. Messages are in ``openai_session``."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import deque
from collections.abc import Iterator
from typing import Any, Literal

from starlette.websockets import WebSocket

from ..model.errors import TaskError
from ..model.prompt import Task
from .connection import Connection
from .engine import Engine
from .events import Committed, Ended, Event, Final, Partial, SpeechEnded, SpeechStarted
from .live import Stream
from .openai_session import Append, ClearBuffer, CommitBuffer, EventError, FlatUpdate, Setup, Update, read_event
from .protocol import CLOSE_CODES, LARGEST_AUDIO_BYTES, Failure, WireError, failure, mapping_of

_BEARABLE = ("bad_message", "bad_audio", "bad_task", "too_large")  # a client that is told of these may go on
_ITEM = "conversation.item.input_audio_transcription"
ServerEvent = dict[str, Any]


class Turns:
    """Our events → OpenAI's, item by item. No socket here.

    With turn detection every segment is an item. Without it an item holds all segments between two commits. Deltas are committed text and
    nothing else, so the deltas of an item, joined, are its transcript.
    """

    def __init__(self) -> None:
        self.manual = False
        self.offset_ms = 0  # of audio that earlier streams of the same connection have heard
        self.marks: deque[Literal["commit", "clear"]] = deque()  # asked for, not yet answered by Committed
        self._item: str | None = None
        self._previous: str | None = None  # the item committed last
        self._is_committed = self._cut = False
        self._text, self._segment, self._audio_ms = "", -1, 0

    def tell(self, event: Event) -> Iterator[ServerEvent]:
        """What the client is told of an event."""
        if isinstance(event, Committed):
            yield from self._answer()
        elif self.marks and self.marks[0] == "clear" and not self._is_committed:
            return  # the client does not want this audio
        elif isinstance(event, SpeechStarted):
            if not self.manual:
                yield {"type": "input_audio_buffer.speech_started", "audio_start_ms": self.offset_ms + event.at_ms, "item_id": self._open()}
        elif isinstance(event, Partial):
            yield from self._delta(event)
        elif isinstance(event, SpeechEnded):
            if not self.manual:
                yield from self._end(event)
        elif isinstance(event, Final):
            yield from self._delta(event)
            self._audio_ms += event.end_ms - event.start_ms
            if not self.manual:
                self._cut = event.reason == "commit"
                yield from self._complete()
        elif isinstance(event, Ended) and self._item is not None:  # the server is stopping
            yield self._commit()
            yield from self._complete()

    def fail(self, told: Failure) -> Iterator[ServerEvent]:
        """The session is over, and an item is left without its end."""
        if self._item is not None:
            error = {"type": "server_error", "code": told.code, "message": told.message, "param": None}
            yield {"type": f"{_ITEM}.failed", "item_id": self._item, "content_index": 0, "error": error}

    def _answer(self) -> Iterator[ServerEvent]:
        mark, cut, self._cut = self.marks.popleft(), self._cut, False
        if mark == "clear":
            self._forget()
        elif not cut:  # with turn detection: nothing was being said
            yield self._commit()
            yield from self._complete()

    def _end(self, event: SpeechEnded) -> Iterator[ServerEvent]:
        if event.reason != "commit":
            yield {"type": "input_audio_buffer.speech_stopped", "audio_end_ms": self.offset_ms + event.at_ms, "item_id": self._open()}
        yield self._commit()

    def _delta(self, event: Partial | Final) -> Iterator[ServerEvent]:
        delta = event.delta
        if delta and event.segment != self._segment:
            delta, self._segment = (" " if self._text else "") + delta.lstrip(), event.segment
        if delta:
            self._text += delta
            yield {"type": f"{_ITEM}.delta", "item_id": self._open(), "content_index": 0, "delta": delta}

    def _commit(self) -> ServerEvent:
        item, before = self._open(), self._previous
        self._previous, self._is_committed = item, True
        return {"type": "input_audio_buffer.committed", "item_id": item, "previous_item_id": before}

    def _complete(self) -> Iterator[ServerEvent]:
        usage = {"type": "duration", "seconds": self._audio_ms / 1000}
        yield {"type": f"{_ITEM}.completed", "item_id": self._open(), "content_index": 0, "transcript": self._text, "usage": usage}
        self._forget()

    def _open(self) -> str:
        if self._item is None:
            self._item = f"item_{uuid.uuid4().hex[:24]}"
        return self._item

    def _forget(self) -> None:
        self._item, self._is_committed = None, False
        self._text, self._segment, self._audio_ms = "", -1, 0


class RealtimeConnection(Connection):
    """One socket. Its stream is opened by the first audio; an update that changes how audio is heard ends it, and the next audio opens
    another."""

    def __init__(self, socket: WebSocket, engine: Engine) -> None:
        super().__init__(socket, engine)
        self._id = f"sess_{uuid.uuid4().hex[:24]}"
        self._setup = Setup.of(engine.options.session)
        self._turns = Turns()
        self._opened: asyncio.Queue[Stream] = asyncio.Queue()
        self._ended = asyncio.Event()  # the stream that was to be replaced
        self._replacing = False
        self._pending = False  # audio since the last commit or clear

    async def _serve(self) -> None:
        # A browser cannot send headers: there the key comes as a second subprotocol, and a server must choose one of those offered.
        await self._socket.accept("realtime" if "realtime" in self._socket.scope.get("subprotocols", ()) else None)
        if self._socket.query_params.get("intent") != "transcription":
            raise WireError("bad_message", "this server transcribes and does not converse; expected /v1/realtime?intent=transcription")
        self._engine.admit()  # a place is taken by the first audio, but a full server says so at once
        await self._show("session.created", flat=False)
        await self._talk(self._read(), self._write())

    async def _tell_failure(self, told: Failure) -> None:
        last = [*self._turns.fail(told), _error(told)]
        await self._close(CLOSE_CODES[told.code], told.code, *map(_text, last))

    async def _read(self) -> None:
        while True:
            raw: dict[str, Any] = {}
            try:
                message = await self._receive()
                raw = _json(message)
                await self._obey(raw)
            except (WireError, TaskError) as error:
                told = failure(error)
                if told.code not in _BEARABLE or self._stream is not None and self._stream.error is not None:
                    raise
                await self._send(_error(told, error, raw.get("event_id")))

    async def _obey(self, raw: dict[str, Any]) -> None:
        event = read_event(raw)
        if isinstance(event, Append):
            await self._append(event)
        elif isinstance(event, CommitBuffer):
            if not self._pending:
                raise EventError("no audio since the last commit", name="input_audio_buffer_commit_empty")
            await self._mark("commit")
        elif isinstance(event, ClearBuffer):
            if self._pending:
                await self._mark("clear")
            await self._send({"type": "input_audio_buffer.cleared"})
        else:
            await self._update(event)

    async def _append(self, event: Append) -> None:
        data = event.data()
        if self._stream is None:
            await self._open()
        assert self._stream is not None, "a stream was opened"
        await self._stream.push(self._setup.input.format.decode(data))
        self._pending = True

    async def _open(self) -> None:
        options = self._options(self._setup.asked, where="session")
        stream = self._stream = await self._engine.open(options, sample_rate=self._setup.input.format.sample_rate)
        stream.attach(self)
        self._opened.put_nowait(stream)

    async def _mark(self, mark: Literal["commit", "clear"]) -> None:
        assert self._stream is not None, "audio has opened a stream"
        self._pending = False
        self._turns.marks.append(mark)
        await self._stream.commit()

    async def _update(self, event: Update | FlatUpdate) -> None:
        setup = self._setup.updated(event.input, self._engine.options.session)
        options = self._options(setup.asked, where="session")
        self._engine.loaded.prompts.check(Task(options.language, (), options.glossary))
        if not setup.hears_as(self._setup):
            await self._replace()
        self._setup, self._turns.manual = setup, setup.input.turn_detection is None
        flat = isinstance(event, FlatUpdate)
        await self._show("transcription_session.updated" if flat else "session.updated", flat=flat)

    async def _replace(self) -> None:
        """Let the stream end, if there is one: what it has heard is told as it was asked for."""
        if self._stream is None:
            return
        if self._turns.manual and self._pending:
            await self._mark("commit")
        self._replacing = True
        self._stream.finish()
        await self._ended.wait()
        self._ended.clear()
        self._stream, self._replacing, self._pending = None, False, False

    async def _write(self) -> None:
        while True:
            stream = await self._opened.get()
            async for item in stream.follow(self):
                for told in self._turns.tell(item[1]) if isinstance(item, tuple) else ():
                    await self._send(told)
            if not self._replacing:
                return  # the server is stopping
            self._engine.discard(stream)
            self._turns.offset_ms += stream.inbox.received_ms
            self._ended.set()

    async def _show(self, kind: str, *, flat: bool) -> None:
        await self._send({"type": kind, "session": self._setup.shown(self._id, self._engine.loaded.backend.spec.name, flat=flat)})

    async def _send(self, event: ServerEvent) -> None:
        await self._socket.send_text(_text(event))


def _json(message: str | bytes) -> dict[str, Any]:
    if isinstance(message, bytes):
        raise EventError(f"a binary message of {len(message)} bytes, expected JSON text with the audio in base64")
    if len(message) > LARGEST_AUDIO_BYTES:
        raise WireError("too_large", f"a message of {len(message)} characters, expected at most {LARGEST_AUDIO_BYTES}")
    return mapping_of(message)


def _error(told: Failure, error: Exception | None = None, event_id: object = None) -> ServerEvent:
    """OpenAI's error event. ``event_id``: of the client's event that caused it."""
    kind = "server_error" if told.code in ("internal", "overloaded", "draining") else "invalid_request_error"
    said: ServerEvent = {"type": kind, "code": told.code, "message": told.message, "param": None, "event_id": None}
    if isinstance(error, EventError):
        said |= {"code": error.name, "param": error.param}
    if isinstance(event_id, str):
        said["event_id"] = event_id[:512]
    if told.retry_after_s is not None:
        said["retry_after_s"] = told.retry_after_s  # ours
    return {"type": "error", "error": said}


def _text(event: ServerEvent) -> str:
    return json.dumps({"type": event["type"], "event_id": f"event_{uuid.uuid4().hex[:24]}", **event}, ensure_ascii=False)


async def realtime_socket(socket: WebSocket) -> None:
    """Endpoint of ``/v1/realtime``."""
    await RealtimeConnection(socket, socket.app.state.engine).run()
