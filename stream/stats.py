"""Numbers of one session: what it heard, what it cost, where the guards stepped in."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from .guards import GuardCounts


@dataclass(slots=True)
class Stats:
    """Counts since the session began."""

    guards: GuardCounts = field(default_factory=GuardCounts)
    audio_ms: int = 0  # received
    compute_s: float = 0.0  # time spent in push() and finish(); an engine adds its own
    segments: int = 0
    hypotheses: int = 0
    forwards: int = 0  # of the decoder; audio is not counted
    redrafted_tokens: int = 0  # of the previous hypothesis, offered as a draft
    agreed_tokens: int = 0  # of those, confirmed
    drafted_tokens: int = 0  # guessed by the MTP drafter
    accepted_tokens: int = 0  # of those, confirmed
    committed_tokens: int = 0
    dropped_ms: int = 0
    first_text_ms: int | None = None  # stream time from the beginning of the first segment with text to its first text

    @property
    def real_time_factor(self) -> float:
        """Seconds of work for one second of audio; below 1 keeps up."""
        return 1000.0 * self.compute_s / self.audio_ms if self.audio_ms else 0.0

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
            f"{self.guards.capped} capped, {self.guards.special} cut at a control token",
        ]


def add_stats(total: Stats, more: Stats) -> None:
    """Add the counts of ``more`` to ``total``, for sums over sessions; ``first_text_ms`` is no count and stays."""
    for part in fields(Stats):
        if part.name not in ("guards", "first_text_ms"):
            setattr(total, part.name, getattr(total, part.name) + getattr(more, part.name))
    for part in fields(GuardCounts):
        setattr(total.guards, part.name, getattr(total.guards, part.name) + getattr(more.guards, part.name))


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole}" + (f" ({100 * part // whole} %)" if whole else "")
