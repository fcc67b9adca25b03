"""Read access to a folder of decoded speech, by memory map; :mod:`.training.store` makes one.

A store is ``audio.i16`` (all clips end to end, 16 kHz mono int16), ``clips.tsv`` (one row a clip) and perhaps ``words.tsv`` (when each
word was said, found by :mod:`.training.align`) and ``labels-<part>.tsv`` (transcripts by :mod:`.training.labels`).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .config import SAMPLE_RATE

COLUMNS = ("id", "split", "lang", "speaker", "source", "licence", "text", "offset_samples", "samples")


@dataclass(frozen=True, slots=True)
class Clip:
    """One utterance of a store. ``offset_samples`` points into ``audio.i16``."""

    id: str
    split: str
    lang: str
    speaker: str
    source: str
    licence: str
    text: str
    offset_samples: int
    samples: int

    @property
    def seconds(self) -> float:
        return self.samples / SAMPLE_RATE


class Store:
    """Read access to a store folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.clips = list(read_clips(self.folder / "clips.tsv"))
        self.audio: NDArray[np.int16] = np.memmap(self.folder / "audio.i16", dtype=np.int16, mode="r")

    def samples(self, clip: Clip) -> NDArray[np.float32]:
        """Waveform of a clip, float32 in [-1, 1], shape [clip.samples]."""
        part = self.audio[clip.offset_samples : clip.offset_samples + clip.samples]
        return part.astype(np.float32) / 32768.0


def read_clips(path: Path) -> Iterator[Clip]:
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            texts = {name: row[name] for name in COLUMNS[:-2]}
            yield Clip(**texts, offset_samples=int(row["offset_samples"]), samples=int(row["samples"]))


def read_word_ends(folder: Path) -> dict[str, list[int]]:
    """``words.tsv`` of a store → {clip id: frame by which each word was heard}; empty if there is none."""
    path = folder / "words.tsv"
    if not path.exists():
        return {}
    rows = (line.split("\t") for line in path.read_text().splitlines())
    return {row[0]: [int(end) for end in row[1].split()] for row in rows}


def read_letter_frames(folder: Path) -> dict[str, list[int]]:
    """``words.tsv`` of a store → {clip id: frame in which each letter or digit is said, spaces left out}."""
    path = folder / "words.tsv"
    if not path.exists():
        return {}
    rows = (line.split("\t") for line in path.read_text().splitlines())
    return {row[0]: [int(frame) for frame in row[2].split()] for row in rows if len(row) > 2}


@dataclass(frozen=True, slots=True)
class Label:
    """What recognisers made of one clip: a row of ``labels-<part>.tsv``."""

    clip_id: str
    kind: str  # "pseudo": they agree; "restored": an upper-case transcript, written as they write; "refused": no text
    text: str
    mutual_error: float  # word errors for each word: between the two, or between the transcript and the first
    moonshine: str
    whisper: str  # "" where it was not asked

    def line(self) -> str:
        texts = (" ".join(words.split()) for words in (self.moonshine, self.whisper))
        return "\t".join((self.clip_id, self.kind, self.text, f"{self.mutual_error:.3f}", *texts)) + "\n"


def read_labels(folder: Path) -> dict[str, Label]:
    """All ``labels-<part>.tsv`` of a store → {clip id: label}. A row that a killed run left unfinished is passed over."""
    found: dict[str, Label] = {}
    for path in sorted(folder.glob("labels-*.tsv")):
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        for clip_id, kind, text, error, moonshine, whisper in (line.split("\t") for line in lines):
            found[clip_id] = Label(clip_id, kind, text, float(error), moonshine, whisper)
    return found
