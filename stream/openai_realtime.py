"""The socket ``/v1/realtime?intent=transcription``: OpenAI's realtime transcription on our sessions. Messages are in ``openai_session``."""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Iterator
from typing import Any, Literal

from starlette.websockets import WebSocket

from ..model.prompt import Task
from .engine import Engine
from .events import Committed, Ended, Event, Final, Partial, SpeechEnded, SpeechStarted
from .openai_connection import OpenAIConnection, ServerEvent
from .openai_session import Append, ClearBuffer, CommitBuffer, EventError, FlatUpdate, Setup, Update, read_event
from .protocol import Failure, WireError

_ITEM = "conversation.item.input_audio_transcription"


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


class RealtimeConnection(OpenAIConnection):
    """One socket. An update that changes how audio is heard ends its stream, and the next audio opens another."""

    def __init__(self, socket: WebSocket, engine: Engine) -> None:
        super().__init__(socket, engine)
        self._setup = Setup.of(engine.options.session)
        self._turns = Turns()

    async def _serve(self) -> None:
        await self._accept()
        if self._socket.query_params.get("intent") != "transcription":
            raise WireError(
                "bad_message",
                "this server transcribes and translates, it does not converse; expected /v1/realtime?intent=transcription or "
                "/v1/realtime/translations",
            )
        self._engine.admit(self._visitor)  # a place is taken by the first audio, but a full server says so at once
        await self._show("session.created", flat=False)
        await self._talk(self._read(), self._write())

    async def _obey(self, raw: dict[str, Any]) -> bool:
        event = read_event(raw)
        if isinstance(event, Append):
            await self._push(event.data(), self._setup.input.format, self._setup.asked)
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
        return True

    def _tell(self, event: Event) -> Iterator[ServerEvent]:
        return self._turns.tell(event)

    def _last(self, told: Failure | None) -> Iterator[ServerEvent]:
        return iter(()) if told is None else self._turns.fail(told)

    def _heard(self, heard_ms: int) -> None:
        self._turns.offset_ms += heard_ms

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
            if self._turns.manual and self._pending:
                await self._mark("commit")
            await self._replace()
        self._setup, self._turns.manual = setup, setup.input.turn_detection is None
        flat = isinstance(event, FlatUpdate)
        await self._show("transcription_session.updated" if flat else "session.updated", flat=flat)

    async def _show(self, kind: str, *, flat: bool) -> None:
        await self._send({"type": kind, "session": self._setup.shown(self.id, self._model, flat=flat)})


async def realtime_socket(socket: WebSocket) -> None:
    """Endpoint of ``/v1/realtime``."""
    await RealtimeConnection(socket, socket.app.state.engine).run()
