"""Sentences of a transcript in token ids: cut where one ends, and together all that there was."""

from __future__ import annotations

from itertools import chain

import pytest
from dragoman.model.load import load
from dragoman.model.sentences import ends_sentence, sentences
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


LONG = (
    "we went down to the river early in the morning, and there we saw that nobody had been at the old mill for many years "
    "but somebody had left a lamp behind"
)


def test_a_very_long_one_is_cut_where_it_pauses(tokenizer: Tokenizer) -> None:
    """And there it stays cut when more of it is heard."""
    parts = sentences(tokenizer, tokenizer.encode(LONG))
    said = [tokenizer.decode(part).strip() for part in parts]
    assert said[0] == "we went down to the river early in the morning," and said[1].startswith("and there") and len(said) == 2
    assert sentences(tokenizer, tokenizer.encode(f"{LONG} the door of it. He came in"))[0] == parts[0]
    unpaused = [tokenizer.decode(part).strip() for part in sentences(tokenizer, tokenizer.encode("red wine " * 40))]
    assert " ".join(unpaused) == "red wine " * 39 + "red wine" and 2 < len(unpaused) < 10


LOADED = load(threads=1).tokenizer


@given(
    st.lists(st.sampled_from(["Tom", "and", "you,", "stop.", "Mr.", "why?", "a", "3.5", "ü.", "no!", "...", "'s"]), max_size=90).map(
        " ".join
    )
)
def test_nothing_is_lost(text: str) -> None:
    ids = LOADED.encode(text)
    parts = sentences(LOADED, ids)
    assert list(chain.from_iterable(parts)) == ids and all(len(part) <= 32 for part in parts)


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("We met. ", True),
        ("We met.”)\n", True),
        ("No", False),
        ("No.", True),
        ("so do I.", True),
        ("with J.", False),
        ("it is…", True),
        ("他来了。", True),
        ("to Mr.", False),
        ("(St.", False),
        ("5 p.m.", True),
    ],
)
def test_where_a_sentence_ends(text: str, ends: bool) -> None:
    assert ends_sentence(text) == ends
