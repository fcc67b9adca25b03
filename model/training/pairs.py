"""Batches of sentences and their translations, as a session asks for one: rows filled with examples that do not see each other.

A batch is a pure function of (seed, step). Axes: B rows, T positions.

Of all the pieces that could come next a step looks at those that its own translations have, and at a few of the others in place of all of
them, each counted as so many as it was drawn from: the sum of a softmax is estimated without bias (Jean et al., arXiv 1412.2007).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import tokenizers
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import ConfigError
from . import text
from .rows import IGNORE

_TRIED = 40  # examples that do not fit before a batch counts as full


@dataclass(frozen=True, slots=True)
class PairOptions:
    """What a batch looks like: rows of a fixed length, filled with examples."""

    lengths: tuple[int, ...] = (64, 64, 64, 128)  # positions of a row, by turns; an example that is longer is left out of these rows
    positions: int = 6016  # of all rows
    weights: dict[str, float] = field(default_factory=dict[str, float])  # of a language's pairs: how much oftener they are drawn, else 1
    several: tuple[float, ...] = (0.92, 0.08)  # shares of examples that are 1, 2, 3 … pairs: a session cuts at marks, which may be missing
    unmarked: float = 0.05  # share of examples whose source lacks its closing mark
    wrong_tokens: float = 0.03  # share of a source's tokens that are others: what is translated was heard
    others: int = 1536  # pieces that the batch's translations lack, drawn for each step in place of all of these


@dataclass(frozen=True, slots=True)
class PairBatch:
    """One step's input; B rows, T positions."""

    ids: Tensor  # [B, T] int64
    labels: Tensor  # [B, T] int64: the token of the translation that follows; IGNORE elsewhere
    example: Tensor  # [B, T] int64: which example of the row a position is of, 0: none
    candidates: Tensor  # [n] int64: ids among which is chosen, all labels among them
    log_counts: Tensor  # [n] float32: logarithm of how many ids each of them stands for
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
    ) -> None:
        """``plainly``: for measuring, sources as they are written, every language as often as it has pairs, chosen among all pieces."""
        self.options, self.seed, self.plainly = options, seed, plainly
        unknown = sorted(set(options.weights) - set(text.TRANSLATE))
        if unknown:
            raise ConfigError(f"batches.weights names {', '.join(unknown)}; expected languages among {', '.join(text.TRANSLATE)}")
        self._pairs = [(text.TRANSLATE[code], pair) for code in sorted(pairs) for pair in pairs[code]]
        tokens = np.array([token for token, _ in self._pairs])
        self._of = {text.TRANSLATE[code]: np.flatnonzero(tokens == text.TRANSLATE[code]) for code in sorted(pairs)}
        share = np.array([len(pairs[code]) * (1.0 if plainly else options.weights.get(code, 1.0)) for code in sorted(pairs)])
        self._shares = share / share.sum()
        flat = [side for _, pair in self._pairs for side in pair]
        encoded = [np.asarray(one.ids, np.int32) for one in tokenizer.encode_batch_fast(flat, add_special_tokens=False)]
        self._sources, self._translations = encoded[::2], encoded[1::2]
        self.size = tokenizer.get_vocab_size()

    def __getitem__(self, step: int) -> PairBatch:
        rng, length = np.random.default_rng((self.seed, step)), self.options.lengths[step % len(self.options.lengths)]
        rows = max(1, self.options.positions // length)
        ids, labels = np.zeros((rows, length), np.int64), np.full((rows, length), IGNORE, np.int64)
        example, ends, filled, tried = np.zeros_like(ids), np.zeros(rows, np.int64), 0, 0
        while tried < _TRIED:
            own, asked = self._draw(rng)
            row = int(np.argmax(ends + len(own) <= length))
            if ends[row] + len(own) > length:
                tried += 1
                continue
            place = slice(int(ends[row]), int(ends[row]) + len(own))
            ids[row, place], labels[row, place], example[row, place] = own, asked, example[row].max() + 1
            ends[row], filled = place.stop, filled + len(own)
        chosen = self._candidates(labels, rng)
        return PairBatch(*(torch.from_numpy(a) for a in (ids, labels, example, *chosen)), positions=filled)

    def _candidates(self, labels: NDArray[np.int64], rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        own = np.unique(labels[labels != IGNORE])
        lacking = np.setdiff1d(np.arange(self.size), own)
        drawn = lacking if self.plainly else rng.choice(lacking, min(self.options.others, len(lacking)), replace=False)
        counts = np.zeros(len(own) + len(drawn), np.float32)
        counts[len(own) :] = np.log(len(lacking) / max(1, len(drawn)))
        return np.concatenate([own, drawn]), counts

    def _draw(self, rng: np.random.Generator) -> Example:
        """``<|de|> source <eos> translation <eos>``, of one or more pairs of one language."""
        token = list(self._of)[int(rng.choice(len(self._of), p=self._shares))]
        first = int(rng.choice(self._of[token]))
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
