"""What a command says of what it was given wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from dragoman.model.errors import AudioFormatError, ConfigError, as_command

TRAINING = Path(__file__).resolve().parents[1] / "model" / "training"


def _raising(error: BaseException) -> SystemExit:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as left:
        as_command(main)
    return left.value


@pytest.mark.parametrize("error", [ConfigError("seed is x, expected a number"), AudioFormatError("no audio"), FileNotFoundError("gone")])
def test_what_was_given_wrong_is_one_line(error: Exception) -> None:
    assert _raising(error).code == f"dragoman: {error}"


def test_ctrl_c_ends_a_command_quietly_and_a_defect_keeps_its_traceback() -> None:
    assert _raising(KeyboardInterrupt()).code == 130
    with pytest.raises(ZeroDivisionError):
        as_command(lambda: 1 / 0)
    as_command(lambda: None)


@pytest.mark.parametrize(
    "path", [path for path in sorted(TRAINING.glob("*.py")) if "__main__" in path.read_text()], ids=lambda path: path.stem
)
def test_every_command_of_training_tells_so(path: Path) -> None:
    assert path.read_text(encoding="utf-8").endswith('if __name__ == "__main__":\n    as_command(main)\n')


def test_a_missing_configuration_is_told_in_a_line(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs the extra train")
    command = [sys.executable, "-m", "dragoman.model.training.translating", "--config", str(tmp_path / "none.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == f"dragoman: {tmp_path / 'none.yaml'} does not exist\n"
