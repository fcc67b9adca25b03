"""Encoder-free image input: patches of 48 × 48 pixels → LayerNorm, Linear, positions → one projection (spec 2.2)."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from .backbone import rms_norm
from .backend import Floats
from .config import VisionConfig
from .errors import BackendError

MAX_PATCHES = 280  # soft tokens per image, as the released processor is set


class VisionEmbedder(nn.Module):
    """patches [patches_y, patches_x, patch_values] in [0, 1] → [patches_y * patches_x, d], row by row. Not scaled by sqrt(d)."""

    def __init__(self, config: VisionConfig, hidden_size: int) -> None:
        super().__init__()
        width = config.mm_embed_dim
        self.eps = config.rms_norm_eps
        self.patch_ln1 = nn.LayerNorm(config.patch_values)
        self.patch_dense = nn.Linear(config.patch_values, width)
        self.patch_ln2 = nn.LayerNorm(width)
        self.pos_embedding = nn.Parameter(torch.zeros(config.mm_posemb_size, 2, width))  # [place, (x, y), width]
        self.pos_norm = nn.LayerNorm(width)
        self.embedding_projection = nn.Linear(width, hidden_size, bias=False)

    def forward(self, patches: Tensor) -> Tensor:
        rows, columns, _ = patches.shape
        x = self.patch_ln2(self.patch_dense(self.patch_ln1(patches.to(self.patch_dense.weight.dtype))))
        x = x + (self.pos_embedding[:columns, 0][None] + self.pos_embedding[:rows, 1][:, None])
        return self.embedding_projection(rms_norm(self.pos_norm(x), None, self.eps)).flatten(0, 1)


def target_size(height: int, width: int, patch_px: int, max_patches: int) -> tuple[int, int]:
    """Height and width to resize to: the same shape, sides multiples of ``patch_px``, at most ``max_patches`` patches.

    As the reference does (image_processing:54-105): both sides are rounded DOWN; a side that would vanish becomes one patch.
    """
    factor = math.sqrt(max_patches * patch_px**2 / (height * width))
    rows, columns = math.floor(factor * height / patch_px), math.floor(factor * width / patch_px)
    if rows == 0 and columns == 0:
        raise BackendError(f"an image of {height} x {width} pixels cannot be cut into {max_patches} patches of {patch_px} pixels")
    if rows == 0:
        rows, columns = 1, min(width // height, max_patches)
    elif columns == 0:
        rows, columns = min(height // width, max_patches), 1
    return rows * patch_px, columns * patch_px


def cut_patches(image: NDArray[np.uint8], config: VisionConfig, max_patches: int = MAX_PATCHES) -> Floats:
    """RGB image [h, w, 3] uint8 → patches [patches_y, patches_x, 3 * patch²] float32 in [0, 1], for ``Backend.look``.

    Resized (bicubic, antialiased, on bytes) to ``target_size``; the values of a patch go row by row, column by column, RGB.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise BackendError(f"expected an RGB image [h, w, 3] of uint8, got {list(image.shape)} of {image.dtype}")
    side = config.patch_size * config.pooling_kernel_size
    height, width = target_size(image.shape[0], image.shape[1], side, max_patches)
    pixels = torch.as_tensor(np.ascontiguousarray(image)).permute(2, 0, 1)[None]  # [1, 3, h, w]
    if (height, width) != image.shape[:2]:
        pixels = F.interpolate(pixels, size=(height, width), mode="bicubic", antialias=True)
    grid = pixels[0].permute(1, 2, 0).reshape(height // side, side, width // side, side, 3).transpose(1, 2)
    return grid.flatten(2).numpy().astype(np.float32) / np.float32(255)
