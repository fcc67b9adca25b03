"""Whether a model hears its words or has learnt them by heart: how well it foretells transcripts that it was trained on, and others.

    python bench/by_heart.py --store FOLDER --model small --source librispeech --split dev-clean

Whole, plain clips of one source of the training split, and of a dev split, 36 of each, with transcripts written by the same rule
(text.TrueCaser): nats for each token, and the share that is foretold, with the true tokens before it, with 12 % of these
wrong, and of the written sentences alone, without audio. Where the two lines are far apart, more hours of the same clips will not help.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import tokenizers
import torch
from dragoman.model.load import model_folder
from dragoman.model.store import Store
from dragoman.model.training import text
from dragoman.model.training.batches import Batches
from dragoman.model.training.probe import ROWS, student_of
from dragoman.model.training.rows import Batch
from dragoman.model.training.speech import Speech
from dragoman.model.training.student import LossWeights, Student

WRONG = 0.12
BATCHES = 3


def batches_of(speech: Speech, tokenizer: tokenizers.Tokenizer, **options: float) -> list[Batch]:
    sentences = [words for _, _, words in speech.labelled]
    batches = Batches(speech, tokenizer, replace(ROWS, **options), seed=0, sentences=sentences)
    return [batches[i] for i in range(BATCHES)]


@torch.inference_mode()
def foretold(student: Student, batches: Sequence[Batch]) -> tuple[float, float]:
    """Nats for each token, and the share foretold."""
    figures = [student(batch, LossWeights(features=0.0, characters=0.0))[1] for batch in batches]
    return tuple(sum(f[name] for f in figures) / len(figures) for name in ("words", "words_right"))  # pyright: ignore[reportReturnType]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True, help="a store of speech (dragoman train prepare)")
    parser.add_argument("--model", default="small")
    parser.add_argument("--source", default="librispeech", help="of the training split")
    parser.add_argument("--split", default="dev-clean")
    parser.add_argument("--sentences", type=Path, help="one a line: which words begin with a capital")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    student, tokenizer = student_of(model_folder(given.model))
    case = text.TrueCaser(given.sentences.open(encoding="utf-8") if given.sentences else ())
    others = {clip.source: 0.0 for clip in Store(given.store).clips if clip.source != given.source}
    heard = {
        f"train, {given.source}": Speech([(given.store, 1.0)], case, sources=others),
        given.split: Speech([(given.store, 1.0)], case, split=given.split),
    }
    print("speech\tnats\tright\tnats, 12 % wrong before\tright\tnats, text without audio\tright")
    for name, speech in heard.items():
        looks: tuple[dict[str, float], ...] = ({}, {"wrong_tokens": WRONG}, {"written": 1.0})
        figures = [foretold(student, batches_of(speech, tokenizer, **look)) for look in looks]
        print(f"{name}\t" + "\t".join(f"{nats:.2f}\t{right:.0%}" for nats, right in figures))


if __name__ == "__main__":
    main()
