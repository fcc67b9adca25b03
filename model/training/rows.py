"""A row of training in the making, and rows as the tensors of one step. Axes: B rows, T positions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import text
from .ngrams import NGrams
from .splices import FRAME
from .teachers import CENTRE_SAMPLES, HOP_SAMPLES, WIDTH

IGNORE = -100
Targets = tuple[NDArray[np.int64], NDArray[np.float16], NDArray[np.int64]]  # frames, the teacher's rows there, characters
NOTHING: Targets = (np.zeros(0, np.int64), np.zeros((0, WIDTH), np.float16), np.zeros(0, np.int64))


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's input. ``frames`` and ``ids`` share positions: a position is audio or a token or padding."""

    frames: Tensor  # [B, T, 640] float32; zero where there is no audio
    ids: Tensor  # [B, T] int64; PAD where there is no token
    is_text: Tensor  # [B, T] bool
    labels: Tensor  # [B, T] int64: the token that follows; IGNORE where nothing is asked
    expected: Tensor  # [n, V] float16: what text alone expects in place of each label; a row of 0 where nothing is known of that
    windows: Tensor  # [B, T, 2] int64: first and last position where the letters of the label are heard; -1 where nobody knows
    features: Tensor  # [n, 288] float32: teacher's hidden states, standardised
    characters: Tensor  # [n] int64: the character that is said at the moment of each of these rows; IGNORE where nobody knows
    feature_rows: Tensor  # [n] int64: flat position (b T + t) of each
    late: Tensor  # [m, 288] float32: the same hidden states asked for later, when more has been heard
    late_rows: Tensor  # [m] int64: flat position of each
    ctc: Tensor  # [m] int64 characters of all rows, end to end
    ctc_lengths: Tensor  # [B] int64; 0: no transcript
    audio_frames: Tensor  # [B] int64
    audio_seconds: float


class Row:
    """One row in the making."""

    def __init__(self, only_heard: bool = False, ends: bool = False) -> None:
        self.only_heard = only_heard  # the text of its clips is left out
        self.ends = ends  # <audio|> is heard behind its frames (``backend.heard_ids``)
        self.parts: list[NDArray[np.float32]] = []
        self.samples = 0
        self.level = 0.0
        self.labelled = False
        self.cut = False  # the audio ends inside an utterance
        self.tokens: list[int] = []
        self.given: list[int] | None = None  # the tokens as the model is shown them; None: as they are
        self.language: str | None = None  # translated into
        self.translation: list[int] = []
        self.asks_words = True
        self.alone = False  # sentences without audio, in the row's own order
        self.windows: list[tuple[int, int]] = []  # for each token the frames in which its word is heard
        self.characters: list[int] = []
        self.targets: list[
            tuple[int, int, float, int, NDArray[np.float16], NDArray[np.int8] | None]
        ] = []  # place in the row, samples, speed, place in the clip, the clip's rows, classes

    @property
    def text_tokens(self) -> int:
        """Of the transcript, and of the translation with the two tokens around it."""
        return len(self.tokens) + (0 if self.language is None else len(self.translation) + 2)

    def silence(self, samples: int) -> None:
        self.parts.append(np.zeros(samples, np.float32))
        self.samples += samples

    def finish(
        self, samples: NDArray[np.float32], mask_frames: int, delay_frames: int, rng: np.random.Generator, late_frames: int = 0
    ) -> None:
        """Cut into frames, mask, and line the teacher's rows up with the frames."""
        gain = 10 ** float(rng.uniform(-1.2, 0.3))
        samples = np.clip(samples * gain, -1, 1)
        samples = np.pad(samples, (0, -len(samples) % FRAME))
        self.frames = samples.reshape(-1, FRAME).astype(np.float32)
        for _ in range(int(rng.poisson(len(self.frames) / 60)) if mask_frames else 0):
            start, run = int(rng.integers(len(self.frames))), int(rng.integers(1, mask_frames + 1))
            part = self.frames[start : start + run]
            part[:] = rng.standard_normal(part.shape, dtype=np.float32) * 0.01
        self.feature_frames, self.features, self.spoken = self._aligned(delay_frames)
        self.late_frames, self.late, _ = self._aligned(late_frames) if late_frames else NOTHING

    def _aligned(self, delay: int) -> Targets:
        """Frame t looks at the moment (t − delay + ½) · 640 samples; the teacher's rows are interpolated there."""
        places, values, spoken = [NOTHING[0]], [NOTHING[1]], [NOTHING[2]]
        frames = np.arange(len(self.frames))
        for place, samples, factor, start, rows, classes in self.targets:
            at = (frames - delay + 0.5) * FRAME - place
            keep = (at >= 0) & (at < samples)
            r = np.clip((at[keep] * factor + start - CENTRE_SAMPLES) / HOP_SAMPLES, 0, len(rows) - 1.001)
            low = r.astype(np.int64)
            part = (r - low)[:, None].astype(np.float32)
            values.append((rows[low] * (1 - part) + rows[np.minimum(low + 1, len(rows) - 1)] * part).astype(np.float16))
            places.append(frames[keep])
            spoken.append(np.full(len(low), IGNORE) if classes is None else classes[np.round(r).astype(np.int64)].astype(np.int64))
        return np.concatenate(places), np.concatenate(values), np.concatenate(spoken)


def collate(rows: list[Row], length: int, spread: tuple[NDArray[np.float32], NDArray[np.float32]], ngrams: NGrams | None = None) -> Batch:
    b = len(rows)
    frames = np.zeros((b, length, FRAME), np.float32)
    ids, labels = np.full((b, length), text.PAD), np.full((b, length), IGNORE)
    is_text, windows = np.zeros((b, length), bool), np.full((b, length, 2), -1)
    places: list[NDArray[np.int64]] = []
    late_places: list[NDArray[np.int64]] = []
    for i, row in enumerate(rows):
        n = len(row.frames)
        frames[i, 2 : 2 + n] = row.frames
        ids[i, :2], is_text[i, :2] = (text.BOS, text.BEGIN_AUDIO), True
        places.append(i * length + 2 + row.feature_frames)
        late_places.append(i * length + 2 + row.late_frames)
        if row.alone:
            ids[i], is_text[i] = [text.BOS, *row.tokens[: length - 1]], True
            labels[i, :-1] = np.where(ids[i, 1:] == text.TRANSCRIBE, IGNORE, ids[i, 1:])  # that a sentence follows is not for it to say
            continue
        if row.ends:
            ids[i, 2 + n], is_text[i, 2 + n] = text.END_AUDIO, True
        if row.labelled:
            tail = [text.END_AUDIO, text.TRANSCRIBE, *row.tokens, text.END]
            if row.language is not None:
                tail += [text.TRANSLATE[row.language], *row.translation, text.END]
            said, tail = len(row.tokens), tail[: length - 2 - n]
            ids[i, 2 + n : 2 + n + len(tail)] = tail
            if row.given is not None:
                ids[i, 4 + n : 4 + n + len(row.given)] = row.given
            is_text[i, 2 + n : 2 + n + len(tail)] = True
            labels[i, 3 + n : 1 + n + len(tail)] = tail[2:]
            labels[i, 4 + n + said : 5 + n + said] = IGNORE  # who asks says into which language
            if not row.asks_words:
                labels[i, 3 + n : 4 + n + said] = IGNORE
            heard = np.asarray(row.windows, np.int64).reshape(-1, 2)[: min(said, len(tail) - 3)]
            known = heard[:, 0] >= 0
            windows[i, 3 + n : 3 + n + len(heard)][known] = 2 + np.clip(heard[known], 0, n - 1)
    features, late = (np.concatenate(parts) for parts in ([row.features for row in rows], [row.late for row in rows]))
    return Batch(
        frames=torch.from_numpy(frames),
        ids=torch.from_numpy(ids),
        is_text=torch.from_numpy(is_text),
        labels=torch.from_numpy(labels),
        expected=torch.from_numpy(_expected(rows, labels, ngrams)),
        windows=torch.from_numpy(windows),
        features=torch.from_numpy((features - spread[0]) / spread[1]),
        characters=torch.from_numpy(np.concatenate([row.spoken for row in rows])),
        feature_rows=torch.from_numpy(np.concatenate(places)),
        late=torch.from_numpy((late - spread[0]) / spread[1]),
        late_rows=torch.from_numpy(np.concatenate(late_places)),
        ctc=torch.tensor([c for row in rows for c in row.characters], dtype=torch.int64),
        ctc_lengths=torch.tensor([len(row.characters) for row in rows]),
        audio_frames=torch.tensor([len(row.frames) for row in rows]),
        audio_seconds=sum(len(row.frames) for row in rows) / 25.0,
    )


def _expected(rows: list[Row], labels: NDArray[np.int64], ngrams: NGrams | None) -> NDArray[np.float16]:
    """Of transcripts only, and not where one ends: what is heard decides that."""
    if ngrams is None:
        return np.zeros((0, 0), np.float16)
    parts: list[NDArray[np.float32]] = []
    for row, label in zip(rows, labels, strict=True):
        asked = label[label != IGNORE]
        part = np.zeros((len(asked), ngrams.vocabulary), np.float32)
        if row.labelled and not row.alone and row.language is None:
            said = min(len(row.tokens), len(asked))
            part[:said] = ngrams(row.tokens)[:said]
        parts.append(part)
    return np.concatenate(parts).astype(np.float16)
