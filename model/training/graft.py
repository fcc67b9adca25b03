"""A listener → a plain model of Gemma 4's architecture that says the same: what ships has no encoder and no cross-attention.

    python -m dragoman.model.training.graft RUN_FOLDER MODEL_FOLDER --config run.yaml --seconds 600 --whole 2400

The hearing layers (sliding) are carried over as they are; text goes through them untouched. Each layer of the decoder becomes two full
layers: one does its self-attention, the next its cross-attention and its MLP; audio goes through them untouched. How that is written in
Gemma's weights, :mod:`.graft_layers` says. Three things make it only nearly the same: Gemma's norms behind attention take the size of what
is said to be the same everywhere; its norms of queries and keys can only be made nearly constant; and the MLP has fewer units. So then
each pair of layers learns for some minutes to do what its layer of the decoder does, given what that one was given (``--seconds``), and
then all of them together to write what the decoder writes (``--whole``). A run goes on from the folder that is written (``start_from``).
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from ..cache import SLIDING
from ..checkpoint import load_model, save_checkpoint
from ..config import BackboneConfig
from ..errors import ConfigError
from . import graft_layers as weights
from . import moonshine
from .blockwise import MUON_LR, WHOLE_MUON_LR, Lined, errors, fit, lined_up
from .dictation import Dictation, Dictations
from .graft_layers import AUDIO, AUDIO_FLAG, BEGIN_FLAG, DIM, HEARING_HEADS, SCALE, TEXT, WIDE
from .heads import FAR_STEP
from .listening import Listener, frames_heard, load_listener, read_options, read_tokenizer, speech_of
from .package import Taught, config_of, small_config
from .precision import autocast
from .recognisers import HEADS
from .rows import IGNORE
from .student import Depths, Student
from .teachers import WIDTH

UNITS = 1024  # of each MLP; the decoder's has 1152, and what the least of them say is not missed
CALIBRATIONS = 3  # rounds of measuring the flags: what a layer does moves those of the layers above
FIT_SEED = 5  # added to the run's, for clips in another order
REPORT_EVERY = 10  # steps of the fit


def grafted_sizes(listener: Listener, units: int = UNITS) -> BackboneConfig:
    """Sizes of the model that ships. Raises ConfigError where the hearing layers do not fit into its layers."""
    old = listener.student.config.backbone
    if (full := next((i for i, kind in enumerate(old.layer_types) if kind != SLIDING), None)) is not None:
        raise ConfigError(
            f"layer {full} of the hearing layers is a full one, which has no place beside the decoder's: fit a sliding one first"
        )
    for name, value, most in (
        ("hidden_size", old.hidden_size, WIDTH),
        ("num_attention_heads", old.num_attention_heads, HEARING_HEADS),
        ("intermediate_size", old.intermediate_size, units),
    ):
        if value > most:
            raise ConfigError(f"{name} of the hearing layers is {value}, expected at most {most}")
    if old.head_dim != DIM:
        raise ConfigError(f"head_dim of the hearing layers is {old.head_dim}, expected {DIM}")
    return replace(
        old,
        vocab_size=listener.decoder.embed_tokens.num_embeddings,
        hidden_size=WIDE,
        intermediate_size=units,
        layer_types=(*old.layer_types, *["full_attention"] * (2 * len(listener.decoder.layers))),
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        num_global_key_value_heads=HEADS,
        head_dim=DIM,
        global_head_dim=DIM,
        attention_k_eq_v=False,
        global_rope_theta=weights.ROTARY_THETA,
        global_partial_rotary_factor=weights.ROTARY_FACTOR,
    )


@contextmanager
def _noted(modules: Mapping[str, nn.Module]) -> Generator[dict[str, tuple[Tensor, Tensor]]]:
    """Name → (input, output) of each module inside, in float32."""
    found = dict[str, tuple[Tensor, Tensor]]()

    def note(name: str, module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        found[name] = given[0].float(), out.float()

    handles = [module.register_forward_hook(partial(note, name)) for name, module in modules.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def measure(listener: Listener, dictation: Dictation) -> tuple[list[weights.LayerSizes], weights.Memory, weights.Flags]:
    """Sizes of what the decoder computes on one batch; what it looks at; and what flags will be behind a norm (of text a guess)."""
    decoder, asked, heard = listener.decoder, dictation.labels != IGNORE, frames_heard(dictation.batch)
    linear = {name: module for name, module in decoder.named_modules() if isinstance(module, nn.Linear)}
    with autocast(), listener.uncompiled(), _noted(linear) as found:
        hidden = listener.hear(dictation.batch)
        decoder(dictation.ids, listener.states(hidden), heard)

    def sizes(name: str, memory: Tensor) -> weights.Sizes:
        norms = [found[f"{name}.{what}_proj"][1][rows] for what, rows in (("q", asked), ("k", memory), ("v", memory))]
        q, k, v = (y.view(len(y), HEADS, -1).norm(dim=-1).mean(0) for y in norms)
        return weights.Sizes(q, k, v, float(_rms(found[f"{name}.o_proj"][1][asked]).mean()))

    layers: list[weights.LayerSizes] = []
    for i in range(len(decoder.layers)):
        units, said = (values[asked] for values in found[f"layers.{i}.mlp.fc2"])
        reach = _rms(units.T) * linear[f"layers.{i}.mlp.fc2"].weight.norm(dim=0)
        own, other = sizes(f"layers.{i}.self_attn", asked), sizes(f"layers.{i}.encoder_attn", heard)
        layers.append(weights.LayerSizes(own, other, float(_rms(said).median()), reach.argsort(descending=True)))
    spread, adapt = listener.spread, listener.adapt
    squares = hidden.float().square().sum(-1)
    audio, begin = (
        float(((x + flag) / WIDE).sqrt().mean()) for x, flag in ((squares[heard], 4 * AUDIO_FLAG**2), (squares[:, :2], 2 * BEGIN_FLAG**2))
    )
    memory = weights.Memory(adapt.weight * spread[:, None], adapt.bias * spread + listener.mean, audio)
    return layers, memory, weights.Flags(text=1.0, audio=AUDIO_FLAG / audio, begin=BEGIN_FLAG / begin)


def _rms(x: Tensor) -> Tensor:
    return x.square().mean(-1).sqrt()


@torch.no_grad()
def graft(listener: Listener, dictation: Dictation, units: int = UNITS) -> Student:
    """The model, calibrated on one batch; its throw-away heads are random. Errors as of :func:`grafted_sizes`."""
    hearing = listener.student.config.backbone.num_layers
    student = Student(replace(config_of(asdict(grafted_sizes(listener, units))), hearing_layers=hearing), Depths())
    for p in (*student.backbone.parameters(), *student.projector.parameters()):
        p.zero_()
    below: list[Any] = list(listener.student.backbone.layers)
    layers: list[Any] = list(student.backbone.layers)
    weights.write_table(student.backbone, student.projector, listener.student, listener.decoder)
    for i, (old, new) in enumerate(zip(below, layers, strict=False)):
        weights.write_hearing(new, old, first=i == 0)
    (sizes, memory, guess), lined = measure(listener, dictation), lined_up(dictation)
    norms: dict[str, nn.Module] = {
        f"{i}.{where}": getattr(layers[i], where)
        for i in range(len(below), len(layers))
        for where in ("input_layernorm", "pre_feedforward_layernorm")
    }
    flags, drawn = dict.fromkeys([*norms, "last"], guess), layers[0].post_attention_layernorm.weight
    table = student.backbone.embed_tokens.weight
    for _ in range(CALIBRATIONS):
        _write_upper(student, listener.decoder, sizes, memory, flags)
        with autocast(), _noted({**norms, "last": student.backbone.norm}) as found:
            states = student.hidden_states(lined.batch)
            student.backbone.norm(states[-1])
        flags = {name: replace(guess, text=_text_flag(lined, given)) for name, (given, _) in found.items()}
        heard = states[len(below)].float()
        # What leaks into text is taken off its rows: so little would be rounded to nothing or to twice as much in 8 bits, and opens gates.
        table[table[:, TEXT.start] > 0, AUDIO] -= lined.text(heard)[lined.asked][:, AUDIO].mean(0) / SCALE
        drawn[AUDIO] *= AUDIO_FLAG * SCALE / max(float(heard[lined.audio][:, AUDIO].mean()), 1e-3)
    _write_upper(student, listener.decoder, sizes, memory, flags)
    return student.eval()


def _text_flag(lined: Lined, x: Tensor) -> float:
    """What a dimension of the flag of text is behind a norm of x, on average."""
    asked = lined.text(x)[lined.asked]
    return float((asked[:, TEXT].mean(-1) / _rms(asked)).mean())


def _write_upper(
    student: Student, decoder: moonshine.Decoder, sizes: list[weights.LayerSizes], memory: weights.Memory, flags: dict[str, weights.Flags]
) -> None:
    """The layers above hearing and the last norm, for ``flags`` behind each norm."""
    layers: list[Any] = list(student.backbone.layers)
    olds: list[Any] = list(decoder.layers)
    at, generator = len(layers) - 2 * len(olds), torch.Generator().manual_seed(0)
    for old, size in zip(olds, sizes, strict=True):
        own, other = layers[at : at + 2]
        first, second = ([flags[f"{i}.{where}"] for where in ("input_layernorm", "pre_feedforward_layernorm")] for i in (at, at + 1))
        weights.write_attention(own, old.self_attn, old.input_layernorm.weight, size.own, first[0].text, generator)
        weights.write_idle_mlp(own, size.own, first[1], generator)
        gains = old.post_attention_layernorm.weight
        weights.write_attention(other, old.encoder_attn, gains, size.other, second[0].text, generator, memory)
        weights.write_mlp(other, old.mlp, old.final_layernorm.weight, size, second[1])
        at += 2
    student.backbone.norm.weight[:WIDTH] = decoder.norm.weight * weights.real_gain(flags["last"].text)


def within(dictations: Dictations, seconds: float, first: int = 0) -> Iterator[tuple[Dictation, float]]:
    """Dictations from ``first`` on until the time is over, and the share of it that is. The first one does not count: layers are compiled
    for it."""
    begin: float | None = None
    for dictation in DataLoader(Subset(dictations, range(first, len(dictations))), batch_size=None, num_workers=1, prefetch_factor=4):
        over = 0.0 if begin is None else (time.monotonic() - begin) / seconds
        if over >= 1:
            return
        yield dictation, over
        begin = begin or time.monotonic()


def save(folder: Path, student: Student, run: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write a model folder; what it says beside the weights is the run's, and how many layers hear. Raises ConfigError where a weight is
    too large for ``dtype``."""
    largest = max(float(p.detach().abs().max()) for p in (*student.backbone.parameters(), *student.projector.parameters()))
    if not largest <= torch.finfo(dtype).max:
        raise ConfigError(f"a weight is {largest:.0f}, which {dtype} does not hold: write float32 weights (--float32)")
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(folder, student.backbone, student.projector, dtype=dtype).chmod(0o644)  # safetensors writes it for its owner alone
    taught = replace(Taught.read(run), hearing_layers=student.config.hearing_layers)
    config = small_config(asdict(student.config.backbone), taught)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    shutil.copyfile(run / "tokenizer.json", folder / "tokenizer.json")


def _begun(folder: Path) -> Student:
    model = load_model(folder)
    student = Student(model.config, Depths())
    student.take(model)
    return student.eval()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run of listening: checkpoint.pt, sizes.json, tokenizer.json")
    parser.add_argument("folder", type=Path, help="model folder to write")
    parser.add_argument("--config", type=Path, required=True, help="the run's YAML file: which speech to calibrate and to fit with")
    parser.add_argument("--seconds", type=float, default=300.0, help="how long to fit each pair of layers; 0: not at all")
    parser.add_argument("--lr", type=float, default=MUON_LR, help="of matrices, at the beginning of the fit by pairs")
    parser.add_argument("--whole-lr", type=float, default=WHOLE_MUON_LR, help="the same of the fit of all layers together")
    parser.add_argument("--last", action="store_true", help="the last weights instead of the averaged ones")
    parser.add_argument("--float32", action="store_true", help="write float32 weights instead of float16")
    parser.add_argument("--whole", type=float, default=0.0, help="how long to fit all layers together after that, in seconds")
    parser.add_argument("--begun", type=Path, help="a model folder that was written here before, to be fitted further")
    given = parser.parse_args(arguments)
    options, listener = read_options(given.config), load_listener(given.run, averaged=not given.last)
    grafted_sizes(listener)
    torch.set_num_threads(options.train.threads)
    torch.set_flush_denormal(True)
    middle = options.batches.lengths[len(options.batches.lengths) // 2]  # one length: each is compiled anew
    batches = replace(options.batches, lengths=(middle,))
    dictations = Dictations(speech_of(options), read_tokenizer(given.run), batches, options.train.seed + FIT_SEED)
    student = graft(listener, dictations[FAR_STEP]) if given.begun is None else _begun(given.begun)
    console = Console()
    console.print({"before": _rounded(errors(listener, student, dictations[FAR_STEP + 1]))})
    dtype, first = torch.float32 if given.float32 else torch.float16, 0
    save(given.folder, student, given.run, dtype)
    if options.train.compile:
        listener.compile()
        student.compile()
    for whole, seconds, lr in ((False, given.seconds, given.lr), (True, given.whole, given.whole_lr)):
        if seconds <= 0:
            continue
        recent: list[dict[str, float]] = []
        for figures in fit(listener, student, within(dictations, seconds, first), lr, whole=whole):
            recent.append(figures)
            first += 1
            if len(recent) == REPORT_EVERY:
                means = {name: sum(one[name] for one in recent) / len(recent) for name in figures}
                console.print({"step": first, **_rounded(means)})
                recent = []
        save(given.folder, student, given.run, dtype)
        console.print({"after": _rounded(errors(listener, _begun(given.folder), dictations[FAR_STEP + 1]))})
    console.print(given.folder)


def _rounded(figures: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 5) for name, value in figures.items()}


if __name__ == "__main__":
    main()
