"""Time that passes for servers when a test says so, pings and their answers included."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from .live import PATIENCE_S, Live, breath

T = TypeVar("T")


def run_ahead(test: Coroutine[Any, Any, T]) -> T:
    """As ``live.run``, for tests that put the loop's clock forward: one that hangs fails by the clock on the wall."""

    async def guarded() -> T:
        task, loop = asyncio.ensure_future(test), asyncio.get_running_loop()
        guard = threading.Timer(PATIENCE_S, lambda: loop.call_soon_threadsafe(task.cancel))
        guard.start()
        try:
            return await task
        finally:
            guard.cancel()

    return asyncio.run(guarded())


class LoopClock:
    """The running event loop's own clock, which can be put forward: every timer in between goes off."""

    def __init__(self, live: Live, monkeypatch: Any) -> None:
        self._live, self._ahead_s = live, 0.0
        loop = asyncio.get_running_loop()
        real = loop.time
        monkeypatch.setattr(loop, "time", lambda: real() + self._ahead_s)

    async def forward(self, seconds: float, step_s: float = 10.0, *, answered: bool = True) -> None:
        """In steps. ``answered``: whoever is pinged meanwhile answers before time goes on."""
        for _ in range(round(seconds / step_s)):
            self._ahead_s += step_s
            for _ in range(5):  # timers go off, and what they have woken runs
                await breath()
            while answered and any(each.pending_ping_payload for each in self._live.server.server_state.connections):
                await breath()
