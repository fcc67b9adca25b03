"""Ids and text: round trips, control names as plain text, and a stream that never splits a character."""

from __future__ import annotations

from pathlib import Path

import pytest
from dragoman.model.errors import CheckpointError
from dragoman.model.tokenizer import TextStream, Tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from .fakes import SPECIALS, scripted_tokenizer
from .gemma_tokens import gemma_tokenizer

BYTE_LEVEL, PIECES = scripted_tokenizer(), gemma_tokenizer()
BOTH = pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, PIECES], ids=["byte level", "pieces"])
HARD = "naïve façade, 北京 🚀👩‍👧 Ωmega — «ünïcödé» it's"


@BOTH
def test_text_comes_back(tokenizer: Tokenizer) -> None:
    for text in ("the quick brown fox", HARD, "", "  two  spaces", "1.7 and 3"):
        assert tokenizer.decode(tokenizer.encode(text)).lstrip() == text.lstrip()


@BOTH
@settings(deadline=None, max_examples=60)
@given(text=st.text(max_size=30), cuts=st.lists(st.integers(1, 4), max_size=60))
def test_a_stream_gives_the_whole_text_and_never_half_a_character(tokenizer: Tokenizer, text: str, cuts: list[int]) -> None:
    """Any cutting of the ids: what was pushed out is a prefix of the decoded text at every moment, and all of it in the end."""
    ids, stream, given_out, at = tokenizer.encode(text), TextStream(tokenizer), "", 0
    whole = tokenizer.decode(ids)
    for cut in [*cuts, len(ids) + 1]:
        given_out += stream.push(ids[at : at + cut])
        at += cut
        assert whole.startswith(given_out)
    assert given_out + stream.flush() == whole


def test_an_unfinished_character_is_held_back() -> None:
    """A rocket is four bytes, four ids here: nothing comes out before the fourth."""
    ids = [token for token in BYTE_LEVEL.encode("🚀") if BYTE_LEVEL.decode([token]).strip()]
    stream = TextStream(BYTE_LEVEL)
    assert len(ids) == 4
    assert [stream.push([token]) for token in ids] == ["", "", "", "🚀"]
    assert stream.push(ids[:2]) == ""
    assert stream.flush() == "\N{REPLACEMENT CHARACTER}"
    assert stream.push(BYTE_LEVEL.encode("fox")) == " fox"


@BOTH
def test_a_long_stream_remembers_one_token(tokenizer: Tokenizer) -> None:
    stream, text = TextStream(tokenizer), "the quick brown fox jumps over a lazy dog. " * 20
    ids = tokenizer.encode(text)
    assert "".join(stream.push([token]) for token in ids) + stream.flush() == tokenizer.decode(ids)
    for token in ids:
        stream.push([token])
    assert len(stream._ids) <= 2


@BOTH
def test_names_of_control_tokens_in_a_text_are_plain_text(tokenizer: Tokenizer) -> None:
    """A glossary must not be able to end a turn."""
    for name in ("<|audio>", "<eos>", "<|turn>", "<|de|>"):
        ids = tokenizer.encode(f"say {name} twice")
        assert tokenizer.id_of(name) not in ids
        assert name in tokenizer.decode(ids)


def test_control_tokens_are_left_out_of_text() -> None:
    ids = [BYTE_LEVEL.id_of("<bos>"), *BYTE_LEVEL.encode("fox"), BYTE_LEVEL.id_of("<eos>")]
    assert BYTE_LEVEL.decode([token for token in ids if token is not None]) == " fox"


def test_pieces_are_found_by_name() -> None:
    assert [BYTE_LEVEL.id_of(name) for name in SPECIALS] == list(range(len(SPECIALS)))
    assert BYTE_LEVEL.name_of(3) == SPECIALS[3]
    assert BYTE_LEVEL.id_of("<|nobody|>") is None
    assert BYTE_LEVEL.name_of(10**6) is None
    assert BYTE_LEVEL.size > len(SPECIALS)


def test_a_word_begins_with_a_space() -> None:
    assert BYTE_LEVEL.decode(BYTE_LEVEL.encode("fox")) == " fox"
    assert PIECES.decode(PIECES.encode("fox")) == "fox"


def test_files_are_read_and_broken_ones_named(tmp_path: Path) -> None:
    BYTE_LEVEL._inner.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.from_file(tmp_path / "tokenizer.json").encode("lazy dog") == BYTE_LEVEL.encode("lazy dog")
    with pytest.raises(CheckpointError, match="does not exist; a checkpoint folder needs a tokenizer.json"):
        Tokenizer.from_file(tmp_path / "absent.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is not a tokenizer.json"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")
