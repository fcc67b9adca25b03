"""Sentences in a speaker's own words: every word is where the letters say, and nothing is said that the speaker never said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs the extra train")
pytest.importorskip("rapidfuzz", reason="needs the extra train")
pytest.importorskip("scipy", reason="needs the extra train")

import tokenizers  # noqa: E402
from dragoman.model.errors import ConfigError  # noqa: E402
from dragoman.model.store import Clip  # noqa: E402
from dragoman.model.training import text  # noqa: E402
from dragoman.model.training.batches import Batches, BatchOptions  # noqa: E402
from dragoman.model.training.compose import Vocabulary  # noqa: E402
from dragoman.model.training.probe import PLAIN  # noqa: E402
from dragoman.model.training.rows import IGNORE  # noqa: E402

from .spoken import WORDS, heard, letters_near, make_speech  # noqa: E402

Said = tuple[str, tuple[tuple[int, int], ...]]
CLIP = Clip("c", "train", "en", "s", "t", "", "", 0, 16_000)


def vocabulary(*said: Said) -> Vocabulary:
    return Vocabulary([(0, CLIP, words, known) for words, known in said])


def whole(words: str) -> Said:
    return words, ((0, len(words.split())),)


def test_the_longest_run_is_taken() -> None:
    speaker = vocabulary(whole("The red house."), whole("a red river by the house"), whole("Tom saw the red"))
    pieces = speaker.pieces("Tom saw the red house by the river.", np.random.default_rng(0))
    assert [(piece.clip, piece.first, piece.count) for piece in pieces[:1]] == [(2, 0, 4)]
    assert [(piece.clip, piece.first, piece.count) for piece in pieces[2:3]] == [(1, 3, 2)]
    assert [piece.count for piece in pieces] == [4, 1, 2, 1]


def test_a_word_that_nobody_said_or_that_is_not_certain_makes_no_sentence() -> None:
    rng = np.random.default_rng(0)
    speaker = vocabulary(("Tom saw a red house", ((1, 3),)))
    assert [piece.count for piece in speaker.pieces("saw a", rng)] == [2]
    assert (
        speaker.pieces("Tom saw", rng)
        == speaker.pieces("a red", rng)
        == speaker.pieces("today", rng)
        == speaker.pieces("saw - a", rng)
        == []
    )


@given(
    st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=8), min_size=1, max_size=6),
    st.lists(st.sampled_from(WORDS), max_size=9),
    st.data(),
)
def test_pieces_say_the_sentence(clips: list[list[str]], sentence: list[str], data: st.DataObject) -> None:
    said = [(" ".join(words), ((0, data.draw(st.integers(1, len(words)))),)) for words in clips]
    pieces = vocabulary(*said).pieces(" ".join(sentence), np.random.default_rng(data.draw(st.integers(0, 9))))
    known = {word for words, ((_, high),) in said for word in words.split()[:high]}
    assert bool(pieces) == bool(sentence and set(sentence) <= known)
    heard = [said[piece.clip][0].split()[piece.first : piece.first + piece.count] for piece in pieces]
    assert not pieces or sum(heard, []) == sentence
    assert all(piece.first + piece.count <= said[piece.clip][1][0][1] for piece in pieces)


@pytest.fixture
def tokenizer(tmp_path: Path) -> tokenizers.Tokenizer:
    return text.train_tokenizer(iter([" ".join(WORDS)] * 4), tmp_path / "tokenizer.json", vocab_size=320)


def test_rows_say_sentences_of_the_texts_and_are_heard_where_the_windows_say(tmp_path: Path, tokenizer: tokenizers.Tokenizer) -> None:
    speech = make_speech(tmp_path / "store")
    sentences = ["The river saw Tom.", "A house by the river!", "Today, Tom saw a house.", "Nobody knew the way."]
    options = BatchOptions(shapes=((256, 6, 1.0),), compose=1.0, silence=0.0, mask_frames=0, augment=PLAIN)
    batches = Batches(speech, tokenizer, options, seed=3, sentences=sentences)
    batch, again = batches[0], Batches(speech, tokenizer, options, seed=3, sentences=sentences)
    _ = again[5]
    assert torch.equal(batch.frames, again[0].frames) and torch.equal(batch.labels, again[0].labels)
    moments, checked = heard(batch, speech), 0
    for b in range(6):
        asked = (batch.labels[b] != IGNORE).nonzero()[:, 0].tolist()
        ids = [int(batch.labels[b, t]) for t in asked]
        said = tokenizer.decode(ids[:-1]).strip()
        rest = said
        for sentence in sentences[:3]:
            rest = rest.replace(sentence, "")
        assert ids[-1] == text.END and said and not rest.strip(), said
        for t, token in zip(asked[:-1], ids[:-1], strict=True):
            low, high = batch.windows[b, t].tolist()
            clip, moment = round(moments[b * 256 + (low + high) // 2][0]), moments[b * 256 + (low + high) // 2][1]
            spelt = "".join(c for c in tokenizer.decode([token]).lower() if c.isalpha())
            near = letters_near(speech, clip, moment, 2 * len(spelt) + 2)
            assert spelt in near, f"{spelt!r} is said in clip {clip} at frame {moment:.1f}, where {near!r} is"
            checked += bool(spelt)
    assert checked > 60


def test_who_says_no_sentence_says_runs(tmp_path: Path, tokenizer: tokenizers.Tokenizer) -> None:
    options = BatchOptions(shapes=((128, 3, 1.0),), compose=1.0, silence=0.0, augment=PLAIN)
    batch = Batches(make_speech(tmp_path / "store"), tokenizer, options, seed=3, sentences=["Nobody knew."])[0]
    assert all(len(batch.labels[b][batch.labels[b] != IGNORE]) > 5 for b in range(3))


def test_without_sentences_it_is_refused(tmp_path: Path, tokenizer: tokenizers.Tokenizer) -> None:
    with pytest.raises(ConfigError, match=r"batches.compose 0\.5, but there are no sentences"):
        Batches(make_speech(tmp_path / "store"), tokenizer, BatchOptions(compose=0.5), seed=3)
