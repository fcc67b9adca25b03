"""The curve of a training run, from its ``log.jsonl``: losses and word error rate of dev speech against hours of speech heard.

    python -m dragoman.model.training.plot RUN_FOLDER [RUN_FOLDER ...] --out curve.png

Several runs are drawn over each other. A run that goes on may be drawn at any time.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, as_command

Record = dict[str, Any]
# Title of a panel, and the figures of trainer.py, probe.py and listening.py that stand in it.
PANELS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("text, nats for each token", ("words", "dev_words", "held_words")),
    ("text, share of tokens right; the same as the decoder's", ("words_right", "dev_words_right", "held_words_right", "same")),
    ("word error rate of dev speech, %", ("dev_wer", "dev_heard_wer")),
    ("characters, nats", ("characters", "ctc", "letters")),
    ("front end and features, mean squared error", ("mel", "features", "late")),
    ("from what the decoder says to the teacher's features, nats", ("said",)),
    ("pointer, nats", ("pointer",)),
    ("speed", ("speed",)),
)
PERCENT = {"dev_wer", "dev_heard_wer"}
UNITS = "hours of speech heard", "times real time"  # of a log that does not say otherwise


def read_log(folder: Path) -> list[Record]:
    """Records of a run in the order of their steps.

    A run that was killed goes on from its last checkpoint: what the log holds of the steps that were lost is left out, and so is a last
    line that is still being written. Raises ConfigError for a folder without a log, or with a line that is none.
    """
    path, records = folder / "log.jsonl", list[Record]()
    if not path.is_file():
        raise ConfigError(f"{folder}: no log.jsonl, expected the folder of a training run")
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            step, _ = record["step"], record["hours"]
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines) and not line.endswith("\n"):
                break
            raise ConfigError(f"{path}:{number}: expected a JSON object with step and hours, got {line.strip()[:80]!r}") from error
        # At one step there are at most two records, of training and of dev speech, with different figures.
        if any(last["step"] > step or (last["step"] == step and last.keys() == record.keys()) for last in records[-2:]):
            records = [earlier for earlier in records if earlier["step"] < step]
        records.append(record)
    if not records:
        raise ConfigError(f"{path}: holds no record yet, expected at least one")
    return records


def curve(records: Sequence[Record], name: str) -> tuple[list[float], list[float]]:
    """(hours heard, values) of one figure, where it was logged; error rates in per cent."""
    points = [(record["hours"], record[name] * (100 if name in PERCENT else 1)) for record in records if name in record]
    return [hours for hours, _ in points], [value for _, value in points]


def plot(runs: dict[str, list[Record]], path: Path) -> None:
    """Panels of whatever the runs have logged → a PNG."""
    from matplotlib.figure import Figure

    logged = {name for records in runs.values() for record in records for name in record}
    panels = [(title, [name for name in names if name in logged]) for title, names in PANELS if logged & set(names)]
    if not panels:
        raise ConfigError(f"{', '.join(runs)}: none of the figures that are drawn is in the log; it has {', '.join(sorted(logged))}")
    rows = (len(panels) + 1) // 2
    amount, speed = next((record["units"] for records in runs.values() for record in records if "units" in record), UNITS)
    figure = Figure(figsize=(11, 3.2 * rows), layout="constrained")
    axes = list(figure.subplots(rows, 2, squeeze=False, sharex=True).flat)
    for axis, (title, names) in zip(axes, panels, strict=False):
        for run, records in runs.items():
            for name in names:
                hours, values = curve(records, name)
                label = name if len(runs) == 1 else f"{run}: {name}"
                axis.plot(hours, values, label=label, marker="o" if name.startswith(("dev_", "held_")) else None, markersize=3, linewidth=1)
        axis.set(title=f"{title}, {speed}" if title == "speed" else title, xlabel=amount)
        axis.tick_params(labelbottom=True)
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    for axis in axes[len(panels) :]:
        axis.remove()
    figure.savefig(path, dpi=120)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("--out", type=Path, default=Path("curve.png"))
    given = parser.parse_args(arguments)
    plot({folder.name: read_log(folder) for folder in given.runs}, given.out)
    print(given.out)


if __name__ == "__main__":
    as_command(main)
