"""The bench's report as a table for people. Reads the mapping that becomes ``bench.json``, so that both say the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

Row = tuple[str, Callable[[Mapping[str, Any]], str]]


def _number(value: float | None, unit: str = "", digits: int = 0) -> str:
    return "–" if value is None else f"{value:,.{digits}f}{unit}"


def _delay(name: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda block: f"{_number(block[name]['p50_ms'])} / {_number(block[name]['p95_ms'])} ms"


def _count(name: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda block: f"{block[name]['count']} of {block[name]['asked']}"


def _drafts(block: Mapping[str, Any]) -> str:
    """Tokens, for each task and source."""
    return ", ".join(f"{d['task']} {d['source']} {d['accepted_tokens']:,}/{d['offered_tokens']:,}" for d in block["drafts"]) or "–"


ROWS: tuple[Row, ...] = (
    ("WER, streaming", lambda block: _number(100 * block["wer"], " %", 1)),
    ("commit lag, p50 / p95", _delay("commit_lag")),
    ("  if work took no time", _delay("commit_lag_unaware")),
    ("  words measured", _count("commit_lag")),
    ("first partial, p50 / p95", _delay("first_partial")),
    ("  utterances measured", _count("first_partial")),
    ("end of speech to final, p50 / p95", _delay("final_delay")),
    ("  utterances measured", _count("final_delay")),
    ("end noticed to final, p50 / p95", _delay("final_work")),
    ("normalised erasure", lambda block: _number(block["normalised_erasure"], "", 3)),
    ("drafts confirmed", _drafts),
    ("CPU s for an audio second", lambda block: _number(block["cpu_s_per_audio_s"], "", 3)),
    ("real-time factor (wall clock)", lambda block: _number(block["compute_s_per_audio_s"], "", 3)),
    ("most that work was behind", lambda block: _number(block["most_behind_ms"], " ms")),
    ("peak memory", lambda block: _number(block["peak_memory_mb"], " MB")),
)


def tables(report: Mapping[str, Any], out: TextIO) -> None:
    """The figures by block size; below them, if measured, the minutes of the long stream; and what they hold for."""
    from rich.console import Console
    from rich.table import Table

    console = Console(file=out, width=None if out.isatty() else 120, highlight=False)
    settings, machine, blocks = report["settings"], report["machine"], report["blocks"]
    table = Table()
    table.add_column("block", no_wrap=True)
    for block in blocks:
        table.add_column(f"{block['block_ms']} ms", justify="right")
    offline = _number(100 * report["offline"]["wer"], " %", 1)
    table.add_row("WER, offline (whole clips)", *[offline] * len(blocks))
    for name, shown in ROWS:
        table.add_row(name, *(shown(block) for block in blocks))
    console.print(table)
    if report["long"] is not None:
        flat = report["long"]["flat"]
        ratios = f"CPU {_number(flat['cpu_s'], '', 2)}, memory {_number(flat['memory_mb'], '', 2)}"
        console.print(f"one stream, block {report['long']['block_ms']} ms; the last minute over the second: {ratios}")
        console.print(_minutes(report["long"]["minutes"]))
    words = blocks[0]["word_ends_from"]
    asked = f"{settings['threads']} thread(s)" if settings["threads"] else "threads as the runtime decides"
    console.print(
        f"{machine['cpu']}, {machine['cores']} cores, {asked}, load before {machine['load_before']}; {settings['model']} "
        f"({settings['runtime']}); {settings['clip_count']} clips in {settings['talk_count']} talk(s), {blocks[0]['audio_s']:.0f} s; "
        f"ends of words from {words}"
    )


def _minutes(minutes: Sequence[Mapping[str, Any]]) -> Any:
    from rich.table import Table

    table = Table()
    for name in ("minute", "CPU s", "memory MB", "most behind ms"):
        table.add_column(name, justify="right")
    step = max(1, len(minutes) // 12)  # an hour must fit on a screen; all of it is in bench.json
    for minute in [m for m in minutes if m["number"] <= 2 or m["number"] % step == 0 or m is minutes[-1]]:
        cells = (minute["cpu_s"], minute["memory_mb"], minute["behind_ms"])
        table.add_row(str(minute["number"]), *(_number(value, "", 1) for value in cells))
    return table
