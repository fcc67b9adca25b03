"""Silero VAD on ONNX Runtime, one thread. ``bench/silero_graph.py`` made the graph; all streams share it, each has a state of its own."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..model.backend import Floats

GRAPH = Path(__file__).with_name("silero.onnx")
CHUNK_SAMPLES = 512
CONTEXT_SAMPLES = 64  # from before a chunk, which the network was trained with
_HIDDEN = 128


class SileroNetwork:
    """One stream: call it with its samples, chunk after chunk. Raises ImportError, or whatever ONNX Runtime raises, if there is none."""

    def __init__(self) -> None:
        self._session = _session()
        self._context = np.zeros(CONTEXT_SAMPLES, np.float32)
        self._h = self._c = np.zeros((1, 1, _HIDDEN), np.float32)

    def __call__(self, samples: Floats) -> Floats:
        """The next k chunks, float32 [k * 512] at 16 kHz → probability of speech in each [k]."""
        flat = np.concatenate([self._context, samples])
        self._context = flat[-CONTEXT_SAMPLES:].copy()  # a view would keep all of it
        firsts = range(0, len(samples), CHUNK_SAMPLES)
        chunks = np.stack([flat[first : first + CONTEXT_SAMPLES + CHUNK_SAMPLES] for first in firsts])
        found, self._h, self._c = self._session.run(None, {"chunks": chunks, "h": self._h, "c": self._c})
        return found[:, 0]


@cache
def _session() -> Any:
    import onnxruntime

    runtime: Any = onnxruntime  # the library has no types
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return runtime.InferenceSession(str(GRAPH), options, providers=["CPUExecutionProvider"])
