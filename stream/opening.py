"""Caches that already hold the prompt: computed once for each (task, language, glossary), copied into each new segment."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock

import numpy as np

from ..model.backend import Backend, Cache
from ..model.prompt import Prompts, Task
from ..model.work import Append, Job


class Openings:
    """The prompt caches of one loaded model. Sessions of the same model may share one; no stream's audio ever enters it."""

    def __init__(self, backend: Backend, prompts: Prompts, *, most: int = 16) -> None:
        """``most``: how many prompts are kept; the one not used for the longest time goes first."""
        self._backend, self._prompts, self._most = backend, prompts, most
        self._caches: OrderedDict[tuple[int, ...], Cache] = OrderedDict()
        self._lock = Lock()  # sessions of several workers look here; a prompt that two miss at once is computed twice, and is the same

    def open(self, task: Task, carried: str = "") -> Job[Cache]:
        """A fresh cache that holds everything before the first audio frame, with ``carried`` as the text before this segment.

        Raises TaskError.
        """
        if not self._prompts.carry(carried):
            cache = yield from self._stored(tuple(self._prompts.opening(task)))
            return cache.copy()
        # Carried text stands late in the prompt: everything before it is still the stored part.
        whole = self._prompts.opening(task, carried)
        before = self._prompts.prefix(task)[:-1]
        assert whole[: len(before)] == before, "carried text must stand directly before begin-of-audio"
        cache = (yield from self._stored(tuple(before))).copy()
        yield Append(cache, np.array(whole[len(before) :], dtype=np.int64), wanted=1)
        return cache

    def open_firmly(self, task: Task) -> Job[Cache]:
        """A fresh cache for a segment that was answered instead of transcribed. Raises TaskError."""
        cache = yield from self._stored(tuple(self._prompts.firm_opening(task)))
        return cache.copy()

    def _stored(self, ids: tuple[int, ...]) -> Job[Cache]:
        with self._lock:
            if ids in self._caches:
                self._caches.move_to_end(ids)
                return self._caches[ids]
        cache = self._backend.new_cache()
        yield Append(cache, np.array(ids, dtype=np.int64), wanted=1)
        with self._lock:
            self._caches[ids] = cache
            while len(self._caches) > self._most:
                self._caches.popitem(last=False)
        return cache
