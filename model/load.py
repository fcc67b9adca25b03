"""The only place that chooses and opens a runtime. Heavy imports happen inside ``load``."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from .backend import Backend
from .config import ModelConfig, read_model_config
from .errors import BackendError, CheckpointError, ConfigError
from .prompt import Prompts
from .tokenizer import Tokenizer

ASSETS = Path(__file__).parent / "assets"
DTYPES = ("float32", "bfloat16")
RUNTIMES = ("auto", "onnx", "torch")
GRAPHS = "onnx"  # folder of exported graphs inside a model folder
NONE_BUILT_IN = "no model is built in: the weights are missing from this copy of the package; name a checkpoint folder"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is ready to hear."""

    backend: Backend
    tokenizer: Tokenizer
    prompts: Prompts


def model_folder(name_or_folder: str | Path) -> Path:
    """A name of a built-in model, or a folder → the folder. Raises ConfigError naming the built-in ones."""
    for folder in (Path(name_or_folder), ASSETS / name_or_folder):
        if (folder / "config.json").is_file():
            return folder
    names = sorted(path.parent.name for path in ASSETS.glob("*/config.json"))
    known = f"built-in models are {', '.join(names)}" if names else NONE_BUILT_IN
    raise ConfigError(f"{str(name_or_folder)!r} is neither a folder with a config.json nor a built-in model; {known}")


def load(
    name_or_folder: str | Path = "small",
    *,
    runtime: str = "auto",
    device: str = "cpu",
    dtype: str = "float32",
    assistant: Path | None = None,
    threads: int | None = None,
    progress: bool = False,
) -> Loaded:
    """Open a model folder (config.json, tokenizer.json, and safetensors or exported graphs in ``onnx/``) or a built-in model.

    ``runtime``: "onnx", "torch", or "auto": ONNX Runtime where the folder has graphs and nothing is asked that only torch can do
    (another device or dtype, an assistant from elsewhere); should it fail, torch takes over with a warning. ``assistant``: a folder
    with its MTP drafter; None: the folder's own. ``threads``: CPU threads of the runtime. ``progress``: show bars. Raises ConfigError,
    CheckpointError or BackendError.
    """
    folder = model_folder(name_or_folder)
    for name, value, known in (("dtype", dtype, DTYPES), ("runtime", runtime, RUNTIMES)):
        if value not in known:
            raise ConfigError(f"{name} is {value!r}, expected one of {', '.join(known)}")
    config = read_model_config(folder)
    tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
    prompts = Prompts(config, tokenizer)
    only_torch = [f"device {device}"] * (device != "cpu") + [f"dtype {dtype}"] * (dtype != "float32")
    only_torch += [f"an assistant from {assistant}"] * (assistant is not None)
    has_graphs = (folder / GRAPHS).is_dir()
    if runtime == "onnx" and (only_torch or not has_graphs):
        raise ConfigError(_why_not_onnx(folder, only_torch))
    if assistant is None and (folder / "assistant" / "config.json").is_file():
        assistant = folder / "assistant"
    if runtime == "torch" or only_torch or not has_graphs:
        return Loaded(_torch(folder, device, dtype, assistant, threads, progress), tokenizer, prompts)
    try:
        return Loaded(_onnx(folder, config, threads), tokenizer, prompts)
    except BackendError as error:
        if runtime == "onnx":
            raise
        return Loaded(_torch_instead(error, folder, assistant, threads, progress), tokenizer, prompts)


def _why_not_onnx(folder: Path, only_torch: list[str]) -> str:
    if only_torch:
        return f"runtime is 'onnx', but only torch takes {' and '.join(only_torch)}; an assistant goes in with: dragoman export --assistant"
    return f"runtime is 'onnx', but {folder} has no {GRAPHS}/; make it with: dragoman export {folder} --out {folder}"


def _onnx(folder: Path, config: ModelConfig, threads: int | None) -> Backend:
    try:
        from .onnx_backend import OnnxBackend
    except ImportError as error:
        raise BackendError(f"ONNX Runtime cannot be imported: {error}") from error
    return OnnxBackend(folder / GRAPHS, config, name=folder.name, threads=threads)


def _torch_instead(why: BackendError, folder: Path, assistant: Path | None, threads: int | None, progress: bool) -> Backend:
    try:
        backend = _torch(folder, "cpu", "float32", assistant, threads, progress)
    except (BackendError, CheckpointError) as error:
        raise BackendError(f"{why}; nor could torch take over: {error}") from why
    log.warning("%s; torch takes over, which is slower", why)
    return backend


def _torch(folder: Path, device: str, dtype: str, assistant: Path | None, threads: int | None, progress: bool) -> Backend:
    try:
        import torch
    except ImportError as error:
        raise BackendError('PyTorch is not installed; pip install "dragoman[torch]"') from error
    from .checkpoint import load_drafter, load_model
    from .torch_backend import TorchBackend

    if threads is not None:
        torch.set_num_threads(threads)
    kind = {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
    model = load_model(folder, dtype=kind, device=device, progress=progress)
    drafter = None if assistant is None else load_drafter(assistant, dtype=kind, device=device, progress=progress)
    return TorchBackend(model, drafter, name=folder.name)
