"""Milliseconds of one forward, for several model folders in one run: a block of audio, one token, and a hypothesis of several.

    python bench/step_costs.py small v3=/path/to/another/folder --threads 1

Each figure is the median of many forwards after so much audio as a segment holds on average; folders take turns, so that what else the
machine does falls on all of them. The first folder is the baseline of the ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
from dragoman.model.backend import Backend, Cache
from dragoman.model.load import load

HEARD_FRAMES = 150  # 6 s
FRAMES, TOKENS = (8, 16), (1, 4, 16)
ROUNDS = 40


def forwards(backend: Backend) -> dict[str, Callable[[], None]]:
    """What is measured by name; each leaves the cache as it was."""
    rng, config = np.random.default_rng(0), backend.spec.config
    cache = backend.new_cache()
    backend.step([(cache, np.array([config.special.bos, config.special.begin_of_audio]))], wanted=[1])
    heard = (0.1 * rng.standard_normal((HEARD_FRAMES, config.audio.frame_samples))).astype(np.float32)
    backend.listen([(cache, heard)])
    low = max(config.special.stop) + 1
    made: dict[str, Callable[[], None]] = {}
    for n in FRAMES:
        made[f"{n} frames"] = taken_back(cache, lambda n=n: backend.listen([(cache, heard[:n])]))
    for n in TOKENS:
        ids = rng.integers(low + 100, config.backbone.vocab_size, n)
        made[f"{n} tokens"] = taken_back(cache, lambda ids=ids, n=n: backend.step([(cache, ids)], wanted=[n]))
    return made


def taken_back(cache: Cache, run: Callable[[], object]) -> Callable[[], None]:
    def turn() -> None:
        length = cache.length
        run()
        cache.truncate(length)

    return turn


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="[NAME=]MODEL", help="model folders, or small; the first one is the baseline")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runtime", choices=("auto", "onnx", "torch"), default="auto")
    given = parser.parse_args(arguments)
    named = [(name or model, model) for name, _, model in (text.rpartition("=") for text in given.models)]
    runs = {name: forwards(load(model, runtime=given.runtime, threads=given.threads).backend) for name, model in named}
    took: dict[tuple[str, str], list[float]] = {}
    for _ in range(ROUNDS):
        for name, made in runs.items():
            for what, run in made.items():
                begin = time.perf_counter()
                run()
                took.setdefault((name, what), []).append(1000 * (time.perf_counter() - begin))
    first = named[0][0]
    for what in runs[first]:
        base = statistics.median(took[first, what])
        for name in runs:
            median = statistics.median(took[name, what])
            print(f"{what:>10}  {name:<20} {median:7.2f} ms  {median / base:5.2f}x")


if __name__ == "__main__":
    main()
