"""What of a frame a narrow model looks at.

A projector of n = 640 samples into d < n numbers keeps d directions of a frame; all others leak into these, and no layer can tell them
apart again. The rows of v7's, learnt without care, kept little more of the bands' energies than rows drawn by chance do
(bench/what_frames_keep.py): Adam's steps are as large in directions of hardly any energy as in those of nearly all. Here a projector is
held to a span of d directions: those of most energy in speech, which are kept whole, and beside them those of the rest that it answers to
most. These are a sample of what is high and faint, where a band's strength alone tells sounds apart, and some of its directions tell that.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import ConfigError

FRAMES = 40_000
QUIET_RMS = 0.003  # of a frame; speech is louder
FAINTEST = 1e-9  # least energy of a direction: numbers below are rounding
Matrix = NDArray[np.float64]


def covariance(frames: Iterable[NDArray[np.float32]], most: int = FRAMES) -> Matrix:
    """[…, n] each → [n, n], of frames as loud as each other, as the model normalises them. Raises ConfigError where all is quiet."""
    loud: list[Matrix] = []
    for some in frames:
        rms = np.sqrt(np.mean(np.square(some, dtype=np.float64), axis=-1, keepdims=True))
        loud.append((some / np.maximum(rms, QUIET_RMS))[rms[..., 0] > QUIET_RMS])
        if sum(map(len, loud)) >= most:
            break
    every = np.concatenate(loud) if loud else np.zeros((0, 1))
    if not len(every):
        raise ConfigError("no frame of the clips is loud enough to be speech")
    return every.T @ every / len(every)


def span(weight: Tensor, energy: Matrix, strongest: int) -> Tensor:
    """weight [d, n], covariance [n, n] → [n, n] ``held``: weight @ held looks at d directions, and answers to these as nearly as can be as
    weight did. To hold what is held changes nothing. Raises ConfigError unless 0 < strongest <= d."""
    wide, places = weight.shape[0], weight.detach().double().numpy()
    if not 0 < strongest <= wide:
        raise ConfigError(f"strongest is {strongest}, expected 1 to {wide}, the width of the model")
    values, vectors = np.linalg.eigh(energy)
    values, vectors = np.maximum(values[::-1], FAINTEST * values[-1]), vectors[:, ::-1]
    strong, faint, spread = vectors[:, :strongest].T, vectors[:, strongest:], np.sqrt(values[strongest:])
    answers = np.linalg.svd(places @ faint * spread, full_matrices=False)[2][: wide - strongest]
    kept = np.concatenate([strong, answers / spread @ faint.T])
    return torch.from_numpy(likeliest(kept, energy) @ kept).to(weight)


def likeliest(rows: Matrix, energy: Matrix) -> Matrix:
    """rows [d, n], covariance [n, n] → [n, d], by which ``rows @ frame`` becomes the expected frame (Wiener): what the rows do not tell is
    put where it is likeliest to be."""
    seen = rows @ energy
    return seen.T @ np.linalg.pinv(seen @ rows.T, rcond=1e-10)


@torch.no_grad()
def hold(weight: Tensor, held: Tensor) -> None:
    """Bring a projector's weights [d, n] back to what it may look at, of :func:`span`."""
    weight.copy_(weight @ held)
