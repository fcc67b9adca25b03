"""Where one sentence ends and the next begins: in a text, and in the token ids of one (a small model translates one at a time)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .tokenizer import Tokenizer

_LONGEST_TOKENS = 32  # of what is translated at once: of the pairs that it is learnt from fewer than one in a thousand have 30 in English
_PAUSE = re.compile(r"[,;:–—]$")
_JOINS = ("and", "but", "because", "so", "that", "which", "who", "when", "while", "if", "or")

_CLOSED = re.compile(r"[.?!。？！…][\"'”’)\]]*$")  # a mark, and perhaps quotation marks or brackets behind it
# A full stop behind these, or behind one letter, ends no sentence. But "No." and "So do I." are more often said than "No. 5".
_SHORT = re.compile(r"(?:^|[\s(\"'“‘])(?:[A-HJ-Z]|Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|Mt|vs|etc|e\.g|i\.e|Gen|Col|Capt|Lt|Rev|Hon)\.$")


def ends_sentence(text: str) -> bool:
    """Whether a sentence ends with the text: quotation marks, brackets and white space behind the mark left aside, and not with "Mr."."""
    text = text.rstrip()
    return bool(_CLOSED.search(text)) and not _SHORT.search(text)


def sentences(tokenizer: Tokenizer, ids: Sequence[int]) -> list[list[int]]:
    """Ids → those of each sentence, in order; together they are all ids. What has no closing mark is one sentence, and a very long one is
    cut at its last comma or joining word, else between two words: so too where there is more of it later."""
    found: list[list[int]] = []
    begin, cuts = 0, list[int]()  # places between words where what has been read may be cut
    for end in range(1, len(ids)):
        if not tokenizer.decode(ids[end : end + 1])[:1].isspace():
            continue  # inside a word, or a mark
        if end - begin > _LONGEST_TOKENS and cuts:
            begin = _cut(tokenizer, ids, begin, cuts, found)
        if ends_sentence(tokenizer.decode(ids[begin:end])):
            found.append(list(ids[begin:end]))
            begin, cuts = end, []
        else:
            cuts.append(end)
    if len(ids) - begin > _LONGEST_TOKENS and cuts:
        begin = _cut(tokenizer, ids, begin, cuts, found)
    return [*found, list(ids[begin:])] if begin < len(ids) else found


def _how_well(before: str, after: str) -> int:
    """2 behind a comma or its like, 1 before a word that joins, else 0."""
    if _PAUSE.search(before):
        return 2
    return int(next(iter(after.split()), "").lower() in _JOINS)


def _cut(tokenizer: Tokenizer, ids: Sequence[int], begin: int, cuts: list[int], found: list[list[int]]) -> int:
    """Put what stands before the best of ``cuts`` into ``found``; where it ends. Of equally good ones the last is best, and none near the
    beginning."""
    able = [cut for cut in cuts if cut - begin >= _LONGEST_TOKENS // 4] or cuts
    end = max(able, key=lambda cut: (_how_well(tokenizer.decode(ids[begin:cut]).rstrip(), tokenizer.decode(ids[cut : cut + 3])), cut))
    found.append(list(ids[begin:end]))
    cuts[:] = [cut for cut in cuts if cut > end]
    return end
