"""Passages to read aloud: prose as a voice says it, and nothing of what is measured."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from dragoman.model.errors import ConfigError
from dragoman.model.training.passages import LENGTHS, book_sentences, kept, main, passages
from hypothesis import given
from hypothesis import strategies as st

BOOK = """CHAPTER ONE

“Come!” said Mr. Hale; “it is late — too late.” He didn’t wait. It was 5 o'clock.

The boat will leave the harbour at noon, whatever the weather may be. They went home.
"""


def test_a_book_is_read_without_the_marks_that_nobody_says() -> None:
    said = list(book_sentences(BOOK))
    assert said[0] == "Come! said Mr. Hale, it is late, too late." and said[1] == "He didn't wait."
    assert kept(said, set()) == [said[0], said[1], said[3], "They went home."]  # no figures, no heading


def test_what_shares_five_words_with_a_dev_transcript_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = tmp_path / "manifest.tsv"
    manifest.write_text("split\ttext\ndev-clean\tTHEN THE BOAT WILL LEAVE THE PIER\ntrain\tTHEY WENT HOME\n")
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "one.txt").write_text(BOOK)
    (tmp_path / "single.txt").write_text("The boat will leave the harbour.\nA boat will leave the harbour.\n")
    main([*map(str, ("--manifest", manifest, "--sentences", tmp_path / "single.txt")), "--out", str(tmp_path / "a.txt")])
    assert (tmp_path / "a.txt").read_text() == "A boat will leave the harbour.\n"
    main([*map(str, ("--manifest", manifest, "--books", tmp_path / "books")), "--out", str(tmp_path / "b.txt")])
    words = (tmp_path / "b.txt").read_text()
    assert "They went home." in words and "boat" not in words
    assert "b.txt: 1\n" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="no sentence can be read"):
        main(["--manifest", str(manifest), "--sentences", str(manifest), "--out", str(tmp_path / "c.txt")])


@given(st.lists(st.integers(3, 34), max_size=60), st.integers(0, 9))
def test_passages_are_all_sentences_in_their_order(lengths: list[int], seed: int) -> None:
    sentences = [f"S{i} " + "word " * (length - 2) + "end." for i, length in enumerate(lengths)]
    made = passages(sentences, random.Random(seed))
    assert " ".join(made) == " ".join(sentences)
    assert all(len(passage.split()) <= max(34, max(LENGTHS) + 4) for passage in made)
