"""Curves between the places at which they are known."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Curves = NDArray[np.float32]


def at(curves: Curves, places: NDArray[Any]) -> Curves:
    """[n, F], places [F'] from 0 to F - 1 → [n, F']: lines between frames are straight."""
    below = np.floor(places).astype(int)
    above = np.minimum(below + 1, curves.shape[1] - 1)
    part = (places - below).astype(np.float32)
    return np.ascontiguousarray(curves[:, below] * (1 - part) + curves[:, above] * part, np.float32)
