"""The lag contract: what is saved, in which order, when a machine cannot keep up. Pure; the clock is the caller's.

    0 as configured → 1 larger blocks → 2 fewer hypotheses → 3 no drafts of translations, still fewer hypotheses → 4 no new sessions

Audio is never dropped, and what is committed at last is the same kind of text at every level: only how soon it shows differs.
"""

from __future__ import annotations

from dataclasses import dataclass

LARGEST_FACTOR = 2  # by which a block may grow
_LATE_MS = 5000  # a client whose text comes so late has to know


@dataclass(frozen=True, slots=True)
class Economy:
    """What a session saves at one level."""

    block_factor: int = 1  # times the configured block
    hypothesis_every: int = 1  # blocks; 0: none before the segment ends
    translation_drafts: bool = True  # of unfinished segments, where they were asked for


LEVELS: tuple[Economy, ...] = (
    Economy(),
    Economy(block_factor=LARGEST_FACTOR),
    Economy(block_factor=LARGEST_FACTOR, hypothesis_every=2),
    Economy(block_factor=LARGEST_FACTOR, hypothesis_every=3, translation_drafts=False),
    Economy(block_factor=LARGEST_FACTOR, hypothesis_every=3, translation_drafts=False),
)
REFUSING = len(LEVELS) - 1


class Gauge:
    """Chooses the level from how far the worst session is behind schedule. One step at a time, so that each has time to act."""

    def __init__(self, rise_ms: tuple[int, ...] = (1000, 2000, 4000, 8000), *, settle_s: float = 1.0, calm_s: float = 5.0) -> None:
        """``rise_ms[n]``: delay at which level n + 1 begins. A level ends when the delay has been below half of that for ``calm_s``.

        The first is about the lag with which words are committed anyway (docs/bench.md): captions come twice as late, and nothing less
        is worth larger blocks. Several streams whose blocks fall together are behind for a moment, but by tenths of a second.
        """
        assert len(rise_ms) == REFUSING and list(rise_ms) == sorted(rise_ms), "one rising threshold for each level above 0"
        self.level = 0
        self._rise_ms, self._settle_s, self._calm_s = rise_ms, settle_s, calm_s
        self._stepped_s = float("-inf")  # when the level last changed
        self._calm_since_s: float | None = None

    def update(self, behind_ms: float, now_s: float) -> int:
        """``behind_ms``: of the session that waits longest. Returns the level."""
        if self.level < REFUSING and behind_ms >= self._rise_ms[self.level]:
            self._calm_since_s = None
            if now_s - self._stepped_s >= self._settle_s:
                self.level, self._stepped_s = self.level + 1, now_s
        elif self.level and behind_ms < self._rise_ms[self.level - 1] / 2:
            if self._calm_since_s is None:
                self._calm_since_s = now_s
            elif now_s - self._calm_since_s >= self._calm_s:
                self.level, self._stepped_s, self._calm_since_s = self.level - 1, now_s, now_s
        else:
            self._calm_since_s = None
        return self.level


class Schedule:
    """How far one stream is behind schedule: audio that waits although it should have been heard by now.

    Only work slower than real time counts. A burst, as after a stall of the network, or a file sent as fast as it goes, waits as well,
    but it is on schedule as long as it is heard at the pace of the clock.
    """

    def __init__(self) -> None:
        self._began: tuple[float, int] | None = None  # when audio began to wait (s), and how much had been heard by then (ms)

    def behind_ms(self, received_ms: int, taken_ms: int, now_s: float, *, held: bool = False) -> float:
        """``received_ms``: has arrived; ``taken_ms``: of that, is heard. To be called whenever either changes. ``held``: the queue is
        full and the sender has to wait, so that more is due than has arrived; else a short queue would hide how late it is."""
        if received_ms <= taken_ms:
            self._began = None
            return 0.0
        if self._began is None:
            self._began = (now_s, taken_ms)
        began_s, before_ms = self._began
        due_ms = (now_s - began_s) * 1000.0 + before_ms
        return max(0.0, (due_ms if held else min(float(received_ms), due_ms)) - taken_ms)

    def excuse(self) -> None:
        """What waits at present waits for the client, not for the machine."""
        self._began = None


class LagSigns:
    """When a client is told how late its text comes: more than 5 s, whenever that has doubled, and once it has caught up.

    Audio of clients that are read on (``live.Stream.reads_on``) may wait for minutes, and their protocols have no word for that.
    """

    def __init__(self) -> None:
        self._next_ms = _LATE_MS

    def due(self, behind_ms: float, lag_ms: int) -> int | None:
        """How far a stream is behind, in ms, if its client is to be told so now. ``behind_ms``: behind schedule; ``lag_ms``: heard less
        than was received, which is all that can be late of a sender that is read on."""
        late_ms = min(round(behind_ms), lag_ms)
        if late_ms > self._next_ms:
            while late_ms > self._next_ms:
                self._next_ms *= 2
        elif self._next_ms > _LATE_MS and late_ms < _LATE_MS / 2:
            self._next_ms = _LATE_MS
        else:
            return None
        return late_ms
