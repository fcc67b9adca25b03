"""The training loop: resumable to the exact step, checkpoints by rename, averaged weights, a log that can be drawn."""

from __future__ import annotations

import copy
import json
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader

from ..errors import BackendError
from .batches import Batches
from .optim import Muon, split_parameters
from .rows import IGNORE, Batch
from .student import LossWeights, Student

FEEDER_OUTLIVES_S = 60  # a signal to end: a step and a checkpoint take less
MOST_SKIPPED = 10  # batches in a row


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """When and how fast. ``decay_from`` may be moved while a run is stopped: until then the rate is constant."""

    steps: int = 20_000
    muon_lr: float = 0.02
    adam_lr: float = 2e-3
    weight_decay: float = 0.05
    warmup_steps: int = 100
    mel_steps: int = 500  # front-end warm start: log-mel alone
    hearing_steps: int = 1500  # until then features and characters too, but no words: their gradient is the larger one
    join_step: int = 2000  # until then the text losses stop at the features: see LossWeights.apart
    decay_from: int = 18_000
    average: float = 0.998  # decay of the averaged weights
    checkpoint_s: float = 600.0
    evaluate_every: int = 500
    log_every: int = 20
    accumulate: int = 1  # batches for each step of the optimisers
    seed: int = 1
    threads: int = 2
    dropout: float = 0.0  # share left out of what the layers above the features add; what is left is chance of (seed, step)
    sampled: float = 0.0  # share of batches in which some words are given as the model itself would say them (Student.sample)
    sampled_words: float = 0.3  # share of their words
    compile: bool = True  # needs a C++ compiler; without one a step takes about 1.6 times as long
    weights: LossWeights = field(default_factory=LossWeights)


def shared_options(given: Any) -> TrainOptions:
    """What the options of another kind of run, a data class, have in common with these."""
    return TrainOptions(**{name: value for name, value in asdict(given).items() if name in TrainOptions.__dataclass_fields__})


def save_whole(value: Any, path: Path) -> None:
    """``torch.save`` by rename: a kill at any moment leaves a whole file."""
    part = path.with_name(f"{path.name}.part")
    torch.save(value, part)
    os.replace(part, path)


class Trainer:
    units = "h heard", "x"  # of what ``hours_heard`` counts, and of speed

    def __init__(self, student: Student, batches: Batches, folder: Path, options: TrainOptions) -> None:
        self.student, self.batches, self.folder, self.options = student, batches, folder, options
        matrices, rest = split_parameters(student)
        self.muon = Muon(matrices, lr=options.muon_lr, weight_decay=options.weight_decay)
        self.adam = torch.optim.AdamW(rest, lr=options.adam_lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
        self.averaged = copy.deepcopy(student.state_dict())
        self.step, self.hours_heard, self.seconds_run = 0, 0.0, 0.0
        self.skipped_in_a_row = 0
        self.stop_asked = False
        folder.mkdir(parents=True, exist_ok=True)

    # -- state -----------------------------------------------------------------------------------
    def save(self) -> None:
        """Write ``checkpoint.pt``."""
        state = {
            "student": self.student.state_dict(),
            "averaged": self.averaged,
            "muon": self.muon.state_dict(),
            "adam": self.adam.state_dict(),
            "step": self.step,
            "hours_heard": self.hours_heard,
            "seconds_run": self.seconds_run,
        }
        save_whole(state, self.folder / "checkpoint.pt")

    def resume(self) -> bool:
        """Load the last checkpoint if there is one."""
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return False
        state = torch.load(path, weights_only=True)
        self.student.load_state_dict(state["student"])
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
        self.averaged = state["averaged"]
        self.step, self.hours_heard, self.seconds_run = state["step"], state["hours_heard"], state["seconds_run"]
        return True

    def log(self, record: dict[str, Any]) -> None:
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps({"step": self.step, "hours": round(self.hours_heard, 3), **record}) + "\n")

    # -- loop ------------------------------------------------------------------------------------
    def rate(self) -> float:
        """Share of the full learning rate at the current step: warm-up, constant, then linear to 2 %."""
        o = self.options
        rise = min(1.0, (self.step + 1) / o.warmup_steps)
        if self.step < o.decay_from:
            return rise
        return max(0.02, 1.0 - (self.step - o.decay_from) / max(1, o.steps - o.decay_from))

    def _set_rates(self, *more: float) -> None:
        """Of every group of parameters; ``more``: full rates of the groups that AdamW has beside its first."""
        o, share = self.options, self.rate()
        for optimiser, full in ((self.muon, [o.muon_lr]), (self.adam, [o.adam_lr, *more])):
            for group, lr in zip(optimiser.param_groups, full, strict=True):
                group["lr"] = lr * share

    def train(self, evaluate: Callable[[Trainer], dict[str, Any]] | None = None) -> None:
        """Run to ``options.steps``; SIGTERM and SIGINT save and return."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask_stop)
        torch.set_num_threads(self.options.threads)
        console, saved = Console(), time.monotonic()
        recent: list[dict[str, float]] = []
        loader = DataLoader(
            self.batches,
            batch_size=None,
            sampler=range(self.step, self.options.steps),
            num_workers=1,
            prefetch_factor=4,
            worker_init_fn=_stand_back,
        )
        for batch in self._saved_from(loader):
            begin = time.monotonic()
            recent.append(self.update(batch))
            self.seconds_run += time.monotonic() - begin
            if self.step % self.options.log_every == 0:
                self._report(recent, console)
                recent = []
            if evaluate is not None and self.step % self.options.evaluate_every == 0:
                self.student.eval()
                self.log(evaluate(self))
                self.student.train()
            if self.step % self.options.accumulate:
                continue  # half of a step of the optimisers could not be resumed
            if time.monotonic() - saved > self.options.checkpoint_s:
                self.save()
                saved = time.monotonic()
            if self.stop_asked:
                break
        self.save()

    def _saved_from(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """The loader's batches. What has been learnt is saved before an error of the feeder ends the run."""
        try:
            yield from loader
        except Exception:
            self.save()
            raise

    def update(self, batch: Batch) -> dict[str, float]:
        """One step of both optimisers. A batch whose gradient is not finite is skipped and counted."""
        begin = time.monotonic()
        o = self.options
        weights = o.weights
        if self.step < o.mel_steps:
            weights = LossWeights(mel=1.0, features=0.0, characters=0.0, words=0.0)
        elif self.step < o.hearing_steps:
            weights = replace(weights, words=0.0, pointer=0.0)
        elif self.step < o.join_step:
            weights = replace(weights, apart=True)
        self._set_rates()
        torch.manual_seed(o.seed * 1_000_003 + self.step)  # a resumed run drops what it would have dropped
        if o.sampled and weights.words and bool((batch.labels != IGNORE).any()) and float(torch.rand(())) < o.sampled:
            batch = self.student.sample(batch, o.sampled_words)
        loss, figures = self.student(batch, weights)
        loss.backward()
        self.step += 1
        if self.step % o.accumulate == 0:
            figures |= self._optimise()
        self.hours_heard += batch.audio_seconds / 3600
        took = time.monotonic() - begin
        return figures | {"speed": batch.audio_seconds / took}

    def _optimise(self) -> dict[str, float]:
        """Raises BackendError where no gradient is finite any more."""
        norm = nn.utils.clip_grad_norm_(self.student.parameters(), 2.0 * self.options.accumulate)
        finite = bool(torch.isfinite(norm))
        self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1
        if self.skipped_in_a_row >= MOST_SKIPPED:
            raise BackendError(
                f"the gradient of {MOST_SKIPPED} batches in a row was not finite, so nothing is learnt. Where the losses are finite, "
                "code that was compiled for this CPU is wrong: train.compile: false does without"
            )
        if finite:
            self.muon.step()
            self.adam.step()
        self.student.zero_grad(set_to_none=True)
        self._average()
        return {"norm": float(norm) / self.options.accumulate, "skipped": float(not finite)}

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.options.average, self.step / (self.step + 9))
        for name, p in self.student.state_dict().items():
            self.averaged[name].lerp_(p, 1 - decay)

    def _report(self, recent: list[dict[str, float]], console: Console) -> None:
        names = dict.fromkeys(name for record in recent for name in record)
        means = {name: sum(r[name] for r in recent if name in r) / sum(name in r for r in recent) for name in names}
        means["skipped"] = sum(r.get("skipped", 0.0) for r in recent)
        self.log({name: round(value, 4) for name, value in means.items()})
        shown = " ".join(f"{name} {value:.3f}" for name, value in means.items() if name not in {"skipped", "speed"})
        left_h = (self.options.steps - self.step) * self.seconds_run / max(self.step, 1) / 3600
        console.print(
            f"step {self.step}  {self.hours_heard:.2f} {self.units[0]}  {shown}  {means['speed']:.0f}{self.units[1]}  {left_h:.1f} h left",
            highlight=False,
        )

    def _ask_stop(self, number: int, frame: Any) -> None:
        self.stop_asked = True


def _stand_back(worker: int) -> None:
    """For a feeder. Two threads that compute in step both wait while it takes a core from one of them, so it takes what they leave.

    If it died of the loop's signals, the loop would go down before it can save. It has a group of its own, which Ctrl-C does not
    reach, and what ends all processes of a run at once (``pkill -f``, a shutdown) ends it a minute later, if the loop has not.
    """
    if hasattr(os, "nice"):
        os.nice(19)
        os.setpgrp()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end_later if hasattr(signal, "alarm") else signal.SIG_DFL)


def _end_later(number: int, frame: Any) -> None:
    signal.alarm(FEEDER_OUTLIVES_S)
