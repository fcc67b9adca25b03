"""Other recognisers and ours on the same talks in the same run: the table of bench/peers/README.md.

    pip install ".[bench,peers]"
    python bench/peers/run.py STORE --split dev-clean --every 7 --out results      # peers.json, peers.md, peers.png

Each system runs in a process of its own, kept on one core, one talk after the other, in the simulated real time of ``dragoman bench``:
docs/bench.md says what the figures are. To add one, write a class with the two calls of ``peer.Peer`` and put its Entry below.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from alignment import aligned
from dragoman.clients.bench import block_report, describe_machine
from dragoman.clients.bench_plot import plot
from dragoman.clients.bench_tables import ROWS
from dragoman.stream import Session, load_model
from dragoman.stream.bench import Tally, resident_mb
from dragoman.stream.config import ModelOptions, SessionOptions
from dragoman.stream.simulate import Turn, in_pieces, simulate
from dragoman.stream.talk import Talk, make_talks, read_clips
from peer import Entry, PeerSession

PEERS = ("with_moonshine", "with_whisper", "with_pocketsphinx")  # modules with an ENTRY
BLOCKS_MS = (320, 640)  # ours
WARM_UP_SAMPLES = 5 * 16_000
CLOCKS: dict[str, Callable[[], float]] = {"cpu": time.process_time, "wall": time.perf_counter}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--split")
    parser.add_argument("--every", type=int, default=1, help="takes each n-th clip")
    parser.add_argument("--limit", type=int, default=40)
    parser.add_argument("--talk-seconds", type=float, default=60.0)
    parser.add_argument("--model", default="small", help="ours")
    parser.add_argument("--only", nargs="+", help="names of systems, or their beginnings")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="cpu", help="work takes CPU time (a machine that is shared) or time")
    parser.add_argument("--out", type=Path, default=Path("."))
    given = parser.parse_args()
    machine = describe_machine()
    clips = aligned(read_clips(given.clips, given.split)[:: given.every][: given.limit])
    talks = [without_audio_of_clips(talk) for talk in make_talks(clips, given.talk_seconds)]
    report: dict[str, Any] = {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine,
        "settings": {
            "model": "peers",
            "runtime": f"{len(clips)} clips, {sum(talk.duration_s for talk in talks):.0f} s",
            "threads": 1,
            **{name: value for name, value in vars(given).items() if name not in ("clips", "out", "only", "model")},
            "clips": [clip.name for clip in clips],
        },
        "blocks": [],
        "long": None,
    }
    for entry in entries(given.model):
        if given.only and not any(entry.name.startswith(name) for name in given.only):
            continue
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            report["blocks"].append(pool.submit(measure, entry.name, given.model, talks, given.clock).result())
        write(report, given.out)  # after each, so that a run that is broken off leaves what it has
        print(table(report), flush=True)


def write(report: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "peers.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "peers.md").write_text(table(report), encoding="utf-8")
    named = [
        block | {"name": fill(block["name"], 11, break_long_words=False, break_on_hyphens=False)} for block in report["blocks"]
    ]  # names side by side below the bars
    plot(report | {"blocks": named}, folder / "peers.png")


def entries(model: str) -> list[Entry]:
    """Ours, then the peers whose packages are there."""
    found = [
        Entry(f"dragoman {model}, {block_ms} ms", f"blocks of {block_ms} ms", ("dragoman", "onnxruntime"), list) for block_ms in BLOCKS_MS
    ]
    return found + [import_module(name).ENTRY for name in PEERS]


def measure(name: str, model: str, talks: Sequence[Talk], clock: str) -> dict[str, Any]:
    """One system on all talks, in this process."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    entry = next(entry for entry in entries(model) if entry.name == name)
    memory_mb = resident_mb()
    open_session = ours(name, model) if name.startswith("dragoman") else theirs(entry)
    for _ in simulate(open_session(), in_pieces(talks[0].samples[:WARM_UP_SAMPLES])):
        pass
    tally = Tally(0)
    for talk in talks:
        turns, peak_mb = list[Turn](), 0.0
        for turn in simulate(open_session(), in_pieces(talk.samples), clock=CLOCKS[clock]):
            turns.append(turn)
            peak_mb = max(peak_mb, memory_mb())
        tally.add(turns, talk, peak_mb)
    figures = tally.figures()
    report = block_report(figures) | {"name": name, "settings": entry.settings, "texts": list(figures.texts)}
    return report | {"versions": {package: version(package) for package in entry.packages}}


def ours(name: str, model: str) -> Callable[[], Any]:
    loaded = load_model(ModelOptions(name=model, threads=1))
    options = SessionOptions(block_ms=int(name.split()[-2]))
    return lambda: Session(loaded, options, encoding="float32")


def theirs(entry: Entry) -> Callable[[], Any]:
    open_peer = entry.load()
    return lambda: PeerSession(open_peer())


def without_audio_of_clips(talk: Talk) -> Talk:
    """A store behind every clip would be sent to each process whole."""
    return Talk(talk.samples, tuple(replace(each, clip=replace(each.clip, read=np.zeros)) for each in talk.utterances))


def table(report: dict[str, Any]) -> str:
    """For a README: a column for each system."""
    systems = report["blocks"]
    lines = ["| | " + " | ".join(system["name"] for system in systems) + " |", "|---|" + "---|" * len(systems)]
    for name, shown in ROWS:
        lines.append(f"| {name.strip()} | " + " | ".join(shown(system) for system in systems) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
