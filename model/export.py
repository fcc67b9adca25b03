"""A checkpoint folder → a folder that ONNX Runtime runs without torch: ``onnx/`` with the graphs, config.json, tokenizer.json.

Everything is written into a temporary folder beside its place, loaded and run there, and renamed at the end: a folder that
ONNX Runtime cannot load is never left behind.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from .checkpoint import INDEX, SINGLE, Model, disk_name, load_drafter, load_model, progress_bar, save_rest, stored_dtype
from .config import SIDES, TEXT
from .drafter import Drafter, check_fit
from .errors import BackendError, ConfigError
from .graph_weights import GRAPHS, NOTE, Place, places
from .load import weights_digests
from .onnx_backend import FORMAT, OnnxBackend
from .onnx_graphs import Advance, array, write_backbone, write_drafter, write_head, write_projector, write_vision
from .onnx_writer import Array, GraphWriter, Precision
from .torch_backend import TorchBackend

PRECISIONS = get_args(Precision)
_COPIED = ("config.json", "tokenizer.json")
_TOLERANCE = 1e-3  # log-probabilities of fp32 graphs against torch; the parity tests are ten times stricter
_CHECKED_FRAMES, _CHECKED_TOKENS = 20, 4


def export(
    folder: Path,
    out: Path,
    *,
    precision: Precision = "int8",
    assistant: Path | None = None,
    progress: bool = False,
    once: bool = False,
) -> Path:
    """Write the checkpoint in ``folder`` as ONNX graphs below ``out``; returns ``out``.

    ``out`` may be ``folder`` itself (it gets an ``onnx/``, or a new one), or a folder that does not exist yet. ``assistant``: a folder
    with the MTP drafter; None: the folder's own ``assistant/``, if there is one. ``progress``: show a bar. ``once``: no matrix is held
    twice; ``out`` has a model.safetensors with only what the graphs do not hold, and torch reads the matrices from them, as rounded as
    they are: of a ``folder`` that is ``out`` the exact ones are gone. Raises ConfigError, CheckpointError or BackendError; then nothing
    has changed.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision is {precision!r}, expected one of {', '.join(PRECISIONS)}")
    inside = out.exists() and folder.exists() and out.samefile(folder)
    if out.exists() and not inside:
        raise ConfigError(f"{out} exists already; name a new folder, or {folder} to put the graphs into it")
    if once and inside and (folder / INDEX).is_file():
        raise ConfigError(f"the weights in {folder} are shards, expected one {SINGLE}; name a new folder, and they stay as they are")
    model = load_model(folder, dtype=stored_dtype(folder), progress=progress)
    if assistant is None and (folder / "assistant" / "config.json").is_file():
        assistant = folder / "assistant"
    drafter = None if assistant is None else load_drafter(assistant, dtype=stored_dtype(assistant), progress=progress)
    if drafter is not None:
        check_fit(model.config.backbone, drafter.config)
    with _renamed_at_the_end(out / GRAPHS if inside else out) as new:
        graphs = new if inside else new / GRAPHS
        graphs.mkdir(exist_ok=True)
        with progress_bar(progress, model.config.backbone.num_layers, f"writing {precision} graphs") as advance:
            write_graphs(graphs, model, drafter, precision, advance, weights=weights_digests(folder))
        for name in () if inside else _COPIED:
            shutil.copyfile(folder / name, new / name)
        check(graphs, model, drafter)
        if once:
            _write_rest(folder, graphs)
    if once:  # until this moment the old file is there, whole or slim, and goes with the new graphs as well
        os.replace(out / GRAPHS / SINGLE, out / SINGLE)
    return out


def _write_rest(folder: Path, graphs: Path) -> None:
    """Write what the graphs do not hold into their own folder, as model.safetensors; their note is then of this file."""
    save_rest(folder, graphs, places(graphs))
    note = json.loads((graphs / NOTE).read_text(encoding="utf-8"))
    (graphs / NOTE).write_text(json.dumps(note | {"weights": weights_digests(graphs)}) + "\n", encoding="utf-8")


def write_graphs(
    graphs: Path,
    model: Model,
    drafter: Drafter | None,
    precision: Precision,
    advance: Advance = lambda: None,
    *,
    weights: Mapping[str, str] | None = None,
) -> None:
    """Every graph of a model, the table of embeddings and the note, into an existing folder. ``advance`` is called after each layer.
    ``weights``: the ``weights_digests`` of the checkpoint that the model was read from, for the note; None: it was not read from one."""
    special = model.config.special
    with GraphWriter(graphs, "projector", precision) as projector:
        write_projector(projector, model.projector)
    roles = model.config.backbone.layer_roles
    sides = {side: side for side in SIDES if side in roles} if roles else {"backbone": TEXT}
    tensors = _named("model.embed_audio.", projector.places)
    for name, side in sides.items():
        with GraphWriter(graphs, name, precision) as g:
            write_backbone(g, model.backbone, advance, side=side)
        tensors |= _named("model.language_model.", g.places)
    with GraphWriter(graphs, "head", precision) as g:
        write_head(g, model.backbone, special)
    if model.vision is not None:
        with GraphWriter(graphs, "vision", precision) as g:
            write_vision(g, model.vision)
    if drafter is not None:
        with GraphWriter(graphs, "drafter", precision) as g:
            write_drafter(g, drafter, special)
    # The table of input embeddings is looked up, never multiplied with: it stays outside the graphs, mapped from its file.
    table = array(model.backbone.embed_tokens.weight)
    table = table if precision == "fp32" else table.astype(np.float16)
    tensors |= _named("model.language_model.", {"embed_tokens.weight": _save_table(graphs / "embeddings.npy", table)})
    noted = {name: place.noted() for name, place in tensors.items()}
    note = {"format": FORMAT, "precision": precision, "weights": weights, "tensors": noted}
    (graphs / NOTE).write_text(json.dumps(note) + "\n", encoding="utf-8")


def _named(prefix: str, places: Mapping[str, Place]) -> dict[str, Place]:
    return {disk_name(prefix, name): place for name, place in places.items()}


def _save_table(path: Path, table: Array) -> Place:
    """The table [n, d] as a file of numpy; returns its place in it."""
    np.save(path, table)
    (n, d), size = table.shape, table.itemsize
    return Place(path.name, (n, d), 8 * size, path.stat().st_size - table.nbytes, strides=(d * size, size))


def check(graphs: Path, model: Model, drafter: Drafter | None) -> None:
    """Load the graphs and run every one on noise. Raises BackendError if one cannot be loaded, answers with something that is no
    number, or (fp32) differs from torch."""
    runtime = OnnxBackend(graphs, model.config)
    rng = np.random.default_rng(0)
    frames = (0.1 * rng.standard_normal((_CHECKED_FRAMES, model.config.audio.frame_samples))).astype(np.float32)
    ids = np.full(_CHECKED_TOKENS, model.config.special.bos, dtype=np.int64)
    cache = runtime.new_cache()
    runtime.listen([(cache, frames)])
    (step,) = runtime.step([(cache, ids)])
    for language in model.config.special.languages[:1]:
        runtime.step([(cache.copy(), np.array([language], dtype=np.int64))])
    if drafter is not None:
        runtime.draft([(cache, (step.hidden[-1], int(step.ids[-1]), 1))])
    if model.config.vision is not None:
        runtime.look([(cache, np.zeros((1, 2, model.config.vision.patch_values), np.float32))])
    if not np.isfinite(step.logprobs).all():
        raise BackendError(f"the graphs answer with log-probabilities {step.logprobs.tolist()}, expected finite ones")
    if runtime.precision == "fp32" and model.backbone.embed_tokens.weight.dtype == torch.float32:
        torch_runtime = TorchBackend(model)
        cache = torch_runtime.new_cache()
        torch_runtime.listen([(cache, frames)])
        (wanted,) = torch_runtime.step([(cache, ids)])
        if (far := float(np.abs(step.logprobs - wanted.logprobs).max())) > _TOLERANCE:
            raise BackendError(f"log-probabilities of the graphs differ from torch by {far:.1e}, expected at most {_TOLERANCE:.0e}")


@contextmanager
def _renamed_at_the_end(place: Path) -> Generator[Path]:
    """A temporary folder beside ``place``; it takes the place of what was there if the block succeeds, and vanishes if not."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{place.name}-", dir=place.parent) as temporary:
        new, old = Path(temporary) / "new", Path(temporary) / "old"
        new.mkdir()
        yield new
        try:
            if place.exists():
                place.rename(old)
            new.rename(place)
        except BaseException:
            if old.exists():  # it may hold the only copy of the weights
                old.rename(place)
            raise
