"""Sentences of a transcript in token ids: cut where one ends, and together all that there was."""

from __future__ import annotations

from itertools import chain

import pytest
from dragoman.model.load import load
from dragoman.model.sentences import sentences
from dragoman.model.tokenizer import Tokenizer
from hypothesis import given
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load(threads=1).tokenizer


@pytest.mark.parametrize(
    "parts",
    [
        ["It is late.", "Where are you going?", "Home!"],
        ["Mr. Brown and Dr. J. Smith live in St. Albans.", "They are old."],
        ['He said "stop."', "She did not."],
        ["It costs 3.50 or so, e.g. in May, and no full stop"],
        ["Wait...", "I come."],
        [],
    ],
)
def test_a_sentence_ends_at_its_mark(tokenizer: Tokenizer, parts: list[str]) -> None:
    ids = tokenizer.encode(" ".join(parts)) if parts else []
    assert [tokenizer.decode(part).strip() for part in sentences(tokenizer, ids)] == parts


LOADED = load(threads=1).tokenizer


@given(st.lists(st.sampled_from(["Tom", "stop.", "Mr.", "why?", "a", "3.5", "ü.", "no!", "...", "'s"]), max_size=12).map(" ".join))
def test_nothing_is_lost(text: str) -> None:
    ids = LOADED.encode(text)
    assert list(chain.from_iterable(sentences(LOADED, ids))) == ids
