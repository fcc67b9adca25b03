"""Processes that share the work of preparing a run, one for each core."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from threading import Thread


def process_pool(workers: int) -> ProcessPoolExecutor:
    """A pool whose processes end when the one that made them is killed.

    Otherwise they would finish what they were told, for minutes, and write into the same files as the run that goes on from there.
    """
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_end_with_parent)


def _end_with_parent() -> None:
    Thread(target=_wait_for_end, daemon=True).start()


def _wait_for_end() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # not sys.exit: that would end this thread alone
