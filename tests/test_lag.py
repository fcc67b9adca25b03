"""The order of economy, and what counts as being behind."""

from __future__ import annotations

import numpy as np
import pytest
from dragoman.stream.events import Final, Partial, Translation, TranslationDraft
from dragoman.stream.lag import LEVELS, REFUSING, Economy, Gauge, Schedule
from hypothesis import given
from hypothesis import strategies as st

from .fakes import ScriptedBackend, speech
from .listeners import check_promises, finals, session, transcribe


def test_levels_rise_one_by_one_and_fall_one_by_one() -> None:
    gauge = Gauge()
    rising = [gauge.update(60_000, second) for second in (0, 0.5, 1, 2, 3, 4)]
    assert rising == [1, 1, 2, 3, 4, 4]
    falling = [gauge.update(0, second) for second in range(10, 40, 5)]
    assert falling == [4, 3, 2, 1, 0, 0]


def test_a_level_holds_between_its_two_marks() -> None:
    gauge = Gauge()
    assert gauge.update(1200, 0) == 1
    assert [gauge.update(700, second) for second in range(1, 60)] == [1] * 59  # below 1000, above 500


def test_one_calm_moment_is_not_enough() -> None:
    gauge = Gauge()
    gauge.update(1200, 0)
    for second in range(1, 60):
        assert gauge.update(100 if second % 4 else 900, second) == 1


def test_a_live_stream_that_is_heard_in_time_is_never_behind() -> None:
    schedule = Schedule()
    for step in range(100):
        received_ms = (step + 1) * 100
        assert schedule.behind_ms(received_ms, received_ms - 100, step * 0.1) == 0
        assert schedule.behind_ms(received_ms, received_ms, step * 0.1 + 0.05) == 0


def test_work_slower_than_real_time_is_behind_by_what_is_missing() -> None:
    schedule = Schedule()
    behind = [schedule.behind_ms(100 + second * 1000, second * 600, second) for second in range(11)]
    assert behind[0] == 0
    assert behind[10] == 4000  # ten seconds have passed, six were heard


@given(st.floats(1.0, 50.0), st.integers(1_000, 600_000))
def test_a_file_sent_at_once_is_not_behind_while_it_is_heard_faster_than_real_time(speed: float, length_ms: int) -> None:
    schedule = Schedule()
    for part in np.linspace(0, 1, 20):
        assert schedule.behind_ms(length_ms, int(np.ceil(part * length_ms)), part * length_ms / speed / 1000) == 0


def test_a_burst_after_silence_is_on_schedule() -> None:
    schedule = Schedule()
    schedule.behind_ms(1000, 1000, 0.0)
    assert schedule.behind_ms(11_000, 1000, 100.0) == 0
    assert schedule.behind_ms(11_000, 1000, 103.0) == 3000


def test_a_short_queue_does_not_hide_how_late_it_is() -> None:
    """The sender is held back at one second of audio; what it has meanwhile recorded waits with it."""
    schedule = Schedule()
    assert schedule.behind_ms(1000, 0, 0.0, held=True) == 0
    assert schedule.behind_ms(1500, 500, 10.0, held=True) == 9500
    assert schedule.behind_ms(1500, 500, 10.0) == 1000, "what has arrived is all there is"
    assert schedule.behind_ms(1500, 1500, 11.0) == 0


def test_recovery_is_as_slow_as_it_is_safe() -> None:
    """Half of a level's delay, and five seconds of it, before the level below: on the way down no level is passed over or begun again."""
    gauge = Gauge()
    for second in range(5):
        gauge.update(9000, second)
    assert gauge.level == REFUSING
    levels = list[int]()
    for tenth in range(400):  # catches up at twice real time: 10 s behind are gone after 10 s
        levels.append(gauge.update(max(0.0, 9000 - 100 * tenth), 5 + tenth / 10))
    changes = [(place / 10, level) for place, level in enumerate(levels[1:], 1) if level != levels[place - 1]]
    assert [level for _, level in changes] == [3, 2, 1, 0], "one by one"
    # below 4000 from 5.1 s on, and five seconds later each of the others too
    assert [at_s for at_s, _ in changes] == pytest.approx([10.1, 15.1, 20.1, 25.1], abs=0.11)


def test_a_level_that_does_not_hold_is_begun_again_only_after_it_was_ended() -> None:
    """Work that level 1 makes just fast enough: the level goes up and down slowly, and never further up."""
    gauge, behind_ms, levels = Gauge(), 0.0, list[int]()
    for tenth in range(3000):
        behind_ms = max(0.0, behind_ms + (20 if gauge.level == 0 else -20))  # a fifth slower, or faster, than real time
        levels.append(gauge.update(behind_ms, tenth / 10))
    changes = sum(one != other for one, other in zip(levels, levels[1:], strict=False))
    assert set(levels) == {0, 1} and changes <= 2 * 300 / 12.5 + 2, "a cycle takes 5 s up, 2.5 s down and 5 s of calm"


def test_each_level_costs_less_and_says_the_same_at_last() -> None:
    samples = speech("the quick brown fox jumps over a lazy dog. we met them again", silence_s=1.0)
    forks, texts = list[int](), list[list[str]]()
    for economy in LEVELS[:REFUSING]:
        stream = session(ScriptedBackend(), targets=("de",), translation="draft")
        stream.economy = economy
        events = transcribe(stream, samples)
        check_promises([event for event in events if not isinstance(event, TranslationDraft)])
        forks.append(stream.stats.hypotheses)
        texts.append(finals(events))
    assert forks == sorted(forks, reverse=True) and len(set(forks)) == len(forks), forks
    assert all(text == texts[0] for text in texts)


@pytest.mark.parametrize("level", range(len(LEVELS)))
def test_drafts_of_translations_are_saved_before_the_captions(level: int) -> None:
    """At the last level only new sessions are refused: those that there are keep their partials."""
    stream = session(ScriptedBackend(), targets=("de",), translation="draft")
    stream.economy = LEVELS[level]
    text = "the quick brown fox jumps over a lazy dog. we met them again on monday, and then all five trains left early."
    events = transcribe(stream, speech(text, silence_s=1.0))
    assert len([event for event in events if isinstance(event, Partial) and event.delta]) >= (2 if level < 3 else 1)
    assert any(isinstance(event, TranslationDraft) for event in events) == (level < 3)
    assert len([event for event in events if isinstance(event, Translation)]) == 1


def test_without_hypotheses_all_text_comes_with_its_final() -> None:
    stream = session(ScriptedBackend())
    stream.economy = Economy(hypothesis_every=0)
    events = transcribe(stream, speech("the quick brown fox", silence_s=1.0))
    assert not [event for event in events if isinstance(event, Partial)]
    assert [event.delta for event in events if isinstance(event, Final)] == ["the quick brown fox"]


def test_economy_may_change_in_the_middle_of_a_segment_that_is_full() -> None:
    """The rest of a segment that was cut at its length begins the next one, however large the blocks were."""
    words = "the quick brown fox jumps over a lazy dog. we met them again on monday, and then all five trains left early. nobody knew why"
    samples = speech(words, silence_s=1.0)
    stream = session(ScriptedBackend(), endpoint={"longest_s": 4.0})
    events = []
    for number, block in enumerate(np.array_split(samples, 40)):
        stream.economy = LEVELS[(number // 7) % len(LEVELS)]
        events += stream.push(block)
    events += stream.finish()
    check_promises(events)
    assert len(finals(events)) >= 3
    assert [event.start_ms for event in events if isinstance(event, Final)][1:] == [
        event.end_ms for event in events if isinstance(event, Final)
    ][:-1], "a cut loses no audio"
