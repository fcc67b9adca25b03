"""Spellings of names and terms in text, for models that take no instructions: the words heard stay, the way they are written changes."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import NamedTuple


class _Parts(NamedTuple):
    before: str  # what stands before the first letter or digit
    word: str
    behind: str  # what stands behind the last


class Spelling:
    """A glossary. A term matches the same words whatever their case and accents; whole words only, and all words of a term.

    The marks of a term ("C++", ".NET") must be heard, except the full stop of an abbreviation ("Fr."), which is written in any case.
    """

    def __init__(self, terms: Sequence[str]) -> None:
        """``terms``: as they should be written. A term in small letters keeps the capital that a word has at a sentence's beginning."""
        self._terms: dict[tuple[str, ...], list[list[_Parts]]] = {}  # by their words without marks; of two that are alike the last counts
        for term in terms:
            if words := [_parts(word) for word in term.split()]:
                self._terms.setdefault(_key(words), []).insert(0, words)
        for alike in self._terms.values():
            alike.sort(key=_count_marks, reverse=True)  # "C" fits where "C++" was heard
        self._longest = max(map(len, self._terms), default=0)

    def __bool__(self) -> bool:
        return bool(self._terms)

    def spell(self, words: Sequence[str]) -> list[str]:
        """Words with their spaces and punctuation → as many words, respelt."""
        heard, spelt, place = [_parts(word) for word in words], list(words), 0
        while place < len(words):
            term = self._find(heard[place : place + self._longest])
            end = place + len(term)
            spelt[place:end] = [_write(old, new) for old, new in zip(heard[place:end], term, strict=True)]
            place = max(end, place + 1)
        return spelt

    def open_words(self, words: Sequence[str]) -> int:
        """How many of the last words may be the beginning of a longer term, or a term whose full stop may still be heard: their
        spelling is not known yet."""
        for count in range(min(self._longest, len(words)), 0, -1):
            last = [_parts(word) for word in words[-count:]]
            key = _key(last)
            alike = (term for known, terms in self._terms.items() if known[:count] == key for term in terms)
            if any(_fits(last, term, goes_on=True) and (len(term) > count or last[-1].behind != term[-1].behind) for term in alike):
                return count
        return 0

    def _find(self, heard: Sequence[_Parts]) -> Sequence[_Parts]:
        """The longest term that these words begin with; empty if there is none."""
        for count in range(len(heard), 0, -1):
            for term in self._terms.get(_key(heard[:count]), ()):
                if _fits(heard[:count], term):
                    return term
        return ()


def _key(words: Sequence[_Parts]) -> tuple[str, ...]:
    return tuple(_fold(parts.word) for parts in words)


def _count_marks(words: Sequence[_Parts]) -> int:
    return sum(len(parts.before) + len(parts.behind) for parts in words)


def _fits(heard: Sequence[_Parts], term: Sequence[_Parts], *, goes_on: bool = False) -> bool:
    """Whether the words have the term's marks, and no punctuation between them; none behind them either if the term ``goes_on``."""
    inner = len(heard) if goes_on else len(heard) - 1
    pairs = list(zip(heard, term, strict=False))
    return (
        heard[0].before.endswith(term[0].before)
        and all(old.before.strip() == new.before for old, new in pairs[1:])
        and all(old.behind in (new.behind, _needed(new)) for old, new in pairs[:inner])
        and all(old.behind.startswith(_needed(new)) for old, new in pairs[inner:])
    )


def _needed(new: _Parts) -> str:
    """What must be heard behind a term's word: the full stop of an abbreviation is often left out."""
    return new.behind.removesuffix(".")


def _parts(word: str) -> _Parts:
    marks = [place for place, mark in enumerate(word) if mark.isalnum() or unicodedata.category(mark).startswith("M")]  # M: accents, vowels
    return _Parts(word[: marks[0]], word[marks[0] : marks[-1] + 1], word[marks[-1] + 1 :]) if marks else _Parts(word, "", "")


def _fold(word: str) -> str:
    """Without case and accents."""
    return "".join(mark for mark in unicodedata.normalize("NFKD", word.casefold()) if not unicodedata.combining(mark))


def _write(old: _Parts, new: _Parts) -> str:
    word, behind = new.word, old.behind
    if word == word.lower() and old.word[:1].isupper():
        word = word[:1].upper() + word[1:]
    if not behind.startswith(new.behind):  # the full stop was not heard
        behind = new.behind + behind[len(_needed(new)) :]
    return old.before + word + behind
