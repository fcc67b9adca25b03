"""One stream of the engine: what waits to be heard, the session that hears it, and the events for whoever follows.

Belongs to the event loop; only the session's jobs run elsewhere, see ``engine``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Literal, Protocol

from ..model.errors import AudioFormatError, DragomanError
from .access import Visitor
from .events import Clocks, Ended, Event
from .inbox import Audio, Commit, EventLog, Inbox, Lost
from .lag import Schedule
from .pcm import Encoding
from .protocol import Notice, Progress, WireError, progress, write_event
from .recorder import Recording
from .scheduler import Lane
from .session import Session

_LOG = logging.getLogger(__name__)
_PROGRESS_MS = 500  # of stream time between two progress messages


class Decoder(Protocol):
    """What turns a sender's bytes into PCM: packets, or a container cut anywhere. Its methods raise AudioFormatError."""

    @property
    def received_bytes(self) -> int | None:
        """Taken in so far; None: the sender does not count by bytes."""
        ...

    def feed(self, data: bytes) -> Iterator[bytes | int]:
        """PCM, and numbers of samples that are missing. What an iteration that is broken off leaves comes with the next one."""
        ...

    def end(self) -> Iterator[bytes | int]: ...

    def close(self) -> None: ...


class Stream:
    """Made by ``Engine.open``. A sender calls ``push``, ``lose``, ``commit`` and ``finish``; one follower at a time iterates ``follow``."""

    def __init__(
        self,
        stream_id: str,
        session: Session,
        sample_rate: int,
        channels: int,
        encoding: Encoding,
        *,
        queue_ms: int,
        background: bool,
        wake: Callable[[], None],
        visitor: Visitor,
        opened_s: float,
    ) -> None:
        """``wake``: tells the engine that there is work. ``visitor``: whose session it is. ``opened_s``: of the engine's clock."""
        self.id, self.session, self.background = stream_id, session, background
        self.inbox = Inbox(sample_rate, channels, encoding, high_ms=queue_ms)
        self.log = EventLog()
        self.lane = Lane(session)
        self.visitor, self.opened_s = visitor, opened_s
        self.clocks = Clocks(0, 0, 0)
        self.level = 0
        self.recording: Recording | None = None  # where sessions are stored
        self.decoder: Decoder | None = None  # where what is sent is not PCM; outlives a lost connection
        self.detached_s: float | None = None  # since when nobody is connected
        self.reads_on = False  # beyond the high mark too: for clients that take a connection whose pings wait behind audio for dead
        self.over = False  # Ended is in the log, or ``error`` is set
        self.error: Exception | None = None
        self._schedule, self._taken_ms = Schedule(), 0
        self._held = False  # the sender waits for room
        self._failure: Exception | None = None  # what a job failed with, while a last one tells what is known
        self._wake, self._news, self._room = wake, asyncio.Event(), asyncio.Event()
        self._owner: object = None
        self._notice: Notice | None = None
        self._closing = False  # the server has finished the stream

    # The sender's side

    async def push(self, pcm: bytes) -> None:
        """Whole samples of all channels. Returns when there is room for more: a sender that waits for that is never dropped.

        Raises WireError for half a sample or after ``finish``, and whatever has ended the stream.
        """
        self._raise_if_over()
        if self._closing:
            return
        try:
            self.inbox.put(pcm)
        except ValueError as error:
            raise WireError("bad_audio", str(error)) from error
        except DragomanError as error:
            raise WireError("bad_message", str(error)) from error
        if self.recording is not None:
            self.recording.audio(pcm)
        await self._wait_for_room()

    async def hear(self, data: bytes) -> None:
        """A message as it came: through the decoder, if there is one. Waits and raises as ``push``; what the decoder cannot bear ends
        the stream when everything before it is heard and told."""
        if self.decoder is None:
            await self.push(data)
        elif self._closing:
            self._raise_if_over()
        elif self.inbox.finished:
            raise WireError("bad_message", "audio after finish: the stream is over, expected a new session for more audio")
        else:
            await self._decode(self.decoder.feed(data))

    async def end(self) -> None:
        """No more messages come: what the decoder holds back is heard, then the stream is finished."""
        if self.decoder is not None and not self.inbox.finished:
            await self._decode(self.decoder.end())
        self.finish()

    async def _decode(self, pieces: Iterator[bytes | int]) -> None:
        try:
            for piece in pieces:
                if self._closing:
                    return
                await (self.lose(piece) if isinstance(piece, int) else self.push(piece))
                await asyncio.sleep(0)  # a large message must not hold up the others
        except AudioFormatError as error:
            if self.error is error:
                raise
            self._closing = True  # nothing behind it makes sense
            self.inbox.finish(error)
            self._wake()

    async def lose(self, samples: int) -> None:
        """The sender lost ``samples`` of each channel. Waits and raises as ``push``."""
        self._raise_if_over()
        if self._closing:
            return
        try:
            self.inbox.lose(samples)
        except DragomanError as error:
            raise WireError("bad_message", str(error)) from error
        if self.recording is not None:
            self.recording.silence(samples * self.inbox.step_bytes)
        await self._wait_for_room()

    async def commit(self) -> None:
        """The sender ends a turn: Committed tells when all before it is final. Waits and raises as ``push``."""
        self._raise_if_over()
        if self._closing:
            return
        try:
            self.inbox.commit()
        except DragomanError as error:
            raise WireError("bad_message", str(error)) from error
        await self._wait_for_room()

    def finish(self) -> None:
        """No more audio comes."""
        self.inbox.finish()
        self._wake()

    def close(self) -> None:
        """Finish on the server's behalf, which the client was warned of: what it still sends is no error, but is not heard."""
        self._closing = True
        self.finish()

    @property
    def closed(self) -> bool:
        """Whether the server has finished the stream: what is pushed now is not heard."""
        return self._closing

    @property
    def received_bytes(self) -> int | None:
        """Of the container, taken in so far; None: the sender counts by samples."""
        return None if self.decoder is None else self.decoder.received_bytes

    async def _wait_for_room(self) -> None:
        self._wake()
        if not self.inbox.full:
            return
        self._held = True
        if self.reads_on and self._may_go_on:
            return
        try:
            while not self._may_go_on:
                self._room.clear()
                await self._room.wait()
                self._raise_if_over()
        finally:
            self._held = False

    @property
    def _may_go_on(self) -> bool:
        """Whether a sender that waits need wait no longer."""
        return not self.inbox.crammed if self.reads_on else self.inbox.has_room

    def _raise_if_over(self) -> None:
        if self.error is not None:
            raise self.error

    # The follower's side

    def attach(self, owner: object) -> None:
        """``owner`` sends and follows from now on. Who did so before gets WireError (replaced) from ``check_owner`` and ``follow``."""
        self._owner, self.detached_s = owner, None
        self.tell()

    def is_owned_by(self, owner: object) -> bool:
        return self._owner is owner

    def check_owner(self, owner: object) -> None:
        """To be called before audio is pushed: what a lost connection still delivers would stand in the middle of the new one's."""
        if self._owner is not owner:
            raise WireError("replaced", "another connection has resumed this session")

    async def follow(self, owner: object, after_seq: int = 0) -> AsyncIterator[tuple[int, Event] | Progress | Notice]:
        """Numbered events from ``after_seq`` on, with progress between them, until Ended. Raises whatever has ended the stream."""
        told_ms, told_level, told_notice = 0, 0, None
        while True:
            news = self._news
            self.check_owner(owner)
            for seq, event in self.log.after(after_seq):
                after_seq = seq
                yield seq, event
                self.log.sent_seq = max(self.log.sent_seq, seq)
                if isinstance(event, Ended):
                    return
            self._raise_if_over()
            clocks = self._now()
            if self._notice is not None and self._notice is not told_notice:
                told_notice = self._notice
                yield self._notice
            elif clocks.processed_ms - told_ms >= _PROGRESS_MS or self.level != told_level:
                told_ms, told_level = clocks.processed_ms, self.level
                yield progress(clocks, self.inbox.received_samples, self.level, self.log.last_seq, self.received_bytes)
            elif self._news is news:
                self._wake()  # a reader that has caught up may have made room for more events
                await news.wait()

    def tell(self) -> None:
        """Something is new for the follower."""
        news, self._news = self._news, asyncio.Event()
        news.set()

    def warn(self, code: Literal["draining", "time_limit"], message: str, within_s: float) -> None:
        """Tell the client, once for each code, that the stream will be ended."""
        if self._notice is None or self._notice.code != code:
            self._notice = Notice(code=code, message=message, within_s=within_s)
            self.tell()

    # The engine's side, between turns

    def prepare(self) -> bool:
        """Whether the stream takes part in the next turn; gives its lane the next job if it has none."""
        lane = self.lane
        if lane.job is not None:
            return True
        if self.inbox.empty or self.log.full:
            return False
        piece = self.inbox.take()
        if isinstance(piece, Audio):
            lane.give(self.session.work(piece.pcm))
        elif isinstance(piece, Lost):
            lane.give(self.session.gap(piece.samples))
        elif isinstance(piece, Commit):
            lane.give(self.session.committing())
        else:
            self._failure = piece.error
            lane.give(self.session.work(None))
        return True

    def after_turn(self) -> None:
        """Hand on what the turn brought."""
        lane = self.lane
        if self.over:  # discarded meanwhile
            self._drop_job()
            return
        events, lane.events = lane.events, []
        for event in events:
            if isinstance(event, Ended):
                if self._failure is not None:  # it did not end, it broke off
                    continue
                self.over = True
            event = event.with_received(self.inbox.received_ms)
            self.log.add(event)
            if self.recording is not None:
                self.recording.event(write_event(self.log.last_seq, event))
        if self.over:
            self._let_go()
        if lane.job is None:
            self.clocks = self.session.clocks
            self._taken_ms = self.clocks.received_ms
            self._after_job()
            if self.inbox.has_room:
                self._held = False
            if self._may_go_on:
                self._room.set()
        if events or lane.job is None:
            self.tell()

    def _after_job(self) -> None:
        """A job that failed is followed by a last one, in which the session tells what it knows; then the stream is over."""
        error, self.lane.error = self.lane.error, None
        if self._failure is not None:
            self.fail(self._failure)
        elif error is not None:
            level = logging.INFO if isinstance(error, AudioFormatError) else logging.ERROR  # a client's fault must not fill the log
            _LOG.log(level, "session %s has failed: %s", self.id, error, exc_info=None if isinstance(error, DragomanError) else error)
            self._failure = error
            self.lane.give(self.session.work(None))
            self._wake()

    def fail(self, error: Exception) -> None:
        """The stream is over; sender and follower get ``error``."""
        if not self.over:
            self.over, self.error = True, error
        self._let_go()
        self._room.set()
        self.tell()

    def _let_go(self) -> None:
        if self.decoder is not None:
            self.decoder.close()
        if self.recording is not None:
            self.recording.close()

    def _drop_job(self) -> None:
        job, self.lane.job, self.lane.work = self.lane.job, None, None
        if job is not None:
            job.close()

    def behind_ms(self, now_s: float) -> float:
        """How far this stream is behind schedule. A client that does not read its events must not make others save."""
        if self.log.full:
            self._schedule.excuse()
            return 0.0
        return self._schedule.behind_ms(self.inbox.received_ms, self._taken_ms, now_s, held=self._held)

    @property
    def lag_ms(self) -> int:
        """Audio received and not yet processed."""
        return self._now().lag_ms

    def _now(self) -> Clocks:
        return self.clocks.with_received(self.inbox.received_ms)
