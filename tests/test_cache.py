"""The ring against a plain growing list: any appends and truncates, and a bound that cannot be one less."""

from __future__ import annotations

import numpy as np
import pytest
from dragoman.model.cache import Ring
from dragoman.model.errors import CacheError
from hypothesis import given
from hypothesis import strategies as st


class Storage:
    """What a runtime does with a ring: write values into slots, read them back through masks. The values are unique labels."""

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self.slots = np.full(ring.capacity or 4096, -1)
        self.truth: list[int] = []  # the plain list
        self.next_label = 0

    def append(self, count: int, *, both_ways: bool = False) -> None:
        first = self.ring.length
        if self.ring.sees_all(first, count):
            assert self.ring.visible(first, count).all()
        slots = self.ring.append(count)
        labels = np.arange(self.next_label, self.next_label + count)
        self.slots[slots] = labels
        self.truth += labels.tolist()
        self.next_label += count
        seen = self.ring.visible(first, count, both_ways=both_ways)
        used = self.slots[: self.ring.slots_used]
        for row in range(count):
            assert sorted(used[seen[row]]) == self.expected(first + row, first, both_ways)

    def expected(self, query: int, first: int, both_ways: bool) -> list[int]:
        """Labels that a query must see, from the list alone."""
        window = self.ring.window
        end = len(self.truth) if both_ways else query + 1
        low = 0 if window is None else max(0, query - window + 1)
        return sorted(self.truth[low:end])

    def truncate(self, length: int) -> None:
        self.ring.truncate(length)
        del self.truth[length:]


@given(
    window=st.integers(1, 9),
    longest=st.integers(1, 9),
    moves=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), max_size=60),
)
def test_the_bound_is_enough(window: int, longest: int, moves: list[tuple[int, int]]) -> None:
    """capacity = window + longest - 1: blocks and tentative runs of up to ``longest`` always work."""
    storage = Storage(Ring(window, window + longest - 1))
    for block, run in moves:
        storage.append(min(block, longest))
        mark = storage.ring.length
        if run := min(run, longest):
            for _ in range(run):
                storage.append(1)
            storage.truncate(mark)


@given(window=st.integers(1, 9), longest=st.integers(2, 9))
def test_one_slot_less_fails(window: int, longest: int) -> None:
    storage = Storage(Ring(window, window + longest - 2))
    for _ in range(3 * (window + longest)):
        storage.append(1)
    with pytest.raises(CacheError, match="room"):
        storage.ring.append(longest)
    mark = storage.ring.length
    for _ in range(longest):
        storage.append(1)
    with pytest.raises(CacheError, match="deeper than the slack"):
        storage.truncate(mark)


@given(
    window=st.integers(1, 8),
    slack=st.integers(0, 8),
    moves=st.lists(st.tuples(st.booleans(), st.integers(0, 20), st.booleans()), max_size=80),
)
def test_whatever_is_allowed_is_right(window: int, slack: int, moves: list[tuple[bool, int, bool]]) -> None:
    """Any moves: each either raises CacheError and changes nothing, or every query sees exactly what the list says."""
    storage = Storage(Ring(window, window + slack))
    for grow, count, both_ways in moves:
        before = (storage.ring.length, list(storage.truth))
        try:
            if grow:
                storage.append(count, both_ways=both_ways)
            else:
                storage.truncate(max(0, storage.ring.length - count))
        except CacheError:
            assert (storage.ring.length, storage.truth) == before


@given(moves=st.lists(st.tuples(st.booleans(), st.integers(0, 30)), max_size=40))
def test_a_growing_ring_is_a_plain_list(moves: list[tuple[bool, int]]) -> None:
    storage = Storage(Ring())
    for grow, count in moves:
        if grow:
            storage.append(count)
        else:
            storage.truncate(max(0, storage.ring.length - count))
        assert storage.ring.room is None
        assert storage.ring.slots_used == len(storage.truth)


def test_as_long_as_nothing_leaves_the_window_all_is_seen() -> None:
    ring = Ring(window=6, capacity=9)
    ring.append(4)
    assert ring.sees_all(4, 2) and not ring.sees_all(4, 3), "the last of three does not see position 0"
    ring.append(5)
    ring.append(1)
    assert not ring.sees_all(10, 1), "position 0 has been written over"
    assert Ring().sees_all(0, 1000)


def test_room_is_what_append_takes_and_truncate_gives_back() -> None:
    ring = Ring(4, 9)
    for _ in range(30):
        room, mark = ring.room, ring.length
        assert room is not None
        with pytest.raises(CacheError):
            ring.copy().append(room + 1)
        ring.copy().append(room)
        run = ring.copy()
        for _ in range(room):
            run.append(1)
        run.copy().truncate(mark)
        run.append(1)
        with pytest.raises(CacheError, match="deeper than the slack"):
            run.truncate(mark)
        ring.append(1)


def test_storage_is_needed_only_as_far_as_it_is_used() -> None:
    ring = Ring(1024, 1535)
    ring.append(300)
    assert ring.slots_used == 300
    ring.truncate(280)
    assert ring.slots_used == 280
    assert ring.slots(0, 3).tolist() == [0, 1, 2]


def test_the_refusal_names_the_earliest_possible_length() -> None:
    ring = Ring(4, 7)
    for _ in range(20):
        ring.append(1)
    with pytest.raises(CacheError, match="cannot truncate to 15 positions: deeper than the slack; the earliest possible is 16"):
        ring.truncate(15)
    ring.truncate(16)
    assert ring.length == 16
    with pytest.raises(CacheError, match="cannot truncate to 17 positions, the cache holds 16"):
        ring.truncate(17)


def test_copies_part_ways() -> None:
    ring = Ring(4, 8)
    ring.append(3)
    other = ring.copy()
    other.append(2)
    assert (ring.length, other.length) == (3, 5)


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(CacheError, match="capacity is 3 slots, expected at least the window, 4"):
        Ring(4, 3)
    with pytest.raises(CacheError, match="a window and a capacity"):
        Ring(window=4)
