"""The bench's report as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def plot(report: Mapping[str, Any], path: Path) -> None:
    """Word errors, delays, flicker and cost by block size (or for each ``name``), and the long stream if there was one, into a PNG."""
    draw(report).savefig(path, dpi=120)


def draw(report: Mapping[str, Any]) -> Any:
    """The same as a figure of matplotlib."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    blocks, long = report["blocks"], report["long"]
    names = [block.get("name") or f"{block['block_ms']} ms" for block in blocks]
    figure: Any = Figure(figsize=(10, 11 if long else 7.5), layout="constrained")  # the library's types are partly unknown
    axes = list(figure.subplots(3 if long else 2, 2).flat)
    _bars(axes[0], names, [100 * block["wer"] for block in blocks], "word error rate, %")
    if "offline" in report:
        offline = 100 * report["offline"]["wer"]
        axes[0].axhline(offline, color="black", linestyle="--", label=f"offline: {offline:.3g}")
        _legend(axes[0])
    _delays(axes[1], names, blocks)
    _bars(axes[2], names, [_known(block["normalised_erasure"]) for block in blocks], "normalised erasure (words taken back / final words)")
    _bars(axes[3], names, [block["cpu_s_per_audio_s"] for block in blocks], "CPU seconds for an audio second")
    if long:
        for axis, key, title in ((axes[4], "cpu_s", "CPU s for each minute"), (axes[5], "memory_mb", "memory, MB")):
            axis.plot([minute["number"] for minute in long["minutes"]], [minute[key] for minute in long["minutes"]], marker=".")
            axis.set(title=f"{title}, block {long['block_ms']} ms", xlabel="minute of one stream", ylim=(0, None))
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    settings, machine = report["settings"], report["machine"]
    figure.suptitle(
        f"dragoman bench: {settings['model']}, {settings['runtime']}, {machine['cpu']}, threads {settings['threads'] or 'auto'}"
    )
    return figure


def _bars(axis: Any, names: Sequence[str], values: Sequence[float], title: str) -> None:
    """The numbers stand on paper of their own: a line may run at their height."""
    paper = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
    axis.bar_label(axis.bar(names, values, color="tab:blue", width=0.5), fmt="%.3g", padding=3, bbox=paper, zorder=3)
    axis.margins(y=0.15)
    axis.set(title=title)


def _known(value: float | None) -> float:
    """What could not be measured has no bar."""
    return float("nan") if value is None else value


def _delays(axis: Any, names: Sequence[str], blocks: Sequence[Mapping[str, Any]]) -> None:
    """For each figure a bar up to the median and a line from there up to the 95th percentile."""
    kinds = (("commit_lag", "commit lag"), ("first_partial", "first partial"), ("final_delay", "speech end → final"))
    for place, (key, label) in enumerate(kinds):
        at = [i + 0.25 * (place - 1) for i in range(len(blocks))]
        p50 = [_known(block[key]["p50_ms"]) for block in blocks]
        p95 = [_known(block[key]["p95_ms"]) for block in blocks]
        axis.bar(at, p50, width=0.22, label=label)
        axis.vlines(at, p50, p95, color="black")
    axis.set_xticks(range(len(names)), names)
    axis.set(title="delays, ms: p50 and, above it, p95")
    _legend(axis, lines=1 + max(name.count("\n") for name in names))


def _legend(axis: Any, lines: int = 1) -> None:
    """Below the axis and so many lines of names, where it covers nothing."""
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.02 - 0.06 * lines), ncols=3, frameon=False, borderaxespad=0.2)
