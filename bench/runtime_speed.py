"""ONNX Runtime beside torch on one stream: size and time of the same random weights, as ratios in one run.

    python bench/runtime_speed.py --threads 2

The stream is a segment as a session has it: a prompt, then 16 blocks of 640 ms; after each block a fork of the committed words, the
draft and a few further tokens, taken back at the end. The runtimes take turns, so what else the machine does hits all alike.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import onnxruntime
import torch
from dragoman.model.backend import Backend
from dragoman.model.checkpoint import Model, build_model
from dragoman.model.export import write_graphs
from dragoman.model.onnx_backend import OnnxBackend
from dragoman.model.onnx_writer import Precision
from dragoman.model.torch_backend import TorchBackend
from dragoman.model.training.package import config_of
from dragoman.model.training.run import SizeOptions

BLOCKS, BLOCK_FRAMES = 16, 16  # 10.24 s
TOKENS_PER_BLOCK, DRAFT_TOKENS, FURTHER_TOKENS = 2, 6, 3
SECONDS = BLOCKS * BLOCK_FRAMES * 0.04


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--vocab-size", type=int, default=768, help="as in configs/train_small.yaml")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model = random_model(given.vocab_size)
    with tempfile.TemporaryDirectory() as temporary:
        backends: dict[str, Backend] = {"torch fp32": TorchBackend(model)}
        sizes_mb = {"torch fp32": 4e-6 * sum(weight.numel() for weight in parameters(model))}
        for precision in get_args(Precision):
            folder = Path(temporary) / precision
            folder.mkdir()
            write_graphs(folder, model, None, precision)
            backends[f"onnx {precision}"] = OnnxBackend(folder, model.config, threads=given.threads)
            sizes_mb[f"onnx {precision}"] = 1e-6 * sum(path.stat().st_size for path in folder.iterdir())
        report(backends, sizes_mb, given.threads, given.rounds)


def random_model(vocab_size: int) -> Model:
    """The small model's sizes; speed does not depend on what it has learned."""
    torch.manual_seed(0)
    model = build_model(config_of({**SizeOptions().backbone(), "vocab_size": vocab_size}), device="cpu")
    for weight in parameters(model):
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, 0, weight.shape[-1] ** -0.5)
    return model


def parameters(model: Model) -> list[torch.Tensor]:
    return [weight for module in (model.backbone, model.projector) for weight in module.parameters()]


def report(backends: dict[str, Backend], sizes_mb: dict[str, float], threads: int, rounds: int) -> None:
    figures = {"segment": segment, "block of 16 frames": block, "one token": token}
    times_s: dict[str, dict[str, list[float]]] = {figure: {name: [] for name in backends} for figure in figures}
    for _ in range(rounds):
        for figure, work in figures.items():
            for name, backend in backends.items():
                times_s[figure][name].append(work(backend))
    print(
        f"{platform.processor() or platform.machine()}, {threads} threads, torch {torch.__version__}, onnxruntime {onnxruntime.__version__}"
    )
    print(f"{'':14}{'MB':>7}" + "".join(f"{figure + ', ms':>26}" for figure in figures) + f"{'s / audio s':>18}")
    for name in backends:
        cells = [f"{sizes_mb[name]:7.1f}"]
        for figure in figures:
            best, base = statistics.median(times_s[figure][name]), statistics.median(times_s[figure]["torch fp32"])
            cells.append(f"{1000 * best:16.2f} ({base / best:5.2f}x)")
        print(f"{name:14}" + " ".join(cells) + f"{statistics.median(times_s['segment'][name]) / SECONDS:17.4f}")


def timed(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def segment(backend: Backend) -> float:
    """10.24 s of audio, heard and decoded."""
    rng = np.random.default_rng(0)
    frames = (0.1 * rng.standard_normal((BLOCK_FRAMES, backend.spec.frame_samples))).astype(np.float32)

    def work() -> None:
        cache = backend.new_cache()
        backend.step([(cache, np.array([2, 3]))], wanted=[1])
        for done in range(1, BLOCKS + 1):
            backend.listen([(cache, frames)])
            mark = cache.length
            backend.step([(cache, rng.integers(100, 500, TOKENS_PER_BLOCK * done + DRAFT_TOKENS))], wanted=[1 + DRAFT_TOKENS])
            for _ in range(FURTHER_TOKENS):
                backend.step([(cache, rng.integers(100, 500, 1))], wanted=[1])
            cache.truncate(mark)

    return timed(work)


def block(backend: Backend) -> float:
    return _in_the_middle(backend, lambda cache, frames, _: backend.listen([(cache, frames[:BLOCK_FRAMES])]))


def token(backend: Backend) -> float:
    return _in_the_middle(backend, lambda cache, _, ids: backend.step([(cache, ids)], wanted=[1]))


def _in_the_middle(backend: Backend, work: Callable[..., object], repeats: int = 10) -> float:
    """Seconds for one call after 8 s of audio."""
    frames = (0.1 * np.random.default_rng(1).standard_normal((200, backend.spec.frame_samples))).astype(np.float32)
    cache, ids = backend.new_cache(), np.array([7])
    backend.listen([(cache, frames)])
    mark = cache.length

    def many() -> None:
        for _ in range(repeats):
            work(cache, frames, ids)
            cache.truncate(mark)

    return timed(many) / repeats


if __name__ == "__main__":
    main()
