"""The native socket ``/v1/stream``: one connection, one stream. Messages are in ``protocol``, told in docs/protocol.md."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from ..model.errors import ConfigError
from .config import parse_options
from .engine import Engine
from .live import Stream
from .opus import OpusDecoder
from .protocol import (
    CLOSE_CODES,
    ENCODINGS,
    LARGEST_AUDIO_BYTES,
    ClientMessage,
    Finish,
    Gap,
    KeepAlive,
    Limits,
    Notice,
    Progress,
    Ready,
    Resume,
    Start,
    WireError,
    failure,
    read_client,
    write,
    write_event,
)

_LOG = logging.getLogger(__name__)
_BROKEN = (1002, 1007, 1009)  # close codes of what the socket library itself refuses: bad frames, bad UTF-8, far too large


class Connection:
    """One socket from its first message to its close."""

    def __init__(self, socket: WebSocket, engine: Engine) -> None:
        self._socket, self._engine = socket, engine
        self._idle_s: float = engine.options.server.idle_s
        self._stream: Stream | None = None
        self._after_seq = 0

    async def run(self) -> None:
        """Serve until the stream or the connection ends. Raises nothing that a client could cause."""
        try:
            await self._socket.accept()
            stream = self._stream = await self._begin()
            await self._talk(stream)
        except WebSocketDisconnect as lost:
            self._leave(keep=lost.code not in _BROKEN)
        except Exception as error:
            told = failure(error)
            if told.code == "internal":
                _LOG.error("a connection has failed: %s", error, exc_info=error)
            self._leave(keep=told.code == "idle")
            await self._close(write(told), CLOSE_CODES[told.code], told.code)

    async def _begin(self) -> Stream:
        first = await self._receive()
        if isinstance(first, Start):
            stream = await self._start(first)
        elif isinstance(first, Resume):
            stream = self._engine.find(first.session, first.after_seq)
            self._after_seq = first.after_seq
        else:
            got = "audio" if isinstance(first, bytes) else repr(first.type)
            raise WireError("bad_message", f"the first message is {got}, expected 'start' or 'resume' as text")
        stream.attach(self)
        self._stream = stream  # from here on a lost connection leaves it behind
        await self._socket.send_text(write(self._ready(stream, resumed=isinstance(first, Resume))))
        return stream

    async def _start(self, start: Start) -> Stream:
        asked = start.model_dump(include={"language", "targets", "glossary", "block_ms"}, exclude_none=True)
        whole = {**self._engine.options.session.model_dump(), **asked}
        try:
            options = parse_options({"session": whole}, where="start").session
        except ConfigError as error:
            raise WireError("bad_message", str(error)) from error
        opus = OpusDecoder(start.channels) if start.encoding == "opus" else None  # first: without PyAV no place is taken
        stream = await self._engine.open(
            options, sample_rate=start.sample_rate, channels=start.channels, encoding=ENCODINGS[start.encoding]
        )
        stream.opus = opus
        return stream

    def _ready(self, stream: Stream, *, resumed: bool) -> Ready:
        prompts, options = self._engine.loaded.prompts, stream.session.options
        server = self._engine.options.server
        return Ready(
            session=stream.id,
            model=self._engine.loaded.backend.spec.name,
            resumed=resumed,
            seq=stream.log.last_seq,
            received_samples=stream.inbox.received_samples,
            received_ms=stream.inbox.received_ms,
            sample_rate=stream.inbox.sample_rate,
            block_ms=options.block_ms,
            language=options.language,
            targets=options.targets,
            languages=prompts.languages,
            known_targets=tuple(code for code in prompts.targets if code != options.language),
            limits=Limits(idle_s=server.idle_s, resume_s=server.resume_s),
        )

    async def _talk(self, stream: Stream) -> None:
        """Read and write at the same time. The writer ends first, for nothing comes after ``ended``."""
        reader = asyncio.create_task(self._read(stream))
        writer = asyncio.create_task(self._write(stream))
        try:
            await asyncio.wait((reader, writer), return_when=asyncio.FIRST_COMPLETED)
            for task in (writer, reader):  # an error of the stream tells more than the disconnect that follows it
                if task.done():
                    task.result()
        finally:
            for task in (reader, writer):
                task.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)
        draining = self._engine.draining_until_s is not None
        self._leave(keep=True)
        await self._close(None, 1001 if draining else 1000, "")

    async def _read(self, stream: Stream) -> None:
        while True:
            message = await self._receive(listening=not stream.inbox.finished)
            stream.check_owner(self)
            if isinstance(message, bytes):
                await stream.push(stream.opus.decode(message) if stream.opus is not None else message)
            elif isinstance(message, Gap):
                await stream.lose(message.samples)
            elif isinstance(message, Finish):
                stream.finish()
            elif not isinstance(message, KeepAlive):
                raise WireError("bad_message", f"{message.type!r} in the middle of a session, expected audio, gap, keep_alive or finish")

    async def _write(self, stream: Stream) -> None:
        async for item in stream.follow(self, self._after_seq):
            text = write(item) if isinstance(item, Progress | Notice) else write_event(*item)
            await self._socket.send_text(text)

    async def _receive(self, *, listening: bool = True) -> ClientMessage | bytes:
        """One message. Raises WireError, or WebSocketDisconnect. ``listening``: silence is limited (not after ``finish``)."""
        try:
            async with asyncio.timeout(self._idle_s if listening else None):
                message: dict[str, Any] = dict(await self._socket.receive())
        except TimeoutError as error:
            raise WireError("idle", f"nothing came for {self._idle_s:g} s, expected audio or keep_alive") from error
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code") or 1005)
        text: str | None = message.get("text")
        if text is not None:
            return read_client(text)
        data: bytes = message["bytes"]
        if len(data) > LARGEST_AUDIO_BYTES:
            raise WireError("too_large", f"a binary message of {len(data)} bytes, expected at most {LARGEST_AUDIO_BYTES}")
        return data

    def _leave(self, *, keep: bool) -> None:
        stream = self._stream
        if stream is None or not stream.is_owned_by(self):  # another connection has it
            return
        if keep:
            self._engine.detach(stream)
        else:
            self._engine.discard(stream)

    async def _close(self, text: str | None, code: int, reason: str) -> None:
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # the client may have left already
            if text is not None:
                await self._socket.send_text(text)
            await self._socket.close(code, reason)


async def native_socket(socket: WebSocket) -> None:
    """Endpoint of ``/v1/stream``."""
    await Connection(socket, socket.app.state.engine).run()
