"""Muon for the layers' matrices, AdamW for the rest.

Muon: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024); the update's scale follows Liu et al.,
"Muon is scalable for LLM training" (arXiv 2502.16982), so that one learning rate serves all shapes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .precision import compute_dtype


@torch.no_grad()
def orthogonalise(g: Tensor, steps: int = 5) -> Tensor:
    """[n, rows, cols] → nearest semi-orthogonal matrices, by a quintic Newton–Schulz iteration.

    Each step multiplies x from the left with P = a + b G + c G², where G = x xᵀ. In float32 the small square matrices are iterated alone (G
    becomes P G P) and x is touched twice in all; half the cost for a layer's MLP. In bfloat16 G would lose the small singular values.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.to(compute_dtype())
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    if x.dtype is torch.float32 and x.shape[-2] < x.shape[-1]:
        gram, one = x @ x.mT, torch.eye(x.shape[-2])
        product = one
        for _ in range(steps):
            p = a * one + b * gram + c * gram @ gram
            product, gram = p @ product, p @ gram @ p
        x = product @ x
    else:
        for _ in range(steps):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, then orthogonalisation; matrices of one shape are orthogonalised together."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[p.shape].append((p, p.grad))
            for shape, pairs in by_shape.items():
                updates: list[Tensor] = []
                for p, gradient in pairs:
                    state = self.state[p]
                    if "momentum" not in state:
                        state["momentum"] = torch.zeros_like(p)
                    state["momentum"].lerp_(gradient, 1 - group["momentum"])
                    updates.append(torch.lerp(gradient, state["momentum"], group["momentum"]))
                scale = 0.2 * max(shape) ** 0.5
                for (p, _), update in zip(pairs, orthogonalise(torch.stack(updates)), strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(update.to(p.dtype), alpha=-group["lr"] * scale)


def split_parameters(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(matrices inside layers, everything else)."""
    matrices, rest = [], []
    for name, p in module.named_parameters():
        (matrices if p.ndim == 2 and ".layers." in f".{name}" else rest).append(p)
    return matrices, rest
