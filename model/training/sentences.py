"""Sentences to read aloud and to learn case from, without a word of what is measured.

    python -m dragoman.model.training.sentences --text FOLDER --manifest FILE --out FOLDER

FOLDER holds ``sentences-en.txt.xz`` (one sentence a line) and pairs ``en-<language>.tsv.xz`` (English TAB other). Written are
``sentences.txt`` (what synthetic voices read), ``pairs-en.txt`` (English sides of the pairs) and ``held-out-<language>.txt`` (English
sides of the pairs that measure translation, for a store that is only measured on). Left out of the first two: transcripts of every dev
split, the last 1,000 pairs of each language after a shuffle with seed 0 (they measure translation), and from the first file what is
in the training transcripts already.
"""

from __future__ import annotations

import argparse
import csv
import lzma
import random
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import ConfigError, as_command

HELD_OUT_PAIRS = 1000
MOST_SENTENCES = 40_000


def plain(sentence: str) -> str:
    """Lower case, letters, digits and apostrophes only: how sentences are compared."""
    return " ".join(re.sub(r"[^a-z0-9' ]+", " ", sentence.lower()).split())


def read_pairs(path: Path) -> tuple[list[str], list[str]]:
    """English sides of a pair file: (for training, held out)."""
    kept, held = split_pairs(path)
    return [english for english, _ in kept], [english for english, _ in held]


def split_pairs(path: Path) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(English, other) pairs of a file: (for training, held out). Raises ConfigError for a line without a TAB, or too few lines."""
    lines = [line.split("\t") for line in read_lines(path)]
    short = next((number for number, line in enumerate(lines, 1) if len(line) < 2), None)
    if short is not None:
        raise ConfigError(f"{path}, line {short}: expected English TAB other, got {lines[short - 1][0]!r}")
    if len(lines) <= HELD_OUT_PAIRS:
        raise ConfigError(f"{path} has {len(lines)} pairs, expected more than the {HELD_OUT_PAIRS} that are held out")
    pairs = [(line[0], line[1]) for line in lines]
    random.Random(0).shuffle(pairs)
    return pairs[:-HELD_OUT_PAIRS], pairs[-HELD_OUT_PAIRS:]


def choose(sentences: Iterable[str], banned: set[str], *, least_words: int, most_words: int = 25) -> list[str]:
    """Sorted sentences of a length that a voice reads well and that are not banned."""
    return sorted({s for s in sentences if plain(s) not in banned and least_words <= len(s.split()) <= most_words})


def transcripts(manifest: Path) -> list[tuple[str, str]]:
    """(split, transcript) of every clip of a corpus; "" where there is none."""
    with manifest.open(encoding="utf-8", newline="") as file:
        return [(row["split"], row["text"] or "") for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]


def write(text_folder: Path, manifest: Path, out: Path) -> tuple[int, int]:
    """Returns how many sentences went into each file."""
    rows = [(split, plain(words)) for split, words in transcripts(manifest)]
    dev = {words for split, words in rows if split.startswith("dev")}
    train = {words for split, words in rows if split == "train"}
    files = sorted(text_folder.glob("en-*.tsv.xz"), key=lambda path: path.name)
    parts = [read_pairs(path) for path in files]
    held_out = {plain(sentence) for _, held in parts for sentence in held}
    prompts = choose(read_lines(text_folder / "sentences-en.txt.xz"), dev | train | held_out, least_words=4)
    pairs = choose((sentence for kept, _ in parts for sentence in kept), dev | held_out, least_words=5)
    rng = random.Random(0)
    rng.shuffle(prompts)
    rng.shuffle(pairs)
    out.mkdir(parents=True, exist_ok=True)
    prompts = prompts[:MOST_SENTENCES]
    (out / "sentences.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")
    (out / "pairs-en.txt").write_text("\n".join(pairs) + "\n", encoding="utf-8")
    for path, (_, held) in zip(files, parts, strict=True):
        language = path.name.removeprefix("en-").removesuffix(".tsv.xz")
        (out / f"held-out-{language}.txt").write_text("\n".join(held) + "\n", encoding="utf-8")
    return len(prompts), len(pairs)


def read_lines(path: Path) -> list[str]:
    """Of a text file, which may be packed by xz."""
    with lzma.open(path, "rt", encoding="utf-8") if path.suffix == ".xz" else path.open(encoding="utf-8") as file:
        return file.read().splitlines()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("text", "manifest", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    given = parser.parse_args(arguments)
    prompts, pairs = write(given.text, given.manifest, given.out)
    print(f"{prompts} sentences to read, {pairs} English sides of pairs in {given.out}")


if __name__ == "__main__":
    as_command(main)
