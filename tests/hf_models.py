"""Tiny random transformers models with the shape of Gemma 4 12B Unified and its assistant: what the parity tests compare with.

Imported by tests with the marker ``parity`` only (transformers is needed).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from dragoman.model.backend import Floats
from transformers import (
    Gemma4UnifiedAssistantConfig,
    Gemma4UnifiedAssistantForCausalLM,
    Gemma4UnifiedConfig,
    Gemma4UnifiedForConditionalGeneration,
)

transformers.utils.logging.disable_progress_bar()

FRAME = 640
WINDOW = 16
BOS, EOS, TURN_END = 2, 1, 106
IMAGE, AUDIO, BOI, EOI, BOA, EOA, VIDEO = 500, 501, 502, 503, 504, 505, 506
L, G = "sliding_attention", "full_attention"
FIVE_ONE = (L, L, L, L, L, G)
ROPE = {
    G: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
    L: {"rope_type": "default", "rope_theta": 10_000.0},
}


def text_settings(layers: Sequence[str] = FIVE_ONE, **over: Any) -> dict[str, Any]:
    settings = dict(
        model_type="gemma4_unified_text",
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=len(layers),
        num_attention_heads=4,
        num_key_value_heads=2,
        num_global_key_value_heads=1,
        head_dim=16,
        global_head_dim=32,
        attention_k_eq_v=True,
        attention_bias=False,
        hidden_activation="gelu_pytorch_tanh",
        max_position_embeddings=4096,
        rms_norm_eps=1e-6,
        sliding_window=WINDOW,
        layer_types=list(layers),
        rope_parameters=ROPE,
        final_logit_softcapping=30.0,
        use_bidirectional_attention="vision",
        num_kv_shared_layers=0,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    return settings | over


def _randomise(model: torch.nn.Module, seed: int) -> None:
    """Norms, scalars, biases and position tables away from 1 and 0, so that every term counts."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("layer_scalar") or (("norm" in name or "_ln" in name) and name.endswith("weight")):
                p.copy_(0.5 + torch.rand(p.shape, generator=g))
            elif name.endswith("bias") or "pos_embedding" in name:
                p.copy_(0.3 * torch.randn(p.shape, generator=g))
            elif name.endswith("weight") and p.ndim == 2 and "embed_tokens" not in name and "lm_head" not in name:
                p.copy_(0.06 * torch.randn(p.shape, generator=g))
            elif "embed_tokens" in name:
                p.copy_(0.05 * torch.randn(p.shape, generator=g))


def save_target(folder: Path, seed: int, layers: Sequence[str] = FIVE_ONE, *, shard: str = "5GB", **over: Any) -> None:
    """A random model, by save_pretrained."""
    torch.manual_seed(seed)
    config = Gemma4UnifiedConfig(
        text_config=text_settings(layers, **over),
        audio_config=dict(audio_embed_dim=FRAME, rms_norm_eps=1e-6),
        vision_config=dict(
            patch_size=16, pooling_kernel_size=3, mm_embed_dim=48, mm_posemb_size=32, output_proj_dims=48, rms_norm_eps=1e-6
        ),
        image_token_id=IMAGE,
        audio_token_id=AUDIO,
        video_token_id=VIDEO,
        boi_token_id=BOI,
        eoi_token_id=EOI,
        boa_token_id=BOA,
        eoa_token_index=EOA,
        tie_word_embeddings=True,
        eos_token_id=[EOS, TURN_END],
    )
    model = Gemma4UnifiedForConditionalGeneration(config)
    _randomise(model, seed)
    model.save_pretrained(folder, max_shard_size=shard)


def save_assistant(folder: Path, seed: int, layers: Sequence[str] = (L, L, L, G)) -> None:
    torch.manual_seed(seed)
    text = text_settings(layers, hidden_size=32, intermediate_size=64, num_kv_shared_layers=len(layers), final_logit_softcapping=None)
    config = Gemma4UnifiedAssistantConfig(text_config=text, backbone_hidden_size=64, use_ordered_embeddings=False, tie_word_embeddings=True)
    model = Gemma4UnifiedAssistantForCausalLM(config)
    _randomise(model, seed)
    model.save_pretrained(folder)


def open_target(folder: Path) -> Any:
    return Gemma4UnifiedForConditionalGeneration.from_pretrained(folder, attn_implementation="eager").eval()


def open_assistant(folder: Path) -> Any:
    return Gemma4UnifiedAssistantForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


@dataclass(frozen=True)
class Piece:
    """A part of a prompt: tokens [n], or frames [n, 640], or an image's patches [py, px, 6912]."""

    ids: tuple[int, ...] = ()
    frames: Floats | None = None
    patches: Floats | None = None

    def __len__(self) -> int:
        if self.frames is not None:
            return len(self.frames)
        return len(self.ids) if self.patches is None else self.patches.shape[0] * self.patches.shape[1]


def random_tokens(rng: np.random.Generator, n: int) -> Piece:
    return Piece(ids=tuple(int(token) for token in rng.integers(3, 490, n)))


def random_frames(rng: np.random.Generator, n: int) -> Piece:
    return Piece(frames=(0.2 * rng.standard_normal((n, FRAME))).astype(np.float32))


def random_image(rng: np.random.Generator, rows: int, columns: int) -> Piece:
    return Piece(patches=rng.random((rows, columns, 6912), dtype=np.float32))


def reference_inputs(pieces: Sequence[Piece]) -> dict[str, Any]:
    """Keyword arguments of the transformers model for a prompt made of pieces."""
    ids: list[int] = []
    types: list[int] = []
    frames: list[Floats] = []
    images: list[Floats] = []
    for piece in pieces:
        if piece.frames is not None:
            ids, types = ids + [AUDIO] * len(piece), types + [3] * len(piece)
            frames.append(piece.frames)
        elif piece.patches is not None:
            ids, types = ids + [IMAGE] * len(piece), types + [1] * len(piece)
            images.append(piece.patches)
        else:
            ids, types = ids + list(piece.ids), types + [0] * len(piece)
    inputs: dict[str, Any] = {"input_ids": torch.tensor([ids])}
    if frames:
        sound = torch.from_numpy(np.concatenate(frames))[None]
        inputs |= {"input_features": sound, "input_features_mask": torch.ones(sound.shape[:2], dtype=torch.bool)}
    if images:
        inputs |= _image_inputs(images)
    if images or frames:
        inputs["mm_token_type_ids"] = torch.tensor([types])
    return inputs


def _image_inputs(images: Sequence[Floats]) -> dict[str, Any]:
    longest = max(image.shape[0] * image.shape[1] for image in images)
    pixels = torch.zeros(len(images), longest, 6912)
    places = torch.full((len(images), longest, 2), -1)
    for row, image in enumerate(images):
        height, width, _ = image.shape
        pixels[row, : height * width] = torch.from_numpy(image).flatten(0, 1)
        across, down = torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy")
        places[row, : height * width] = torch.stack([across, down], -1).reshape(-1, 2)
    return {"pixel_values": pixels, "image_position_ids": places}


@torch.no_grad()
def reference_logits(model: Any, pieces: Sequence[Piece]) -> torch.Tensor:
    """[T, vocab]: transformers in one shot. Masks are what the model composes for generation: inside an image sliding layers see both
    ways within the window, full layers stay causal. (Its plain forward, which ``generate`` uses with a dynamic cache in 5.22.2, opens both
    kinds and ignores the window: not what the model was trained with, by its own comment.)"""
    inputs = reference_inputs(pieces)
    if "pixel_values" in inputs:
        ids = inputs["input_ids"]
        inputs["attention_mask"] = model.create_masks_for_generate(
            config=model.config,
            inputs_embeds=torch.zeros(*ids.shape, model.config.text_config.hidden_size),
            attention_mask=torch.ones_like(ids),
            past_key_values=None,
            position_ids=torch.arange(ids.shape[1])[None],
            mm_token_type_ids=inputs["mm_token_type_ids"],
        )
    return model(**inputs).logits[0]
