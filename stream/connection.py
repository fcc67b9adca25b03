"""What the sockets share: a connection from its first message to its close. Each protocol is a subclass that says it in its own words."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Mapping
from math import inf
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from ..model.errors import ConfigError
from .access import Visitor
from .config import SessionOptions, parse_options
from .engine import Engine
from .live import Stream
from .protocol import LARGEST_AUDIO_BYTES, Failure, WireError, failure

_LOG = logging.getLogger(__name__)
_BROKEN = (1002, 1007, 1009)  # close codes of what the socket library itself refuses: bad frames, bad UTF-8, far too large


class Connection:
    """One socket. A subclass writes ``_serve`` and ``_tell_failure``."""

    resumable = False  # whether the protocol has a way to come back to a session whose connection was lost

    def __init__(self, socket: WebSocket, engine: Engine) -> None:
        self._socket, self._engine = socket, engine
        self._visitor: Visitor = getattr(socket.state, "visitor", Visitor())
        self._idle_s: float = engine.options.server.idle_s
        self._silence_s: Callable[[], float] = getattr(socket.state, "silence_s", lambda: inf)  # inf: only messages count
        self._stream: Stream | None = None

    async def run(self) -> None:
        """Serve until the stream or the connection ends. Raises nothing that a client could cause."""
        try:
            await self._serve()
        except WebSocketDisconnect as lost:
            self._leave(keep=lost.code not in _BROKEN)
        except Exception as error:
            told = failure(error)
            if told.code == "internal":
                _LOG.error("a connection has failed: %s", error, exc_info=error)
            self._leave(keep=told.code == "idle")
            await self._tell_failure(told)
        except asyncio.CancelledError:
            self._leave(keep=True)
            raise

    async def _serve(self) -> None:
        """From accepting the socket to closing it."""
        raise NotImplementedError

    async def _tell_failure(self, told: Failure) -> None:
        """The last message, and the close."""
        raise NotImplementedError

    def _options(self, asked: Mapping[str, Any], where: str) -> SessionOptions:
        """The configured options, with what the client asked for in their place. Raises WireError."""
        whole = {**self._engine.options.session.model_dump(), **asked}
        try:
            return parse_options({"session": whole}, where=where).session
        except ConfigError as error:
            raise WireError("bad_message", str(error)) from error

    async def _talk(self, reading: Coroutine[Any, Any, None], writing: Coroutine[Any, Any, None]) -> None:
        """Read and write at the same time, until the first of the two ends. A protocol closes when its writer has nothing more to say."""
        reader, writer = asyncio.create_task(reading), asyncio.create_task(writing)
        try:
            await asyncio.wait((reader, writer), return_when=asyncio.FIRST_COMPLETED)
            for task in (writer, reader):  # an error of the stream tells more than the disconnect that follows it
                if task.done():
                    task.result()
        finally:
            for task in (reader, writer):
                task.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)
        self._leave(keep=True)
        await self._close(1001 if self._engine.draining_until_s is not None else 1000)

    async def _receive(self, *, listening: bool = True, within_s: float | None = None) -> str | bytes:
        """One message. Raises WireError, or WebSocketDisconnect. ``listening``: silence is limited (not after the end of the audio), but
        who still answers pings is not idle: muted, or between two turns. ``within_s``: where a message has to come, and soon."""
        limit_s = self._idle_s if within_s is None else min(within_s, self._idle_s)
        left_s = limit_s
        while True:
            try:
                async with asyncio.timeout(left_s if listening else None):
                    message: dict[str, Any] = dict(await self._socket.receive())
                break
            except TimeoutError as error:
                left_s = limit_s - (self._silence_s() if within_s is None else limit_s)
                if left_s <= 0:
                    raise WireError("idle", f"nothing came for {limit_s:g} s, expected audio or another message") from error
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code") or 1005)
        text: str | None = message.get("text")
        if text is not None:
            return text
        data: bytes = message["bytes"]
        if len(data) > LARGEST_AUDIO_BYTES:
            raise WireError("too_large", f"a binary message of {len(data)} bytes, expected at most {LARGEST_AUDIO_BYTES}")
        return data

    def _leave(self, *, keep: bool) -> None:
        stream = self._stream
        if stream is None or not stream.is_owned_by(self):  # another connection has it
            return
        if keep and self.resumable:
            self._engine.detach(stream)
        else:
            self._engine.discard(stream)

    async def _close(self, code: int, reason: str = "", *texts: str) -> None:
        """Close, with last messages before."""
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # the client may have left already
            for text in texts:
                await self._socket.send_text(text)
            await self._socket.close(code, reason)
