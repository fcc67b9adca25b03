"""Smoothing: the same function, and nearer to float32 in 8 bits where a channel is far louder than its neighbours."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dragoman.model.checkpoint import Model, load_model, save_checkpoint
from dragoman.model.errors import ConfigError
from dragoman.model.torch_backend import TorchBackend
from dragoman.model.training import text
from dragoman.model.training.package import Taught, config_of, small_config
from dragoman.model.training.smooth import Loudness, places, smooth, smooth_folder
from torch import Tensor

from .tiny_models import PLAIN, ROLES, noise, some_ids, tiny_config, tiny_model
from .training_fakes import SENTENCES, make_store

LOUD = 5  # a channel


def answers(model: Model) -> tuple[Tensor, Tensor]:
    """Hidden states [n, d] and logits [n, vocab]."""
    backend = TorchBackend(model)
    cache = backend.new_cache()
    backend.step([(cache, np.array([2, 85]))])
    backend.listen([(cache, noise(0, 30))])
    (step,) = backend.step([(cache, some_ids(1, 12))])
    hidden = torch.stack([state for state in step.hidden if isinstance(state, Tensor)])
    return hidden, backend.logits(hidden)


def loud_model(config: dict[str, object]) -> Model:
    """A tiny model with one channel that norms make a hundred times louder than the others, and weights that hardly use it."""
    model = tiny_model(4, tiny_config(**config))
    with torch.no_grad():
        for place in places(model.backbone):
            gain = place.before[0]
            gain[LOUD] *= 100
            for linear in place.behind:
                linear.weight[:, LOUD] /= 100
    return model


def rounded(model: Model) -> Model:
    """The same with products of 8 bits, weights and activations in whole rows: the coarsest there is."""
    for place in places(model.backbone):
        for linear in place.behind:
            linear.weight.data = _rounded(linear.weight.data)
            linear.register_forward_pre_hook(lambda _, given: (_rounded(given[0]),))
    return model


def _rounded(x: Tensor) -> Tensor:
    step = x.abs().amax(-1, keepdim=True).clamp(min=1e-9) / 127
    return (x / step).round() * step


def copy_of(model: Model) -> Model:
    new = tiny_model(0, model.config)
    new.backbone.load_state_dict(model.backbone.state_dict())
    new.projector.load_state_dict(model.projector.state_dict())
    return new


KINDS: dict[str, dict[str, object]] = {"usual": {}, "roles": ROLES, "own v": {"attention_k_eq_v": False}, "plain": PLAIN}


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_function_stays_and_eight_bits_hold_more_of_it(kind: str) -> None:
    model = loud_model(KINDS[kind])
    smoothed = copy_of(model)
    loudness = Loudness(places(smoothed.backbone))
    with loudness.measured():
        answers(smoothed)
    smooth(places(smoothed.backbone), loudness.rms())
    exact, same = answers(model)[0], answers(smoothed)[0]
    np.testing.assert_allclose(same.numpy(), exact.numpy(), atol=1e-4)
    assert not torch.equal(model.backbone.layers[0].input_layernorm.weight, smoothed.backbone.layers[0].input_layernorm.weight)  # type: ignore[arg-type]
    errors = [float((answers(rounded(m))[0] - exact).square().mean()) for m in (copy_of(model), smoothed)]
    assert errors[1] < errors[0] / 3


def test_loudness_is_the_rms_of_what_goes_in_and_hooks_are_gone_afterwards() -> None:
    model = tiny_model(4)
    (place, *_) = places(model.backbone)
    loudness = Loudness([place])
    x = torch.randn(7, 3, place.behind[0].in_features, generator=torch.Generator().manual_seed(0))
    with loudness.measured():
        place.behind[0](x)
    place.behind[0](100 * x)
    np.testing.assert_allclose(loudness.rms()[0].numpy(), x.flatten(0, 1).square().mean(0).sqrt().numpy(), rtol=1e-5)


def test_a_channel_that_nothing_comes_through_is_left_alone() -> None:
    model = tiny_model(4)
    wanted = places(model.backbone)
    before = [linear.weight[:, 3].clone() for place in wanted for linear in place.behind]
    rms = [torch.where(torch.arange(place.behind[0].in_features) == 3, 0.0, 1.0) for place in wanted]
    smooth(wanted, rms)
    # up_proj is behind a norm and before down_proj: its rows move, its columns of channel 3 only with them
    for linear, old in zip((linear for place in wanted for linear in place.behind), before, strict=True):
        if linear.weight.shape[0] != model.config.backbone.intermediate_size:
            assert torch.equal(linear.weight[:, 3], old)
    smooth(wanted, [torch.zeros_like(each) for each in rms])  # nothing was heard at all


def test_a_folder_is_smoothed(tmp_path: Path) -> None:
    sizes = replace(tiny_config(**ROLES).backbone, vocab_size=320)
    model = tiny_model(4, config_of(asdict(sizes)))
    (folder := tmp_path / "model").mkdir()
    save_checkpoint(folder, model.backbone, model.projector)
    (folder / "config.json").write_text(json.dumps(small_config(asdict(sizes), Taught())))
    text.train_tokenizer(iter(SENTENCES * 4), folder / "tokenizer.json", vocab_size=320)
    store = make_store(tmp_path / "store", features=False)
    smooth_folder(folder, tmp_path / "new", store, clips=2)
    new = load_model(tmp_path / "new")
    np.testing.assert_allclose(answers(new)[0].numpy(), answers(model)[0].numpy(), atol=1e-4)
    assert any(not torch.equal(p, q) for p, q in zip(model.backbone.parameters(), new.backbone.parameters(), strict=True))
    with pytest.raises(ConfigError, match="new exists already"):
        smooth_folder(folder, tmp_path / "new", store)
    store.clips = [clip for clip in store.clips if clip.split != "train"]
    with pytest.raises(ConfigError, match="no transcribed clip of split 'train'"):
        smooth_folder(folder, tmp_path / "other", store)
