"""Whether a model hears its words or has learnt them by heart: how well it foretells transcripts that it was trained on, and others.

    python bench/by_heart.py --store FOLDER --model small --source librispeech --split dev-clean

Whole, plain clips of one source of the training split, and of a dev split, 36 of each, with transcripts written by the same rule
(text.TrueCaser): nats for each token, and the share that is foretold, with the true tokens before it, and with 12 % of these wrong. Where
the two lines are far apart, more hours of the same clips will not help.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import tokenizers
import torch
from dragoman.model.checkpoint import load_model
from dragoman.model.load import model_folder
from dragoman.model.store import Store
from dragoman.model.training import text
from dragoman.model.training.batches import Batch, Batches, BatchOptions
from dragoman.model.training.probe import PLAIN
from dragoman.model.training.speech import Speech
from dragoman.model.training.student import Depths, LossWeights, Student

ROWS = BatchOptions(shapes=((320, 12, 1.0),), several=0.0, silence=0.0, labelled=1.0, truncate=0.0, mask_frames=0, augment=PLAIN)
WRONG = 0.12
BATCHES = 3


def student_of(folder: Path) -> Student:
    """A model folder's weights as a student, for its losses."""
    model = load_model(folder)
    student = Student(model.config, Depths())
    student.backbone.load_state_dict(model.backbone.state_dict())
    student.projector.load_state_dict(model.projector.state_dict())
    return student.eval()


def batches_of(speech: Speech, tokenizer: tokenizers.Tokenizer, wrong: float) -> list[Batch]:
    batches = Batches(speech, tokenizer, replace(ROWS, wrong_tokens=wrong), seed=0)
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
    folder = model_folder(given.model)
    student, tokenizer = student_of(folder), tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    case = text.TrueCaser(given.sentences.open(encoding="utf-8") if given.sentences else ())
    others = {clip.source: 0.0 for clip in Store(given.store).clips if clip.source != given.source}
    heard = {
        f"train, {given.source}": Speech([(given.store, 1.0)], case, sources=others),
        given.split: Speech([(given.store, 1.0)], case, split=given.split),
    }
    print("speech\tnats\tright\tnats, 12 % wrong before\tright")
    for name, speech in heard.items():
        figures = [foretold(student, batches_of(speech, tokenizer, wrong)) for wrong in (0.0, WRONG)]
        print(f"{name}\t" + "\t".join(f"{nats:.2f}\t{right:.0%}" for nats, right in figures))


if __name__ == "__main__":
    main()
