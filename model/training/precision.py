"""The number type that training computes in: bfloat16 where the CPU multiplies it, else float32.

Without instructions for it (AVX-512 BF16, AMX) torch emulates bfloat16, at about a hundredth of the speed of float32 (measured on Zen 3).
Weights, gradients of weights and what the optimisers keep are float32 either way, so a run may change machines.
"""

from __future__ import annotations

import torch


def compute_dtype() -> torch.dtype:
    """bfloat16 or float32, by what this CPU has."""
    multiplies = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()  # pyright: ignore[reportPrivateUsage]
    return torch.bfloat16 if multiplies else torch.float32


def autocast() -> torch.autocast:
    """Products in :func:`compute_dtype` inside; does nothing where that is float32."""
    dtype = compute_dtype()
    return torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16)
