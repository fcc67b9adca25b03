"""Many live streams on one model: an asyncio shell around ``scheduler``, with worker threads that run the model.

The event loop takes audio in and hands events out; in between, turn after turn, each worker moves the jobs of some streams one step. A
session is touched by one worker during a turn and by the loop between two turns, never by two of them: which worker it is may change
from turn to turn. A model whose forwards take one thread has a worker for each core; else there is one, for its forwards take them all.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
import uuid
from collections.abc import Callable, Generator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np

from ..model.backend import Floats
from ..model.errors import OverloadedError
from ..model.load import Loaded
from .access import Visitor
from .config import Options, ServerOptions, SessionOptions
from .lag import LEVELS, REFUSING, Gauge
from .live import Stream
from .opening import Openings
from .pcm import Encoding
from .protocol import WireError
from .recorder import Recorder
from .scheduler import Scheduler
from .session import Session
from .stats import Stats, add_stats
from .vad import Vad

_LOG = logging.getLogger(__name__)
_WARM_UP_S = 2
_RETRY_S = 5.0
_LAST_NOTICE_S = 30.0  # so long before its time is up a session is told
_MOST_WORKERS = 8  # between two forwards they need Python, of which there is one
_STEPS_ALONE = 16  # of a job, of which a block of audio has about six, before the next stream has its turn
_MEASURE_S = 0.05  # at least, between two looks at how far all streams are behind
_BACKGROUND_TURNS = 4  # behind schedule, streams that nobody watches take part in one turn of so many


class Engine:
    """One loaded model and all its streams. Use as ``async with Engine(...)``; all methods belong to its event loop."""

    def __init__(
        self,
        loaded: Loaded,
        options: Options | None = None,
        *,
        gauge: Gauge | None = None,
        clock: Callable[[], float] = time.monotonic,
        executor: Executor | None = None,
        make_vad: Callable[[], Vad] | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        """``clock``: seconds that only grow. ``executor``: where the model runs; by default a thread for each worker that the options
        ask for. ``make_vad``: instead of the detector that the options name. ``recorder``: instead of the one that they ask for."""
        self.loaded, self.options = loaded, options or Options()
        self.clock = clock
        self.gauge = gauge or Gauge()
        self.streams: dict[str, Stream] = {}
        self.opened_count, self.refused_count = 0, 0
        self.draining_until_s: float | None = None
        self._workers = self.options.server.workers or _workers_for(loaded.backend.spec.threads)
        self._executor = executor or ThreadPoolExecutor(self._workers, thread_name_prefix="dragoman-model")
        self._owns_executor = executor is None
        self._scheduler = Scheduler(loaded.backend)
        self._steps = 1 if loaded.backend.spec.together else _STEPS_ALONE
        self._openings = Openings(loaded.backend, loaded.prompts)
        self._make_vad = make_vad
        self._recorder = recorder or _recorder_of(self.options.server)
        self._past = Stats()
        self._wake = asyncio.Event()
        self._opening: list[Visitor] = []  # whose places are taken, before they have streams
        self._turns = 0
        self._waiting: dict[Stream, None] = {}  # perhaps with something to do, who waits longest first
        self._at_work: set[Stream] = set()  # a worker's during its turn
        self._idle_workers = 0
        self._measured_s = float("-inf")
        self._pumps: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Engine:
        self._pumps = [asyncio.create_task(self._run(), name=f"dragoman-engine-{number}") for number in range(self._workers)]
        for pump in self._pumps:
            pump.add_done_callback(self._pump_ended)
        return self

    async def __aexit__(self, *error: object) -> None:
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        for stream in list(self.streams.values()):
            stream.fail(WireError("draining", "the server has stopped"))
        if self._recorder is not None:
            await asyncio.to_thread(self._recorder.close)
        if self._owns_executor:
            await asyncio.get_running_loop().run_in_executor(None, self._executor.shutdown)

    # Streams

    async def open(
        self,
        options: SessionOptions | None = None,
        *,
        sample_rate: int = 16_000,
        channels: int = 1,
        encoding: Encoding = "int16",
        background: bool = False,
        visitor: Visitor | None = None,
    ) -> Stream:
        """A new stream. ``background``: nobody watches it live (a file), so it takes what live streams leave. ``visitor``: who asks.

        Raises OverloadedError, WireError (draining), TaskError, AudioFormatError.
        """
        visitor, wanted = visitor or Visitor(), options or self.options.session
        with self.place(visitor):
            session = await asyncio.get_running_loop().run_in_executor(
                self._executor, lambda: self._session(wanted, sample_rate, channels, encoding)
            )
        stream = Stream(
            uuid.uuid4().hex,
            session,
            sample_rate,
            channels,
            encoding,
            queue_ms=self.options.server.queue_ms,
            background=background,
            wake=lambda: self._nudge(stream),
            visitor=visitor,
            opened_s=self.clock(),
        )
        if self._recorder is not None:
            stream.recording = self._recorder.open(sample_rate, channels, encoding)
        if not background:
            stream.level = self.gauge.level
            session.economy = LEVELS[stream.level]
        self.streams[stream.id] = stream
        self.opened_count += 1
        return stream

    @contextmanager
    def place(self, visitor: Visitor) -> Generator[None]:
        """A place that is taken meanwhile; at the end it is free for whoever asks first. Raises as ``admit``."""
        self.admit(visitor)
        self._opening.append(visitor)
        try:
            yield
        finally:
            self._opening.remove(visitor)

    def admit(self, visitor: Visitor | None = None) -> None:
        """Raises OverloadedError, or WireError (draining), when there is no room for one more stream, or none for this visitor."""
        server, taken_by = self.options.server, [*self._opening, *(stream.visitor for stream in self.active)]
        most, taken = server.max_sessions, len(taken_by)
        if self.draining_until_s is not None:
            self.refused_count += 1
            raise WireError("draining", "the server is stopping and takes no new session", retry_after_s=self.options.server.drain_s)
        if taken >= most:
            self.refused_count += 1
            raise OverloadedError(f"{taken} of {most} sessions are in use", retry_after_s=_RETRY_S)
        if visitor is not None:
            self._admit_one_more(server.sessions_per_key, [other.key for other in taken_by], visitor.key, "key")
            self._admit_one_more(server.sessions_per_address, [other.address for other in taken_by], visitor.address, "address")
        if self.gauge.level >= REFUSING:
            self.refused_count += 1
            behind_s = self.behind_ms() / 1000
            raise OverloadedError(f"this machine is {behind_s:.1f} s behind schedule", retry_after_s=max(_RETRY_S, round(2 * behind_s, 1)))

    def _admit_one_more(self, most: int | None, taken: list[str], name: str, kind: str) -> None:
        if most is not None and name and taken.count(name) >= most:
            self.refused_count += 1
            raise OverloadedError(f"{most} of {most} sessions of this {kind} are in use", retry_after_s=_RETRY_S)

    def find(self, stream_id: str, after_seq: int, visitor: Visitor | None = None) -> Stream:
        """The stream that a client comes back to. Raises WireError if it is gone, or events after ``after_seq`` are, or if it was opened
        with another key."""
        stream = self.streams.get(stream_id)
        if stream is None or stream.background or visitor is not None and visitor.key != stream.visitor.key:
            kept_s = self.options.server.resume_s
            raise WireError("unknown_session", f"no session {stream_id[:40]!r}; it is over, or was left for more than {kept_s:g} s")
        if not stream.log.has(after_seq):
            raise WireError("unknown_session", f"events after {after_seq} are not kept; the newest is {stream.log.last_seq}")
        return stream

    def detach(self, stream: Stream) -> None:
        """The connection was lost, or has ended: the stream is kept for a while. What had arrived is heard meanwhile. Of those that have
        ended no more are kept than there are places: a client that comes and goes must not fill the memory."""
        stream.detached_s = self.clock()
        ended = [each for each in self.streams.values() if each.over and each.detached_s is not None]
        for oldest in sorted(ended, key=lambda each: each.detached_s or 0.0)[: -self.options.server.max_sessions]:
            self.discard(oldest)

    def discard(self, stream: Stream) -> None:
        """Forget a stream, whatever it is at."""
        self._waiting.pop(stream, None)
        if self.streams.pop(stream.id, None) is not None:
            add_stats(self._past, stream.session.stats)
        stream.fail(WireError("unknown_session", "the session is over"))

    @property
    def active(self) -> list[Stream]:
        """Streams that have not ended."""
        return [stream for stream in self.streams.values() if not stream.over]

    def behind_ms(self) -> float:
        """How far the worst live stream is behind schedule."""
        now_s = self.clock()
        return max((stream.behind_ms(now_s) for stream in self.active if not stream.background), default=0.0)

    def stats(self) -> Stats:
        """Sums over all sessions since the start."""
        total = Stats()
        for stats in (self._past, *(stream.session.stats for stream in self.streams.values())):
            add_stats(total, stats)
        return total

    # Time

    def tick(self) -> None:
        """To be called about once a second: forgets streams that were left, measures the lag, ends what outlasts the draining."""
        now_s = self.clock()
        for stream in list(self.streams.values()):
            if stream.detached_s is not None and now_s - stream.detached_s >= self.options.server.resume_s:
                self.discard(stream)
        self._end_long_sessions(now_s)
        if self._recorder is not None:
            self._recorder.sweep()
        self._measure()
        if self.draining_until_s is not None and now_s >= self.draining_until_s:
            for stream in self.active:
                stream.close()

    def _end_long_sessions(self, now_s: float) -> None:
        longest_s = self.options.server.session_s
        if longest_s is None:
            return
        for stream in self.active:
            left_s = stream.opened_s + longest_s - now_s
            if stream.background:  # a file's limit is on its audio
                continue
            if left_s <= 0:
                stream.close()
            elif left_s <= _LAST_NOTICE_S:
                stream.warn("time_limit", f"a session may last {longest_s:g} s; this one ends in {left_s:.0f} s", left_s)

    def drain(self) -> None:
        """Take no new stream; those there are have ``drain_s`` left."""
        if self.draining_until_s is None:
            within_s = self.options.server.drain_s
            self.draining_until_s = self.clock() + within_s
            for stream in self.active:
                stream.warn("draining", f"the server is stopping; finish within {within_s:g} s", within_s)

    @property
    def told(self) -> int:
        """Changes whenever anything is heard, or sent to a client."""
        return sum(stream.log.sent_seq + stream.clocks.processed_ms for stream in self.streams.values())

    @property
    def drained(self) -> bool:
        """Draining, every stream has ended, and every connection has left its stream."""
        connected = any(stream.detached_s is None for stream in self.streams.values())
        return self.draining_until_s is not None and not self.active and not connected

    async def warm_up(self) -> None:
        """Run everything once, so that the first client does not wait for it. Raises what a first session would raise."""
        await asyncio.get_running_loop().run_in_executor(self._executor, self._warm)

    # The pumps, one for each worker

    async def _run(self) -> None:
        while True:
            while await self._turn():
                if self.clock() - self._measured_s >= _MEASURE_S:
                    self._measure()
            # Nothing was ready, and no other task has run since: what comes from now on sets the event again.
            self._wake.clear()
            self._idle_workers += 1
            try:
                await self._wake.wait()
            finally:
                self._idle_workers -= 1

    async def _turn(self) -> bool:
        """One turn of streams that have something to do. A function of its own, so that no stream is held while nothing is done."""
        streams = self._next_turn()
        if not streams:
            return False
        for stream in streams:
            del self._waiting[stream]
        self._at_work.update(streams)
        try:
            lanes = [stream.lane for stream in streams]
            await asyncio.get_running_loop().run_in_executor(self._executor, self._scheduler.turn, lanes, self._steps)
        finally:
            self._at_work.difference_update(streams)
        for stream in streams:
            stream.after_turn()
            self._nudge(stream)
        return True

    def _next_turn(self) -> list[Stream]:
        """What this worker takes: if the model runs streams together, its share of all that are ready, else the one that waits longest.
        If something is left and other workers are idle, they are woken for it."""
        self._turns += 1
        held_back = self.gauge.level > 0 and self._turns % _BACKGROUND_TURNS > 0
        together, held = self.loaded.backend.spec.together, list[Stream]()
        ready: list[Stream] = []
        for stream in [stream for stream in self._waiting if stream not in self._at_work]:
            if stream.background and held_back:
                held.append(stream)
            elif self._is_ready(stream):
                ready.append(stream)
            if ready and not together:
                break
        if not ready and all(stream.background for stream in self._at_work):
            ready = [stream for stream in held if self._is_ready(stream)]
        share = math.ceil(len(ready) / (1 + self._idle_workers)) if together else 1
        if self._idle_workers and len(self._waiting) > share:
            self._wake.set()
        return ready[:share]

    def _is_ready(self, stream: Stream) -> bool:
        """Looks only at streams that wait: with many of them, a look at all would cost more with each than its share of the model."""
        if not stream.over and stream.prepare():
            return True
        del self._waiting[stream]
        return False

    def _nudge(self, stream: Stream) -> None:
        """There may be something to do for this stream."""
        if not stream.over:
            self._waiting[stream] = None
            self._wake.set()

    def _measure(self) -> None:
        self._measured_s = self.clock()
        before, level = self.gauge.level, self.gauge.update(self.behind_ms(), self.clock())
        if level == before:
            return
        _LOG.warning("level of economy %d → %d: the worst stream is %.1f s behind schedule", before, level, self.behind_ms() / 1000)
        for stream in self.active:
            if not stream.background:
                stream.session.economy = LEVELS[level]
                stream.level = level
                stream.tell()

    def _pump_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            _LOG.critical("the engine has failed", exc_info=error)
            for stream in list(self.streams.values()):
                stream.fail(RuntimeError(f"the engine has failed: {error!r}"))

    # Sessions

    def _session(self, options: SessionOptions, sample_rate: int, channels: int, encoding: Encoding) -> Session:
        vad = None if self._make_vad is None else self._make_vad()
        return Session(
            self.loaded, options, sample_rate=sample_rate, channels=channels, encoding=encoding, vad=vad, openings=self._openings
        )

    def _warm(self) -> None:
        session = Session(self.loaded, self.options.session, vad=_Always(), openings=self._openings)
        noise = np.random.default_rng(0).normal(0.0, 0.01, _WARM_UP_S * 16_000)
        session.push(noise.astype(np.float32))
        session.finish()


def _recorder_of(server: ServerOptions) -> Recorder | None:
    if server.record == "nothing" or server.record_dir is None:
        return None
    return Recorder(server.record_dir, server.record, server.record_days)


class _Always:
    """Hears speech everywhere."""

    def is_speech(self, frame: Floats) -> bool:
        return True


def _workers_for(threads: int) -> int:
    """``threads``: that one forward keeps busy, 0 for all of the machine's."""
    if not threads:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(_MOST_WORKERS, cores // threads))
