"""House rules that a reader of the code would otherwise have to watch over."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(path for layer in ("model", "stream", "clients", "configs", "bench") for path in (ROOT / layer).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
TEXTS = [path for path in (ROOT / name for name in ("README.md", "CHANGELOG.md", "NOTICE", "pyproject.toml", ".ci/run")) if path.exists()]

# Paths of one machine and notes to oneself; the pieces are joined so that this file is no hit of its own.
UNWANTED = re.compile("|".join(["/ro" + "ot/", "/home" + "/[a-z]", "/wo" + "rk/", "TO" + "DO", "FIX" + "ME", "X" * 3]))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", [*SOURCES, *TESTS, *TEXTS], ids=name)
def test_no_machine_path_and_no_note_to_oneself(path: Path) -> None:
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    assert [f"{name(path)}:{number} {line.strip()}" for number, line in lines if UNWANTED.search(line)] == []


@pytest.mark.parametrize("path", [path for path in SOURCES if not {"training", "bench"} & set(path.relative_to(ROOT).parts)], ids=name)
def test_only_clients_write_to_the_terminal(path: Path) -> None:
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    prints = [node.lineno for node in calls if isinstance(node.func, ast.Name) and node.func.id == "print"]
    assert prints == [] or path == ROOT / "clients" / "render.py"


@pytest.mark.parametrize("path", TESTS, ids=name)
def test_tests_do_not_sleep(path: Path) -> None:
    """A test that waits for time to pass is slow when it passes and unreliable when it does not."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "sleep"] == []
