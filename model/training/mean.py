"""The mean of a run of listening and of what it began from: often better than either (Wortsman et al., "Model soups", arXiv 2203.05482).

    python -m dragoman.model.training.mean --config run.yaml --share 0.6 --out RUN_FOLDER
    python -m dragoman.model.training.mean --config run.yaml --share 0.4 --also OTHER_RUN_FOLDER 0.3 --out RUN_FOLDER

The rest is of the start. All must have been trained to the end of a rate that fell. ``start_from`` must be a model that listening made.
The new folder is one for ``join``; it is no run that could go on. (``package.mix`` is for model folders: where one of them was smoothed,
their scales lie elsewhere.)
"""

from __future__ import annotations

import argparse
import copy
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from ..checkpoint import load_model
from ..config import read_model_config
from ..errors import ConfigError, as_command
from .frames import hold
from .listening import HELD, Listener, ListeningOptions, first_layers, load_listener, published_decoder, read_options, read_tokenizer
from .prepare import user_path
from .unjoin import unjoin


def begun(options: ListeningOptions, like: Listener) -> Listener:
    """The listener that a run with these options began with; what is thrown away in the end is as in ``like``, which the run became.

    Raises ConfigError where ``start_from`` was not made by listening.
    """
    start, run = user_path(options.start_from), user_path(options.folder)
    if read_model_config(start).backbone.plain is None:
        raise ConfigError(f"start_from: {start} was not made by listening, and has another decoder than a run that began there")
    first = copy.deepcopy(like)
    first.student.load_state_dict(first_layers(start, options.layers).state_dict())
    first.decoder.load_state_dict(published_decoder(read_tokenizer(run), options.decoder_layers).state_dict())
    unjoin(load_model(start), first.decoder, first.adapt, first.mean, first.spread)
    if (run / HELD).exists():  # from its first step on the run looked at no more of a frame
        hold(first.student.projector.embedding_projection.weight, torch.load(run / HELD, weights_only=True))
    return first


def mean(options: ListeningOptions, share: float, out: Path, also: Sequence[tuple[Path, float]] = ()) -> None:
    """Write ``share`` of the run, of each of the runs ``also`` (from the same start) its own share, and the rest of what they began from.
    Raises ConfigError."""
    shares = [share, *(own for _, own in also)]
    if not all(0.0 <= each <= 1.0 for each in shares):
        raise ConfigError(f"--share is {', '.join(map(str, shares))}, expected a number from 0 to 1")
    rest = 1.0 - sum(shares)
    if rest < -1e-9:
        raise ConfigError(f"the shares {', '.join(map(str, shares))} are {sum(shares):g} together, expected 1 at most")
    run = user_path(options.folder)
    if out.resolve() in {folder.resolve() for folder in (run, *(folder for folder, _ in also))}:
        raise ConfigError(f"--out is the run's own folder {out}, expected another one")
    learnt = load_listener(run)
    mixed, old = learnt.state_dict(), begun(options, learnt).state_dict()
    parts = [(old, rest), *((load_listener(folder).state_dict(), own) for folder, own in also)]
    for name, value in mixed.items():
        if value.is_floating_point():
            mixed[name] = sum((part[name] * own for part, own in parts), start=value * share)
    out.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "sizes.json", "taught.json"):
        shutil.copyfile(run / name, out / name)
    torch.save({"averaged": mixed}, out / "checkpoint.pt")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--share", type=float, default=0.6, help="of the run; the rest is what it began from")
    parser.add_argument("--also", nargs=2, action="append", default=[], metavar=("FOLDER", "SHARE"), help="another run from the same start")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    try:
        also = [(Path(folder), float(share)) for folder, share in given.also]
    except ValueError as error:
        parser.error(f"--also: {error}")
    mean(read_options(given.config), given.share, given.out, also)


if __name__ == "__main__":
    as_command(main)
