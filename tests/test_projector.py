"""Frames → embeddings: cut, normalised, projected."""

from __future__ import annotations

import pytest
import torch
from dragoman.model.config import AudioConfig
from dragoman.model.projector import AudioProjector, cut_frames, frame_count


@pytest.mark.parametrize(("samples", "frames"), [(0, 0), (1, 1), (639, 1), (640, 1), (641, 2), (16_000, 25)])
def test_frames_are_counted_up(samples: int, frames: int) -> None:
    assert frame_count(samples, 640) == len(cut_frames(torch.ones(samples), 640)) == frames


def test_a_frame_is_brought_to_unit_loudness_then_projected() -> None:
    projector = AudioProjector(AudioConfig(), 8).requires_grad_(False)
    frame = torch.randn(640) * 0.01
    wanted = projector.embedding_projection(frame / (frame.square().mean() + 1e-6).sqrt())
    torch.testing.assert_close(projector(frame), wanted, atol=1e-5, rtol=1e-5)


def test_the_waveform_is_rounded_before_the_norm() -> None:
    """In bfloat16 the samples lose bits first, as in the reference: norm(round(x)), not round(norm(x))."""
    projector = AudioProjector(AudioConfig(), 8).to(torch.bfloat16).requires_grad_(False)
    frame = torch.randn(1, 640) * 0.1
    assert torch.equal(projector(frame), projector(frame.to(torch.bfloat16)))
    assert projector(frame).dtype == torch.bfloat16
