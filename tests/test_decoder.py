"""A hypothesis does not depend on drafts, and leaves the cache as it found it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache as once

import numpy as np
import pytest
from dragoman.model.decoder import Hypothesis, common_prefix, hypothesis
from dragoman.model.errors import BackendError
from dragoman.model.prompt import Task
from dragoman.model.work import Append, run
from hypothesis import given, settings
from hypothesis import strategies as st

from .fakes import FRAME, WORDS, ScriptedBackend, ScriptedCache, scripted_tokenizer, speech

TOKENS = once(scripted_tokenizer)
TEXT = "the quick brown fox jumps over a lazy dog."


def backend(drafter: str = "none", max_draft: int = 4) -> ScriptedBackend:
    return ScriptedBackend(drafter=drafter, max_draft=max_draft, tokenizer=TOKENS())


def heard(model: ScriptedBackend, text: str = TEXT) -> ScriptedCache:
    cache = model.new_cache()
    model.step([(cache, np.array(model.prompts.prefix(Task())))])
    model.listen([(cache, speech(text).reshape(-1, FRAME))])
    return cache


def decode(
    model: ScriptedBackend, cache: ScriptedCache, *, committed: Sequence[int] = (), draft: Sequence[int] = (), limit: int = 60
) -> Hypothesis:
    return run(
        model,
        hypothesis(
            cache,
            model.prompts.tail(Task()),
            committed,
            draft,
            stop=model.prompts.stop,
            limit_tokens=limit,
            max_draft=model.spec.max_draft,
        ),
    )


@pytest.mark.parametrize("drafter", ["none", "oracle", "bad", "empty"])
@pytest.mark.parametrize("max_draft", [1, 3, 4, 50])
def test_every_drafter_gives_the_same_text(drafter: str, max_draft: int) -> None:
    model = backend(drafter, max_draft)
    cache = heard(model)
    before = list(cache.items)
    got = decode(model, cache)
    assert TOKENS().decode(got.ids).strip() == TEXT
    assert got.stopped and len(got.logprobs) == len(got.ids)
    assert cache.items == before


def test_an_oracle_saves_forwards_and_a_bad_drafter_does_not() -> None:
    plain, oracle, bad = (decode(model, heard(model)) for model in map(backend, ("none", "oracle", "bad")))
    assert plain.forwards == len(plain.ids) + 1
    assert plain.drafted_tokens == plain.accepted_tokens == 0
    assert oracle.forwards <= len(plain.ids) // 4 + 2
    assert oracle.accepted_tokens >= len(plain.ids) * 3 // 4
    assert bad.accepted_tokens == 0
    assert bad.drafted_tokens > 0
    assert bad.forwards == plain.forwards


@settings(deadline=None, max_examples=40)
@given(
    words=st.lists(st.sampled_from(WORDS), min_size=0, max_size=6),
    keep=st.integers(0, 20),
    noise=st.lists(st.integers(10, 250), max_size=4),
    committed=st.integers(0, 5),
    limit=st.integers(0, 30),
    drafter=st.sampled_from(["none", "oracle", "bad", "empty"]),
)
def test_the_previous_hypothesis_as_draft_changes_nothing(
    words: list[str], keep: int, noise: list[int], committed: int, limit: int, drafter: str
) -> None:
    """Right, wrong and partly right drafts, any committed prefix, any limit: the same ids as with no draft at all."""
    model = backend(drafter)
    cache = heard(model, " ".join(words))
    whole = decode(model, cache).ids
    fixed = whole[:committed]
    wanted = decode(backend(), cache, committed=fixed, limit=limit)
    assert wanted.ids == whole[len(fixed) : len(fixed) + limit]
    draft = (*whole[len(fixed) : len(fixed) + keep], *noise)
    got = decode(model, cache, committed=fixed, draft=draft, limit=limit)
    assert (got.ids, got.stopped) == (wanted.ids, wanted.stopped)
    assert got.agreed_tokens == common_prefix(got.ids, draft)


def test_a_right_draft_is_confirmed_in_one_forward() -> None:
    model = backend()
    cache = heard(model)
    whole = decode(model, cache).ids
    model.calls.clear()
    got = decode(model, cache, draft=whole)
    assert got.agreed_tokens == len(whole)
    assert got.forwards == 1
    assert model.calls == [("step", 1)]


def test_the_limit_is_kept_and_said() -> None:
    model = backend("oracle")
    cache = heard(model)
    whole = decode(model, cache).ids
    for limit in (0, 1, 2, len(whole) - 1, len(whole)):
        got = decode(model, cache, limit=limit, draft=whole)
        assert got.ids == whole[:limit]
        assert not got.stopped
    assert decode(model, cache, limit=len(whole) + 1).stopped


def test_only_the_wanted_rows_are_asked_for() -> None:
    """The prompt's rows never go through the head."""
    model = backend()
    cache = heard(model)
    job = hypothesis(cache, [1, 2, 3], [4, 5], [6], stop=[1], limit_tokens=9, max_draft=0)
    work = next(job)
    assert isinstance(work, Append)
    assert (work.ids.tolist(), work.wanted) == ([1, 2, 3, 4, 5, 6], 2)
    job.close()


def test_a_runtime_may_answer_for_every_row() -> None:
    """``wanted`` is a permission to leave rows out, not a promise that they are."""

    class Generous(ScriptedBackend):
        def step(self, work, *, wanted=None):  # type: ignore[no-untyped-def]
            return super().step(work)

    model = Generous(tokenizer=TOKENS())
    assert TOKENS().decode(decode(model, heard(model)).ids).strip() == TEXT


@pytest.mark.parametrize("verb", ["step", "draft"])
def test_the_cache_is_restored_after_an_error(verb: str) -> None:
    model = backend("oracle")
    cache = heard(model)
    before = list(cache.items)
    model.fail_next = verb
    with pytest.raises(BackendError, match=f"scripted failure of {verb}"):
        decode(model, cache)
    assert cache.items == before


def test_a_job_that_is_dropped_restores_the_cache() -> None:
    model = backend()
    cache = heard(model)
    before = list(cache.items)
    job = hypothesis(cache, model.prompts.tail(Task()), [], [], stop=model.prompts.stop, limit_tokens=9, max_draft=0)
    work = next(job)
    assert isinstance(work, Append)
    job.send(model.step([(cache, work.ids)])[0])
    assert cache.items != before
    job.close()
    assert cache.items == before
