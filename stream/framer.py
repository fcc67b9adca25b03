"""Samples in, whole frames out."""

from __future__ import annotations

import numpy as np

from ..model.backend import Floats


class Framer:
    """Cuts a stream of samples into frames of ``frame_samples``; what does not fill a frame is kept for the next push."""

    def __init__(self, frame_samples: int) -> None:
        assert frame_samples > 0, "a frame holds at least one sample"
        self.frame_samples = frame_samples
        self._rest = np.empty(0, np.float32)

    @property
    def waiting_samples(self) -> int:
        """How many samples wait for the rest of their frame."""
        return len(self._rest)

    def push(self, samples: Floats) -> Floats:
        """[n] → [frames, frame_samples], frames ≥ 0."""
        joined = np.concatenate([self._rest, samples])
        whole = len(joined) - len(joined) % self.frame_samples
        self._rest = joined[whole:].copy()  # a view would keep the whole push alive
        return joined[:whole].reshape(-1, self.frame_samples)

    def flush(self) -> Floats:
        """The rest as a last frame padded with zeros: [1, frame_samples], or [0, frame_samples] if nothing is left."""
        rest, self._rest = self._rest, np.empty(0, np.float32)
        if not len(rest):
            return np.empty((0, self.frame_samples), np.float32)
        return np.pad(rest, (0, self.frame_samples - len(rest)))[None]
