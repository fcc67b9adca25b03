"""The simulated clock: queueing as in front of a microphone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from dragoman.model.backend import Floats
from dragoman.stream.events import Ended, Final
from dragoman.stream.simulate import in_pieces, simulate

from .fakes import speech
from .listeners import finals, session, silence, transcribe


class WorkingSession:
    """Answers nothing; the n-th call takes ``works_s[n]`` on the clock that it brings along."""

    def __init__(self, works_s: list[float]) -> None:
        self.now_s = 100.0
        self._works_s: Iterator[float] = iter(works_s)

    def clock(self) -> float:
        return self.now_s

    def push(self, piece: Floats) -> list[object]:
        self.now_s += next(self._works_s)
        return []

    def finish(self) -> list[object]:
        return self.push(np.zeros(0, np.float32))


def run(works_s: list[float]) -> list[tuple[float, float]]:
    """(arrived, out) in ms of pieces of 100 ms and of the end, for the work that each takes."""
    fake = WorkingSession(works_s)
    turns = simulate(fake, in_pieces(silence(0.1 * (len(works_s) - 1)), 100), clock=fake.clock, cpu_clock=fake.clock)  # type: ignore[arg-type]
    return [(turn.arrived_ms, round(turn.out_ms, 6)) for turn in turns]


def test_quick_work_begins_when_its_audio_has_arrived() -> None:
    assert run([0.03, 0.05, 0.0, 0.01]) == [(100, 130), (200, 250), (300, 300), (300, 310)]


def test_work_waits_for_the_work_before_it_and_catches_up_in_a_pause() -> None:
    assert run([0.25, 0.05, 0.05, 0.0, 0.0]) == [(100, 350), (200, 400), (300, 450), (400, 450), (400, 450)]


def test_work_slower_than_real_time_falls_further_and_further_behind() -> None:
    behind_ms = [out_ms - arrived_ms for arrived_ms, out_ms in run([0.13] * 20 + [0.0])]
    assert behind_ms[:20] == pytest.approx([130 + 30 * n for n in range(20)])


def test_events_and_cost_are_those_of_the_session() -> None:
    samples = speech("the quick brown fox", silence_s=1.0)
    turns = list(simulate(session(), in_pieces(samples)))
    events = [event for turn in turns for event in turn.events]
    assert events == transcribe(session(), samples)
    assert finals(events) == ["the quick brown fox"] and isinstance(events[-1], Ended)
    out = next(turn for turn in turns if any(isinstance(event, Final) for event in turn.events))
    assert out.out_ms > out.arrived_ms > 1600 and out.compute_s > 0
    assert sum(turn.cpu_s for turn in turns) > 0
    assert all(one.out_ms <= other.out_ms for one, other in zip(turns, turns[1:], strict=False))


def test_pieces_are_all_of_the_samples() -> None:
    samples = np.arange(1500, dtype=np.float32)
    pieces = list(in_pieces(samples, 40))
    assert [len(piece) for piece in pieces] == [640, 640, 220]
    assert np.array_equal(np.concatenate(pieces), samples)
