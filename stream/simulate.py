"""A session on a simulated clock: audio arrives in real time, work takes what it really took, and nobody has to wait.

    the audio of piece k is there       a(k)                         when its last sample has been spoken
    work on it begins                   b(k) = max(a(k), e(k - 1))   and the work on the piece before is done
    its events are out                  e(k) = b(k) + c(k)           c(k): measured on this machine, now

That is a queue with one server (Lindley's recursion): work that is slower than real time piles up, and every later event is as late as
it would be in front of a microphone. Hence an hour of talk is measured in as long as its work takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from time import perf_counter, process_time

from ..model.backend import Floats
from ..model.config import SAMPLE_RATE
from .events import Event
from .session import Session

PIECE_MS = 40  # a microphone or browser sends 10 to 100 ms at once


@dataclass(frozen=True, slots=True)
class Turn:
    """One piece of audio and what it gave rise to. Times in ms since the audio began."""

    events: tuple[Event, ...]
    arrived_ms: float
    out_ms: float
    compute_s: float  # by the clock on the wall
    cpu_s: float  # of all cores

    @property
    def behind_ms(self) -> float:
        """From when the audio was there to when the work on it was done."""
        return self.out_ms - self.arrived_ms


def simulate(
    session: Session,
    pieces: Iterable[Floats],
    *,
    clock: Callable[[], float] = perf_counter,
    cpu_clock: Callable[[], float] = process_time,
) -> Iterator[Turn]:
    """Push float32 pieces at 16 kHz, then finish, which is one more turn. Raises what the session raises."""
    samples, free_ms = 0, 0.0
    for piece in chain(pieces, (None,)):
        began_s, began_cpu_s = clock(), cpu_clock()
        events = session.finish() if piece is None else session.push(piece)
        cpu_s, compute_s = cpu_clock() - began_cpu_s, clock() - began_s
        samples += 0 if piece is None else len(piece)
        arrived_ms = samples * 1000 / SAMPLE_RATE
        free_ms = max(arrived_ms, free_ms) + 1000 * compute_s
        yield Turn(tuple(events), arrived_ms, free_ms, compute_s, cpu_s)


def in_pieces(samples: Floats, piece_ms: int = PIECE_MS) -> Iterator[Floats]:
    """float32 [n] → pieces of ``piece_ms``, the last one perhaps shorter."""
    size = SAMPLE_RATE * piece_ms // 1000
    for start in range(0, len(samples), size):
        yield samples[start : start + size]
