"""Weights out of exported graphs: where each matrix lies in their data files, and its values as floats again.

A folder need not hold its matrices twice: ``dragoman export --once`` leaves in model.safetensors only what the graphs do not hold, and
``checkpoint.py`` reads the rest from here. Neither torch nor onnx is needed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import CheckpointError

GRAPHS = "onnx"  # folder of exported graphs inside a model folder
NOTE = "export.json"  # what a folder of graphs says about itself


@dataclass(frozen=True, slots=True)
class Place:
    """A matrix [n, k] in a data file, beginning at byte ``values``: floats, or quantised as ``onnx_writer.quantise`` has it."""

    file: str
    shape: tuple[int, int]
    bits: int  # of a value: 16 or 32, a float; 8 or 4, an integer
    values: int = 0
    strides: tuple[int, ...] = ()  # of floats: bytes from row to row and from column to column
    scales: int = 0  # of integers: where their float32 scales begin,
    block: int = 0  # and how many values in a row share one

    def rows(self, first: int, count: int) -> Place:
        """The place of ``count`` rows of this matrix."""
        shape = count, self.shape[1]
        if self.strides:
            return replace(self, shape=shape, values=self.values + first * self.strides[0])
        return replace(self, shape=shape, values=self.values + first * self.row_bytes, scales=self.scales + first * 4 * self.blocks)

    @property
    def blocks(self) -> int:
        """In a row of integers; the last one is padded."""
        return -(-self.shape[1] // self.block)

    @property
    def row_bytes(self) -> int:
        """Of a row of integers."""
        return self.blocks * self.block * self.bits // 8

    @property
    def end(self) -> int:
        """Bytes that the file has at least."""
        n, k = self.shape
        if self.strides:
            return self.values + (n - 1) * self.strides[0] + (k - 1) * self.strides[1] + self.bits // 8
        return max(self.values + n * self.row_bytes, self.scales + n * 4 * self.blocks)

    def noted(self) -> dict[str, Any]:
        """For JSON; what is not there is as in a new ``Place``."""
        return {name: value for name, value in asdict(self).items() if value}


def places(graphs: Path) -> dict[str, Place]:
    """Name on disk → place, of every matrix that a folder of graphs holds and tells of; none if there is no such folder, or if it was
    written before graphs told. Raises CheckpointError if what it tells cannot be read."""
    path = graphs / NOTE
    if not path.is_file():
        return {}
    try:
        noted = json.loads(path.read_text(encoding="utf-8")).get("tensors", {})
        return {name: _as_noted(place) for name, place in noted.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} does not tell where the weights lie: {type(error).__name__}: {error}") from error


def _as_noted(place: dict[str, Any]) -> Place:
    pairs: dict[str, Any] = {name: tuple(place[name]) for name in ("shape", "strides") if name in place}  # JSON has lists
    return Place(**{**place, **pairs})


def read(graphs: Path, place: Place) -> NDArray[np.float32]:
    """→ [n, k], a copy. Raises CheckpointError if the data file is missing or too short."""
    path = graphs / place.file
    size = path.stat().st_size if path.is_file() else None
    if size is None or size < place.end:
        got = "is missing" if size is None else f"has {size} bytes"
        raise CheckpointError(f"{path} {got}, expected at least {place.end} bytes: it holds weights that are nowhere else in the folder")
    file = np.memmap(path, np.uint8, "r")
    if place.strides:
        floats = np.ndarray(place.shape, f"<f{place.bits // 8}", file, place.values, place.strides)
        return floats.astype(np.float32, order="C")
    return _dequantised(file, place)


def _dequantised(file: NDArray[np.uint8], place: Place) -> NDArray[np.float32]:
    (n, k), blocks = place.shape, place.blocks
    values = np.ndarray((n, blocks, place.block * place.bits // 8), np.uint8, file, place.values)
    if place.bits == 4:  # the earlier of two values is the low one
        values = np.stack([values & 15, values >> 4], -1).reshape(n, blocks, place.block)
    scales = np.ndarray((n, blocks, 1), "<f4", file, place.scales)
    floats = (values.astype(np.float32) - np.float32(2 ** (place.bits - 1))) * scales
    return np.ascontiguousarray(floats.reshape(n, -1)[:, :k])
