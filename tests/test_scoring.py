"""Word error rate: exact counts, and what the normaliser makes equal."""

from __future__ import annotations

import pytest

pytest.importorskip("jiwer")
pytest.importorskip("whisper_normalizer")

from dragoman.model.scoring import WordErrors, normalise, word_errors  # noqa: E402


def test_counts_are_summed_over_pairs() -> None:
    found = word_errors(["the cat sat on a mat", "yes"], ["the bat sat a mat", "oh yes"])
    assert found == WordErrors(words=7, substitutions=1, deletions=1, insertions=1)
    assert found.rate == pytest.approx(3 / 7) and str(found) == "WER 42.9 % (S 1, D 1, I 1 of 7 words)"


def test_case_marks_spelling_and_numbers_are_no_errors() -> None:
    assert normalise("The colour, of  twenty-one!") == "the color of 21"
    assert word_errors(["It's COLOUR number twenty one."], ["it is color number 21"]).rate == 0.0


def test_nothing_said_is_no_error_and_nothing_heard_is_all_deleted() -> None:
    assert word_errors(["[laughs]", "?!"], ["you", "thank you"]) == WordErrors(0, 0, 0, 0) and word_errors([], []).rate == 0.0
    assert word_errors(["two words"], [""]) == WordErrors(2, 0, 2, 0)
