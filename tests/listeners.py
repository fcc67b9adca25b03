"""Stand-ins of the stream's side: a detector for scripted speech, sessions on the scripted backend, and what every stream must obey."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from dragoman.model.backend import Floats
from dragoman.model.load import Loaded
from dragoman.stream.config import SessionOptions
from dragoman.stream.events import Event, Final, Partial, SpeechEnded, SpeechStarted, Translation, Word
from dragoman.stream.session import Session

from .fakes import ScriptedBackend

FRAME_MS = 40


class LoudnessVad:
    """Speech is what is louder than the scripted backend's silence."""

    def is_speech(self, frame: Floats) -> bool:
        return float(np.abs(frame).max()) > 0.05


class ScriptedVad:
    """Decisions from a list, frame by frame; silence after its end."""

    def __init__(self, decisions: Iterable[bool]) -> None:
        self._decisions = iter(decisions)

    def is_speech(self, frame: Floats) -> bool:
        return next(self._decisions, False)


def loaded(backend: ScriptedBackend) -> Loaded:
    return Loaded(backend, backend.tokenizer, backend.prompts)  # type: ignore[arg-type]


def session(backend: ScriptedBackend | None = None, *, rate: int = 16_000, **options: object) -> Session:
    """A session on a scripted backend that hears ``fakes.speech``. No time passes, so that costs are the same each time."""
    chosen = SessionOptions.model_validate(options)
    return Session(loaded(backend or ScriptedBackend()), chosen, sample_rate=rate, vad=LoudnessVad(), clock=lambda: 0.0)


def silence(duration_s: float) -> Floats:
    return np.zeros(round(duration_s * 16_000), np.float32)


def transcribe(stream: Session, samples: Floats, cuts: Sequence[int] = ()) -> list[Event]:
    """Push the samples, cut at ``cuts``, and finish."""
    events: list[Event] = []
    for piece in np.split(samples, sorted({cut for cut in cuts if 0 < cut < len(samples)})):
        if len(piece):
            events += stream.push(piece)
    return events + stream.finish()


def finals(events: Iterable[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Final) and event.text]


def check_promises(events: Sequence[Event]) -> None:
    """Committed text never changes, nothing is told twice, times never go back, clocks are in order."""
    clocks = [event.clocks for event in events]
    for clock in clocks:
        assert 0 <= clock.committed_ms <= clock.processed_ms <= clock.received_ms
    for before, after in zip(clocks, clocks[1:], strict=False):
        assert before.received_ms <= after.received_ms
        assert before.processed_ms <= after.processed_ms
        assert before.committed_ms <= after.committed_ms
    said: dict[int, str] = {}
    words: dict[int, list[Word]] = {}
    closed: set[int] = set()
    for event in events:
        if isinstance(event, SpeechStarted | Partial | SpeechEnded | Final):
            assert event.segment not in closed, "a segment goes on after its Final"
        if isinstance(event, SpeechStarted):
            assert event.segment == len(said), "segments are numbered in order"
            said[event.segment], words[event.segment] = "", []
        elif isinstance(event, Partial):
            said[event.segment] += event.delta
            words[event.segment] += event.words
            assert "".join(word.text for word in event.words) == event.delta
        elif isinstance(event, Final):
            said[event.segment] += event.delta
            assert event.text == said[event.segment] == "".join(word.text for word in event.words)
            told = words[event.segment]
            assert list(event.words[: len(told)]) == told, "words that were told have changed"
            assert event.start_ms <= event.end_ms
            words[event.segment] = list(event.words)
            closed.add(event.segment)
        elif isinstance(event, Translation):
            assert event.segment in closed
    assert closed == set(said), "a segment without its Final"
    times = [time for segment in sorted(words) for word in words[segment] for time in (word.start_ms, word.end_ms)]
    assert times == sorted(times)
