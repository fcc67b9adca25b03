"""Batches of sentences and their translations, as a session asks for one: rows filled with examples that do not see each other.

A batch is a pure function of (seed, step). Axes: B rows, T positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tokenizers
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from . import text
from .rows import IGNORE

_TRIED = 40  # examples that do not fit before a batch counts as full


@dataclass(frozen=True, slots=True)
class PairOptions:
    """What a batch looks like: rows of a fixed length, filled with examples."""

    length: int = 96  # positions of a row; an example that is longer is left out
    rows: int = 42
    several: tuple[float, ...] = (0.92, 0.08)  # shares of examples that are 1, 2, 3 … pairs: a session cuts at marks, which may be missing
    unmarked: float = 0.05  # share of examples whose source lacks its closing mark
    wrong_tokens: float = 0.03  # share of a source's tokens that are others: what is translated was heard
    others: int = 1024  # pieces that no translation has, drawn for each step, that must not be written either


@dataclass(frozen=True, slots=True)
class PairBatch:
    """One step's input; B rows, T positions."""

    ids: Tensor  # [B, T] int64
    labels: Tensor  # [B, T] int64: the token of the translation that follows; IGNORE elsewhere
    example: Tensor  # [B, T] int64: which example of the row a position is of, 0: none
    candidates: Tensor  # [n] int64: ids among which is chosen, all labels among them
    positions: int  # that hold something


Example = tuple[list[int], list[int]]  # ids, labels


class PairBatches(Dataset[PairBatch]):
    """``self[step]`` is a function of (seed, step)."""

    def __init__(
        self,
        pairs: dict[str, list[tuple[str, str]]],
        tokenizer: tokenizers.Tokenizer,
        options: PairOptions,
        seed: int,
        *,
        plainly: bool = False,
        also: NDArray[np.int64] | None = None,
    ) -> None:
        """``plainly``: sources as they are written, for measuring. ``also``: pieces to choose from beside those of these translations."""
        self.options, self.seed, self.plainly = options, seed, plainly
        self._pairs = [(text.TRANSLATE[code], pair) for code in sorted(pairs) for pair in pairs[code]]
        tokens = np.array([token for token, _ in self._pairs])
        self._of = {int(token): np.flatnonzero(tokens == token) for token in np.unique(tokens)}
        flat = [side for _, pair in self._pairs for side in pair]
        encoded = [np.asarray(one.ids, np.int32) for one in tokenizer.encode_batch_fast(flat, add_special_tokens=False)]
        self._sources, self._translations = encoded[::2], encoded[1::2]
        self.size = tokenizer.get_vocab_size()
        self.used = np.unique(np.concatenate([*self._translations, [text.END], also if also is not None else []]).astype(np.int64))
        self._unused = np.setdiff1d(np.arange(self.size), self.used)

    def __getitem__(self, step: int) -> PairBatch:
        rng, o = np.random.default_rng((self.seed, step)), self.options
        ids, labels = np.zeros((o.rows, o.length), np.int64), np.full((o.rows, o.length), IGNORE, np.int64)
        example, ends, filled, tried = np.zeros_like(ids), np.zeros(o.rows, np.int64), 0, 0
        while tried < _TRIED:
            own, asked = self._draw(rng)
            row = int(np.argmax(ends + len(own) <= o.length))
            if ends[row] + len(own) > o.length:
                tried += 1
                continue
            place = slice(int(ends[row]), int(ends[row]) + len(own))
            ids[row, place], labels[row, place], example[row, place] = own, asked, example[row].max() + 1
            ends[row], filled = place.stop, filled + len(own)
        others = rng.choice(self._unused, min(o.others, len(self._unused)), replace=False)
        candidates = np.concatenate([self.used, others])
        return PairBatch(*(torch.from_numpy(a) for a in (ids, labels, example, candidates)), positions=filled)

    def _draw(self, rng: np.random.Generator) -> Example:
        """``<|de|> source <eos> translation <eos>``, of one or more pairs of one language."""
        first = int(rng.integers(len(self._pairs)))
        token = self._pairs[first][0]
        count = 1 + int(rng.choice(len(self.options.several), p=self.options.several))
        chosen = [first, *rng.choice(self._of[token], count - 1)]
        source = np.concatenate([self._sources[i] for i in chosen])
        target = np.concatenate([self._translations[i] for i in chosen]).tolist()
        source = source if self.plainly else self._as_heard(source, rng)
        return example_of(token, source.tolist(), target)

    def _as_heard(self, source: NDArray[np.int32], rng: np.random.Generator) -> NDArray[np.int32]:
        if len(source) > 1 and rng.random() < self.options.unmarked:
            source = source[:-1]
        wrong = rng.random(len(source)) < self.options.wrong_tokens
        return np.where(wrong, rng.integers(len(text.SPECIAL_TOKENS), self.size, len(source)), source)


def example_of(token: int, source: list[int], target: list[int]) -> Example:
    ids = [token, *source, text.END, *target]
    return ids, [IGNORE] * (1 + len(source)) + [*target, text.END]
