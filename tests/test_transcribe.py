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
from dragoman.clients.transcribe import Wish, check, progress_bar, progress_bars, transcribe_files
from dragoman.stream import ConfigError, Options, TaskError

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


def transcribe(wish: Wish, options: Options = OPTIONS) -> int:
    return transcribe_files(check(wish, options), loaded(ScriptedBackend()), options)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_each_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "a.wav", "the quick fox")
    for form, begins in (
        ("txt", "the quick fox\n"),
        ("srt", CAPTIONS),
        ("vtt", "WEBVTT\n\n00:00:00."),
        ("json", '{"type": "speech_started"'),
    ):
        assert transcribe(Wish((path,), form)) == 0  # type: ignore[arg-type]
        assert capsys.readouterr().out.startswith(begins)


def test_several_files_and_one_that_is_broken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, last = save(tmp_path / "a.wav", "the quick fox"), save(tmp_path / "b.flac", "we met")
    noise = tmp_path / "broken.flac"
    samples = np.concatenate([speech("over a dog."[:6]), np.random.default_rng(0).uniform(-0.01, 0.01, 60_000).astype(np.float32)])
    soundfile.write(str(noise), samples, 16_000)
    noise.write_bytes(noise.read_bytes()[:-20_000])
    missing = tmp_path / "nowhere.wav"
    code = transcribe(Wish((first, noise, missing, last), "json"))
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
    assert transcribe(Wish((path,), "txt")) == 1
    out, err = capsys.readouterr()
    assert out.startswith("the quick fox") and "nan.wav: 1 of 1600 samples are NaN or infinite" in err


def test_text_into_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = (save(tmp_path / "a.wav", "the quick fox"), save(tmp_path / "b.wav", "we met"))
    assert transcribe(Wish(files, "srt", out=tmp_path / "new" / "out")) == 0
    assert capsys.readouterr().out == ""
    assert "the quick fox" in (tmp_path / "new" / "out" / "a.srt").read_text(encoding="utf-8")
    assert "we met" in (tmp_path / "new" / "out" / "b.srt").read_text(encoding="utf-8")
    assert transcribe(Wish(files, "srt", out=files[0])) == 1
    assert capsys.readouterr().err.count("cannot write") == 2


def test_text_beside_the_files_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "talks" / "may").mkdir(parents=True)
    save(tmp_path / "talks" / "a.wav", "the quick fox")
    save(tmp_path / "talks" / "may" / "b.flac", "we met")
    (tmp_path / "talks" / "c.mp3").write_text("no sound")
    wish = Wish((tmp_path / "talks",), "txt", beside=True)
    assert transcribe(wish) == 1, "one is broken, the others are done"
    out, err = capsys.readouterr()
    assert out == "" and "c.mp3: " in err and err.count("\n") == 1
    texts = {path.relative_to(tmp_path).as_posix(): path.read_text() for path in tmp_path.rglob("*.txt")}
    assert texts == {"talks/a.txt": "the quick fox\n", "talks/may/b.txt": "we met\n"}


def test_text_that_is_there_already_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = (save(tmp_path / "a.wav", "the quick fox"), save(tmp_path / "b.wav", "we met"))
    (tmp_path / "a.txt").write_text("by hand")
    assert transcribe(Wish(files, "txt", beside=True)) == 1
    assert "a.txt is there already; add --overwrite" in capsys.readouterr().err
    assert [(tmp_path / name).read_text() for name in ("a.txt", "b.txt")] == ["by hand", "we met\n"]
    assert transcribe(Wish(files, "txt", beside=True, overwrite=True)) == 0
    assert (tmp_path / "a.txt").read_text() == "the quick fox\n"


def test_a_file_that_is_cut_off_keeps_what_was_heard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "a.wav", "the quick fox jumps over a")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert transcribe(Wish((path,), "srt", out=tmp_path)) == 1
    err = capsys.readouterr().err
    assert "a.wav: broken after 1.70 s, expected 3.40 s (the file is cut off)" in err
    assert "what was heard of it is in" in err and "the quick fox jumps" in (tmp_path / "a.srt.part").read_text()
    assert not (tmp_path / "a.srt").exists(), "it would look whole, and the next run would leave it alone"
    save(tmp_path / "a.wav", "the quick fox jumps over a")
    assert transcribe(Wish((path,), "srt", out=tmp_path)) == 0
    assert (tmp_path / "a.srt").read_text().rstrip().endswith("over a") and not (tmp_path / "a.srt.part").exists()


def test_a_run_that_fails_leaves_the_text_of_an_earlier_one(tmp_path: Path) -> None:
    path = save(tmp_path / "a.wav", "the quick fox")
    assert transcribe(Wish((path,), "txt", out=tmp_path)) == 0
    path.write_bytes(path.read_bytes()[:60])
    assert transcribe(Wish((path,), "txt", out=tmp_path, overwrite=True)) == 1
    assert [(each.name, each.read_text()) for each in tmp_path.glob("*.txt*")] == [("a.txt", "the quick fox\n")]


@pytest.mark.parametrize(("out_is_terminal", "into_files", "draws"), [(True, False, False), (False, False, True), (True, True, True)])
def test_no_bar_is_drawn_over_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out_is_terminal: bool, into_files: bool, draws: bool
) -> None:
    """A bar that is drawn anew wipes away what was written below it on the same terminal."""
    err, out = Terminal(), Terminal() if out_is_terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setattr(sys, "stdout", out)
    files = (save(tmp_path / "a.wav", "the quick fox"), save(tmp_path / "b.wav", "we met"))
    assert transcribe(Wish(files, "txt", out=tmp_path / "texts" if into_files else Path("-"))) == 0
    assert ("all 2 files" in err.getvalue()) == draws


def test_captions_in_two_languages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "a.wav", "the quick")
    two = Options.model_validate({"session": {"targets": ["de", "fr"]}})
    transcribe(Wish((path,), "srt"), two)
    assert capsys.readouterr().out.splitlines()[2:5] == ["the quick", "dethe dequick", "frthe frquick"]
    transcribe(Wish((path,), "vtt", only_translation=True), two)
    assert capsys.readouterr().out.splitlines()[3:5] == ["dethe dequick", "frthe frquick"]
    transcribe(Wish((path,), "txt", only_translation=True), two)
    assert capsys.readouterr().out == "[de] dethe dequick\n[fr] frthe frquick\n"


def test_a_caption_file_for_each_language(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "a.wav", "the quick fox jumps over a lazy dog.")
    plain, one, two = (Options.model_validate({"session": {"targets": targets}}) for targets in ([], ["de"], ["de", "fr"]))
    assert transcribe(Wish((path,), "srt", separate=True), two) == 0
    found = {each.name: each.read_text() for each in tmp_path.glob("*.srt*")}
    assert set(found) == {"a.srt", "a.de.srt", "a.fr.srt"} and "frthe frquick" in found["a.fr.srt"]
    transcribe(Wish((path,), "srt"), plain)
    assert capsys.readouterr().out == found["a.srt"]
    transcribe(Wish((path,), "srt", only_translation=True), one)
    assert capsys.readouterr().out == found["a.de.srt"]
    transcribe(Wish((path,), "vtt", separate=True, only_translation=True, out=tmp_path / "out"), two)
    assert {each.name for each in (tmp_path / "out").iterdir()} == {"a.de.vtt", "a.fr.vtt"}


def test_no_file_of_a_language_is_replaced_or_begun_where_one_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "a.wav", "the quick fox jumps over a lazy dog.")
    two = Options.model_validate({"session": {"targets": ["de", "fr"]}})
    (tmp_path / "a.fr.srt").write_text("mine")
    assert transcribe(Wish((path,), "srt", separate=True), two) == 1
    assert "a.fr.srt is there already; add --overwrite" in capsys.readouterr().err
    assert [(each.name, each.read_text()) for each in tmp_path.glob("*.srt*")] == [("a.fr.srt", "mine")]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert transcribe(Wish((path,), "srt", separate=True, overwrite=True), two) == 1
    assert (tmp_path / "a.fr.srt").read_text() == "mine" and "frthe frquick" in (tmp_path / "a.fr.srt.part").read_text()
    assert {each.name for each in tmp_path.glob("*.part")} == {"a.srt.part", "a.de.srt.part", "a.fr.srt.part"}


def test_a_translation_that_the_model_lacks_is_told_before_anything_is_written(tmp_path: Path) -> None:
    path = save(tmp_path / "a.wav", "the quick")
    with pytest.raises(TaskError, match="'xx'.*de, es, fr"):
        transcribe(Wish((path,), "srt", out=tmp_path / "out"), Options.model_validate({"session": {"targets": ["xx"]}}))
    assert not (tmp_path / "out").exists()


def test_ctrl_c_flushes_what_was_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "a.wav", "the quick brown fox")

    def interrupted(blocks: Any, sample_rate: int) -> Any:
        for place, block in enumerate(blocks):
            if place == 12:
                raise KeyboardInterrupt
            yield block

    monkeypatch.setattr("dragoman.clients.transcribe.paced", interrupted)
    assert transcribe(Wish((path,), "txt", realtime=True)) == 130
    assert capsys.readouterr().out == "the quick brown\n"


def test_stats_go_to_standard_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transcribe(Wish((save(tmp_path / "a.wav", "we met"),), "txt", stats=True))
    out, err = capsys.readouterr()
    assert out == "we met\n" and "real-time factor" in err


def test_wishes_that_cannot_be_fulfilled() -> None:
    one = Options.model_validate({"session": {"targets": ["de"]}})
    with pytest.raises(ConfigError, match="2 files would become one vtt file"):
        check(Wish((Path("a"), Path("b")), "vtt", out=Path("-")), OPTIONS)
    with pytest.raises(ConfigError, match="expected --to CODE"):
        check(Wish((Path("a"),), "srt", only_translation=True), OPTIONS)
    with pytest.raises(ConfigError, match="with json output, expected --srt, --vtt or --txt"):
        check(Wish((Path("a"),), "json", only_translation=True), one)
    with pytest.raises(ConfigError, match="--separate without a translation"):
        check(Wish((Path("a"),), "srt", separate=True), OPTIONS)
    with pytest.raises(ConfigError, match="--separate with txt output, expected --srt or --vtt"):
        check(Wish((Path("a"),), "txt", separate=True), one)
    with pytest.raises(ConfigError, match="cannot go to standard output"):
        check(Wish((Path("a"),), "srt", separate=True, out=Path("-")), one)


def test_the_bar_is_for_people_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for err, wanted, draws in ((Terminal(), True, True), (Terminal(), False, False), (io.StringIO(), True, False)):
        monkeypatch.setattr(sys, "stderr", err)
        with progress_bar("folder/talk.flac", 10.0, wanted=wanted) as advance:
            advance(10.0)
        assert ("talk.flac" in err.getvalue()) == draws
        assert "files" not in err.getvalue(), "a single file needs no second bar"


def test_the_bar_of_all_files_goes_on_within_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.progress import Progress

    shown: list[Progress] = []
    monkeypatch.setattr(Progress, "__enter__", lambda self: shown.append(self) or self)
    monkeypatch.setattr(Progress, "__exit__", lambda self, *error: None)
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress_bars(4, wanted=True) as begin:
        begin("a.wav", 10.0)(10.0)
        begin("b.wav", 10.0)(5.0)
        begin("c.webm", None)(7.0)
        whole, current = shown[0].tasks
        assert (whole.description, whole.completed, whole.total) == ("all 4 files", 2.0, 4)
        assert (current.description, current.completed, current.total) == ("c.webm", 7.0, None)
