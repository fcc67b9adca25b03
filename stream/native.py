"""The native socket ``/v1/stream``: one connection, one stream. Messages are in ``protocol``, told in docs/protocol.md."""

from __future__ import annotations

from starlette.websockets import WebSocket

from .connection import Connection
from .container import ContainerDecoder
from .engine import Engine
from .live import Decoder, Stream
from .opus import OpusDecoder
from .protocol import (
    CLOSE_CODES,
    ENCODINGS,
    ClientMessage,
    Commit,
    Failure,
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
    read_client,
    write,
    write_event,
)

_FIRST_S = 10.0  # who opens a socket says at once what for


class NativeConnection(Connection):
    """One socket from its first message to its close."""

    resumable = True

    def __init__(self, socket: WebSocket, engine: Engine) -> None:
        super().__init__(socket, engine)
        self._after_seq = 0

    async def _serve(self) -> None:
        # A browser cannot send headers: there the key comes as a second subprotocol, and a server must choose one of those offered.
        await self._socket.accept("bearer" if "bearer" in self._socket.scope.get("subprotocols", ()) else None)
        stream = self._stream = await self._begin()
        await self._talk(self._read(stream), self._write(stream))

    async def _tell_failure(self, told: Failure) -> None:
        await self._close(CLOSE_CODES[told.code], told.code, write(told))

    async def _begin(self) -> Stream:
        first = await self._message(within_s=_FIRST_S)
        if isinstance(first, Start):
            stream = await self._start(first)
        elif isinstance(first, Resume):
            stream = self._engine.find(first.session, first.after_seq, self._visitor)
            self._after_seq = first.after_seq
        else:
            got = "audio" if isinstance(first, bytes) else repr(first.type)
            raise WireError("bad_message", f"the first message is {got}, expected 'start' or 'resume' as text")
        stream.attach(self)
        self._stream = stream  # from here on a lost connection leaves it behind
        await self._socket.send_text(write(self._ready(stream, resumed=isinstance(first, Resume))))
        return stream

    async def _start(self, start: Start) -> Stream:
        asked = start.model_dump(exclude={"type", "version", "sample_rate", "channels", "encoding"}, exclude_none=True)
        options = self._options(asked, where="start")
        decoder = _decoder(start)  # first: without PyAV no place is taken
        stream = await self._engine.open(
            options,
            sample_rate=start.sample_rate,
            channels=start.channels,
            encoding=ENCODINGS[start.encoding],
            visitor=self._visitor,
        )
        stream.decoder = decoder
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
            received_bytes=stream.received_bytes,
            sample_rate=stream.inbox.sample_rate,
            block_ms=options.block_ms,
            language=options.language,
            targets=options.targets,
            languages=prompts.languages,
            known_targets=tuple(code for code in prompts.targets if code != options.language),
            limits=Limits(idle_s=server.idle_s, resume_s=server.resume_s),
        )

    async def _read(self, stream: Stream) -> None:
        while True:
            message = await self._message(listening=not stream.inbox.finished)
            stream.check_owner(self)
            if isinstance(message, bytes):
                await stream.hear(message)
            elif isinstance(message, Gap):
                await stream.lose(message.samples)
            elif isinstance(message, Commit):
                await stream.commit()
            elif isinstance(message, Finish):
                await stream.end()
            elif not isinstance(message, KeepAlive):
                raise WireError(
                    "bad_message", f"{message.type!r} in the middle of a session, expected audio, gap, keep_alive, commit or finish"
                )

    async def _write(self, stream: Stream) -> None:
        async for item in stream.follow(self, self._after_seq):
            text = write(item) if isinstance(item, Progress | Notice) else write_event(*item)
            await self._socket.send_text(text)

    async def _message(self, *, listening: bool = True, within_s: float | None = None) -> ClientMessage | bytes:
        """The next message. Raises as ``_receive``."""
        message = await self._receive(listening=listening, within_s=within_s)
        return read_client(message) if isinstance(message, str) else message


def _decoder(start: Start) -> Decoder | None:
    """For what is no PCM. Raises AudioFormatError without PyAV."""
    if start.encoding == "opus":
        return OpusDecoder(start.channels)
    return ContainerDecoder(start.channels) if start.encoding == "container" else None


async def native_socket(socket: WebSocket) -> None:
    """Endpoint of ``/v1/stream``."""
    await NativeConnection(socket, socket.app.state.engine).run()
