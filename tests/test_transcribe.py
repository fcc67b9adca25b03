"""Files → text, on a scripted model."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from dragoman.clients.transcribe import Wish, check, progress_bar, transcribe_files
from dragoman.stream import ConfigError, Options

from .fakes import ScriptedBackend, speech
from .listeners import LoudnessVad, loaded

OPTIONS = Options()
CAPTIONS = "1\n00:00:00,"


@pytest.fixture(autouse=True)
def hears_loudness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dragoman.stream.session.make_vad", lambda *rest, **options: LoudnessVad())


def save(path: Path, text: str) -> Path:
    soundfile.write(str(path), speech(text, silence_s=1.0), 16_000, subtype="FLOAT" if path.suffix == ".wav" else None)
    return path


def test_each_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "a.wav", "the quick fox")
    for form, begins in (
        ("txt", "the quick fox\n"),
        ("srt", CAPTIONS),
        ("vtt", "WEBVTT\n\n00:00:00."),
        ("json", '{"type": "speech_started"'),
    ):
        assert transcribe_files(Wish((path,), form), loaded(ScriptedBackend()), OPTIONS) == 0  # type: ignore[arg-type]
        assert capsys.readouterr().out.startswith(begins)


def test_several_files_and_one_that_is_broken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, last = save(tmp_path / "a.wav", "the quick fox"), save(tmp_path / "b.flac", "we met")
    noise = tmp_path / "broken.flac"
    samples = np.concatenate([speech("over a dog."[:6]), np.random.default_rng(0).uniform(-0.01, 0.01, 60_000).astype(np.float32)])
    soundfile.write(str(noise), samples, 16_000)
    noise.write_bytes(noise.read_bytes()[:-20_000])
    missing = tmp_path / "nowhere.wav"
    code = transcribe_files(Wish((first, noise, missing, last), "json"), loaded(ScriptedBackend()), OPTIONS)
    out, err = capsys.readouterr()
    assert code == 1
    told = [(Path(event["file"]).name, event["text"]) for event in map(json.loads, out.splitlines()) if event["type"] == "final"]
    assert told == [("a.wav", "the quick fox"), ("broken.flac", "over a"), ("b.flac", "we met")]
    assert "broken.flac: broken after" in err and "nowhere.wav: does not exist" in err and "Traceback" not in err


def test_samples_that_are_no_audio_are_named_and_end_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "nan.wav"
    samples = speech("the quick fox over", silence_s=1.0)
    samples[30_000] = np.nan
    soundfile.write(str(path), samples, 16_000, subtype="FLOAT")
    assert transcribe_files(Wish((path,), "txt"), loaded(ScriptedBackend()), OPTIONS) == 1
    out, err = capsys.readouterr()
    assert out.startswith("the quick fox") and "nan.wav: 1 of 1600 samples are NaN or infinite" in err


def test_text_into_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = (save(tmp_path / "a.wav", "the quick fox"), save(tmp_path / "b.wav", "we met"))
    assert transcribe_files(Wish(files, "srt", output=tmp_path / "new" / "out"), loaded(ScriptedBackend()), OPTIONS) == 0
    assert capsys.readouterr().out == ""
    assert "the quick fox" in (tmp_path / "new" / "out" / "a.srt").read_text(encoding="utf-8")
    assert "we met" in (tmp_path / "new" / "out" / "b.srt").read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match="--output"):
        transcribe_files(Wish(files, "srt", output=files[0]), loaded(ScriptedBackend()), OPTIONS)


def test_translated_captions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = Options.model_validate({"session": {"targets": ["de"]}})
    transcribe_files(Wish((save(tmp_path / "a.wav", "the fox"[:3]),), "srt"), loaded(ScriptedBackend()), options)
    out = capsys.readouterr().out
    assert "dethe" in out and "\nthe" not in out


def test_ctrl_c_flushes_what_was_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "a.wav", "the quick brown fox")

    def interrupted(blocks: Any, sample_rate: int) -> Any:
        for place, block in enumerate(blocks):
            if place == 12:
                raise KeyboardInterrupt
            yield block

    monkeypatch.setattr("dragoman.clients.transcribe.paced", interrupted)
    assert transcribe_files(Wish((path,), "txt", realtime=True), loaded(ScriptedBackend()), OPTIONS) == 130
    assert capsys.readouterr().out == "the quick brown\n"


def test_stats_go_to_standard_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transcribe_files(Wish((save(tmp_path / "a.wav", "we met"),), "txt", stats=True), loaded(ScriptedBackend()), OPTIONS)
    out, err = capsys.readouterr()
    assert out == "we met\n" and "real-time factor" in err


def test_wishes_that_cannot_be_fulfilled() -> None:
    two = Options.model_validate({"session": {"targets": ["de", "fr"]}})
    with pytest.raises(ConfigError, match="captions are in one language, got --to de,fr"):
        check(Wish((Path("a"),), "srt"), two)
    with pytest.raises(ConfigError, match="2 files would become one vtt file"):
        check(Wish((Path("a"), Path("b")), "vtt"), OPTIONS)
    check(Wish((Path("a"), Path("b")), "vtt", output=Path("c")), OPTIONS)
    check(Wish((Path("a"), Path("b")), "txt"), two)


def test_the_bar_is_for_people_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for err, wanted, draws in ((Terminal(), True, True), (Terminal(), False, False), (io.StringIO(), True, False)):
        monkeypatch.setattr(sys, "stderr", err)
        with progress_bar("folder/talk.flac", 10.0, wanted=wanted) as advance:
            advance(10.0)
        assert ("talk.flac" in err.getvalue()) == draws
