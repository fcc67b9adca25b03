"""Spellings of names and terms in text, for models that take no instructions: the words heard stay, the way they are written changes."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence


class Spelling:
    """A glossary. A term matches the same words whatever their case and accents; whole words only, and all words of a term."""

    def __init__(self, terms: Sequence[str]) -> None:
        """``terms``: as they should be written. A term in small letters keeps the capital that a word has at a sentence's beginning."""
        self._terms: dict[tuple[str, ...], list[str]] = {}
        for term in terms:
            if words := term.split():
                self._terms[tuple(_fold(_parts(word)[1]) for word in words)] = [_parts(word)[1] for word in words]
        self._longest = max(map(len, self._terms), default=0)

    def __bool__(self) -> bool:
        return bool(self._terms)

    def spell(self, words: Sequence[str]) -> list[str]:
        """Words with their spaces and punctuation → as many words, respelt."""
        spelt, place = list(words), 0
        while place < len(words):
            count = next((n for n in range(min(self._longest, len(words) - place), 0, -1) if self._find(words[place : place + n])), 0)
            if count:
                term = self._terms[_key(words[place : place + count])]
                spelt[place : place + count] = [_write(word, new) for word, new in zip(words[place : place + count], term, strict=True)]
            place += count or 1
        return spelt

    def open_words(self, words: Sequence[str]) -> int:
        """How many of the last words may be the beginning of a longer term: their spelling is not known yet."""
        for count in range(min(self._longest - 1, len(words)), 0, -1):
            last = words[-count:]
            key = _key(last)
            if _joined([*last, "x"]) and any(len(term) > count and term[:count] == key for term in self._terms):
                return count
        return 0

    def _find(self, words: Sequence[str]) -> bool:
        return _key(words) in self._terms and _joined(words)


def _key(words: Sequence[str]) -> tuple[str, ...]:
    return tuple(_fold(_parts(word)[1]) for word in words)


def _joined(words: Sequence[str]) -> bool:
    """Whether no punctuation stands between the words."""
    return not any(_parts(word)[2] for word in words[:-1]) and not any(_parts(word)[0].strip() for word in words[1:])


def _parts(word: str) -> tuple[str, str, str]:
    """A word → what stands before its first letter or digit, the word itself, what stands behind the last."""
    marks = [place for place, mark in enumerate(word) if mark.isalnum()]
    return (word[: marks[0]], word[marks[0] : marks[-1] + 1], word[marks[-1] + 1 :]) if marks else (word, "", "")


def _fold(word: str) -> str:
    """Without case and accents."""
    return "".join(mark for mark in unicodedata.normalize("NFKD", word.casefold()) if not unicodedata.combining(mark))


def _write(word: str, new: str) -> str:
    before, old, behind = _parts(word)
    if new == new.lower() and old[:1].isupper():
        new = new[:1].upper() + new[1:]
    return before + new + behind
