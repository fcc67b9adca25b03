"""What a machine needs for Gemma 4 12B, from bytes and FLOP alone: the table in docs/performance.md.

    python bench/roofline.py

A forward takes as long as reading what it needs from memory, or as long as computing, whichever is longer. Nothing here was measured:
``full_size.py`` measures.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from dragoman.model.config import BackboneConfig, model_config_from_mapping

CONFIG = Path(__file__).parents[1] / "tests" / "data" / "gemma4_12b_config.json"
CONTEXT = 300  # positions before: a prompt and 8 s of audio
BLOCK_MS, BLOCK_FRAMES = 640, 16  # the default
# A hypothesis after each block: the tail and the words so far as a draft in one forward, then tokens one by one.
FORK_TOKENS, FORK_ANSWERS, FURTHER_TOKENS = 30, 12, 2
# Share of the memory's speed that programs were reported to reach with 4 bits and one stream: 60 tokens/s on an RTX 3090 (0.43), 18.6 on
# a Jetson Thor (0.46), 60 on an RTX 4070 Super (0.80), each with 6.7 GB a token.
REACHED = (0.45, 0.8)
COMPUTED = 0.5  # share of the arithmetic


@dataclass(frozen=True)
class Device:
    name: str
    gb_s: float  # of its memory
    tflops: float  # dense, at 16 bits (8 bits on a CPU), as vendors and the number of units say
    memory_gb: float


DEVICES = (
    Device("laptop, 8 cores AVX-512 VNNI, DDR5-5600", 90, 3.0, 32),
    Device("laptop, 8 cores AVX2, DDR4-3200", 51, 0.8, 32),
    Device("laptop, LPDDR5X-7500, integrated GPU", 120, 8.0, 32),
    Device("Apple M4", 120, 8.0, 24),
    Device("Apple M4 Pro", 273, 17, 48),
    Device("Apple M4 Max", 546, 34, 64),
    Device("Jetson AGX Orin", 205, 42, 64),
    Device("Jetson AGX Thor", 273, 259, 128),
    Device("NVIDIA L4", 300, 121, 24),
    Device("RTX 4060 Laptop", 256, 40, 8),
    Device("RTX 4070 Super", 504, 71, 12),
    Device("RTX 3090", 936, 71, 24),
    Device("RTX 4090", 1008, 165, 24),
    Device("RTX 5090", 1792, 210, 32),
    Device("A100 80 GB", 2039, 312, 80),
    Device("H100 SXM", 3350, 989, 80),
)


def layer_weights(config: BackboneConfig, layer: int) -> int:
    """Weights of one layer's matrices: every position is multiplied with each of them once."""
    d, dim = config.hidden_size, config.dim(layer)
    q, k = config.num_attention_heads * dim, config.kv_heads(layer) * dim
    shares_v = config.attention_k_eq_v and not config.is_sliding(layer)
    return d * (2 * q + (1 if shares_v else 2) * k + 3 * config.intermediate_size)


def backbone_weights(config: BackboneConfig) -> int:
    return sum(layer_weights(config, layer) for layer in range(config.num_layers))


def head_weights(config: BackboneConfig) -> int:
    return config.vocab_size * config.hidden_size


def cache_values(config: BackboneConfig, context: int) -> int:
    """Numbers that a forward reads of the cache of one stream: keys and values of ``context`` positions in all layers."""
    seen = [min(context, config.sliding_window) if config.is_sliding(layer) else context for layer in range(config.num_layers)]
    return sum(2 * config.kv_heads(layer) * config.dim(layer) * seen[layer] for layer in range(config.num_layers))


def bytes_of(weights: int, bits: int, block: int) -> float:
    """Bytes of quantised weights with an fp32 scale for each ``block`` of a row; 16 bits and more have no scales."""
    return weights * (bits + (32 / block if bits < 16 else 0)) / 8


@dataclass(frozen=True)
class Forward:
    """What one call of the model reads and computes."""

    gb: float
    gflop: float

    def limit_s(self, gb_s: float, gflop_s: float) -> float:
        return max(self.gb / gb_s, self.gflop / gflop_s)


def forward(
    config: BackboneConfig, positions: int, answers: int, *, bits: int = 4, block: int = 32, context: int = CONTEXT, cache_bytes: int = 4
) -> Forward:
    """``positions`` go through the layers, ``answers`` of them through the head as well."""
    layers, head = backbone_weights(config), head_weights(config)
    attention = 4 * sum(
        config.num_attention_heads * config.dim(layer) * (min(context, config.sliding_window) if config.is_sliding(layer) else context)
        for layer in range(config.num_layers)
    )
    read = bytes_of(layers, bits, block) + (bytes_of(head, bits, block) if answers else 0) + cache_bytes * cache_values(config, context)
    return Forward(read / 1e9, (positions * (2 * layers + attention) + answers * 2 * head) / 1e9)


def load(config: BackboneConfig, gb_s: float, gflop_s: float, bits: int = 4, block: int = 32) -> float:
    """Work for a second of live captions, in seconds: below 1 it keeps up. Blocks of the default length, no drafter."""
    heard = forward(config, BLOCK_FRAMES, 0, bits=bits, block=block)
    fork = forward(config, FORK_TOKENS, FORK_ANSWERS, bits=bits, block=block)
    token = forward(config, 1, 1, bits=bits, block=block)
    parts = (heard, fork, *[token] * FURTHER_TOKENS)
    return sum(part.limit_s(gb_s, gflop_s) for part in parts) * 1000 / BLOCK_MS


def published_config() -> BackboneConfig:
    return model_config_from_mapping(json.loads(CONFIG.read_text(encoding="utf-8"))).backbone


def table(config: BackboneConfig) -> str:
    """Markdown: for each device the limit of a token and of a block of 8 frames, and what to expect."""
    lines = [
        "| device | GB/s | TFLOP/s | memory holds int4 (no GPU runs it yet), bf16 | int4 token, limit | tokens/s, expected"
        " | block of 8 frames, limit | load, expected |",
        "|---|---|---|---|---|---|---|---|",
    ]
    token, block = forward(config, 1, 1), forward(config, 8, 0)
    needed = [bytes_of(backbone_weights(config) + head_weights(config), bits, 32) / 1e9 + 1 for bits in (4, 16)]
    for device in DEVICES:
        gflop_s = 1000 * device.tflops
        limits = [work.limit_s(device.gb_s, gflop_s) for work in (token, block)]
        low, high = (1 / token.limit_s(share * device.gb_s, COMPUTED * gflop_s) for share in REACHED)
        busy = [load(config, share * device.gb_s, COMPUTED * gflop_s) for share in reversed(REACHED)]
        fits = ", ".join("yes" if device.memory_gb >= gb else "no" for gb in needed)
        lines.append(
            f"| {device.name} | {device.gb_s:g} | {device.tflops:g} | {fits} | {1000 * limits[0]:.0f} ms | {low:.0f} to {high:.0f}"
            f" | {1000 * limits[1]:.0f} ms | {busy[0]:.2f} to {busy[1]:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(published_config()))
