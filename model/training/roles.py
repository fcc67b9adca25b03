"""A grafted model (:mod:`.graft`) → the same with roles for its layers: audio and text no longer go through each other's.

    python -m dragoman.model.training.roles MODEL_FOLDER NEW_FOLDER

A graft is written so that every position goes through every layer, as Gemma's do, and moves only in its own; the work in the others is
for nothing. With roles (``config.AUDIO``) it is not done: a third of the work is left for a token and half of it for a frame, and audio
keeps no keys in layers of text. It is not quite the same model, for a trained graft has learnt to use a little of what should not be
there, and the MLPs of its layers of TEXT, which are left out, say a little too: a run should go on from the new folder.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..checkpoint import Model, build_model, load_model, save_checkpoint
from ..config import AUDIO, CROSS, TEXT
from ..errors import ConfigError


def with_roles(model: Model) -> Model:
    """A copy of a grafted model with roles. Raises ConfigError for one that is none, or has them."""
    config, hearing = model.config, model.config.hearing_layers
    above = config.backbone.num_layers - hearing
    if config.backbone.layer_roles or not hearing or above <= 0 or above % 2:
        raise ConfigError(
            f"hearing_layers is {hearing} of {config.backbone.num_layers} layers and layer_roles {list(config.backbone.layer_roles)}; "
            "expected a grafted model without roles: hearing layers, and pairs of layers above them"
        )
    roles = (AUDIO,) * hearing + (TEXT, CROSS) * (above // 2)
    new = build_model(replace(config, backbone=replace(config.backbone, layer_roles=roles)), device="cpu")
    for ours, theirs in ((new.backbone, model.backbone), (new.projector, model.projector)):
        held = theirs.state_dict()
        ours.load_state_dict({name: held[name] for name in ours.state_dict()})
    return new


def give_roles(folder: Path, out: Path) -> None:
    """Write the folder ``out``, in float32. Raises ConfigError as :func:`with_roles`, or if it exists."""
    if out.exists():
        raise ConfigError(f"{out} exists already; name a new folder")
    model = with_roles(load_model(folder))
    out.mkdir(parents=True)
    save_checkpoint(out, model.backbone, model.projector)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["dragoman"]["layer_roles"] = list(model.config.backbone.layer_roles)
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(folder / "tokenizer.json", out / "tokenizer.json")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="model folder of a graft")
    parser.add_argument("out", type=Path, help="folder to write")
    given = parser.parse_args(arguments)
    give_roles(given.folder, given.out)


if __name__ == "__main__":
    main()
