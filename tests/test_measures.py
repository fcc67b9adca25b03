"""The bench's figures, exact on hand-made events."""

from __future__ import annotations

import numpy as np
import pytest
from dragoman.stream.events import Clocks, Event, Final, Partial, SpeechStarted, Word
from dragoman.stream.measures import commit_lags, delays, erasure, final_delays, final_works, first_partials, matched
from dragoman.stream.simulate import Turn
from dragoman.stream.talk import Clip, Talk, Utterance

pytest.importorskip("jiwer")
NOW = Clocks(0, 0, 0)


def turn(arrived_ms: float, out_ms: float, *events: Event) -> Turn:
    return Turn(events, arrived_ms, out_ms, 0.0, 0.0)


def words(text: str, *ends_ms: int) -> tuple[Word, ...]:
    parts = text.split()
    return tuple(
        Word(part if i == 0 else " " + part, end - 100, end, -0.1) for i, (part, end) in enumerate(zip(parts, ends_ms, strict=True))
    )


def started(segment: int, at_ms: int) -> SpeechStarted:
    return SpeechStarted(NOW, segment, at_ms)


def partial(delta: str, tail: str, new: tuple[Word, ...] = (), segment: int = 0) -> Partial:
    return Partial(NOW, segment, delta, tail, new)


def final(delta: str, text: str, every: tuple[Word, ...], start_ms: int = 0, end_ms: int = 0, segment: int = 0) -> Final:
    return Final(NOW, segment, delta, text, every, start_ms, end_ms, "silence")


def talk(*spoken: tuple[str, float, float], ends_ms: tuple[float, ...] | None = None) -> Talk:
    """Clips that begin with their speech: (text, onset, end)."""

    def read() -> np.ndarray:
        raise AssertionError("measures need no samples")

    clips = [Clip(text, text, 1.0, read, ends_ms) for text, _, _ in spoken]
    placed = [Utterance(clip, onset, onset, end) for clip, (_, onset, end) in zip(clips, spoken, strict=True)]
    return Talk(np.zeros(0, np.float32), tuple(placed))


ALL = words("we met them", 500, 900, 1400)
TURNS = [
    turn(640, 700, started(0, 0), partial("", "we meet")),
    turn(1280, 1400, partial("we", " met the", ALL[:1])),
    turn(1920, 2000, partial(" met", " them", ALL[1:2])),
    turn(2400, 2450, final(" them", "we met them", ALL, 0, 2200)),
]
TALK = talk(("we met them", 200.0, 1500.0))


def test_commit_lag_by_the_sessions_word_times() -> None:
    lags = commit_lags(TURNS, TALK)
    assert lags.aware_ms == [1400 - 500, 2000 - 900, 2450 - 1400]
    assert lags.unaware_ms == [1280 - 500, 1920 - 900, 2400 - 1400]
    assert lags.words == 3 and not lags.by_alignment


def test_commit_lag_by_alignment_takes_words_that_were_heard_right() -> None:
    heard = words("Oh, we mat them.", 100, 500, 900, 1400)
    turns = [turn(2400, 2450, started(0, 0), final("Oh, we mat them.", "Oh, we mat them.", heard, 0, 2200))]
    lags = commit_lags(turns, talk(("we met them", 200.0, 1500.0), ends_ms=(300.0, 800.0, 1200.0)))
    assert lags.aware_ms == [2450 - (200 + 300), 2450 - (200 + 1200)]  # alignment counts from where the clip begins
    assert lags.words == 4 and lags.by_alignment


def test_a_mark_that_follows_its_word_is_no_word() -> None:
    dot = Word(".", 1400, 1500, -0.1)
    turns = [*TURNS[:3], turn(2400, 2450, final(" them.", "we met them.", (*ALL, dot), 0, 2200))]
    assert commit_lags(turns, TALK).words == 3


def test_words_are_counted_anew_in_each_segment() -> None:
    second = [turn(4000, 4000, started(1, 3000), final("again", "again", words("again", 3600), 3000, 4000, 1))]
    assert commit_lags([*TURNS, *second], TALK).aware_ms[-1] == 400


def test_erasure_counts_what_was_shown_and_taken_back() -> None:
    """ "we meet" → "we met the" erases 1; → "we met them" erases 1; the final erases nothing: 2 for 3 words."""
    found = erasure(TURNS)
    assert (found.erased, found.final) == (2, 3) and found.normalised == pytest.approx(2 / 3)


def test_a_word_changed_in_the_middle_erases_what_follows_it() -> None:
    turns = [
        turn(0, 0, started(0, 0), partial("", "a b c d")),
        turn(0, 0, partial("", "a x c d")),
        turn(0, 0, final("a", "a", words("a", 1))),
    ]
    assert erasure(turns).erased == 3 + 3


def test_text_that_only_grows_erases_nothing_and_no_text_has_no_erasure() -> None:
    turns = [
        turn(0, 0, started(0, 0), partial("", "a")),
        turn(0, 0, partial("a", " b")),
        turn(0, 0, final(" b", "a b", words("a b", 1, 2))),
    ]
    assert erasure(turns).normalised == 0.0
    assert erasure([turn(0, 0, started(0, 0), final("", "", ()))]).normalised is None


def test_first_partial_counts_from_the_onset_of_speech() -> None:
    assert first_partials(TURNS, TALK) == [700 - 200]


def test_an_event_without_text_is_no_first_partial_but_a_final_with_text_is() -> None:
    turns = [turn(640, 700, started(0, 0), partial("", " ")), turn(2400, 2450, final("we", "we", words("we", 500), 0, 2200))]
    assert first_partials(turns, TALK) == [2450 - 200]
    assert first_partials([turn(640, 700, started(0, 0), final("", "", (), 0, 2200))], TALK) == []


def test_final_counts_from_the_end_of_speech() -> None:
    assert final_delays(TURNS, TALK) == [2450 - 1500]


def test_the_work_behind_a_final_counts_from_the_audio_that_ended_the_segment() -> None:
    closing = [each for each in TURNS if any(isinstance(event, Final) for event in each.events)]
    assert final_works(TURNS) == [each.out_ms - each.arrived_ms for each in closing] and len(closing) == 1


def test_utterances_that_share_a_segment() -> None:
    """The second begins while the segment is open: no first partial of its own; the first has no final of its own."""
    both = talk(("we met", 200.0, 1000.0), ("them", 1300.0, 1500.0))
    assert first_partials(TURNS, both) == [700 - 200]
    assert final_delays(TURNS, both) == [2450 - 1500]


def test_a_segment_cut_at_its_longest_is_no_end_of_speech() -> None:
    cut = final(" them", "we met them", ALL, 0, 1200)
    rest = [turn(2600, 2650, started(1, 1200), final("on", "on", words("on", 1450), 1200, 2100, 1))]
    turns = [*TURNS[:3], turn(1400, 1450, cut), *rest]
    assert final_delays(turns, TALK) == [2650 - 1500]
    assert first_partials(turns, TALK) == [700 - 200]


def test_speech_that_was_missed_is_not_measured() -> None:
    late = talk(("we met them", 200.0, 1500.0), ("again", 5000.0, 6000.0))
    assert len(first_partials(TURNS, late)) == len(final_delays(TURNS, late)) == 1
    assert first_partials([], TALK) == final_delays([], TALK) == []


def test_matching_leaves_case_and_marks_out() -> None:
    assert matched("The cat, sat down .".split(), "the bad cat sat .".split()) == [(0, 0), (1, 2), (2, 3), (4, 4)]
    assert matched([], ["a"]) == matched(["a"], []) == []


def test_percentiles() -> None:
    found = delays([float(n) for n in range(101)], 120)
    assert (found.count, found.asked, found.p50_ms, found.p95_ms) == (101, 120, 50.0, 95.0)
    assert delays([0.0, 100.0], 2).p95_ms == 95.0
    assert delays([], 3).p50_ms is None
