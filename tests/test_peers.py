"""bench/peers: lines of other recognisers become the events that the bench measures. The recognisers themselves are not needed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dragoman.stream.events import Final, Partial, SpeechStarted
from dragoman.stream.measures import Erasure, erasure
from dragoman.stream.simulate import Turn

from .listeners import ScriptedVad, check_promises

FOLDER = Path(__file__).parents[1] / "bench" / "peers"
FRAME = np.zeros(640, np.float32)


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports a module of that folder, as ``python bench/peers/run.py`` does."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield import_module
    for name in [path.stem for path in FOLDER.glob("*.py")]:
        sys.modules.pop(name, None)


class Scripted:
    """Says its lines push by push."""

    def __init__(self, *lines: Any) -> None:
        self._lines = [list(part) for part in lines]

    def push(self, samples: Any) -> list[Any]:
        return self._lines.pop(0)

    def finish(self) -> list[Any]:
        return self._lines.pop(0)


def test_lines_become_events(peers: Any) -> None:
    peer = peers("peer")
    line = peer.Line
    session = peer.PeerSession(
        Scripted(
            [line(0.0, 0.04, "", "the quack")],
            [line(0.0, 0.08, "the", " quick brown")],
            [line(0.0, 0.08, "the", " quick brown")],  # nothing new
            [line(0.0, 0.1, "the quick fox", over=True), line(0.12, 0.16, "", "we")],
            [line(0.12, 0.2, "we met", over=True)],
        )
    )
    events = [session.push(FRAME) for _ in range(4)] + [session.finish()]
    check_promises([event for part in events for event in part])
    assert [[type(event) for event in part] for part in events] == [
        [SpeechStarted, Partial],
        [Partial],
        [],
        [Final, SpeechStarted, Partial],
        [Final],
    ]
    finals = [event for part in events for event in part if isinstance(event, Final)]
    assert [final.text for final in finals] == ["the quick fox", "we met"]
    assert [word.text for word in finals[0].words] == ["the", " quick", " fox"]
    # quack, then brown were taken back
    assert erasure([Turn(tuple(part), 0, 0, 0, 0) for part in events]) == Erasure(erased=2, final=5)


def test_committed_text_that_changes_is_a_fault_of_the_adapter(peers: Any) -> None:
    peer = peers("peer")
    session = peer.PeerSession(Scripted([peer.Line(0, 0, "the")], [peer.Line(0, 0, "a")]))
    session.push(FRAME)
    with pytest.raises(AssertionError, match="committed text has changed: 'the' → 'a'"):
        session.push(FRAME)


def test_what_two_decodings_agree_on_is_committed(peers: Any) -> None:
    said = iter(["the quack", "the quick brown", "the quick brown", "the quick brown", "no quick brown dog"])
    heard: list[int] = []

    def transcribe(samples: Any) -> str:
        heard.append(len(samples) // 640)
        return next(said)

    agreement = peers("agreement")
    local = agreement.LocalAgreement(transcribe, every_s=0.4, vad=ScriptedVad([False] * 5 + [True] * 30))
    lines = [line for _ in range(70) for line in local.push(FRAME)] + local.finish()
    assert [(line.committed, line.tail, line.over) for line in lines] == [
        ("", "the quack", False),
        ("the", " quick brown", False),
        ("the quick brown", "", False),
        ("the quick brown", "", False),
        # What was committed stays, though the last decoding begins otherwise.
        ("the quick brown dog", "", True),
    ]
    assert heard[:4] == [10, 20, 30, 40] and heard[4] > 40, "all of the open segment, every 400 ms"
    assert local.finish() == []


def test_speech_that_the_end_of_the_audio_cuts_off_is_told(peers: Any) -> None:
    agreement = peers("agreement")
    local = agreement.LocalAgreement(lambda samples: "the end", every_s=10.0, vad=ScriptedVad([True] * 30))
    assert [line for _ in range(20) for line in local.push(FRAME)] == []
    (line,) = local.finish()
    assert (line.committed, line.over, line.start_s) == ("the end", True, 0.0)


def test_every_entry_of_the_table_can_be_made_without_its_packages(peers: Any) -> None:
    """What a peer needs is imported when it is loaded, so that one that is missing leaves the others."""
    entries = [peers(path.stem).ENTRY for path in sorted(FOLDER.glob("with_*.py"))]
    assert len({entry.name for entry in entries}) == len(entries) == 3
