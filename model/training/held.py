"""What training must leave alone in a graft, as v3 and v4 are (docs/training.md, a ninth time): flags, what they open, and ballast.

Some heads and units are exactly zero but where a flag is, and a thousand times louder than all else there. Norms divide by what there is,
so a first small step away from zero would already silence every position: a gradient through them is of size 10⁶, the rest of size 10.
Everything else is free to be learnt, but for the projector and the norm that follow it, which lead to the same heads.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .recognisers import HEADS
from .teachers import WIDTH

# As those grafts have them: the residual stream's first WIDTH dimensions are real, flags and ballast stand behind them.
DIM = 64  # of a head
HEARING_HEADS = 5  # of hearing layers; those behind them look for flags
COMPARED = {False: [18, 50], True: [31, 63]}  # dimensions of a head in which flags are compared; in a layer that looks at text, at audio
VALUE_FLAG = 63  # dimension of a value
FREE_UNITS = {True: -2, False: -1}  # of an MLP, above the hearing layers and in them; those behind them pour ballast


def hold(student: nn.Module, hearing_layers: int) -> list[RemovableHandle]:
    """Zero the gradients of what is held in ``student`` from now on, until the handles are removed; what has none now is passed over."""
    return [
        p.register_hook(partial(torch.mul, free(name, p, hearing_layers)))
        for name, p in student.named_parameters()
        if p.requires_grad and name.startswith(("backbone.", "projector."))
    ]


def free(name: str, weight: Tensor, hearing_layers: int) -> Tensor:
    """1 where a parameter of backbone or projector is free to be learnt and 0 where it is held, of the parameter's shape."""
    mask = torch.ones_like(weight)
    if name.startswith("projector.") or name == "backbone.layers.0.input_layernorm.weight":
        return torch.zeros_like(weight)
    if not name.startswith("backbone.layers."):  # the table, the last norm: flags are behind what is real
        mask[..., WIDTH:] = 0
        return mask
    layer, part = int(name.split(".")[2]), name.split(".")[-2]
    upper = layer >= hearing_layers
    compared = COMPARED[(layer - hearing_layers) % 2 == 1]
    if part in {"o_proj", "down_proj"} or part.endswith("layernorm"):
        mask[WIDTH:] = 0
    if part in {"q_norm", "k_norm"} and upper:
        mask[compared] = 0
    if part in {"q_proj", "k_proj", "v_proj"}:
        _hold_heads(mask.view(HEADS, DIM, -1), part, upper, compared)
    if part == "o_proj":
        heads = mask.view(len(mask), HEADS, DIM)
        (heads[:, :1, VALUE_FLAG] if upper else heads[:, HEARING_HEADS:])[:] = 0
    if part in {"gate_proj", "up_proj"}:
        mask[FREE_UNITS[upper] :] = 0
    if part == "down_proj":
        mask[:, FREE_UNITS[upper] :] = 0
    return mask


def _hold_heads(heads: Tensor, part: str, upper: bool, compared: list[int]) -> None:
    if not upper:
        heads[HEARING_HEADS:] = 0
    elif part == "v_proj":
        heads[:2, VALUE_FLAG] = 0
    else:
        heads[:, compared] = 0
