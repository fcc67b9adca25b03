"""Learning to translate what has been written, in layers of its own: what the model hears and writes stays as it is, to the last bit.

    python -m dragoman.model.training.translating --config run.yaml                        # goes on where the last run stopped
    python -m dragoman.model.training.translating --config run.yaml --out MODEL_FOLDER     # what it has learnt so far, as a model

A fork that translates is ``<|de|> sentence <eos> translation <eos>`` (:mod:`..prompt`): from the token of the language on, positions go
through the layers of TRANSLATION alone, on the table and under the norm that the other layers have. So pairs of sentences teach all there
is to learn, without audio. A new layer begins as the model's own: the attention of a layer of TEXT, the MLP of the layer of CROSS above it.
The table stays as it is, but for the tokens of languages: where a model has never seen one it has zeros, and could not tell them apart.

A file needs the keys ``folder``, ``start_from``, ``text`` and ``translations``; the others are the fields of PaceOptions (here) and of
PairOptions (``pairs``).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from pydantic import ConfigDict
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbone import Layer
from ..checkpoint import Model, build_model, load_model
from ..config import CROSS, TEXT, TRANSLATION
from ..errors import ConfigError, as_command
from . import text
from .batches import Batches
from .dictation import AROUND
from .listening import read_tokenizer
from .options import read_yaml
from .package import Taught, delay_of, save_model
from .pairs import PairBatch, PairBatches, PairOptions
from .precision import autocast, compute_dtype
from .prepare import user_path
from .rows import IGNORE
from .sentences import transcripts
from .student import Student, attended
from .trainer import Trainer, shared_options
from .translations import Translations, read_held_out, typeset

_ROUNDED = 0.01  # of its largest value: by so much a table of 8 bits may differ from what it was made of
_HELD_BATCHES = 8  # of held-out pairs, that are looked at while the run goes on


@dataclass(frozen=True, slots=True)
class PaceOptions:
    """When and how fast; the rate is a function of the step."""

    steps: int = 2000
    muon_lr: float = 0.004  # 0.01 was too much: the mean of the last hundred steps was far better than the last one
    adam_lr: float = 6e-4
    weight_decay: float = 0.05
    warmup_steps: int = 50
    decay_from: int = 600
    average: float = 0.99
    checkpoint_s: float = 300.0
    evaluate_every: int = 250
    log_every: int = 20
    seed: int = 1
    threads: int = 2
    compile: bool = True


@dataclass(frozen=True, slots=True)
class TranslatingOptions:
    """Everything of a run; the keys of the YAML file."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    folder: str  # checkpoints and log
    start_from: str  # a model folder whose layers for text are plain; one with layers of TRANSLATION goes on with these
    text: str  # folder of the pair files
    translations: dict[str, str]  # language → its file of English TAB other
    manifest: str | None = None  # of a corpus, whose dev transcripts must not be learnt
    layers: int = 6
    batches: PairOptions = field(default_factory=PairOptions)
    train: PaceOptions = field(default_factory=PaceOptions)


def read_options(path: Path) -> TranslatingOptions:
    """A YAML file → TranslatingOptions. Raises ConfigError that names the key and the nearest valid one."""
    return read_yaml(path, TranslatingOptions, (PairOptions, PaceOptions))


class Translator(nn.Module):
    """``forward(batch)`` → (loss, figures). ``model``: one with layers of TRANSLATION, of which these alone learn."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.config = model.config.backbone
        self.layers = nn.ModuleList(cast("Layer", layer) for layer in model.backbone.layers if cast("Layer", layer).role == TRANSLATION)
        self._backbone = (model.backbone,)  # no part of what is saved
        self.run_layer = _run_layer
        self.layers.requires_grad_(True)

    def compile(self, *args: Any, **kwargs: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        torch._dynamo.config.allow_unspec_int_on_nn_module = True  # pyright: ignore
        self.run_layer = torch.compile(_run_layer, dynamic=False)

    def hidden_states(self, ids: Tensor, example: Tensor) -> Tensor:
        """[B, T] → [B, T, d] after the last norm; a position looks at those of its own example."""
        backbone, length = self._backbone[0], ids.shape[1]
        rotary = backbone.rotary(torch.arange(length)[None], compute_dtype())["full_attention"]
        before = torch.ones(length, length, dtype=torch.bool).tril()
        seen = before & (example[:, :, None] == example[:, None])
        mask = torch.where(seen, 0.0, -1e4).to(compute_dtype())[:, None, None]
        x = backbone.embed(ids).to(compute_dtype())
        for layer in self.layers:
            x = self.run_layer(cast("Layer", layer), x, *rotary, mask)
        return backbone.norm(x)

    def forward(self, batch: PairBatch) -> tuple[Tensor, dict[str, float]]:
        with autocast():
            asked = batch.labels != IGNORE
            hidden = self.hidden_states(batch.ids, batch.example)[asked]
            place = torch.zeros(self.config.vocab_size, dtype=torch.int64)
            place[batch.candidates] = torch.arange(len(batch.candidates))
            logits, labels = (hidden @ self._backbone[0].embed_tokens.weight[batch.candidates].T).float(), place[batch.labels[asked]]
            loss = F.cross_entropy(logits + batch.log_counts, labels)
            right = float((logits.argmax(-1) == labels).float().mean())
        return loss, {"words": float(loss.detach()), "words_right": right}


def _run_layer(layer: Layer, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
    q, k, v = layer.self_attn.project(layer.input_layernorm(x), {layer.self_attn.kind: (cos, sin)})
    assert k is not None and v is not None
    return layer.settle(x, attended(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask).transpose(1, 2))


class TranslatingTrainer(Trainer):
    """The loop of :mod:`.trainer`; what it counts in place of hours heard is millions of positions."""

    units = "M positions", "/s"

    def __init__(self, translator: Translator, batches: PairBatches, held: PairBatches, folder: Path, pace: PaceOptions) -> None:
        """``held``: of the pairs that are held out."""
        super().__init__(cast("Student", translator), cast("Batches", batches), folder, shared_options(pace))
        self.translator, self.held = translator, held

    def log(self, record: dict[str, Any]) -> None:
        super().log(record | {"units": ["million positions", "positions a second"]})

    @torch.no_grad()
    def held_figures(self) -> dict[str, Any]:
        """Of the newest weights: nats for each token of held-out translations, and how many are right."""
        found = [self.translator(self.held[i])[1] for i in range(_HELD_BATCHES)]
        return {f"held_{name}": round(float(np.mean([figures[name] for figures in found])), 4) for name in found[0]}

    def update(self, batch: Any) -> dict[str, float]:
        """One step with a PairBatch."""
        begin = time.monotonic()
        self._set_rates()
        loss, figures = self.translator(batch)
        loss.backward()
        self.step += 1
        figures |= self._optimise()
        self.hours_heard += batch.positions / 1e6
        return figures | {"speed": batch.positions / (time.monotonic() - begin)}


def with_layers(model: Model, layers: int) -> Model:
    """The model with so many layers of TRANSLATION, each begun as one of TEXT with the MLP of the CROSS layer above it; what it has of
    them already stays. Raises ConfigError."""
    old = model.config.backbone
    text_layers, cross = ([i for i, role in enumerate(old.layer_roles) if role == wanted] for wanted in (TEXT, CROSS))
    if old.plain is None or old.layer_types[-1] != "full_attention":
        raise ConfigError("start_from: expected a model whose layers for text are plain (config.json, plain_layers)")
    has = old.layer_roles.count(TRANSLATION)
    if has:
        if has != layers:
            raise ConfigError(f"layers is {layers}, but start_from has {has} layers that translate")
        return model
    if not 0 < layers <= len(text_layers):
        raise ConfigError(f"layers is {layers}, expected 1 to {len(text_layers)}: so many layers of text are there to begin with")
    kinds, roles = (*old.layer_types, *["full_attention"] * layers), (*old.layer_roles, *[TRANSLATION] * layers)
    special = replace(model.config.special, languages=tuple(text.TRANSLATE.values()))
    grown = replace(model.config, backbone=replace(old, layer_types=kinds, layer_roles=roles), special=special)
    new = build_model(grown, device="cpu")
    new.projector.load_state_dict(model.projector.state_dict())
    new.backbone.load_state_dict(model.backbone.state_dict(), strict=False)  # which lacks the new layers alone
    ours, theirs = cast("list[Layer]", list(new.backbone.layers)), cast("list[Layer]", list(model.backbone.layers))
    chosen = [round(i * (len(text_layers) - 1) / max(1, layers - 1)) for i in range(layers)]
    for layer, i in zip(ours[old.num_layers :], chosen, strict=True):
        looks, says = theirs[text_layers[i]], theirs[cross[i]]
        layer.self_attn.load_state_dict(looks.self_attn.state_dict())
        layer.input_layernorm.load_state_dict(looks.input_layernorm.state_dict())
        layer.mlp.load_state_dict(says.mlp.state_dict())
        layer.pre_feedforward_layernorm.load_state_dict(says.pre_feedforward_layernorm.state_dict())
    return new


def with_marks(model: Model, languages: Iterable[str]) -> Model:
    """The model itself, in whose table the tokens of these languages, where they were zero, are now as large as others and unlike each
    other. What it translates into already keeps the token that it has learnt with."""
    table = model.backbone.embed_tokens.weight.data
    size = float(table.norm(dim=1).median())
    for token in (text.TRANSLATE[code] for code in languages if code not in model.config.targets):
        if not bool(table[token].any()):
            row = torch.randn(table.shape[1], generator=torch.Generator().manual_seed(token))
            table[token] = (row * size / row.norm()).to(table.dtype)
    return model


def take_layers(model: Model, given: Model) -> Model:
    """The model with the layers of TRANSLATION of another one, which must have its table and its last norm, and with its tokens of
    languages: so what a model learnt to translate outlives a run of its hearing. Raises ConfigError."""
    theirs = [layer for layer in cast("list[Layer]", list(given.backbone.layers)) if layer.role == TRANSLATION]
    if not theirs:
        raise ConfigError("the model that translations are to be taken from has no layers that translate")
    mine, other = (_looked_at(each) for each in (model, given))
    if mine.shape != other.shape or float((mine - other).abs().max()) > _ROUNDED * float(mine.abs().max()):
        raise ConfigError("the model that translations are to be taken from has another table or last norm, which its layers are made for")
    new = with_layers(model, len(theirs))
    for layer, old in zip(cast("list[Layer]", list(new.backbone.layers))[-len(theirs) :], theirs, strict=True):
        layer.load_state_dict(old.state_dict())
    marks = list(text.TRANSLATE.values())
    new.backbone.embed_tokens.weight.data[marks] = given.backbone.embed_tokens.weight.data[marks]
    return new


def _looked_at(model: Model) -> Tensor:
    """All of a model that its layers of TRANSLATION read and write, but for the tokens of languages: the rows of the table, without
    marks that are heard, times the gains of the last norm."""
    table = model.backbone.embed_tokens.weight.float() * model.backbone.norm.weight.float()
    return table[[token for token in range(len(table)) if token not in (*AROUND, *text.TRANSLATE.values())]]


def translations_of(options: TranslatingOptions) -> tuple[dict[str, list[tuple[str, str]]], dict[str, list[tuple[str, str]]]]:
    """Pairs by language: to learn from, and held out."""
    files = {code: user_path(options.text) / name for code, name in options.translations.items()}
    rows = [] if options.manifest is None else transcripts(user_path(options.manifest))
    banned = [words for split, words in rows if split.startswith("dev") and words]
    held = {code: [(english, typeset(code, other)) for english, other in read_held_out(path)] for code, path in files.items()}
    return Translations(files, banned).pairs, held


def _begun(options: TranslatingOptions) -> Model:
    """What a run begins with."""
    return with_marks(with_layers(load_model(user_path(options.start_from)), options.layers), options.translations)


def build_trainer(options: TranslatingOptions) -> TranslatingTrainer:
    """Resumed from the run's last checkpoint, or begun from ``start_from``."""
    run, pace, start = user_path(options.folder), options.train, user_path(options.start_from)
    run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(pace.seed)
    torch.set_num_threads(pace.threads)
    torch.set_flush_denormal(True)
    tokenizer = read_tokenizer(start)
    kept, held = translations_of(options)
    translator = Translator(_begun(options))
    batches = PairBatches(kept, tokenizer, options.batches, pace.seed)
    measured = PairBatches(held, tokenizer, options.batches, pace.seed, plainly=True)
    trainer = TranslatingTrainer(translator, batches, measured, run, pace)
    trainer.resume()
    return trainer


def write(options: TranslatingOptions, out: Path, *, averaged: bool = True) -> None:
    """What a run has learnt so far, as a model folder. Raises ConfigError where there is nothing."""
    run, start = user_path(options.folder), user_path(options.start_from)
    if not (run / "checkpoint.pt").exists():
        raise ConfigError(f"{run} is no folder of a run that has been saved: it holds no checkpoint.pt")
    model = _begun(options)
    weights = torch.load(run / "checkpoint.pt", weights_only=True, mmap=True)["averaged" if averaged else "student"]
    Translator(model).load_state_dict(weights)
    known = set(model.config.targets) | set(options.translations)
    save_model(out, model, start, Taught(delay_of(model.config), tuple(code for code in text.TRANSLATE if code in known)))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="write a model folder instead of going on")
    parser.add_argument("--last", action="store_true", help="with --out: the last weights instead of the averaged ones")
    given = parser.parse_args(arguments)
    options = read_options(given.config)
    if given.out is not None:
        write(options, given.out, averaged=not given.last)
        return
    trainer = build_trainer(options)
    if options.train.compile:
        trainer.translator.compile()
    trainer.train(lambda _: trainer.held_figures())


if __name__ == "__main__":
    as_command(main)
