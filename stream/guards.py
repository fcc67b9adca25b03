"""What keeps a language model from writing what nobody said. Each guard counts how often it stepped in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..model.config import SpecialIds
from ..model.loops import MOST_AFTER_LOOP, find_loop, translation_without_loop
from ..model.tokenizer import Tokenizer
from .answers import Doubt, doubt, echoes

_CHANNEL_NAMES = ("<|channel>", "<channel|>")  # what stands between them is thought, and not said
_CONTROL_NAMES = ("<|turn>", "<turn|>", *_CHANNEL_NAMES, "<|think|>", "<|transcribe|>")


@dataclass(slots=True)
class GuardCounts:
    """How often each guard stepped in."""

    capped: int = 0  # hypotheses that ran into the cap on tokens per second
    loops: int = 0  # hypotheses cut at a repetition
    special: int = 0  # hypotheses cut at a token that is not text
    thoughts: int = 0  # hypotheses that a thought was taken out of
    answers: int = 0  # hypotheses that were a model's answer to the audio, or its prompt once more
    reheard: int = 0  # segments heard again with a firmer prompt because of one
    silent_frames: int = 0  # frames that never reached the model


class Guards:
    """The guards of one session."""

    def __init__(
        self,
        special: Iterable[int],
        *,
        tokens_per_second: float,
        floor_tokens: int,
        loop_tokens: int,
        loop_copies: int,
        words_per_second: float = 6.0,
        language: str = "en",
        channel: tuple[int, int] | None = None,
    ) -> None:
        """``special``: ids that are not text. ``channel``: those that open and close a thought; None: the model has none."""
        self.counts = GuardCounts()
        self._special, self._channel = frozenset(special), channel
        self._tokens_per_second, self._floor_tokens = tokens_per_second, floor_tokens
        self._loop_tokens, self._loop_copies = loop_tokens, loop_copies
        self._words_per_second, self._language = words_per_second, language

    def limit_tokens(self, speech_s: float, committed_tokens: int) -> int:
        """How many more tokens a segment with ``speech_s`` seconds of audio may hold."""
        allowed = self._floor_tokens + math.ceil(self._tokens_per_second * speech_s)
        return max(0, allowed - committed_tokens)

    def spoken(self, ids: Sequence[int]) -> list[int]:
        """Places of a hypothesis's ids that lie in no thought: a model that thinks first still says the right words behind it. A thought
        without an end is left to ``keep``, which cuts where it begins."""
        if self._channel is None or self._channel[0] not in ids:
            return list(range(len(ids)))
        begin, end = self._channel
        places, place = list[int](), 0
        while place < len(ids):
            if ids[place] == begin and end in ids[place:]:
                place = ids.index(end, place)
            else:
                places.append(place)
            place += 1
        self.counts.thoughts += len(places) < len(ids)
        return places

    def keep(self, committed: Sequence[int], ids: Sequence[int], *, stopped: bool) -> tuple[int, bool]:
        """How many of a hypothesis's ids are text to be trusted, and whether it was caught in a loop.

        ``committed`` stands before them and may hold the beginning of a loop; ``stopped`` is False for a hypothesis that hit its limit.
        """
        kept = self._before_special(ids, stopped)
        # Who has gone on to something else was not stuck: people say a thing three times, too.
        cut = find_loop([*committed, *ids[:kept]], self._loop_tokens, self._loop_copies, most_after=MOST_AFTER_LOOP if stopped else None)
        if cut is None:
            return kept, False
        self.counts.loops += 1
        return max(0, cut - len(committed)), True

    def _before_special(self, ids: Sequence[int], stopped: bool) -> int:
        """How many ids there are before the first that is not text."""
        kept = next((place for place, token in enumerate(ids) if token in self._special), len(ids))
        if kept < len(ids):
            self.counts.special += 1
        elif not stopped:
            self.counts.capped += 1
        return kept

    def keep_translation(self, said: Sequence[int], ids: Sequence[int], *, stopped: bool) -> int:
        """How many ids of a translation of ``said`` are text to be trusted."""
        kept = self._before_special(ids, stopped)
        cut = translation_without_loop(said, ids[:kept])
        self.counts.loops += cut < kept
        return cut

    def doubt(self, text: str, audio_s: float, carried: str = "") -> Doubt | None:
        """Why a segment's whole text may be an answer to its audio, or the ``carried`` text of its prompt; None: it may have been said."""
        speed = self._words_per_second
        found = "echo" if echoes(text, carried) else doubt(text, language=self._language, audio_s=audio_s, words_per_second=speed)
        self.counts.answers += found is not None
        return found


def channel_ids(tokenizer: Tokenizer) -> tuple[int, int] | None:
    """The ids that open and close a thought; None: the vocabulary has no such tokens."""
    begin, end = (tokenizer.id_of(name) for name in _CHANNEL_NAMES)
    return None if begin is None or end is None else (begin, end)


def special_ids(special: SpecialIds, tokenizer: Tokenizer) -> frozenset[int]:
    """Every id that must not stand in a transcript, stop tokens left out (those end it)."""
    named = (tokenizer.id_of(name) for name in _CONTROL_NAMES)
    ids = {special.pad, special.bos, special.begin_of_audio, special.begin_of_image, *special.suppressed}
    return frozenset((ids | {token for token in named if token is not None}) - set(special.stop))
