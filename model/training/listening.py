"""Learning to hear through a decoder that knows already how English is written.

    python -m dragoman.model.training.listening --config run.yaml    # goes on where the last run stopped

The lower layers of a student and one linear layer are trained to be heard by the pretrained decoder of Moonshine tiny (:mod:`.moonshine`):
what is heard must be worth reading, and the gradient that says so comes from something that can read. It is asked for the words, and for
all that the decoder says to what the teacher itself hears (Hinton et al., arXiv 1503.02531). Of the decoder learns what looks at audio; the
rest knows its English from 200,000 hours, and would learn the transcripts of a few by heart if it learnt fast (``train.writing_lr``).
What ships says the same to the last bit but rounding (:mod:`.join`): <bos><|audio>, frames and <audio|> are heard, text begins with
<|transcribe|>.

What the stores lack is made first (:mod:`.prepare`). A file needs the keys ``folder``, ``stores`` and ``start_from``. All other keys have
defaults; they are the fields of ListeningOptions and RateOptions (here), StoreOptions (``prepare``), ClipOptions (``dictation``) and
AugmentOptions (``augment``). An unknown key is an error.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import shutil
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import tokenizers
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from pydantic import ConfigDict
from torch import Tensor, nn

from ..backbone import rms_norm
from ..checkpoint import load_model
from ..config import PLAIN_AUDIO, ModelConfig, read_model_config
from ..errors import ConfigError, as_command
from ..scoring import word_errors
from . import letters, pieces, text
from .augment import AugmentOptions
from .batches import Batches
from .dictation import AROUND, ClipOptions, Dictation, Dictations, whole_clip
from .frames import covariance, hold, span
from .heads import FAR_STEP, HEAD_BATCHES, least_squares
from .moonshine import Decoder, load_decoder, run_layer
from .optim import Muon, split_parameters
from .options import read_yaml
from .package import Taught, config_of
from .precision import autocast, compute_dtype
from .prepare import StoreOptions, make_speech, sentences_of, true_caser, user_path
from .recognisers import TOKENS_PER_S
from .rows import IGNORE, Batch, collate
from .saying import Asked, Share, saying_loss, share_of_loss
from .speech import Speech
from .student import Depths, Student, at, feature_loss
from .teachers import SPREAD, WIDTH
from .trainer import Trainer, save_whole, shared_options
from .unjoin import unjoin

FRAMES_PER_S = 25
HELD = "held.pt"  # in a run's folder: ``ListeningTrainer.held``
CUT_TOKENS = 5  # before a cut, <eos> among them: three words or so
CLIPS_AT_ONCE = 12  # of a dev split, that are about equally long


@dataclass(frozen=True, slots=True)
class RateOptions:
    """When and how fast; the rate is a function of the step, so the length is given in steps and not in minutes."""

    steps: int = 500
    muon_lr: float = 0.0015  # matrices of the hearing layers
    adam_lr: float = 3e-4  # everything else that hears
    decoder_lr: float = 1e-4  # of what looks at audio
    writing_lr: float = 0.0  # of the other layers of the decoder; 0: they stay as they are. Its table of pieces does in any case
    weight_decay: float = 0.05
    warmup_steps: int = 30
    decay_from: int = 200
    average: float = 0.98  # decay of the averaged weights
    words: float = 0.5  # weight of the right words, beside (with 0 here and for ``said`` the decoder rests)
    said: float = 1.0  # all that the decoder says to the teacher's features, and
    late: float = 0.5  # these features themselves, asked for ``batches.late_frames`` late
    letters: float = 0.0  # the letters, after ``letters_after`` layers (letters.py)
    letters_after: int = 6
    checkpoint_s: float = 300.0
    evaluate_every: int = 100
    evaluate_clips: int = 60
    log_every: int = 20
    seed: int = 1
    threads: int = 2
    compile: bool = True


@dataclass(frozen=True, slots=True)
class ListeningOptions:
    """Everything of a run; the keys of the YAML file."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    folder: str  # checkpoints and log
    stores: tuple[StoreOptions, ...]
    start_from: str  # a model folder whose lower layers begin; one that listening made gives its pieces and all that it has learnt
    layers: int = 8  # of them
    decoder_layers: tuple[int, ...] = (0, 1, 2, 3, 4, 5)  # of the published decoder
    vocabulary: int = 14_000  # pieces that are kept, those used most; with fewer its English suffers (docs/training.md, a twelfth time)
    text: str | None = None  # folder of texts that the first of ``texts`` are made from (sentences.py), where they do not exist
    texts: tuple[str, ...] = ()  # text files, one sentence a line, that are counted beside the transcripts, and tell the case of these
    sources: dict[str, float] = field(default_factory=dict)  # how often clips of a source are drawn; one not named: 1.0
    strongest: int = 0  # of the directions of a frame, how many are kept whole (frames.py); 0: the projector looks where it likes
    mutual_error: float = 0.4  # clips on which the two teachers differ in a smaller share of words are learnt from (labels.py)
    probe_split: str | None = None  # dev split of the first store that is listened to while the run goes on
    batches: ClipOptions = field(default_factory=ClipOptions)
    train: RateOptions = field(default_factory=RateOptions)


def read_options(path: Path) -> ListeningOptions:
    """A YAML file → ListeningOptions. Raises ConfigError that names the key and the nearest valid one."""
    return read_yaml(path, ListeningOptions, (StoreOptions, RateOptions, ClipOptions, AugmentOptions))


class Listener(nn.Module):
    """``forward(dictation)`` → (loss, figures). Axes: B rows, T frames with the prompt, L tokens, d width of the hearing layers.

    ``student``: of its hearing layers only. ``spread``: mean and standard deviation [288] of the teacher's features as they are stored;
    the linear layer writes them standardised, as its dimensions differ in size a hundredfold. ``features`` is asked for them, and is thrown
    away: what the decoder looks at begins as they are, or as a joined model has it (:mod:`.unjoin`). ``weights``: of the losses.
    """

    mean: Tensor
    spread: Tensor

    def __init__(
        self, student: Student, decoder: Decoder, spread: tuple[NDArray[Any], NDArray[Any]], weights: RateOptions | None = None
    ) -> None:
        super().__init__()
        self.student, self.decoder = student, decoder
        self.adapt, self.features = (nn.Linear(student.config.backbone.hidden_size, WIDTH) for _ in range(2))
        for name, value in zip(("mean", "spread"), spread, strict=True):
            self.register_buffer(name, torch.as_tensor(value).float() * SPREAD)
        self.weights = weights or RateOptions()
        self.letters = letters.letter_head(student.config.backbone.hidden_size) if self.weights.letters else None
        for name, p in decoder.named_parameters():
            p.requires_grad_(looks_at_audio(name) or (self.weights.writing_lr > 0 and not name.startswith("embed_tokens")))
        self._knows = (copy.deepcopy(decoder).eval().requires_grad_(False),)  # as published; no part of what is saved
        self.share: Callable[..., Share] = share_of_loss
        self._plain = student.run_layer, decoder.run_layer

    def compile(self, *args: Any, **kwargs: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.student.compile()
        self.decoder.run_layer = self._knows[0].run_layer = torch.compile(run_layer, dynamic=False)
        self.share = torch.compile(share_of_loss, dynamic=False)

    @contextmanager
    def uncompiled(self) -> Generator[None]:
        """For shapes that come once."""
        compiled = self.student.run_layer, self.decoder.run_layer
        self.student.run_layer, self.decoder.run_layer = self._plain
        try:
            yield
        finally:
            self.student.run_layer, self.decoder.run_layer = compiled

    def hear(self, batch: Batch) -> Tensor:
        """[B, T, d] after the hearing layers, normed."""
        return self.normed(self.student.hidden_states(batch)[-1])

    def normed(self, states: Tensor) -> Tensor:
        """[B, T, d] of a hearing layer, of which only directions are looked at."""
        return rms_norm(states.float(), None, self.student.config.backbone.rms_norm_eps)

    def states(self, heard: Tensor) -> Tensor:
        """[B, T, d] → [B, T, 288] as Moonshine's encoder would give them."""
        return (self.adapt(heard) * self.spread + self.mean).to(compute_dtype())

    def forward(self, dictation: Dictation) -> tuple[Tensor, dict[str, float]]:
        batch, weights = dictation.batch, self.weights
        with autocast():
            layers = self.student.hidden_states(batch)
            heard = self.normed(layers[-1])
            total, figures = self._said(dictation, heard) if weights.words or weights.said else (torch.zeros(()), dict[str, float]())
            if weights.late and len(batch.late):
                missed = feature_loss(self.features, heard, batch.late_rows, batch.late)
                total, figures["late"] = total + weights.late * missed, float(missed.detach())
            if self.letters is not None and batch.ctc_lengths.any():
                nats = letters.ctc_loss(self.letters, self.normed(layers[weights.letters_after]), batch)
                total, figures["letters"] = total + weights.letters * nats, float(nats.detach())
        return total, figures

    def _said(self, dictation: Dictation, heard: Tensor) -> tuple[Tensor, dict[str, float]]:
        """The losses of what the decoder says."""
        batch, weights, places = dictation.batch, self.weights, (dictation.labels != IGNORE).flatten().nonzero()[:, 0]
        said = at(self.decoder(dictation.ids, self.states(heard), audio_heard(batch)), places)
        wanted, known = self._wanted(dictation, places) if weights.said and len(batch.late) else (None, None)
        labels = dictation.labels.flatten()[places]
        asked = Asked(self.decoder.embed_tokens.weight.detach(), labels, wanted, known, weights.words, weights.said)
        return saying_loss(said, asked, self.share)

    @torch.no_grad()
    def _wanted(self, dictation: Dictation, places: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states [n, 288] of the published decoder that looks at the teacher's features, at flat ``places`` [n] of the tokens. And
        where [n] they are worth knowing: of rows with features, and where audio is cut not of the last ones (there the decoder itself does
        not see the end, and goes on in circles)."""
        batch, shape = dictation.batch, dictation.batch.ids.shape
        states, there = torch.zeros(shape.numel(), WIDTH), torch.zeros(shape.numel(), dtype=torch.bool)
        states[batch.late_rows], there[batch.late_rows] = batch.late.float() * self.spread + self.mean, True
        states, there, decoder = states.view(*shape, WIDTH).to(compute_dtype()), there.view(shape), self._knows[0]
        asked = dictation.labels != IGNORE
        known = asked.sum(1) - CUT_TOKENS * dictation.cut
        known = there.any(1)[:, None] & (torch.arange(asked.shape[1]) < known[:, None])
        return at(decoder(dictation.ids, states, there), places), known.flatten()[places]


def looks_at_audio(name: str) -> bool:
    """Whether a parameter of the decoder, by its name, is of what looks at audio."""
    return "encoder_attn" in name or "post_attention" in name


def audio_heard(batch: Batch) -> Tensor:
    """[B, T] bool: positions of audio, and of what begins and ends it, which text looks at too."""
    places = torch.arange(batch.ids.shape[1])
    return places < len(AROUND) + batch.audio_frames[:, None]


class ListeningTrainer(Trainer):
    """The loop of :mod:`.trainer`, with a rate of its own for the decoder. What is saved is the whole listener."""

    def __init__(self, listener: Listener, dictations: Dictations, folder: Path, rates: RateOptions, held: Tensor | None = None) -> None:
        """``held`` [n, n]: what of a frame the projector looks at (:mod:`.frames`); None: it looks where it likes."""
        # Of the two it asks no more than any module and any data set have; what it does ask a student, ``update`` does here.
        super().__init__(cast("Student", listener), cast("Batches", dictations), folder, shared_options(rates))
        self.listener, self.dictations, self.rates, self.held = listener, dictations, rates, held
        matrices, rest = split_parameters(listener.student)
        self.muon = Muon(matrices, lr=rates.muon_lr, weight_decay=rates.weight_decay)
        learns = [(name, p) for name, p in listener.decoder.named_parameters() if p.requires_grad]
        looks, writes = ([p for name, p in learns if looks_at_audio(name) == audio] for audio in (True, False))
        heads = [head for head in (listener.adapt, listener.features, listener.letters) if head is not None]
        own = [*rest, *(p for head in heads for p in head.parameters())]
        groups = [{"params": own}, {"params": looks}, {"params": writes}]
        self.adam = torch.optim.AdamW(groups, lr=rates.adam_lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True)

    def hold(self) -> None:
        """Bring the projector back to what it may look at."""
        if self.held is not None:
            hold(self.listener.student.projector.embedding_projection.weight, self.held)

    def _average(self) -> None:
        self.hold()
        super()._average()

    def update(self, batch: Any) -> dict[str, float]:
        """One step with a Dictation."""
        begin = time.monotonic()
        self._set_rates(self.rates.decoder_lr, self.rates.writing_lr)
        loss, figures = self.listener(batch)
        loss.backward()
        self.step += 1
        figures |= self._optimise()
        self.hours_heard += batch.batch.audio_seconds / 3600
        return figures | {"speed": batch.batch.audio_seconds / (time.monotonic() - begin)}


@torch.inference_mode()
def dev_errors(listener: Listener, speech: Speech, tokenizer: tokenizers.Tokenizer, options: ClipOptions, clips: int) -> dict[str, Any]:
    """The word error rate on the first clips of a dev split, decoded greedily, and one of the texts."""
    chosen = sorted(speech.labelled[:clips], key=lambda item: item[1].samples)
    said: list[str] = []
    with autocast(), listener.uncompiled():
        for first in range(0, len(chosen), CLIPS_AT_ONCE):
            rows = [whole_clip(speech.stores[which].samples(clip), options) for which, clip, _ in chosen[first : first + CLIPS_AT_ONCE]]
            batch = collate(rows, len(AROUND) + max(len(row.frames) for row in rows), speech.spread)
            limits = [2 + int(frames / FRAMES_PER_S * TOKENS_PER_S) for frames in batch.audio_frames.tolist()]
            states, begin = listener.states(listener.hear(batch)), (text.TRANSCRIBE,)
            found = listener.decoder.greedy(states, audio_heard(batch), limits, begin=begin, end=text.END)
            said += [tokenizer.decode(ids).strip() for ids in found]
    wer = word_errors([words for _, _, words in chosen], said).rate
    return {"dev_wer": round(wer, 4), "heard": said[len(said) // 2] if said else ""}


def hearing_student(config: ModelConfig, layers: int) -> Student:
    """A student of the lower layers of a model, with random weights. Raises ConfigError where it has no such number of layers."""
    kinds, roles, most = config.backbone.layer_types, config.backbone.layer_roles[:layers], config.backbone.hearing_layers
    if not 0 < layers <= most:
        raise ConfigError(f"layers is {layers}, expected 1 to {most}: so many does the model have that start_from names, for audio")
    plain = PLAIN_AUDIO in roles
    heard = {"layer_roles": roles if plain else (), "plain": config.backbone.plain if plain else None}
    cut = replace(config, backbone=replace(config.backbone, layer_types=kinds[:layers], **heard))
    return Student(cut, Depths(mel=layers, features=layers, ctc=layers, late=layers))


def first_layers(folder: Path, layers: int) -> Student:
    """The lower layers of a model folder; heads are random. Errors as of :func:`hearing_student` and ``load_model``."""
    student, model = hearing_student(read_model_config(folder), layers), load_model(folder)
    given = model.backbone.state_dict()
    student.backbone.load_state_dict({name: given[name] for name in student.backbone.state_dict()})
    student.projector.load_state_dict(model.projector.state_dict())
    return student


def speech_of(options: ListeningOptions) -> Speech:
    """The clips of all stores. Upper-case transcripts get the case of ``texts``, if there are any."""
    stores = [(user_path(store.folder), store.weight) for store in options.stores]
    labels = [store.labels for store in options.stores]
    return Speech(stores, true_caser(options.texts), labels=labels, sources=options.sources, mutual_error=options.mutual_error)


def choose_pieces(options: ListeningOptions, speech: Speech) -> tokenizers.Tokenizer:
    """A tokenizer of the pieces that the texts use most. Raises ConfigError."""
    whole = pieces.moonshine_tokenizer()
    counts = pieces.count_pieces(whole, (words for _, _, words in speech.labelled))
    counts += pieces.count_pieces(whole, sentences_of(options.texts))
    try:
        return pieces.smaller(whole, counts, options.vocabulary)
    except ValueError as error:
        raise ConfigError(f"vocabulary: {error}") from error


def published_decoder(tokenizer: tokenizers.Tokenizer, layers: Sequence[int]) -> Decoder:
    """The published decoder with those of its layers, and the rows of a tokenizer's pieces; a mark that it does not know has a row of
    zero. Raises ConfigError."""
    try:
        decoder = load_decoder(layers)
    except ValueError as error:
        raise ConfigError(f"decoder_layers: {error}") from error
    old, rows = torch.tensor(pieces.old_ids(tokenizer, pieces.moonshine_tokenizer())), decoder.embed_tokens.weight.detach()
    rows = rows - rows.mean(1, keepdim=True)  # nobody misses it but the head, and what ships has none
    decoder.embed_tokens = nn.Embedding.from_pretrained(torch.where((old >= 0)[:, None], rows[old], 0.0), freeze=False)
    return decoder


def build_trainer(options: ListeningOptions) -> ListeningTrainer:
    """Listener, batches and optimisers: resumed from the run's last checkpoint, or begun from ``start_from`` and the published decoder."""
    run, rates = user_path(options.folder), options.train
    run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(rates.seed)
    torch.set_num_threads(rates.threads)
    torch.set_flush_denormal(True)
    speech = speech_of(options)
    start = user_path(options.start_from)
    if not (rates.words or rates.said or rates.late):
        raise ConfigError("train.words, train.said and train.late are all 0: expected one above it, else nothing is asked for")
    if rates.letters and not 0 < rates.letters_after <= options.layers:
        raise ConfigError(f"train.letters_after is {rates.letters_after}, expected 1 to {options.layers}, which is how many layers hear")
    student, joined = first_layers(start, options.layers), read_model_config(start).backbone.plain is not None
    if not (run / "tokenizer.json").exists() and joined:
        shutil.copyfile(start / "tokenizer.json", run / "tokenizer.json")
    elif not (run / "tokenizer.json").exists():
        choose_pieces(options, speech).save(str(run / "tokenizer.json"))
    tokenizer = read_tokenizer(run)
    decoder = published_decoder(tokenizer, options.decoder_layers)
    (run / "sizes.json").write_text(json.dumps(asdict(student.config.backbone)) + "\n")
    Taught(options.batches.delay_frames).write(run)
    listener = Listener(student, decoder, speech.spread, rates)
    dictations = Dictations(speech, tokenizer, options.batches, rates.seed)
    trainer = ListeningTrainer(listener, dictations, run, rates, held_span(options, speech, student))
    if not trainer.resume():
        trainer.hold()
        far = [dictations[FAR_STEP + i].batch for i in range(HEAD_BATCHES)]
        fit_adapt(listener, far)
        fit_letters(listener, far)
        if joined:
            unjoin(load_model(start), decoder, listener.adapt, listener.mean, listener.spread)
        trainer.averaged |= {name: value.clone() for name, value in listener.state_dict().items()}
    return trainer


def held_span(options: ListeningOptions, speech: Speech, student: Student) -> Tensor | None:
    """What of a frame the projector may look at: made when the run begins, of its start. Raises ConfigError."""
    if not options.strongest:
        return None
    path = user_path(options.folder) / HELD
    if not path.exists():
        chance, frame = np.random.default_rng(options.train.seed), student.config.audio.frame_samples
        order = (speech.labelled[i] for i in chance.permutation(len(speech.labelled)))
        waves = (speech.stores[which].samples(clip) for which, clip, _ in order)
        energy = covariance(sliding_window_view(wave, frame)[::frame] for wave in waves if len(wave) >= frame)
        save_whole(span(student.projector.embedding_projection.weight, energy, options.strongest), path)
    return torch.load(path, weights_only=True)


@torch.no_grad()
def fit_adapt(listener: Listener, batches: Sequence[Batch]) -> float:
    """The linear layer begins with the teacher's features, which the decoder was taught to read; returns the share of variance missed."""
    with autocast():
        heard = [listener.hear(batch).flatten(0, 1)[batch.late_rows].float() for batch in batches]
    missed = least_squares(listener.features, torch.cat(heard), torch.cat([batch.late for batch in batches]).float())
    listener.adapt.load_state_dict(listener.features.state_dict())
    return missed


def fit_letters(listener: Listener, batches: Sequence[Batch]) -> None:
    """Where letters are asked for, their head begins with what the given layers say of them."""
    if listener.letters is None:
        return
    with torch.no_grad(), autocast():
        heard = [listener.normed(listener.student.hidden_states(batch, listener.weights.letters_after)[-1]) for batch in batches]
    letters.fit(listener.letters, list(zip(heard, batches, strict=True)))


def read_tokenizer(run: Path) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer.from_file(str(run / "tokenizer.json"))
    tokenizer.encode_special_tokens = True  # which is not written into the file: a text that spells <eos> is text
    return tokenizer


def load_listener(run: Path, *, averaged: bool = True) -> Listener:
    """What a run has learnt. Raises ConfigError where there is nothing."""
    if not (run / "checkpoint.pt").exists():
        raise ConfigError(f"{run} is no folder of a run that has been saved: it holds no checkpoint.pt")
    weights = torch.load(run / "checkpoint.pt", weights_only=True, mmap=True)["averaged" if averaged else "student"]
    config = config_of(json.loads((run / "sizes.json").read_text()))
    layers = {found[1] for name in weights if (found := re.match(r"decoder\.layers\.(\d+)\.", name))}
    decoder = Decoder(len(weights["decoder.embed_tokens.weight"]), len(layers))
    rates = RateOptions(letters=float(any(name.startswith("letters.") for name in weights)))
    spread = weights["mean"].numpy(), weights["spread"].numpy()
    listener = Listener(hearing_student(config, config.backbone.num_layers), decoder, spread, rates)
    listener.load_state_dict(weights)
    return listener.eval()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    options = read_options(parser.parse_args(arguments).config)
    make_speech(options.stores, options.texts, options.text, options.train.threads)
    trainer = build_trainer(options)
    if options.train.compile:
        trainer.listener.compile()
    if options.probe_split is None:
        trainer.train()
        return
    dev = Speech([(user_path(options.stores[0].folder), 1.0)], None, split=options.probe_split)
    given = (dev, trainer.dictations.tokenizer, options.batches, options.train.evaluate_clips)
    trainer.train(lambda _: dev_errors(trainer.listener, *given))


if __name__ == "__main__":
    as_command(main)
