"""``dragoman train``: one run from one YAML file.

    python -m dragoman.model.training.run prepare --config run.yaml     # decode corpora, teacher's features, tokenizer
    python -m dragoman.model.training.run label --config run.yaml       # only the teachers' texts, if the stores want them
    python -m dragoman.model.training.run train --config run.yaml      # goes on where the last run stopped
    python -m dragoman.model.training.run drafter --config run.yaml    # then the MTP drafter of the finished model
    python -m dragoman.model.training.run plot --config run.yaml       # curve.png in the run's folder, also while it goes on

A file needs the keys ``folder`` and ``stores`` (a list, each with a ``folder`` of its own). All other keys have defaults; they are the
fields of RunOptions and SizeOptions (here), StoreOptions (``prepare``), BatchOptions (``batches``), AugmentOptions (``augment``), Depths
and LossWeights (``student``), TrainOptions (``trainer``) and DrafterOptions (``drafting``). An unknown key is an error.
``configs/train_small.yaml`` is an example; its corpus is not part of the repository.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import tokenizers
import torch
from pydantic import ConfigDict

from ..checkpoint import load_model
from ..config import TRANSLATION, read_model_config
from ..errors import ConfigError, as_command
from ..load import load
from ..store import Store
from . import text
from .batches import Batches, BatchOptions
from .drafting import Acceptance, DrafterOptions, acceptance, save_assistant, train_drafter
from .heads import FAR_STEP, HEAD_BATCHES, fit_heads
from .labels import write_labels
from .ngrams import count
from .options import read_yaml
from .package import Taught, config_of, package
from .plot import plot, read_log
from .prepare import StoreOptions, labels_case, make_speech, sentences_of, true_caser, user_path
from .probe import Probe
from .speech import Speech
from .student import LAYER_KINDS, Depths, Student
from .trainer import Trainer, TrainOptions
from .translations import Translations


@dataclass(frozen=True, slots=True)
class SizeOptions:
    """The small model's sizes; ``layers`` is a string of S (sliding) and F (full)."""

    hidden_size: int = 256
    intermediate_size: int = 1024
    layers: str = "SSSSFSSSSF"
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    num_global_key_value_heads: int = 1
    head_dim: int = 64
    global_head_dim: int = 128
    sliding_window: int = 512
    vocab_size: int = 2048

    def backbone(self) -> dict[str, Any]:
        sizes = asdict(self)
        kinds = [LAYER_KINDS[kind] for kind in sizes.pop("layers")]
        return {**sizes, "layer_types": kinds}


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Everything of a run; the keys of the YAML file."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    folder: str  # checkpoints and log
    stores: tuple[StoreOptions, ...]
    sources: dict[str, float] = field(default_factory=dict)  # how often clips of a source are drawn; one not named: 1.0
    mutual_error: float = 0.15  # clips on which the two teachers differ in a smaller share of words are learnt from whole (labels.py)
    text: str | None = None  # folder of texts that the first of ``sentences`` are made from (sentences.py), where they do not exist
    sentences: tuple[str, ...] = ()  # text files, one sentence a line: tokenizer, case, batches.written and batches.compose
    translations: dict[str, str] = field(default_factory=dict)  # language → pair file, English TAB other; batches.translate, batches.pairs
    probe_split: str | None = None  # dev split of the first store that is looked at while the run goes on
    start_from: str | None = None  # a model folder whose weights a new run begins with (fine-tuning)
    sizes: SizeOptions = field(default_factory=SizeOptions)
    depths: Depths = field(default_factory=Depths)
    batches: BatchOptions = field(default_factory=BatchOptions)
    train: TrainOptions = field(default_factory=TrainOptions)
    drafter: DrafterOptions = field(default_factory=DrafterOptions)


def read_run(path: Path) -> RunOptions:
    """A YAML file → RunOptions. Raises ConfigError that names the key and the nearest valid one."""
    return read_yaml(path, RunOptions, (StoreOptions, SizeOptions, Depths, BatchOptions, TrainOptions, DrafterOptions))


def prepare(options: RunOptions) -> None:
    """Make the sentences, every store, the teacher's features and texts and the tokenizer that do not exist yet."""
    make_speech(options.stores, options.sentences, options.text, options.train.threads)
    run = user_path(options.folder)
    if not (run / "tokenizer.json").exists():
        if options.start_from is not None:
            run.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(user_path(options.start_from) / "tokenizer.json", run / "tokenizer.json")
        else:
            text.train_tokenizer(_texts(options), run / "tokenizer.json", vocab_size=options.sizes.vocab_size)


def label(options: RunOptions, part: int = 0, parts: int = 1) -> None:
    """The teachers' texts for every store that asks for them: one part, in this process."""
    for store in options.stores:
        if store.labels is not None:
            write_labels(user_path(store.folder), labels_case(options.sentences), part, parts)


def _texts(options: RunOptions) -> Iterator[str]:
    case = true_caser(options.sentences)
    for store in options.stores:
        for clip in Store(user_path(store.folder)).clips:
            if clip.split == "train":
                yield case(clip.text) if case else clip.text
    yield from sentences_of(options.sentences)


def build_trainer(options: RunOptions) -> Trainer:
    """Student, batches and optimisers, resumed from the run's last checkpoint or begun from ``start_from``."""
    run = user_path(options.folder)
    torch.manual_seed(options.train.seed)
    torch.set_num_threads(options.train.threads)
    torch.set_flush_denormal(True)
    start = None if options.start_from is None else user_path(options.start_from)
    config = config_of(options.sizes.backbone()) if start is None else read_model_config(start)
    student = Student(config, options.depths, options.train.dropout)
    if start is not None:
        student.take(load_model(start))
    tokenizer = tokenizers.Tokenizer.from_file(str(run / "tokenizer.json"))
    (run / "sizes.json").write_text(json.dumps(asdict(config.backbone)))
    targets = options.translations if options.batches.translate or options.batches.pairs else ()
    if targets and TRANSLATION in config.backbone.layer_roles:
        raise ConfigError("batches.translate, batches.pairs: start_from translates in layers of its own, see training.translating")
    known = () if start is None else config.targets
    Taught(options.batches.delay_frames, tuple(dict.fromkeys([*known, *targets]))).write(run)
    batches = _batches(options, tokenizer, options.train.seed)
    trainer = Trainer(student, batches, run, options.train)
    if not trainer.resume() and start is not None:
        fit_heads(student, (batches[FAR_STEP + i] for i in range(HEAD_BATCHES)))
    return trainer


def _batches(options: RunOptions, tokenizer: tokenizers.Tokenizer, seed: int) -> Batches:
    stores = [(user_path(store.folder), store.weight) for store in options.stores]
    labels = [store.labels for store in options.stores]
    speech = Speech(stores, true_caser(options.sentences), labels=labels, sources=options.sources, mutual_error=options.mutual_error)
    dev = [clip.text for store in speech.stores for clip in store.clips if clip.split.startswith("dev")]
    files = {language: user_path(name) for language, name in options.translations.items()}
    expected = options.train.weights.expected
    written = list(sentences_of(options.sentences)) if options.batches.written or options.batches.compose or expected else []
    ngrams = count(written, tokenizer) if expected else None
    return Batches(speech, tokenizer, options.batches, seed, Translations(files, dev) if files else None, written, ngrams)


def build_drafter(options: RunOptions) -> Acceptance | None:
    """Train the drafter of a finished model on the run's rows, write its folder, and measure it on the dev split if there is one."""
    run, wanted = user_path(options.folder), options.drafter
    torch.set_num_threads(wanted.threads)
    folder = run / "model" if wanted.model is None else user_path(wanted.model)
    if wanted.model is None:
        package(run, folder)
    model, tokenizer = load_model(folder), tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    drafter = train_drafter(model, _batches(options, tokenizer, wanted.seed), wanted)
    out = run / "assistant" if wanted.out is None else user_path(wanted.out)
    save_assistant(out, drafter)
    if options.probe_split is None:
        return None
    store = Store(user_path(options.stores[0].folder))
    clips = [clip for clip in store.clips if clip.split == options.probe_split][: wanted.clips]
    loaded = load(folder, runtime="torch", assistant=out, threads=wanted.threads)
    return acceptance(loaded, store, clips)


def _probe(options: RunOptions) -> Callable[[Trainer], dict[str, Any]] | None:
    if options.probe_split is None:
        return None
    case = true_caser(options.sentences)
    tokenizer = tokenizers.Tokenizer.from_file(str(user_path(options.folder) / "tokenizer.json"))
    probe = Probe(user_path(options.stores[0].folder), tokenizer, case, split=options.probe_split)
    return lambda trainer: probe(trainer.student)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("prepare", "label", "train", "drafter", "plot"))
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--part", type=int, default=0, help="label: which share of the clips, from 0")
    parser.add_argument("--parts", type=int, default=1, help="label: how many shares")
    given = parser.parse_args(arguments)
    options = read_run(given.config)
    if given.what == "plot":
        run = user_path(options.folder)
        plot({run.name: read_log(run)}, run / "curve.png")
        print(run / "curve.png")
        return
    if given.what == "label":
        label(options, given.part, given.parts)
        return
    prepare(options)
    if given.what == "drafter":
        print(build_drafter(options) or "no probe_split is set: the acceptance was not measured")
    if given.what == "train":
        trainer = build_trainer(options)
        if options.train.compile:
            trainer.student.compile()
        trainer.train(_probe(options))


if __name__ == "__main__":
    as_command(main)
