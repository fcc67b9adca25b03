"""When each character and word of a transcript is said, found on the teacher's features.

A small convolutional probe learns CTC over characters from the teacher's cached features (a minute or two for 20 h of speech); its
Viterbi path through each known transcript says where every character is. That turns a transcript into a dense target (one character
for each moment), from which hearing is learnt several times faster than through CTC, and lets audio and text be cut at one moment.

Written into a store's folder: ``characters-0.i8`` and ``.tsv`` (one class for each teacher row, laid out as the features are) and
``words.tsv`` (clip id, for each word the 40 ms frame in which it ends, for each of its letters the frame in which it is said).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

from ..store import Clip
from . import text
from .precision import autocast
from .processes import process_pool
from .speech import Speech
from .splices import FRAME
from .teachers import CENTRE_SAMPLES, HOP_SAMPLES, WIDTH, FeatureTable

REACH_ROWS = 6  # a character lasts at most so long (144 ms) on either side of its spike; what is farther from any is silence
BATCH_ROWS = 12_000


class FeatureProbe(nn.Module):
    """Teacher's features [B, rows, 288], standardised → log-probabilities [B, rows, classes]. Thrown away after aligning."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(WIDTH, width, 5, padding=2),
            nn.GELU(),
            nn.Conv1d(width, width, 5, padding=2),
            nn.GELU(),
            nn.Conv1d(width, len(text.CTC_CHARACTERS), 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.net(features.mT).mT.float().log_softmax(-1)


def train_probe(speech: Speech, *, passes: int = 2, lr: float = 2e-3, seed: int = 0) -> FeatureProbe:
    """CTC on every transcribed clip whose features are cached."""
    torch.manual_seed(seed)
    probe, rng = FeatureProbe(), np.random.default_rng(seed)
    optimiser = torch.optim.AdamW(probe.parameters(), lr=lr, weight_decay=0.01)
    groups = _groups(speech, speech.labelled)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=passes * len(groups), pct_start=0.1)
    for number in range(passes):
        total = characters = 0.0
        for i in track(rng.permutation(len(groups)), description=f"probe, pass {number + 1}"):
            features, lengths, targets = _load(speech, groups[int(i)])
            counts = torch.tensor([len(target) for target in targets])
            with autocast():
                logprobs = probe(features)
            flat = torch.tensor([c for target in targets for c in target])
            loss = F.ctc_loss(logprobs.transpose(0, 1), flat, lengths, counts, reduction="sum", zero_infinity=True)
            optimiser.zero_grad()
            (loss / counts.sum()).backward()
            nn.utils.clip_grad_norm_(probe.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            total, characters = total + float(loss.detach()), characters + float(counts.sum())
        print(f"pass {number + 1}: {total / characters:.3f} nats for each character")
    return probe


Item = tuple[int, Clip, str]


def _groups(speech: Speech, items: Iterable[Item]) -> list[list[Item]]:
    """Clips in batches of like length."""
    items = sorted((item for item in items if item[1].id in speech.tables[item[0]]), key=lambda item: item[1].samples)
    groups: list[list[Item]] = [[]]
    for item in items:
        if groups[-1] and (len(groups[-1]) + 1) * item[1].samples / HOP_SAMPLES > BATCH_ROWS:
            groups.append([])
        groups[-1].append(item)
    return groups


def _load(speech: Speech, group: Sequence[Item]) -> tuple[Tensor, Tensor, list[list[int]]]:
    rows = [speech.tables[which][clip.id] for which, clip, _ in group]
    features = np.zeros((len(rows), max(len(r) for r in rows), WIDTH), np.float32)
    for i, r in enumerate(rows):
        features[i, : len(r)] = (r - speech.spread[0]) / speech.spread[1]
    return torch.from_numpy(features), torch.tensor([len(r) for r in rows]), [text.ctc_targets(words) for _, _, words in group]


def viterbi(logprobs: NDArray[np.float32], targets: Sequence[int]) -> NDArray[np.int64]:
    """Best CTC path: [T, C] log-probabilities and n targets → [n] last row on which each target is emitted.

    Raises ValueError where the targets do not fit into T rows.
    """
    labels = np.zeros(2 * len(targets) + 1, np.int64)
    labels[1::2] = targets
    t, s = len(logprobs), len(labels)
    skip = np.zeros(s, bool)
    skip[3::2] = labels[3::2] != labels[1:-2:2]
    emitted = logprobs[:, labels].astype(np.float64)
    score = np.full(s, -np.inf)
    score[:2] = emitted[0, :2]
    back = np.zeros((t, s), np.int8)
    moves = np.full((3, s), -np.inf)
    for i in range(1, t):
        moves[0], moves[1, 1:], moves[2, 2:] = score, score[:-1], score[:-2]
        moves[2, ~skip] = -np.inf
        back[i] = moves.argmax(0)
        score = moves.max(0) + emitted[i]
    state = s - 1 if s == 1 or score[-1] >= score[-2] else s - 2
    if not np.isfinite(score[state]):
        raise ValueError(f"{len(targets)} characters do not fit into {t} rows")
    last = np.full(len(targets), -1, np.int64)
    for i in range(t - 1, -1, -1):
        if state % 2:
            last[state // 2] = max(last[state // 2], i)
        state -= int(back[i, state])
    return last


def word_ends(last: NDArray[np.int64], words: Sequence[str]) -> list[int]:
    """Last rows of characters (spaces included) → last row of each word; a word without characters ends with the one before."""
    ends: list[int] = []
    at = 0
    for word in words:
        pieces = text.ctc_targets(word)
        at += len(pieces) + (1 if at and pieces else 0)
        ends.append(int(last[at - 1]) if at else 0)
    return ends


def spread_characters(last: NDArray[np.int64], targets: Sequence[int], rows: int) -> NDArray[np.int8]:
    """Spikes → one class for each row: each row belongs to the nearest character, at most REACH_ROWS away, else to silence (0)."""
    if not len(last):
        return np.zeros(rows, np.int8)
    places = np.arange(rows)
    right = np.clip(np.searchsorted(last, places), 0, len(last) - 1)
    left = np.maximum(right - 1, 0)
    nearest = np.where(np.abs(last[left] - places) <= np.abs(last[right] - places), left, right)
    classes = np.asarray(targets)[nearest]
    classes[np.abs(last[nearest] - places) > REACH_ROWS] = 0
    return classes.astype(np.int8)


Place = tuple[int, str, str, list[int], int]  # store, clip id, text, targets, rows
Aligned = tuple[int, str, NDArray[np.int8], str]  # store, clip id, class of each row, moments of words and letters as written


@torch.inference_mode()
def align(probe: FeatureProbe, speech: Speech, folders: Sequence[Path], *, workers: int = 1) -> int:
    """Write ``characters-0`` and ``words.tsv`` into each store's folder; returns how many clips were aligned.

    The paths, which are Python loops over moments, are found by ``workers`` processes.
    """
    found: list[Aligned] = []
    partly = ((which, clip, words) for which, clip, words, _ in speech.partly)
    with process_pool(workers) as pool:
        running = list[Future[list[Aligned]]]()
        for group in track(_groups(speech, chain(speech.labelled, partly)), description="aligning"):
            features, lengths, targets = _load(speech, group)
            with autocast():
                logprobs = probe(features).numpy()
            places = [
                (which, clip.id, words, target, int(rows))
                for (which, clip, words), target, rows in zip(group, targets, lengths, strict=True)
            ]
            running.append(pool.submit(_paths, logprobs, places))
            if len(running) > 2 * workers:  # what waits is held in memory
                found += running.pop(0).result()
        found += chain.from_iterable(future.result() for future in running)
    for i, folder in enumerate(folders):
        rows = [each for each in found if each[0] == i]
        _replace(folder / "characters-0.i8", b"".join(classes.tobytes() for _, _, classes, _ in rows))
        _replace(folder / "characters-0.tsv", "".join(f"{name}\t{len(classes)}\n" for _, name, classes, _ in rows).encode())
        _replace(folder / "words.tsv", "".join(f"{name}\t{moments}\n" for _, name, _, moments in rows).encode())
    return len(found)


def _paths(logprobs: NDArray[np.float32], places: Sequence[Place]) -> list[Aligned]:
    """A clip whose text does not fit into its rows is left out."""
    found: list[Aligned] = []
    for one, (which, name, sentence, targets, rows) in zip(logprobs, places, strict=True):
        try:
            last = viterbi(one[:rows], targets)
        except ValueError:
            continue
        letters = [int(row) for row, target in zip(last, targets, strict=True) if target != text.SPACE]
        moments = f"{_frames(word_ends(last, sentence.split()))}\t{_frames(letters)}"
        found.append((which, name, spread_characters(last, targets, rows), moments))
    return found


def _replace(path: Path, data: bytes) -> None:
    """By rename: a run that has the old file mapped goes on with it."""
    part = path.with_name(f"part.{path.name}")
    part.write_bytes(data)
    os.replace(part, path)


def _frames(rows: Sequence[int]) -> str:
    """Teacher rows → 40 ms frames, as written."""
    return " ".join(str((row * HOP_SAMPLES + CENTRE_SAMPLES) // FRAME) for row in rows)


def character_table(folder: Path) -> FeatureTable:
    """The classes that :func:`align` wrote, by clip."""
    return FeatureTable(folder, "characters", np.int8, 1)
