"""Many sessions on one model: in each turn every job moves one step, and the like works of all jobs are one call of the backend.

Pure but for the clock that measures work. ``turn`` may run on a worker thread: between two turns, and only then, the owner may look
at a lane's session or give it new work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from ..model.backend import Backend
from ..model.work import Job, Work, perform
from .events import Event, Final, Partial
from .session import Session


@dataclass(slots=True)
class Lane:
    """One session's place. ``job`` is what it is at; ``work`` is what the job waits for."""

    session: Session
    job: Job[list[Event]] | None = None
    work: Work | None = None
    events: list[Event] = field(default_factory=list[Event])  # as soon as they are made, for the owner to take
    error: Exception | None = None  # that ended the last job

    def give(self, job: Job[list[Event]]) -> None:
        """The next job. One must end before its next one begins."""
        assert self.job is None, "a session does one job at a time"
        self.job = job


class Scheduler:
    """Runs the jobs of lanes on one backend."""

    def __init__(self, backend: Backend, *, most_together: int = 16, clock: Callable[[], float] = perf_counter) -> None:
        """``most_together``: streams in one call of the backend."""
        self._backend, self._most_together, self._clock = backend, most_together, clock

    def turn(self, lanes: Sequence[Lane], steps: int = 1) -> None:
        """So many steps of each lane that has a job, fewer when there is text to tell: a caption must not wait for its translations.
        Raises nothing: an error ends the job it belongs to, and that job alone."""
        for _ in range(steps):
            self._step(lanes)
            events = [event for lane in lanes for event in lane.events]
            if all(lane.job is None for lane in lanes) or any(isinstance(event, Partial | Final) for event in events):
                return

    def _step(self, lanes: Sequence[Lane]) -> None:
        for lane in lanes:
            if lane.job is not None and lane.work is None:
                self._move(lane, lane.job.__next__)
        groups: dict[type[Work], list[Lane]] = {}
        for lane in lanes:
            if lane.work is not None:
                groups.setdefault(type(lane.work), []).append(lane)
        for group in groups.values():
            for start in range(0, len(group), self._most_together):
                self._serve(group[start : start + self._most_together])

    def _serve(self, lanes: list[Lane]) -> None:
        works = [lane.work for lane in lanes if lane.work is not None]
        lengths = [work.cache.length for work in works]
        began_s = self._clock()
        try:
            results = perform(self._backend, works)
        except Exception as error:
            if len(lanes) > 1:
                self._serve_singly(lanes, works, lengths)
            else:
                self._fail(lanes[0], error)
            return
        share_s = (self._clock() - began_s) / len(lanes)
        for lane, work, result in zip(lanes, works, results, strict=True):
            lane.session.stats.compute_s += share_s
            lane.session.drafting.measured(work, share_s)
            self._answer(lane, result)

    def _serve_singly(self, lanes: list[Lane], works: list[Work], lengths: list[int]) -> None:
        """A batch has failed: undo what it may have appended and run its works one by one, so that only the culprits fail."""
        for lane, work, length in zip(lanes, works, lengths, strict=True):
            try:
                work.cache.truncate(length)
            except Exception as error:
                self._fail(lane, error)
            else:
                self._serve([lane])

    def _answer(self, lane: Lane, result: Any) -> None:
        job = lane.job
        assert job is not None, "a work belongs to a job"
        self._move(lane, lambda: job.send(result))

    def _fail(self, lane: Lane, error: Exception) -> None:
        """The job may clean up and may ask for more work; an error that it does not handle ends it."""
        job = lane.job
        assert job is not None, "a work belongs to a job"
        self._move(lane, lambda: job.throw(error))

    def _move(self, lane: Lane, move: Callable[[], Work]) -> None:
        began_s = self._clock()
        lane.work = None
        try:
            lane.work = move()
            lane.events += lane.session.take_events()
        except StopIteration as done:
            lane.job = None
            lane.events += done.value
        except Exception as error:
            lane.job, lane.error = None, error
        finally:
            lane.session.stats.compute_s += self._clock() - began_s
