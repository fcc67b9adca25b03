"""Whole frames out, nothing lost, nothing twice."""

from __future__ import annotations

import numpy as np
from dragoman.stream.framer import Framer
from hypothesis import given
from hypothesis import strategies as st


@given(lengths=st.lists(st.integers(0, 50), max_size=20), frame_samples=st.integers(1, 17))
def test_frames_are_the_samples_in_order(lengths: list[int], frame_samples: int) -> None:
    samples = np.arange(1, sum(lengths) + 1, dtype=np.float32)
    framer = Framer(frame_samples)
    frames = [framer.push(piece) for piece in np.split(samples, np.cumsum(lengths))]
    out = np.concatenate([*frames, framer.flush()]).ravel()
    missing = -len(samples) % frame_samples
    assert np.array_equal(out, np.pad(samples, (0, missing)))


def test_a_frame_comes_as_soon_as_it_is_full() -> None:
    framer = Framer(4)
    assert framer.push(np.ones(3, np.float32)).shape == (0, 4)
    assert framer.push(np.ones(1, np.float32)).shape == (1, 4)


def test_flush_leaves_nothing_behind() -> None:
    framer = Framer(4)
    framer.push(np.ones(5, np.float32))
    assert framer.flush().tolist() == [[1, 0, 0, 0]]
    assert framer.flush().shape == (0, 4)


def test_a_large_push_is_not_kept_alive_by_its_rest() -> None:
    framer = Framer(640)
    framer.push(np.ones(1_000_001, np.float32))
    rest = framer._rest  # pyright: ignore[reportPrivateUsage]
    assert rest.base is None and rest.size < 640
