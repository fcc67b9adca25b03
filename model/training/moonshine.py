"""The decoder of Moonshine tiny in torch, with its published weights: to begin with something that knows how English is written.

Moonshine: Jeffries et al., "Moonshine: speech recognition for live transcription and voice commands" (arXiv 2410.15608); weights by
Useful Sensors, MIT licence. The formulas are those of transformers/models/moonshine/modeling_moonshine.py, and so are the names of the
weights. The package moonshine-voice carries ONNX Runtime's own format (a flatbuffer), with the matrices in 8 bits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from .recognisers import BOS, EOS, HEAD_DIM, HEADS, LAYERS
from .teachers import WIDTH, moonshine_assets

VOCABULARY = 32_768
MLP_WIDTH = 1152
ROTARY_DIM, ROTARY_BASE = 32, 10_000.0  # the first 32 of a head's 36 dimensions turn with the position
# Dimension i of a head in Gemma's layers is this one of the decoder's: first halves of pairs, then second ones, with what is behind each.
ORDER = torch.tensor([*range(0, ROTARY_DIM, 2), 32, 33, *range(1, ROTARY_DIM, 2), 34, 35])
HIDDEN_FROM = -1e4  # added to the scores of what must not be seen; a number that bfloat16 holds, and no infinity to make NaN of

# onnx.TensorProto.DataType → numpy; strings (8) are no tensors to us.
_TYPES = {1: np.float32, 2: np.uint8, 3: np.int8, 6: np.int32, 7: np.int64, 9: np.bool_, 10: np.float16, 11: np.float64}


def read_graph(path: Path) -> Any:
    """The main graph of an ORT file, as the flatbuffers class of ONNX Runtime. Raises FileNotFoundError, ValueError."""
    # Here and not above: these classes are found because their package appends its own folder to sys.path.
    from onnxruntime.tools.ort_format_model.ort_flatbuffers_py.fbs.InferenceSession import InferenceSession

    table = bytearray(path.read_bytes())
    if not InferenceSession.InferenceSessionBufferHasIdentifier(table, 0):
        raise ValueError(f"{path} is not an ORT-format model: the mark ORTM is not there")
    session: Any = InferenceSession.GetRootAs(table, 0)
    return session.Model().Graph()


def tensors(graph: Any) -> dict[str, NDArray[Any]]:
    """The constants of a graph by their names, those of its branches not among them; views of the file's bytes."""
    found: dict[str, NDArray[Any]] = {}
    for one in (graph.Initializers(i) for i in range(graph.InitializersLength())):
        if one.DataType() in _TYPES and not one.RawDataIsNone():
            shape = [one.Dims(i) for i in range(one.DimsLength())]
            found[one.Name().decode()] = one.RawDataAsNumpy().view(_TYPES[one.DataType()]).reshape(shape)
    return found


def nodes(graph: Any) -> list[Any]:
    return [graph.Nodes(i) for i in range(graph.NodesLength())]


def dequantised(constants: dict[str, NDArray[Any]], name: str) -> NDArray[np.float32]:
    """(q − zero point) · scale of ``<name>_quantized``, in float32."""
    whole = constants[f"{name}_quantized"].astype(np.float32) - constants[f"{name}_zero_point"].astype(np.float32)
    return whole * constants[f"{name}_scale"]


def decoder_weights(path: Path | None = None) -> dict[str, Tensor]:
    """``layers.0.self_attn.q_proj.weight`` … → float32; the head is ``embed_tokens.weight``, which it equals bit for bit.

    ``path``: the ORT file, by default the package's. Raises ModuleNotFoundError or FileNotFoundError that says what to install.
    """
    graph = read_graph(path or moonshine_assets() / "decoder_model_merged.ort")
    constants, prefix = tensors(graph), "model.decoder."
    weights = {"embed_tokens.weight": torch.from_numpy(dequantised(constants, f"{prefix}embed_tokens.weight_merged_0"))}
    for name, value in constants.items():
        if name.startswith(prefix) and value.dtype == np.float32 and value.ndim == 1:  # of norms, and biases
            weights[name.removeprefix(prefix).removesuffix("_merged_0")] = torch.from_numpy(value.copy())
    return weights | matrices(_branch_without_cache(graph), constants, "/model/decoder/")


def matrices(graph: Any, constants: dict[str, NDArray[Any]], prefix: str) -> dict[str, Tensor]:
    """``layers.0.self_attn.q_proj.weight`` … [out, in]. They are numbered in the file, not named: what each one is, the node says that
    multiplies with it. ONNX has them as [in, out]."""
    weights: dict[str, Tensor] = {}
    for node in nodes(graph):
        place = re.fullmatch(rf"{prefix}(layers\.\d+)/(\w+)/(\w+)/MatMul_quant", node.Name().decode())
        if place:
            names = [node.Inputs(i).decode() for i in range(node.InputsLength())]
            (matrix,) = (name.removesuffix("_quantized") for name in names if name.endswith("_quantized") and name in constants)
            weights[".".join([*place.groups(), "weight"])] = torch.from_numpy(dequantised(constants, matrix).T.copy())
    return weights


def _branch_without_cache(graph: Any) -> Any:
    """The branch of the first token: in the other one the keys of what was heard are made already, and two matrices are missing."""
    choice = next(node for node in nodes(graph) if node.OpType() == b"If")
    branches = [choice.Attributes(i) for i in range(choice.AttributesLength())]
    return next(branch.G() for branch in branches if branch.Name() == b"else_branch")


class Norm(nn.LayerNorm):
    """Without a bias; computed in float32, whatever comes in and goes out."""

    def __init__(self) -> None:
        super().__init__(WIDTH, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.float()).to(input.dtype)


class Attention(nn.Module):
    """The four matrices; ``q``, ``k`` and ``v``: [B, T, 288] → [B, heads, T, 36]."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))

    def q(self, x: Tensor) -> Tensor:
        return _heads(self.q_proj(x))

    def k(self, x: Tensor) -> Tensor:
        return _heads(self.k_proj(x))

    def v(self, x: Tensor) -> Tensor:
        return _heads(self.v_proj(x))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """Softmax attention spelt out (on a CPU faster than the fused kernel, see student.py); the mask is added to the scores."""
        scores = (q @ k.mT) * HEAD_DIM**-0.5 + mask
        seen = scores.float().softmax(-1).to(v.dtype) @ v
        return self.o_proj(seen.transpose(1, 2).flatten(-2))


class Mlp(nn.Module):
    """SwiGLU: the second half of fc1's output is the gate of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, 2 * MLP_WIDTH), nn.Linear(MLP_WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        up, gate = self.fc1(x).chunk(2, -1)
        return self.fc2(up * F.silu(gate))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.encoder_attn, self.mlp = Attention(), Attention(), Mlp()
        self.input_layernorm, self.post_attention_layernorm, self.final_layernorm = Norm(), Norm(), Norm()


KeysAndValues = tuple[Tensor, Tensor]  # [B, heads, T, 36] each


def run_layer(layer: Layer, x: Tensor, states: Tensor, causal: Tensor, heard: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, T, 288] → the same, after one layer that looks at ``states`` [B, S, 288]. A function, so that it can be compiled alone.

    Masks are added to scores: ``causal`` [T, T], ``heard`` [B, 1, 1, S]. ``cos``, ``sin`` [T, 32]: of :func:`rotary`.
    """
    return _run(layer, x, _memory(layer, states), causal, heard, cos, sin)[0]


def _memory(layer: Layer, states: Tensor) -> KeysAndValues:
    return layer.encoder_attn.k(states), layer.encoder_attn.v(states)


def _run(
    layer: Layer,
    x: Tensor,
    memory: KeysAndValues,
    causal: Tensor,
    heard: Tensor,
    cos: Tensor,
    sin: Tensor,
    past: KeysAndValues | None = None,
) -> tuple[Tensor, KeysAndValues]:
    """:func:`run_layer` behind the tokens of ``past``; → x, and what is past after it."""
    own, other = layer.self_attn, layer.encoder_attn
    h = layer.input_layernorm(x)
    k, v = turned(own.k(h), cos, sin), own.v(h)
    if past is not None:
        k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
    x = x + own(turned(own.q(h), cos, sin), k, v, causal)
    x = x + other(other.q(layer.post_attention_layernorm(x)), *memory, heard)
    return x + layer.mlp(layer.final_layernorm(x)), (k, v)


def rotary(length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines [T, 32] of positions 0 … T − 1; dimensions 2i and 2i + 1 are a pair that turns together."""
    rates = ROTARY_BASE ** -(torch.arange(0, ROTARY_DIM, 2) / ROTARY_DIM)
    angles = (torch.arange(length)[:, None] * rates).repeat_interleave(2, -1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    pairs, rest = x[..., :ROTARY_DIM], x[..., ROTARY_DIM:]
    across = torch.stack([-pairs[..., 1::2], pairs[..., 0::2]], -1).flatten(-2)
    return torch.cat([pairs * cos + across * sin, rest], -1)


def _heads(x: Tensor) -> Tensor:
    return x.view(*x.shape[:-1], HEADS, HEAD_DIM).transpose(1, 2)


class Decoder(nn.Module):
    """``forward(ids [B, T], states [B, S, 288], heard [B, S] bool)`` → hidden states [B, T, 288] after the last norm, for ``logits``.

    ``states``: the last hidden states of the encoder, of any rate; where ``heard`` is False nobody looks. Computes in their dtype.
    ``run_layer`` may be set to ``torch.compile(run_layer, dynamic=False)``: all layers share the code.
    """

    def __init__(self, vocabulary: int = VOCABULARY, layers: int = LAYERS) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocabulary, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(layers))
        self.norm = Norm()
        self.run_layer: Callable[..., Tensor] = run_layer

    def forward(self, ids: Tensor, states: Tensor, heard: Tensor) -> Tensor:
        t, dtype = ids.shape[1], states.dtype
        causal = torch.full((t, t), HIDDEN_FROM, dtype=dtype).triu(1)
        mask, turns = _mask(heard, dtype), rotary(t, dtype)
        x = self.embed_tokens(ids).to(dtype)
        if states.requires_grad and not x.requires_grad:
            x = x.requires_grad_()  # nobody wants it, but else the first layer would be compiled apart
        for layer in self.layers:
            x = self.run_layer(layer, x, states, causal, mask, *turns)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., 288] → [..., vocabulary]; the head is the embedding."""
        return F.linear(hidden, self.embed_tokens.weight.to(hidden.dtype))

    @torch.inference_mode()
    def greedy(
        self, states: Tensor, heard: Tensor, limits: Sequence[int], *, begin: Sequence[int] = (BOS,), end: int = EOS
    ) -> list[list[int]]:
        """The likeliest token at each step behind those of ``begin``, for each clip, until ``end`` (left out) or as many as ``limits``.

        With a cache, and never compiled: each step has another shape.
        """
        dtype = states.dtype
        layers: list[Layer] = list(self.layers)  # pyright: ignore[reportAssignmentType]
        memory = [_memory(layer, states) for layer in layers]
        past: list[KeysAndValues | None] = [None] * len(layers)
        everything = torch.zeros((), dtype=dtype)
        mask, (cos, sin) = _mask(heard, dtype), rotary(max(limits) + len(begin), dtype)
        token, going = torch.full((len(states),), begin[0]), torch.ones(len(states), dtype=torch.bool)
        most, said = torch.tensor(limits), [list[int]() for _ in limits]
        for at in range(max(limits) + len(begin) - 1):
            x = self.embed_tokens(token)[:, None].to(dtype)
            for i, layer in enumerate(layers):
                x, past[i] = _run(layer, x, memory[i], everything, mask, cos[at : at + 1], sin[at : at + 1], past[i])
            if at + 1 < len(begin):
                token = torch.full_like(token, begin[at + 1])
                continue
            token = self.logits(self.norm(x[:, 0])).argmax(-1)
            going &= (token != end) & (at + 1 - len(begin) < most)
            if not going.any():
                break
            for i in going.nonzero()[:, 0].tolist():
                said[i].append(int(token[i]))
        return said


def _mask(heard: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(heard.shape, dtype=dtype).masked_fill(~heard, HIDDEN_FROM)[:, None, None]


def load_decoder(keep: Sequence[int] = range(LAYERS)) -> Decoder:
    """The published decoder, or those of its layers (0 … 5) that are named, in that order.

    Raises as :func:`decoder_weights`; ValueError for a layer that it does not have.
    """
    if not all(0 <= layer < LAYERS for layer in keep):
        raise ValueError(f"layers {list(keep)} are asked for; the decoder has layers 0 to {LAYERS - 1}")
    weights = decoder_weights()
    chosen = {name: value for name, value in weights.items() if not name.startswith("layers.")}
    for new, old in enumerate(keep):
        before = f"layers.{old}."
        chosen |= {f"layers.{new}.{name.removeprefix(before)}": value for name, value in weights.items() if name.startswith(before)}
    decoder = Decoder(layers=len(keep))
    decoder.load_state_dict(chosen)
    return decoder
