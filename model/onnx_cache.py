"""The cache of one stream for ONNX Runtime: NumPy arrays that the graphs read where they lie.

A forward answers with the new keys and values only, and ``Store.write`` puts them into their slots; so nothing of a cache's size is
copied, except when an array has to grow. Axes as in ``onnx_graphs.py``; S the slots of an array, used or not.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from .backend import Floats, Ids
from .cache import Ring, RingCache
from .pages import Pages

_STEP_SLOTS = 32  # arrays of few sizes, so that one stream can use what another has outgrown
_GROWTH = 8  # an array grows by an eighth at least: unused slots take memory, are multiplied with, and masked
_PAGES = Pages()


@dataclass(slots=True)
class Store:
    """Keys [layers, Hkv, D, S] and values [layers, Hkv, S, D] of all layers of one kind or role."""

    ring: Ring
    keys: Floats
    values: Floats

    @property
    def slots(self) -> int:
        return self.keys.shape[3]

    def reserve(self, slots: int) -> bool:
        """Make room for so many slots. True: the arrays are new ones."""
        if slots <= self.slots:
            return False
        wanted = -(-max(slots, self.slots + self.slots // _GROWTH) // _STEP_SLOTS) * _STEP_SLOTS
        wanted = min(wanted, self.ring.capacity or sys.maxsize)
        old_keys, old_values = self.keys, self.values
        layers, heads, dim, held = old_keys.shape
        # Zeros and not rubbish: what a mask hides is still multiplied with 0, and 0 times NaN is NaN.
        self.keys, self.values = _PAGES.zeros((layers, heads, dim, wanted)), _PAGES.zeros((layers, heads, wanted, dim))
        self.keys[..., :held], self.values[:, :, :held] = old_keys, old_values
        return True

    def write(self, slots: Ids, keys: Floats, values: Floats) -> None:
        """New keys [layers, Hkv, D, n] and values [layers, Hkv, n, D] into their slots [n]."""
        first, last = int(slots[0]), int(slots[-1])
        place = slice(first, last + 1) if last - first == len(slots) - 1 else slots
        self.keys[..., place], self.values[:, :, place] = keys, values

    def copy(self) -> Store:
        used = self.ring.slots_used
        return Store(self.ring.copy(), self.keys[..., :used].copy(), self.values[:, :, :used].copy())


@dataclass(frozen=True, slots=True)
class End:
    """Of the token that ends audio after ``length`` positions: for each store keys [layers, Hkv, D, 1] and values [layers, Hkv, 1, D]."""

    length: int
    kept: dict[str, tuple[Floats, Floats]]


@dataclass(slots=True)
class OnnxCache(RingCache[Store]):
    """The state of one stream."""

    _bound: dict[str, Any] = field(default_factory=dict[str, Any])  # session → its I/O binding with these arrays
    end: End | None = None  # what <audio|> would leave behind what is heard, where a model hears it

    @property
    def ends(self) -> bool:
        """Whether ``end`` belongs to what the cache holds now."""
        return self.end is not None and self.end.length == self.length

    def truncate(self, length: int) -> None:
        super(OnnxCache, self).truncate(length)  # named: a data class with slots is made anew, which the short form does not know
        if self.end is not None and length < self.end.length:
            self.end = None

    def copy(self) -> OnnxCache:
        return OnnxCache({name: store.copy() for name, store in self.stores.items()}, None if self.sides is None else self.sides[:])

    def reserve(self, count: int, side: int, bound: Collection[str]) -> None:
        """Room for ``count`` new positions of a side in every store that takes them, and for one in any of ``bound``: an empty array cannot
        be bound. New arrays are bound anew."""
        taking = self.taking(side)
        for name in {**taking, **dict.fromkeys(bound)}:
            store = self.stores[name]
            slots = max(1, store.ring.length + (count if name in taking else 0))
            if store.reserve(min(slots, store.ring.capacity or slots)):
                self._bound.clear()

    def binding(self, name: str, session: Any, arrays: dict[str, tuple[str, int]]) -> Any:
        """The I/O binding of a session with this cache's arrays: ``arrays`` maps a graph's input to (store, layer in it)."""
        if name not in self._bound:
            self._bound[name] = binding = session.io_binding()
            for suffix, (store, layer) in arrays.items():
                binding.bind_cpu_input(f"keys.{suffix}", self.stores[store].keys[layer])
                binding.bind_cpu_input(f"values.{suffix}", self.stores[store].values[layer])
        return self._bound[name]
