"""The only place that chooses and opens a runtime. Heavy imports happen inside ``load``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .backend import Backend
from .config import read_model_config
from .errors import BackendError, ConfigError
from .prompt import Prompts
from .tokenizer import Tokenizer

ASSETS = Path(__file__).parent / "assets"
DTYPES = ("float32", "bfloat16")
NONE_BUILT_IN = "no model is built in (the small default is still being trained): name a checkpoint folder"


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
    device: str = "cpu",
    dtype: str = "float32",
    assistant: Path | None = None,
    threads: int | None = None,
    progress: bool = False,
) -> Loaded:
    """Open a checkpoint folder (config.json, tokenizer.json, safetensors) or a built-in model.

    ``assistant``: a folder with its MTP drafter; None: the folder's own ``assistant/``, if there is one. ``threads``: CPU threads of the
    runtime. ``progress``: show bars. Raises ConfigError, CheckpointError or BackendError.
    """
    folder = model_folder(name_or_folder)
    if dtype not in DTYPES:
        raise ConfigError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
    config = read_model_config(folder)
    tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
    prompts = Prompts(config, tokenizer)
    if assistant is None and (folder / "assistant" / "config.json").is_file():
        assistant = folder / "assistant"
    return Loaded(_torch(folder, device, dtype, assistant, threads, progress), tokenizer, prompts)


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
