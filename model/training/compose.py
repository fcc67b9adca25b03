"""Sentences that a speaker never said, in the speaker's own words: each word, or the longest run there is, cut out of a clip of theirs.

Runs that are joined at random (``splices.py``) have to be heard, but teach no language; sentences without audio teach it apart from
hearing. Here what follows is as likely as in any text, and has a sound and a place.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import text
from .speech import Spoken


@dataclass(frozen=True, slots=True)
class Piece:
    """Words ``first`` … ``first + count - 1`` of the speaker's clip number ``clip``."""

    clip: int
    first: int
    count: int


class Vocabulary:
    """The words of one speaker, and where each was said."""

    def __init__(self, clips: Sequence[Spoken]) -> None:
        self._said = [[text.word_key(word) for word in words.split()] for _, _, words, _ in clips]
        self._known = [ranges for *_, ranges in clips]
        self._places: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for clip, (keys, ranges) in enumerate(zip(self._said, self._known, strict=True)):
            for low, high in ranges:
                for place in range(low, high):
                    self._places[keys[place]].append((clip, place))

    def pieces(self, sentence: str, rng: np.random.Generator) -> list[Piece]:
        """The longest run from the first word on, then from the word behind it, and so on; one of those as long by chance. Empty if the
        speaker never said one of the words."""
        keys = [text.word_key(word) for word in sentence.split()]
        if not all(key and key in self._places for key in keys):
            return []
        pieces: list[Piece] = []
        while (at := sum(piece.count for piece in pieces)) < len(keys):
            lengths = np.asarray([self._length(keys[at:], *place) for place in self._places[keys[at]]])
            best = np.flatnonzero(lengths == lengths.max())
            clip, first = self._places[keys[at]][int(best[rng.integers(len(best))])]
            pieces.append(Piece(clip, first, int(lengths.max())))
        return pieces

    def _length(self, keys: Sequence[str], clip: int, place: int) -> int:
        """How many of ``keys`` were said there in a row, and are known to have been."""
        said, high = self._said[clip], next(high for low, high in self._known[clip] if low <= place < high)
        count = 0
        while count < len(keys) and place + count < high and said[place + count] == keys[count]:
            count += 1
        return count
