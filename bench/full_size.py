"""Gemma 4 12B at full size on this machine: a block of 8 frames and one decoded token, beside reading the same bytes from memory.

    pip install ".[export,bench]"
    python bench/full_size.py --layers 2                           # int4 on ONNX Runtime: one layer of each kind and the head
    python bench/full_size.py                                      # all 48 layers: 8 GB of disk while it runs, 11 GB of memory
    python bench/full_size.py --runtime torch --bits 8             # int8 in torch
    python bench/full_size.py --runtime torch --bits 16 --device cuda       # bfloat16 on a GPU of 32 GB
    python bench/full_size.py --model FOLDER --runtime onnx        # weights of your own, as ``dragoman export`` wrote them

Without ``--model`` the weights are random, and drawn as they are stored: whole numbers of so many bits and plausible scales, one layer at a
time. What they say is nonsense; how long it takes is not, since no kernel looks at values. Of fewer layers than the model has, the rest is
calculated: the layers' time in proportion to their bytes, and the head once.

The bandwidth is that of as many threads reading as many bytes as a token needs, between the forwards: what else a machine does then hits
both alike. The best of the rounds counts. Where other work never stops, one thread and the ratio by CPU time say more than the wall clock.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import roofline
from dragoman.clients.bench import describe_machine
from dragoman.model.config import ModelConfig, model_config_from_mapping
from dragoman.model.load import GRAPHS, load
from dragoman.stream.bench import resident_mb
from full_size_models import Sized, drawn_graphs, drawn_torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

READ_BYTES = 256_000_000  # of the array that is read, again and again: no cache holds it
FRAMES = 8
FULL = "full_attention"


@dataclass(frozen=True)
class Seconds:
    """Of the best call: on the wall, and of the CPU by all threads."""

    wall: float
    cpu: float

    def least(self, other: Seconds) -> Seconds:
        return Seconds(min(self.wall, other.wall), min(self.cpu, other.cpu))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model folder instead of random weights")
    parser.add_argument("--config", type=Path, default=roofline.CONFIG, help="config.json with the sizes of the random weights")
    parser.add_argument("--layers", type=int, help="only so many, at least one of each kind (default: all)")
    parser.add_argument("--runtime", choices=("onnx", "torch"), default="onnx")
    parser.add_argument("--bits", type=int, choices=(4, 8, 16), help="of a weight (default: 4 for onnx, 8 for torch)")
    parser.add_argument("--block-size", type=int, help="weights for each scale (default: as the export has it)")
    parser.add_argument("--accuracy-level", type=int, default=4, help="of MatMulNBits: 4 rounds activations to int8, 1 keeps fp32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="for torch, e.g. cuda")
    parser.add_argument("--context", type=int, default=roofline.CONTEXT, help="positions in the cache before")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scratch", type=Path, help="a folder for the random weights while it runs (default: the system's)")
    parser.add_argument("--out", type=Path, help="a JSON file")
    given = parser.parse_args()
    if fault := refused(given):
        parser.error(fault)
    console = Console(stderr=True)
    with ExitStack() as stack:
        progress = stack.enter_context(Progress(console=console))
        sized = opened(given, stack, progress)
        report = measured(sized, given, progress)
    Console(width=120).print(as_table(report))
    if given.out:
        given.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def refused(given: argparse.Namespace) -> str | None:
    """Fills in defaults; a sentence if what was asked for does not exist."""
    given.bits = given.bits or (4 if given.runtime == "onnx" else 8 if given.device == "cpu" else 16)
    if given.runtime == "onnx" and (given.bits == 16 or given.device != "cpu"):
        return "ONNX Runtime takes 4 or 8 bits on the CPU; for a GPU: --runtime torch --bits 16 --device cuda"
    if given.runtime == "torch" and given.bits == 4:
        return "torch takes 8 or 16 bits"
    if given.runtime == "torch" and given.bits == 8 and (given.device != "cpu" or given.model):
        return "torch takes 8 bits on the CPU and for random weights only; else --bits 16"
    if given.layers is not None and (given.layers < 2 or given.model):
        return "--layers is at least 2, and a model of your own has all its layers"
    return None


def some_layers(config: ModelConfig, count: int | None) -> ModelConfig:
    """The first ``count`` layers, the last of them a global one if there would be none. No images."""
    kinds = config.backbone.layer_types[:count]
    kinds = kinds if FULL in kinds else (*kinds[:-1], FULL)
    return replace(config, backbone=replace(config.backbone, layer_types=kinds), vision=None)


def opened(given: argparse.Namespace, stack: ExitStack, progress: Progress) -> Sized:
    if given.model:
        return of_folder(given)
    whole = model_config_from_mapping(json.loads(given.config.read_text(encoding="utf-8")))
    config = some_layers(whole, given.layers)
    advance = stepper(progress, f"drawing {given.bits}-bit weights", config.backbone.num_layers)
    if given.runtime == "torch":
        sized = drawn_torch(config, given.bits, given.device, given.threads, advance)
    else:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="full-size-", dir=given.scratch)))
        sized = drawn_graphs(config, folder, given.bits, given.block_size, given.accuracy_level, given.threads, advance)
    every = [roofline.layer_weights(whole.backbone, layer) for layer in range(whole.backbone.num_layers)]
    return replace(sized, scale=sum(every) / roofline.backbone_weights(config.backbone), whole=whole.backbone)


def of_folder(given: argparse.Namespace) -> Sized:
    dtype = "bfloat16" if given.runtime == "torch" else "float32"
    backend = load(given.model, runtime=given.runtime, device=given.device, dtype=dtype, threads=given.threads, progress=True).backend
    text = backend.spec.config.backbone
    if given.runtime == "torch":
        sizes = [2.0 * part for part in (roofline.backbone_weights(text), roofline.head_weights(text))]
    else:
        sizes = [float((given.model / GRAPHS / f"{part}.data").stat().st_size) for part in ("backbone", "head")]
    return Sized(backend, sizes[0], sizes[1], cache_bytes=2 if given.runtime == "torch" else 4, whole=text)


def stepper(progress: Progress, title: str, total: int) -> Callable[[], None]:
    task = progress.add_task(title, total=total)
    return lambda: progress.advance(task)


def filled_cache(backend: Any, positions: int) -> Any:
    """A cache that says it has heard so many positions, without the work: zeros take as long as anything else."""
    cache = backend.new_cache()
    for store in cache.stores.values():
        store.reserve(positions)
        store.ring.append(positions)
    return cache


def measured(sized: Sized, given: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    backend, text = sized.backend, sized.backend.spec.config.backbone
    cache = filled_cache(backend, given.context)
    frames = (0.1 * np.random.default_rng(0).standard_normal((FRAMES, backend.spec.frame_samples))).astype(np.float32)
    cache_gb = sized.cache_bytes * roofline.cache_values(text, given.context) / 1e9
    wait = waiting(given.device)
    read, read_gb = reader(given.device, given.threads, (sized.backbone_bytes + sized.head_bytes) / 1e9 + cache_gb)
    calls: dict[str, Callable[[], object]] = {
        "frame": lambda: backend.listen([(cache, frames[:1])]),
        "block": lambda: backend.listen([(cache, frames)]),
        "token": lambda: backend.step([(cache, np.array([7]))], wanted=[1]),
    }
    best: dict[str, Seconds] = {}
    advance = stepper(progress, "measuring", given.rounds + 1)
    for number in range(given.rounds + 1):  # the first is for warm-up
        for name, call in {"read": read, **calls}.items():
            took = timed(call, wait)
            cache.truncate(given.context)
            if number:
                best[name] = took.least(best.get(name, took))
        advance()
    return figures(sized, best, cache_gb, read_gb, given)


def timed(call: Callable[[], object], wait: Callable[[], object]) -> Seconds:
    wait()
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    wait()
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def waiting(device: str) -> Callable[[], object]:
    """Until a GPU has done what it was given."""
    if not device.startswith("cuda"):
        return lambda: None
    import torch

    return torch.cuda.synchronize


def reader(device: str, threads: int, gb: float) -> tuple[Callable[[], object], float]:
    """A call that reads about ``gb`` from memory and does nothing else (the largest number of an array), and how much exactly."""
    times = max(1, round(1e9 * gb / READ_BYTES))
    if device != "cpu":
        import torch

        numbers = torch.ones(READ_BYTES // 4, device=device)
        return lambda: [numbers.max() for _ in range(times)], times * READ_BYTES / 1e9
    parts = [np.ones(READ_BYTES // 4 // threads, np.float32) for _ in range(threads)]  # ones: pages of zeros are all the same page
    pool = ThreadPoolExecutor(threads)
    return lambda: list(pool.map(lambda part: [part.max() for _ in range(times)], parts)), times * READ_BYTES / 1e9


def figures(sized: Sized, best: dict[str, Seconds], cache_gb: float, read_gb: float, given: argparse.Namespace) -> dict[str, Any]:
    """Everything that is told, in plain numbers."""
    text = sized.backend.spec.config.backbone
    gb_s = read_gb / best["read"].wall
    gb = {"frame": sized.backbone_bytes / 1e9 + cache_gb, "token": (sized.backbone_bytes + sized.head_bytes) / 1e9 + cache_gb}
    gb["block"] = gb["frame"]
    head_s = max(0.0, best["token"].wall - best["frame"].wall)
    whole_s = {"block": best["block"].wall * sized.scale, "token": best["frame"].wall * sized.scale + head_s}
    whole_gb = {"block": gb["block"] * sized.scale, "token": gb["frame"] * sized.scale + sized.head_bytes / 1e9}
    gflop = {"block": roofline.forward(text, FRAMES, 0, context=given.context).gflop}
    share = best["read"].cpu / read_gb  # CPU seconds for reading a GB
    return {
        "machine": describe_machine(),
        "settings": {name: getattr(given, name) for name in ("runtime", "bits", "block_size", "accuracy_level", "threads", "device")}
        | {"layers": text.num_layers, "context": given.context, "rounds": given.rounds, "random_weights": given.model is None},
        "bandwidth_gb_s": gb_s,
        "bandwidth_gb_for_a_cpu_s": 1 / share,
        "gb": {"layers": sized.backbone_bytes / 1e9, "head": sized.head_bytes / 1e9, "cache": cache_gb},
        "best_s": {name: asdict(took) for name, took in best.items()},
        "over_reading": {name: best[name].wall * gb_s / gb[name] for name in ("frame", "token", "block")},
        "over_reading_cpu": {name: best[name].cpu / (share * gb[name]) for name in ("frame", "token", "block")},
        "resident_mb": resident_mb()(),
        "block_gflop_s": gflop["block"] / best["block"].wall,
        "whole": {
            "layers": sized.whole.num_layers if sized.whole else text.num_layers,
            "calculated": sized.scale != 1.0,
            "gb": whole_gb,
            "s": whole_s,
            "limit_s": {name: size / gb_s for name, size in whole_gb.items()},
            "over_reading": {name: whole_s[name] * gb_s / whole_gb[name] for name in whole_s},
        },
    }


def as_table(report: dict[str, Any]) -> Table:
    settings, whole, took = report["settings"], report["whole"], report["best_s"]
    title = (
        f"{settings['runtime']}, {settings['bits']} bits, {settings['layers']} layers, {settings['threads']} threads, {settings['device']}"
    )
    table = Table(title=f"{title}; memory is read at {report['bandwidth_gb_s']:.1f} GB/s")
    for column in ("", "measured", "CPU time", "over reading", "… by CPU time", f"{whole['layers']} layers", "reading them", "ratio"):
        table.add_column(column, justify="left" if not column else "right")
    for name, words in (("frame", "1 frame, no head"), ("block", f"block of {FRAMES} frames, no head"), ("token", "one token")):
        cells = [f"{1000 * took[name][kind]:.0f} ms" for kind in ("wall", "cpu")]
        cells += [f"{report[key][name]:.2f}x" for key in ("over_reading", "over_reading_cpu")]
        if name in whole["s"]:
            cells += [f"{1000 * whole[key][name]:.0f} ms" for key in ("s", "limit_s")] + [f"{whole['over_reading'][name]:.2f}x"]
        table.add_row(words, *cells)
    origin = "calculated from the layers" if whole["calculated"] else "run"
    table.caption = (
        f"{report['block_gflop_s']:.0f} GFLOP/s in a block; {report['resident_mb'] / 1000:.1f} GB resident; whole model {origin}"
    )
    return table


if __name__ == "__main__":
    main()
