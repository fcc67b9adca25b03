"""Memory for the arrays of many streams, which all grow by the same steps: what one has just outgrown is what another needs next.

malloc would split and join such blocks on its heap, and keep a quarter of what they take; given back to the system and asked for anew,
each would cost a page fault for every 4 KB.
"""

from __future__ import annotations

import math
import mmap
import sys
import weakref
from collections import deque

import numpy as np

from .backend import Floats

_MOST_BYTES = 16_000_000
_PRIVATE = mmap.ACCESS_DEFAULT if sys.platform == "win32" else mmap.ACCESS_COPY  # cheaper than shared memory


class Pages:
    """``zeros`` makes arrays. What nobody holds any more serves the next array of its size, or goes back to the system if ``most_bytes``
    are kept already.

    For any thread. A finalizer may run in the middle of anything, so there is no lock, and each step is one operation of a deque.
    """

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._free: deque[mmap.mmap] = deque()

    @property
    def kept_bytes(self) -> int:
        return sum(map(len, list(self._free)))

    def zeros(self, shape: tuple[int, ...]) -> Floats:
        """float32; ``shape`` holds one number at least."""
        count = math.prod(shape)
        size = count * np.dtype(np.float32).itemsize
        used = self._used(size)
        block = mmap.mmap(-1, size, access=_PRIVATE) if used is None else used
        array = np.frombuffer(block, np.float32, count)
        weakref.finalize(array, self._take_back, block).atexit = False  # every view has this array as its base
        if used is not None:
            array.fill(0.0)
        return array.reshape(shape)

    def _used(self, size: int) -> mmap.mmap | None:
        for block in reversed(list(self._free)):  # what was used last may still be in the processor's cache
            if len(block) == size:
                try:
                    self._free.remove(block)
                except ValueError:  # another thread was quicker
                    continue
                return block
        return None

    def _take_back(self, block: mmap.mmap) -> None:
        if self.kept_bytes + len(block) <= self._most_bytes:
            self._free.append(block)
