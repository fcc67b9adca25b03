"""Driving jobs: alone or together, the results are the same; like works share a call; errors reach the job that waits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from dragoman.model.backend import Step
from dragoman.model.decoder import hypothesis
from dragoman.model.errors import BackendError
from dragoman.model.prompt import Task
from dragoman.model.work import Append, Job, Listen, Look, perform, run, run_together

from .fakes import FRAME, ScriptedBackend, ScriptedCache, speech


def listener(model: ScriptedBackend, cache: ScriptedCache, text: str) -> Job[str]:
    """A small session: prompt, audio, then one hypothesis."""
    prompts = model.prompts
    yield Append(cache, np.array(prompts.prefix(Task())), wanted=1)
    yield Listen(cache, speech(text).reshape(-1, FRAME))
    found = yield from hypothesis(cache, prompts.tail(Task()), [], [], stop=prompts.stop, limit_tokens=40, max_draft=model.spec.max_draft)
    return model.tokenizer.decode(found.ids).strip()


@pytest.mark.parametrize("drafter", ["none", "oracle", "bad"])
def test_together_equals_alone_and_shares_calls(drafter: str) -> None:
    model, texts = ScriptedBackend(drafter=drafter), ["the quick brown", "a lazy dog.", "fox jumps over a lazy"]
    alone = [run(model, listener(model, model.new_cache(), text)) for text in texts]
    assert alone == texts
    calls = len(model.calls)
    model.calls.clear()
    assert run_together(model, [listener(model, model.new_cache(), text) for text in texts]) == texts
    assert model.calls[:2] == [("step", 3), ("listen", 3)]
    assert len(model.calls) < calls


def test_no_jobs_is_no_work() -> None:
    model = ScriptedBackend()
    assert run_together(model, []) == []
    assert model.calls == []


def test_a_job_may_need_nothing() -> None:
    def idle() -> Job[int]:
        return 7
        yield

    assert run(ScriptedBackend(), idle()) == 7


def test_an_error_is_raised_in_the_jobs_that_wait_for_it() -> None:
    """One job handles it and goes on, the other does not and ends the run; both clean up."""
    model, cleaned = ScriptedBackend(), list[str]()

    def careful(cache: ScriptedCache) -> Job[str]:
        try:
            yield Append(cache, np.array([2]))
        except BackendError:
            step: Step = yield Append(cache, np.array([2]))
            return f"went on with {len(step.ids)}"
        return "no error came"

    def careless(cache: ScriptedCache) -> Job[str]:
        try:
            yield Append(cache, np.array([2]))
        finally:
            cleaned.append("careless")
        return "no error came"

    model.fail_next = "step"
    assert run(model, careful(model.new_cache())) == "went on with 1"
    model.fail_next = "step"
    with pytest.raises(BackendError, match="scripted failure"):
        run_together(model, [careful(model.new_cache()), careless(model.new_cache())])
    assert cleaned == ["careless"]


def test_all_kinds_of_work_reach_their_verb() -> None:
    model = ScriptedBackend()
    caches = [model.new_cache(), model.new_cache()]
    frames = np.zeros((2, FRAME), dtype=np.float32)
    assert perform(model, [Listen(cache, frames) for cache in caches]) == [None, None]
    assert perform(model, [Look(caches[0], np.zeros((2, 3, 6912), dtype=np.float32))]) == [None]
    (step,) = perform(model, [Append(caches[1], np.array([2, 3]))])
    assert len(step.ids) == 2
    assert [cache.length for cache in caches] == [8, 4]
    assert [call[0] for call in model.calls] == ["listen", "look", "step"]


def test_works_of_two_kinds_are_our_own_mistake() -> None:
    model = ScriptedBackend()
    mixed: list[Any] = [Append(model.new_cache(), np.array([2])), Look(model.new_cache(), np.zeros((1, 1, 6912), dtype=np.float32))]
    with pytest.raises(AssertionError, match="one kind"):
        perform(model, mixed)
