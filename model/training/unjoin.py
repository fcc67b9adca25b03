"""The inverse of :mod:`.join`: a model that was joined teaches a listener what it knew, so that listening goes on from it.

Of the decoder only what looks at audio is taken back, as the rest is published; each model that listening made has it. The linear layer is
in the model's keys and values, so it begins as one that changes nothing. (To divide by one that was fitted, which leaves directions out,
is beyond bfloat16.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import Model
from ..config import CROSS
from ..errors import ConfigError
from .moonshine import Decoder
from .recognisers import HEAD_DIM
from .teachers import WIDTH


@torch.no_grad()
def unjoin(model: Model, decoder: Decoder, adapt: nn.Linear, mean: Tensor, spread: Tensor) -> None:
    """The parts of a listener, whose hearing layers are the model's, then say what the model says.

    Raises ConfigError where the two have not as many layers that look at audio.
    """
    layers = zip(model.backbone.layers, model.config.backbone.layer_roles, strict=True)
    theirs: list[Any] = [layer for layer, role in layers if role == CROSS]
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
        sums.append(old.o_proj.weight.double() @ (old.v_proj.weight * gain).double())
    # What is added to every value is a bias behind attention in the model, and here one of the linear layer, the same for all layers.
    biases = torch.cat([given.self_attn.o_proj.bias for given in theirs]).double()
    always = torch.linalg.lstsq(torch.cat(sums), biases[:, None]).solution[:, 0]
    adapt.weight.copy_(torch.diag(1 / spread))
    adapt.bias.copy_((always - mean) / spread)
