"""The README's commands are what CI runs: blocks below ``<!-- command: NAME -->`` are looked up by name, here and in .ci/run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CLIPS = ROOT / "tests" / "clips"
LEAST_HEARD = 0.7  # share of the clip's longer words: v0 heard two in five, v1 one in two, v2 eleven in nineteen, v3 to v7 fifteen at least


def commands(name: str) -> list[str]:
    """The lines of a named block of the README."""
    block = re.search(rf"<!-- command: {name} -->\n```bash\n(.*?)```", README, re.DOTALL)
    assert block is not None, f"README.md has no block named {name}"
    return block.group(1).splitlines()


def words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def share_heard(transcript: str, output: str) -> float:
    """Share of the transcript's longer words that occur in the output: a rough look, not a word error rate."""
    wanted = [word for word in words(transcript) if len(word) > 3]
    heard = set(words(output))
    return sum(word in heard for word in wanted) / len(wanted)


def test_share_heard() -> None:
    assert share_heard("The old lighthouse stood there.", "the old light house stood their") == pytest.approx(1 / 3)


def test_set_up_is_one_command_and_extras_exist() -> None:
    (line,) = commands("install")
    assert line == "pip install ."
    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = re.findall(r'pip install "\.\[([a-z,]+)\]"', README)
    assert named and {extra for names in named for extra in names.split(",")} <= set(known)


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), CLIPS / "README.md"], ids=lambda path: path.name
)
def test_named_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [page.parent / target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    paths = [ROOT / path for path in re.findall(r"`((?:model|stream|clients|configs|tests|bench)/[\w/.]+\.\w+)`", text)]
    assert [path for path in [*links, *paths] if not path.exists()] == []


def test_clips_are_small_and_have_words() -> None:
    clips = [path for path in CLIPS.iterdir() if path.suffix in {".ogg", ".flac", ".wav"}]
    assert len(clips) >= 2
    assert [path.name for path in clips if path.stat().st_size > 150_000] == []
    assert [path.name for path in clips if not path.with_suffix(".txt").read_text(encoding="utf-8").strip()] == []


@pytest.mark.parametrize("line", sorted(set(re.findall(r"^dragoman .*$", README, re.MULTILINE))))
def test_commands_are_understood(line: str) -> None:
    from dragoman.clients.parser import make_parser

    arguments = shlex.split(line, comments=True)[1:]
    assert make_parser().parse_args(arguments).command == arguments[0]


def test_python_example_recognises_the_clip() -> None:
    block = re.search(r"<!-- example: python -->\n```python\n(.*?)```", README, re.DOTALL)
    assert block is not None
    done = subprocess.run([sys.executable, "-c", block.group(1)], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert share_heard((CLIPS / "lighthouse.txt").read_text(encoding="utf-8"), done.stdout) >= LEAST_HEARD, done.stdout


def test_first_command_recognises_the_clip() -> None:
    """Runs the ``dragoman`` that is first on the PATH, else the one beside this Python; .ci/run puts a fresh install there."""
    (line,) = commands("first")
    path = os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)])
    if shutil.which("dragoman", path=path) is None and not os.environ.get("CI"):
        pytest.skip("dragoman is not installed here; CI installs it")
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    clip = ROOT / shlex.split(line)[-1]
    heard = share_heard(clip.with_suffix(".txt").read_text(encoding="utf-8"), done.stdout)
    assert heard >= LEAST_HEARD, f"{heard:.0%} of the longer words were heard: {done.stdout}"
