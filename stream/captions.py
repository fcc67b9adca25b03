"""Words with times → caption cues: at most two lines of 42 characters, long enough to be read. Pure."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from ..model.sentences import ends_sentence
from .events import Word, whole_words

LINE_CHARACTERS = 42
LINES = 2
LONGEST_MS = 6000
SHORTEST_MS = 1000
_BREAKS = re.compile(r"[^\S\u00a0\u2007\u202f]+")  # white space where a line may end


@dataclass(frozen=True, slots=True)
class Cue:
    """One caption."""

    start_ms: int
    end_ms: int
    lines: tuple[str, ...]


def cut_cues(words: Iterable[Word]) -> list[Cue]:
    """The words of one segment → its cues. A cue ends where it is full, has stood long enough, or a sentence ends on its second line."""
    return [part for group in _groups(words) for part in _split_long(_cue(group))]


def cut_bilingual(words: Sequence[Word], translations: Sequence[str], *, with_source: bool = True) -> list[Cue]:
    """The words of one segment and its translations → cues that hold what is said and, below it, each translation's share of it.

    The times are those of the words said; a translation is shared out over the cues by length. At most two lines for each language.
    ``with_source``: else only the translations are shown, at the same times.
    """
    cues: list[Cue] = []
    for group, shares in _shared(_groups(words), [_pieces(text) for text in translations]):
        for part, pieces in _halved(group, shares):
            texts = [_text(part)] if with_source else []
            lines = [line for text in [*texts, *(" ".join(share) for share in pieces)] for line in _wrap(text)]
            if lines:
                cues.append(Cue(part[0].start_ms, part[-1].end_ms, tuple(lines)))
    return cues


def spread(text: str, start_ms: int, end_ms: int) -> list[Word]:
    """A text without word times (a translation) → words that share its time by their length."""
    pieces = _pieces(text)
    total, before, words = sum(len(piece) + 1 for piece in pieces), 0, list[Word]()
    for piece in pieces:
        after = before + len(piece) + 1
        times = [start_ms + (end_ms - start_ms) * part // total for part in (before, after)]
        words.append(Word(f" {piece}", times[0], times[1], 0.0))
        before = after
    return words


class CueTimes:
    """Makes cues that follow one another readable: none overlaps the next, and each stands for a second where there is room."""

    def __init__(self) -> None:
        self._held: Cue | None = None

    def push(self, cues: Iterable[Cue]) -> Iterator[Cue]:
        """Cues in order → those whose end is now certain."""
        for cue in cues:
            held = self._held
            if held is not None:
                cue = replace(cue, start_ms=max(cue.start_ms, held.start_ms + 1))
                yield replace(held, end_ms=min(_readable_ms(held), cue.start_ms))
            self._held = cue

    def close(self) -> Iterator[Cue]:
        """The last cue, if there was one."""
        if self._held is not None:
            yield replace(self._held, end_ms=_readable_ms(self._held))
            self._held = None


def srt(number: int, cue: Cue) -> str:
    """One SubRip block, blank line included; numbers begin at 1."""
    return f"{number}\n{stamp(cue.start_ms, ',')} --> {stamp(cue.end_ms, ',')}\n" + "\n".join(cue.lines) + "\n\n"


def vtt(cue: Cue) -> str:
    """One WebVTT block, blank line included."""
    text = "\n".join(cue.lines).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return f"{stamp(cue.start_ms, '.')} --> {stamp(cue.end_ms, '.')}\n{text}\n\n"


def stamp(at_ms: int, point: str) -> str:
    """Milliseconds → hh:mm:ss,mmm with ``point`` before the milliseconds."""
    seconds, ms = divmod(at_ms, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{point}{ms:03d}"


def _pieces(text: str) -> list[str]:
    """What must not be parted by the end of a line: words, and marks that stand apart (French ? ! : ; »), which go with the word before
    them, or behind them («)."""
    pieces: list[str] = []
    for piece in filter(None, _BREAKS.split(text)):
        if pieces and (pieces[-1].endswith("«") or not (piece.endswith("«") or any(mark.isalnum() for mark in piece))):
            pieces[-1] += f"\u00a0{piece}"
        else:
            pieces.append(piece)
    return pieces


_Group = list[Word]
_Shares = list[list[str]]  # of each translation, the words that stand in a cue


def _groups(words: Iterable[Word]) -> list[_Group]:
    """The words of each cue."""
    groups: list[_Group] = []
    group: _Group = []
    for word in whole_words(words):
        if group and (not _fits([*group, word]) or word.end_ms - group[0].start_ms > LONGEST_MS):
            groups.append(group)
            group = []
        group.append(word)
        if len(_lines(group)) > 1 and ends_sentence(word.text):
            groups.append(group)
            group = []
    return [*groups, group] if group else groups


def _shared(groups: list[_Group], translations: _Shares) -> Iterator[tuple[_Group, _Shares]]:
    """Each translation cut where the groups are, in parts of its own length."""
    lengths = [sum(len(word.text) for word in group) for group in groups]
    ends = [sum(lengths[: place + 1]) / max(1, sum(lengths)) for place in range(len(groups))]
    cut = [_cut(pieces, ends) for pieces in translations]
    for place, group in enumerate(groups):
        yield group, [parts[place] for parts in cut]


def _cut(pieces: list[str], ends: list[float]) -> list[list[str]]:
    """Words → parts; a word belongs to the part in which its middle lies. ``ends``: where parts end, from 0 to 1; the last is 1."""
    total, before, parts = sum(map(len, pieces)), 0, [list[str]() for _ in ends]
    for piece in pieces:
        middle = (before + len(piece) / 2) / total
        before += len(piece)
        parts[next(place for place, end in enumerate(ends) if middle < end or place == len(ends) - 1)].append(piece)
    return parts


def _halved(group: _Group, shares: _Shares) -> Iterator[tuple[_Group, _Shares]]:
    """The same in halves, and these in halves, until every translation fits. A single word said is shown with both halves."""
    if all(len(_wrap(" ".join(share))) <= LINES or len(share) < 2 for share in shares):
        yield group, shares
        return
    if len(group) > 1:
        halves = [group[: len(group) // 2], group[len(group) // 2 :]]
    else:
        word, middle_ms = group[0], (group[0].start_ms + group[0].end_ms) // 2
        halves = [[replace(word, end_ms=middle_ms)], [replace(word, start_ms=middle_ms)]]
    for place, half in enumerate(halves):
        yield from _halved(half, [[share[: len(share) // 2], share[len(share) // 2 :]][place] for share in shares])


def _text(group: list[Word]) -> str:
    return "".join(word.text for word in group).strip()


def _lines(group: list[Word]) -> list[str]:
    return _wrap(_text(group))


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, LINE_CHARACTERS, break_on_hyphens=False)


def _fits(group: list[Word]) -> bool:
    return len(_lines(group)) <= LINES


def _cue(group: list[Word]) -> Cue:
    return Cue(group[0].start_ms, group[-1].end_ms, tuple(_lines(group)))


def _split_long(cue: Cue) -> Iterator[Cue]:
    """A single word longer than a whole cue is shared out over several."""
    parts = [cue.lines[at : at + LINES] for at in range(0, len(cue.lines), LINES)]
    length_ms = cue.end_ms - cue.start_ms
    for place, lines in enumerate(parts):
        start_ms = cue.start_ms + length_ms * place // len(parts)
        yield Cue(start_ms, cue.start_ms + length_ms * (place + 1) // len(parts), lines)


def _readable_ms(cue: Cue) -> int:
    return max(cue.end_ms, cue.start_ms + SHORTEST_MS)
