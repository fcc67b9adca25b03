"""The layers above hearing of a grafted model learn what the decoder's layers do; see :mod:`.graft`.

First each pair of them, given what its layer of the decoder is given (``fit``): no layer learns from what those below still get wrong, and
all at once, so that the hearing layers run once. Then all of them one behind the other, given what the ones below say (``whole``):
what a pair still misses, those above it learn to live with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from . import moonshine, text
from .dictation import Dictation
from .graft_layers import SCALE
from .held import hold
from .listening import Listener, frames_heard
from .optim import Muon
from .precision import autocast, compute_dtype
from .rows import IGNORE, Batch
from .student import Student, replaced
from .teachers import WIDTH

ROUND_TO = 32  # positions of a row: attention is computed in blocks
MUON_LR, ADAM_LR, WARMUP = 0.002, 1e-3, 10
WHOLE_MUON_LR = 0.0004  # one behind the other, layers do not stand more: docs/training.md, a tenth time
SIZE_WEIGHT, WORDS_WEIGHT, AUDIO_WEIGHT = 0.1, 0.3, 3.0  # beside the direction of each layer's output
STATES_WEIGHT = 0.5  # beside the words, of the direction behind each pair
LEAST_SQUARE = 1e-3  # sizes are compared as logarithms of mean squares


@dataclass(frozen=True, slots=True)
class Lined:
    """A dictation with its ids in the rows: <bos><|audio>, frames, <audio|>, <|transcribe|> … Axes: B rows, T positions, L tokens."""

    batch: Batch
    places: Tensor  # [B, L] int64: position of each token
    asked: Tensor  # [B, L] bool: tokens behind which something is asked for
    audio: Tensor  # [B, T] bool: positions of frames

    def text(self, x: Tensor) -> Tensor:
        """[B, T, 320] → [B, L, 320]."""
        return x.gather(1, self.places[..., None].expand(-1, -1, x.shape[-1]))


def lined_up(dictation: Dictation) -> Lined:
    heard, (b, length) = dictation.batch, dictation.ids.shape
    t = -(-(heard.ids.shape[1] + 1 + length) // ROUND_TO) * ROUND_TO
    frames, ids = F.pad(heard.frames, (0, 0, 0, t - heard.frames.shape[1])), F.pad(heard.ids, (0, t - heard.ids.shape[1]), value=text.PAD)
    is_text, rows, end = F.pad(heard.is_text, (0, t - heard.ids.shape[1])), torch.arange(b), 2 + heard.audio_frames
    ids[rows, end], is_text[rows, end] = text.END_AUDIO, True
    places = end[:, None] + 1 + torch.arange(length)
    asked = dictation.labels != IGNORE
    ids.scatter_(1, places, dictation.ids)
    is_text.scatter_(1, places, asked)
    batch = replace(heard, frames=frames, ids=ids, is_text=is_text)
    return Lined(batch, places, asked, frames_heard(batch))


def decoder_states(decoder: moonshine.Decoder, ids: Tensor, states: Tensor, heard: Tensor) -> list[Tensor]:
    """What goes into each layer, and what comes out of the last one, [B, L, 288]."""
    found, run = list[Tensor](), decoder.run_layer

    def noted(layer: moonshine.Layer, x: Tensor, *rest: Tensor) -> Tensor:
        found.append(x)
        return run(layer, x, *rest)

    ends = decoder.norm.register_forward_pre_hook(lambda _, given: found.append(given[0]))
    decoder.run_layer = noted
    try:
        decoder(ids, states, heard)
    finally:
        decoder.run_layer = run
        ends.remove()
    return found


def through(student: Student, x: Tensor, first: int, end: int | None = None) -> Tensor:
    """[B, T, 320] → the same behind the layers ``first`` … ``end`` − 1."""
    x, (rotary, mask) = x.to(compute_dtype()), student.surroundings(x.shape[1])
    for layer in student.backbone.layers[first:end]:
        x = student.run_layer(layer, x, rotary, mask, 0.0)
    return x


def pairs(student: Student, hidden: Tensor, targets: Sequence[Tensor], lined: Lined) -> Iterator[tuple[Tensor, Tensor]]:
    """Each pair of layers, given what the decoder's layer is given, and flags as the pair before leaves them → its text [B, L, 320] in
    float32, and how far audio has moved (mean square, as a share). ``hidden``: behind the hearing layers; ``targets``: decoder's states."""
    at, hidden = student.config.hearing_layers, hidden.float()
    size, flags = hidden[lined.audio].square().mean(), lined.text(hidden)
    for given in targets[:-1]:
        x = torch.cat([centred(given) * SCALE, flags.detach()[..., WIDTH:]], -1)
        x = replaced(hidden, lined.places, x).to(compute_dtype())
        y = through(student, x, at, at + 2)
        flags, at = lined.text(y).float(), at + 2
        yield flags, (y - x)[lined.audio].float().square().mean() / size


def centred(x: Tensor) -> Tensor:
    x = x.float()
    return x - x.mean(-1, keepdim=True)


def off(said: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error of text [n, 320] against the decoder's [n, 288], both normed: the share of variance that is missed."""
    return F.mse_loss(F.layer_norm(said[:, :WIDTH].float(), (WIDTH,)), F.layer_norm(wanted.float(), (WIDTH,)))


@torch.no_grad()
def errors(listener: Listener, student: Student, dictation: Dictation) -> dict[str, float]:
    """How far the model is from the listener. Mean squares, as a share: ``hearing`` (of audio behind the hearing layers), ``text_below``
    and ``audio_above`` (how far they moved where they should not), ``pair0`` … (what each pair of layers misses, given what its layer is
    given), ``whole`` (all of it, one after the other); ``same``: share of tokens at which both say the same first."""
    lined, below = lined_up(dictation), student.config.hearing_layers
    asked, n = lined.asked, dictation.batch.ids.shape[1]
    with autocast(), listener.uncompiled():
        heard = listener.hear(dictation.batch)
        targets = decoder_states(listener.decoder, dictation.ids, listener.states(heard), lined.audio[:, :n])
        states = student.hidden_states(lined.batch)
        outputs = [said[asked] for said, _ in pairs(student, states[below], targets, lined)]
        found = {f"pair{i}": float(off(said, target[asked])) for i, (said, target) in enumerate(zip(outputs, targets[1:], strict=True))}
        wanted, said = targets[-1][asked], lined.text(states[-1])[asked]
        ours, theirs = student.backbone.logits(student.backbone.norm(said)), listener.decoder.logits(listener.decoder.norm(wanted))
    begin, hearing = states[0].float(), states[below].float()
    real, moved = lined.text(begin)[asked][:, :WIDTH], (lined.text(hearing) - lined.text(begin))[asked][:, :WIDTH]
    audio, old = hearing[lined.audio], heard[lined.audio[:, :n]].float() * SCALE
    return {
        "hearing": float((audio[:, : old.shape[1]] - old).square().mean() / old.square().mean()),
        "text_below": float(moved.square().mean() / real.square().mean()),
        "audio_above": float((states[-1].float()[lined.audio] - audio).square().mean() / audio.square().mean()),
        **found,
        "whole": float(off(said, wanted)),
        "same": float((ours.argmax(-1) == theirs.argmax(-1)).float().mean()),
    }


def fit(
    listener: Listener,
    student: Student,
    dictations: Iterable[tuple[Dictation, float]],
    muon_lr: float = MUON_LR,
    adam_lr: float = ADAM_LR,
    *,
    whole: bool = False,
) -> Iterator[dict[str, float]]:
    """One step for each dictation and the share of the time that is over, from which the rate falls → its losses, as in :func:`errors`.

    Learnt are the layers above hearing, but for what is held (:mod:`.held`). Asked of each pair: the direction of what it says, its
    size, and that audio stays; and of the last one what the decoder would write. If ``whole``, of all layers one behind the other: what
    the decoder would write at each token, the whole distribution (Hinton et al., arXiv 1503.02531), and less loudly the direction behind
    each pair; audio does not move in these layers, so they run for text alone. Runs the student's and the decoder's layers as they are
    set: compiled ones, if they are.
    """
    below, loss_of = student.config.hearing_layers, _whole_loss if whole else _pairs_loss
    listener.requires_grad_(False)
    student.requires_grad_(False)
    learnt = [p for layer in student.backbone.layers[below:] for p in layer.requires_grad_(True).parameters()]
    handles = hold(student, below)
    muon = Muon([p for p in learnt if p.ndim == 2], lr=muon_lr)
    adam = torch.optim.AdamW([p for p in learnt if p.ndim != 2], lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.0)
    for step, (dictation, over) in enumerate(dictations):
        rate = min(1.0, (step + 1) / WARMUP) * max(0.02, 1.0 - over)
        for optimiser, lr in ((muon, muon_lr), (adam, adam_lr)):
            for group in optimiser.param_groups:
                group["lr"] = lr * rate
        lined = lined_up(dictation)
        with autocast():
            loss, figures = loss_of(student, _wanted(listener, student, lined, dictation), lined)
        loss.backward()
        for optimiser in (muon, adam):
            optimiser.step()
            optimiser.zero_grad()
        yield figures
    for handle in handles:
        handle.remove()


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one batch is to become."""

    hidden: Tensor  # [B, T, 320]: behind the hearing layers
    states: list[Tensor]  # of the decoder, see decoder_states
    words: Tensor  # [n, V]: log of what the decoder says where something is asked for


@torch.no_grad()
def _wanted(listener: Listener, student: Student, lined: Lined, dictation: Dictation) -> Wanted:
    decoder, n = listener.decoder, dictation.batch.ids.shape[1]
    hidden = student.hidden_states(lined.batch, student.config.hearing_layers)[-1]
    heard = listener.states(hidden[:, :n, : listener.student.config.backbone.hidden_size] / SCALE)  # as the hearing layers say it
    states = decoder_states(decoder, dictation.ids, heard, lined.audio[:, :n])
    return Wanted(hidden, states, decoder.logits(decoder.norm(states[-1][lined.asked])).float().log_softmax(-1))


def _words(student: Student, said: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Nats that ``said`` [n, 320] is away from the distributions ``wanted`` [n, V], and the share of first choices that are the same."""
    logits = student.backbone.logits(student.backbone.norm(said.to(compute_dtype()))).float().log_softmax(-1)
    nats = F.kl_div(logits, wanted, log_target=True, reduction="batchmean")
    return nats, (logits.argmax(-1) == wanted.argmax(-1)).float().mean()


def _pairs_loss(student: Student, wanted: Wanted, lined: Lined) -> tuple[Tensor, dict[str, float]]:
    asked, figures = lined.asked, dict[str, float]()
    said, total, moved = wanted.hidden, torch.zeros(()), torch.zeros(())
    outputs = pairs(student, wanted.hidden, wanted.states, lined)
    for i, ((said, step), target) in enumerate(zip(outputs, wanted.states[1:], strict=True)):
        missed = off(said[asked], target[asked])
        size = _log_square(said[asked][:, :WIDTH] / SCALE) - _log_square(centred(target[asked]))
        total = total + missed + SIZE_WEIGHT * size.square().mean()
        moved = moved + step
        figures[f"pair{i}"] = float(missed.detach())
    words, _ = _words(student, said[asked], wanted.words)
    total = total + WORDS_WEIGHT * words + AUDIO_WEIGHT * moved
    return total, figures | {"words": float(words.detach()), "audio_above": float(moved.detach())}


def _whole_loss(student: Student, wanted: Wanted, lined: Lined) -> tuple[Tensor, dict[str, float]]:
    asked, figures, x = lined.asked, dict[str, float](), wanted.hidden
    said, total, (rotary, mask) = x, torch.zeros(()), student.surroundings(x.shape[1])
    for i, layer in enumerate(student.backbone.layers[student.config.hearing_layers :]):
        said = student.run_last(layer, x, rotary, mask, 0.0, lined.places)
        x = replaced(x, lined.places, said)
        if i % 2:
            missed = off(said[asked], wanted.states[i // 2 + 1][asked])
            total = total + STATES_WEIGHT * missed
            figures[f"behind{i // 2}"] = float(missed.detach())
    words, same = _words(student, said[asked], wanted.words)
    return total + words, figures | {"words": float(words.detach()), "same": float(same)}


def _log_square(x: Tensor) -> Tensor:
    return x.square().mean(-1).add(LEAST_SQUARE).log()
