"""The inverse of :mod:`.join`: a model that was joined teaches a listener what it knew, so that listening goes on from it.

Each model that listening made has all of the decoder but its table, which stays as published. The linear layer is in the model's keys and
values, so it begins as one that changes nothing. (To divide by one that was fitted, which leaves directions out, is beyond bfloat16.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import Model
from ..config import CROSS, TEXT
from ..errors import ConfigError
from .moonshine import ORDER, Decoder
from .recognisers import HEAD_DIM, HEADS
from .teachers import WIDTH


@torch.no_grad()
def unjoin(model: Model, decoder: Decoder, adapt: nn.Linear, mean: Tensor, spread: Tensor) -> None:
    """The parts of a listener, whose hearing layers are the model's, then say what the model says.

    Raises ConfigError where the two have not as many layers that look at audio.
    """
    layers: list[tuple[Any, str]] = list(zip(model.backbone.layers, model.config.backbone.layer_roles, strict=True))
    theirs = [layer for layer, role in layers if role == CROSS]
    ours: list[Any] = list(decoder.layers)
    if len(theirs) != len(ours):
        raise ConfigError(f"decoder_layers are {len(ours)}, expected {len(theirs)}: as many as start_from has that look at audio")
    sums: list[Tensor] = []
    for given, new in zip(theirs, ours, strict=True):
        old, own, gain = given.self_attn, new.encoder_attn, given.input_layernorm.weight
        own.q_proj.weight.copy_(old.q_proj.weight * gain / new.post_attention_layernorm.weight * HEAD_DIM**0.5)
        for to, matrix in ((own.k_proj, old.k_proj), (own.v_proj, old.v_proj)):
            to.weight.copy_(matrix.weight * gain)
        own.o_proj.weight.copy_(old.o_proj.weight * WIDTH**-0.5)
        _read_mlp(given, new)
        sums.append(old.o_proj.weight.double() @ (old.v_proj.weight * gain).double())
    for given, new in zip((layer for layer, role in layers if role == TEXT), ours, strict=True):
        _read_text(given, new)
    decoder.norm.weight.copy_(model.backbone.norm.weight)
    # What is added to every value is a bias behind attention in the model, and here one of the linear layer, the same for all layers.
    biases = torch.cat([given.self_attn.o_proj.bias for given in theirs]).double()
    always = torch.linalg.lstsq(torch.cat(sums), biases[:, None]).solution[:, 0]
    adapt.weight.copy_(torch.diag(1 / spread))
    adapt.bias.copy_((always - mean) / spread)


def _read_text(given: Any, new: Any) -> None:
    old, own = given.self_attn, new.self_attn
    new.input_layernorm.weight.copy_(given.input_layernorm.weight)
    own.q_proj.weight.copy_(_reordered(old.q_proj.weight) * HEAD_DIM**0.5)
    own.k_proj.weight.copy_(_reordered(old.k_proj.weight))
    own.v_proj.weight.copy_(old.v_proj.weight)
    own.o_proj.weight.copy_(old.o_proj.weight * WIDTH**-0.5)


def _read_mlp(given: Any, new: Any) -> None:
    old, own = given.mlp, new.mlp
    new.final_layernorm.weight.copy_(given.pre_feedforward_layernorm.weight)
    own.fc1.weight.copy_(torch.cat([old.up_proj.weight, old.gate_proj.weight]))
    own.fc1.bias.copy_(torch.cat([old.up_proj.bias, old.gate_proj.bias]))
    own.fc2.weight.copy_(old.down_proj.weight * WIDTH**-0.5)
    own.fc2.bias.copy_(old.down_proj.bias * WIDTH**-0.5)


def _reordered(weight: Tensor) -> Tensor:
    return weight.view(HEADS, HEAD_DIM, -1)[:, ORDER.argsort()].reshape(weight.shape)
