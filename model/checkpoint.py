"""Weights folders: Hugging Face names on disk ↔ our modules, safetensors, memory-mapped; matrices that they lack, from exported graphs.

Modules are built on the meta device and take the mapped tensors as they are (``assign``), so nothing is held twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn

from .backbone import Backbone
from .config import DrafterConfig, ModelConfig, read_drafter_config, read_model_config
from .drafter import Drafter
from .errors import CheckpointError
from .graph_weights import GRAPHS, places, read
from .projector import AudioProjector
from .vision import VisionEmbedder

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_TIED = frozenset({"lm_head.weight"})  # some files repeat the embedding table under this name; the head is tied


@dataclass(frozen=True, slots=True)
class Model:
    """The modules of one checkpoint."""

    config: ModelConfig
    backbone: Backbone
    projector: AudioProjector
    vision: VisionEmbedder | None


def build_model(config: ModelConfig, *, device: str = "meta", dtype: torch.dtype = torch.float32) -> Model:
    """The modules, with no weights on "meta", else with torch's default ones."""
    size = config.backbone.hidden_size
    with torch.device(device):
        vision = None if config.vision is None else VisionEmbedder(config.vision, size)
        backbone, projector = Backbone(config.backbone), AudioProjector(config.audio, size)
    for module in (backbone, projector, vision):
        if module is not None:
            module.to(dtype).eval().requires_grad_(False)
    return Model(config, backbone, projector, vision)


def load_model(folder: Path, *, dtype: torch.dtype = torch.float32, device: str = "cpu", progress: bool = False) -> Model:
    """Read a Gemma 4 Unified folder; what its safetensors lack and its graphs hold comes from there, as rounded as it is.
    Raises ConfigError, or ONE CheckpointError with everything missing, unexpected or mis-shaped."""
    model = build_model(read_model_config(folder), dtype=dtype)
    _fill(folder, named_modules(model), dtype, device, progress)
    return model


def load_drafter(folder: Path, *, dtype: torch.dtype = torch.float32, device: str = "cpu", progress: bool = False) -> Drafter:
    """Read a Gemma 4 Unified assistant folder; errors as in ``load_model``."""
    drafter = build_drafter(read_drafter_config(folder), dtype=dtype)
    _fill(folder, {"": drafter}, dtype, device, progress)
    return drafter


def build_drafter(config: DrafterConfig, *, device: str = "meta", dtype: torch.dtype = torch.float32) -> Drafter:
    with torch.device(device):
        drafter = Drafter(config)
    drafter.to(dtype).eval().requires_grad_(False)
    return drafter


def named_modules(model: Model) -> dict[str, nn.Module]:
    """Prefix on disk → module. The vision part has two: its last projection stands beside the audio one."""
    modules: dict[str, nn.Module] = {"model.language_model.": model.backbone, "model.embed_audio.": model.projector}
    if model.vision is not None:
        modules["model.vision_embedder."] = model.vision
    return modules


def disk_name(prefix: str, name: str) -> str:
    """Our parameter's name → its name on disk."""
    if prefix == "model.vision_embedder." and name.startswith("embedding_projection."):
        return "model.embed_vision." + name
    return prefix + name


def tensors_on_disk(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Every stored tensor by its name on disk."""
    return {disk_name(prefix, name): tensor for prefix, module in modules.items() for name, tensor in module.state_dict().items()}


def save_checkpoint(
    folder: Path,
    backbone: Backbone,
    projector: AudioProjector,
    vision: VisionEmbedder | None = None,
    *,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write ``model.safetensors`` with the names on disk (the same file that ``load_model`` and transformers read); config.json and
    tokenizer.json are the caller's. ``dtype`` None keeps the weights' own. Returns the file."""
    modules: dict[str, nn.Module] = {"model.language_model.": backbone, "model.embed_audio.": projector}
    if vision is not None:
        modules["model.vision_embedder."] = vision
    return _save(folder, modules, dtype, metadata)


def save_drafter(folder: Path, drafter: Drafter, *, dtype: torch.dtype | None = None) -> Path:
    """The same for an assistant."""
    return _save(folder, {"": drafter}, dtype, None)


def _save(folder: Path, modules: Mapping[str, nn.Module], dtype: torch.dtype | None, metadata: Mapping[str, str] | None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().to("cpu", dtype or tensor.dtype).contiguous() for name, tensor in tensors_on_disk(modules).items()}
    save_file(tensors, str(folder / SINGLE), metadata={"format": "pt", **(metadata or {})})
    return folder / SINGLE


def save_rest(folder: Path, out: Path, held: Collection[str]) -> Path:
    """Write ``model.safetensors`` into the folder ``out``: what is stored in ``folder``, as it is, without the tensors named in ``held``
    (and without a repeated head). Returns the file. Raises CheckpointError."""
    homes, rest, metadata = tensor_files(folder), dict[str, Tensor](), dict[str, str]()
    for path in sorted(set(homes.values())):
        with _opened(path) as file:
            metadata |= file.metadata() or {}
            kept = [name for name, home in homes.items() if home == path and name not in held and name not in _TIED]
            rest |= {name: file.get_tensor(name) for name in kept}
    save_file(rest, str(out / SINGLE), metadata={"format": "pt", **metadata})
    (out / SINGLE).chmod(0o644)  # safetensors writes it for its owner alone
    return out / SINGLE


def _fill(folder: Path, modules: Mapping[str, nn.Module], dtype: torch.dtype, device: str, progress: bool) -> None:
    """Give meta modules their tensors from the folder, after comparing every name and shape."""
    homes, wanted = tensor_files(folder), tensors_on_disk(modules)
    lacking = wanted.keys() - homes.keys()
    in_graphs = {name: place for name, place in places(folder / GRAPHS).items() if name in lacking} if lacking else {}
    shapes = _shapes_on_disk(homes) | {name: list(place.shape) for name, place in in_graphs.items()}
    _compare(folder, {name: list(tensor.shape) for name, tensor in wanted.items()}, shapes)
    found: dict[str, Tensor] = {}
    with progress_bar(progress, len(wanted), f"reading {folder.name}") as advance:
        for file in sorted(set(homes.values())):
            with _opened(file, device) as opened:
                for name in (name for name, home in homes.items() if home == file and name in wanted):
                    found[name] = opened.get_tensor(name).to(dtype)
                    advance()
        for name, place in in_graphs.items():
            found[name] = torch.as_tensor(read(folder / GRAPHS, place)).to(device, dtype)
            advance()
    for prefix, module in modules.items():
        ours = {name: found[disk_name(prefix, name)] for name in module.state_dict()}
        module.load_state_dict(ours, assign=True)
        module.requires_grad_(False)


def tensor_files(folder: Path) -> dict[str, Path]:
    """Tensor name → the safetensors file that holds it: the single file, or the shards of the index. Raises CheckpointError."""
    if (folder / INDEX).is_file():
        try:
            placed = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise CheckpointError(f"{folder / INDEX} is not an index of shards: {error!r}") from error
        absent = sorted({shard for shard in placed.values() if not (folder / shard).is_file()})
        if absent:
            raise CheckpointError(f"{folder} lacks {len(absent)} shards named by {INDEX}: {', '.join(absent)}")
        return {name: folder / shard for name, shard in placed.items()}
    single = folder / SINGLE
    if not single.is_file():
        raise CheckpointError(f"{folder} holds neither {SINGLE} nor {INDEX}")
    with _opened(single) as file:
        return dict.fromkeys(file.keys(), single)


def stored_dtype(folder: Path) -> torch.dtype:
    """float32 or bfloat16: what a folder's weights are best read as. Tensors of bfloat16 stay mapped and take no memory.
    What only the graphs hold is float32: it is rounded once, and in bfloat16 would be once more."""
    files = tensor_files(folder)
    if not any(name.endswith("embed_tokens.weight") for name in files):
        return torch.float32
    path = next(iter(files.values()))
    with _opened(path) as file:
        kinds = {file.get_slice(name).get_dtype() for name in file.keys()}
    return torch.bfloat16 if kinds == {"BF16"} else torch.float32


def _shapes_on_disk(homes: Mapping[str, Path]) -> dict[str, list[int]]:
    shapes: dict[str, list[int]] = {}
    for path in sorted(set(homes.values())):
        with _opened(path) as file:
            held = set(file.keys())
            mine = {name for name, home in homes.items() if home == path}
            if mine - held:
                raise CheckpointError(f"{path} lacks tensors that {INDEX} promises: {', '.join(sorted(mine - held))}")
            shapes |= {name: list(file.get_slice(name).get_shape()) for name in mine}
    return shapes


@contextmanager
def _opened(path: Path, device: str = "cpu") -> Generator[Any]:
    reader: Any = safe_open  # untyped
    try:
        with reader(str(path), framework="pt", device=device) as file:
            yield file
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error


def _compare(folder: Path, wanted: Mapping[str, list[int]], held: Mapping[str, list[int]]) -> None:
    """Raise one CheckpointError with every difference."""
    missing = sorted(set(wanted) - set(held))
    unexpected = sorted(set(held) - set(wanted) - _TIED)
    shapes = [f"{name} is {held[name]}, expected {wanted[name]}" for name in sorted(set(wanted) & set(held)) if wanted[name] != held[name]]
    faults = {"missing": missing, "unexpected": unexpected, "mis-shaped": shapes}
    lines = [f"{len(names)} {kind}: {', '.join(names)}" for kind, names in faults.items() if names]
    if lines:
        raise CheckpointError(f"the weights in {folder} do not fit its config.json; " + "; ".join(lines))


@contextmanager
def progress_bar(show: bool, total: int, title: str) -> Generator[Callable[[], None]]:
    """Gives a function that says one more of ``total`` is done."""
    if not show:
        yield lambda: None
        return
    from rich.progress import Progress

    with Progress() as bar:
        task = bar.add_task(title, total=total)
        yield lambda: bar.advance(task)
