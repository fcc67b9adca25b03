"""A model folder with more layers than it had, which says the same at first: a run goes on from it with more to learn with.

    python -m dragoman.model.training.grow MODEL_FOLDER NEW_FOLDER --before 2 4

Layers are put in before the given ones (counted from 0 as they were), all with sliding attention. Their matrices are as a new model's, and
what they add is scaled down to ``SMALL`` of what its layers add, so that the layers above hear nearly what they heard before; at
exactly 0 (as in "LLaMA Pro", Wu et al., arXiv 2401.02415) nothing but that scale would learn at first.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..cache import SLIDING
from ..checkpoint import Model, build_model, load_model, save_checkpoint
from ..errors import ConfigError
from .package import text_section
from .student import initialise

SMALL = 0.25


def grow(model: Model, before: Sequence[int], seed: int = 0) -> Model:
    """The model with one new sliding layer before each layer of ``before``. Raises ConfigError for a layer that it does not have."""
    old = model.config.backbone
    for place in before:
        if not 0 <= place <= old.num_layers:
            raise ConfigError(f"a layer is wanted before layer {place}, expected 0 to {old.num_layers}")
    origins: list[int | None] = []  # of each layer, which one it was
    for i in range(old.num_layers + 1):
        origins += [None] * list(before).count(i) + ([i] if i < old.num_layers else [])
    kinds = tuple(SLIDING if i is None else old.layer_types[i] for i in origins)
    grown = build_model(replace(model.config, backbone=replace(old, layer_types=kinds)), device="cpu")
    torch.manual_seed(seed)
    initialise(grown.backbone, grown.projector)
    grown.projector.load_state_dict(model.projector.state_dict())
    layers = {f"layers.{i}.": "new" if origin is None else f"layers.{origin}." for i, origin in enumerate(origins)}
    state, given = grown.backbone.state_dict(), model.backbone.state_dict()
    for name, value in state.items():
        place = next((new for new in layers if name.startswith(new)), "")
        if layers.get(place) == "new":
            value.mul_(SMALL if "post_" in name else 1.0)
        else:
            value.copy_(given[layers.get(place, "") + name.removeprefix(place)])
    return grown


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--before", type=int, nargs="+", required=True, metavar="LAYER", help="a new layer before each of these")
    given = parser.parse_args(arguments)
    grown = grow(load_model(given.model), given.before)
    given.out.mkdir(parents=True, exist_ok=True)
    raw = json.loads((given.model / "config.json").read_text())
    config = raw | {"text_config": text_section(grown.config.backbone)}
    (given.out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    shutil.copyfile(given.model / "tokenizer.json", given.out / "tokenizer.json")
    save_checkpoint(given.out, grown.backbone, grown.projector, dtype=torch.float16).chmod(0o644)


if __name__ == "__main__":
    main()
