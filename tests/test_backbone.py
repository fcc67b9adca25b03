"""The decoder stack as training uses it: padded batches, the window of the one-shot mask, and that position is relative."""

from __future__ import annotations

import pytest
import torch
from dragoman.model.backbone import Backbone, cached_attention, causal_attention, rms_norm

from .tiny_models import TEXT, WINDOW, randomise


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    module = Backbone(TEXT).eval().requires_grad_(False)
    randomise(module, 1)
    return module


def run(backbone: Backbone, ids: torch.Tensor, first: int = 0) -> torch.Tensor:
    """[B, T] → logits, positions from ``first`` on."""
    positions = torch.arange(first, first + ids.shape[1]).expand_as(ids)
    return backbone.logits(backbone(backbone.embed(ids), positions, causal_attention(TEXT, ids.shape[1])))


def test_the_past_does_not_see_the_future(backbone: Backbone) -> None:
    ids = torch.arange(3, 43)[None]
    changed = ids.clone()
    changed[0, 30:] += 20
    assert torch.equal(run(backbone, ids)[0, :30], run(backbone, changed)[0, :30])


def test_rows_of_a_batch_and_padding_at_the_end_do_not_mix(backbone: Backbone) -> None:
    long, short = torch.arange(3, 43), torch.arange(20, 45)
    padded = torch.stack([long, torch.cat([short, torch.zeros(15, dtype=torch.long)])])
    got = run(backbone, padded)
    torch.testing.assert_close(got[0], run(backbone, long[None])[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(got[1, :25], run(backbone, short[None])[0], atol=1e-4, rtol=0)


def test_only_distances_count(backbone: Backbone) -> None:
    ids = torch.arange(3, 43)[None]
    torch.testing.assert_close(run(backbone, ids), run(backbone, ids, first=100), atol=1e-3, rtol=0)


def test_a_sliding_layer_forgets_after_its_window() -> None:
    """One sliding layer: the first position is seen by the next window - 1 and by nobody after them."""
    from dataclasses import replace

    config = replace(TEXT, layer_types=("sliding_attention",))
    module = Backbone(config).requires_grad_(False)
    randomise(module, 2)
    ids = torch.arange(3, 43)[None]
    changed = ids.clone()
    changed[0, 0] = 60
    rows = [module(module.embed(x), torch.arange(40)[None], causal_attention(config, 40))[0] for x in (ids, changed)]
    differs = (rows[0] != rows[1]).any(-1)
    assert differs[:WINDOW].all()
    assert not differs[WINDOW:].any()


def test_gradients_reach_every_parameter() -> None:
    module = Backbone(TEXT)
    module.logits(module(module.embed(torch.arange(3, 33)[None]), torch.arange(30)[None], causal_attention(TEXT, 30))).sum().backward()
    assert [name for name, parameter in module.named_parameters() if parameter.grad is None] == []


def test_the_norm_is_computed_in_single_precision() -> None:
    x = torch.full((1, 4096), 300.0, dtype=torch.float16)  # squares overflow in half precision
    torch.testing.assert_close(rms_norm(x, None, 1e-6), torch.ones_like(x))


def test_key_heads_are_shared_by_neighbours() -> None:
    """Query head j looks up key head j // (H / Hkv)."""
    values = torch.tensor([[[1.0]], [[2.0]]])  # [Hkv = 2, S = 1, D = 1]
    seen = cached_attention(torch.zeros(1, 4, 1), torch.zeros(2, 1, 1), values, None)
    assert seen.flatten().tolist() == [1.0, 1.0, 2.0, 2.0]
