"""Cues that can be read: two lines of 42 characters, in order, no word lost."""

from __future__ import annotations

import pytest
from dragoman.stream.captions import (
    LINE_CHARACTERS,
    LINES,
    LONGEST_MS,
    SHORTEST_MS,
    Cue,
    CueTimes,
    cut_bilingual,
    cut_cues,
    spread,
    srt,
    stamp,
    vtt,
)
from dragoman.stream.events import Word
from hypothesis import given
from hypothesis import strategies as st


@st.composite
def spoken(draw: st.DrawFn) -> list[Word]:
    """Words with times that do not go back."""
    words, at_ms = list[Word](), draw(st.integers(0, 5000))
    for text, gap_ms, length_ms in draw(
        st.lists(st.tuples(st.text("abc.?", min_size=1, max_size=50), st.integers(0, 900), st.integers(0, 900)), max_size=40)
    ):
        words.append(Word(f" {text}", at_ms + gap_ms, at_ms + gap_ms + length_ms, -0.1))
        at_ms += gap_ms + length_ms
    return words


@given(spoken())
def test_cues_hold_every_word_and_fit_the_screen(words: list[Word]) -> None:
    cues = cut_cues(words)
    shown = "".join("".join(cue.lines) for cue in cues).replace(" ", "")
    assert shown == "".join(word.text for word in words).replace(" ", "")
    for cue in cues:
        assert 1 <= len(cue.lines) <= LINES and all(len(line) <= LINE_CHARACTERS for line in cue.lines)
        assert cue.start_ms <= cue.end_ms


@given(st.lists(spoken(), max_size=4))
def test_cue_times_never_overlap(segments: list[list[Word]]) -> None:
    times, shown, offset = CueTimes(), list[Cue](), 0
    for words in segments:
        moved = [Word(word.text, word.start_ms + offset, word.end_ms + offset, 0) for word in words]
        shown += times.push(cut_cues(moved))
        offset = moved[-1].end_ms if moved else offset
    shown += times.close()
    for cue, following in zip(shown, shown[1:], strict=False):
        assert cue.start_ms < cue.end_ms <= following.start_ms


def test_a_short_cue_stands_for_a_second_if_there_is_room() -> None:
    times = CueTimes()
    shown = [*times.push([Cue(0, 200, ("a",)), Cue(5000, 5100, ("b",)), Cue(5300, 5400, ("c",))]), *times.close()]
    assert [(cue.start_ms, cue.end_ms) for cue in shown] == [(0, SHORTEST_MS), (5000, 5300), (5300, 5300 + SHORTEST_MS)]


def test_cues_break_at_sentences_and_after_six_seconds() -> None:
    words = [
        Word(f" {text}", 500 * place, 500 * place + 500, 0)
        for place, text in enumerate("We met. They left early and nobody of us knew why. So cold.".split())
    ]
    assert [" ".join(cue.lines) for cue in cut_cues(words)] == ["We met. They left early and nobody of us knew why.", "So cold."]
    said = "“There he is,” somebody said to her. “They all saw Mr. Brown with Dr. Green.” So cold.".split()
    words = [Word(f" {text}", 300 * place, 300 * place + 300, 0) for place, text in enumerate(said)]
    assert [" ".join(cue.lines) for cue in cut_cues(words)] == [" ".join(said[:-2]), "So cold."], (
        "not behind Mr. or Dr., but behind the mark"
    )
    slow = [Word(" word", 2000 * place, 2000 * place + 2000, 0) for place in range(6)]
    assert all(cue.end_ms - cue.start_ms <= LONGEST_MS for cue in cut_cues(slow)) and len(cut_cues(slow)) == 2


def test_a_translation_shares_the_time_of_its_segment() -> None:
    words = spread("ein Wort", 1000, 2000)
    assert [(word.text, word.start_ms, word.end_ms) for word in words] == [(" ein", 1000, 1444), (" Wort", 1444, 2000)]
    assert spread("", 0, 100) == []


TRANSLATIONS = st.lists(st.lists(st.text("xyz.", min_size=1, max_size=30), min_size=1, max_size=60).map(" ".join), min_size=1, max_size=2)


@given(spoken().filter(len), TRANSLATIONS)
def test_bilingual_cues_hold_every_translated_word_in_order(words: list[Word], translations: list[str]) -> None:
    cues = cut_bilingual(words, translations, with_source=False)
    if len(translations) == 1:
        assert " ".join(line for cue in cues for line in cue.lines).split() == translations[0].split()
    assert sum(len(line.split()) for cue in cues for line in cue.lines) == sum(len(text.split()) for text in translations)
    for cue in cues:
        assert cue.start_ms <= cue.end_ms and all(len(line) <= LINE_CHARACTERS for line in cue.lines)
        assert len(cue.lines) <= LINES * len(translations)
    assert [cue.start_ms for cue in cues] == sorted(cue.start_ms for cue in cues)


@given(spoken().filter(len), st.lists(st.text("xyz", min_size=1, max_size=9), min_size=1, max_size=8).map(" ".join))
def test_a_short_translation_leaves_the_cues_of_the_source(words: list[Word], translation: str) -> None:
    cues, alone = cut_bilingual(words, [translation]), cut_cues(words)
    assert sum(len(word.text) for word in words) > 0
    if all(len(cue.lines) <= LINES for cue in alone) and len(translation) <= LINE_CHARACTERS and all(len(w.text) < 40 for w in words):
        assert [(cue.start_ms, cue.end_ms) for cue in cues] == [(cue.start_ms, cue.end_ms) for cue in alone]
        assert [cue.lines[: len(one.lines)] for cue, one in zip(cues, alone, strict=True)] == [cue.lines for cue in alone]


def test_a_long_translation_halves_the_cue_it_stands_in() -> None:
    words = [Word(f" {text}", 1000 * place, 1000 * place + 1000, 0) for place, text in enumerate("Yes we can".split())]
    (first, second) = cut_bilingual(words, ["Donau" * 7 + " " + "Dampf" * 7 + " " + "Schiff" * 6 + " fahrt"])
    assert (first.start_ms, first.end_ms, first.lines) == (0, 1000, ("Yes", "Donau" * 7, "Dampf" * 7))
    assert (second.start_ms, second.end_ms, second.lines) == (1000, 3000, ("we can", "Schiff" * 6 + " fahrt"))
    (alone, again) = cut_bilingual(words[:1], ["Donau" * 7 + " " + "Dampf" * 7 + " " + "Schiff" * 6])
    assert (alone.lines[0], again.lines[0]) == ("Yes", "Yes") and (alone.end_ms, again.start_ms) == (500, 500)


def test_formats() -> None:
    cue = Cue(3_723_004, 3_724_000, ("a < b &", "c"))
    assert srt(7, cue) == "7\n01:02:03,004 --> 01:02:04,000\na < b &\nc\n\n"
    assert vtt(cue) == "01:02:03.004 --> 01:02:04.000\na &lt; b &amp;\nc\n\n"
    assert stamp(360_000_000, ".") == "100:00:00.000"


def test_a_full_stop_that_was_committed_later_is_no_cue_of_its_own() -> None:
    words = [Word("We climbed", 0, 3000, 0), Word(" the stairs", 3000, 5900, 0), Word(".", 5900, 6100, 0), Word(" Then", 6100, 6500, 0)]
    lines = [" ".join(cue.lines) for cue in cut_cues(words)]
    assert " ".join(lines) == "We climbed the stairs. Then" and "." not in lines


@pytest.mark.parametrize("space", [" ", "\u00a0", "\u202f"])
def test_a_mark_that_stands_apart_begins_no_line(space: str) -> None:
    """As French sets them, whatever kind of space it is."""
    text = f"Penses-tu vraiment qu'il viendrait demain{space}? «{space}Oui{space}»{space}!"
    words = [Word(" yes", 0, 900, 0.0), Word(" he", 900, 1500, 0.0), Word(" will.", 1500, 4000, 0.0)]
    for cues in (cut_cues(spread(text, 0, 4000)), cut_bilingual(words, [text], with_source=False)):
        lines = [line for cue in cues for line in cue.lines]
        assert len(lines) >= 2 and not any(line.startswith(("?", "!", "»")) or line.endswith("«") for line in lines), lines
        assert "".join("".join(lines).split()) == "".join(text.split())
