"""Transcripts for speech that has none, where two published recognisers agree; case and punctuation for upper-case ones.

    dragoman train label --config run.yaml                          # every store of the run's file that has ``labels``
    dragoman train label --config run.yaml --part 1 --parts 2       # a share of it: one process for each core

A clip without a transcript gets one if both recognisers (:mod:`.recognisers`) say the same but for ``MOST_MUTUAL`` of the words: who
makes up words, in noise or in a loop, is alone with them. An upper-case transcript keeps its words and takes over how Moonshine
writes those that it heard too. Written into a store's folder: ``labels-<part>.tsv`` (:func:`~dragoman.model.store.read_labels`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein
from rich.progress import track

from ..scoring import normalise
from ..sentences import ends_sentence
from ..store import Clip, Label, Store, read_labels
from . import text
from .recognisers import MoonshineDecoder, Whisper
from .speech import LONGEST_SAMPLES, SHORTEST_SAMPLES
from .teachers import SPREAD, FeatureTable, MoonshineEncoder

MOST_MUTUAL = 0.15
CLIPS_AT_ONCE = 16  # decoded together and written together: what a killed run loses at most
CLIPS_SORTED = 512  # among so many, clips of like length come together

Waves = Sequence[NDArray[np.float32]]
Case = Callable[[str], str]


def mutual_error(one: str, other: str) -> float:
    """Word errors between two readings, normalised as for a score, for each word of the shorter one; 1.0 if one is empty."""
    a, b = normalise(one).split(), normalise(other).split()
    if not a or not b:
        return 1.0
    return Levenshtein.distance(a, b) / min(len(a), len(b))


def better_written(one: str, other: str) -> str:
    """Of two readings that agree, the one to learn from: words rather than digits, a closing mark, more marks; else the first."""

    def rank(reading: str) -> tuple[bool, bool, bool, int]:
        words = not re.search(r"[^\w\s.,;:!?'’\"()-]|\d", reading)
        return words, reading[:1].isupper(), reading.endswith((".", "?", "!")), len(re.findall(r"[.,;:!?]", reading))

    return max((one, other), key=rank)


def restore(transcript: str, heard: str, case: Case) -> str:
    """An upper-case transcript written as a recogniser wrote what it heard, word by word; its words and their number stay.

    Where they disagree ``case`` decides (:class:`.text.TrueCaser`), which keeps the number of words too.
    """
    plain, written = case(transcript).split(), heard.split()
    keys, theirs = [text.word_key(word) for word in plain], [text.word_key(word) for word in written]
    places = dict[int, int]()
    for block in Levenshtein.opcodes(keys, theirs):
        if block.tag == "equal":
            places |= zip(range(block.src_start, block.src_end), range(block.dest_start, block.dest_end), strict=True)
    said: list[str] = []
    for i, word in enumerate(plain):
        starts = not said or ends_sentence(said[-1])
        if i in places:
            j = places[i]
            capital_by_place = (j == 0 or ends_sentence(written[j - 1])) and word[0].islower()
            word = written[j] if starts or not capital_by_place else written[j][0].lower() + written[j][1:]
        said.append(word[0].upper() + word[1:] if starts else word)
    if not said or ends_sentence(said[-1]):
        return " ".join(said)
    return " ".join([*said[:-1], said[-1].rstrip(".,;:-—") + case(transcript)[-1]])


def write_labels(
    store_folder: Path,
    case: Case,
    part: int = 0,
    parts: int = 1,
    *,
    labeller: Callable[[Store, Case], Callable[[Sequence[Clip]], list[Label]]] | None = None,
) -> int:
    """Label every clip of a store that wants it and whose number ≡ part (mod parts); returns how many rows were added.

    Goes on where an earlier run stopped. ``labeller`` stands in for :class:`Labeller`. Raises ModuleNotFoundError or
    FileNotFoundError where a teacher is not installed.
    """
    if not 0 <= part < parts:
        raise ValueError(f"part is {part} of {parts}, expected 0 to {parts - 1}")
    store, done = Store(store_folder), read_labels(store_folder)
    todo = [c for i, c in enumerate(store.clips) if i % parts == part and c.id not in done and wanting(c)]
    if not todo:
        return 0
    label = (labeller or Labeller)(store, case)
    with (store_folder / f"labels-{part}.tsv").open("ab") as out:
        out.truncate(_whole_lines(store_folder / f"labels-{part}.tsv"))
        for group in track(list(groups(todo)), description=f"teachers' labels {part + 1}/{parts}"):
            out.write("".join(row.line() for row in label(group)).encode())
            out.flush()
    return len(todo)


def wanting(clip: Clip) -> bool:
    """Whether a clip is to be labelled. Clips that batches leave out are not worth the time."""
    if clip.lang != "en" or not SHORTEST_SAMPLES <= clip.samples <= LONGEST_SAMPLES:
        return False
    return clip.split == "unlabelled" or (clip.split == "train" and shouted(clip.text))


def shouted(words: str) -> bool:
    """Upper case and more than a letter or two: case and punctuation were never written down."""
    return words == words.upper() and sum(c.isalpha() for c in words) > 2


def groups(clips: Sequence[Clip]) -> Iterator[list[Clip]]:
    """Clips of like length together; those with a transcript apart from those without."""
    for first in range(0, len(clips), CLIPS_SORTED):
        some = clips[first : first + CLIPS_SORTED]
        for kind in (False, True):
            like = sorted((c for c in some if bool(c.text) == kind), key=lambda c: c.samples)
            yield from (like[i : i + CLIPS_AT_ONCE] for i in range(0, len(like), CLIPS_AT_ONCE))


def _whole_lines(path: Path) -> int:
    """Bytes up to the last line end: a killed run may have left half a row."""
    return path.read_bytes().rfind(b"\n") + 1


class Labeller:
    """Both recognisers. ``__call__``: clips, all with a transcript or all without → a label for each."""

    def __init__(self, store: Store, case: Case, threads: int = 1) -> None:
        self._store, self._case, self._features = store, case, FeatureTable(store.folder)
        self._encode, self._decode = MoonshineEncoder(threads), MoonshineDecoder(threads)
        self._whisper = Whisper(threads)

    def __call__(self, clips: Sequence[Clip]) -> list[Label]:
        heard = self._decode([self._hidden(clip) for clip in clips])
        if clips[0].text:
            written = [restore(clip.text, said, self._case) for clip, said in zip(clips, heard, strict=True)]
            return [
                Label(clip.id, "restored", line, mutual_error(clip.text, said), said, "")
                for clip, line, said in zip(clips, written, heard, strict=True)
            ]
        second = self._whisper([self._store.samples(clip) for clip in clips])
        return [judge(clip.id, a, b) for clip, a, b in zip(clips, heard, second, strict=True)]

    def _hidden(self, clip: Clip) -> NDArray[np.float32]:
        if clip.id in self._features:
            return self._features[clip.id].astype(np.float32) * SPREAD
        return self._encode(self._store.samples(clip))


def judge(clip_id: str, moonshine: str, whisper: str) -> Label:
    """A clip's label from two readings: "pseudo" where they agree, else "refused" without a text."""
    error = mutual_error(moonshine, whisper)
    agreed = error < MOST_MUTUAL and bool(text.ctc_targets(whisper))
    words = better_written(whisper, moonshine) if agreed else ""
    return Label(clip_id, "pseudo" if agreed else "refused", words, error, moonshine, whisper)
