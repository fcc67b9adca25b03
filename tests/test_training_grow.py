"""More layers of hearing: where they stand, what they begin as, and that nothing else changes."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra train")

from dragoman.model.checkpoint import Model, load_model  # noqa: E402
from dragoman.model.errors import ConfigError  # noqa: E402
from dragoman.model.load import load  # noqa: E402
from dragoman.model.offline import transcribe_job  # noqa: E402
from dragoman.model.torch_backend import TorchBackend  # noqa: E402
from dragoman.model.training import grow as growing  # noqa: E402
from dragoman.model.training import text  # noqa: E402
from dragoman.model.training.listening import first_layers  # noqa: E402
from dragoman.model.training.package import Taught, config_of, save_model  # noqa: E402
from dragoman.model.work import run as run_job  # noqa: E402

from .tiny_models import TRANSLATING, noise, tiny_config, tiny_model  # noqa: E402
from .training_fakes import SENTENCES  # noqa: E402


def said(model: Model) -> list[np.ndarray]:
    """States of some tokens behind some audio, and of a translation."""
    backend = TorchBackend(model)
    cache = backend.new_cache()
    backend.listen([(cache, noise(3, 9))])
    found = []
    for ids in ([20, 30, 40], [11, 50, 51]):
        (step,) = backend.step([(cache, np.array(ids))])
        found.append(np.stack([np.asarray(state) for state in step.hidden]))
    return found


@pytest.mark.parametrize("roles", [True, False])
def test_copies_that_add_nothing_change_nothing(roles: bool) -> None:
    """So they stand where they should, and every other layer is where it was."""
    model = tiny_model(4, tiny_config(**TRANSLATING) if roles else None)
    grown = growing.grow(model, [1, 2, 2], 0.0)
    assert grown.config.backbone.num_layers == model.config.backbone.num_layers + 3
    assert grown.config.backbone.layer_types[:5] == ("sliding_attention",) * 5
    if roles:
        assert grown.config.backbone.layer_roles == ("audio",) * 3 + model.config.backbone.layer_roles
    for one, other in zip(said(model), said(grown), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    heard, _ = said(growing.grow(model, [1]))
    assert np.abs(heard - said(model)[0]).max() > 1e-4, "half of what a layer adds is heard"


def test_a_layer_that_does_not_hear_is_refused() -> None:
    with pytest.raises(ConfigError, match="before layer 3, expected 0 to 2"):
        growing.grow(tiny_model(4, tiny_config(**TRANSLATING)), [3])
    with pytest.raises(ConfigError, match="before layer 4, expected 0 to 3"):
        growing.grow(tiny_model(4), [4])


def test_a_run_of_listening_can_begin_with_it(tmp_path: Path) -> None:
    tokenizer = text.train_tokenizer(iter(SENTENCES * 4), tmp_path / "tokenizer.json", vocab_size=320)
    backbone = replace(tiny_config(**TRANSLATING).backbone, vocab_size=tokenizer.get_vocab_size())
    model = tiny_model(5, config_of(asdict(backbone)))
    save_model(tmp_path / "model", model, tmp_path, Taught(4, ("de",)))
    growing.main([str(tmp_path / "model"), str(tmp_path / "grown"), "--before", "2"])
    grown, before = (json.loads((tmp_path / name / "config.json").read_text())["dragoman"] for name in ("grown", "model"))
    assert grown == before | {"layer_roles": ["audio", *before["layer_roles"]]} and grown["targets"] == ["de"]
    hearing = first_layers(tmp_path / "grown", 3).backbone.state_dict()
    whole = load_model(tmp_path / "grown").backbone.state_dict()
    assert all(torch.equal(hearing[f"layers.{i}.mlp.up_proj.weight"], whole[f"layers.{i}.mlp.up_proj.weight"]) for i in range(3))
    loaded = load(tmp_path / "grown", runtime="torch")
    run_job(loaded.backend, transcribe_job(loaded, np.zeros(16_000, np.float32)))
