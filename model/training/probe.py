"""A quick look at dev speech during a run: what the throw-away character head hears, and how well the text is foretold."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import tokenizers
import torch

from ..checkpoint import load_model
from ..scoring import word_errors
from . import text
from .augment import AugmentOptions
from .batches import Batches, BatchOptions
from .precision import autocast
from .rows import Batch
from .speech import Speech
from .student import Depths, LossWeights, Student

PLAIN = AugmentOptions(speed=0.0, noise=0.0, hiss=0.0, room=0.0, tilt=0.0, band=0.0)
ROWS = BatchOptions(shapes=((320, 12, 1.0),), several=0.0, silence=0.0, labelled=1.0, truncate=0.0, mask_frames=0, augment=PLAIN)


def student_of(folder: Path) -> tuple[Student, tokenizers.Tokenizer]:
    """The model of a folder as training sees it, to be looked at, and its tokenizer. Heads are random. Errors as of ``load_model``."""
    model = load_model(folder)
    student = Student(model.config, Depths()).eval()
    student.take(model)
    return student, tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


class Probe:
    """``probe(student)`` → figures on a fixed sample of a dev split, unaugmented."""

    def __init__(self, store: Path, tokenizer: tokenizers.Tokenizer, case: text.TrueCaser | None, *, split: str, batches: int = 3) -> None:
        dev = Batches(Speech([(store, 1.0)], case, split=split), tokenizer, ROWS, seed=0)
        self._batches = [dev[i] for i in range(batches)]

    @torch.inference_mode()
    def __call__(self, student: Student) -> dict[str, Any]:
        references, heard, words, right = [], [], 0.0, 0.0
        for batch in self._batches:
            _, figures = student(batch, LossWeights(features=0.0, characters=0.0, words=1.0))
            words, right = words + figures["words"], right + figures["words_right"]
            references += _split(batch)
            heard += ctc_greedy(student, batch)
        n = len(self._batches)
        wer = word_errors(references, heard).rate
        return {"dev_words": round(words / n, 4), "dev_words_right": round(right / n, 4), "dev_heard_wer": round(wer, 4), "heard": heard[0]}


def ctc_greedy(student: Student, batch: Batch) -> list[str]:
    """Best characters of each row, repeats merged (double letters too, unless CTC has trained the head)."""
    with autocast():
        best = student.character_head(student.hidden_states(batch)[student.depths.ctc][:, 2:]).argmax(-1)
    rows = [row[: int(n)].tolist() for row, n in zip(best, batch.audio_frames, strict=True)]
    return ["".join(text.CTC_CHARACTERS[c] for c, _ in groupby(row) if c).strip() for row in rows]


def _split(batch: Batch) -> list[str]:
    characters = batch.ctc.tolist()
    out: list[str] = []
    for n in batch.ctc_lengths.tolist():
        out.append("".join(text.CTC_CHARACTERS[c] for c in characters[:n]))
        characters = characters[n:]
    return out
