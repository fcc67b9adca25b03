"""Which drafts pay: what was offered and confirmed for each task and source, and a switch for each that stops drafts which cost more
than they save. In fp32 a draft never changes what is said; in int8 it may where two tokens are nearly tied, for a token alone is rounded
otherwise than among others (bench/NOTES.md).

A forward of n tokens is taken to cost f + r n seconds: f for reading the weights, r for one more row. Then

    a draft of k tokens   costs   r k + d           more rows, and d seconds of the drafter
    a of them confirmed   save    a (f + r)         as many forwards of one token

f and r are fitted to measured forwards. In a batch each stream bears its share of f, so drafts save less there, and the switch knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..model.work import Append, Draft, Work
from .stats import DraftCounts, Source, Turn

_DECAY = 0.98  # of a measurement's weight with each new one
_OUTLIER = 4.0  # times what was expected: the machine was at something else
_MARGIN = 1.25  # hysteresis: a switch moves only where one side is dearer by this factor
_LEAST_FORKS = 16  # that a switch sees before it moves
_FIRST_REST_FORKS, _LONGEST_REST_FORKS = 64, 1024  # without the drafter, before it is tried again


class ForwardCost:
    """f and r by least squares, older measurements forgotten."""

    def __init__(self) -> None:
        self._weight = self._n = self._s = self._nn = self._ns = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        expected = self.of(tokens)
        if expected:
            seconds = min(seconds, _OUTLIER * expected)
        for name, value in (("_weight", 1.0), ("_n", tokens), ("_s", seconds), ("_nn", tokens * tokens), ("_ns", tokens * seconds)):
            setattr(self, name, getattr(self, name) * _DECAY + value)

    def fit(self) -> tuple[float, float] | None:
        """(f, r) in seconds, neither negative; None as long as all forwards were alike."""
        spread = self._weight * self._nn - self._n**2
        if self._weight < 4 or spread <= 1e-6 * self._nn:
            return None
        slope = (self._weight * self._ns - self._n * self._s) / spread
        per_row = min(max(0.0, slope), self._s / self._n)
        return (self._s - per_row * self._n) / self._weight, per_row

    def of(self, tokens: int) -> float | None:
        """Seconds that a forward of so many tokens should take."""
        fitted = self.fit()
        return None if fitted is None else fitted[0] + fitted[1] * tokens


@dataclass(slots=True)
class Switch:
    """On while drafts pay. ``note`` tells what one fork brought; a drafter that is off cannot be noted and ``rest``s instead."""

    on: bool = True
    _saved_s: float = 0.0
    _spent_s: float = 0.0
    _forks: int = 0  # noted since it last moved
    _rested: int = 0
    _rest_forks: int = _FIRST_REST_FORKS

    def note(self, saved_s: float, spent_s: float) -> bool:
        """Returns whether it has just gone off."""
        self._saved_s = self._saved_s * _DECAY + saved_s
        self._spent_s = self._spent_s * _DECAY + spent_s
        self._forks += 1
        if self._forks < _LEAST_FORKS:
            return False
        if self.on and self._spent_s > _MARGIN * self._saved_s:
            self._move(on=False)
            return True
        if self._saved_s > _MARGIN * self._spent_s:
            self._rest_forks = _FIRST_REST_FORKS
            if not self.on:
                self._move(on=True)
        return False

    def rest(self) -> None:
        """One fork without the drafter. After some it is tried again; each time that fails, the next rest is twice as long."""
        self._rested += 1
        if self._rested >= self._rest_forks:
            self._rest_forks = min(2 * self._rest_forks, _LONGEST_REST_FORKS)
            self._move(on=True)

    def _move(self, *, on: bool) -> None:
        self.on, self._forks, self._rested = on, 0, 0
        self._saved_s = self._spent_s = 0.0


class Drafting:
    """Drafts of one session."""

    def __init__(self, counts: Mapping[tuple[Turn, Source], DraftCounts]) -> None:
        self.cost = ForwardCost()
        self._counts = counts
        self._switches = {place: Switch() for place in counts}
        self._drafter_s = 0.0  # since the last fork was noted

    def measured(self, work: Work, seconds: float) -> None:
        """What a work took; of a batch, its share."""
        if isinstance(work, Append):
            self.cost.add(len(work.ids), seconds)
        elif isinstance(work, Draft):
            self._drafter_s += seconds

    def pays(self, task: Turn, source: Source) -> bool:
        """Whether the next fork should have such drafts."""
        return self._switches[task, source].on

    def note_hypothesis(self, task: Turn, tokens: int, agreed: int) -> None:
        """The fork had an old hypothesis of so many tokens, offered as a draft or not, and ``agreed`` of them were said again."""
        place: tuple[Turn, Source] = (task, "hypothesis")
        if self._switches[place].on:
            self._count(place, tokens, agreed)
        if tokens:
            self._judge(place, tokens, agreed, 0.0)

    def note_mtp(self, task: Turn, tokens: int, accepted: int) -> None:
        """The fork's guesses of the drafter."""
        place: tuple[Turn, Source] = (task, "mtp")
        drafter_s, self._drafter_s = self._drafter_s, 0.0
        self._count(place, tokens, accepted)
        if tokens or drafter_s:
            self._judge(place, tokens, accepted, drafter_s)
        elif not self._switches[place].on:
            self._switches[place].rest()

    def _count(self, place: tuple[Turn, Source], offered: int, accepted: int) -> None:
        self._counts[place].offered_tokens += offered
        self._counts[place].accepted_tokens += accepted

    def _judge(self, place: tuple[Turn, Source], offered: int, accepted: int, drafter_s: float) -> None:
        fitted = self.cost.fit()
        if fitted is None:
            return
        fixed_s, per_row_s = fitted
        if self._switches[place].note(accepted * (fixed_s + per_row_s), offered * per_row_s + drafter_s):
            self._counts[place].stopped += 1
