"""Parallel text for training: what a transcript is in another language, without a pair that is measured.

A pair file is ``English TAB other`` lines, perhaps ``.xz``. The last 1,000 pairs after a shuffle with seed 0 measure translation
(:mod:`.sentences`); no pair is learnt whose English side is among them, in the file of any language.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import numpy as np

from ..errors import ConfigError
from .sentences import plain, split_pairs
from .text import TRANSLATE

Pair = tuple[str, str]  # English, other

# French sets a space that does not break before these marks, and inside its quotation marks. Files have four kinds of it, or a plain one.
_FRENCH_SPACES = re.compile(r"[ \u00a0\u202f\u2009]+(?=[?!:;»])|(?<=«)[ \u00a0\u202f\u2009]+")


def typeset(language: str, sentence: str) -> str:
    """A sentence as it is to be written: the same mark always in the same way, which is one thing less to learn."""
    return _FRENCH_SPACES.sub("\u00a0", sentence) if language == "fr" else sentence


def read_held_out(path: Path) -> list[Pair]:
    """The pairs of a file that measure translation."""
    return split_pairs(path)[1]


class Translations:
    """All pair files of a run. ``banned``: plain English sentences (of dev sets) that must not be learnt."""

    def __init__(self, files: Mapping[str, Path], banned: Iterable[str] = ()) -> None:
        for language in files:
            if language not in TRANSLATE:
                raise ConfigError(f"translations: {language!r} has no token of its own; expected {', '.join(TRANSLATE)}")
        parts = {language: split_pairs(path) for language, path in files.items()}
        out = {plain(sentence) for sentence in banned}
        out |= {plain(english) for _, held in parts.values() for english, _ in held}
        self.pairs = {
            language: [(english, typeset(language, other)) for english, other in kept if plain(english) not in out]
            for language, (kept, _) in parts.items()
        }
        empty = [language for language, pairs in self.pairs.items() if not pairs]
        if empty:
            raise ConfigError(f"translations: no pair is left to learn from for {', '.join(empty)}; {len(out)} sentences are held out")
        self._known: dict[str, dict[str, list[str]]] = {}
        for language, pairs in self.pairs.items():
            self._known[language] = defaultdict(list)
            for english, other in pairs:
                self._known[language][plain(english)].append(other)

    def of(self, words: str, language: str) -> list[str]:
        """Translations of a transcript, whatever its case and marks; empty if none is known."""
        return self._known[language].get(plain(words), [])

    def draw(self, language: str, rng: np.random.Generator) -> Pair:
        return self.pairs[language][int(rng.integers(len(self.pairs[language])))]

    def languages(self, among: Collection[str] | None = None) -> list[str]:
        """In a fixed order, so that a draw among them is a function of the seed."""
        return sorted(language for language in self.pairs if among is None or language in among)
