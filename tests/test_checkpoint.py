"""Weights folders: written and read back, sharded or not, and one error for everything that is wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from dragoman.model.checkpoint import INDEX, SINGLE, Model, load_drafter, load_model, save_checkpoint, save_drafter, tensor_files
from dragoman.model.config import BackboneConfig
from dragoman.model.errors import CheckpointError, ConfigError
from safetensors.torch import load_file, save_file

from .tiny_models import TEXT, tiny_config, tiny_drafter, tiny_model


def text_section(text: BackboneConfig) -> dict[str, Any]:
    known = {name: getattr(text, name) for name in text.__dataclass_fields__ if not name.startswith(("rope", "global_rope", "global_part"))}
    return known | {"layer_types": list(text.layer_types), "num_hidden_layers": text.num_layers}


def save(folder: Path, model: Model) -> Path:
    vision = None if model.config.vision is None else {"mm_embed_dim": 24, "mm_posemb_size": 32}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"text_config": text_section(model.config.backbone), "vision_config": vision}))
    save_checkpoint(folder, model.backbone, model.projector, model.vision)
    return folder


def shard(folder: Path, parts: int) -> None:
    """The single file → shards with an index, as large checkpoints come."""
    tensors = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    names, placed = sorted(tensors), dict[str, str]()
    for part in range(parts):
        file, mine = f"model-{part + 1:05}-of-{parts:05}.safetensors", names[part::parts]
        save_file({name: tensors[name] for name in mine}, folder / file)
        placed |= dict.fromkeys(mine, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": placed}))


def same(a: torch.nn.Module | None, b: torch.nn.Module | None) -> bool:
    if a is None or b is None:
        return a is b
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("vision", [False, True])
@pytest.mark.parametrize("shards", [0, 1, 3])
def test_what_is_saved_is_read_back(tmp_path: Path, vision: bool, shards: int) -> None:
    model = tiny_model(4, tiny_config(vision=vision))
    save(tmp_path, model)
    if shards:
        shard(tmp_path, shards)
    read = load_model(tmp_path)
    assert same(read.backbone, model.backbone) and same(read.projector, model.projector) and same(read.vision, model.vision)
    assert not any(parameter.requires_grad for parameter in read.backbone.parameters())


def test_names_on_disk_are_those_of_the_published_files(tmp_path: Path) -> None:
    save(tmp_path, tiny_model(0, tiny_config(vision=True)))
    names = set(load_file(tmp_path / SINGLE))
    assert "model.language_model.layers.2.self_attn.q_proj.weight" in names
    assert "model.language_model.layers.2.self_attn.v_proj.weight" not in names, "a full layer takes V from K"
    assert "model.language_model.layers.0.layer_scalar" in names
    assert "model.embed_audio.embedding_projection.weight" in names
    assert "model.embed_vision.embedding_projection.weight" in names
    assert "model.vision_embedder.pos_embedding" in names
    assert not [name for name in names if "lm_head" in name]


def test_a_repeated_head_is_tolerated(tmp_path: Path) -> None:
    model = tiny_model()
    tensors = load_file(save(tmp_path, model) / SINGLE)
    save_file(tensors | {"lm_head.weight": tensors["model.language_model.embed_tokens.weight"].clone()}, tmp_path / SINGLE)
    assert same(load_model(tmp_path).backbone, model.backbone)


def test_the_type_of_the_weights_is_chosen_at_loading(tmp_path: Path) -> None:
    read = load_model(save(tmp_path, tiny_model()), dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in read.backbone.state_dict().values()} == {torch.bfloat16}


def test_a_drafter_is_saved_and_read_back(tmp_path: Path) -> None:
    drafter = tiny_drafter(3)
    section = text_section(drafter.config.text)
    (tmp_path / "config.json").write_text(json.dumps({"backbone_hidden_size": TEXT.hidden_size, "text_config": section}))
    save_drafter(tmp_path, drafter)
    assert same(load_drafter(tmp_path), drafter)
    assert "model.layers.0.self_attn.k_proj.weight" not in load_file(tmp_path / SINGLE), "it has queries only"


def test_one_error_lists_everything(tmp_path: Path) -> None:
    folder = save(tmp_path, tiny_model())
    tensors = load_file(folder / SINGLE)
    del tensors["model.language_model.norm.weight"], tensors["model.language_model.layers.1.mlp.up_proj.weight"]
    tensors["model.language_model.layers.0.layer_scalar"] = torch.ones(2)
    tensors["model.audio_tower.conv.weight"] = torch.ones(1)
    save_file(tensors, folder / SINGLE)
    with pytest.raises(CheckpointError) as caught:
        load_model(folder)
    message = str(caught.value)
    assert "2 missing: model.language_model.layers.1.mlp.up_proj.weight, model.language_model.norm.weight" in message
    assert "1 unexpected: model.audio_tower.conv.weight" in message
    assert "1 mis-shaped: model.language_model.layers.0.layer_scalar is [2], expected [1]" in message


def test_an_error_leaves_no_name_out(tmp_path: Path) -> None:
    folder = save(tmp_path, tiny_model())
    save_file({"other": torch.ones(1)}, folder / SINGLE)
    wanted = len(load_names(tmp_path))
    with pytest.raises(CheckpointError) as caught:
        load_model(folder)
    assert str(caught.value).count("model.language_model.") + str(caught.value).count("model.embed_audio.") == wanted


def load_names(folder: Path) -> list[str]:
    model = tiny_model()
    save(folder / "again", model)
    return list(load_file(folder / "again" / SINGLE))


def test_folders_that_lack_something_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config.json does not exist"):
        load_model(tmp_path)
    folder = save(tmp_path / "model", tiny_model())
    (folder / SINGLE).rename(folder / "weights.safetensors")
    with pytest.raises(CheckpointError, match=f"holds neither {SINGLE} nor {INDEX}"):
        load_model(folder)


def test_shards_that_lack_something_are_named(tmp_path: Path) -> None:
    folder = save(tmp_path, tiny_model())
    shard(folder, 3)
    index = json.loads((folder / INDEX).read_text())
    lost = folder / "model-00002-of-00003.safetensors"
    lost.rename(folder / "elsewhere")
    with pytest.raises(CheckpointError, match="lacks 1 shards named by .*: model-00002-of-00003.safetensors"):
        tensor_files(folder)
    (folder / "elsewhere").rename(lost)
    index["weight_map"]["model.ghost"] = lost.name
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="lacks tensors that .* promises: model.ghost"):
        load_model(folder)
    (folder / INDEX).write_text("{}")
    with pytest.raises(CheckpointError, match="not an index of shards"):
        load_model(folder)


def test_a_file_cut_short_is_not_a_model(tmp_path: Path) -> None:
    folder = save(tmp_path, tiny_model())
    whole = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_model(folder)


def test_a_bar_is_shown_when_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save(tmp_path / "small", tiny_model())
    load_model(folder)
    assert capsys.readouterr().out == ""
    load_model(folder, progress=True)
    assert "reading small" in capsys.readouterr().out


def test_a_configuration_of_another_size_does_not_fit(tmp_path: Path) -> None:
    folder = save(tmp_path, tiny_model())
    wider = replace(TEXT, intermediate_size=64)
    (folder / "config.json").write_text(json.dumps({"text_config": text_section(wider)}))
    with pytest.raises(CheckpointError, match=r"9 mis-shaped: .*down_proj.weight is \[32, 48\], expected \[32, 64\]"):
        load_model(folder)
