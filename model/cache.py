"""Bookkeeping of a rolling cache, in whole numbers only: which slot each position lives in, and who may see it.

Both runtimes use it; only their storage differs. Keys are never moved and never rotated again: a slot keeps what was written into
it until a later position takes it over, and masks compare absolute positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from .backend import Ids
from .config import AUDIO, CROSS, SIDES, goes_through
from .errors import CacheError

Mask = NDArray[np.bool_]
SLIDING = "sliding_attention"
SLACK_TOKENS = 512  # longest block and longest tentative run that a rolled cache takes; who asks for more of a fork looks at ``room``


@dataclass(slots=True)
class Ring:
    """A window over positions 0, 1, 2, … with slack for rewinding.

    ``window``: a query sees itself and the ``window - 1`` positions before it; None: everything (then nothing is ever evicted).
    ``capacity``: slots. To append blocks of up to n positions, and to take back runs of up to n, it must be at least
    ``window + n - 1``: the first query of a block needs window - 1 older positions beside the block's own n.
    """

    window: int | None = None
    capacity: int | None = None
    length: int = 0  # positions that count
    _high: int = 0  # positions ever written: what lies between length and this is dead, but has overwritten older ones

    def __post_init__(self) -> None:
        if (self.window is None) != (self.capacity is None):
            raise CacheError("a ring has a window and a capacity, or neither (it grows)")
        if self.window is not None and self.capacity is not None and self.capacity < self.window:
            raise CacheError(f"capacity is {self.capacity} slots, expected at least the window, {self.window}")

    @property
    def slots_used(self) -> int:
        """How many leading slots hold something that counts: storage beyond them need not exist yet."""
        if self.capacity is None or self._high <= self.capacity:
            return self.length
        return self.capacity

    @property
    def room(self) -> int | None:
        """The longest block that may be appended now, and the longest run from here that can be taken back: neither may overwrite what
        the window of the next query reaches. None: any."""
        if self.window is None or self.capacity is None:
            return None
        return max(0, self.length - self.window + 1) + self.capacity - self.length

    @property
    def _oldest(self) -> int:
        """Oldest position that is still stored."""
        return 0 if self.capacity is None else max(0, self._high - self.capacity)

    def append(self, count: int) -> Ids:
        """Take in the next ``count`` positions; returns their slots [count]. Raises CacheError beyond ``room`` and changes nothing."""
        room = self.room
        if count < 0 or (room is not None and count > room):
            raise CacheError(
                f"cannot append {count} positions at {self.length}; room for {room} (window {self.window}, {self.capacity} slots)"
            )
        first = self.length
        self.length += count
        self._high = max(self._high, self.length)
        return self.slots(first, count)

    def slots(self, first: int, count: int) -> Ids:
        """Slots [count] of the positions from ``first`` on: p mod capacity, and p itself in a ring that grows. Before the first lap is
        over both are the same, so an unlapped ring is a plain array."""
        positions = np.arange(first, first + count, dtype=np.int64)
        return positions if self.capacity is None else positions % self.capacity

    def positions(self) -> Ids:
        """[slots_used] absolute position in each slot, -1 where it is dead.

        The slot of the newest position written, high - 1, is known; walking back from it round the ring the positions fall by one,
        so slot s holds high - 1 - ((high - 1 - s) mod capacity). What is not below ``length`` was taken back.
        """
        slots = np.arange(self.slots_used, dtype=np.int64)
        if self.capacity is None or self._high <= self.capacity:
            return slots
        newest = self._high - 1
        held = newest - (newest - slots) % self.capacity
        return np.where(held < self.length, held, -1)

    def visible(self, first: int, count: int, *, both_ways: bool = False) -> Mask:
        """[count, slots_used]: may the query at position first + i see the slot? ``both_ways``: the queries also see each other's future
        (the patches of one image)."""
        held = self.positions()[None]
        queries = np.arange(first, first + count, dtype=np.int64)[:, None]
        seen = (held >= 0) & ((held <= queries) | (both_ways & (held >= first) & (held < first + count)))
        if self.window is not None:
            seen &= held > queries - self.window
        return seen

    def sees_all(self, first: int, count: int) -> bool:
        """Whether every query of ``visible(first, count)`` sees every slot: so it is while nothing is evicted or out of the window.
        False where it is not known at once."""
        lapped = self.capacity is not None and self._high > self.capacity
        return not lapped and first >= self.length and (self.window is None or first + count <= self.window)

    def check_truncate(self, length: int) -> None:
        """Raises CacheError unless ``truncate(length)`` would work."""
        if not 0 <= length <= self.length:
            raise CacheError(f"cannot truncate to {length} positions, the cache holds {self.length}")
        if self.window is None:
            return
        oldest = self._oldest
        if oldest > max(0, length - self.window + 1):
            deepest = min(self.length, oldest + self.window - 1)
            raise CacheError(f"cannot truncate to {length} positions: deeper than the slack; the earliest possible is {deepest}")

    def truncate(self, length: int) -> None:
        """Forget every position from ``length`` on. O(1): one integer. Raises CacheError if older positions, which the window would
        then reach again, were overwritten."""
        self.check_truncate(length)
        self.length = length

    def copy(self) -> Ring:
        return Ring(self.window, self.capacity, self.length, self._high)


class Held(Protocol):
    """A runtime's storage of keys and values, beside the ring that says what is where."""

    ring: Ring


S = TypeVar("S", bound=Held)


def _side(store: str) -> int:
    """The side whose positions a role's keys and values are of: text looks at audio in layers of CROSS."""
    return SIDES.index(AUDIO if store == CROSS or goes_through(AUDIO, store) else store)


@dataclass(slots=True)
class RingCache(Generic[S]):
    """What a runtime's cache of one stream does with its rings. They are all of one length; only where layers have roles
    (``config.AUDIO``) each counts the positions alone whose keys and values it is for."""

    stores: dict[str, S]  # BackboneConfig.stores → keys and values of these layers
    sides: bytearray | None = None  # where layers have roles: for each position the number of its side (config.SIDES)

    @property
    def length(self) -> int:
        return len(self.sides) if self.sides is not None else next(iter(self.stores.values())).ring.length

    @property
    def last_side(self) -> int | None:
        """Of the last position; None: there is none, or there are no roles."""
        return self.sides[-1] if self.sides else None

    def taking(self, side: int) -> dict[str, S]:
        """The stores that take keys and values of a side."""
        return {name: store for name, store in self.stores.items() if self.sides is None or _side(name) == side}

    def append(self, count: int, side: int) -> dict[str, Ids]:
        """Take in the next ``count`` positions, all of one side; returns their slots [count] in each store that takes them."""
        slots = {name: store.ring.append(count) for name, store in self.taking(side).items()}
        if self.sides is not None:
            self.sides.extend([side] * count)
        return slots

    def truncate(self, length: int) -> None:
        """Forget every position from ``length`` on. Raises CacheError if that is deeper than the slack, and changes nothing."""
        if not 0 <= length <= self.length:
            raise CacheError(f"cannot truncate to {length} positions, the cache holds {self.length}")
        lengths = {name: length if self.sides is None else self.sides.count(_side(name), 0, length) for name in self.stores}
        for name, store in self.stores.items():
            store.ring.check_truncate(lengths[name])  # all first: a refused truncate changes nothing
        for name, store in self.stores.items():
            store.ring.truncate(lengths[name])
        if self.sides is not None:
            del self.sides[length:]

    @property
    def room(self) -> int | None:
        """The longest block that may be appended in one forward, and the longest run from here that can be taken back; None: any."""
        rooms = [room for store in self.stores.values() if (room := store.ring.room) is not None]
        return min(rooms) if rooms else None

    def check_room(self, count: int) -> None:
        """Raises CacheError unless a block of ``count`` positions may be appended."""
        if self.room is not None and count > self.room:
            raise CacheError(f"cannot append {count} positions in one block, there is room for {self.room}")


def new_ring(kind: str, window: int, slack_tokens: int) -> Ring:
    """The ring of a kind of layer: sliding layers roll, full layers grow."""
    return Ring(window, window + slack_tokens - 1) if kind == SLIDING else Ring()
