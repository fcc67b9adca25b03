"""Arrays whose memory is used again: never by two at once, never with what the last one left in it, and no more is kept than was said."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from dragoman.model.pages import Pages
from hypothesis import given
from hypothesis import strategies as st

SIZES = st.sampled_from([(1,), (3, 5), (15,), (2, 4, 64)])
MOST_BYTES = 3000  # one of the largest and a few small ones


@given(st.lists(st.tuples(SIZES, st.integers(0, 5)), max_size=40))
def test_an_array_is_zero_and_nobody_elses(wanted: list[tuple[tuple[int, ...], int]]) -> None:
    pages, held = Pages(MOST_BYTES), list[tuple[np.ndarray, int]]()
    for number, (shape, dropped) in enumerate(wanted):
        del held[dropped : dropped + 2]
        array = pages.zeros(shape)
        assert array.shape == shape and array.dtype == np.float32 and not array.any()
        array.fill(number + 1)
        held.append((array, number + 1))
        for other, mark in held:
            assert np.all(other == mark)
        assert pages.kept_bytes <= MOST_BYTES


def test_what_nobody_holds_is_used_again() -> None:
    pages = Pages()
    first = pages.zeros((4, 100))
    address = first.ctypes.data
    del first
    assert pages.kept_bytes == 1600
    assert pages.zeros((100, 4)).ctypes.data == address
    assert pages.zeros((100, 5)).ctypes.data != address


def test_a_view_keeps_its_memory() -> None:
    pages = Pages()
    view = pages.zeros((4, 100))[1:3, ::2].T
    view.fill(7.0)
    assert pages.kept_bytes == 0
    pages.zeros((4, 100)).fill(1.0)
    assert np.all(view == 7.0)


def test_more_than_is_kept_goes_back() -> None:
    pages = Pages(1000)
    both = [pages.zeros((200,)), pages.zeros((200,))]
    both.clear()
    assert pages.kept_bytes == 800


def test_threads_never_share() -> None:
    pages = Pages()

    def work(mark: int) -> bool:
        alone = True
        for step in range(300):
            array = pages.zeros((64 + 64 * (step % 3),))
            alone &= not array.any()
            array.fill(mark)
            alone &= bool(np.all(array == mark))
        return alone

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(1, 9)))
