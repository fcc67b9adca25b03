"""Where a model hears: how much of the teacher's features and of log-mel can be read out of each layer by a straight line.

    python bench/what_layers_hear.py --store FOLDER --model small

The share of variance that ridge regression misses, fitted on three quarters of the moments of whole, plain clips and measured on the
rest: of the features that a run asks for (6 frames late) after every layer, and of log-mel, one frame late, after those of the front
end. The clips are of the training split, of which ``prepare`` keeps the features; hearing, unlike words, is not learnt by heart. Where
the features' line still falls steeply from one layer to the next, the model is short of layers.

Beside it what hearing so early costs at all: the share by which the teacher's own features change when it hears the audio only up to
some time after the moment that they describe. No causal model can be told the rest.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from dragoman.model.config import SAMPLE_RATE
from dragoman.model.load import model_folder
from dragoman.model.store import Store
from dragoman.model.training.batches import Batches
from dragoman.model.training.precision import autocast
from dragoman.model.training.probe import ROWS, student_of
from dragoman.model.training.speech import Speech
from dragoman.model.training.student import Student, log_mel
from dragoman.model.training.teachers import CENTRE_SAMPLES, HOP_SAMPLES, MoonshineEncoder
from torch import Tensor

FRONT_END = 4  # layers of which log-mel is asked
MEL_DELAY = 1  # frames: the last windows of a frame reach into the next one
RIDGE = 1e-3
LOOKAHEADS_MS = (120, 240, 360, 480, 1000)


def missed(x: Tensor, y: Tensor) -> float:
    """Share of the variance of y [n, e] that a straight line from x [n, d] misses, on the last quarter."""
    n = len(x) * 3 // 4
    inputs = torch.cat([x, torch.ones(len(x), 1)], 1).double()
    gram = inputs[:n].T @ inputs[:n]
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    line = torch.linalg.solve(gram, inputs[:n].T @ y[:n].double())
    wrong = (inputs[n:] @ line - y[n:]).square().mean(0)
    return float(wrong.sum() / (y[n:] - y[:n].mean(0)).double().square().mean(0).sum())


@torch.inference_mode()
def heard(student: Student, batches: Batches, count: int) -> list[tuple[float, float | None]]:
    """Of the model's input and each layer: features and log-mel missed."""
    depth = student.config.backbone.num_layers
    states: list[list[Tensor]] = [[] for _ in range(depth + 1)]
    early: list[list[Tensor]] = [[] for _ in range(FRONT_END + 1)]
    features, mel = list[Tensor](), list[Tensor]()
    for i in range(count):
        batch = batches[i]
        with autocast():
            hidden = student.hidden_states(batch)
        there = (batch.frames.abs().amax(-1) > 0)[:, :-MEL_DELAY]
        features.append(batch.features.float())
        mel.append(log_mel(batch.frames, student.config.audio.rms_norm_eps)[:, :-MEL_DELAY][there])
        for place, x in enumerate(hidden):
            states[place].append(x.flatten(0, 1)[batch.feature_rows].float())
            if place <= FRONT_END:
                early[place].append(x[:, MEL_DELAY:].float()[there])
    wanted, bands = torch.cat(features), torch.cat(mel)
    if not len(wanted):
        raise SystemExit("the store holds no features of the teacher for clips of this split")
    spectra = [missed(torch.cat(x), bands) for x in early]
    return [(missed(torch.cat(x), wanted), spectra[place] if place <= FRONT_END else None) for place, x in enumerate(states)]


def teacher_alone(store: Store, split: str, clips: int, seed: int = 0) -> dict[int, float]:
    """Lookahead in ms → share by which the teacher's features differ from those of the whole clip, at four moments of each clip."""
    encoder, rng = MoonshineEncoder(), np.random.default_rng(seed)
    some = [clip for clip in store.clips if clip.split == split and clip.seconds > 6]
    cut: dict[int, list[np.ndarray]] = {ahead: [] for ahead in LOOKAHEADS_MS}
    whole: list[np.ndarray] = []
    for i in rng.permutation(len(some))[:clips]:
        wave = store.samples(some[i])
        rows = encoder(wave)
        for at in rng.integers(3 * SAMPLE_RATE, len(wave) - 2 * SAMPLE_RATE, 4):
            row = (int(at) - CENTRE_SAMPLES) // HOP_SAMPLES
            whole.append(rows[row])
            for ahead, found in cut.items():
                found.append(encoder(wave[: int(at) + ahead * SAMPLE_RATE // 1000])[row])
    spread = np.stack(whole).std(0)
    return {ahead: float(np.square((np.stack(found) - np.stack(whole)) / spread).mean()) for ahead, found in cut.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True, help="a store of speech with the teacher's features (dragoman train prepare)")
    parser.add_argument("--model", default="small")
    parser.add_argument("--split", default="train")
    parser.add_argument("--batches", type=int, default=10, help="of twelve rows of 12.8 s")
    parser.add_argument("--clips", type=int, default=25, help="for the teacher alone; 0: leave it out")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    student, tokenizer = student_of(model_folder(given.model))
    batches = Batches(Speech([(given.store, 1.0)], None, split=given.split), tokenizer, ROWS, seed=0)
    print("layer\tfeatures missed\tlog-mel missed")
    for place, (features, mel) in enumerate(heard(student, batches, given.batches)):
        print(f"{place or 'input'}\t{features:.3f}\t{'' if mel is None else f'{mel:.3f}'}")
    if given.clips:
        print("\nthe teacher itself, hearing so much after the moment\tfeatures missed")
        for ahead, share in teacher_alone(Store(given.store), given.split, given.clips).items():
            print(f"{ahead} ms\t{share:.3f}")


if __name__ == "__main__":
    main()
