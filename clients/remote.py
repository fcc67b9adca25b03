"""A stream through a server, for programs: audio in, events out. Survives lost connections without losing or repeating a word, and a
server that was killed: the next one hears again what was not yet told to the end. A live stream outlasts its sessions, and any outage.

async with Remote("localhost:8000", sample_rate=16_000) as remote:
    ...                                  # await remote.send(pcm) from another task, await remote.finish() at the end
    async for event in remote: ...
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_socket
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI

from ..stream import AudioFormatError, ConfigError, DragomanError, Ended, Event, OverloadedError, ProtocolError, TaskError
from ..stream.protocol import (
    MOST_GAP_SAMPLES,
    Failure,
    Finish,
    Gap,
    Progress,
    Ready,
    Resume,
    ServerMessage,
    Start,
    WireError,
    read_server,
    write,
)
from .retelling import Retelling

_SAMPLE_BYTES = {"pcm_s16le": 2, "pcm_f32le": 4}
_UNCONFIRMED_S = 60  # audio that is kept for a lost connection; a sender waits when more is on its way
_KEPT_S = 120  # the same and what was not yet told to the end, for a server that is lost
_FRUITLESS = 3  # servers in a row that were lost before they told anything: it may be this audio that kills them
_MESSAGE_MS = 250
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 8.0
_PASSING = ("idle", "draining")  # why a session may break off although the same client is welcome, here or at the next server
_SILENCE_S = 45.0  # without a byte of a server, which pings every 20 s: the network has died, and nobody will ever say so


@dataclass(frozen=True, slots=True)
class Restart:
    """Another session hears the stream from ``at_ms`` on: the server no longer knew the one before (it was killed, or had waited too long),
    or has ``ended`` that of a live stream (it stops, or the time is up). ``lost_ms`` of audio before that were no longer kept here,
    or three servers in a row were lost with it; a Dropped event tells where."""

    at_ms: int
    lost_ms: int = 0
    ended: bool = False


class _Clocked(ClientConnection):
    """A connection that knows when it last heard anything, pings too."""

    heard_s = 0.0  # of the loop's clock

    def data_received(self, data: bytes) -> None:
        self.heard_s = self.loop.time()
        super().data_received(data)

    @property
    def silent_s(self) -> float:
        return self.loop.time() - self.heard_s


class Remote:
    """One stream. ``ready`` is the server's answer, ``progress`` its newest word on how far it is."""

    def __init__(
        self,
        url: str,
        *,
        # Audio
        sample_rate: int = 16_000,
        channels: int = 1,
        encoding: str = "pcm_s16le",
        # Task; None: as the server is configured
        language: str | None = None,
        targets: Sequence[str] | None = None,
        glossary: Sequence[str] | None = None,
        terms: Sequence[str] | None = None,
        style: str | None = None,
        translation: Literal["stable", "draft"] | None = None,
        block_ms: int | None = None,
        hold_back_words: int | None = None,
        steady: bool | None = None,
        # What audio it is
        live: bool = False,
        # Access
        key: str | None = None,
        # Parts that may be given
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        restarted: Callable[[Restart], None] = lambda _: None,
        unreachable: Callable[[Exception], None] = lambda _: None,
    ) -> None:
        """``url``: of the server, e.g. "localhost:8000". ``live``: the audio is a microphone's, which neither waits nor ends by itself:
        until ``finish``, a server that is away is waited for without end, a session that it ends is followed by another, and of audio
        that no server has the newest two minutes are kept (Dropped events tell of the rest). ``key``: of a server that asks for one.
        ``pause``: waits so many seconds before another try to connect. ``restarted``: is told when another session goes on with the
        stream. ``unreachable``: is told why a lost connection could not be restored at once.

        Raises ConfigError for a URL that is none or a value out of range, AudioFormatError for an encoding that no server takes.
        """
        if encoding not in _SAMPLE_BYTES:
            raise AudioFormatError(f"encoding {encoding!r}, expected one of {', '.join(_SAMPLE_BYTES)}")
        self.url = socket_url(url)
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self.ready: Ready | None = None
        self.progress: Progress | None = None
        try:
            self._start = Start(
                sample_rate=sample_rate,
                channels=channels,
                encoding=encoding,
                language=language,
                targets=None if targets is None else tuple(targets),
                glossary=None if glossary is None else tuple(glossary),
                terms=None if terms is None else tuple(terms),
                style=style,
                translation=translation,
                block_ms=block_ms,
                hold_back_words=hold_back_words,
                steady=steady,
            )
        except ValueError as error:
            raise ConfigError(str(error)) from error
        self._live = live
        self._pause, self._restarted, self._unreachable = pause, restarted, unreachable
        self._restarts: deque[Restart] = deque(maxlen=_FRUITLESS)
        self._outbox = Outbox(_SAMPLE_BYTES[encoding] * channels, sample_rate * _MESSAGE_MS // 1000, sample_rate * _KEPT_S)
        self._most_samples = sample_rate * _UNCONFIRMED_S
        self._retelling = Retelling(formatted=style is not None)
        self._session, self._seq = "", 0  # the present session, if there is one, and its newest event
        self._first_sample = 0  # of the stream, that the present session has heard
        self._finished = self._finish_sent = False
        self._error: Exception | None = None
        self._events: asyncio.Queue[Event | Exception] = asyncio.Queue(maxsize=1000)
        self._more, self._room = asyncio.Event(), asyncio.Event()
        self._runner: asyncio.Task[None] | None = None
        self._socket: ClientConnection | None = None

    @property
    def is_in_the_clear(self) -> bool:
        """Whether others on the network can read what is sent."""
        parts = urlsplit(self.url)
        return parts.scheme == "ws" and parts.hostname not in ("localhost", "127.0.0.1", "::1")

    async def __aenter__(self) -> Remote:
        """Connect. Raises ProtocolError (nobody there, or not without a key), OverloadedError, TaskError."""
        socket = await self._open(self._start)
        self._runner = asyncio.create_task(self._run(socket))
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._runner is not None, "the stream was entered"
        self._runner.cancel()
        await asyncio.gather(self._runner, return_exceptions=True)
        if self._socket is not None:  # the runner may have been cancelled while it was closing it
            await self._socket.close()

    async def send(self, pcm: bytes, *, last: bool = False) -> None:
        """Whole samples of all channels; ``last``: nothing comes after them. Unless the stream is live, waits while too much is on its way,
        so events must be read at the same time. Raises what has ended the stream."""
        self._check()
        self._outbox.add(pcm)
        if self._live:
            self._outbox.keep_newest()
        self._finished = last
        self._more.set()
        while not self._live and self._outbox.waiting_samples > self._most_samples:
            self._room.clear()
            await self._room.wait()
            if self._error is not None:
                raise self._error

    async def lose(self, samples: int) -> None:
        """Tell that ``samples`` of each channel were lost before they could be sent."""
        self._check()
        self._outbox.skip(samples)
        self._more.set()

    async def finish(self) -> None:
        """No more audio comes; the iteration ends with Ended."""
        self._finished = True
        self._more.set()

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Events until Ended. Raises what has ended the stream."""
        while True:
            item = await self._events.get()
            if isinstance(item, Exception):
                raise item
            yield item
            if isinstance(item, Ended):
                return

    def _check(self) -> None:
        if self._error is not None:
            raise self._error
        if self._finished:
            raise DragomanError("audio after finish(): the stream is over, expected a new Remote for more audio")

    # The connection

    async def _run(self, socket: _Clocked) -> None:
        """Talk; come back after every loss."""
        try:
            while not await self._talk(socket):
                socket = await self._reopen()
        except Exception as error:
            self._error = error
            self._room.set()
            await self._events.put(error)

    async def _talk(self, socket: _Clocked) -> bool:
        """Send and receive until the stream has ended (True) or until another connection has to go on with it (False). Raises what the
        server complains of."""
        reader, sender = asyncio.create_task(self._read(socket)), asyncio.create_task(self._send_all(socket))
        try:
            await asyncio.wait((reader, sender), return_when=asyncio.FIRST_COMPLETED)
            if not reader.done():
                sender.result()
            return await reader
        except ConnectionClosed:
            return False
        except WireError as error:
            if not self._live or error.code not in _PASSING:
                raise
            return False
        finally:
            for task in (reader, sender):
                task.cancel()
            await asyncio.gather(reader, sender, return_exceptions=True)
            await socket.close()

    async def _read(self, socket: _Clocked) -> bool:
        """Until the stream has ended (True) or until nothing more comes (False)."""
        while True:
            try:
                async with asyncio.timeout(max(0.0, _SILENCE_S - socket.silent_s)):
                    text = await socket.recv()
            except TimeoutError:
                if socket.silent_s >= _SILENCE_S:
                    socket.transport.abort()  # a close would wait for an answer
                    return False
                continue
            if await self._heard(read_server(str(text))):
                return True
            if not self._session:
                return False

    async def _heard(self, message: ServerMessage | tuple[int, Event]) -> bool:
        """Whether it was the stream's last one. A live stream is not over because its session is."""
        if isinstance(message, tuple):
            self._seq, event = message
            ended = isinstance(event, Ended)
            goes_on = ended and self._live and not self._finish_sent
            for told in self._retelling.tell(event):
                if not (goes_on and isinstance(told, Ended)):
                    await self._events.put(told)
            self._forget()
            if goes_on:
                await self._begin_anew()
            return ended and not goes_on
        if isinstance(message, Progress):
            self.progress = self._retelling.progressed(message, complete=message.seq == self._seq)
            self._outbox.confirm(self._first_sample + message.received_samples)
            self._forget()
            self._room.set()
        elif isinstance(message, Failure):
            raise error_of(message)
        return False

    def _forget(self) -> None:
        """What was told to the end is not needed again, whatever happens to the server."""
        self._outbox.forget(self._sample(self._retelling.keep_ms))

    def _sample(self, at_ms: int) -> int:
        return at_ms * self._start.sample_rate // 1000

    async def _send_all(self, socket: ClientConnection) -> None:
        with contextlib.suppress(ConnectionClosed):  # the receiving side notices, too
            while True:
                self._more.clear()
                while (piece := self._outbox.take()) is not None:
                    await socket.send(piece if isinstance(piece, bytes) else write(Gap(samples=piece)))
                if self._finished:
                    self._finish_sent = True
                    await socket.send(write(Finish()))
                    return
                await self._more.wait()

    async def _open(self, first: Start | Resume) -> _Clocked:
        """A connection whose first message was answered by Ready."""
        try:
            # No ping timeout: a server that is held up by back-pressure reads no pings. It sends its own.
            socket = await open_socket(
                self.url,
                max_size=None,
                compression=None,
                ping_timeout=None,
                additional_headers=self._headers,
                create_connection=_Clocked,
            )
        except InvalidStatus as error:
            if error.response.status_code != 401:
                raise ProtocolError(f"cannot connect to {self.url}: {error}") from error
            why = "asks for a key" if not self._headers else "does not know this key"
            raise WireError("unauthorized", f"{self.url} {why}; expected one in DRAGOMAN_KEY or --key-file") from error
        except (OSError, TimeoutError, InvalidHandshake, InvalidURI) as error:
            raise ProtocolError(f"cannot connect to {self.url}: {error or type(error).__name__}") from error
        assert isinstance(socket, _Clocked), "it was asked for"
        self._socket = socket
        try:
            await socket.send(write(first))
            async with asyncio.timeout(_SILENCE_S):
                answer = read_server(str(await socket.recv()))
            if isinstance(answer, Failure):
                raise error_of(answer)
            if not isinstance(answer, Ready):
                raise ProtocolError(f"{self.url} answered {type(answer).__name__}, expected Ready")
        except ConnectionClosed as error:
            raise ProtocolError(f"{self.url} closed the connection: {error}") from error
        except TimeoutError as error:
            socket.transport.abort()
            raise ProtocolError(f"{self.url} takes connections and does not answer") from error
        except BaseException:
            await socket.close()
            raise
        self.ready, self._retelling.targets = answer, answer.targets
        self._session, self._finish_sent = answer.session, False
        self._outbox.go_back(self._first_sample + answer.received_samples)
        return socket

    async def _reopen(self) -> _Clocked:
        """Resume, or begin anew where there is no session to come back to; with longer and longer pauses, for as long as sessions are kept
        or as live audio comes."""
        assert self.ready is not None, "there was a connection"
        waited_s, pause_s, kept_s = 0.0, _FIRST_PAUSE_S, self.ready.limits.resume_s
        while True:
            wait_s = pause_s
            try:
                return await self._open(Resume(session=self._session, after_seq=self._seq) if self._session else self._start)
            except (OverloadedError, ProtocolError) as error:
                code = error.code if isinstance(error, WireError) else None
                if code == "unknown_session" and self._session:
                    await self._begin_anew(error)
                    continue
                patient = self._live and not self._finished
                if code not in (None, "draining") or waited_s >= kept_s and not patient:
                    raise
                if not waited_s:
                    self._unreachable(error)
                if not (patient and code == "draining"):  # how long that server stays says nothing of when the next one comes
                    wait_s = max(pause_s, getattr(error, "retry_after_s", None) or 0.0)  # many may come back at the same moment
            await self._pause(wait_s)
            waited_s, pause_s = waited_s + wait_s, min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _begin_anew(self, why: Exception | None = None) -> None:
        """Go back to where everything was told to the end. ``why`` the session is unknown is raised if this has helped too often already,
        but a live stream goes on behind the audio that the lost servers were sent; None: it was ended in order."""
        wanted_ms, rate = self._retelling.resume_ms, self._start.sample_rate
        self._first_sample = max(self._sample(wanted_ms), self._outbox.first)
        at_ms = max(wanted_ms, -(-self._first_sample * 1000 // rate))
        if why is not None and [(each.at_ms, each.ended) for each in self._restarts] == [(at_ms, False)] * _FRUITLESS:
            if not self._live or self._outbox.next <= self._first_sample:
                raise why
            self._first_sample = self._outbox.next
            at_ms = -(-self._first_sample * 1000 // rate)
        restart = Restart(at_ms, at_ms - wanted_ms, ended=why is None)
        self._restarts.append(restart)
        self._session, self._seq = "", 0
        for told in self._retelling.restart(at_ms):
            await self._events.put(told)
        self._outbox.start_over(self._first_sample)
        self._restarted(restart)


class Outbox:
    """Audio by sample number: what is to be sent, and what was sent and may be wanted again. Pure."""

    def __init__(self, step_bytes: int, message_samples: int, keep_samples: int) -> None:
        """``step_bytes``: of one sample of all channels. ``message_samples``: a message holds no more, so that a loss costs little.
        ``keep_samples``: what was received is forgotten when more than so many are kept."""
        self._step_bytes, self._message_samples, self._keep_samples = step_bytes, message_samples, keep_samples
        # (number of the first sample, audio or how many were lost)
        self._sent: deque[tuple[int, bytes | int]] = deque()
        self._unsent: deque[tuple[int, bytes | int]] = deque()
        self._end = self._next = self._confirmed = 0

    @property
    def waiting_samples(self) -> int:
        """Added and not yet received."""
        return self._end - self._confirmed

    @property
    def next(self) -> int:
        """Number of the sample that is sent next."""
        return self._next

    @property
    def first(self) -> int:
        """Number of the first sample that is kept."""
        kept = self._sent or self._unsent
        return kept[0][0] if kept else self._end

    def add(self, pcm: bytes) -> None:
        """Raises AudioFormatError unless these are whole samples."""
        if not pcm or len(pcm) % self._step_bytes:
            raise AudioFormatError(f"{len(pcm)} bytes of audio, expected a multiple of {self._step_bytes}, at least one sample")
        size = self._message_samples * self._step_bytes
        for start in range(0, len(pcm), size):
            part = pcm[start : start + size]
            self._unsent.append((self._end, part))
            self._end += len(part) // self._step_bytes

    def skip(self, samples: int) -> None:
        for start in range(0, samples, MOST_GAP_SAMPLES):
            part = min(MOST_GAP_SAMPLES, samples - start)
            self._unsent.append((self._end, part))
            self._end += part

    def confirm(self, received_samples: int) -> None:
        """The server has everything before this number."""
        self._confirmed = max(self._confirmed, received_samples)
        self._drop(min(self._confirmed, self._end - self._keep_samples))

    def forget(self, before: int) -> None:
        """Nothing before this number is wanted again."""
        self._drop(min(before, self._confirmed))

    def keep_newest(self) -> None:
        """Forget what lies before the newest ``keep_samples`` although no server may have it: ``take`` makes a gap of that."""
        for pieces in (self._sent, self._unsent):
            while pieces and self._end_of(pieces[0]) <= self._end - self._keep_samples:
                pieces.popleft()

    def go_back(self, received_samples: int) -> None:
        """After a lost connection: the next piece to be sent begins with this sample."""
        self._next = received_samples
        while self._sent and self._end_of(self._sent[-1]) > received_samples:
            self._unsent.appendleft(self._sent.pop())
        self.confirm(received_samples)

    def start_over(self, first: int) -> None:
        """After a lost server: nothing from this sample on was received."""
        self.go_back(first)
        self._confirmed = first

    def _drop(self, before: int) -> None:
        while self._sent and self._end_of(self._sent[0]) <= before:
            self._sent.popleft()

    def take(self) -> bytes | int | None:
        """The next audio to send, or how many samples of a gap; None: nothing is left."""
        while self._unsent:
            first, piece = self._unsent[0]
            if first > self._next:  # what lay before it was forgotten
                lost_samples = min(first - self._next, MOST_GAP_SAMPLES)
                self._next += lost_samples
                return lost_samples
            self._unsent.popleft()
            self._sent.append((first, piece))
            end = self._end_of((first, piece))
            if end > self._next:  # else it was received, and an empty message would end the stream
                skipped = max(0, self._next - first)  # of a piece that was received in part
                self._next = end
                return piece[skipped * self._step_bytes :] if isinstance(piece, bytes) else piece - skipped
        return None

    def _end_of(self, piece: tuple[int, bytes | int]) -> int:
        first, content = piece
        return first + (len(content) // self._step_bytes if isinstance(content, bytes) else content)


def socket_url(url: str) -> str:
    """ "localhost:8000" or "http://host:8000/" → "ws://host:8000/v1/stream". Raises ConfigError."""
    whole = url if "://" in url else f"ws://{url}"
    refusal = ConfigError(f"{url!r} is no address of a server; expected e.g. localhost:8000 or wss://captions.example")
    try:
        parts = urlsplit(whole)
        _ = parts.port
    except ValueError as error:  # a bracket that is not closed, a port that is none
        raise refusal from error
    scheme = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}.get(parts.scheme)
    if scheme is None or not parts.hostname:
        raise refusal
    path = parts.path if parts.path.strip("/") else "/v1/stream"
    return f"{scheme}://{parts.netloc}{path}"


def error_of(failure: Failure) -> DragomanError:
    """What the server complains of → the exception that the same fault raises without a server."""
    if failure.code == "overloaded":
        return OverloadedError(failure.message, retry_after_s=failure.retry_after_s or 0.0)
    if failure.code == "bad_task":
        return TaskError(failure.message)
    if failure.code == "bad_audio":
        return AudioFormatError(failure.message)
    return WireError(failure.code, failure.message, retry_after_s=failure.retry_after_s)
