"""Tiny random models of our own, in PyTorch, without transformers: for the default tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from dragoman.model.backend import Floats, Ids
from dragoman.model.checkpoint import Model, build_drafter, build_model
from dragoman.model.config import AudioConfig, BackboneConfig, DrafterConfig, ModelConfig, PlainLayers, SpecialIds, VisionConfig
from dragoman.model.drafter import Drafter
from dragoman.model.torch_backend import TorchBackend, TorchCache

L, G = "sliding_attention", "full_attention"
WINDOW = 16
TEXT = BackboneConfig(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    layer_types=(L, L, G),
    num_attention_heads=4,
    num_key_value_heads=2,
    num_global_key_value_heads=1,
    head_dim=8,
    global_head_dim=16,
    sliding_window=WINDOW,
)
# Audio and text go through layers of their own.
ROLES: dict[str, Any] = {
    "layer_types": (L, L, G, G, G, G),
    "layer_roles": ("audio", "audio", "text", "cross", "text", "cross"),
}
PLAIN: dict[str, Any] = {**ROLES, "attention_k_eq_v": False, "global_head_dim": 12, "plain": PlainLayers(3, 40)}
TRANSLATING: dict[str, Any] = {
    **PLAIN,
    "layer_types": (*ROLES["layer_types"], G, G),
    "layer_roles": (*ROLES["layer_roles"], "translation", "translation"),
}
HEARING: dict[str, Any] = {  # plain layers that hear, too
    **PLAIN,
    "layer_types": (L, L, G, G, G, G, G),
    "layer_roles": ("audio", "audio", "plain_audio", "text", "cross", "text", "cross"),
    "plain": PlainLayers(3, 40, 1.5),
}
LANGUAGES = (11, 12)  # tokens behind which these layers translate
SPECIAL = SpecialIds(0, 2, (1,), image=80, audio=81, video=82, begin_of_image=83, end_of_image=84, begin_of_audio=85, end_of_audio=86)


def tiny_config(*, vision: bool = False, **text: object) -> ModelConfig:
    eyes = VisionConfig(mm_embed_dim=24, mm_posemb_size=32) if vision else None
    special = replace(SPECIAL, languages=LANGUAGES) if "translation" in text.get("layer_roles", ()) else SPECIAL  # type: ignore[operator]
    return ModelConfig(replace(TEXT, **text), AudioConfig(), eyes, special, prompt_format="tokens")  # type: ignore[arg-type]


def randomise(module: torch.nn.Module, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in [*module.named_parameters(), *module.named_buffers()]:
            if p.ndim == 1 and "bias" not in name:
                p.copy_(0.5 + torch.rand(p.shape, generator=g))
            else:
                p.copy_(torch.randn(p.shape, generator=g) * (0.3 if "pos_embedding" in name or "bias" in name else 0.15))


def tiny_model(seed: int = 0, config: ModelConfig | None = None) -> Model:
    model = build_model(config or tiny_config(), device="cpu")
    for module in (model.backbone, model.projector, model.vision):
        if module is not None:
            randomise(module, seed)
    return model


def tiny_drafter(seed: int = 1, text: BackboneConfig = TEXT) -> Drafter:
    inner = replace(text, hidden_size=16, intermediate_size=32, layer_types=(L, G), layer_roles=(), final_logit_softcapping=None)
    drafter = build_drafter(DrafterConfig(text.hidden_size, inner), device="cpu")
    randomise(drafter, seed)
    return drafter


def tiny_backend(seed: int = 0, *, drafter: bool = False, vision: bool = False, slack_tokens: int = 64) -> TorchBackend:
    model = tiny_model(seed, tiny_config(vision=vision))
    return TorchBackend(model, tiny_drafter(seed + 1) if drafter else None, name="tiny", slack_tokens=slack_tokens)


def noise(seed: int, frames: int) -> Floats:
    return (0.2 * np.random.default_rng(seed).standard_normal((frames, 640))).astype(np.float32)


def some_ids(seed: int, count: int) -> Ids:
    return np.random.default_rng(seed).integers(3, 80, count)


def greedy(backend: TorchBackend, cache: TorchCache, start: Sequence[int], count: int) -> list[int]:
    """The plain loop, one token at a time, on a copy."""
    cache, out = cache.copy(), list[int]()
    ids = np.array(start)
    while len(out) < count:
        out.append(int(backend.step([(cache, ids)])[0].ids[-1]))
        ids = np.array(out[-1:])
    return out
