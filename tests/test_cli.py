"""The command as a user meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from dragoman.clients.cli import main

from .tiny import save_tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("tiny")))


def test_a_file_goes_through_the_whole_command(tiny: str, clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A random model: the words are nonsense, the way of the data is not. Ogg Opus, stereo, 48 kHz, silero, torch."""
    assert main(["transcribe", str(clips / "talk.ogg"), "--model", tiny, "--json", "--to", "de", "--stats", "--threads", "1"]) == 0
    out, err = capsys.readouterr()
    events = [json.loads(line) for line in out.splitlines()]
    assert events[0]["type"] == "speech_started" and 0 < events[0]["at_ms"] < 700
    assert events[-1]["type"] == "ended" and abs(events[-1]["audio_ms"] - 8100) < 100
    assert [event["segment"] for event in events if event["type"] == "final"] == [0, 1]
    assert "real-time factor" in err


def test_options_come_from_file_and_flags(tiny: str, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text(f"model: {{name: {json.dumps(tiny)}, threads: 1}}\nsession: {{vad: {{kind: webrtc}}}}\n")
    assert main(["transcribe", str(clips / "market.flac"), "--config", str(config), "--block-ms", "960", "--json"]) == 0
    assert '"final"' in capsys.readouterr().out
    config.write_text("session: {blok_ms: 1}")
    assert main(["transcribe", "a.wav", "--config", str(config)]) == 1
    assert "did you mean 'block_ms'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["transcribe", "a.wav", "--model", "nowhere"], "'nowhere' is neither a folder"),
        (["transcribe", "a.wav", "--block-ms", "3"], "session.block_ms"),
        (["transcribe", "a.wav", "b.wav", "--srt", "--out", "-"], "2 files would become one srt file"),
        (["transcribe", "a.wav", "--only-translation"], "expected --to CODE"),
        (["transcribe", "a.wav", "--set", "server.prot=1"], "did you mean 'server.port'?"),
        (["transcribe", "a.wav", "--set", "session.block_ms"], "expected KEY=VALUE"),
        (["transcribe", "a.wav", "--config", "nowhere.yaml"], "nowhere.yaml: No such file"),
    ],
)
def test_errors_are_one_line_and_exit_code_1(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    err = capsys.readouterr().err
    assert says in err and err.startswith("dragoman: ") and err.count("\n") == 1


def test_a_language_that_the_model_lacks(tiny: str, clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transcribe", str(clips / "market.flac"), "--model", tiny, "--to", "de,sv"]) == 1
    assert "'sv'; it knows de, es, fr" in capsys.readouterr().err


def test_a_machine_without_a_microphone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    for arguments in (["listen"], ["devices"]):
        assert main(arguments) == 1
        assert capsys.readouterr().err.startswith("dragoman: the microphone needs the package sounddevice")


def test_help_and_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["transcribe", "--help"], ["listen", "--help"], ["devices", "--help"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
        assert "usage: dragoman" in capsys.readouterr().out
    assert main([]) == 2
    assert "dragoman transcribe talk.flac" in capsys.readouterr().out
    for arguments in (["transcribe"], ["transcribe", "a.wav", "--srt", "--json"], ["listen", "--device", "1", "--loopback"], ["sing"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2


def test_the_module_is_the_command_and_help_imports_nothing_heavy() -> None:
    code = (
        "import runpy, sys\n"
        "sys.argv = ['dragoman', '--version']\n"
        "try: runpy.run_module('dragoman.clients', run_name='__main__')\n"
        "except SystemExit as ended: assert not ended.code, ended.code\n"
        "print(sorted(name for name in ('numpy', 'rich', 'torch', 'pydantic', 'soundfile') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    version, heavy = done.stdout.splitlines()
    assert version.startswith("dragoman ") and heavy == "[]"


def test_a_reader_that_leaves_is_no_error(tiny: str, clips: Path) -> None:
    """As in: dragoman transcribe talk.ogg --json | head -1."""
    command = [
        sys.executable,
        "-m",
        "dragoman.clients",
        "transcribe",
        str(clips / "market.flac"),
        "--model",
        tiny,
        "--json",
        "--threads",
        "1",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None and running.stderr is not None
        assert "speech_started" in running.stdout.readline()
        running.stdout.close()
        err = running.stderr.read()
    assert "Traceback" not in err and running.returncode in (0, -13)


def test_train_names_the_nearest_key_of_a_wrong_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for needed in ("torch", "rapidfuzz", "scipy"):
        pytest.importorskip(needed, reason="needs the extra train")
    (tmp_path / "run.yaml").write_text("folder: x\nstores: []\ntrain: {step: 3}\n")
    assert main(["train", "--config", str(tmp_path / "run.yaml")]) == 1
    assert "'steps'" in capsys.readouterr().err


@pytest.mark.train
def test_a_user_fine_tunes_on_a_folder_of_audio_and_text(
    tiny: str, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a model folder and sound files with a .txt beside each to a model folder that transcribes."""
    config = tmp_path / "run.yaml"
    config.write_text(
        f"""
folder: {tmp_path / "run"}
start_from: {tiny}
stores: [{{folder: {tmp_path / "store"}, audio: {clips}, features: false}}]
depths: {{mel: 1, features: 1, ctc: 2}}
batches: {{shapes: [[448, 2, 1.0]], labelled: 1.0, silence: 0.0}}
train: {{steps: 2, warmup_steps: 1, mel_steps: 0, hearing_steps: 0, log_every: 1, threads: 1, compile: false}}
"""
    )
    assert main(["train", "--config", str(config)]) == 0
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in log] == [1, 2] and all(record["words"] > 0 for record in log)
    from dragoman.model.training.package import main as package

    assert json.loads((tmp_path / "run" / "taught.json").read_text()) == {
        "delay_frames": 6,
        "targets": ["de", "fr", "es"],
    }, "what the model that it began with had been taught"
    package([str(tmp_path / "run"), str(tmp_path / "tuned")])
    assert json.loads((tmp_path / "tuned" / "config.json").read_text())["dragoman"]["hearing_delay_ms"] == 240 + 160, (
        "6 frames of delay, and what measuring adds"
    )
    (tmp_path / "run" / "taught.json").write_text('{"delay_frames": 8, "targets": ["de"]}')
    package([str(tmp_path / "run"), str(tmp_path / "other")])
    other = json.loads((tmp_path / "other" / "config.json").read_text())["dragoman"]
    assert (other["hearing_delay_ms"], other["targets"]) == (320 + 160, ["de"])
    assert main(["transcribe", str(clips / "market.flac"), "--model", str(tmp_path / "tuned"), "--json", "--threads", "1"]) == 0
    assert '"final"' in capsys.readouterr().out


LITTLE_WORDS = {
    "de": {"der", "die", "das", "ein", "eine", "und", "von", "ich", "er", "sie", "zu", "sein"},
    "fr": {"le", "la", "les", "un", "une", "et", "de", "il", "elle", "à", "son", "des", "du"},
    "es": {"el", "la", "los", "las", "un", "una", "y", "de", "a", "su", "en", "que"},
}


@pytest.mark.parametrize("language", LITTLE_WORDS)
def test_the_shipped_model_translates(clips: Path, capsys: pytest.CaptureFixture[str], language: str) -> None:
    """Each line of the transcript, which is the same without; how well is for the bench to say."""
    assert main(["transcribe", str(clips / "lighthouse.ogg")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert main(["transcribe", str(clips / "lighthouse.ogg"), "--to", language]) == 0
    lines = capsys.readouterr().out.splitlines()
    mark = f"[{language}] "
    translated = [line.removeprefix(mark) for line in lines if line.startswith(mark)]
    assert [line for line in lines if not line.startswith(mark)] == said and len(translated) == len(said) >= 2
    assert len(set(" ".join(translated).lower().split()) & LITTLE_WORDS[language]) >= 3, translated


@pytest.mark.parametrize("wish", [["--to", "it"], ["--set", "session.style=plain"]])
def test_the_shipped_model_refuses_what_it_was_not_taught(clips: Path, capsys: pytest.CaptureFixture[str], wish: list[str]) -> None:
    assert main(["transcribe", str(clips / "market.flac"), *wish]) == 1
    told = capsys.readouterr()
    assert told.out == "" and ("it knows de, es, fr" in told.err or "it transcribes en and translates into de, es, fr" in told.err)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_is_told_in_one_line() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "dragoman.clients", "options"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=60, check=False)
    assert done.returncode == 1 and done.stderr.count(b"\n") == 1 and b"No space left on device" in done.stderr


def test_closed_output_is_no_crash() -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m dragoman.clients options >&-"], stderr=subprocess.PIPE, timeout=60, check=False
    )
    assert b"Traceback" not in done.stderr


def test_what_goes_into_a_file_is_utf8_whatever_the_locale(tmp_path: Path) -> None:
    """As on Windows, where the locale's code page has no letter for half of Europe."""
    script = "import io, sys; from dragoman.clients import cli; sys.stdout = io.TextIOWrapper(open(1, 'wb'), encoding='cp1252'); "
    script += "cli._COMMANDS['options'] = lambda args: print('Gda\u0144sk') or 0; sys.exit(cli.main(['options']))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.decode("utf-8").strip()) == (0, "Gda\u0144sk"), done.stderr.decode()
