"""The training curve."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from dragoman.clients.cli import main
from dragoman.model.errors import ConfigError
from dragoman.model.training.plot import curve, plot, read_log
from dragoman.model.training.plot import main as plot_main


def write(folder: Path, *records: dict[str, object], rest: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + rest)
    return folder


def step(number: int, **figures: float) -> dict[str, object]:
    return {"step": number, "hours": number / 10, **figures}


def test_a_figure_is_drawn_where_it_was_logged(tmp_path: Path) -> None:
    records = read_log(write(tmp_path, step(20, words=4.0), step(40, words=3.0), step(40, dev_heard_wer=0.9), step(60, words=2.5)))
    assert curve(records, "words") == ([2.0, 4.0, 6.0], [4.0, 3.0, 2.5])
    assert curve(records, "dev_heard_wer") == ([4.0], [90.0])
    assert curve(records, "mel") == ([], [])


def test_steps_that_a_kill_undid_are_left_out(tmp_path: Path) -> None:
    dev = step(40, dev_heard_wer=0.5)
    run = write(tmp_path, step(20, words=4.0), step(40, words=3.0), dev, step(60, words=9.0), step(40, words=3.1), dev, step(60, words=2.5))
    records = read_log(run)
    assert curve(records, "words") == ([2.0, 4.0, 6.0], [4.0, 3.1, 2.5]) and curve(records, "dev_heard_wer") == ([4.0], [50.0])
    for lost in ([step(40, words=3.0)], [step(40, words=3.0), dev]):  # a kill before the next step was logged
        assert curve(read_log(write(tmp_path, step(20, words=4.0), *lost, step(40, words=3.1))), "words")[1] == [4.0, 3.1]


def test_a_line_that_is_being_written_waits_and_a_broken_one_is_told(tmp_path: Path) -> None:
    assert len(read_log(write(tmp_path, step(20, words=4.0), rest='{"step": 40, "ho'))) == 1
    with pytest.raises(ConfigError, match=r"log.jsonl:2: expected a JSON object with step and hours, got '\{\"step\": 40'"):
        read_log(write(tmp_path, step(20), rest='{"step": 40\n{"step": 60, "hours": 6}\n'))
    with pytest.raises(ConfigError, match="holds no record yet"):
        read_log(write(tmp_path))
    with pytest.raises(ConfigError, match="no log.jsonl, expected the folder of a training run"):
        read_log(tmp_path / "nowhere")


def test_one_run_and_several_become_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    one = write(tmp_path / "one", step(20, words=4.0, mel=1.0), step(40, words=3.0, dev_heard_wer=0.9))
    two = write(tmp_path / "two", step(20, characters=4.0))
    plot_main([str(one), str(two), "--out", str(tmp_path / "both.png")])
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG") and "both.png" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="it has hours, step, strange"):
        plot({"odd": [step(1, strange=1.0)]}, tmp_path / "odd.png")


def test_the_command_draws_the_run_of_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("torch")
    (tmp_path / "run.yaml").write_text(f"folder: {tmp_path / 'run'}\nstores: []\n")
    assert main(["train", "plot", "--config", str(tmp_path / "run.yaml")]) == 1
    assert "no log.jsonl" in capsys.readouterr().err
    write(tmp_path / "run", step(20, words=4.0))
    assert main(["train", "plot", "--config", str(tmp_path / "run.yaml")]) == 0
    assert (tmp_path / "run" / "curve.png").read_bytes().startswith(b"\x89PNG")
