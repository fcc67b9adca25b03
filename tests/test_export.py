"""``dragoman export``: what a folder holds afterwards, and that nothing is left behind when it fails."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
import onnx  # noqa: E402
import onnxruntime  # noqa: E402
from dragoman.clients.cli import main  # noqa: E402
from dragoman.model import export as exporting  # noqa: E402
from dragoman.model.config import read_model_config  # noqa: E402
from dragoman.model.errors import BackendError, ConfigError  # noqa: E402
from dragoman.model.export import export  # noqa: E402
from dragoman.model.load import load  # noqa: E402
from dragoman.model.onnx_backend import OnnxBackend  # noqa: E402
from dragoman.model.onnx_writer import BITS, GraphWriter, quantise  # noqa: E402
from dragoman.model.torch_backend import TorchBackend  # noqa: E402
from dragoman.stream import FileSource, Session, SessionOptions  # noqa: E402

from .onnx_models import onnx_backend  # noqa: E402
from .test_load import folder as with_assistant  # noqa: E402, F401
from .tiny import save_tiny_model  # noqa: E402
from .tiny_models import noise, tiny_model  # noqa: E402


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "tiny")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_command_writes_a_folder_that_runs_without_the_weights(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "small-int8"
    assert main(["export", str(model), "--out", str(out)]) == 0
    assert f"{out} holds int8 graphs of 0." in capsys.readouterr().err
    assert names(out) == ["config.json", "onnx", "tokenizer.json"] and names(out.parent) == ["small-int8"]
    shutil.rmtree(model)
    backend = load(out).backend
    assert isinstance(backend, OnnxBackend) and backend.precision == "int8" and backend.spec.name == "small-int8"


def test_a_model_folder_gets_its_graphs_and_new_ones_replace_them(model: Path) -> None:
    before = names(model)
    export(model, model, precision="int4")
    assert names(model) == sorted([*before, "onnx"])
    export(model, model, precision="fp32")
    weights = {"model.safetensors": hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()}
    note = json.loads((model / "onnx" / "export.json").read_text())
    assert note.pop("tensors") and note == {"format": 1, "precision": "fp32", "weights": weights}
    assert names(model) == sorted([*before, "onnx"])


def test_the_assistant_goes_with_it(with_assistant: Path, tmp_path: Path) -> None:  # noqa: F811
    export(with_assistant, tmp_path / "out")
    assert "drafter.onnx" in names(tmp_path / "out" / "onnx")
    assert load(tmp_path / "out").backend.spec.max_draft > 0
    elsewhere = with_assistant.parent / "elsewhere"
    (with_assistant / "assistant").rename(elsewhere)
    export(with_assistant, tmp_path / "without")
    assert load(tmp_path / "without").backend.spec.max_draft == 0
    export(with_assistant, tmp_path / "with", assistant=elsewhere)
    assert load(tmp_path / "with").backend.spec.max_draft > 0


@pytest.mark.parametrize("inside", [True, False])
def test_nothing_is_left_behind_by_graphs_that_cannot_be_loaded(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: bool
) -> None:
    write = exporting.write_graphs

    def cut_short(graphs: Path, *args: Any, **rest: Any) -> None:
        write(graphs, *args, **rest)
        (graphs / "backbone.data").write_bytes(b"")

    if inside:
        export(model, model, precision="fp32")
    before, tree = names(tmp_path), names(model)
    monkeypatch.setattr(exporting, "write_graphs", cut_short)
    with pytest.raises(BackendError, match=r"ONNX Runtime .* cannot load .*backbone.onnx"):
        export(model, model if inside else tmp_path / "out")
    assert (names(tmp_path), names(model)) == (before, tree)
    if inside:  # the old graphs still stand
        assert isinstance(load(model, runtime="onnx").backend, OnnxBackend)


def test_graphs_that_say_something_else_than_torch_are_refused(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = exporting.write_graphs

    def other_weights(graphs: Path, _: Any, *args: Any, **rest: Any) -> None:
        write(graphs, tiny_model(9, read_model_config(model)), *args, **rest)

    monkeypatch.setattr(exporting, "write_graphs", other_weights)
    with pytest.raises(BackendError, match="differ from torch by"):
        export(model, tmp_path / "out", precision="fp32")
    assert not (tmp_path / "out").exists()


def test_a_folder_in_the_way_and_an_unknown_precision_are_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="out exists already; name a new folder"):
        export(model, tmp_path / "out")
    with pytest.raises(ConfigError, match="precision is 'int3', expected one of fp32, int8, int4"):
        export(model, tmp_path / "new", precision="int3")  # type: ignore[arg-type]
    assert main(["export", str(tmp_path / "nowhere"), "--out", str(tmp_path / "new")]) == 1
    assert not (tmp_path / "new").exists()


def test_progress_is_told_layer_by_layer(tmp_path: Path) -> None:
    steps, model = list[int](), tiny_model(0)
    exporting.write_graphs(tmp_path, model, None, "int8", lambda: steps.append(1))
    assert len(steps) == model.config.backbone.num_layers


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_weights_lie_beside_the_graphs_and_shrink(tmp_path: Path, precision: Any) -> None:
    model = tiny_model(0)
    onnx_backend(model, precision=precision, folder=tmp_path)
    weights = [parameter for layer in model.backbone.layers for parameter in layer.parameters() if parameter.ndim > 1]
    loaded = onnx.load(tmp_path / "backbone.onnx", load_external_data=False)
    outside = [tensor for tensor in loaded.graph.initializer if tensor.external_data]
    held = sum(int(entry.value) for tensor in outside for entry in tensor.external_data if entry.key == "length")
    share = held / (4 * sum(weight.numel() for weight in weights))
    # One scale of 4 bytes for each 128 or 32 weights, whole blocks even where a row is shorter.
    assert share == 1 if precision == "fp32" else {"int8": 0.2, "int4": 0.1}[precision] < share < 1


def test_a_cache_is_read_by_products_only(tmp_path: Path) -> None:
    """In the graph as ONNX Runtime runs it: nothing transposes, joins or converts an array of a cache's size before it is used."""
    onnx_backend(tiny_model(0), folder=tmp_path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "backbone.onnx"), options, providers=["CPUExecutionProvider"])
    caches = {given.name for given in session.get_inputs() if given.name.startswith(("keys.", "values."))}
    assert len(caches) == 6
    nodes = onnx.load(tmp_path / "optimised.onnx", load_external_data=False).graph.node
    readers = {cache: [node.op_type for node in nodes if cache in node.input] for cache in caches}
    assert all(kinds in (["MatMul"], ["FusedMatMul"]) for kinds in readers.values()), readers


def test_masks_and_constants_are_finite(tmp_path: Path) -> None:
    onnx_backend(tiny_model(0), folder=tmp_path)
    for path in tmp_path.glob("*.onnx"):
        loaded = onnx.load(path)
        assert all(np.isfinite(onnx.numpy_helper.to_array(tensor)).all() for tensor in loaded.graph.initializer)


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("width", [32, 48, 256, 300, 320])
def test_a_quantised_product_is_that_of_the_rounded_weights(tmp_path: Path, precision: Any, width: int) -> None:
    """ONNX Runtime reads the layout that ``quantise`` writes, also where the last block is not full."""
    rng = np.random.default_rng(width)
    weight, x = rng.standard_normal((40, width)).astype(np.float32), rng.standard_normal((3, width)).astype(np.float32)
    weight[5] = 0
    with GraphWriter(tmp_path, "linear", precision) as g:
        g.output("y", g.linear(g.input("x", np.float32, "n", width), weight), np.float32, "n", 40)
    session = onnxruntime.InferenceSession(str(tmp_path / "linear.onnx"), providers=["CPUExecutionProvider"])
    bits, block = BITS[precision]
    values, scales = quantise(weight, bits, block)
    if bits == 4:
        values = np.stack([values & 15, values >> 4], -1).reshape(*values.shape[:2], -1)
    rounded = ((values.astype(np.float32) - 2 ** (bits - 1)) * scales.reshape(40, -1, 1)).reshape(40, -1)[:, :width]
    assert float(np.abs(rounded - weight).max()) <= 1.01 * float(np.abs(scales).max())
    wanted = x @ rounded.T
    far = np.sqrt(np.square(session.run(None, {"x": x})[0] - wanted).mean() / np.square(wanted).mean())
    assert far < 0.015  # activations of 8 bits: about 0.7 %


def test_many_rows_are_quantised_like_few() -> None:
    weight = np.random.default_rng(0).standard_normal((10_000, 40)).astype(np.float32)
    values, scales = quantise(weight, 4, 32)
    for rows in (slice(0, 50), slice(4080, 4110), slice(9_990, 10_000)):
        few_values, few_scales = quantise(weight[rows], 4, 32)
        assert np.array_equal(values[rows], few_values)
        assert np.array_equal(scales.reshape(10_000, -1)[rows], few_scales.reshape(-1, 2))


def test_without_being_told_graphs_are_preferred(model: Path) -> None:
    assert isinstance(load(model).backend, TorchBackend)
    with pytest.raises(ConfigError, match=r"has no onnx/; make it with: dragoman export"):
        load(model, runtime="onnx")
    export(model, model)
    assert isinstance(load(model).backend, OnnxBackend)
    assert isinstance(load(model, runtime="torch").backend, TorchBackend)
    assert isinstance(load(model, dtype="bfloat16").backend, TorchBackend)
    with pytest.raises(ConfigError, match="only torch takes dtype bfloat16"):
        load(model, runtime="onnx", dtype="bfloat16")
    with pytest.raises(ConfigError, match="runtime is 'jax', expected one of auto, onnx, torch"):
        load(model, runtime="jax")


@pytest.mark.parametrize(
    ("file", "held", "says"),
    [
        ("head.onnx", b"not a graph", r"cannot load .*head\.onnx"),
        ("embeddings.npy", b"", r"embeddings\.npy is not a table of embeddings"),
        ("embeddings.npy", b"PK\x05\x06" + bytes(18), "cannot open .*onnx: AttributeError"),  # an empty zip, which numpy opens
        ("export.json", b"\xff\x00\x01", "is not a folder of exported graphs: UnicodeDecodeError"),
        ("export.json", b'{"format": 1}', "is not a folder of exported graphs: KeyError: 'precision'"),
    ],
    ids=["graph", "empty table", "zipped table", "binary note", "short note"],
)
def test_torch_takes_over_with_one_warning(model: Path, caplog: pytest.LogCaptureFixture, file: str, held: bytes, says: str) -> None:
    export(model, model)
    (model / "onnx" / file).write_bytes(held)
    with caplog.at_level(logging.WARNING):
        assert isinstance(load(model).backend, TorchBackend)
    (told,) = caplog.messages
    assert re.search(says, told) and told.endswith("torch takes over, which is slower")
    with pytest.raises(BackendError, match=says):
        load(model, runtime="onnx")
    (model / "model.safetensors").unlink()
    with pytest.raises(BackendError, match=rf"{says}.*nor could torch take over: .* holds neither model\.safetensors"):
        load(model)


def test_graphs_of_other_weights_are_told(model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A checkpoint packaged again has the same names, shapes and size; only what its tensors hold is new."""
    export(model, model, precision="int4")
    weights = model / "model.safetensors"
    old, new = weights.read_bytes(), (save_tiny_model(tmp_path / "other", seed=1) / "model.safetensors").read_bytes()
    assert len(old) == len(new) and old != new
    with caplog.at_level(logging.WARNING):
        load(model)
        assert caplog.messages == []
        weights.write_bytes(new)
        load(model, runtime="torch")
        assert caplog.messages == []
        assert isinstance(load(model).backend, OnnxBackend)
    again = f"dragoman export {model} --out {model} --precision int4"
    assert caplog.messages == [
        f"{model / 'onnx'} was made from other weights than lie beside it now, and it is what is heard; make it anew with: {again}"
    ]
    assert main(shlex.split(again)[1:]) == 0
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        load(model)
        weights.unlink()  # graphs alone are a whole model
        load(model)
    assert caplog.messages == []


def test_graphs_from_before_digests_load_silently(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    export(model, model)
    (model / "onnx" / "export.json").write_text('{"format": 1, "precision": "int8"}\n')
    with caplog.at_level(logging.WARNING):
        assert isinstance(load(model).backend, OnnxBackend)
    assert caplog.messages == []


def test_a_missing_onnxruntime_is_told(model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    export(model, model)
    for name in ("onnxruntime", "dragoman.model.onnx_backend"):
        monkeypatch.setitem(sys.modules, name, None)  # import fails
    with caplog.at_level(logging.WARNING):
        assert isinstance(load(model).backend, TorchBackend)
    assert len(caplog.messages) == 1 and "ONNX Runtime cannot be imported" in caplog.messages[0]


def test_the_same_events_as_torch_on_a_talk(model: Path, clips: Path) -> None:
    """fp32 graphs, a random model, a real clip, two languages: every event, and every log-probability behind it."""
    export(model, model, precision="fp32")
    told: list[list[Any]] = []
    for runtime in ("torch", "onnx"):
        source = FileSource(clips / "talk.ogg")
        options = SessionOptions.model_validate({"targets": ("de",), "vad": {"kind": "webrtc"}, "block_ms": 320, "hold_back_words": 0})
        loaded = load(model, runtime=runtime, threads=1)
        session = Session(loaded, options, sample_rate=source.sample_rate, channels=source.channels, encoding="float32")
        told.append([event for block in source.blocks() for event in session.push(block)] + session.finish())
        source.close()
    assert len(told[0]) > 10
    assert told[0] == told[1]


def test_a_talk_is_transcribed_without_torch(model: Path, clips: Path, tmp_path: Path) -> None:
    """The default install has no torch: the whole command, in an interpreter where importing torch fails."""
    export(model, tmp_path / "out")
    code = "import sys; sys.modules['torch'] = None; from dragoman.clients.cli import main; sys.exit(main(sys.argv[1:]))"
    talk = [str(clips / "market.flac"), "--model", str(tmp_path / "out"), "--json", "--to", "de", "--threads", "1"]
    done = subprocess.run([sys.executable, "-c", code, "transcribe", *talk], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert '"final"' in done.stdout and done.stderr == ""


@pytest.mark.parity
@pytest.mark.parametrize("layers", [("L", "L", "G"), ("L", "L", "L", "L", "L", "G")])
def test_a_folder_of_transformers_equals_transformers(tmp_path: Path, layers: tuple[str, ...]) -> None:
    """Shards, vision and an assistant: logits of text, image and audio within 1e-4, and every draft the same as torch's."""
    pytest.importorskip("transformers")
    import torch
    from dragoman.model.checkpoint import load_drafter, load_model

    from .hf_models import G, L, open_target, reference_logits, save_assistant, save_target
    from .test_parity import prompt

    kinds = tuple({"L": L, "G": G}[kind] for kind in layers)
    save_target(tmp_path / "target", 3, kinds, shard="300KB")
    save_assistant(tmp_path / "target" / "assistant", 4, (L, G))
    (tmp_path / "target" / "tokenizer.json").write_text("{}")
    export(tmp_path / "target", tmp_path / "out", precision="fp32")
    config = read_model_config(tmp_path / "out")
    runtime = OnnxBackend(tmp_path / "out" / "onnx", config, slack_tokens=24)
    torch_runtime = TorchBackend(load_model(tmp_path / "target"), load_drafter(tmp_path / "target" / "assistant"), slack_tokens=24)
    for kind in ("text", "audio", "image", "image and audio"):
        pieces, hidden, drafts = prompt(kind, 1), list[np.ndarray](), list[list[int]]()
        caches = runtime.new_cache(), torch_runtime.new_cache()
        for backend, cache in zip((runtime, torch_runtime), caches, strict=True):
            for piece in pieces:
                if piece.frames is not None:
                    backend.listen([(cache, piece.frames)])
                elif piece.patches is not None:
                    backend.look([(cache, piece.patches)])
                else:
                    (step,) = backend.step([(cache, np.array(piece.ids))])
            hidden.append(np.stack([np.asarray(state) for state in step.hidden]))
            drafts.append(backend.draft([(cache, (step.hidden[-1], int(step.ids[-1]), 4))])[0].tolist())
        assert drafts[0] == drafts[1] and len(drafts[0]) == 4
        wanted = reference_logits(open_target(tmp_path / "target"), pieces)[-len(hidden[0]) :]
        got = torch_runtime.backbone.logits(torch.from_numpy(hidden[0]))
        assert float((got - wanted).abs().max()) < 1e-4, kind


def test_a_backend_hears_after_export(model: Path, tmp_path: Path) -> None:
    """Every precision, twice the same."""
    for precision in exporting.PRECISIONS:
        backend = load(export(model, tmp_path / precision, precision=precision)).backend
        said = []
        for _ in range(2):
            cache = backend.new_cache()
            backend.listen([(cache, noise(0, 20))])
            said.append(backend.step([(cache, np.array([3, 4]))])[0].logprobs.tolist())
        assert said[0] == said[1]
