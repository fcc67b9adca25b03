"""bench/roofline.py and bench/full_size.py: the arithmetic against published figures, the script on sizes that take no time, and that
docs/performance.md holds the table that the arithmetic gives."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("torch")

from .tiny import save_tiny_model

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "performance.md"
L, G = "sliding_attention", "full_attention"
TEXT = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "layer_types": [L, L, L, L, L, G],
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_global_key_value_heads": 1,
    "head_dim": 16,
    "global_head_dim": 32,
    "sliding_window": 64,
}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports a module of bench/, as ``python bench/full_size.py`` does."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    yield import_module
    for name in ("roofline", "full_size", "full_size_models"):
        sys.modules.pop(name, None)


@pytest.fixture
def run(bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the script on a tiny configuration → its report."""
    (tmp_path / "config.json").write_text(json.dumps({"text_config": TEXT}))
    (tmp_path / "scratch").mkdir()
    script = bench("full_size")
    monkeypatch.setattr(script, "READ_BYTES", 1_000_000)

    def command(*arguments: str) -> Any:
        out = tmp_path / "out.json"
        usual = ("--config", str(tmp_path / "config.json"), "--scratch", str(tmp_path / "scratch"), "--rounds", "1", "--context", "20")
        monkeypatch.setattr(sys, "argv", ["full_size.py", *usual, *arguments, "--out", str(out)])
        script.main()
        assert list((tmp_path / "scratch").iterdir()) == [], "the weights are removed"
        assert "one token" in capsys.readouterr().out
        return json.loads(out.read_text())

    return command


def test_the_sizes_are_the_published_ones(bench: Any) -> None:
    roofline = bench("roofline")
    config = roofline.published_config()
    assert roofline.backbone_weights(config) == pytest.approx(10.901e9, rel=1e-4)
    assert roofline.head_weights(config) == 262_144 * 3840
    # A position of audio, and a token: 21.80 and 23.8 GFLOP, and attention over 500 positions 0.46.
    assert roofline.forward(config, 1, 0, context=0).gflop == pytest.approx(21.80, abs=0.01)
    assert roofline.forward(config, 1, 1, context=0).gflop == pytest.approx(23.81, abs=0.01)
    assert roofline.forward(config, 1, 0, context=500).gflop - 21.80 == pytest.approx(0.46, abs=0.02)
    # bfloat16, read whole: 23.8 GB, and the cache of 1000 positions 0.34.
    assert roofline.forward(config, 1, 1, bits=16, context=0).gb == pytest.approx(23.8, abs=0.05)
    assert 2e-9 * roofline.cache_values(config, 1000) == pytest.approx(0.344, abs=0.001)
    assert roofline.cache_values(config, 3000) - roofline.cache_values(config, 2000) == 1000 * 8 * 2 * 512, "only global layers grow"


def test_a_forward_takes_as_long_as_the_slower_of_reading_and_computing(bench: Any) -> None:
    roofline = bench("roofline")
    work = roofline.Forward(gb=10.0, gflop=100.0)
    assert work.limit_s(gb_s=5.0, gflop_s=1000.0) == 2.0
    assert work.limit_s(gb_s=1000.0, gflop_s=25.0) == 4.0
    config = roofline.published_config()
    assert roofline.load(config, 100.0, 1e9) == pytest.approx(2 * roofline.load(config, 200.0, 1e9)), "bound by memory"
    assert roofline.load(config, 1e9, 100.0) == pytest.approx(2 * roofline.load(config, 1e9, 200.0)), "bound by arithmetic"


def test_the_page_has_the_table_that_the_arithmetic_gives(bench: Any) -> None:
    roofline = bench("roofline")
    block = re.search(r"<!-- table: roofline -->\n(.*?)\n\n", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None and block.group(1) == roofline.table(roofline.published_config())


def test_commands_of_the_page_are_understood(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    script, lines = bench("full_size"), re.findall(r"^python bench/full_size.py(.*?)(?: *#.*)?$", PAGE.read_text(encoding="utf-8"), re.M)
    asked: list[Any] = []

    def stop(given: Any, *rest: Any) -> Any:
        asked.append(given)
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "opened", stop)
    for line in lines:
        monkeypatch.setattr(sys, "argv", ["full_size.py", *line.split()])
        with pytest.raises(KeyboardInterrupt):
            script.main()
    assert {given.device for given in asked} == {"cpu", "cuda"} and {given.runtime for given in asked} == {"onnx", "torch"}


@pytest.mark.parametrize(
    ("arguments", "bits_a_weight"),
    [
        ((), 5.0),
        (("--bits", "8", "--block-size", "32"), 9.0),
        (("--runtime", "torch"), 8.0),
        (("--runtime", "torch", "--bits", "16"), 16.0),
    ],
    ids=["onnx-int4", "onnx-int8", "torch-int8", "torch-bf16"],
)
def test_every_runtime_is_measured(run: Any, bench: Any, arguments: tuple[str, ...], bits_a_weight: float) -> None:
    report, roofline = run("--layers", "3", *arguments), bench("roofline")
    layers = roofline.backbone_weights(bench("full_size").some_layers(config_of(TEXT), 3).backbone)
    # Pages of a data file are filled up, hence "at least".
    assert layers * bits_a_weight / 8 <= report["gb"]["layers"] * 1e9 < layers * bits_a_weight / 8 + 20 * 2 * 4096
    assert report["settings"]["layers"] == 3 and report["whole"]["layers"] == 6 and report["whole"]["calculated"]
    assert all(took["wall"] > 0 for took in report["best_s"].values()) and report["bandwidth_gb_s"] > 0


def test_the_rest_of_the_layers_is_calculated_from_bytes(bench: Any) -> None:
    script, models = bench("full_size"), bench("full_size_models")
    second = script.Seconds
    backend = type("Backend", (), {"spec": type("Spec", (), {"config": config_of(TEXT)})})
    sized = models.Sized(backend, backbone_bytes=2e9, head_bytes=1e9, cache_bytes=4, scale=10.0, whole=config_of(TEXT).backbone)
    best = {name: second(wall, wall) for name, wall in {"read": 0.1, "frame": 0.3, "block": 0.5, "token": 0.4}.items()}
    given = type("Given", (), dict.fromkeys(("runtime", "bits", "block_size", "accuracy_level", "threads", "device", "rounds", "model"), 1))
    given.context = 1
    whole = script.figures(sized, best, 0.0, 1.0, given)["whole"]
    assert whole["s"] == pytest.approx({"block": 5.0, "token": 3.1}), "ten times the layers, once the head"
    assert whole["limit_s"] == pytest.approx({"block": 2.0, "token": 2.1}), "20 and 21 GB at 10 GB/s"
    assert whole["over_reading"] == pytest.approx({"block": 2.5, "token": 3.1 / 2.1})


def test_all_layers_are_run_and_nothing_is_calculated(run: Any) -> None:
    report = run("--threads", "2")
    assert report["settings"]["layers"] == 6 and not report["whole"]["calculated"]
    assert report["whole"]["s"]["block"] == report["best_s"]["block"]["wall"]


def test_a_model_of_ones_own_is_measured(run: Any, tmp_path: Path) -> None:
    from dragoman.model.export import export

    folder = save_tiny_model(tmp_path / "tiny")
    assert run("--model", str(folder), "--runtime", "torch", "--bits", "16")["settings"]["random_weights"] is False
    export(folder, folder, precision="int4")
    report = run("--model", str(folder))
    assert report["gb"]["layers"] * 1e9 == (folder / "onnx" / "backbone.data").stat().st_size
    assert not report["whole"]["calculated"]


def test_drawn_weights_have_the_layout_of_quantised_ones(bench: Any, tmp_path: Path) -> None:
    from dragoman.model.onnx_writer import quantise

    writer = bench("full_size_models").DrawnWriter(tmp_path, "drawn", 4, None, 4)
    with writer:
        drawn, again = (writer.quantised(np.zeros((6, 70), np.float32)) for _ in range(2))
    real = quantise(np.ones((6, 70), np.float32), 4, 32)
    assert [(part.shape, part.dtype) for part in drawn] == [(part.shape, part.dtype) for part in real]
    assert not np.array_equal(drawn[0], again[0]), "the runtime would keep equal matrices only once, and read less"


@pytest.mark.parametrize(
    "arguments",
    [
        "--bits 16",
        "--device cuda",
        "--runtime torch --bits 4",
        "--runtime torch --bits 8 --device cuda",
        "--layers 1",
        "--layers 2 --model x",
    ],
)
def test_what_does_not_exist_is_refused(run: Any, arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(*arguments.split())
    assert "error: " in capsys.readouterr().err


def config_of(text: dict[str, Any]) -> Any:
    from dragoman.model.config import model_config_from_mapping

    return model_config_from_mapping({"text_config": text})
