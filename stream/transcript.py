"""The text of one segment: a committed prefix that never changes and an unstable tail that the next hypothesis may replace.

Commit rule: LocalAgreement-2. What two hypotheses in a row say alike is committed, up to the last whole word; a flush commits the rest.
But a word that keeps changing must not hold up all that comes after it: when patience is at an end, it is committed as it is heard then.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from itertools import pairwise
from statistics import fmean

from ..model.sentences import ends_sentence
from ..model.tokenizer import TextStream, Tokenizer
from .events import Word
from .glossary import Spelling

_WORD_MARKS = ("Ġ", "▁", " ")  # how byte-level and SentencePiece vocabularies write a leading space
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")  # scripts that put no spaces between words
_PIECES = re.compile(r"\s*\S+|\s+")
_SHORTEST_TOKEN_MS = 40
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, slots=True)
class _Token:
    id: int
    logprob: float
    start_ms: int
    end_ms: int


class Transcript:
    """One for each segment. ``start_ms`` is where its speech begins, in stream time."""

    def __init__(self, tokenizer: Tokenizer, start_ms: int, spelling: Spelling | None = None) -> None:
        self.text = ""  # committed
        self.tail = ""  # unstable
        self.words: list[Word] = []  # committed; their texts joined are ``text``
        self.committed_ids: list[int] = []
        self.committed_ms = start_ms  # where the last committed word ends
        self._unstable: list[_Token] = []
        self._last_logprobs: list[float] = []  # of the last word's tokens
        self._heard_ms = start_ms  # what the last hypothesis had heard
        self._tokenizer, self._stream, self._spelling = tokenizer, TextStream(tokenizer), spelling

    @property
    def unstable_ids(self) -> list[int]:
        return [token.id for token in self._unstable]

    @property
    def ends_sentence(self) -> bool:
        """Whether committed text and tail together end with a sentence."""
        return ends_sentence(self.text + self.tail)

    @property
    def last_sentence(self) -> str:
        """Of the committed text; at most its last 200 characters."""
        body = self.text.rstrip()
        begins = max(body.rfind(mark, 0, max(0, len(body) - 1)) for mark in (". ", "? ", "! ", "。"))
        return body[begins + 1 :].strip()[-200:]

    def update(
        self,
        ids: Sequence[int],
        logprobs: Sequence[float],
        agreed_tokens: int,
        *,
        heard_ms: int,
        word_is_over: bool,
        patience_ms: int | None = None,
    ) -> int:
        """Take a new hypothesis: ``ids`` follow the committed ids.

        ``agreed_tokens`` of them repeat the previous hypothesis. ``heard_ms``: where the speech that it has heard ends, in stream time.
        ``word_is_over``: silence shows that its last word is complete. ``patience_ms``: words that ended so long before ``heard_ms`` are
        committed as they are heard now, agreed or not; None: they wait. Returns the index in ``words`` of the first word that is new
        or longer; a word that grows (a full stop after it) appears as a word of its own without a leading space.
        """
        before = self.unstable_ids
        self._replace(ids, logprobs, heard_ms)
        whole = min(agreed_tokens, len(ids))
        while whole > 0 and not (self._is_word_end(ids, whole, word_is_over) and self._is_word_end(before, whole, True)):
            whole -= 1  # in either of the two the word goes on: "fox" is not what "foxy" began with
        if patience_ms is not None:
            whole = max(whole, self._overdue(heard_ms - patience_ms))
        return self._commit(self._spelt_tokens(ids, whole))

    def _overdue(self, until_ms: int) -> int:
        """How many unstable tokens belong to words that ended by then. The last word may go on, whatever its time."""
        ends = [place for place in range(1, len(self._unstable)) if starts_word(self._tokenizer, self._unstable[place].id)]
        return max((place for place in ends if self._unstable[place - 1].end_ms <= until_ms), default=0)

    def _is_word_end(self, ids: Sequence[int], place: int, end_is_one: bool) -> bool:
        """Whether a word ends before ``ids[place]``; ``end_is_one``: at the end of ``ids`` too."""
        return end_is_one if place >= len(ids) else starts_word(self._tokenizer, ids[place])

    def flush(self) -> int:
        """Commit everything. Returns the index in ``words`` of the first new word."""
        first = self._commit(len(self._unstable))
        rest = self._stream.flush()  # an unfinished character
        self._append(rest, self.committed_ms, self.committed_ms, 0.0, first_word=first)
        return first

    def shown_tail(self, held_words: int) -> str:
        """The tail without its last words, which are the likeliest to change: Arivazhagan et al. 2020 (arXiv 2004.03643) mask them."""
        if not held_words:
            return self.tail
        ids = self.unstable_ids
        starts = [place for place, token in enumerate(ids) if place == 0 or starts_word(self._tokenizer, token)]
        return self._tail_text(ids[: starts[-held_words]] if len(starts) > held_words else [])

    def decode(self, ids: Sequence[int]) -> str:
        """Ids that are no part of this transcript → text."""
        return self._tokenizer.decode(ids)

    def _replace(self, ids: Sequence[int], logprobs: Sequence[float], heard_ms: int) -> None:
        times = self._times(ids, heard_ms)
        self._unstable = [_Token(int(token), logprob, *time) for token, logprob, time in zip(ids, logprobs, times, strict=True)]
        self._heard_ms = max(self._heard_ms, heard_ms)

    def _times(self, ids: Sequence[int], heard_ms: int) -> list[tuple[int, int]]:
        """When each token was said. One that was there before keeps its time, and what stands in place of others has theirs: a word that
        is heard better later on was not said later. The rest was said in the audio that is new."""
        kept, replaced = self._kept(ids)
        times, free_ms = list[tuple[int, int]](), self.committed_ms
        for place in (*sorted(kept), len(ids)):
            new = ids[len(times) : place]
            if place < len(ids):
                start_ms, end_ms = free_ms, kept[place].start_ms
            else:
                start_ms, end_ms = free_ms, max(heard_ms, free_ms)
                if not replaced:  # where the new audio leaves no room, in what no earlier word has taken
                    start_ms = max(free_ms, min(self._heard_ms, end_ms - _SHORTEST_TOKEN_MS * len(new)))
            times += self._shared(new, start_ms, end_ms)
            if place < len(ids):
                times.append((kept[place].start_ms, kept[place].end_ms))
                free_ms = kept[place].end_ms
        return times

    def _kept(self, ids: Sequence[int]) -> tuple[dict[int, _Token], bool]:
        """Unstable tokens that are said again, by their place in ``ids``, and whether others behind the last of them are gone."""
        kept, free_ms, next_place, next_old = dict[int, _Token](), self.committed_ms, 0, 0
        for old, place, size in SequenceMatcher(None, self.unstable_ids, list(ids), autojunk=False).get_matching_blocks():
            for offset in range(size):
                token = self._unstable[old + offset]
                if token.start_ms - free_ms >= _SHORTEST_TOKEN_MS * (place + offset - next_place):  # room for those between
                    kept[place + offset] = token
                    free_ms, next_place, next_old = token.end_ms, place + offset + 1, old + offset + 1
        return kept, next_old < len(self._unstable)

    def _shared(self, ids: Sequence[int], start_ms: int, end_ms: int) -> Iterator[tuple[int, int]]:
        """The time from one moment to another, shared out by the length of what is said."""
        weights = [max(1, len(self._tokenizer.decode([token]))) for token in ids]
        total, before = sum(weights), 0
        for weight in weights:
            begin, before = start_ms + (end_ms - start_ms) * before // total, before + weight
            yield begin, start_ms + (end_ms - start_ms) * before // total

    def _commit(self, count: int) -> int:
        first = len(self.words)
        for token in self._unstable[:count]:
            self.committed_ids.append(token.id)
            self.committed_ms = token.end_ms
            self._append(self._stream.push([token.id]), token.start_ms, token.end_ms, token.logprob, first_word=first)
        del self._unstable[:count]
        self._respell(first)
        self.tail = self._tail_text(self.unstable_ids)
        return first

    def _spelt_tokens(self, ids: Sequence[int], count: int) -> int:
        """How many of the first ``count`` tokens may be committed: the beginning of a term waits for the rest."""
        if not self._spelling:
            return count
        starts = [place for place in range(count) if place == 0 or starts_word(self._tokenizer, ids[place])]
        words = [self._tokenizer.decode(ids[start:end]) for start, end in pairwise([*starts, count])]
        waiting = self._spelling.open_words(words)
        return starts[-waiting] if waiting else count

    def _respell(self, first: int) -> None:
        """Write the new words as the glossary does. What continues a word that was told stays as it is."""
        new = self.words[first:]
        if not self._spelling or not new:
            return
        skipped = 1 if first and not new[0].text[:1].isspace() else 0
        spelt = self._spelling.spell([word.text for word in new[skipped:]])
        self.words[first + skipped :] = [replace(word, text=text) for word, text in zip(new[skipped:], spelt, strict=True)]
        self.text = "".join(word.text for word in self.words)

    def _append(self, piece: str, start_ms: int, end_ms: int, logprob: float, *, first_word: int) -> None:
        """Add committed text to the last word, or as a new one. Words before ``first_word`` have been told and stay as they are."""
        if not self.text:
            piece = piece.lstrip()
        if not piece:
            return
        self.text += piece
        last = self.words[-1] if len(self.words) > first_word else None
        if last is None or (_begins_word(piece) and last.text.strip()):
            self._last_logprobs = [logprob]
            self.words.append(Word(piece, start_ms, end_ms, logprob))
        else:
            self._last_logprobs.append(logprob)
            self.words[-1] = Word(last.text + piece, last.start_ms, end_ms, fmean(self._last_logprobs))

    def _tail_text(self, ids: Sequence[int]) -> str:
        """Unstable ids as they read behind the committed text."""
        if not ids:
            return ""
        committed = self._tokenizer.decode(self.committed_ids)
        both = self._tokenizer.decode([*self.committed_ids, *ids]).rstrip(_REPLACEMENT)
        tail = both[len(committed) :]
        if self._spelling:
            pieces = _PIECES.findall(tail)
            skipped = 1 if self.text and pieces and not pieces[0][0].isspace() else 0
            tail = "".join([*pieces[:skipped], *self._spelling.spell(pieces[skipped:])])
        return tail if self.text else tail.lstrip()


def starts_word(tokenizer: Tokenizer, token: int) -> bool:
    """Whether a token begins a new word: a leading space in its name, or a script that writes words without spaces."""
    name = tokenizer.name_of(token) or ""
    return name.startswith(_WORD_MARKS) or _begins_word(tokenizer.decode([token]))


def _begins_word(piece: str) -> bool:
    if not piece or piece[0].isspace():
        return bool(piece)
    return unicodedata.name(piece[0], "").startswith(_UNSPACED) if ord(piece[0]) > 0xE00 else False
