"""Speculation on a real (tiny, random) network: drafting on = drafting off, token for token, over ring, batch and drafter."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache as once

import numpy as np
import pytest
from dragoman.model.backend import Hidden, Ids
from dragoman.model.decoder import hypothesis
from dragoman.model.torch_backend import TorchBackend, TorchCache
from dragoman.model.work import Job, run, run_together
from hypothesis import given, settings
from hypothesis import strategies as st

from .tiny_models import greedy, noise, some_ids, tiny_backend, tiny_drafter, tiny_model

COUNT = 14


class Guessing(TorchBackend):
    """A torch backend whose drafts come from the test: the cache's own future, or anything else."""

    def __init__(self, kind: str) -> None:
        super().__init__(tiny_model(0), tiny_drafter(1), slack_tokens=64)
        self.kind, self.future = kind, list[int]()
        self.start = 0

    def draft(self, work: Sequence[tuple[TorchCache, tuple[Hidden, int, int]]]) -> list[Ids]:  # type: ignore[override]
        if self.kind == "drafter":
            return super().draft(work)
        (cache, (_, _, count)) = work[0]
        at = cache.length - self.start + 1
        right = self.future[at : at + count]
        if self.kind == "bad":
            right = [(token + 1) % 80 for token in right]
        if self.kind == "every third wrong":
            right = [token if (at + i) % 3 else 7 for i, token in enumerate(right)]
        return [np.array([] if self.kind == "empty" else right, dtype=np.int64)]


@once
def guessing(kind: str) -> Guessing:
    return Guessing(kind)


def trunk(backend: TorchBackend, seed: int, frames: int) -> TorchCache:
    cache = backend.new_cache()
    backend.step([(cache, some_ids(seed, 5))])
    backend.listen([(cache, noise(seed, frames))])
    return cache


def fork(cache: TorchCache, tail: Sequence[int], draft: Sequence[int], max_draft: int, limit: int = COUNT) -> Job[tuple[int, ...]]:
    found = yield from hypothesis(cache, tail, [], draft, stop=(), limit_tokens=limit, max_draft=max_draft)
    return found.ids


@pytest.mark.parametrize("kind", ["oracle", "every third wrong", "bad", "empty", "drafter"])
@pytest.mark.parametrize("max_draft", [1, 4])
@pytest.mark.parametrize("frames", [0, 6, 70])
def test_every_drafter_gives_the_greedy_text(kind: str, max_draft: int, frames: int) -> None:
    backend, tail = guessing(kind), [86, 11]
    cache = trunk(backend, frames, frames)
    wanted = greedy(backend, cache, tail, COUNT + 8)
    backend.future, backend.start = wanted, cache.length + len(tail)
    before = cache.length
    found = run(backend, hypothesis(cache, tail, [], [], stop=(), limit_tokens=COUNT, max_draft=max_draft))
    assert list(found.ids) == wanted[:COUNT]
    assert cache.length == before
    if kind == "oracle":
        assert found.accepted_tokens == found.drafted_tokens > 0
        assert found.forwards <= COUNT // (max_draft + 1) + 2
    if kind in ("bad", "empty"):
        assert found.accepted_tokens == 0
    again = run(backend, hypothesis(cache, tail, [], [], stop=(), limit_tokens=COUNT, max_draft=0))
    assert again.ids == found.ids, "the fork left a trace in the cache"


@settings(deadline=None, max_examples=25)
@given(
    frames=st.integers(0, 60),
    keep=st.integers(0, COUNT + 4),
    noise_ids=st.lists(st.integers(0, 95), max_size=5),
    committed=st.integers(0, 6),
    max_draft=st.integers(0, 5),
)
def test_a_previous_hypothesis_as_draft_changes_nothing(
    frames: int, keep: int, noise_ids: list[int], committed: int, max_draft: int
) -> None:
    """Right, wrong and partly right drafts on a rolled cache, drafter on or off."""
    backend = guessing("drafter")
    cache, tail = trunk(backend, frames, frames), [86]
    wanted = greedy(backend, cache, tail, COUNT)
    fixed, draft = wanted[:committed], [*wanted[committed:keep], *noise_ids]
    found = run(backend, hypothesis(cache, tail, fixed, draft, stop=(), limit_tokens=COUNT - committed, max_draft=max_draft))
    assert list(found.ids) == wanted[committed:]


def test_log_probabilities_do_not_depend_on_drafts() -> None:
    backend = guessing("drafter")
    cache, tail = trunk(backend, 3, 40), [86]
    plain = run(backend, hypothesis(cache, tail, [], [], stop=(), limit_tokens=COUNT, max_draft=0))
    drafted = run(backend, hypothesis(cache, tail, [], plain.ids[:9], stop=(), limit_tokens=COUNT, max_draft=3))
    np.testing.assert_allclose(plain.logprobs, drafted.logprobs, atol=1e-4)


def test_a_stop_token_inside_a_draft_ends_the_text() -> None:
    backend = guessing("drafter")
    cache, tail = trunk(backend, 4, 30), [86]
    wanted = greedy(backend, cache, tail, COUNT)
    stop = wanted[7]
    first = wanted.index(stop)
    found = run(backend, hypothesis(cache, tail, [], wanted, stop=[stop], limit_tokens=COUNT, max_draft=4))
    assert list(found.ids) == wanted[:first]
    assert found.stopped


def test_many_forks_together_equal_each_alone() -> None:
    backend = tiny_backend(5, drafter=True)
    caches = [trunk(backend, seed, 10 * seed) for seed in range(5)]
    alone = [run(backend, fork(cache, [86, seed], [], 3)) for seed, cache in enumerate(caches)]
    together = run_together(backend, [fork(cache, [86, seed], list(alone[seed][:seed]), 3) for seed, cache in enumerate(caches)])
    assert together == alone
