"""How much memory this process has, for tests that look for what is left behind."""

from __future__ import annotations

import contextlib
import ctypes
import resource
from pathlib import Path


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def give_back_free_memory() -> None:
    """glibc keeps what was freed between blocks that are in use: its high-water mark, 200 MB after a crowd, would hide a leak."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)
