"""Passages of one to some sentences for a voice to read (:mod:`.synthesis`), as long as the utterances of people are.

    python -m dragoman.model.training.passages --manifest FILE --sentences FILE [FILE …] --out FILE    # single ones, put together by chance
    python -m dragoman.model.training.passages --manifest FILE --books FOLDER --out FILE               # in the order of the book

``--sentences``: text files, one sentence a line (:mod:`.sentences` writes some). ``--books``: a folder of .txt files, a paragraph a line.
No sentence is kept that shares five words in a row with a transcript of a dev split of the corpus's manifest. Marks that no voice says
are left out: quotation marks; dashes, colons and semicolons become commas.
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ..errors import ConfigError, as_command
from ..sentences import ends_sentence
from .sentences import plain, read_lines, transcripts

SHARED_WORDS = 5
MOST_WORDS = 34  # of a sentence
LENGTHS = (4, 8, 12, 16, 20, 24, 28)  # words that a passage has at least, each as often as the others
_SAID = re.compile(r"[A-Z][A-Za-z' ,.?!-]+[.?!]")
_NOT_PROSE = re.compile(r"[A-Z]{3}|,[.?!]|\.\.|\b(CHAPTER|Gutenberg)\b")


def runs_of_words(sentence: str) -> Iterator[tuple[str, ...]]:
    words = plain(sentence).split()
    yield from (tuple(words[i : i + SHARED_WORDS]) for i in range(len(words) - SHARED_WORDS + 1))


def kept(sentences: Iterable[str], banned: set[tuple[str, ...]]) -> list[str]:
    """Sentences of letters and usual marks, of at most ``MOST_WORDS``, that share no run of words with what is banned."""
    plausible = (s for s in sentences if _SAID.fullmatch(s) and not _NOT_PROSE.search(s) and 2 < len(s.split()) <= MOST_WORDS)
    return [s for s in plausible if banned.isdisjoint(runs_of_words(s))]


def book_sentences(text: str) -> Iterator[str]:
    """Of paragraphs, one a line; what stands in capitals, as headings do, is left out."""
    for line in text.splitlines():
        if sum(c.isupper() for c in line) > 0.2 * len(line):
            continue
        line = re.sub(r"[’‘]", "'", line)
        line = re.sub(r"[\"“”_*]|(?<!\w)'+|'+(?!\w)", "", line)
        line = re.sub(r"\s*(--+|—|–|[;:])\s*", ", ", line)
        yield from _cut(re.sub(r"(,\s*)+", ", ", " ".join(line.split())))


def _cut(paragraph: str) -> Iterator[str]:
    words, begin = paragraph.split(), 0
    for end, after in enumerate([*words[1:], "I"], 1):  # a word in small letters goes on: "Come! said she."
        if after[0].isupper() and ends_sentence(" ".join(words[max(begin, end - 2) : end])):
            yield " ".join(words[begin:end])
            begin = end


def passages(sentences: Sequence[str], chance: random.Random) -> list[str]:
    """Neighbours put together until they have as many words as was drawn from ``LENGTHS``."""
    made: list[str] = []
    part: list[str] = []
    words, least = 0, chance.choice(LENGTHS)
    for sentence in sentences:
        count = len(sentence.split())
        if part and words + count > max(least + 4, 16):
            made.append(" ".join(part))
            part, words, least = [], 0, chance.choice(LENGTHS)
        part.append(sentence)
        words += count
        if words >= least:
            made.append(" ".join(part))
            part, words, least = [], 0, chance.choice(LENGTHS)
    return [*made, " ".join(part)] if part else made


def write(manifest: Path, out: Path, *, sentences: Sequence[Path] = (), books: Path | None = None, seed: int = 0) -> int:
    """Returns how many passages were written. Raises ConfigError where there is nothing to read."""
    banned = {run for split, words in transcripts(manifest) if split.startswith("dev") for run in runs_of_words(words)}
    chance, found = random.Random(seed), list[str]()
    single = kept((line for path in sentences for line in read_lines(path)), banned)
    chance.shuffle(single)
    found += passages(single, chance)
    for path in sorted(books.glob("*.txt")) if books is not None else ():
        found += passages(kept(book_sentences(path.read_text(encoding="utf-8")), banned), chance)
    if not found:
        raise ConfigError(f"of {books or ', '.join(map(str, sentences)) or 'no file'} no sentence can be read: expected English prose")
    chance.shuffle(found)
    out.write_text("\n".join(found) + "\n", encoding="utf-8")
    return len(found)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, required=True, help="the corpus's manifest.tsv")
    parser.add_argument("--sentences", type=Path, nargs="+", default=[])
    parser.add_argument("--books", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    count = write(given.manifest, given.out, sentences=given.sentences, books=given.books, seed=given.seed)
    print(f"passages in {given.out}: {count}")


if __name__ == "__main__":
    as_command(main)
