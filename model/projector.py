"""Encoder-free audio input: a frame of samples → one normalisation → one linear projection (spec 2.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .backbone import rms_norm
from .config import AudioConfig


class AudioProjector(nn.Module):
    """frames [..., frame_samples] float in [-1, 1] → [..., d]. Not scaled by sqrt(d)."""

    def __init__(self, config: AudioConfig, hidden_size: int) -> None:
        super().__init__()
        self.eps = config.rms_norm_eps
        self.embedding_projection = nn.Linear(config.frame_samples, hidden_size, bias=False)

    def forward(self, frames: Tensor) -> Tensor:
        # The waveform is rounded to the weights' dtype before the norm, as the reference does (modeling:910-913).
        return self.embedding_projection(rms_norm(frames.to(self.embedding_projection.weight.dtype), None, self.eps))


def frame_count(samples: int, frame_samples: int) -> int:
    """Positions that a clip takes: the last frame is zero-padded."""
    return -(-samples // frame_samples)


def cut_frames(samples: Tensor, frame_samples: int) -> Tensor:
    """[n] samples → [ceil(n / frame_samples), frame_samples], zeros at the end."""
    missing = -len(samples) % frame_samples
    return torch.nn.functional.pad(samples, (0, missing)).view(-1, frame_samples)
