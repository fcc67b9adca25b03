"""Events are plain data."""

from __future__ import annotations

import json

from dragoman.stream.events import Clocks, Drafts, Dropped, Ended, Final, Partial, SpeechEnded, SpeechStarted, Translation, Word, to_mapping

CLOCKS = Clocks(1000, 960, 640)
WORD = Word(" hé", 100, 200, -0.5)
ALL = [
    SpeechStarted(CLOCKS, 0, 100),
    Partial(CLOCKS, 0, " hé", " ho", (WORD,)),
    SpeechEnded(CLOCKS, 0, 900, "silence"),
    Final(CLOCKS, 0, " ho", " hé ho", (WORD,), 100, 900, "silence"),
    Translation(CLOCKS, 0, "de", "he", 100, 900),
    Dropped(CLOCKS, 900, 40),
    Ended(CLOCKS, 1000),
]


def test_every_event_is_json_with_its_type_and_clocks() -> None:
    for event in ALL:
        mapping = json.loads(json.dumps(to_mapping(event)))
        assert mapping["clocks"] == {"received_ms": 1000, "processed_ms": 960, "committed_ms": 640}
    names = [to_mapping(event)["type"] for event in ALL]
    assert names == ["speech_started", "partial", "speech_ended", "final", "translation", "dropped", "ended"]
    words = json.loads(json.dumps(to_mapping(ALL[1])))["words"]
    assert words == [{"text": " hé", "start_ms": 100, "end_ms": 200, "logprob": -0.5}]


def test_drafts_tell_of_cost_alone() -> None:
    ended = Ended(CLOCKS, 1000, (Drafts("transcript", "mtp", 8, 5),))
    assert ended == Ended(CLOCKS, 1000)
    told = json.loads(json.dumps(to_mapping(ended)))["drafts"]
    assert told == [{"task": "transcript", "source": "mtp", "offered_tokens": 8, "accepted_tokens": 5}]


def test_lag_is_audio_that_waits() -> None:
    assert CLOCKS.lag_ms == 40


def test_only_the_received_clock_depends_on_the_cutting() -> None:
    assert Clocks(1, 1, 1) == Clocks(2, 1, 1)
    assert Clocks(1, 1, 1) != Clocks(1, 1, 0) and Clocks(1, 1, 1) != Clocks(1, 0, 1)
