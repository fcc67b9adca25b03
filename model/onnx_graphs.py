"""The modules of a checkpoint as ONNX graphs (spec section 9). What crosses their borders is read by ``onnx_backend.py``.

The cache stays with the host: each layer's keys [Hkv, D, S] and values [Hkv, S, D] go in as they lie in memory (S slots, in any
order, masked by the host, so positions are explicit and a ring may wrap), and only the NEW keys and values come out. Scores over old
and new positions are put side by side before the softmax, so nothing of a cache's size is ever copied.

The graphs are written by hand, not traced: torch's exporter wants all weights in memory in fp32, and takes minutes at 48 layers. That
they say what the modules say is what the parity tests are for. Axes: n new positions, r wanted rows, d hidden size, H heads, D head
dimension, g heads for each key head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from .backbone import Attention, Backbone, Layer, RMSNorm, rotary_frequencies
from .config import AUDIO, CROSS, TEXT, SpecialIds, goes_through
from .drafter import Drafter
from .onnx_writer import Array, GraphWriter
from .projector import AudioProjector
from .vision import VisionEmbedder

LOWEST = -3e38  # a mask of -inf would make NaN of a row that sees nothing
Advance = Callable[[], None]


def array(weight: Tensor) -> Array:
    return weight.detach().float().numpy()


def _linear(g: GraphWriter, x: str, name: str, layer: nn.Linear) -> str:
    """``name``: what its module calls the layer."""
    y = g.linear(x, array(layer.weight), {f"{name}.weight": layer.out_features})
    return y if layer.bias is None else g.op("Add", y, g.constant(array(layer.bias)))  # pyright: ignore[reportUnnecessaryComparison]


def _ones(width: int) -> Array:
    return np.ones(width, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class _Inputs:
    """What all layers of one store (one kind, or one role) read."""

    key_heads: int
    cos: str  # [n, D / 2]
    sin: str
    mask: str = ""  # [g * n, S + n] ([g, S] or [1, S] where there are no new ones), to be added to the scores
    split: str = ""  # [S, n]; empty where nothing new is looked at: for the drafter, and for text that looks at audio


def write_projector(g: GraphWriter, projector: AudioProjector) -> None:
    """frames [n, samples] → x [n, d]."""
    weight = array(projector.embedding_projection.weight)
    frames = g.input("frames", np.float32, "n", weight.shape[1])
    normed = g.rms_norm(frames, _ones(weight.shape[1]), projector.eps)
    x = _linear(g, normed, "embedding_projection", projector.embedding_projection)
    g.output("x", x, np.float32, "n", weight.shape[0])


def write_vision(g: GraphWriter, vision: VisionEmbedder) -> None:
    """patches [p, values], columns [p], rows [p] (the place of each patch) → x [p, d]."""
    dense, last = array(vision.patch_dense.weight), array(vision.embedding_projection.weight)
    patches, columns, rows = g.input("patches", np.float32, "p", dense.shape[1]), *(g.input(c, np.int64, "p") for c in ("columns", "rows"))
    x = g.op("Add", g.linear(_layer_norm(g, patches, vision.patch_ln1), dense), g.constant(array(vision.patch_dense.bias)))
    x = _layer_norm(g, x, vision.patch_ln2)
    for axis, places in enumerate((columns, rows)):
        x = g.op("Add", x, g.op("Gather", g.weight(array(vision.pos_embedding[:, axis])), places))
    x = g.rms_norm(_layer_norm(g, x, vision.pos_norm), _ones(last.shape[1]), vision.eps)
    g.output("x", g.linear(x, last), np.float32, "p", last.shape[0])


def _layer_norm(g: GraphWriter, x: str, norm: nn.LayerNorm) -> str:
    return g.op("LayerNormalization", x, g.constant(array(norm.weight)), g.constant(array(norm.bias)), axis=-1, epsilon=norm.eps)


def write_backbone(g: GraphWriter, backbone: Backbone, advance: Advance, *, side: str = TEXT) -> None:
    """x [n, d], positions [n], rows [r], a mask and a split for each kind of layer, keys.i and values.i for each layer
    → hidden [r, d] after the final norm, and for each kind the new keys [layers, Hkv, D, n] and values [layers, Hkv, n, D].

    Where layers have roles each ``side`` (``config.SIDES``) is a graph of its own. Then it is for each role: audio
    makes keys and values of the layers of AUDIO and CROSS, and text looks at those of CROSS under a mask [1, S].
    """
    config = backbone.config
    x = g.input("x", np.float32, "n", config.hidden_size)
    positions, rows = g.input("positions", np.int64, "n"), g.input("rows", np.int64, "r")
    angles, shared = _Angles(g, backbone, positions), dict[str, _Inputs]()
    new: dict[str, list[tuple[str, str]]] = {}
    for layer in _layers(backbone):
        name = config.stores[layer.index]
        turn = layer.role is None or goes_through(side, layer.role)
        if name not in shared:
            shared[name] = _shared_inputs(g, angles, layer.index, name, masked=turn, new=layer.role != CROSS)
        if turn:
            x, made = _write_layer(g, layer, x, shared[name], _cache_inputs(g, backbone, layer.index, layer.index))
            advance()
        else:
            made = _remember(g, layer, x, shared[name]) if layer.role == CROSS and side == AUDIO else None
        if made is not None:
            new.setdefault(name, []).append(made)
    hidden = _norm(g, g.op("Gather", x, rows), backbone.norm.weight, backbone.norm.eps)
    g.output("hidden", hidden, np.float32, "r", config.hidden_size)
    for name, made in new.items():
        layer = config.stores.index(name)
        heads, dim = config.kv_heads(layer), config.dim(layer)
        for place, (kept, shape) in enumerate((("new_keys", (heads, dim, "n")), ("new_values", (heads, "n", dim)))):
            parts = [g.op("Unsqueeze", pair[place], g.ints(0)) for pair in made]
            g.output(f"{kept}.{name}", g.op("Concat", *parts, axis=0), np.float32, len(made), *shape)


def write_head(g: GraphWriter, backbone: Backbone, special: SpecialIds) -> None:
    """hidden [r, d] → ids [r, 1], logprobs [r, 1]. A graph of its own, because audio needs no answers: r is never 0 (MatMulNBits of
    ONNX Runtime 1.22 divides by it)."""
    hidden = g.input("hidden", np.float32, "r", backbone.config.hidden_size)
    scores, ids = _answers(g, hidden, array(backbone.embed_tokens.weight), backbone.config.final_logit_softcapping, special)
    g.output("ids", ids, np.int64, "r", 1)
    # Best score less ReduceLogSumExp is the same, but that takes half as long as the product (ONNX Runtime 1.32).
    g.output("logprobs", g.op("GatherElements", g.op("LogSoftmax", scores, axis=-1), ids, axis=-1), np.float32, "r", 1)


def write_drafter(g: GraphWriter, drafter: Drafter, special: SpecialIds) -> None:
    """embedded [1, d] of the last token, hidden [1, d], positions [1], a mask for each kind, keys and values of the backbone's last
    layer of each kind → ids [1, 1], next_hidden [1, d]."""
    model, wide = drafter.model, drafter.config.backbone_hidden_size
    both = [g.input(name, np.float32, 1, wide) for name in ("embedded", "hidden")]
    angles = _Angles(g, model, g.input("positions", np.int64, 1))
    last = {kind: model.config.last_layer_of(kind) for kind in dict.fromkeys(model.config.layer_types)}
    shared = {kind: _shared_inputs(g, angles, layer, kind, masked=True, new=False) for kind, layer in last.items()}
    caches = {kind: _cache_inputs(g, model, layer, kind) for kind, layer in last.items()}
    x = g.linear(g.op("Concat", *both, axis=-1), array(drafter.pre_projection.weight))
    for layer in _layers(model):
        x, _ = _write_layer(g, layer, x, shared[layer.self_attn.kind], caches[layer.self_attn.kind])
    inner = _norm(g, x, model.norm.weight, model.norm.eps)
    g.output("next_hidden", g.linear(inner, array(drafter.post_projection.weight)), np.float32, 1, wide)
    _, ids = _answers(g, inner, array(model.embed_tokens.weight), None, special)
    g.output("ids", ids, np.int64, 1, 1)


def _layers(backbone: Backbone) -> Sequence[Layer]:
    return [layer for layer in backbone.layers if isinstance(layer, Layer)]


class _Angles:
    """fp32 angles from fp32 positions, as the reference has them: half precision loses whole numbers beyond 2048. Once for each kind."""

    def __init__(self, g: GraphWriter, backbone: Backbone, positions: str) -> None:
        self._g, self.config, self._known = g, backbone.config, dict[str, tuple[str, str]]()
        self._column = g.op("Unsqueeze", g.op("Cast", positions, to=1), g.ints(1))

    def of(self, kind: str) -> tuple[str, str]:
        """cos and sin [n, D / 2]."""
        if kind not in self._known:
            angles = self._g.op("Mul", self._column, self._g.constant(array(rotary_frequencies(self.config, kind))[None]))
            self._known[kind] = self._g.op("Cos", angles), self._g.op("Sin", angles)
        return self._known[kind]


def _shared_inputs(g: GraphWriter, angles: _Angles, layer: int, name: str, *, masked: bool, new: bool) -> _Inputs:
    """``layer``: one of the store ``name``. ``masked``: its cache is looked at; ``new``: and so are the new positions."""
    mask = g.input(f"mask.{name}", np.float32, f"mask_rows.{name}", f"mask_columns.{name}") if masked else ""
    split = g.input(f"split.{name}", np.int64, 2) if masked and new else ""
    return _Inputs(angles.config.kv_heads(layer), *angles.of(angles.config.turning(layer)), mask, split)


def _cache_inputs(g: GraphWriter, backbone: Backbone, layer: int, place: int | str) -> tuple[str, str]:
    config = backbone.config
    heads, dim = config.kv_heads(layer), config.dim(layer)
    slots = f"slots.{config.stores[layer]}"
    return g.input(f"keys.{place}", np.float32, heads, dim, slots), g.input(f"values.{place}", np.float32, heads, slots, dim)


def _norm(g: GraphWriter, x: str, weight: Tensor, eps: float) -> str:
    return g.rms_norm(x, array(weight), eps)


def _norm_behind(g: GraphWriter, x: str, norm: nn.Module) -> str:
    return _norm(g, x, norm.weight, norm.eps) if isinstance(norm, RMSNorm) else x


def _write_layer(g: GraphWriter, layer: Layer, x: str, shared: _Inputs, cache: tuple[str, str]) -> tuple[str, tuple[str, str] | None]:
    """→ x [n, d] after the layer; its new keys [Hkv, D, n] and values [Hkv, n, D]."""
    attention, name = layer.self_attn, f"layers.{layer.index}"
    eps = attention.eps
    q, new = _project(g, layer, _norm(g, x, layer.input_layernorm.weight, eps), shared)
    seen = _linear(g, _attend(g, attention, q, new, shared, cache), f"{name}.self_attn.o_proj", attention.o_proj)
    seen = _norm_behind(g, seen, layer.post_attention_layernorm)
    if layer.has_mlp:
        mlp, before = layer.mlp, g.constant(array(layer.pre_feedforward_layernorm.weight))
        h, _, _, x = g.ops("SkipSimplifiedLayerNormalization", seen, x, before, outputs=4, epsilon=eps)  # the sum, and its norm
        gate = _linear(g, h, f"{name}.mlp.gate_proj", mlp.gate_proj)  # one product with the next, cut in two, would copy both
        up = _linear(g, h, f"{name}.mlp.up_proj", mlp.up_proj)
        opened = g.op("QuickGelu", gate, alpha=1.0) if mlp.plain else g.op("Gelu", gate, approximate="tanh")  # x · σ(α x) is SiLU
        down = _linear(g, g.op("Mul", opened, up), f"{name}.mlp.down_proj", mlp.down_proj)
        seen = _norm_behind(g, down, layer.post_feedforward_layernorm)
    x = g.op("Add", x, seen)
    scalar = array(layer.layer_scalar)
    return x if scalar.item() == 1.0 else g.op("Mul", x, g.constant(scalar)), new


def _project(g: GraphWriter, layer: Layer, h: str, shared: _Inputs) -> tuple[str, tuple[str, str] | None]:
    """h [n, d] → q [Hkv, g * n, D]; new keys [Hkv, D, n] and values [Hkv, n, D]. Queries, keys and values are one linear layer, and
    share the norm without its weight."""
    attention, name = layer.self_attn, f"layers.{layer.index}.self_attn"
    dim, keys = attention.dim, shared.key_heads
    heads = attention.q_proj.weight.shape[0] // dim
    weights = {f"{name}.q_proj.weight": attention.q_proj.weight}
    if attention.queries_only or layer.role == CROSS:
        q = _turn(g, attention, _heads(g, attention, h, weights), heads, _gains(attention.q_norm, heads), shared)
        return g.op("Reshape", q, g.ints(keys, -1, dim)), None
    normed = _heads(g, attention, h, weights | _key_weights(attention, name))
    # A full layer's V is the K projection before k_norm's weight and rotation.
    cut = g.ints(heads, keys) if attention.shares_v else g.ints(heads + keys, keys)
    qk, v = g.ops("Split", normed, cut, outputs=2, axis=1)
    own = _gains(attention.q_norm, heads) + _gains(attention.k_norm, keys)
    turned = _turn(g, attention, normed if attention.shares_v else qk, heads + keys, own, shared)
    q, k = g.ops("Split", turned, g.ints(heads, keys), outputs=2, axis=0)
    q = g.op("Reshape", q, g.ints(keys, -1, dim))
    return q, (g.op("Transpose", k, perm=[0, 2, 1]), g.op("Transpose", v, perm=[1, 0, 2]))


def _key_weights(attention: Attention, name: str) -> dict[str, Tensor]:
    weights = {f"{name}.k_proj.weight": attention.k_proj.weight}
    return weights if attention.shares_v else weights | {f"{name}.v_proj.weight": attention.v_proj.weight}


def _remember(g: GraphWriter, layer: Layer, x: str, shared: _Inputs) -> tuple[str, str]:
    """Audio x [n, d] → the keys [Hkv, D, n] and values [Hkv, n, D] that text looks at in a layer of CROSS."""
    attention, keys = layer.self_attn, shared.key_heads
    h = _norm(g, x, layer.input_layernorm.weight, attention.eps)
    normed = _heads(g, attention, h, _key_weights(attention, f"layers.{layer.index}.self_attn"))
    k, v = (normed, normed) if attention.shares_v else g.ops("Split", normed, g.ints(keys, keys), outputs=2, axis=1)
    turned = _turn(g, attention, k, keys, _gains(attention.k_norm, keys), shared)
    return g.op("Transpose", turned, perm=[0, 2, 1]), g.op("Transpose", v, perm=[1, 0, 2])


def _heads(g: GraphWriter, attention: Attention, h: str, weights: Mapping[str, Tensor]) -> str:
    """[n, d] → [n, heads, D], each head over its rms, if it has norms."""
    rows = {name: len(weight) for name, weight in weights.items()}
    raw = g.op("Reshape", g.linear(h, array(torch.cat(list(weights.values()))), rows), g.ints(0, -1, attention.dim))
    return raw if attention.plain else g.rms_norm(raw, _ones(attention.dim), attention.eps)


def _gains(norm: nn.Module, heads: int) -> list[Tensor]:
    """The weight of a norm of heads [D], for each of them; none of a plain layer."""
    return [norm.weight] * heads if isinstance(norm, RMSNorm) else []


def _turn(g: GraphWriter, attention: Attention, normed: str, heads: int, gains: Sequence[Tensor], shared: _Inputs) -> str:
    """[n, heads, D] times the norms' weights ([D] for each head, or none), rotated → [heads, n, D]."""
    if gains:
        normed = g.op("Mul", normed, g.constant(array(torch.stack(list(gains)))))
    if not attention.turns:
        return g.op("Transpose", normed, perm=[1, 0, 2])
    # Row i of the tables belongs to the i-th NEW position; where it stands in the stream is in the angles already.
    flat = g.op("Reshape", normed, g.ints(1, -1, heads * attention.dim))
    turned = g.op("RotaryEmbedding", flat, g.ints(0), shared.cos, shared.sin)
    return g.op("Transpose", g.op("Reshape", turned, g.ints(-1, heads, attention.dim)), perm=[1, 0, 2])


def _attend(g: GraphWriter, attention: Attention, q: str, new: tuple[str, str] | None, shared: _Inputs, cache: tuple[str, str]) -> str:
    """→ [n, H * D]. Scale is 1.0: the norms have learned it. A cache is read by one MatMul each and by nothing else."""
    heads, (keys, values) = attention.q_proj.weight.shape[0] // attention.dim, cache
    scores = g.op("MatMul", q, keys)
    if new is not None:
        scores = g.op("Concat", scores, g.op("MatMul", q, new[0]), axis=-1)
    weights = g.op("Softmax", g.op("Add", scores, shared.mask), axis=-1)
    if new is None:
        seen = g.op("MatMul", weights, values)
    else:
        old_weights, new_weights = g.ops("Split", weights, shared.split, outputs=2, axis=-1)
        seen = g.op("Add", g.op("MatMul", old_weights, values), g.op("MatMul", new_weights, new[1]))  # [Hkv, g * n, D]
    by_head = g.op("Reshape", seen, g.ints(heads, -1, attention.dim))
    return g.op("Reshape", g.op("Transpose", by_head, perm=[1, 0, 2]), g.ints(-1, heads * attention.dim))


def _answers(g: GraphWriter, hidden: str, table: Array, cap: float | None, special: SpecialIds) -> tuple[str, str]:
    """hidden [r, d] → scores [r, vocab] and best ids [r, 1]; suppressed ids never win."""
    scores = g.linear(hidden, table)
    if cap is not None:
        scores = g.op("Mul", g.op("Tanh", g.op("Mul", scores, g.number(1 / cap))), g.number(cap))
    silence = np.zeros(len(table), np.float32)
    silence[[token for token in special.suppressed if token < len(table)]] = LOWEST
    scores = g.op("Add", scores, g.weight(silence))
    _, ids = g.ops("TopK", scores, g.ints(1), outputs=2, axis=-1)
    return scores, ids
