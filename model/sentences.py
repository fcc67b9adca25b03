"""Where one sentence of a transcript ends and the next begins, in token ids: a small model translates one at a time."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .tokenizer import Tokenizer

_CLOSED = re.compile(r"[.?!。？！…][\"'”’)\]]*$")  # a mark, and perhaps quotation marks or brackets behind it
# A full stop behind these, or behind one letter, ends no sentence.
_SHORT = re.compile(r"(?:^|[\s(\"'“‘])(?:[A-Z]|Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|Mt|vs|etc|e\.g|i\.e|No|Gen|Col|Capt|Lt|Rev|Hon)\.$")


def sentences(tokenizer: Tokenizer, ids: Sequence[int]) -> list[list[int]]:
    """Ids → those of each sentence, in order; together they are all ids. What has no closing mark is one sentence."""
    found: list[list[int]] = []
    begin = 0
    for end in range(1, len(ids)):
        if not tokenizer.decode(ids[end : end + 1])[:1].isspace():
            continue  # inside a word, or a mark
        text = tokenizer.decode(ids[begin:end]).rstrip()
        if _CLOSED.search(text) and not _SHORT.search(text):
            found.append(list(ids[begin:end]))
            begin = end
    return [*found, list(ids[begin:])] if begin < len(ids) else found
