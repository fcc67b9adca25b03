"""What pyproject.toml says against what the folders hold: nothing that is needed may be missing from the wheel."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("model", "stream", "clients", "configs")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUP = PROJECT["tool"]["setuptools"]


def package_folders() -> dict[str, str]:
    """``dragoman.model.training`` → ``model/training`` for every folder with an ``__init__.py``."""
    folders = [path.parent.relative_to(ROOT) for layer in LAYERS for path in (ROOT / layer).rglob("__init__.py")]
    return {"dragoman." + ".".join(folder.parts): folder.as_posix() for folder in folders}


def distribution(requirement: str) -> str:
    """``faster-whisper>=1.1`` → ``faster_whisper``."""
    return re.split(r"[<>=!~\[; ]", requirement)[0].lower().replace("-", "_")


def imported(*folders: str, but: str = "") -> set[str]:
    """Top-level names of the third-party modules that the files of some folders import."""
    names: set[str] = set()
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        if but and path.relative_to(ROOT).as_posix().startswith(but):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add((node.module or "").split(".")[0])
    return names - set(sys.stdlib_module_names)


def test_every_package_folder_is_in_the_wheel() -> None:
    assert sorted(SETUP["packages"]) == sorted(package_folders())
    assert SETUP["package-dir"] == package_folders()


def test_there_is_no_package_at_the_top() -> None:
    """dragoman is a namespace: a file dragoman/__init__.py or a top-level ``stream`` would be installed over other projects'."""
    assert not (ROOT / "dragoman").exists()
    assert not (ROOT / "__init__.py").exists()
    assert all(name.startswith("dragoman.") for name in SETUP["packages"])


def test_every_data_file_is_in_the_wheel() -> None:
    left_out: list[str] = []
    for package, folder in package_folders().items():
        patterns: list[str] = SETUP["package-data"].get(package, [])
        taken = {path for pattern in patterns for path in (ROOT / folder).glob(pattern.replace("/**", "/**/*"))}
        below = {path.parent for path in (ROOT / folder).rglob("__init__.py")} - {ROOT / folder}
        for path in (ROOT / folder).rglob("*"):
            ours = path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
            if ours and path not in taken and not any(other in path.parents for other in below):
                left_out.append(path.relative_to(ROOT).as_posix())
    assert left_out == []


def test_every_package_is_typed() -> None:
    assert [folder for folder in package_folders().values() if not (ROOT / folder / "py.typed").exists()] == []


@pytest.mark.parametrize("extra", ["", "mic", "video", "bench", "train", "peers", "export", "torch", "dev"])
def test_requirements_have_lower_bounds_only(extra: str) -> None:
    """Upper bounds break other people's environments; the two exceptions say why beside them."""
    groups = PROJECT["project"]["optional-dependencies"]
    for requirement in groups[extra] if extra else PROJECT["project"]["dependencies"]:
        assert re.fullmatch(r"[a-zA-Z0-9-]+>=[0-9.]+", requirement) or requirement.startswith(("transformers==", "moonshine-voice>=")), (
            requirement
        )


def test_what_is_imported_is_required() -> None:
    """Outside training every imported module belongs to the base install or to the extra that is named after its use."""
    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    required = {
        distribution(text)
        for text in [*project["dependencies"], *(text for name in ("torch", "mic", "video", "export", "bench") for text in extras[name])]
    }
    owners = packages_distributions()
    for name in sorted(imported(*LAYERS, but="model/training/") - {"numpy"}):
        owned_by = {owner.lower().replace("-", "_") for owner in owners.get(name, [name])}
        assert owned_by & required, f"{name} (of {', '.join(owned_by)}) is imported but not required in pyproject.toml"


def test_what_training_imports_is_required() -> None:
    """Its modules are not all installed where the default tests run, so their distributions are named here."""
    groups = PROJECT["project"]["optional-dependencies"]
    required = {distribution(text) for text in [*PROJECT["project"]["dependencies"], *groups["train"]]}
    known = {"yaml": "pyyaml", "faster_whisper": "faster_whisper", "moonshine_voice": "moonshine_voice"}
    names = imported("model/training") - {"dragoman"}
    assert [name for name in sorted(names) if known.get(name, name.lower()) not in required] == []


def test_the_command_exists() -> None:
    module, _, function = PROJECT["project"]["scripts"]["dragoman"].partition(":")
    path = ROOT / (module.removeprefix("dragoman.").replace(".", "/") + ".py")
    names = {node.name for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)}
    assert function in names
