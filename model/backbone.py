"""The Gemma 4 decoder stack in PyTorch: one class for every size, for training and for streaming.

Axes: B streams, T positions, H heads, D head dimension, d hidden size. ``...`` is either [B, T] (a padded batch, training) or
[N] (the new positions of several streams end to end, streaming). The layers do everything that works position by position;
looking at other positions is the caller's ``attend``, because that is where caches live:

    attend(layer, q [..., H, D], k [..., Hkv, D], v [..., Hkv, D]) -> [..., H, D]

Formulas: transformers 5.22, ``models/gemma4_unified/modeling_gemma4_unified.py``; section 3 of the spec.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import CROSS, PLAIN_AUDIO, TEXT, BackboneConfig, PlainLayers, goes_through

Attend = Callable[[int, Tensor, Tensor | None, Tensor | None], Tensor]
Remember = Callable[[int, Tensor, Tensor], None]  # layer, k, v
Rotary = dict[str, tuple[Tensor, Tensor]]  # BackboneConfig.turning -> cos, sin, each [..., 1, D]


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x / rms(x), times the weight itself (Gemma 4 does not add 1 to it); fp32 inside."""
    y = x.float()
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
    return (y if weight is None else y * weight.float()).type_as(x)


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


def _norm(width: int, eps: float, *, there: bool) -> nn.Module:
    """A norm of Gemma's that plain layers do without (``config.PlainLayers``)."""
    return RMSNorm(width, eps) if there else nn.Identity()


def rotary_frequencies(config: BackboneConfig, kind: str) -> Tensor:
    """[D/2] angles per position, of a kind of layer or of PLAIN_AUDIO ones, which are full layers. Full layers turn a quarter of the pairs
    ("proportional": exponents over all of D), the rest stand."""
    sliding = kind == "sliding_attention"
    dim = config.head_dim if sliding else config.global_head_dim
    theta = config.rope_theta if sliding else config.global_rope_theta
    turned = int((1.0 if sliding else config.global_partial_rotary_factor) * dim // 2)
    exponents = torch.arange(0, 2 * turned, 2, dtype=torch.float32) / dim
    step = config.plain.audio_step if kind == PLAIN_AUDIO and config.plain is not None else 1.0
    return torch.cat([step * theta**-exponents, torch.zeros(dim // 2 - turned)])


def rotate(x: Tensor, cos_sin: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary position embedding, half-split form: pairs are (i, i + D/2)."""
    cos, sin = cos_sin
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], -1)
    return x * cos + turned * sin


class Attention(nn.Module):
    """Projections, norms and rotary positions of one layer; ``queries_only`` for the drafter, which reads another model's cache."""

    def __init__(self, config: BackboneConfig, layer: int, *, queries_only: bool = False) -> None:
        super().__init__()
        d, self.dim = config.hidden_size, config.dim(layer)
        self.kind, self.eps = config.turning(layer), config.rms_norm_eps
        self.plain = config.plain_layer(layer) is not None
        self.turns = not (self.plain and config.layer_roles[layer] == CROSS)
        wide, narrow = config.heads(layer) * self.dim, config.kv_heads(layer) * self.dim
        self.q_proj = nn.Linear(d, wide, bias=False)
        self.o_proj = nn.Linear(wide, d, bias=self.plain)
        self.q_norm = _norm(self.dim, self.eps, there=not self.plain)
        self.queries_only = queries_only
        self.shares_v = config.attention_k_eq_v and not config.is_sliding(layer)
        if not queries_only:
            self.k_proj = nn.Linear(d, narrow, bias=False)
            self.k_norm = _norm(self.dim, self.eps, there=not self.plain)
            if not self.shares_v:
                self.v_proj = nn.Linear(d, narrow, bias=False)

    def project(self, h: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor | None, Tensor | None]:
        q = self.queries(h, rotary)
        return (q, None, None) if self.queries_only else (q, *self.keys_and_values(h, rotary))

    def queries(self, h: Tensor, rotary: Rotary) -> Tensor:
        return self._turned(self.q_norm(self._heads(self.q_proj(h))), rotary)

    def keys_and_values(self, h: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        raw = self._heads(self.k_proj(h))
        # A full layer's V is the K projection BEFORE k_norm and rotation; V has its own norm, without a weight.
        v = raw if self.shares_v else self._heads(self.v_proj(h))
        return self._turned(self.k_norm(raw), rotary), v if self.plain else rms_norm(v, None, self.eps)

    def _turned(self, x: Tensor, rotary: Rotary) -> Tensor:
        return rotate(x, rotary[self.kind]) if self.turns else x

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], -1, self.dim)


def gelu(x: Tensor) -> Tensor:
    """GELU by its tanh formula. (1 + tanh u) / 2 is sigmoid(2u), for which compiled code takes less time than for a tanh."""
    if not torch.compiler.is_compiling():
        return F.gelu(x, approximate="tanh")
    return x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))


class MLP(nn.Module):
    def __init__(self, config: BackboneConfig, plain: PlainLayers | None = None) -> None:
        super().__init__()
        d, wide, self.plain = config.hidden_size, (plain or config).intermediate_size, plain is not None
        self.gate_proj = nn.Linear(d, wide, bias=self.plain)
        self.up_proj = nn.Linear(d, wide, bias=self.plain)
        self.down_proj = nn.Linear(wide, d, bias=self.plain)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate_proj(x)
        return self.down_proj((F.silu(gate) if self.plain else gelu(gate)) * self.up_proj(x))


class Layer(nn.Module):
    layer_scalar: Tensor

    def __init__(self, config: BackboneConfig, layer: int, *, queries_only: bool = False) -> None:
        super().__init__()
        d, eps = config.hidden_size, config.rms_norm_eps
        self.index = layer
        self.role = config.layer_roles[layer] if config.layer_roles else None
        self.self_attn = Attention(config, layer, queries_only=queries_only)
        plain = config.plain_layer(layer)
        self.input_layernorm = RMSNorm(d, eps)
        self.post_attention_layernorm = _norm(d, eps, there=plain is None)
        self.has_mlp = self.role != TEXT
        if self.has_mlp:
            self.mlp = MLP(config, plain)
            self.pre_feedforward_layernorm = RMSNorm(d, eps)
            self.post_feedforward_layernorm = _norm(d, eps, there=plain is None)
        self.register_buffer("layer_scalar", torch.ones(1))

    def forward(self, x: Tensor, rotary: Rotary, attend: Attend) -> Tensor:
        h = self.input_layernorm(x)
        if self.role == CROSS:  # keys and values are those of audio, which are there already
            return self.settle(x, attend(self.index, self.self_attn.queries(h, rotary), None, None))
        q, k, v = self.self_attn.project(h, rotary)
        return self.settle(x, attend(self.index, q, k, v))

    def turn(self, x: Tensor, rotary: Rotary, attend: Attend, side: str, remember: Remember | None) -> Tensor:
        """What :meth:`Backbone.forward` asks of one layer: a position goes only through the layers of its side."""
        if self.role is None or goes_through(side, self.role):
            return self.forward(x, rotary, attend)
        if self.role == CROSS and remember is not None:
            remember(self.index, *self.self_attn.keys_and_values(self.input_layernorm(x), rotary))
        return x

    def settle(self, x: Tensor, seen: Tensor, dropout: float = 0.0) -> Tensor:
        """What was attended to [..., H, D] and the MLP, added to the residual stream [..., d]; position by position.

        ``dropout``: share of what either adds that is left out (training only).
        """
        x = x + F.dropout(self.post_attention_layernorm(self.self_attn.o_proj(seen.flatten(-2))), dropout, dropout > 0)
        if self.has_mlp:
            x = x + F.dropout(self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x))), dropout, dropout > 0)
        return x * self.layer_scalar  # after BOTH residual sums


class Backbone(nn.Module):
    """Token embedding, layers, final norm, tied head."""

    def __init__(self, config: BackboneConfig, *, queries_only: bool = False) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, i, queries_only=queries_only) for i in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def embed(self, ids: Tensor) -> Tensor:
        """[...] ids → [..., d], times sqrt(d) rounded to the weights' dtype (audio and image positions are NOT scaled)."""
        weight = self.embed_tokens.weight
        return self.embed_tokens(ids) * torch.tensor(self.config.hidden_size**0.5).to(weight.dtype)

    def rotary(self, positions: Tensor, dtype: torch.dtype) -> Rotary:
        """cos and sin for each way of turning (``BackboneConfig.turning``), from fp32 angles; positions [...] are absolute."""
        tables: Rotary = {}
        for kind in dict.fromkeys(map(self.config.turning, range(self.config.num_layers))):
            frequencies = rotary_frequencies(self.config, kind).to(positions.device)
            angles = positions.float()[..., None] * frequencies
            angles = torch.cat([angles, angles], -1)[..., None, :]
            tables[kind] = (angles.cos().to(dtype), angles.sin().to(dtype))
        return tables

    def forward(self, x: Tensor, positions: Tensor, attend: Attend, side: str = TEXT, remember: Remember | None = None) -> Tensor:
        """Embeddings [..., d] at absolute positions [...] → hidden states [..., d] after the final norm.

        ``side``: AUDIO, TEXT or TRANSLATION, of all of x; it matters where layers have roles. ``remember``: with audio, is given the keys
        and values that text looks at.
        """
        rotary = self.rotary(positions, x.dtype)
        for layer in self.layers:
            assert isinstance(layer, Layer)
            x = layer.turn(x, rotary, attend, side, remember)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., d] → [..., vocab_size], soft-capped."""
        scores = F.linear(hidden, self.embed_tokens.weight)
        cap = self.config.final_logit_softcapping
        return scores if cap is None else cap * torch.tanh(scores / cap)


def causal_attention(config: BackboneConfig, length: int, device: torch.device | None = None) -> Attend:
    """Attention inside one padded batch [B, T, H, D] with no cache (training, one-shot reference). Scale is 1.0."""
    place = torch.arange(length, device=device)
    behind = place[:, None] - place[None]
    near = (behind >= 0) & (behind < config.sliding_window)

    def attend(layer: int, q: Tensor, k: Tensor | None, v: Tensor | None) -> Tensor:
        assert k is not None and v is not None, "causal_attention needs keys and values"
        rolls = config.is_sliding(layer) and length > config.sliding_window
        seen = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=near if rolls else None,
            is_causal=not rolls,
            scale=1.0,
            enable_gqa=True,
        )
        return seen.transpose(1, 2)

    return attend


def cached_attention(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """q [n, H, D] over keys, values [Hkv, S, D] → [n, H, D]; mask [n, S]. Scale is 1.0 (the norms have learned it)."""
    heads = q.transpose(0, 1)[None]
    seen = F.scaled_dot_product_attention(heads, keys[None], values[None], attn_mask=mask, scale=1.0, enable_gqa=True)
    return seen[0].transpose(0, 1)
