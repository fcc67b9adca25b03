"""The hearing layers of a graft, as v3 and v4 are, in a model of their own width: what listening goes on from (:mod:`.listening`).

    python -m dragoman.model.training.ungraft MODEL_FOLDER NEW_FOLDER

A graft has the dimensions of hearing first, in a stream that is √320 times as loud; behind them flags, that tell audio from text, and heads
that only look for these. Both are left out. The norms divided by a little more where there were flags: of v3 0.3 % of the variance of
what its hearing layers say is missed (a clip of speech), of v4 0.1 % (noise).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import Model, build_model, load_model
from ..errors import ConfigError
from .package import config_of, save_model
from .teachers import WIDTH

NORMS = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
HEARD = 1e-3  # norm of what a head adds to the dimensions of hearing; the others add nothing


@torch.no_grad()
def ungraft(model: Model) -> Model:
    """Raises ConfigError for a model that is no graft."""
    old = model.config.backbone
    wide, dim, scale = old.hidden_size, old.head_dim, old.hidden_size**0.5
    layers: list[Any] = list(model.backbone.layers)[: model.config.hearing_layers]
    if not layers or wide <= WIDTH:
        raise ConfigError(f"hearing_layers is {len(layers)} and hidden_size {wide}; expected a graft: hearing layers, and above {WIDTH}")
    adds = torch.stack([layer.self_attn.o_proj.weight.view(wide, -1, dim)[:WIDTH].norm(dim=(0, 2)) for layer in layers]).amax(0)
    heads = int((adds > HEARD).nonzero().max()) + 1
    sizes = replace(old, hidden_size=WIDTH, layer_types=old.layer_types[: len(layers)], layer_roles=(), num_attention_heads=heads)
    new = build_model(config_of(asdict(replace(sizes, num_key_value_heads=heads, num_global_key_value_heads=heads))), device="cpu")
    narrow: list[Any] = list(new.backbone.layers)
    for ours, theirs in zip(narrow, layers, strict=True):
        for name in NORMS:
            louder = scale if name.startswith("post_") else 1.0
            getattr(ours, name).weight.copy_(getattr(theirs, name).weight[:WIDTH] * (wide / WIDTH) ** 0.5 / louder)
        own, given = ours.self_attn, theirs.self_attn
        for name in ("q_proj", "k_proj", "v_proj"):
            getattr(own, name).weight.copy_(getattr(given, name).weight[: heads * dim, :WIDTH])
        own.o_proj.weight.copy_(given.o_proj.weight[:WIDTH, : heads * dim])
        for name in ("q_norm", "k_norm"):
            getattr(own, name).load_state_dict(getattr(given, name).state_dict())
        ours.mlp.gate_proj.weight.copy_(theirs.mlp.gate_proj.weight[:, :WIDTH])
        ours.mlp.up_proj.weight.copy_(theirs.mlp.up_proj.weight[:, :WIDTH])
        ours.mlp.down_proj.weight.copy_(theirs.mlp.down_proj.weight[:WIDTH])
    new.projector.embedding_projection.weight.copy_(model.projector.embedding_projection.weight[:WIDTH] / scale)
    new.backbone.embed_tokens.weight.copy_(model.backbone.embed_tokens.weight[:, :WIDTH] / WIDTH**0.5)
    return new


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="model folder of a graft")
    parser.add_argument("out", type=Path, help="folder to write")
    given = parser.parse_args(arguments)
    new = ungraft(load_model(given.folder))
    given.out.mkdir(parents=True)
    save_model(given.out, new, given.folder)


if __name__ == "__main__":
    main()
