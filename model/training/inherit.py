"""Hearing that goes on in the layers of a published encoder: they know the speech of 200,000 hours, and what ships stays plain and causal.

    python -m dragoman.model.training.inherit MODEL_FOLDER NEW_FOLDER --store STORE    # then ``listening`` starts from NEW_FOLDER

MODEL_FOLDER is a model that ``listening`` made. Its lower layers stay; the upper ones of Moonshine tiny's encoder (:mod:`.encoder`) take
the place of the others, as layers of the role PLAIN_AUDIO. Between the two stands one layer of the same kind that makes, by a straight line
fitted to clips of the store, what the encoder says below those layers, ``delay_frames`` late: the encoder looks both ways, and ours only
back. What comes out is nothing yet that the decoder could read, since what was to come is missed in each layer; it is learnt within an hour
(docs/training.md, a twenty-third time).

The layers are the encoder's but for this: positions turn 5/3 as far, as frames of 40 ms are rarer than rows of 24 ms; GELU is
u · σ(1.702 u); what a layer adds has mean zero, so that a norm over its rms is one over its deviation. The decoder is the published one.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from ..backbone import Layer, rms_norm
from ..checkpoint import Model, load_model
from ..config import AUDIO, PLAIN_AUDIO, SAMPLE_RATE, ModelConfig, read_model_config
from ..errors import ConfigError, as_command
from ..store import Store
from .dictation import ClipOptions, whole_clip
from .encoder import FRAMES_PER_ROW, Encoder, EncoderLayer, at_frames, load_encoder
from .heads import least_squares
from .join import centred, join, ordered
from .listening import Listener, first_layers, published_decoder, read_tokenizer
from .package import Taught, save_model
from .recognisers import HEAD_DIM, LAYERS
from .rows import collate
from .splices import FRAME
from .student import Depths, Student
from .teachers import SPREAD, WIDTH
from .translating import take_layers

SIGMOID_GELU = 1.702  # GELU(u) ≈ u σ(1.702 u) (Hendrycks and Gimpel, arXiv 1606.08415)
OPEN = 1.2784645  # SiLU of it is 1
CLIPS, CLIPS_AT_ONCE = 360, 12
LONGEST_S = 12.0


def widened(config: ModelConfig, below: int, layers: int) -> ModelConfig:
    """Of hearing alone: the lower layers of a joined model, the one between, and ``layers`` of the encoder's. Raises ConfigError."""
    old = config.backbone
    if old.plain is None or old.hidden_size != WIDTH:
        raise ConfigError(f"expected a model that listening made: {WIDTH} wide, and plain_layers in its config.json")
    if not 0 < below <= (most := old.layer_roles.count(AUDIO)):
        raise ConfigError(f"below is {below}, expected 1 to {most}: so many of the model's hearing layers are Gemma's")
    backbone = replace(
        old,
        layer_types=(*old.layer_types[:below], *["full_attention"] * (1 + layers)),
        layer_roles=(AUDIO,) * below + (PLAIN_AUDIO,) * (1 + layers),
        plain=replace(old.plain, audio_step=FRAMES_PER_ROW),
    )
    return replace(config, backbone=backbone)


@torch.no_grad()
def write_encoder(new: Layer, old: EncoderLayer) -> None:
    own, given, mlp = new.self_attn, old.self_attn, new.mlp
    new.input_layernorm.weight.copy_(old.input_layernorm.weight)
    own.q_proj.weight.copy_(ordered(given.q_proj.weight) * HEAD_DIM**-0.5)
    own.k_proj.weight.copy_(ordered(given.k_proj.weight))
    own.v_proj.weight.copy_(given.v_proj.weight)
    own.o_proj.weight.copy_(centred(given.o_proj.weight))
    own.o_proj.bias.zero_()
    new.pre_feedforward_layernorm.weight.copy_(old.post_attention_layernorm.weight)
    mlp.gate_proj.weight.copy_(old.mlp.fc1.weight * SIGMOID_GELU)
    mlp.gate_proj.bias.copy_(old.mlp.fc1.bias * SIGMOID_GELU)
    mlp.up_proj.weight.zero_()  # the encoder's MLP has no second factor; ours learns what to make of one
    mlp.up_proj.bias.fill_(1.0)
    mlp.down_proj.weight.copy_(centred(old.mlp.fc2.weight) / SIGMOID_GELU)
    mlp.down_proj.bias.copy_(centred(old.mlp.fc2.bias))


@torch.no_grad()
def write_line(new: Layer, weight: Tensor, bias: Tensor) -> None:
    """A layer that adds ``weight @ norm(x) + bias`` to x, and nothing else: by as many units of its MLP, whose gates stand open. The other
    units and attention add nothing yet."""
    mlp, d = new.mlp, len(weight)
    for norm in (new.input_layernorm, new.pre_feedforward_layernorm):
        norm.weight.fill_(1.0)
    own = new.self_attn
    for part in (own.q_proj, own.k_proj, own.v_proj, mlp.gate_proj, mlp.up_proj):
        part.weight.normal_(0, part.in_features**-0.5)
    own.q_proj.weight.mul_(HEAD_DIM**-0.5)
    for part in (own.o_proj, mlp.down_proj):
        part.weight.zero_()
        part.bias.zero_()
    mlp.gate_proj.bias.zero_()
    mlp.up_proj.bias.zero_()
    mlp.gate_proj.weight[:d].zero_()
    mlp.gate_proj.bias[:d].fill_(OPEN)
    mlp.up_proj.weight[:d].copy_(weight)
    mlp.up_proj.bias[:d].copy_(bias)
    mlp.down_proj.weight[:, :d].copy_(torch.eye(d))


@torch.no_grad()
def fit_line(
    student: Student, below: int, encoder: Encoder, above: int, store: Store, delay: int, clips: int
) -> tuple[torch.nn.Linear, float]:
    """The line from what ``below`` layers of ours say to what the encoder's first ``above`` said ``delay`` frames before, less what stands
    there already; and the share of variance that it misses. Raises ConfigError where the store has no clips."""
    fit = [c for c in store.clips if c.split == "train" and c.samples <= LONGEST_S * SAMPLE_RATE]
    fit = fit[:: max(1, len(fit) // clips)][:clips]
    if not fit:
        raise ConfigError(f"the store {store.folder} has no clip of split 'train' of up to {LONGEST_S:g} s")
    options = ClipOptions(tail_frames=delay)
    nothing = np.zeros(WIDTH, np.float32), np.ones(WIDTH, np.float32)
    heard, there, wanted = list[Tensor](), list[Tensor](), list[Tensor]()
    for first in track(range(0, len(fit), CLIPS_AT_ONCE), description="fitting"):
        waves = [store.samples(clip) for clip in fit[first : first + CLIPS_AT_ONCE]]
        rows = [whole_clip(wave, options) for wave in waves]
        x = student.hidden_states(collate(rows, 3 + max(len(row.frames) for row in rows), nothing), below)[-1]
        for wave, own in zip(waves, x, strict=True):
            frames = len(wave) // FRAME
            own = own[2 + delay : 2 + delay + frames].float()
            heard.append(rms_norm(own, None, student.config.backbone.rms_norm_eps))
            there.append(own)
            wanted.append(centred(at_frames(encoder(torch.from_numpy(wave))[above], len(own)), 1))
    line, asked = torch.nn.Linear(WIDTH, WIDTH), torch.cat(wanted)
    left = least_squares(line, torch.cat(heard), asked - torch.cat(there))
    return line, left / float(asked.var(0).mean())


def inherit(folder: Path, store: Store, below: int, above: int, delay: int, clips: int = CLIPS) -> tuple[Model, float]:
    """A joined model with the encoder's layers from number ``above`` on behind ``below`` of its own, and the share of the variance that
    the line between misses. Raises ConfigError where either has not so many, as :func:`widened`, as :func:`fit_line`, and as
    ``load_model``.
    """
    if not 0 <= above < LAYERS:
        raise ConfigError(f"above is {above}, expected 0 to {LAYERS - 1}, which are the encoder's layers")
    config = widened(read_model_config(folder), below, LAYERS - above)
    encoder, given = load_encoder(), first_layers(folder, below)
    student = Student(config, Depths(*[config.backbone.num_layers] * 4))
    student.load_state_dict(given.state_dict(), strict=False)  # the layers above have no weights yet
    line, missed = fit_line(student, below, encoder, above, store, delay, clips)
    ours: list[Any] = list(student.backbone.layers)
    write_line(ours[below], line.weight, line.bias)
    theirs: list[Any] = list(encoder.layers)
    for new, old in zip(ours[below + 1 :], theirs[above:], strict=True):
        write_encoder(new, old)
    plainly = np.zeros(WIDTH, np.float32), np.full(WIDTH, 1 / SPREAD, np.float32)  # the linear layer writes features as they are
    listener = Listener(student, published_decoder(read_tokenizer(folder), range(LAYERS)), plainly)
    with torch.no_grad():
        listener.adapt.weight.copy_(torch.diag(encoder.layer_norm.weight))
        listener.adapt.bias.zero_()
    return join(listener), missed


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a model that listening made")
    parser.add_argument("out", type=Path, help="model folder to write")
    parser.add_argument("--store", type=Path, required=True, help="store with clips of the training split")
    parser.add_argument("--below", type=int, default=6, help="how many of the model's hearing layers stay")
    parser.add_argument("--above", type=int, default=3, help="the encoder's layers from this number (of 0 to 5) on follow")
    parser.add_argument("--delay-frames", type=int, default=6, help="how much later than the encoder they say it")
    given = parser.parse_args(arguments)
    model, missed = inherit(given.folder, Store(given.store), given.below, given.above, given.delay_frames)
    print(f"the layer between misses {missed:.3f} of the variance of what the encoder says there")
    old = load_model(given.folder)
    if old.config.targets:
        model = take_layers(model, old)
    save_model(given.out, model, given.folder, Taught(given.delay_frames, old.config.targets))


if __name__ == "__main__":
    as_command(main)
