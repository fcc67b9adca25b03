"""The virtual clock of bench/many_streams.py: nobody waits, and work takes the CPU time that it took, on as many workers as there are."""

from __future__ import annotations

import asyncio
from importlib.util import module_from_spec, spec_from_file_location
from itertools import count
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "bench" / "many_streams.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Each piece of work takes a second of the CPU."""
    spec = spec_from_file_location("many_streams", SCRIPT)
    assert spec is not None and spec.loader is not None
    module: Any = module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "many_streams", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    seconds = count()
    monkeypatch.setattr(module.time, "thread_time", lambda: float(next(seconds)))
    return module


def finished(script: Any, workers: int, jobs: int) -> tuple[list[float], float]:
    """When each of so many jobs, handed in at 10 s, is done; and all CPU time."""
    loop = script.VirtualLoop()
    executor = script.VirtualWorkers(loop, workers)

    async def job() -> float:
        then = loop.create_future()
        loop.call_later(10.0, then.set_result, None)
        await then
        await loop.run_in_executor(executor, lambda: None)
        return loop.time()

    async def test() -> list[float]:
        return list(await asyncio.gather(*(job() for _ in range(jobs))))

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return sorted(runner.run(test())), executor.cpu_s


def test_work_waits_for_a_free_worker_and_nobody_else_for_anything(script: Any) -> None:
    assert finished(script, 1, 3) == ([11.0, 12.0, 13.0], 3.0)
    assert finished(script, 2, 5) == ([11.0, 11.0, 12.0, 12.0, 13.0], 5.0)
