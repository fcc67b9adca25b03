"""Random weights of any size, drawn as they are stored and one layer at a time, behind the project's own runtimes (``full_size.py``)."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import roofline
import torch
from dragoman.model.backbone import Backbone
from dragoman.model.backend import Backend
from dragoman.model.checkpoint import Model, build_model
from dragoman.model.config import BackboneConfig, ModelConfig
from dragoman.model.onnx_backend import FORMAT, NOTE, OnnxBackend
from dragoman.model.onnx_graphs import write_backbone, write_head, write_projector
from dragoman.model.onnx_writer import Array, GraphWriter, Precision
from dragoman.model.torch_backend import TorchBackend
from torch import Tensor, nn

DRAWN = 1 << 20  # numbers; matrices repeat them
KNOWN_ROWS = 64  # of the table of embeddings: the rest of the file is a hole, and reads as zeros
Advance = Callable[[], None]


@dataclass(frozen=True)
class Sized:
    backend: Backend
    backbone_bytes: float  # that every forward reads
    head_bytes: float
    cache_bytes: int  # of a number in the cache
    scale: float = 1.0  # weights of the whole model's layers / of these
    whole: BackboneConfig | None = None


class DrawnWriter(GraphWriter):
    """Linear layers get random values and scales of the sizes that a matrix has; what the matrix holds is not looked at."""

    def __init__(self, folder: Path, name: str, bits: int, block: int | None, accuracy_level: int) -> None:
        precision: Precision = "int4" if bits == 4 else "int8"
        super().__init__(folder, name, precision)
        self._block, self.accuracy_level = block, accuracy_level
        self._drawn = 0
        rng = np.random.default_rng(0)
        self._values = rng.integers(0, 256, DRAWN, dtype=np.uint8)
        self._scales = rng.uniform(0.5, 1.5, DRAWN).astype(np.float32) / np.float32(2**bits / 12**0.5)  # of a standard deviation of 1

    @property
    def bits_and_block(self) -> tuple[int, int]:
        bits, usual = super().bits_and_block
        return bits, self._block or usual

    def quantised(self, weight: Array) -> tuple[Array, Array]:
        n, k = weight.shape
        bits, block = self.bits_and_block
        blocks = -(-k // block)
        self._drawn += 1  # every matrix begins elsewhere: ONNX Runtime keeps equal ones only once
        values = np.resize(np.roll(self._values, 4099 * self._drawn), (n, blocks, block * bits // 8))
        return values, np.resize(self._scales / np.float32(k**0.5), n * blocks)


def drawn_graphs(
    config: ModelConfig, folder: Path, bits: int, block: int | None, accuracy_level: int, threads: int, advance: Advance
) -> Sized:
    """The graphs of ``dragoman export`` in ``folder``, opened by ONNX Runtime. The memory of drawing them is that of the largest matrix."""
    model = _weightless(config)
    writers = [DrawnWriter(folder, name, bits, block, accuracy_level) for name in ("projector", "backbone", "head")]
    with writers[0] as g:
        write_projector(g, model.projector)
    with writers[1] as g:
        write_backbone(g, model.backbone, advance)
    with writers[2] as g:
        write_head(g, model.backbone, config.special)
    shape = config.backbone.vocab_size, config.backbone.hidden_size
    table = np.lib.format.open_memmap(folder / "embeddings.npy", "w+", np.float16, shape)
    table[:KNOWN_ROWS] = np.random.default_rng(1).standard_normal(table[:KNOWN_ROWS].shape) * shape[1] ** -0.5
    del table
    (folder / NOTE).write_text(json.dumps({"format": FORMAT, "precision": f"int{bits}"}) + "\n", encoding="utf-8")
    sizes = [float((folder / f"{name}.data").stat().st_size) for name in ("backbone", "head")]
    return Sized(OnnxBackend(folder, config, threads=threads), sizes[0], sizes[1], cache_bytes=4)


def _weightless(config: ModelConfig) -> Model:
    """Every weight is one number, seen everywhere."""
    model = build_model(config)
    for module in (model.backbone, model.projector):
        module.load_state_dict({name: torch.ones(()).expand(weight.shape) for name, weight in module.state_dict().items()}, assign=True)
    return model


class Int8Linear(nn.Module):
    """Torch's own int8 product (FBGEMM): weights with a scale for each row, activations rounded as they come, one scale for all rows."""

    def __init__(self, values: Tensor, scales: Tensor) -> None:
        super().__init__()
        ops: Any = torch.ops.quantized
        with warnings.catch_warnings():  # torch announces that these tensors will go; nothing as fast has come yet
            warnings.simplefilter("ignore")
            zeros = torch.zeros(len(values), dtype=torch.int64)
            tensor = torch._make_per_channel_quantized_tensor(values, scales.double(), zeros, 0)  # pyright: ignore
            self._packed, self._run = ops.linear_prepack(tensor, None), ops.linear_dynamic

    def forward(self, x: Tensor) -> Tensor:
        return self._run(x, self._packed, True)  # True: 7 bits of an activation, or sums overflow where there is no VNNI


class Int8Backbone(Backbone):
    """A drawn backbone: the head is a matrix of its own, and every token is embedded as the same row."""

    head: nn.Module

    def embed(self, ids: Tensor) -> Tensor:
        return super().embed(torch.zeros_like(ids))

    def logits(self, hidden: Tensor) -> Tensor:
        cap = self.config.final_logit_softcapping
        scores = self.head(hidden)
        return scores if cap is None else cap * torch.tanh(scores / cap)


def drawn_torch(config: ModelConfig, bits: int, device: str, threads: int, advance: Advance) -> Sized:
    if device == "cpu":
        torch.set_num_threads(threads)
    model = build_model(config)
    layers = model.backbone.layers
    if bits == 8:
        model = Model(config, _int8_backbone(config.backbone), model.projector, None)
        layers = model.backbone.layers
    for layer in layers:
        if bits == 8:
            _replace_linears(layer)
        _fill(layer, bits, device)
        advance()
    for module in (model.projector, model.backbone):
        _fill(module, bits, device)
    bytes_each = 2 if bits == 16 else 4
    text, size = config.backbone, bits / 8
    sizes = [size * part for part in (roofline.backbone_weights(text), roofline.head_weights(text))]
    return Sized(TorchBackend(model), sizes[0], sizes[1], cache_bytes=bytes_each)


def _int8_backbone(config: BackboneConfig) -> Int8Backbone:
    with torch.device("meta"):
        backbone = Int8Backbone(config)
        backbone.embed_tokens = nn.Embedding(1, config.hidden_size)
    backbone.head = _drawn_linear(config.vocab_size, config.hidden_size)
    return backbone.eval().requires_grad_(False)


def _replace_linears(layer: nn.Module) -> None:
    for part in list(layer.modules()):
        for name, child in list(part.named_children()):
            if isinstance(child, nn.Linear):
                setattr(part, name, _drawn_linear(*child.weight.shape))


def _drawn_linear(n: int, k: int) -> Int8Linear:
    values = np.resize(np.random.default_rng(0).integers(-127, 128, DRAWN, dtype=np.int8), (n, k))
    return Int8Linear(torch.from_numpy(values), torch.full((n,), k**-0.5 / 73.0))  # 73: their standard deviation


def _fill(module: nn.Module, bits: int, device: str) -> None:
    """Real tensors for those that are still on the meta device: ones for vectors, random numbers for matrices."""
    dtype = torch.bfloat16 if bits == 16 else torch.float32
    drawn: Tensor | None = None
    for part in module.modules():
        for name, weight in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
            if weight.device.type != "meta":
                continue
            real = torch.ones(weight.shape, dtype=dtype, device=device)
            if real.ndim > 1:
                drawn = torch.randn(DRAWN, dtype=dtype, device=device) if drawn is None else drawn
                flat = real.view(-1)
                for first in range(0, len(flat), DRAWN):
                    flat[first : first + DRAWN] = drawn[: len(flat) - first] * real.shape[-1] ** -0.5
            if name in part._parameters:  # pyright: ignore
                setattr(part, name, nn.Parameter(real, requires_grad=False))
            else:
                setattr(part, name, real)
