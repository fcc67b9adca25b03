"""What joins the hearing layers of the weights that ship and their grafted decoder stays as it is while all else is learnt."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("scipy")
pytest.importorskip("rapidfuzz")

import torch  # noqa: E402
from dragoman.model.checkpoint import load_model  # noqa: E402
from dragoman.model.load import ASSETS  # noqa: E402
from dragoman.model.training import run  # noqa: E402
from dragoman.model.training.batches import BatchOptions  # noqa: E402
from dragoman.model.training.held import free, hold  # noqa: E402
from dragoman.model.training.optim import Muon, split_parameters  # noqa: E402
from dragoman.model.training.precision import autocast  # noqa: E402
from dragoman.model.training.prepare import StoreOptions  # noqa: E402
from dragoman.model.training.rows import IGNORE  # noqa: E402
from dragoman.model.training.student import Depths, Student, answering  # noqa: E402
from dragoman.model.training.trainer import TrainOptions  # noqa: E402

from .test_roles import batch_of  # noqa: E402
from .training_fakes import make_store  # noqa: E402


def shipped() -> Student:
    model = load_model(ASSETS / "small")
    student = Student(model.config, Depths())
    student.take(model)
    return student.requires_grad_(True)


def learn(student: Student, steps: int) -> list[float]:
    """Muon's steps towards other words than the ones that are said; how far text's states are from what they were at first."""
    batch = batch_of([(30, [300, 301, 302, 303]), (25, [304, 305])], 48)
    last = answering(batch.labels)
    assert last is not None
    asked = batch.labels.gather(1, last) != IGNORE
    mats, rest = split_parameters(student)
    muon, adam = Muon(mats, lr=0.001), torch.optim.AdamW(rest, lr=3e-4, weight_decay=0.0)
    far: list[float] = []
    first = None
    for _ in range(steps):
        with autocast():
            states = student.hidden_states(batch, last=last)[-1][asked].float()
            logits = student.backbone.logits(student.backbone.norm(states)).float()
        first = states.detach() if first is None else first
        far.append(float((states.detach() - first).square().mean() / first.square().mean()))
        torch.nn.functional.cross_entropy(logits, torch.full((len(logits),), 400)).backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 2.0)
        muon.step()
        adam.step()
        student.zero_grad()
    return far


def test_held_weights_stay_and_the_others_are_learnt() -> None:
    student = shipped()
    hearing = student.config.hearing_layers
    hold(student, hearing)
    before = {n: p.detach().clone() for n, p in student.named_parameters() if n.startswith(("backbone.", "projector."))}
    far = learn(student, 3)
    after = dict(student.named_parameters())
    moved = {name: before[name] != after[name] for name in before}
    held = [name for name, change in moved.items() if bool((change & ~free(name, before[name], hearing).bool()).any())]
    assert held == [] and not bool(moved["projector.embedding_projection.weight"].any())
    assert sum(bool(change.any()) for change in moved.values()) > 0.8 * len(moved)
    assert far[2] < 0.5, "in three steps text moves a little, and not to another place altogether"


def test_a_run_that_goes_on_from_them_holds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "HEAD_BATCHES", 1)
    make_store(tmp_path / "store")
    (tmp_path / "run").mkdir()
    shutil.copyfile(ASSETS / "small" / "tokenizer.json", tmp_path / "run" / "tokenizer.json")
    options = run.RunOptions(
        folder=str(tmp_path / "run"),
        stores=(StoreOptions(str(tmp_path / "store")),),
        start_from=str(ASSETS / "small"),
        depths=Depths(2, 6, 8),
        batches=BatchOptions(shapes=((128, 2, 1.0),), labelled=1.0),
        train=TrainOptions(threads=1, compile=False, mel_steps=0, hearing_steps=0, join_step=0, warmup_steps=1),
    )
    trainer = run.build_trainer(options)
    before = {name: p.detach().clone() for name, p in trainer.student.named_parameters() if name.startswith(("backbone.", "projector."))}
    trainer.update(trainer.batches[0])
    after = dict(trainer.student.named_parameters())
    held = [name for name, p in before.items() if bool(((p != after[name]) & ~free(name, p, 8).bool()).any())]
    assert held == [] and any(bool((p != after[name]).any()) for name, p in before.items())
