"""What joins the hearing layers and a grafted decoder stays as it is while all else is learnt."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("scipy")

import torch  # noqa: E402
from dragoman.model.training.blockwise import Lined, lined_up  # noqa: E402
from dragoman.model.training.graft import graft  # noqa: E402
from dragoman.model.training.held import free, hold  # noqa: E402
from dragoman.model.training.optim import Muon, split_parameters  # noqa: E402
from dragoman.model.training.precision import autocast  # noqa: E402
from dragoman.model.training.student import Student  # noqa: E402

from .training_listeners import make_dictations, make_listener, make_tokenizer  # noqa: E402

HEARING, UNITS = 2, 256


def grafted(tmp_path: Path) -> tuple[Student, Lined]:
    dictations = make_dictations(tmp_path, make_tokenizer(tmp_path))
    listener = make_listener(decoder_layers=2, hidden_size=128).eval()
    return graft(listener, dictations[0], UNITS).requires_grad_(True), lined_up(dictations[1])


def learn(student: Student, lined: Lined, steps: int) -> list[float]:
    """Muon's steps towards other words than the ones that are said; how far text's states are from what they were at first."""
    mats, rest = split_parameters(student)
    muon, adam = Muon(mats, lr=0.001), torch.optim.AdamW(rest, lr=3e-4, weight_decay=0.0)
    far: list[float] = []
    first = None
    for _ in range(steps):
        with autocast():
            states = lined.text(student.hidden_states(lined.batch)[-1])[lined.asked].float()
            logits = student.backbone.logits(student.backbone.norm(states)).float()
        first = states.detach() if first is None else first
        far.append(float((states.detach() - first).square().mean() / first.square().mean()))
        torch.nn.functional.cross_entropy(logits, torch.full((len(logits),), 40)).backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 2.0)
        muon.step()
        adam.step()
        student.zero_grad()
    return far


def test_held_weights_stay_and_the_others_are_learnt(tmp_path: Path):
    student, lined = grafted(tmp_path)
    hold(student, HEARING)
    names = [n for n, _ in student.named_parameters() if n.startswith(("backbone.", "projector."))]
    before = {n: p.detach().clone() for n, p in student.named_parameters()}
    learn(student, lined, 2)
    after = dict(student.named_parameters())
    for name in names:
        mask, moved = free(name, before[name], HEARING).bool(), before[name] != after[name]
        assert not bool((moved & ~mask).any()), name
    assert not bool((before["projector.embedding_projection.weight"] != after["projector.embedding_projection.weight"]).any())
    learnt = [name for name in names if bool((before[name] != after[name]).any())]
    assert len(learnt) > 0.8 * len(names)


def test_unheld_a_first_step_silences_what_it_should_have_learnt(tmp_path: Path):
    """The negative control, and why ``hold`` is there: with it text moves a little in a few steps, without it another place altogether."""
    far: dict[bool, list[float]] = {}
    for held in (True, False):
        student, lined = grafted(tmp_path)
        if held:
            hold(student, HEARING)
        far[held] = learn(student, lined, 3)
    assert far[True][2] < 0.2 and far[False][2] > 3 * far[True][2], far
