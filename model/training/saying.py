"""What a decoder says, against the right words and against what it said to the teacher's features: both losses and their gradient at once.

Written out with tensors of [tokens, vocabulary], a step passes some thirty times over tens of megabytes; here it goes a few rows at a time,
which stay in the cache, and the gradient is made while they are there (Wijmans et al., "Cut your losses in large-vocabulary language
models", arXiv 2411.09009, do so for a GPU).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

ROWS = 64  # at once; one number, since each is compiled anew
Share = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of n hidden states. ``table`` [V, d]: the head; no gradient goes to it."""

    table: Tensor
    labels: Tensor  # [n] int64
    wanted: Tensor | None = None  # [n, d], of which the head makes what is to be said; None: the labels alone are asked for
    known: Tensor | None = None  # [n] bool: where ``wanted`` is worth anything
    words: float = 1.0  # weight of the labels: mean of -log p in nats
    said: float = 1.0  # of the other: mean of the Kullback-Leibler divergence over what is known, in nats


def share_of_loss(hidden: Tensor, wanted: Tensor, labels: Tensor, by_word: Tensor, by_said: Tensor, table: Tensor) -> Share:
    """Rows [r, d] → for each: -log p of its label, the divergence, whether label and likeliest token agree, whether both likeliest ones do;
    and the gradient [r, d] of the weighted sum. ``by_word``, ``by_said`` [r]: the weights of a row."""
    ours, theirs = (F.linear(x, table).float() for x in (hidden, wanted))
    (top, first), (their_top, their_first) = ours.max(-1, keepdim=True), theirs.max(-1, keepdim=True)
    ours, theirs = ours - top, theirs - their_top
    at_label = ours.gather(1, labels[:, None])[:, 0]
    p, q = ours.exp(), theirs.exp()
    total, their_total = p.sum(-1), q.sum(-1)
    divergence = (q * (theirs - ours)).sum(-1) / their_total - their_total.log() + total.log()
    gradient = p * ((by_word + by_said) / total)[:, None] - q * (by_said / their_total)[:, None]
    gradient = gradient.to(table.dtype) @ table - table[labels] * by_word[:, None].to(table.dtype)
    return total.log() - at_label, divergence, first[:, 0] == labels, first[:, 0] == their_first[:, 0], gradient


class _Said(torch.autograd.Function):
    """hidden [n, d] → the weighted loss; its gradient was made on the way."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, asked: Asked, figures: dict[str, float], share: Callable[..., Share]) -> Tensor:
        n, table = len(hidden), asked.table.to(hidden.dtype)
        known = torch.zeros(n, dtype=torch.bool) if asked.known is None else asked.known
        count = max(int(known.sum()), 1)
        wanted = hidden if asked.wanted is None else asked.wanted.to(hidden.dtype)
        weights = torch.full((n,), asked.words / n), known * (asked.said / count)
        padded = [_padded(x.detach()) for x in (hidden, wanted, asked.labels, *weights)]
        parts = [share(*(x[i : i + ROWS] for x in padded), table) for i in range(0, n, ROWS)]
        nats, divergence, right, same, gradient = (torch.cat(part)[:n] for part in zip(*parts, strict=True))
        figures |= {"words_right": float(right.float().mean()), "words": float(nats.mean())}
        if known.any():
            figures |= {"same": float(same[known].float().mean()), "said": float(divergence[known].mean())}
        ctx.save_for_backward(gradient)
        return asked.words * nats.mean() + asked.said * (divergence * known).sum() / count

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer[0].to(gradient.dtype), None, None, None


def saying_loss(hidden: Tensor, asked: Asked, share: Callable[..., Share] = share_of_loss) -> tuple[Tensor, dict[str, float]]:
    """hidden [n, d] of what is asked for → (weighted loss, figures ``words`` and ``said`` in nats, ``words_right`` and ``same`` as shares).

    ``share``: :func:`share_of_loss`, or it compiled.
    """
    figures: dict[str, float] = {}
    return _Said.apply(hidden, asked, figures, share), figures  # pyright: ignore[reportReturnType]


def _padded(x: Tensor) -> Tensor:
    return F.pad(x, (0, 0) * (x.ndim - 1) + (0, -len(x) % ROWS))
