"""How much of a frame's spectrum a model's projector lets through.

    python bench/what_frames_keep.py --store FOLDER --model small

A frame of 640 samples becomes as many numbers as the model is wide, and the small default is narrower than a frame is long. From these
numbers the likeliest frame is put together again (Wiener), and the energies of its bands, as logarithms, are compared with those of the
true frame: the share of their variance that is foretold, in quarters of the bands from low to high. 1 is all. Beside the model stand
directions drawn by chance, and the strongest ones of these frames.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from dragoman.model.checkpoint import load_model
from dragoman.model.config import SAMPLE_RATE
from dragoman.model.load import model_folder
from dragoman.model.store import Store
from dragoman.model.training.frames import covariance, likeliest
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

Matrix = NDArray[np.float64]
FRAMES = 20_000
FLOOR = 1e-3  # of the mean energy of a band
# Name, samples of a window, where windows begin in a frame, bands.
RESOLUTIONS = (("40 bands of the whole frame", 512, (64,), 40), ("24 bands each 8 ms", 256, (0, 128, 256, 384), 24))


def some_frames(store: Store, samples: int, rng: np.random.Generator) -> Matrix:
    """[n, samples] of random moments of transcribed clips, as loud as each other; none that is nearly silent."""
    clips = [clip for clip in store.clips if clip.text and clip.samples > 2 * samples]
    found: list[Matrix] = []
    for i in rng.choice(len(clips), FRAMES):
        begin = int(rng.integers(clips[i].samples - samples))
        frame = store.samples(clips[i])[begin : begin + samples].astype(np.float64)
        if (rms := float(np.sqrt(np.mean(frame**2)))) > 0.005:
            found.append(frame / rms)
    return np.stack(found)


def bands(frames: Matrix, window: int, places: Sequence[int], count: int) -> Matrix:
    """[n, samples] → logarithms of energies [n, windows, count], on the mel scale."""
    top = 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, count + 2) / 2595) - 1)
    hertz = np.linspace(0, SAMPLE_RATE / 2, window // 2 + 1)
    slope = (hertz - edges[:-1, None]) / np.diff(edges)[:, None]  # 0 to 1 between two edges
    shape = np.clip(np.minimum(slope[:-1], 1 - slope[1:]), 0, None)
    shape[np.arange(count), np.abs(hertz - edges[1:-1, None]).argmin(1)] += 1e-3  # a narrow band has the nearest line
    cut = np.stack([frames[:, begin : begin + window] for begin in places], 1) * np.hanning(window)
    energy = np.abs(np.fft.rfft(cut)) ** 2 @ (shape / shape.sum(1, keepdims=True)).T
    return np.log(energy + FLOOR * energy.mean((0, 1)))


def foretold(true: Matrix, guess: Matrix) -> Matrix:
    """[n, w, b] twice → [b]: share of the variance, by the best straight line for each band."""
    return np.array([np.corrcoef(true[..., b].ravel(), guess[..., b].ravel())[0, 1] ** 2 for b in range(true.shape[-1])])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--model", default="small")
    given = parser.parse_args(arguments)
    weight = load_model(model_folder(given.model)).projector.embedding_projection.weight.detach().double().numpy()
    wide, samples = weight.shape
    rng = np.random.default_rng(0)
    frames = some_frames(Store(given.store), samples, rng)
    energy = covariance([frames.astype(np.float32)])
    strongest = np.linalg.eigh(energy)[1][:, ::-1][:, :wide].T
    seen = {f"{given.model}, width {wide}": weight, "by chance": rng.standard_normal((wide, samples)), "the strongest": strongest}
    table = Table("variance of log energies foretold", *(f"{name}: mean, quarters" for name, *_ in RESOLUTIONS))
    true = [bands(frames, *how) for _, *how in RESOLUTIONS]
    for name, rows in seen.items():
        guess = frames @ (likeliest(rows, energy) @ rows).T
        shares = [foretold(real, bands(guess, *how)) for real, (_, *how) in zip(true, RESOLUTIONS, strict=True)]
        table.add_row(name, *(f"{s.mean():.2f}: " + " ".join(f"{part.mean():.2f}" for part in np.split(s, 4)) for s in shares))
    Console().print(table)


if __name__ == "__main__":
    main()
