"""Decoding without input or output: a job is a generator that yields the model work it needs and is sent the result.

``run`` drives one job alone; ``run_together`` drives many and gathers what they ask for into one call of each verb, because
one forward of several streams reads the weights once. A scheduler above may do the same with jobs that come and go.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from .backend import Backend, Cache, Floats, Hidden, Ids


@dataclass(frozen=True, slots=True)
class Listen:
    """Append audio frames [n, frame_samples]. Result: None."""

    cache: Cache
    frames: Floats


@dataclass(frozen=True, slots=True)
class Look:
    """Append an image's patches [patches_y, patches_x, patch_values]. Result: None."""

    cache: Cache
    patches: Floats


@dataclass(frozen=True, slots=True)
class Append:
    """Append tokens [n ≥ 1]. Result: Step, of which only the last ``wanted`` positions will be read (None: all)."""

    cache: Cache
    ids: Ids
    wanted: int | None = None


@dataclass(frozen=True, slots=True)
class Draft:
    """Guess up to ``count`` tokens after ``token``, chosen at the cache's last position (``hidden``), not yet appended. Result: Ids."""

    cache: Cache
    hidden: Hidden
    token: int
    count: int


Work = Listen | Look | Append | Draft
T = TypeVar("T")
Job = Generator[Work, Any, T]


def perform(backend: Backend, works: Sequence[Work]) -> list[Any]:
    """Do works of one kind in one call of the backend; returns one result for each."""
    kind = type(works[0])
    assert all(type(work) is kind for work in works), "perform() takes works of one kind"
    if kind is Listen:
        backend.listen([(work.cache, work.frames) for work in works if isinstance(work, Listen)])
    elif kind is Look:
        backend.look([(work.cache, work.patches) for work in works if isinstance(work, Look)])
    elif kind is Append:
        return _append(backend, [work for work in works if isinstance(work, Append)])
    else:
        asked = [(work.cache, (work.hidden, work.token, work.count)) for work in works if isinstance(work, Draft)]
        return list(backend.draft(asked))
    return [None] * len(works)


def _append(backend: Backend, works: Sequence[Append]) -> list[Any]:
    wanted = [len(work.ids) if work.wanted is None else work.wanted for work in works]
    return list(backend.step([(work.cache, work.ids) for work in works], wanted=wanted))


Performer = Callable[[Backend, Sequence[Work]], list[Any]]


def run(backend: Backend, job: Job[T], *, perform: Performer = perform) -> T:
    """Drive one job to its end and return its value. An error of the backend is raised inside the job, where it waits.

    ``perform``: what does the works, for a caller that measures them.
    """
    return run_together(backend, [job], perform=perform)[0]


def run_together(backend: Backend, jobs: Sequence[Job[T]], *, perform: Performer = perform) -> list[T]:
    """Drive many jobs to their ends; in each round the like works of all jobs become one call. No two jobs may share a cache."""
    values: dict[int, T] = {}
    waiting: dict[int, Work] = {}

    def resume(index: int, move: Callable[[], Work]) -> None:
        waiting.pop(index, None)
        try:
            waiting[index] = move()
        except StopIteration as done:
            values[index] = done.value

    try:
        for index, job in enumerate(jobs):
            resume(index, lambda job=job: next(job))
        while waiting:
            for group in _like_works(waiting):
                _serve(backend, perform, jobs, waiting, group, resume)
    finally:
        for job in jobs:
            job.close()
    return [values[index] for index in range(len(jobs))]


def _like_works(waiting: dict[int, Work]) -> list[list[int]]:
    groups: dict[type[Work], list[int]] = {}
    for index, work in waiting.items():
        groups.setdefault(type(work), []).append(index)
    return list(groups.values())


def _serve(
    backend: Backend,
    perform: Performer,
    jobs: Sequence[Job[T]],
    waiting: dict[int, Work],
    group: list[int],
    resume: Callable[[int, Callable[[], Work]], None],
) -> None:
    try:
        results = perform(backend, [waiting[index] for index in group])
    except Exception as error:
        failure = error
        for index in group:  # each job may clean up; the first that does not swallow the error ends the run
            resume(index, lambda index=index: jobs[index].throw(failure))
        return
    for index, result in zip(group, results, strict=True):
        resume(index, lambda index=index, result=result: jobs[index].send(result))
