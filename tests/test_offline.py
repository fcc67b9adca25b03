"""A whole clip at once: cut where it begins to repeat itself, as a session cuts it."""

from __future__ import annotations

import numpy as np
import pytest
from dragoman.model.load import Loaded
from dragoman.model.offline import LOOP_COPIES, LOOP_TOKENS, transcribe_job, transcript
from dragoman.model.work import run
from dragoman.stream.config import GuardOptions

from .fakes import ScriptedBackend


def said(text: str, seconds: float = 20.0) -> str:
    backend = ScriptedBackend(lambda loudness: text)
    loaded = Loaded(backend, backend.tokenizer, backend.prompts)  # type: ignore[arg-type]
    found = run(backend, transcribe_job(loaded, np.zeros(int(seconds * 16_000), np.float32)))  # type: ignore[arg-type]
    return transcript(loaded, found)


def test_the_limits_are_a_sessions() -> None:
    assert (GuardOptions().loop_tokens, GuardOptions().loop_copies) == (LOOP_TOKENS, LOOP_COPIES)


@pytest.mark.parametrize("copies", [4, 9])
def test_a_repetition_at_the_end_is_cut_after_its_first_copy(copies: int) -> None:
    assert said("the quick brown fox" + " over the lazy" * copies) == "the quick brown fox over the lazy"


@pytest.mark.parametrize(
    "text", ["the quick brown fox over the lazy", "over the lazy over the lazy", "the the the over the lazy brown fox"]
)
def test_what_a_person_may_say_stays(text: str) -> None:
    assert said(text) == text


def test_who_goes_on_to_something_else_was_not_stuck() -> None:
    text = "over the lazy " * 4 + "the quick brown fox"
    assert said(text) == text
