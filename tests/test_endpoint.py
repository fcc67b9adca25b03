"""Where segments begin and end."""

from __future__ import annotations

from dragoman.stream.endpoint import Endpointer, EndpointFrames, Signal
from hypothesis import given
from hypothesis import strategies as st

SMALL = EndpointFrames(
    start_frames=2,
    start_window_frames=4,
    pre_roll_frames=3,
    lead_in_frames=5,
    hangover_frames=6,
    sentence_hangover_frames=4,
    short_hangover_frames=2,
    longest_frames=40,
)


def segments(decisions: list[bool], settings: EndpointFrames = SMALL) -> list[tuple[int, int, str]]:
    """(first frame, one behind the last, reason) of each segment; one that is still open ends with reason ""."""
    endpointer, found = Endpointer(settings), list[tuple[int, int, str]]()
    for is_speech in decisions:
        if endpointer.push(is_speech) is Signal.END:
            found.append((endpointer.first_frame, endpointer.frame, endpointer.reason))
    if endpointer.speaking:
        found.append((endpointer.first_frame, endpointer.frame, ""))
    return found


def test_a_segment_begins_with_its_pre_roll_and_ends_after_the_hangover() -> None:
    decisions = [False] * 10 + [True] * 8 + [False] * 20
    assert segments(decisions) == [(7, 24, "silence")]


def test_a_click_is_no_speech() -> None:
    assert segments([False] * 5 + [True] + [False] * 3 + [True] + [False] * 5) == []


def test_short_pauses_do_not_end_a_segment() -> None:
    assert segments([True] * 4 + [False] * 5 + [True] * 4) == [(0, 13, "")]


def test_a_sentence_end_shortens_the_hangover_until_speech_goes_on() -> None:
    endpointer = Endpointer(SMALL)
    for is_speech in [True] * 5 + [False]:
        endpointer.push(is_speech)
    endpointer.sentence_ended()
    assert [endpointer.push(False) for _ in range(3)] == [Signal.SPEECH, Signal.SPEECH, Signal.END]
    assert endpointer.reason == "sentence"

    endpointer = Endpointer(SMALL)
    for is_speech in [True] * 5:
        endpointer.push(is_speech)
    endpointer.sentence_ended()
    endpointer.push(True)
    assert [endpointer.push(False) for _ in range(6)][-2:] == [Signal.SPEECH, Signal.END]
    assert endpointer.reason == "silence"


def test_a_full_segment_is_cut_in_the_first_short_pause() -> None:
    pause = [False] * 3
    assert segments([True] * 36 + pause + [True] * 4)[0] == (0, 39, "silence")
    assert segments([True] * 10 + pause + [True] * 4)[0][2] == ""


def test_speech_without_a_pause_is_cut_at_the_longest_segment() -> None:
    assert segments([True] * 100) == [(0, 40, "length"), (40, 80, "length"), (80, 100, "")]


def test_frames_that_were_cut_off_belong_to_the_next_segment() -> None:
    endpointer = Endpointer(SMALL)
    signals = [endpointer.push(True) for _ in range(40)]
    assert signals[-1] is Signal.END and endpointer.reason == "length"
    endpointer.resume(5)
    assert endpointer.speaking and (endpointer.first_frame, endpointer.segment_frames) == (35, 5)
    assert endpointer.push(True) is Signal.SPEECH


def test_silence_that_was_cut_off_begins_no_segment() -> None:
    endpointer = Endpointer(SMALL)
    for is_speech in [True] * 37 + [False, False]:
        endpointer.push(is_speech)
    endpointer.close("length")
    endpointer.resume(2)
    assert not endpointer.speaking
    assert [endpointer.push(True), endpointer.push(True)] == [Signal.SILENCE, Signal.START]
    assert endpointer.first_frame == 37, "silence after a cut may still be pre-roll"


@given(st.lists(st.booleans(), max_size=300), st.sets(st.integers(0, 299), max_size=4))
def test_the_lead_in_holds_no_word_of_an_earlier_segment(decisions: list[bool], closed: set[int]) -> None:
    endpointer, spoken = Endpointer(SMALL), -10
    for frame, is_speech in enumerate(decisions):
        signal = endpointer.push(is_speech)
        if signal is Signal.START:
            first = endpointer.first_frame - endpointer.lead_in_frames
            assert 0 <= endpointer.lead_in_frames <= 5 and first >= 0
            assert endpointer.lead_in_frames == 0 or first > spoken + 3, "three frames for the breath of its last word"
        if endpointer.speaking and frame in closed:
            endpointer.close("commit")
            signal = Signal.END
        if signal is Signal.END:
            spoken = endpointer.last_speech_frame


@given(st.lists(st.booleans(), max_size=300))
def test_segments_are_in_order_bounded_and_hold_the_speech(decisions: list[bool]) -> None:
    found, last = segments(decisions), 0
    for first, end, _ in found:
        assert last <= first < end <= len(decisions)
        assert end - first <= SMALL.longest_frames
        assert any(decisions[first:end])
        last = end
    inside = {frame for first, end, _ in found for frame in range(first, end)}
    run = 0
    for frame, is_speech in enumerate(decisions):
        run = run + 1 if is_speech else 0
        assert run < 3 or frame in inside, "three speech frames in a row belong to a segment"


@given(st.lists(st.booleans(), max_size=120), st.lists(st.booleans(), min_size=20, max_size=20), st.booleans())
def test_of_frames_that_are_sure_the_decision_does_not_matter(before: list[bool], then: list[bool], sentence: bool) -> None:
    endpointer = Endpointer(SMALL)
    for is_speech in before:
        endpointer.push(is_speech)
    if sentence:
        endpointer.sentence_ended()
    sure, most = endpointer.sure_frames(20), endpointer.sure_frames(3)
    assert most == min(sure, 3) and endpointer.sure_frames(-1) == 0
    assert sure == 0 or endpointer.speaking
    assert [endpointer.push(is_speech) for is_speech in then[:sure]] == [Signal.SPEECH] * sure


def test_a_frame_that_may_end_a_segment_is_not_sure() -> None:
    endpointer = Endpointer(SMALL)
    for is_speech in [True] * 5 + [False] * 2:
        endpointer.push(is_speech)
    assert endpointer.sure_frames(20) == SMALL.hangover_frames - 2 - 1
