"""Moonshine's pieces as a tokenizer, and a smaller vocabulary of them: nothing is lost, and every piece can be reached."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import tokenizers
from dragoman.model.tokenizer import Tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("onnxruntime")

from dragoman.model.training import pieces  # noqa: E402
from dragoman.model.training.text import END, SPECIAL_TOKENS, TRANSCRIBE  # noqa: E402

pytestmark = pytest.mark.skipif(importlib.util.find_spec("moonshine_voice") is None, reason="needs the extra train")

TEXTS = [
    "The old lighthouse stood at the end of the road.",
    "Every evening the keeper lit the lamp.",
    "We bought bread, apples and cheese.",
]
SIZE = 1000
HARD = "naïve façade, 北京 🚀👩‍👧 Ωmega — «ünïcödé» it's <0x41> <s>\r\n\t\x00\ufffd 3,500"


@pytest.fixture(scope="module")
def full() -> tokenizers.Tokenizer:
    return pieces.moonshine_tokenizer()


@pytest.fixture(scope="module")
def reduced(full: tokenizers.Tokenizer) -> tuple[tokenizers.Tokenizer, list[int]]:
    small = pieces.smaller(full, pieces.count_pieces(full, TEXTS), SIZE)
    return small, pieces.old_ids(small, full)


@pytest.fixture(scope="module", params=["full", "smaller"])
def tokenizer(request: pytest.FixtureRequest) -> tokenizers.Tokenizer:
    return request.getfixturevalue("full") if request.param == "full" else request.getfixturevalue("reduced")[0]


def test_the_ids_are_moonshines(full: tokenizers.Tokenizer) -> None:
    assert full.get_vocab_size() == 32_768
    assert [full.id_to_token(i) for i in (0, 1, 2, 3, 258, 259, 260)] == ["<unk>", "<s>", "</s>", "<0x00>", "<0xFF>", "▁▁", "▁t"]
    assert full.encode("We walked to the market").tokens == ["▁We", "▁walked", "▁to", "▁the", "▁market"]
    assert full.encode("Hello world!").ids == [15043, 3186, 29991], "as every Llama 2 does"
    assert full.decode([1, *full.encode("Hello world!").ids, 2]) == " Hello world!"


@settings(max_examples=300)
@given(text=st.text(st.characters(exclude_characters="▁", exclude_categories=["Cs"]), min_size=1, max_size=40))
def test_text_comes_back_behind_a_space(tokenizer: tokenizers.Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == " " + text


def test_hard_texts_come_back(tokenizer: tokenizers.Tokenizer) -> None:
    for text in (HARD, " ", "  two  spaces   ", *SPECIAL_TOKENS, " ".join(TEXTS)):
        assert tokenizer.decode(tokenizer.encode(text).ids) == " " + text


def test_what_does_not_come_back(tokenizer: tokenizers.Tokenizer) -> None:
    assert tokenizer.encode("").ids == [] and tokenizer.decode([]) == ""
    assert tokenizer.decode(tokenizer.encode("a▁b").ids) == " a b"


def test_several_spaces_are_pieces_of_their_own(full: tokenizers.Tokenizer) -> None:
    assert full.encode("a  b").tokens == ["▁a", "▁▁", "b"]
    assert full.encode("a b").tokens == ["▁a", "▁b"]


def test_every_piece_can_be_reached(reduced: tuple[tokenizers.Tokenizer, list[int]]) -> None:
    """Behind a byte, with which nothing merges."""
    small, _ = reduced
    for i in range(len(SPECIAL_TOKENS) + 256, SIZE):
        name = small.id_to_token(i)
        assert small.encode("\x01" + name.replace("▁", " ")).tokens == ["▁", "<0x01>", name]
    assert [small.id_to_token(len(SPECIAL_TOKENS) + byte) for byte in range(256)] == pieces.BYTES


def test_the_full_vocabulary_has_pieces_that_cannot_be_reached(full: tokenizers.Tokenizer) -> None:
    """Its special tokens, and one that is empty; nothing else is lost to the way its merges are found."""
    with pytest.raises(ValueError, match="40000 ids are asked for; there are only 32012"):
        pieces.smaller(full, {}, 40_000)
    assert 32_012 == 32_768 - 768 - len(["<unk>", "<s>", "</s>", ""]) + len(SPECIAL_TOKENS)


def test_old_ids_name_the_rows(full: tokenizers.Tokenizer, reduced: tuple[tokenizers.Tokenizer, list[int]]) -> None:
    small, old = reduced
    n = len(SPECIAL_TOKENS)
    assert small.get_vocab_size() == len(old) == SIZE
    assert [small.id_to_token(i) for i in range(n)] == list(SPECIAL_TOKENS)
    assert (old[TRANSCRIBE], old[END]) == (1, 2) and [i for i in range(n) if old[i] >= 0] == [END, TRANSCRIBE]
    assert old[n:] == sorted(set(old[n:])) and old[n] == pieces.FIRST_BYTE
    assert [small.id_to_token(i) for i in range(n, SIZE)] == [full.id_to_token(i) for i in old[n:]]


def test_what_was_counted_is_written_as_before(full: tokenizers.Tokenizer, reduced: tuple[tokenizers.Tokenizer, list[int]]) -> None:
    small, old = reduced
    for text in TEXTS:
        assert [old[i] for i in small.encode(text).ids] == full.encode(text).ids
    other = "We discovered an extraordinary phenomenon."
    assert len(small.encode(other).ids) > len(full.encode(other).ids)


def test_pieces_are_counted_over_any_number_of_texts(full: tokenizers.Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    one = pieces.count_pieces(full, iter(TEXTS))
    monkeypatch.setattr(pieces, "BATCH", 2)
    assert pieces.count_pieces(full, (text for text in TEXTS)) == one
    assert one[full.token_to_id("▁the")] == 4 and one.total() == sum(len(full.encode(text).ids) for text in TEXTS)
    assert not pieces.count_pieces(full, [])


def few_pieces() -> list[bytes]:
    """ "here" cannot be reached: it would be h and ere, but h and e are merged before."""
    names = ["t", "h", "e", "r", "▁", "he", "er", "the", "▁the", "ere", "here"]
    return [b"<unk>", b"<s>", b"</s>", *(bytes([byte]) for byte in range(256)), *(name.encode() for name in names)]


@pytest.mark.parametrize("spare", range(6))
def test_the_size_is_exact_and_nothing_is_left_half_made(spare: int) -> None:
    whole, least = pieces.from_pieces(few_pieces()), len(SPECIAL_TOKENS) + 256 + len("ther▁")
    small = pieces.smaller(whole, {whole.token_to_id("here"): 9, whole.token_to_id("▁the"): 5}, least + spare)
    assert small.get_vocab_size() == least + spare
    new = [small.id_to_token(i) for i in range(len(SPECIAL_TOKENS) + 256, least + spare) if len(small.id_to_token(i)) > 1]
    assert sorted(new) == sorted(["he", "the", "▁the", "er", "ere"][:spare]), "what was counted first, its parts before it"
    for name in new:
        assert small.encode("\x01" + name.replace("▁", " ")).tokens[-1] == name


def test_sizes_that_cannot_be_are_refused() -> None:
    whole = pieces.from_pieces(few_pieces())
    with pytest.raises(ValueError, match="276 ids are asked for; special tokens, bytes and characters alone are 277"):
        pieces.smaller(whole, {}, 276)
    with pytest.raises(ValueError, match="283 ids are asked for; there are only 282"):
        pieces.smaller(whole, {}, 283)


def test_the_stream_reads_the_file(reduced: tuple[tokenizers.Tokenizer, list[int]], tmp_path: Path) -> None:
    small, _ = reduced
    small.save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert ours.size == SIZE and ours.id_of("<|transcribe|>") == TRANSCRIBE
    for text in (*TEXTS, HARD, "say <eos> twice"):
        assert ours.encode(text) == small.encode(text).ids and ours.decode([TRANSCRIBE, *ours.encode(text), END]) == " " + text


def test_a_piece_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="of 271 pieces only 270 differ"):
        pieces.from_pieces([*few_pieces(), b"the"])
