"""The work behind ``dragoman bench``: figures of this machine as a table, JSON and a picture. docs/bench.md defines them."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from math import inf
from pathlib import Path
from typing import Any

from ..stream import ConfigError, Loaded, Options
from ..stream.bench import Bench, BlockFigures, Minute, offline_errors, whole_minutes
from ..stream.config import SessionOptions
from ..stream.simulate import PIECE_MS
from ..stream.talk import WANTED, Clip, Talk, make_talks, read_clips
from .bench_tables import tables
from .transcribe import progress_bar

NEEDED = ("jiwer", "whisper_normalizer", "matplotlib", "psutil")
NO_CLIPS = (
    f"no CLIPS are given, and none come with the package: {WANTED}. To see it run: dragoman bench tests/clips, in a checkout of the "
    "source. For figures that mean something: recordings of your own with what is said in them, or LibriSpeech's dev-clean (337 MB, "
    "https://www.openslr.org/12) with each line of its .trans.txt files in a .txt of its own, as docs/bench.md shows"
)
METHOD = (
    f"simulated real time: pieces of {PIECE_MS} ms arrive by the clock of the audio; work on a piece begins when it has arrived and the "
    "work before is done, and takes what it took on this machine; one session at a time, nothing saved when late; warm-up not counted"
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What the command line asked for. ``clips``: None, nothing was named. ``settings``: one for each block size."""

    clips: Path | None
    settings: tuple[SessionOptions, ...]
    split: str | None = None
    talk_s: float = 120.0
    limit: int | None = None
    seed: int = 0
    long_minutes: int | None = None
    out: Path | None = None


def check(plan: Plan, options: Options) -> list[Clip]:
    """The clips to be measured. Raises ConfigError for what could not be, before a model is loaded."""
    if plan.clips is None:
        raise ConfigError(NO_CLIPS)
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ConfigError(f'the bench needs more packages ({", ".join(missing)}): pip install "dragoman[bench]"')
    if options.session.language != "en":
        raise ConfigError(f"session.language is {options.session.language!r}, expected 'en': the bench scores with an English normaliser")
    numbers = (("--talk-seconds", plan.talk_s, 1), ("--limit", plan.limit, 1), ("--seed", plan.seed, 0), ("--long", plan.long_minutes, 3))
    for name, value, least in numbers:
        if value is not None and not least <= value < inf:
            raise ConfigError(f"{name} is {value:g}, expected at least {least}")
    if plan.out is not None:
        try:
            plan.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--out {plan.out}: {error.strerror or error}") from error
        if not os.access(plan.out, os.W_OK):
            raise ConfigError(f"--out {plan.out}: may not be written to")
    return read_clips(plan.clips, plan.split)[: plan.limit]


def run_bench(plan: Plan, clips: Sequence[Clip], loaded: Loaded, options: Options) -> int:
    """Measure, show the table, write ``--out``. Returns 0. Raises AudioFormatError for a clip that cannot be read."""
    report = measure(plan, clips, Bench(loaded), loaded, options)
    tables(report, sys.stdout)
    if plan.out is not None:
        write(report, plan.out)
    return 0


def measure(plan: Plan, clips: Sequence[Clip], bench: Bench, loaded: Loaded, options: Options) -> dict[str, Any]:
    """Everything as one JSON-ready mapping."""
    machine = describe_machine()  # before the work, which would show in the load
    bench.warm_up(next(make_talks(clips[:1], plan.talk_s, seed=plan.seed)), plan.settings[0])
    talks: list[tuple[Clip, ...]] = []

    def made() -> Iterator[Talk]:
        for talk in make_talks(clips, plan.talk_s, seed=plan.seed):
            talks.append(tuple(utterance.clip for utterance in talk.utterances))
            yield talk

    audio_s = sum(clip.duration_s for clip in clips)
    with progress_bar("streaming", audio_s * len(plan.settings), wanted=True) as advance:
        figures = bench.streaming(made(), plan.settings, advance)
    with progress_bar("offline", audio_s, wanted=True) as advance:
        texts = bench.offline(clips, advance)
    minutes: list[Minute] = []
    if plan.long_minutes is not None:
        with progress_bar("long stream", 60.0 * plan.long_minutes, wanted=True) as advance:
            minutes = bench.minutes(whole_minutes(clips, seed=plan.seed), plan.long_minutes, options.session, advance)
    offline = offline_errors(talks, texts)
    return {
        "dragoman": _version(),
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine,
        "method": METHOD,
        "settings": _settings(plan, clips, talks, loaded, options),
        "offline": {"wer": round(offline.rate, 4), **asdict(offline)},
        "blocks": [block_report(block) for block in figures],
        "long": _long(minutes, options.session.block_ms),
        "texts": _texts(talks, texts, figures),
    }


def write(report: dict[str, Any], folder: Path) -> None:
    """``bench.json``, ``bench.txt``, ``bench.png``."""
    from .bench_plot import plot

    (folder / "bench.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    with (folder / "bench.txt").open("w", encoding="utf-8") as out:
        tables(report, out)
    plot(report, folder / "bench.png")


def describe_machine() -> dict[str, Any]:
    """What the figures depend on, and nothing that tells whose machine it is."""
    import psutil

    tools: Any = psutil  # the library has no types
    return {
        "cpu": _cpu_name(),
        "cores": tools.cpu_count(logical=False),
        "threads": tools.cpu_count(),
        "memory_mb": round(tools.virtual_memory().total / 2**20),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load_before": round(tools.getloadavg()[0], 2),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _settings(plan: Plan, clips: Sequence[Clip], talks: Sequence[Sequence[Clip]], loaded: Loaded, options: Options) -> dict[str, Any]:
    return {
        "model": loaded.backend.spec.name,
        "runtime": type(loaded.backend).__name__,
        "threads": options.model.threads,
        "dtype": options.model.dtype,
        "clips": plan.clips.name if plan.clips else None,
        "split": plan.split,
        "clip_count": len(clips),
        "talk_count": len(talks),
        "talk_s": plan.talk_s,
        "seed": plan.seed,
        "piece_ms": PIECE_MS,
        "session": options.session.model_dump(mode="json", exclude={"block_ms"}),
    }


def block_report(block: BlockFigures) -> dict[str, Any]:
    """The figures of one block size, JSON-ready."""
    erasure, errors = block.erasure, block.errors
    return {
        "block_ms": block.block_ms,
        "wer": round(errors.rate, 4),
        **asdict(errors),
        "commit_lag": asdict(block.commit_lag),
        "commit_lag_unaware": asdict(block.commit_lag_unaware),
        "word_ends_from": "reference alignment" if block.by_alignment else "the session's own word times (estimates)",
        "first_partial": asdict(block.first_partial),
        "final_delay": asdict(block.final_delay),
        "final_work": asdict(block.final_work),
        "normalised_erasure": None if erasure.normalised is None else round(erasure.normalised, 4),
        "erased_words": erasure.erased,
        "final_words": erasure.final,
        "drafts": [asdict(drafts) for drafts in block.drafts],
        "audio_s": round(block.audio_s, 2),
        "cpu_s_per_audio_s": round(block.cpu_s / block.audio_s, 4),
        "compute_s_per_audio_s": round(block.compute_s / block.audio_s, 4),
        "most_behind_ms": round(block.behind_ms, 1),
        "peak_memory_mb": round(block.peak_memory_mb, 1),
    }


def _long(minutes: Sequence[Minute], block_ms: int) -> dict[str, Any] | None:
    """``flat``: the last minute over the second; the first one fills caches."""
    if not minutes:
        return None
    second, last = minutes[1], minutes[-1]
    return {
        "block_ms": block_ms,
        "flat": {"cpu_s": _ratio(last.cpu_s, second.cpu_s), "memory_mb": _ratio(last.memory_mb, second.memory_mb)},
        "minutes": [{name: round(value, 3) for name, value in asdict(minute).items()} for minute in minutes],
    }


def _ratio(one: float, other: float) -> float | None:
    return round(one / other, 3) if other else None


def _texts(talks: Sequence[Sequence[Clip]], texts: Sequence[str], figures: Sequence[BlockFigures]) -> list[dict[str, Any]]:
    rest = iter(texts)
    return [
        {
            "clips": [{"name": clip.name, "reference": clip.text, "offline": next(rest)} for clip in clips],
            "streaming": {block.block_ms: block.texts[place] for block in figures},
        }
        for place, clips in enumerate(talks)
    ]


def _version() -> str | None:
    try:
        return version("dragoman")
    except PackageNotFoundError:
        return None
