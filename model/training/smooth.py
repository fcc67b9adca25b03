"""A model folder → the same function in weights that lose less in 8 bits (SmoothQuant, Xiao et al., arXiv 2211.10438).

    python -m dragoman.model.training.smooth MODEL_FOLDER NEW_FOLDER --store STORE

Where one channel of what goes into a product is a hundred times louder than its neighbours (a graft's flags are), the others of its block
are rounded to nothing. A channel may be made quieter in the gain of the norm before the product and louder in the weights behind it, by a
factor s = rms(x)^α / max|w|^(1 − α): what comes out is the same. The last product of an MLP has no norm before it; there the rows of
up_proj are the gain. How loud channels are is measured while the model transcribes clips of the training split.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor, nn

from ..backbone import Backbone, Layer
from ..checkpoint import load_model, save_checkpoint
from ..errors import ConfigError, as_command
from ..load import load
from ..offline import transcribe_job
from ..store import Store
from ..torch_backend import TorchBackend
from ..work import run_together

ALPHA = (
    0.4  # share of a channel's loudness that goes into the weights; of 0.25 to 0.7, what was nearest to float32 for v3 (docs/training.md)
)
QUIET = 1e-5  # channels below this, in what comes in or in the weights, are left alone
CLIPS = 24


@dataclass(frozen=True, slots=True)
class Place:
    """Where a channel's size can be moved: from ``before`` (gains or biases [k], rows [k, d]) to the columns of ``behind``."""

    before: tuple[Tensor, ...]
    behind: tuple[nn.Linear, ...]


def places(backbone: Backbone) -> list[Place]:
    found: list[Place] = []
    for layer in backbone.layers:
        assert isinstance(layer, Layer)
        own = layer.self_attn
        attended = (own.q_proj, own.k_proj) if own.shares_v else (own.q_proj, own.k_proj, own.v_proj)
        found.append(Place((layer.input_layernorm.weight,), attended))
        if layer.has_mlp:
            found.append(Place((layer.pre_feedforward_layernorm.weight,), (layer.mlp.gate_proj, layer.mlp.up_proj)))
            found.append(Place(tuple(layer.mlp.up_proj.parameters()), (layer.mlp.down_proj,)))
    return found


class Loudness:
    """Mean squares of what goes into products, by channel, while the context lasts."""

    def __init__(self, wanted: Iterable[Place]) -> None:
        self._places = list(wanted)
        self._sums = [torch.zeros(place.behind[0].in_features) for place in self._places]
        self._counts = [0] * len(self._places)

    @contextmanager
    def measured(self) -> Generator[None]:
        # Queries and keys may be made of different positions (layers with roles): each product counts what it is given.
        hooks = [
            linear.register_forward_pre_hook(partial(self._hear, i)) for i, place in enumerate(self._places) for linear in place.behind
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _hear(self, i: int, _: nn.Module, given: tuple[Tensor]) -> None:
        rows = given[0].detach().float().flatten(0, -2)
        self._sums[i] += rows.square().sum(0)
        self._counts[i] += len(rows)

    def rms(self) -> list[Tensor]:
        return [(total / max(1, count)).sqrt() for total, count in zip(self._sums, self._counts, strict=True)]


@torch.no_grad()
def smooth(wanted: Sequence[Place], loudness: Sequence[Tensor], alpha: float = ALPHA) -> None:
    """Move the sizes of channels, in place; ``loudness``: rms of each place's channels [k]."""
    for place, rms in zip(wanted, loudness, strict=True):
        largest = torch.stack([linear.weight.abs().amax(0) for linear in place.behind]).amax(0)
        factor = rms.clamp(min=QUIET) ** alpha / largest.clamp(min=QUIET) ** (1 - alpha)
        heard = (rms > QUIET) & (largest > QUIET)
        if not heard.any():
            continue
        factor = torch.where(heard, factor / factor[heard].median(), 1.0)
        for part in place.before:
            part.div_(factor if part.ndim == 1 else factor[:, None])
        for linear in place.behind:
            linear.weight.mul_(factor)


def smooth_folder(folder: Path, out: Path, store: Store, *, clips: int = CLIPS, alpha: float = ALPHA) -> None:
    """Write the folder ``out``, in float32. Raises ConfigError if it exists, or if the store has no clip of the training split."""
    if out.exists():
        raise ConfigError(f"{out} exists already; name a new folder")
    chosen = [clip for clip in store.clips if clip.split == "train" and clip.text]
    if not chosen:
        raise ConfigError(f"the store {store.folder} has no transcribed clip of split 'train'")
    chosen = chosen[:: max(1, len(chosen) // clips)][:clips]
    loaded = load(folder, runtime="torch")
    backend = loaded.backend
    assert isinstance(backend, TorchBackend), "torch was asked for"
    wanted = places(backend.backbone)
    loudness = Loudness(wanted)
    with loudness.measured():
        for clip in track(chosen, description="listening"):
            run_together(backend, [transcribe_job(loaded, store.samples(clip))])
    model = load_model(folder)
    smooth(places(model.backbone), loudness.rms(), alpha)
    out.mkdir(parents=True)
    save_checkpoint(out, model.backbone, model.projector)
    for name in ("config.json", "tokenizer.json"):
        shutil.copyfile(folder / name, out / name)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="model folder")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--store", type=Path, required=True, help="store with clips of the training split")
    parser.add_argument("--clips", type=int, default=CLIPS)
    parser.add_argument("--alpha", type=float, default=ALPHA)
    given = parser.parse_args(arguments)
    smooth_folder(given.folder, given.out, Store(given.store), clips=given.clips, alpha=given.alpha)


if __name__ == "__main__":
    as_command(main)
