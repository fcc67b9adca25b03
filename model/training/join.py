"""A listener → the one model that says the same: its hearing layers, and the decoder's as plain layers of text.

    python -m dragoman.model.training.join RUN_FOLDER MODEL_FOLDER
    python -m dragoman.model.training.join RUN_FOLDER MODEL_FOLDER --translation OLD_MODEL    # which brings its layers that translate

Nothing is approximated. The stream of text is √d times the decoder's, as Gemma multiplies the rows of its table by that on the way in;
every norm takes it off. What is added to it has mean zero, so that a norm over its rms is the decoder's over its deviation. The linear
layer between audio and decoder goes into the keys and values; what it adds to every key alike, softmax does not see, and what it adds to
every value alike is a bias behind attention. Pairs of dimensions that turn are (2i, 2i + 1) there and (i, i + D/2) here.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..backbone import Layer
from ..checkpoint import Model, build_model, load_model
from ..config import AUDIO, CROSS, TEXT, BackboneConfig, PlainLayers
from ..errors import ConfigError, as_command
from . import moonshine
from .dictation import AROUND
from .listening import Listener, load_listener
from .moonshine import MLP_WIDTH, ORDER, ROTARY_BASE, ROTARY_DIM
from .package import Taught, config_of, save_model
from .recognisers import HEAD_DIM, HEADS
from .teachers import WIDTH
from .translating import take_layers


def joined_sizes(listener: Listener) -> BackboneConfig:
    """Raises ConfigError where the hearing layers are not as wide as the decoder's."""
    old, layers = listener.student.config.backbone, len(listener.decoder.layers)
    if old.hidden_size != WIDTH:
        raise ConfigError(f"hidden_size of the hearing layers is {old.hidden_size}, expected {WIDTH}, as the decoder's")
    return replace(
        old,
        vocab_size=listener.decoder.embed_tokens.num_embeddings,
        layer_types=(*old.layer_types, *["full_attention"] * (2 * layers)),
        layer_roles=(old.layer_roles or (AUDIO,) * old.num_layers) + (TEXT, CROSS) * layers,
        global_head_dim=HEAD_DIM,
        attention_k_eq_v=False,
        # The decoder turns pair i by base^(−2i / 32) and Gemma's full layers by θ^(−2i / D), the first of their pairs alone.
        global_rope_theta=ROTARY_BASE ** (HEAD_DIM / ROTARY_DIM),
        global_partial_rotary_factor=(ROTARY_DIM + 0.5) / HEAD_DIM,
        final_logit_softcapping=None,
        plain=old.plain or PlainLayers(HEADS, MLP_WIDTH),
    )


@torch.no_grad()
def join(listener: Listener) -> Model:
    """Raises ConfigError as :func:`joined_sizes`."""
    model = build_model(config_of(asdict(joined_sizes(listener))), device="cpu")
    student, decoder, hearing = listener.student, listener.decoder, listener.student.config.backbone.num_layers
    model.projector.load_state_dict(student.projector.state_dict())
    ours: list[Any] = list(model.backbone.layers)
    for new, old in zip(ours, student.backbone.layers, strict=False):
        new.load_state_dict(old.state_dict())
    table = model.backbone.embed_tokens.weight
    table.copy_(centred(decoder.embed_tokens.weight, 1))
    for mark in AROUND:  # which are heard
        table[mark] = student.backbone.embed_tokens.weight[mark]
    theirs: list[Any] = list(decoder.layers)
    for i, old in enumerate(theirs):
        _write_text(ours[hearing + 2 * i], old)
        _write_cross(ours[hearing + 2 * i + 1], old, listener)
    model.backbone.norm.weight.copy_(decoder.norm.weight)
    return model


def centred(weight: Tensor, axis: int = 0) -> Tensor:
    """What comes out of a matrix [N, K] has mean zero."""
    return weight - weight.mean(axis, keepdim=True)


def ordered(weight: Tensor) -> Tensor:
    return weight.view(HEADS, HEAD_DIM, -1)[:, ORDER].reshape(weight.shape)


def _write_text(new: Layer, old: moonshine.Layer) -> None:
    """Self-attention."""
    own, given = new.self_attn, old.self_attn
    new.input_layernorm.weight.copy_(old.input_layernorm.weight)
    own.q_proj.weight.copy_(ordered(given.q_proj.weight) * HEAD_DIM**-0.5)
    own.k_proj.weight.copy_(ordered(given.k_proj.weight))
    own.v_proj.weight.copy_(given.v_proj.weight)
    own.o_proj.weight.copy_(centred(given.o_proj.weight) * WIDTH**0.5)
    own.o_proj.bias.zero_()


def _write_cross(new: Layer, old: moonshine.Layer, listener: Listener) -> None:
    """Cross-attention and the MLP. The norm in front is one for text and audio, so its gains for text go into the queries."""
    own, given, mlp = new.self_attn, old.encoder_attn, new.mlp
    scale = WIDTH**0.5
    heard = listener.adapt.weight * listener.spread[:, None]
    always = given.v_proj.weight @ (listener.adapt.bias * listener.spread + listener.mean)
    own.q_proj.weight.copy_(given.q_proj.weight * old.post_attention_layernorm.weight * HEAD_DIM**-0.5)
    own.k_proj.weight.copy_(given.k_proj.weight @ heard)
    own.v_proj.weight.copy_(given.v_proj.weight @ heard)
    own.o_proj.weight.copy_(centred(given.o_proj.weight) * scale)
    own.o_proj.bias.copy_(centred(given.o_proj.weight @ always) * scale)
    new.pre_feedforward_layernorm.weight.copy_(old.final_layernorm.weight)
    for part, weight, bias in zip((mlp.up_proj, mlp.gate_proj), old.mlp.fc1.weight.chunk(2), old.mlp.fc1.bias.chunk(2), strict=True):
        part.weight.copy_(weight)
        part.bias.copy_(bias)
    mlp.down_proj.weight.copy_(centred(old.mlp.fc2.weight) * scale)
    mlp.down_proj.bias.copy_(centred(old.mlp.fc2.bias) * scale)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run of listening: checkpoint.pt, sizes.json, tokenizer.json")
    parser.add_argument("folder", type=Path, help="model folder to write")
    parser.add_argument("--last", action="store_true", help="the last weights instead of the averaged ones")
    parser.add_argument("--translation", type=Path, metavar="FOLDER", help="a model whose layers of translation are taken over")
    given = parser.parse_args(arguments)
    model, taught = join(load_listener(given.run, averaged=not given.last)), Taught.read(given.run)
    if given.translation is not None:
        old = load_model(given.translation)
        model, taught = take_layers(model, old), replace(taught, targets=old.config.targets)
    save_model(given.folder, model, given.run, taught)


if __name__ == "__main__":
    as_command(main)
