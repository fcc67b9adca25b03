"""Word error rate with Whisper's English normaliser, so that figures compare with published ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any


@dataclass(frozen=True, slots=True)
class WordErrors:
    """Counts over a set of clips. ``rate`` is (substitutions + deletions + insertions) / words."""

    words: int
    substitutions: int
    deletions: int
    insertions: int

    @property
    def rate(self) -> float:
        return (self.substitutions + self.deletions + self.insertions) / max(self.words, 1)

    def __str__(self) -> str:
        parts = f"S {self.substitutions}, D {self.deletions}, I {self.insertions}"
        return f"WER {100 * self.rate:.1f} % ({parts} of {self.words} words)"


@cache
def _normaliser() -> Any:
    from whisper_normalizer.english import EnglishTextNormalizer

    return EnglishTextNormalizer()


def normalise(text: str) -> str:
    """Whisper's English normalisation: lower case, no punctuation, spelt-out numbers as digits, British as American."""
    return " ".join(_normaliser()(text).split())


def word_errors(references: Sequence[str], hypotheses: Sequence[str]) -> WordErrors:
    """Errors summed over pairs; pairs whose normalised reference is empty are left out, as jiwer cannot score them."""
    import jiwer

    pairs = [(normalise(r), normalise(h)) for r, h in zip(references, hypotheses, strict=True)]
    pairs = [pair for pair in pairs if pair[0]]
    if not pairs:
        return WordErrors(0, 0, 0, 0)
    out = jiwer.process_words([r for r, _ in pairs], [h for _, h in pairs])
    return WordErrors(out.hits + out.substitutions + out.deletions, out.substitutions, out.deletions, out.insertions)
