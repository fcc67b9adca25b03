"""Processes that prepare a run."""

from __future__ import annotations

import subprocess
import sys

import pytest

psutil = pytest.importorskip("psutil", reason="needs the extra bench")

BUSY = """
import os, signal
from dragoman.model.training.processes import process_pool
with process_pool(1) as pool:
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(signal.pause).result()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signal.pause is of POSIX")
def test_workers_end_with_a_run_that_is_killed():
    """What they write, the run that goes on writes too: both at once would mix up whose features are whose."""
    with subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        worker = psutil.Process(int(run.stdout.readline()))
        run.kill()
        worker.wait(60)  # TimeoutExpired where it goes on
