"""The only place that chooses and opens a runtime. Heavy imports happen inside ``load``."""

from __future__ import annotations

import hashlib
import logging
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .backend import Backend
from .config import ModelConfig, read_model_config
from .errors import BackendError, CheckpointError, ConfigError
from .graph_weights import GRAPHS
from .prompt import Prompts
from .tokenizer import Tokenizer

ASSETS = Path(__file__).parent / "assets"
DTYPES = ("float32", "bfloat16")
RUNTIMES = ("auto", "onnx", "torch")
_WHOLE_BYTES = 32_000_000  # a weights file up to this size is hashed whole: the small one's 25 MB take 15 to 35 ms
_LONGEST_HEADER_BYTES = 100_000_000  # safetensors' own limit
_HEAD_BYTES = 4096  # hashed of each tensor of a larger file
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
    (another device or dtype, an assistant from elsewhere); should it fail, torch takes over with a warning. A warning also says when
    the graphs were made from other weights than lie beside them. ``assistant``: a folder with its MTP drafter; None: the folder's own.
    ``threads``: CPU threads of the runtime. ``progress``: show bars. Raises ConfigError, CheckpointError or BackendError.
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

        backend = OnnxBackend(folder / GRAPHS, config, name=folder.name, threads=threads)
    except BackendError:
        raise
    except ImportError as error:
        raise BackendError(f"ONNX Runtime cannot be imported: {error}") from error
    except Exception as error:  # what a damaged file or library raises has no common base, and torch can do without either
        raise BackendError(f"ONNX Runtime cannot open {folder / GRAPHS}: {type(error).__name__}: {error}") from error
    _warn_of_other_weights(folder, backend.exported_from, backend.precision)
    return backend


def _warn_of_other_weights(folder: Path, exported_from: object, precision: str) -> None:
    """Weights may be replaced without a thought for the graphs beside them, and the old ones would be heard for ever."""
    if exported_from is None:  # by a version that did not write it down
        return
    with suppress(OSError):  # weights that cannot be read are not needed either
        held = weights_digests(folder)
        if held and held != exported_from:
            log.warning(
                "%s was made from other weights than lie beside it now, and it is what is heard; make it anew with: "
                "dragoman export %s --out %s --precision %s",
                *(folder / GRAPHS, folder, folder, precision),
            )


def weights_digests(folder: Path) -> dict[str, str]:
    """Name of each safetensors file of a model (one, or its shards) → hex SHA-256; empty where there is none. Raises OSError.

    Up to 32 MB it is that of the file, as sha256sum prints it. A larger file is not read whole (12B's 24 GB would take half a minute):
    hashed are its size, its header and the first 4 KiB of each tensor, since training moves a whole tensor or leaves it alone.
    """
    return {path.name: _digest(path) for path in sorted(folder.glob("model*.safetensors"))}


def _digest(path: Path) -> str:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _WHOLE_BYTES:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256(str(size).encode())
        length = int.from_bytes(file.read(8), "little")
        header = file.read(min(length, _LONGEST_HEADER_BYTES))
        digest.update(header)
        # Not parsed as JSON: a damaged file has a digest too, and it is another one.
        for begin in re.findall(rb'"data_offsets":\s*\[\s*(\d{1,15})\b', header):
            file.seek(8 + len(header) + int(begin))
            digest.update(file.read(_HEAD_BYTES))
    return digest.hexdigest()


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
