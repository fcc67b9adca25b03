"""Numbers of one session: what it heard, what it cost, where the guards stepped in."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal, get_args

from .guards import GuardCounts

Turn = Literal["transcript", "translation", "formatted"]
Source = Literal["hypothesis", "mtp"]  # the previous hypothesis of the same text; the drafter


@dataclass(slots=True)
class DraftCounts:
    """Drafts from one source for one task."""

    offered_tokens: int = 0
    accepted_tokens: int = 0  # of those, confirmed by the model
    stopped: int = 0  # how often they were switched off because they cost more than they saved


def _no_drafts() -> dict[tuple[Turn, Source], DraftCounts]:
    return {(task, source): DraftCounts() for task in get_args(Turn) for source in get_args(Source)}


@dataclass(slots=True)
class Stats:
    """Counts since the session began."""

    guards: GuardCounts = field(default_factory=GuardCounts)
    audio_ms: int = 0  # received
    compute_s: float = 0.0  # time spent in push() and finish(); an engine adds its own
    segments: int = 0
    hypotheses: int = 0
    forwards: int = 0  # of the decoder; audio is not counted
    drafts: dict[tuple[Turn, Source], DraftCounts] = field(default_factory=_no_drafts)
    committed_tokens: int = 0
    dropped_ms: int = 0
    first_text_ms: int | None = None  # stream time from the beginning of the first segment with text to its first text

    @property
    def real_time_factor(self) -> float:
        """Seconds of work for one second of audio; below 1 keeps up."""
        return 1000.0 * self.compute_s / self.audio_ms if self.audio_ms else 0.0

    @property
    def redrafted_tokens(self) -> int:
        """Of previous hypotheses, offered as drafts, for all tasks."""
        return self._offered("hypothesis")

    @property
    def agreed_tokens(self) -> int:
        """Of those, confirmed."""
        return self._accepted("hypothesis")

    @property
    def drafted_tokens(self) -> int:
        """Guessed by the MTP drafter, for all tasks."""
        return self._offered("mtp")

    @property
    def accepted_tokens(self) -> int:
        """Of those, confirmed."""
        return self._accepted("mtp")

    def _offered(self, source: Source) -> int:
        return sum(counts.offered_tokens for (_, each), counts in self.drafts.items() if each == source)

    def _accepted(self, source: Source) -> int:
        return sum(counts.accepted_tokens for (_, each), counts in self.drafts.items() if each == source)

    def lines(self) -> list[str]:
        """For people, one fact a line."""
        first = "no text" if self.first_text_ms is None else f"{self.first_text_ms} ms of audio after speech began"
        return [
            f"audio            {self.audio_ms / 1000:.2f} s, of which {self.dropped_ms} ms were lost before they arrived",
            f"real-time factor {self.real_time_factor:.3f} ({self.compute_s:.2f} s of work)",
            f"first text       {first}",
            f"segments         {self.segments} with {self.committed_tokens} tokens",
            f"decoder          {self.hypotheses} hypotheses in {self.forwards} forwards",
            f"own drafts       {_share(self.agreed_tokens, self.redrafted_tokens)} tokens of the previous hypothesis confirmed",
            f"MTP drafts       {_share(self.accepted_tokens, self.drafted_tokens)} tokens accepted",
            f"guards           {self.guards.silent_frames} silent frames kept from the model, {self.guards.loops} loops stopped, "
            f"{self.guards.capped} capped, {self.guards.special} cut at a control token, {self.guards.thoughts} thoughts taken out, "
            f"{self.guards.answers} answers found, {self.guards.reheard} segments heard again",
        ]


def add_stats(total: Stats, more: Stats) -> None:
    """Add the counts of ``more`` to ``total``, for sums over sessions; ``first_text_ms`` is no count and stays."""
    for part in fields(Stats):
        if part.name not in ("guards", "drafts", "first_text_ms"):
            _add(total, more, part.name)
    for part in fields(GuardCounts):
        _add(total.guards, more.guards, part.name)
    for place, counts in total.drafts.items():
        for part in fields(DraftCounts):
            _add(counts, more.drafts[place], part.name)


def _add(total: object, more: object, name: str) -> None:
    setattr(total, name, getattr(total, name) + getattr(more, name))


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole}" + (f" ({100 * part // whole} %)" if whole else "")
