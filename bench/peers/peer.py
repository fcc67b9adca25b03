"""What a recogniser must offer to stand in the table beside ours, and how its lines become the events that the bench measures.

A peer hears one talk after the other, each with a fresh ``Peer``. It answers in lines: stretches of speech that follow one another.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from dragoman.model.backend import Floats
from dragoman.model.config import SAMPLE_RATE
from dragoman.stream.events import Clocks, Event, Final, Partial, SpeechStarted, Word


@dataclass(frozen=True, slots=True)
class Line:
    """A stretch of speech as it reads now. ``committed`` only grows; ``tail`` may change; ``over``: nothing more comes in this line."""

    start_s: float
    end_s: float
    committed: str
    tail: str = ""
    over: bool = False


class Peer(Protocol):
    """One talk. Everything that is done for it must happen within these two calls, for they are what is timed."""

    def push(self, samples: Floats) -> list[Line]:
        """The next samples, float32 [n] at 16 kHz → the open line whenever it has changed; a line that is over, then the next one."""
        ...

    def finish(self) -> list[Line]:
        """The audio has ended: the last line is over."""
        ...


@dataclass(frozen=True, slots=True)
class Entry:
    """A column of the table. ``open_peer`` makes what all talks share (a loaded model) and returns what makes a Peer for each."""

    name: str
    settings: str  # for people
    packages: tuple[str, ...]  # whose versions are recorded
    load: Callable[[], Callable[[], Peer]]


class PeerSession:
    """A peer as a session: ``push`` and ``finish`` return events."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._heard_samples = 0
        self._segment, self._open = 0, False
        self._committed, self._tail = "", ""
        self._words: list[Word] = []

    def push(self, samples: Floats) -> list[Event]:
        self._heard_samples += len(samples)
        return self._events(self._peer.push(samples))

    def finish(self) -> list[Event]:
        return self._events(self._peer.finish())

    def _events(self, lines: Sequence[Line]) -> list[Event]:
        return [event for line in lines for event in self._of_line(line)]

    def _of_line(self, line: Line) -> list[Event]:
        now_ms = self._heard_samples * 1000 // SAMPLE_RATE
        clocks = Clocks(now_ms, now_ms, now_ms)
        start_ms, end_ms = round(1000 * line.start_s), min(now_ms, round(1000 * line.end_s))
        events: list[Event] = []
        if not self._open:
            self._open, self._committed, self._tail, self._words = True, "", "", []
            events.append(SpeechStarted(clocks, self._segment, start_ms))
        assert line.committed.startswith(self._committed), f"committed text has changed: {self._committed!r} → {line.committed!r}"
        delta = line.committed[len(self._committed) :]
        # A peer does not say when its words were; only a reference alignment gives these words a lag.
        words = tuple(Word(text, end_ms, end_ms, 0.0) for text in re.findall(r"\s*\S+", delta))
        self._words += words
        if line.over:
            events.append(Final(clocks, self._segment, delta, line.committed, tuple(self._words), start_ms, end_ms, "silence"))
            self._open, self._segment = False, self._segment + 1
        elif delta or line.tail != self._tail:
            events.append(Partial(clocks, self._segment, delta, line.tail, words))
        self._committed, self._tail = line.committed, line.tail
        return events
