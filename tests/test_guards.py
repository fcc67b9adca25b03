"""Loops, floods and control tokens are cut; ordinary repetition is not."""

from __future__ import annotations

import pytest
from dragoman.model.loops import find_loop
from dragoman.stream.guards import Guards, channel_ids, special_ids
from hypothesis import given
from hypothesis import strategies as st

from .fakes import ScriptedBackend
from .gemma_tokens import gemma_tokenizer


def guards(special: tuple[int, ...] = (99,), channel: tuple[int, int] | None = None) -> Guards:
    return Guards(special, tokens_per_second=5, floor_tokens=4, loop_tokens=12, loop_copies=3, channel=channel)


def test_a_sentence_said_three_times_is_cut_after_the_first() -> None:
    sentence = [1, 2, 3, 4, 5]
    assert find_loop([9, *sentence * 3, 7], 12, 3) == 6
    assert find_loop([9, *sentence * 2, 7], 12, 3) is None


def test_no_no_no_is_no_loop() -> None:
    assert find_loop([5, 6, 5, 6, 5, 6, 7], 12, 3) is None
    assert find_loop([5] * 11, 12, 3) is None
    assert find_loop([5] * 12, 12, 3) == 1


@given(st.lists(st.integers(0, 50), max_size=20), st.lists(st.integers(60, 90), min_size=1, max_size=24, unique=True), st.integers(0, 30))
def test_any_period_is_found(before: list[int], period: list[int], more: int) -> None:
    copies = max(3, -(-12 // len(period)))
    ids = [*before, *(period * (copies + 1 + more))[: len(period) * copies + more]]
    assert find_loop(ids, 12, 3) is not None
    cut = find_loop([*(period * copies)], 12, 3)
    assert cut == len(period)


@given(st.lists(st.integers(), unique=True, max_size=100))
def test_text_without_repetition_is_never_cut(ids: list[int]) -> None:
    assert find_loop(ids, 2, 2) is None


@pytest.mark.parametrize("copies", [3, 5, 9])
def test_who_goes_on_after_a_repetition_was_not_stuck(copies: int) -> None:
    """ "Hello? Hello? Hello? Hello? Can you hear me?" is speech; a hypothesis that ends in its repetition, or never ended, is not."""
    guards = Guards(frozenset({0}), tokens_per_second=12, floor_tokens=8, loop_tokens=12, loop_copies=3)
    said = [5, 6, 7, 8] * copies
    assert guards.keep((), [*said, 9, 10, 11], stopped=True) == (len(said) + 3, False)
    assert guards.keep(said, [9, 10, 11], stopped=True) == (3, False), "the repetition is committed already"
    assert guards.keep((), [*said, 9], stopped=True) == guards.keep((), said, stopped=True) == (4, True)
    assert guards.keep((), [*said, 9, 10, 11], stopped=False) == (4, True)


def test_a_translation_that_says_a_clause_twice_is_cut_after_the_first() -> None:
    """However long the clause, and in the middle too; unless that is what was said."""
    guard, clause = guards(), list(range(10, 40))
    assert guard.keep_translation([1, 2, 3], [7, *clause, *clause[:30], 8], stopped=True) == 31
    assert guard.keep_translation([1, 2, 3], [7, *clause[:6], *clause[:6], *range(50, 70)], stopped=True) == 7
    assert guard.counts.loops == 2
    twice = [1, 2, 3, 4, 1, 2, 3, 4]
    assert guard.keep_translation(twice, [*clause, *clause], stopped=True) == 60
    assert guard.keep_translation(twice, clause[:8] * 3, stopped=True) == 8
    assert guard.keep_translation([1, 2, 3], [5, 6, 5, 6, 5, 6], stopped=True) == 6, "no, no, no"
    assert guard.keep_translation([1, 2], [5, 99, 6], stopped=True) == 1 and guard.keep_translation([1, 2], [5, 6], stopped=False) == 2
    assert (guard.counts.loops, guard.counts.special, guard.counts.capped) == (3, 1, 1)


def test_keep_counts_what_it_cuts() -> None:
    guard = guards()
    assert guard.keep([], [1, 2, 3], stopped=True) == (3, False)
    assert guard.keep([], [1, 99, 3], stopped=True) == (1, False)
    assert guard.keep([], [1, 2], stopped=False) == (2, False)
    assert guard.keep([8, 1, 2, 3, 4], [1, 2, 3, 4, 1, 2, 3, 4, 5], stopped=True) == (0, True)
    counts = guard.counts
    assert (counts.special, counts.capped, counts.loops) == (1, 1, 1)


@pytest.mark.parametrize(
    ("ids", "spoken", "thoughts"),
    [
        ([1, 2, 3], [1, 2, 3], 0),
        ([100, 7, 8, 101, 1, 2, 3], [1, 2, 3], 1),
        ([100, 101, 1], [1], 1),
        ([1, 100, 7, 101, 2, 100, 8, 101], [1, 2], 1),
        ([1, 100, 7, 2, 3], [1, 100, 7, 2, 3], 0),  # never closes
        ([100, 7, 101, 1, 100, 8], [1, 100, 8], 1),
        ([1, 101, 2], [1, 101, 2], 0),  # never opened
    ],
)
def test_thoughts_are_taken_out_and_counted(ids: list[int], spoken: list[int], thoughts: int) -> None:
    guard = guards((100, 101), channel=(100, 101))
    assert [ids[place] for place in guard.spoken(ids)] == spoken
    kept, _ = guard.keep([], spoken, stopped=True)
    assert not {100, 101} & set(spoken[:kept])
    assert (guard.counts.thoughts, guard.counts.special) == (thoughts, kept < len(spoken))


def test_a_vocabulary_without_thoughts_has_no_channel() -> None:
    assert channel_ids(ScriptedBackend().tokenizer) is None
    assert channel_ids(gemma_tokenizer()) == (100, 101)
    assert guards().spoken([100, 7, 101, 1]) == [0, 1, 2, 3]


def test_the_cap_grows_with_the_audio() -> None:
    guard = guards()
    assert guard.limit_tokens(0.0, 0) == 4
    assert guard.limit_tokens(2.0, 0) == 14
    assert guard.limit_tokens(2.0, 10) == 4
    assert guard.limit_tokens(2.0, 100) == 0


def test_special_ids_are_control_tokens_but_not_the_stop() -> None:
    backend = ScriptedBackend()
    special = special_ids(backend.config.special, backend.tokenizer)
    assert backend.tokenizer.id_of("<|transcribe|>") in special
    assert backend.config.special.end_of_audio in special
    assert not special & set(backend.prompts.stop)
    assert not special & set(backend.tokenizer.encode("the quick brown fox"))
