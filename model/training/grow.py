"""A model folder with more layers than it had, which says the same at first: a run goes on from it with more to learn with.

    python -m dragoman.model.training.grow MODEL_FOLDER NEW_FOLDER --before 2 4

Layers are put in before the given ones (counted from 0 as they were), where layers have roles among those that hear: copies of the nearest
ones below with sliding attention, in their order, or of the first ones where there are none below (depth up-scaling, Kim et al.,
arXiv 2312.15166). What a copy adds is scaled down to a share of what the layer adds, so that the layers above hear something like what
they heard before; at exactly 0 ("LLaMA Pro", Wu et al., arXiv 2401.02415) nothing but that scale would learn at first. New matrices instead
of copies stayed idle for 94 h (docs/training.md).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..cache import SLIDING
from ..checkpoint import Model, build_model, load_model
from ..config import AUDIO, BackboneConfig
from ..errors import ConfigError, as_command
from .package import Taught, delay_of, save_model

SHARE = 0.5


def grow(model: Model, before: Sequence[int], share: float = SHARE) -> Model:
    """The model with one new sliding layer before each layer of ``before``, which adds ``share`` of what its pattern adds. Raises
    ConfigError for a layer that it does not have, or that does not hear."""
    old = model.config.backbone
    most = old.layer_roles.count(AUDIO) or old.num_layers
    for place in before:
        if not 0 <= place <= most:
            raise ConfigError(f"a layer is wanted before layer {place}, expected 0 to {most}")
    origins: list[tuple[int, float | None]] = []  # of each layer: which one it was or is a copy of, and of a copy the share
    for i in range(old.num_layers + 1):
        origins += [(copied, share) for copied in _copied(old, i, list(before).count(i))] + ([(i, None)] if i < old.num_layers else [])
    kinds, roles = (tuple(given[i] for i, _ in origins) if given else () for given in (old.layer_types, old.layer_roles))
    grown = build_model(replace(model.config, backbone=replace(old, layer_types=kinds, layer_roles=roles)), device="cpu")
    grown.projector.load_state_dict(model.projector.state_dict())
    state, given = grown.backbone.state_dict(), model.backbone.state_dict()
    layers = {f"layers.{i}.": origin for i, origin in enumerate(origins)}
    for name, value in state.items():
        place = next((new for new in layers if name.startswith(new)), "")
        origin, part = layers.get(place, (0, None))
        value.copy_(given[f"layers.{origin}.{name.removeprefix(place)}" if place else name])
        if part is not None and "post_" in name:
            value.mul_(part)
        elif part is not None and name.endswith("layer_scalar"):
            value.fill_(1.0)  # what came through the layer below is not scaled again
    return grown


def _copied(old: BackboneConfig, place: int, count: int) -> list[int]:
    """Which layers ``count`` new ones before layer ``place`` are copies of. Raises ConfigError where too few can be."""
    sliding = [i for i, kind in enumerate(old.layer_types) if kind == SLIDING]
    below = [i for i in sliding if i < place]
    copied = (below if len(below) >= count else sliding[:count])[-count:] if count else []
    if len(copied) < count:
        raise ConfigError(f"{count} layers are wanted before layer {place}, but only {len(sliding)} with sliding attention can be copied")
    return copied


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--before", type=int, nargs="+", required=True, metavar="LAYER", help="a new layer before each of these")
    parser.add_argument("--share", type=float, default=SHARE, help="how much a copy adds of what its pattern adds (%(default)s)")
    given = parser.parse_args(arguments)
    model = load_model(given.model)
    save_model(given.out, grow(model, given.before, given.share), given.model, Taught(delay_of(model.config), model.config.targets))


if __name__ == "__main__":
    as_command(main)
