"""Hearing goes on from the weights that ship, which are a graft."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra train")
pytest.importorskip("rapidfuzz", reason="needs the extra train")
pytest.importorskip("scipy", reason="needs the extra train")

from dragoman.model.backbone import causal_attention  # noqa: E402
from dragoman.model.checkpoint import Model, load_model  # noqa: E402
from dragoman.model.errors import ConfigError  # noqa: E402
from dragoman.model.load import ASSETS  # noqa: E402
from dragoman.model.training.listening import first_layers  # noqa: E402
from dragoman.model.training.teachers import WIDTH  # noqa: E402
from dragoman.model.training.ungraft import main, ungraft  # noqa: E402

BEGIN = torch.tensor([2, 3])  # <bos><|audio>


@torch.no_grad()
def heard(model: Model, layers: int, frames: torch.Tensor) -> torch.Tensor:
    """[n, WIDTH] behind the hearing layers."""
    x = torch.cat([model.backbone.embed(BEGIN), model.projector(frames)])[None]
    rotary, attend = model.backbone.rotary(torch.arange(x.shape[1])[None], x.dtype), causal_attention(model.config.backbone, x.shape[1])
    for layer in list(model.backbone.layers)[:layers]:
        x = layer(x, rotary, attend)
    return x[0, 2:, :WIDTH]


def test_what_ships_hears_the_same_without_its_graft(tmp_path: Path) -> None:
    old = load_model(ASSETS / "small")
    main([str(ASSETS / "small"), str(tmp_path / "new")])
    student = first_layers(tmp_path / "new", 8)
    new = load_model(tmp_path / "new")
    assert (new.config.backbone.hidden_size, new.config.backbone.num_attention_heads, new.config.hearing_layers) == (WIDTH, 4, 0)
    assert student.config.backbone == new.config.backbone
    frames = torch.from_numpy(0.1 * np.random.default_rng(0).standard_normal((60, 640), dtype=np.float32))
    wanted, got = heard(old, 8, frames) / old.config.backbone.hidden_size**0.5, heard(new, 8, frames)
    missed = float((got - wanted).square().mean() / wanted.square().mean())
    assert missed < 0.02
    with pytest.raises(ConfigError, match="hearing_layers is 0 and hidden_size 288; expected a graft"):
        ungraft(new)
