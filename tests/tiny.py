"""A tiny random model as a checkpoint folder: what the commands run on when no trained weights are needed."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from dragoman.model.checkpoint import build_model, save_checkpoint
from dragoman.model.config import read_model_config

from .fakes import SPECIALS, scripted_tokenizer


def save_tiny_model(folder: Path, seed: int = 0) -> Path:
    """config.json, tokenizer.json and random weights with every token reachable. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    place = {name: index for index, name in enumerate(SPECIALS)}
    tokenizer = scripted_tokenizer()
    tokenizer._inner.save(str(folder / "tokenizer.json"))  # pyright: ignore[reportPrivateUsage]
    text = {
        "vocab_size": tokenizer.size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"],
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "global_head_dim": 16,
        "sliding_window": 64,
        "bos_token_id": place["<bos>"],
        "pad_token_id": place["<pad>"],
        "final_logit_softcapping": 30.0,
    }
    config = {
        "text_config": text,
        "audio_config": {"audio_embed_dim": 640},
        "audio_token_id": place["<|audio|>"],
        "boa_token_id": place["<|audio>"],
        "eoa_token_index": place["<audio|>"],
        "image_token_id": place["<|audio|>"],
        "video_token_id": place["<|audio|>"],
        "boi_token_id": place["<|audio>"],
        "eoi_token_id": place["<audio|>"],
        "dragoman": {"prompt_format": "tokens", "targets": ["de", "fr", "es"], "stop": [place["<eos>"]], "longest_segment_s": 12.0},
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model = build_model(read_model_config(folder), device="cpu")
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.3)
        for parameter in model.projector.parameters():
            parameter.normal_(0.0, 0.3)
    save_checkpoint(folder, model.backbone, model.projector)
    return folder
