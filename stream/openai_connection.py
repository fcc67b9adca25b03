"""What OpenAI's two realtime sockets share: JSON both ways, audio in base64, errors that the session survives, and settings that may change
in the middle of the audio, which ends one stream and opens another."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from starlette.websockets import WebSocket

from ..model.errors import TaskError
from .connection import Connection
from .engine import Engine
from .events import Event
from .lag import LagSigns
from .live import Stream
from .openai_session import AudioFormat, EventError
from .protocol import CLOSE_CODES, LARGEST_AUDIO_BYTES, Failure, WireError, failure, mapping_of

_BEARABLE = ("bad_message", "bad_audio", "bad_task", "too_large")  # a client that is told of these may go on
ServerEvent = dict[str, Any]


class OpenAIConnection(Connection):
    """One socket. Its stream is opened by the first audio. A subclass obeys events and puts ours into the protocol's words."""

    def __init__(self, socket: WebSocket, engine: Engine) -> None:
        super().__init__(socket, engine)
        self.id = f"sess_{uuid.uuid4().hex[:24]}"
        self._opened: asyncio.Queue[Stream] = asyncio.Queue()
        self._ended = asyncio.Event()  # the stream that was to be replaced
        self._began_s: float | None = None  # of the engine's clock: when the first stream was opened
        self._replacing = False
        self._pending = False  # audio that nothing was asked about yet
        self._signs = LagSigns()

    # What a subclass says

    async def _obey(self, raw: dict[str, Any]) -> bool:
        """Do what an event asks for. Raises EventError, WireError, TaskError. False: the client is done and waits for nothing more."""
        raise NotImplementedError

    def _tell(self, event: Event) -> Iterator[ServerEvent]:
        """What the client is told of an event."""
        raise NotImplementedError

    def _last(self, told: Failure | None) -> Iterator[ServerEvent]:
        """What is said before the socket closes. ``told``: the session has failed; None: its stream has come to its end."""
        raise NotImplementedError

    def _heard(self, heard_ms: int) -> None:
        """A stream was replaced by the next one: what follows comes so much later."""
        raise NotImplementedError

    # The connection

    async def _accept(self) -> None:
        # A browser cannot send headers: there the key comes as a second subprotocol, and a server must choose one of those offered.
        await self._socket.accept("realtime" if "realtime" in self._socket.scope.get("subprotocols", ()) else None)

    async def _tell_failure(self, told: Failure) -> None:
        last = [*self._last(told), error_event(told)]
        await self._close(CLOSE_CODES[told.code], told.code, *map(text_of, last))

    async def _read(self) -> None:
        while True:
            raw: dict[str, Any] = {}
            try:
                raw = _json(await self._receive(listening=self._stream is None or not self._stream.inbox.finished))
                if not await self._obey(raw):
                    return
            except (WireError, TaskError) as error:
                told = failure(error)
                if told.code not in _BEARABLE or self._stream is not None and self._stream.error is not None:
                    raise
                await self._send(error_event(told, error, raw.get("event_id")))

    async def _push(self, data: bytes, form: AudioFormat, asked: Mapping[str, Any]) -> None:
        """Audio as it came. ``asked``: options of the session, if one has to be opened."""
        if self._stream is None:
            stream = self._stream = await self._engine.open(
                self._options(asked, where="session"), sample_rate=form.sample_rate, visitor=self._visitor
            )
            if self._began_s is None:
                self._began_s = stream.opened_s
            stream.opened_s = self._began_s  # a change of settings does not begin the session's time anew
            stream.attach(self)
            stream.reads_on = True
            self._opened.put_nowait(stream)
        await self._stream.push(form.decode(data))
        self._pending = True

    async def _replace(self) -> None:
        """Let the stream end, if there is one: what it has heard is told as it was asked for."""
        if self._stream is None:
            return
        self._replacing = True
        self._stream.finish()
        await self._ended.wait()
        self._ended.clear()
        self._stream, self._replacing, self._pending = None, False, False

    async def _write(self) -> None:
        while True:
            stream = await self._opened.get()
            async for item in stream.follow(self):
                for told in self._tell(item[1]) if isinstance(item, tuple) else self._tell_lag(stream):
                    await self._send(told)
            if not self._replacing:  # the client has closed, or the server is stopping
                for told in self._last(None):
                    await self._send(told)
                return
            self._engine.discard(stream)
            self._heard(stream.inbox.received_ms)
            self._ended.set()

    def _tell_lag(self, stream: Stream) -> Iterator[ServerEvent]:
        """Ours: clients pass over a type that they do not know."""
        behind_ms = self._signs.due(stream.behind_ms(self._engine.clock()), stream.lag_ms)
        if behind_ms is not None:
            yield {"type": "dragoman.lag", "behind_ms": behind_ms}

    @property
    def _model(self) -> str:
        return self._engine.loaded.backend.spec.name

    async def _send(self, event: ServerEvent) -> None:
        await self._socket.send_text(text_of(event))


def _json(message: str | bytes) -> dict[str, Any]:
    if isinstance(message, bytes):
        raise EventError(f"a binary message of {len(message)} bytes, expected JSON text with the audio in base64")
    if len(message) > LARGEST_AUDIO_BYTES:
        raise WireError("too_large", f"a message of {len(message)} characters, expected at most {LARGEST_AUDIO_BYTES}")
    return mapping_of(message)


def error_event(told: Failure, error: Exception | None = None, event_id: object = None) -> ServerEvent:
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


def text_of(event: ServerEvent) -> str:
    """An event as a message, with a number of its own."""
    text = json.dumps({"type": event["type"], "event_id": f"event_{uuid.uuid4().hex[:24]}", **event}, ensure_ascii=False)
    return text.encode("utf-8", "replace").decode()  # what a client sent may be quoted, and may be no text
