"""Runs of words cut out of clips, to be joined into sentences that nobody ever said.

With some tens of hours of speech a model learns its transcripts by heart and guesses the next word instead of hearing it. What was
written before a joint says little about what comes after it, so it has to listen there. Aligned data augmentation (Lam et al., "On-the-fly
aligned data augmentation for sequence-to-sequence ASR", Interspeech 2021, arXiv 2104.01393) swaps single words between speakers;
here whole runs of one speaker's words follow each other, so that most words keep their neighbours and the voice stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein

from ..config import SAMPLE_RATE
from ..sentences import ends_sentence
from . import text

FRAME = 640
HOP_SAMPLES = SAMPLE_RATE // 100  # a joint lies in the quietest 20 ms between two words, looked for every 10 ms

LEAST_AGREED = 2
PAUSES, PAUSE = 0.15, (1_600, 12_000)  # share of the joints with one, and how many samples it has


@dataclass(frozen=True, slots=True)
class Run:
    """Some consecutive words of a clip."""

    start: int  # samples of the clip
    end: int
    words: str
    letters: list[float]  # for each letter, in frames from ``start`` on, when it is said
    opens: bool  # its first word is the clip's first one


def cut_run(wave: NDArray[np.float32], transcript: str, letters: Sequence[int], first: int, count: int) -> Run | None:
    """Words ``first`` … ``first + count - 1`` of a clip (fewer where it ends); None where letters and words do not match.

    ``letters``: for each letter or digit of the transcript the frame of 640 samples in which it is said (``words.tsv``).
    """
    words = transcript.split()
    spelt = [sum(c != text.SPACE for c in text.ctc_targets(word)) for word in words]
    if sum(spelt) != len(letters) or first >= len(words):
        return None
    last = min(first + count, len(words))
    low, high = sum(spelt[:first]), sum(spelt[:last])
    if low == high:
        return None
    start = 0 if first == 0 or low == 0 else _quietest(wave, letters[low - 1], letters[low])
    end = len(wave) if last == len(words) or high == len(letters) else _quietest(wave, letters[high - 1], letters[high])
    if end - start < FRAME:
        return None
    said = [letter - start / FRAME for letter in letters[low:high]]
    return Run(start, end, " ".join(words[first:last]), said, first == 0)


def _quietest(wave: NDArray[np.float32], before: int, after: int) -> int:
    """Sample between two letters, given by their frames, at which a cut is heard least."""
    low, high = before * FRAME + FRAME // 2, after * FRAME + FRAME // 2
    hops = (min(high, len(wave)) - low) // HOP_SAMPLES
    if hops < 3:
        return min((low + high) // 2, len(wave))
    loud = np.square(wave[low : low + hops * HOP_SAMPLES], dtype=np.float64).reshape(hops, HOP_SAMPLES).sum(1)
    return low + (int(np.argmin(loud[:-1] + loud[1:])) + 1) * HOP_SAMPLES


def written_after(run: Run, before: str) -> str:
    """The run's words as they are written after ``before``: a capital where a sentence begins; where none does, it loses its own."""
    words = run.words
    if not before or ends_sentence(before):
        return words[0].upper() + words[1:]
    first = words.split()[0].rstrip(".,;:!?")
    if run.opens and first != "I" and not first.startswith(("I'", "I’")) and not first[1:].isupper():
        return words[0].lower() + words[1:]
    return words


def agreed_runs(one: str, other: str) -> list[tuple[int, int]]:
    """Words of ``one``, as ranges, that ``other`` has too, but for the word beside each difference: nobody knows where that one ends.

    So a clip on which two recognisers differ too much to be believed still gives what both heard.
    """
    ours, theirs = [text.word_key(word) for word in one.split()], [text.word_key(word) for word in other.split()]
    runs: list[tuple[int, int]] = []
    for block in Levenshtein.opcodes(ours, theirs):
        if block.tag == "equal":
            first, end = block.src_start + (block.src_start > 0), block.src_end - (block.src_end < len(ours))
            if end - first >= LEAST_AGREED:
                runs.append((first, end))
    return runs
