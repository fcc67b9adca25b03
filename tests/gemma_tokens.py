"""A stand-in for Gemma's tokenizer.json: the published ids of control and role pieces, characters for everything else."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from dragoman.model.config import ModelConfig, model_config_from_mapping
from dragoman.model.tokenizer import Tokenizer
from tokenizers import AddedToken, decoders, models, normalizers
from tokenizers import Tokenizer as Inner

CONTROLS = {
    "<pad>": 0,
    "<eos>": 1,
    "<bos>": 2,
    "<unk>": 3,
    "<|channel>": 100,
    "<channel|>": 101,
    "<|turn>": 105,
    "<turn|>": 106,
    "<|image>": 255999,
    "<|audio>": 256000,
    "<|audio|>": 258881,
    "<image|>": 258882,
    "<audio|>": 258883,
}
PIECES = {"\n": 107, "user": 2364, "model": 4368, "thought": 45518, "▁": 236743}


@cache
def gemma_tokenizer() -> Tokenizer:
    """Characters are single pieces, other bytes fall back to <0xNN>, spaces are ▁: as in the real one."""
    vocab = {**CONTROLS, **PIECES, **{f"<0x{byte:02X}>": 238 + byte for byte in range(256)}}
    letters = [chr(code) for code in range(33, 127)] + list("üöäéñß")
    vocab |= {letter: 240_000 + place for place, letter in enumerate(letters)}
    merges: list[tuple[str, str]] = []
    for word in ("user", "model", "thought"):
        for end in range(2, len(word) + 1):
            if (pair := (word[: end - 1], word[end - 1])) not in merges:
                merges.append(pair)
                vocab.setdefault(word[:end], 250_000 + len(merges))
    inner = Inner(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    inner.normalizer = normalizers.Replace(" ", "▁")
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    inner.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in CONTROLS])
    return Tokenizer(inner)


def gemma_config() -> ModelConfig:
    return model_config_from_mapping(json.loads((Path(__file__).parent / "data" / "gemma4_12b_config.json").read_text()))
