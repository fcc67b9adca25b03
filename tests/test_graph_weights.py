"""Folders that hold no matrix twice (``dragoman export --once``): what is left in their safetensors, and that torch finds the rest."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

pytest.importorskip("onnx")
from dragoman.clients.cli import main  # noqa: E402
from dragoman.model.checkpoint import SINGLE, Model, load_model, named_modules, stored_dtype, tensors_on_disk  # noqa: E402
from dragoman.model.errors import BackendError, CheckpointError, ConfigError  # noqa: E402
from dragoman.model.export import export  # noqa: E402
from dragoman.model.graph_weights import Place, places, read  # noqa: E402
from dragoman.model.load import load  # noqa: E402
from dragoman.model.onnx_backend import OnnxBackend  # noqa: E402
from dragoman.model.onnx_writer import BITS  # noqa: E402
from dragoman.model.torch_backend import TorchBackend  # noqa: E402

from .test_checkpoint import save, shard  # noqa: E402
from .tiny import save_tiny_model  # noqa: E402
from .tiny_models import noise, tiny_config, tiny_model  # noqa: E402

WIDE = {"hidden_size": 160, "intermediate_size": 300}  # blocks of 128 and of 32 that are full, and some that are not
PRECISIONS = ("fp32", "int8", "int4")
TABLE = "model.language_model.embed_tokens.weight"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "tiny")


@pytest.fixture
def slim(model: Path) -> Path:
    return export(model, model, once=True)


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def tensors(model: Model) -> dict[str, torch.Tensor]:
    return tensors_on_disk(named_modules(model))


def noted(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "onnx" / "export.json").read_text())


def heard(folder: Path, **options: Any) -> tuple[type, np.ndarray]:
    backend = load(folder, threads=1, **options).backend
    cache = backend.new_cache()
    backend.listen([(cache, noise(0, 20))])
    return type(backend), backend.step([(cache, np.arange(3, 9))])[0].logprobs


def furthest(name: str, weight: torch.Tensor, precision: str) -> np.ndarray:
    """[n, k]: how far from itself rounding may move a weight."""
    w = weight.numpy()
    if precision == "fp32":
        return np.zeros_like(w)
    if name == TABLE:  # float16
        return np.maximum(np.abs(w) * 2.0**-11, 2.0**-25)
    bits, block = BITS[precision]
    padded = np.pad(np.abs(w), ((0, 0), (0, -w.shape[1] % block))).reshape(len(w), -1, block)
    step = np.repeat(padded.max(-1) / 2 ** (bits - 1), block, axis=1)[:, : w.shape[1]]
    top = np.abs(w) > (2 ** (bits - 1) - 0.5) * step  # there is one whole number less above zero than below it
    return np.where(top, 1.0, 0.5) * step * 1.0001


@pytest.mark.parametrize("shares_v", [True, False])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_torch_finds_every_matrix_in_its_place(tmp_path: Path, precision: Any, shares_v: bool) -> None:
    """Sliding layers and full ones, with and without a projection of their own for V; the graphs are those of an export without it."""
    whole = tiny_model(3, tiny_config(vision=True, attention_k_eq_v=shares_v, **WIDE))
    folder = save(tmp_path / "model", whole)
    export(folder, folder, precision=precision)
    before, note = files(folder), noted(folder)
    export(folder, folder, precision=precision, once=True)
    after, wanted, got = files(folder), tensors(whole), tensors(load_model(folder))
    assert ("model.language_model.layers.2.self_attn.v_proj.weight" in wanted) is not shares_v

    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert changed == {SINGLE, "onnx/export.json"} and noted(folder) | {"weights": None} == note | {"weights": None}
    left = load_file(folder / SINGLE)
    assert left.keys() == {name for name, tensor in wanted.items() if tensor.ndim == 1 or "vision" in name}
    assert left.keys() | places(folder / "onnx").keys() == wanted.keys()

    assert got.keys() == wanted.keys() and {tensor.dtype for tensor in got.values()} == {torch.float32}
    for name, tensor in wanted.items():
        assert got[name].shape == tensor.shape
        far = np.zeros(tensor.shape) if name in left else furthest(name, tensor, precision)
        assert (np.abs(got[name].numpy() - tensor.numpy()) <= far).all(), name
    assert tensors(load_model(folder, dtype=torch.bfloat16))[TABLE].dtype == torch.bfloat16


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_second_time_changes_nothing(tmp_path: Path, precision: Any, kind: torch.dtype) -> None:
    """Rounding what is rounded gives the same; what is left keeps its type and the file what it says of itself."""
    folder = save(tmp_path / "model", tiny_model(3, tiny_config(**WIDE)))
    stored = {name: tensor.to(kind) for name, tensor in load_file(folder / SINGLE).items()}
    stored[TABLE] = stored[TABLE].to(torch.float16).to(kind)
    save_file(stored, folder / SINGLE, metadata={"format": "np"})
    once = files(export(folder, folder, precision=precision, once=True))
    assert stored_dtype(folder) == torch.float32
    assert {tensor.dtype for tensor in load_file(folder / SINGLE).values()} == {kind}
    with safe_open(folder / SINGLE, "pt") as file:
        assert file.metadata() == {"format": "np"}
    assert files(export(folder, folder, precision=precision, once=True)) == once
    assert files(export(folder, folder, precision=precision)) == once


def test_it_is_heard_as_before_and_without_a_warning(model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In the folder itself and in a new one; torch hears nearly the same, and takes over from a damaged graph."""
    exact = heard(export(model, tmp_path / "plain"))[1]
    whole = (model / SINGLE).read_bytes()
    assert main(["export", str(model), "--out", str(tmp_path / "new"), "--once"]) == 0
    assert (model / SINGLE).read_bytes() == whole
    assert main(["export", str(model), "--out", str(model), "--once"]) == 0
    assert files(model) == files(tmp_path / "new")
    assert not any(path.stat().st_mode & 0o777 != 0o644 for path in (model / SINGLE, tmp_path / "new" / SINGLE))
    with caplog.at_level(logging.WARNING):
        runtime, logprobs = heard(model)
        assert runtime is OnnxBackend and np.array_equal(logprobs, exact)
        runtime, by_torch = heard(model, runtime="torch")
        assert runtime is TorchBackend and np.abs(by_torch - exact).max() < 0.2
        assert caplog.messages == []
        (model / "onnx" / "head.onnx").write_bytes(b"not a graph")
        runtime, instead = heard(model)
    assert runtime is TorchBackend and np.array_equal(instead, by_torch)
    assert len(caplog.messages) == 1 and caplog.messages[0].endswith("torch takes over, which is slower")


def test_another_precision_is_made_from_the_old_graphs(slim: Path) -> None:
    export(slim, slim, precision="int4", once=True)
    assert noted(slim)["precision"] == "int4" and heard(slim)[0] is OnnxBackend
    assert tensors(load_model(slim)).keys() == load_file(slim / SINGLE).keys() | noted(slim)["tensors"].keys()


@pytest.mark.parametrize("file", ["backbone.data", "embeddings.npy"])
def test_a_data_file_that_is_not_whole_is_told(slim: Path, file: str) -> None:
    path = slim / "onnx" / file
    whole = path.read_bytes()
    end = max(place.end for place in places(slim / "onnx").values() if place.file == file)
    assert end == len(whole)
    path.write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match=rf"{file} has {end - 1} bytes, expected at least {end} bytes"):
        load_model(slim)
    path.unlink()
    with pytest.raises(CheckpointError, match=rf"{file} is missing, expected at least \d+ bytes"):
        load_model(slim)
    with pytest.raises(BackendError, match=rf"nor could torch take over: .*{file} is missing"):
        load(slim)


def test_the_safetensors_file_is_still_needed_and_wins(model: Path) -> None:
    whole = load_file(model / SINGLE)
    export(model, model, once=True)
    left, name = load_file(model / SINGLE), "model.language_model.layers.1.self_attn.k_proj.weight"
    save_file(left | {name: whole[name]}, model / SINGLE)
    got = tensors(load_model(model))
    assert torch.equal(got[name], whole[name]) and not torch.equal(got[TABLE], whole[TABLE])
    save_file({name: tensor for name, tensor in left.items() if "layers.0.input" not in name}, model / SINGLE)
    with pytest.raises(CheckpointError, match=r"1 missing: model.language_model.layers.0.input_layernorm.weight$"):
        load_model(model)
    (model / SINGLE).unlink()
    with pytest.raises(CheckpointError, match="holds neither model.safetensors nor"):
        load_model(model)


def test_graphs_that_do_not_tell_hold_nothing(slim: Path, tmp_path: Path) -> None:
    note = slim / "onnx" / "export.json"
    told, read_back = noted(slim), places(slim / "onnx")
    assert places(tmp_path) == {}
    note.write_text(json.dumps({name: value for name, value in told.items() if name != "tensors"}))
    assert places(slim / "onnx") == {}
    with pytest.raises(CheckpointError, match=rf"{len(read_back)} missing: .*{TABLE}"):
        load_model(slim)
    for broken in ("not JSON", "[]", '{"tensors": {"a": {"file": "b"}}}', '{"tensors": {"a": 3}}'):
        note.write_text(broken)
        with pytest.raises(CheckpointError, match=r"export.json does not tell where the weights lie: \w+Error"):
            load_model(slim)


def test_a_table_of_another_size_is_told(slim: Path) -> None:
    told = noted(slim)
    told["tensors"][TABLE]["shape"][0] -= 1
    (slim / "onnx" / "export.json").write_text(json.dumps(told))
    with pytest.raises(CheckpointError, match=rf"1 mis-shaped: {TABLE} is "):
        load_model(slim)


@pytest.mark.parametrize("step", ["rename", "replace"])
@pytest.mark.parametrize("already", [False, True])
def test_a_failure_in_between_leaves_a_folder_that_works(model: Path, monkeypatch: pytest.MonkeyPatch, step: str, already: bool) -> None:
    """Before the new graphs are in their place, and after it: the weights are those of the old file, whole or slim."""
    export(model, model, once=already)
    before, weights = files(model), (model / SINGLE).read_bytes()

    def fail(place: Any, target: Any, rename: Any = Path.rename) -> Any:
        if step == "replace" or place.name == "new":
            raise OSError("no")
        return rename(place, target)

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "replace") if step == "replace" else (Path, "rename")), fail)
        with pytest.raises(OSError, match="no"):
            export(model, model, precision="int8" if already else "int4", once=True)
    assert (model / SINGLE).read_bytes() == weights and (step == "replace" or files(model) == before)
    assert heard(model)[0] is OnnxBackend and heard(model, runtime="torch")[0] is TorchBackend
    export(model, model, once=True)
    assert sorted(files(model)) == sorted(before)


def test_shards_are_left_alone(tmp_path: Path) -> None:
    whole = tiny_model(2)
    folder = save(tmp_path / "model", whole)
    shard(folder, 3)
    (folder / "tokenizer.json").write_text("{}")
    before = files(folder)
    with pytest.raises(ConfigError, match="are shards, expected one model.safetensors; name a new folder"):
        export(folder, folder, once=True)
    out = export(folder, tmp_path / "out", precision="fp32", once=True)
    assert files(folder) == before
    got = tensors(load_model(out))
    assert all(torch.equal(got[name], tensor) for name, tensor in tensors(whole).items())


def test_rows_of_a_matrix_are_a_place_too(tmp_path: Path) -> None:
    table = np.arange(24, dtype=np.float32).reshape(4, 6)
    (tmp_path / "floats").write_bytes(b"head" + table.tobytes())
    place = Place("floats", (4, 6), 32, 4, strides=(24, 4))
    assert np.array_equal(read(tmp_path, place.rows(1, 2)), table[1:3]) and place.end == 100 == place.rows(3, 1).end
    across = Place("floats", (6, 4), 32, 4, strides=(4, 24))
    found = read(tmp_path, across.rows(2, 3))
    assert np.array_equal(found, table.T[2:5]) and found.flags.c_contiguous and found.flags.writeable
