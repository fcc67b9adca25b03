"""The encoder of Moonshine tiny in torch, with its published weights, layer by layer: what the teacher thinks on the way.

Jeffries et al., arXiv 2410.15608; MIT licence, Useful Sensors. Formulas and names of transformers/models/moonshine/modeling_moonshine.py;
:mod:`.moonshine` has the decoder. In the package the matrices of its layers have 8 bits, and those of the convolutions are float32.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .moonshine import MLP_WIDTH, Attention, Norm, matrices, read_graph, rotary, tensors, turned
from .recognisers import LAYERS
from .splices import FRAME
from .teachers import CENTRE_SAMPLES, HOP_SAMPLES, WIDTH, moonshine_assets

FRAMES_PER_ROW = FRAME / HOP_SAMPLES  # so many rows of the teacher's pass in one of our frames


class EncoderMlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, MLP_WIDTH), nn.Linear(MLP_WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class EncoderLayer(nn.Module):
    """x [B, T, 288] → the same; every position looks at all. ``cos``, ``sin`` [T, 32]."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(), EncoderMlp()
        self.input_layernorm, self.post_attention_layernorm = Norm(), Norm()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        own, h = self.self_attn, self.input_layernorm(x)
        x = x + own(turned(own.q(h), cos, sin), turned(own.k(h), cos, sin), own.v(h), torch.zeros(()))
        return x + self.mlp(self.post_attention_layernorm(x))


class Encoder(nn.Module):
    """``forward(samples [n])`` → what the convolutions make of it, and what comes out of each layer: [rows, 288] each.

    The last one of them is not normed yet (``layer_norm``).
    """

    def __init__(self, layers: int = LAYERS) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(1, WIDTH, 127, 64, bias=False)
        self.groupnorm = nn.GroupNorm(1, WIDTH)
        self.conv2, self.conv3 = nn.Conv1d(WIDTH, 2 * WIDTH, 7, 3), nn.Conv1d(2 * WIDTH, WIDTH, 3, 2)
        self.layers = nn.ModuleList(EncoderLayer() for _ in range(layers))
        self.layer_norm = Norm()

    def forward(self, samples: Tensor) -> list[Tensor]:
        x = self.groupnorm(torch.tanh(self.conv1(samples[None, None])))
        x = F.gelu(self.conv3(F.gelu(self.conv2(x)))).mT
        states, turns = [x], rotary(x.shape[1], x.dtype)
        for layer in self.layers:
            states.append(layer(states[-1], *turns))
        return [state[0] for state in states]


def load_encoder(path: Path | None = None) -> Encoder:
    """The published encoder. ``path``: the ORT file, by default the package's. Errors as of :func:`.moonshine.decoder_weights`."""
    graph = read_graph(path or moonshine_assets() / "encoder_model.ort")
    constants = tensors(graph)
    weights = matrices(graph, constants, "/")
    for name, value in constants.items():
        if re.match(r"conv\d|layers\.\d|layer_norm", name) and value.dtype == np.float32:
            weights[name.removesuffix("_add_tensor")] = torch.from_numpy(value.copy())
    # Gain and bias of the norm over all that the first convolution says have numbers for names, and are the only ones of their shape.
    for name, kind in (("weight", "onnx::Mul_"), ("bias", "onnx::Add_")):
        (found,) = (value for key, value in constants.items() if key.startswith(kind) and value.shape == (WIDTH, 1))
        weights[f"groupnorm.{name}"] = torch.from_numpy(found[:, 0].copy())
    encoder = Encoder()
    encoder.load_state_dict(weights)
    return encoder.eval().requires_grad_(False)


def at_frames(rows: Tensor, frames: int) -> Tensor:
    """[rows, d] of the teacher → [frames, d], between its rows at the middle of each of our frames."""
    at = ((torch.arange(frames) + 0.5) * FRAME - CENTRE_SAMPLES) / HOP_SAMPLES
    at = at.clamp(0, len(rows) - 1.001)
    low = at.long()
    return torch.lerp(rows[low], rows[(low + 1).clamp(max=len(rows) - 1)], (at - low)[:, None])
