"""The throw-away heads of a student that begins with given weights: fitted before the first step.

A model folder has no heads. Left random, their large first gradients would undo what the model has learnt; so each is fitted to what the
given layers already say on a few batches: the features' by least squares, the characters' by logistic regression.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .precision import autocast
from .rows import IGNORE, Batch
from .student import Student

HEAD_BATCHES, FAR_STEP = 6, 1 << 29  # they are fitted on ten minutes of speech, in batches that no run reaches
RIDGE = 1e-3  # of the mean square of an input, added to each: the states of a layer nearly lie in fewer dimensions


def fit_heads(student: Student, batches: Iterable[Batch], *, steps: int = 40) -> dict[str, float]:
    """Fit the feature heads and the character head in place → what they leave, as the losses count it (share of variance; nats)."""
    hearing, spelling, targets, spoken, later, targets_later = [], [], [], [], [], []
    student.eval()
    with torch.no_grad(), autocast():
        for batch in batches:
            states = student.hidden_states(batch, max(student.depths.features, student.depths.ctc, student.depths.late))
            hearing.append(states[student.depths.features].flatten(0, 1)[batch.feature_rows].float())
            spelling.append(states[student.depths.ctc].flatten(0, 1)[batch.feature_rows].float())
            targets.append(batch.features.float())
            spoken.append(batch.characters)
            later.append(states[student.depths.late].flatten(0, 1)[batch.late_rows].float())
            targets_later.append(batch.late.float())
    student.train()
    figures: dict[str, float] = {}
    if sum(map(len, targets)):
        figures["features"] = least_squares(student.feature_head, torch.cat(hearing), torch.cat(targets))
    if sum(map(len, targets_later)):
        figures["late"] = least_squares(student.late_head, torch.cat(later), torch.cat(targets_later))
    classes = torch.cat(spoken)
    if bool((classes != IGNORE).any()):
        known = classes != IGNORE
        figures["characters"] = _logistic(student.character_head, torch.cat(spelling)[known], classes[known], steps)
    return figures


def least_squares(head: nn.Linear, x: Tensor, y: Tensor) -> float:
    """Ridge regression with a bias; returns the mean squared error."""
    ones = torch.cat([x, x.new_ones(len(x), 1)], 1).double()
    gram = ones.T @ ones
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    solved = torch.linalg.solve(gram, ones.T @ y.double()).float()
    with torch.no_grad():
        head.weight.copy_(solved[:-1].T)
        head.bias.copy_(solved[-1])
        return float(F.mse_loss(head(x), y))


def _logistic(head: nn.Linear, x: Tensor, classes: Tensor, steps: int) -> float:
    """Multinomial logistic regression on standardised inputs by L-BFGS; returns nats for each row."""
    mean, spread = x.mean(0), x.std(0) + 1e-6
    z = (x - mean) / spread
    weight, bias = torch.zeros_like(head.weight, requires_grad=True), torch.zeros_like(head.bias, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = F.cross_entropy(F.linear(z, weight, bias), classes) + 1e-4 * weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        head.weight.copy_(weight / spread)
        head.bias.copy_(bias - (weight * (mean / spread)).sum(1))
        return float(F.cross_entropy(head(x), classes))
