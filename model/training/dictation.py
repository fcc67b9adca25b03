"""Batches of clips and what is written of them, for a decoder that reads the text apart from the audio. Axes: B rows, T frames, L tokens.

A batch is a pure function of (seed, step), as in :mod:`.batches`, and what is done to the audio is the same; but a row is one clip, and
its text is no part of the row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import tokenizers
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ..config import SAMPLE_RATE
from ..errors import ConfigError
from . import augment, text
from .augment import AugmentOptions
from .letters import letters_of
from .rows import IGNORE, Batch, Row, collate
from .speech import Speech
from .splices import FRAME, PAUSE, PAUSES, written_after

Floats = NDArray[np.float32]
Drawn = tuple[Row, list[int]] | None  # a row and its tokens, or nothing that fits
FRAMES_PER_TOKEN = 4  # room for 6.25 tokens a second; Moonshine's own transcriber allows 6.5
AROUND = (text.BOS, text.BEGIN_AUDIO, text.END_AUDIO)  # what is heard beside the frames
SHORTEST_CUT = 8  # frames
MOST_LEAD = 8  # frames of silence in front of a clip
RUNS = 16  # of words that are tried for a row of them
MISSES = 2000  # clips drawn in vain, one after the other, until the stores are said to have none that fits


@dataclass(frozen=True, slots=True)
class ClipOptions:
    """What rows look like. Where a file names ``augment``, what it leaves out has the value of AugmentOptions, and not the one below."""

    lengths: tuple[int, ...] = (96, 160, 224, 320, 448)  # positions of a row, ascending; few, as each is compiled
    positions: int = 5376  # of all rows of a batch together
    delay_frames: int = 6  # a cut clip asks for the words that ended so long before
    late_frames: int = 12  # how long after a sound the teacher's feature of it is asked for
    tail_frames: int = 10  # of silence behind a clip that is whole
    truncate: float = 0.3  # share of the clips with known word times that are cut at a random moment
    nobody: float = 0.04  # share of the rows in which nobody speaks
    splice: float = 0.0  # share of the others that are one speaker's words out of several clips (splices.py), as nobody ever said them
    splice_words: tuple[int, int] = (2, 8)  # fewest and most that follow each other as they were said
    mask_frames: int = 6  # longest run of frames replaced by noise; two runs for each 5 s
    wrong_tokens: float = 0.1  # share of tokens that are given wrong as input: what comes next must be heard, not guessed
    augment: AugmentOptions = field(
        default_factory=lambda: AugmentOptions(speed=0.1, noise=0.15, snr_db=(10.0, 40.0), hiss=0.1, room=0.05, tilt=0.2, band=0.0)
    )


@dataclass(frozen=True, slots=True)
class Dictation:
    """What is heard, and what is to be written. ``batch`` has no text but <bos><|audio> in front of the frames and <audio|> behind them."""

    batch: Batch
    ids: Tensor  # [B, L] int64: <|transcribe|>, then tokens as they are given; <eos> behind them
    labels: Tensor  # [B, L] int64: the token that follows each; IGNORE behind the <eos> that is asked for
    cut: Tensor  # [B] bool: the audio ends inside the clip


class Dictations(Dataset[Dictation]):
    """``dictations[step]`` → Dictation. Raises ConfigError where no clip of the stores fits."""

    def __init__(self, speech: Speech, tokenizer: tokenizers.Tokenizer, options: ClipOptions, seed: int) -> None:
        self.speech, self.tokenizer, self.options, self.seed = speech, tokenizer, options, seed
        if not speech.labelled:
            raise ConfigError("the stores have no clip with a transcript, and nothing else can be listened to through a decoder")

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, step: int) -> Dictation:
        rng = np.random.default_rng((self.seed, step))
        shortest, length = self._lengths(rng)
        count, rows, written = max(1, self.options.positions // length), list[Row](), list[list[int]]()
        kind, misses = self._kind(rng), 0
        while len(rows) < count:
            drawn = kind(shortest, length, rng)  # until one fits: if kinds were drawn anew, one that always fits would come oftener
            if drawn is not None:
                kind = self._kind(rng)
            misses = misses + 1 if drawn is None else 0
            if drawn is not None:
                rows.append(drawn[0])
                written.append(drawn[1])
            elif misses > MISSES:
                raise ConfigError(f"batches.lengths: of {MISSES} clips of the stores none fits into a row of {length} positions")
        batch = collate(rows, length, self.speech.spread)
        cut = torch.tensor([row.cut for row in rows])
        return Dictation(batch, *self._lined_up(written, length // FRAMES_PER_TOKEN, rng), cut)

    def _lengths(self, rng: np.random.Generator) -> tuple[int, int]:
        """Fewest frames of a row, and its length; a clip is drawn to choose them, so that a length comes as often as clips have it."""
        _, clip, _ = self.speech.draw(rng, True)
        lengths = self.options.lengths
        slowest = clip.samples / FRAME / (1 - self.options.augment.speed)
        wanted = slowest + MOST_LEAD + self.options.tail_frames + len(AROUND)
        at = next((i for i, length in enumerate(lengths) if length >= wanted), len(lengths) - 1)
        return (lengths[at - 1] - len(AROUND) if at else 0), lengths[at]

    def _kind(self, rng: np.random.Generator) -> Callable[[int, int, np.random.Generator], Drawn]:
        if rng.random() < self.options.nobody:
            return self._nobody
        return self._spliced if rng.random() < self.options.splice else self._row

    def _row(self, shortest: int, length: int, rng: np.random.Generator) -> Drawn:
        """A clip as a row, and its tokens; None if it does not fit."""
        options, speech = self.options, self.speech
        which, clip, words = speech.draw(rng, True)
        wave, ends = speech.stores[which].samples(clip), speech.word_ends[which].get(clip.id)
        cut = ends is not None and rng.random() < options.truncate
        if ends is not None and cut:
            frames = int(rng.integers(SHORTEST_CUT, max(SHORTEST_CUT, len(wave) // FRAME) + 1))
            wave = wave[: frames * FRAME]
            words = " ".join(words.split()[: sum(end + options.delay_frames < frames for end in ends)])
        tokens = self.tokenizer.encode(words).ids
        change = augment.draw_change(speech.rooms, options.augment, rng)
        frames = change.samples(len(wave)) // FRAME + MOST_LEAD + options.tail_frames
        if not shortest <= frames <= length - len(AROUND) or len(tokens) >= length // FRAMES_PER_TOKEN:
            return None  # as most are: before anything is computed
        table = speech.tables[which]
        row = self._heard(change.of(wave), change.factor, table[clip.id] if clip.id in table else None, cut, length, rng)
        if not cut:  # else a word is half heard, of which no letter is known
            row.characters = letters_of(words)
        return row, tokens

    def _spliced(self, shortest: int, length: int, rng: np.random.Generator) -> Drawn:
        """Runs of one speaker's words as a row, all changed alike so that no joint is heard, and their tokens; None if they do not fit.

        Of the teacher nothing is asked there: its features of single clips, put together, cannot be foretold (docs/training.md).
        """
        options, speech = self.options, self.speech
        _, clips = speech.draw_speaker(rng)
        change = augment.draw_change(speech.rooms, options.augment, rng)
        most = (length - len(AROUND) - MOST_LEAD - options.tail_frames) * FRAME
        wanted = int(rng.integers(min(max(shortest * FRAME, most * 3 // 4), most), most + 1)) * change.factor  # padding costs as much
        waves, written, at = list[Floats](), list[str](), 0
        for _ in range(RUNS):
            drawn = speech.draw_run(clips, options.splice_words, rng)
            if drawn is None or at + len(drawn[3]) > wanted:
                continue
            _, _, run, said = drawn
            written.append(written_after(run, written[-1] if written else ""))
            pause = np.zeros(int(rng.integers(*PAUSE)) if rng.random() < PAUSES else 0, np.float32)
            waves += [said, pause]
            at += len(said) + len(pause)
        tokens = self.tokenizer.encode(" ".join(written)).ids
        if not written or len(tokens) >= length // FRAMES_PER_TOKEN:
            return None
        wave = change.of(np.concatenate(waves)[: int(wanted)])
        if not shortest <= len(wave) // FRAME + MOST_LEAD + options.tail_frames <= length - len(AROUND):
            return None
        row = self._heard(wave, change.factor, None, False, length, rng)
        row.characters = letters_of(" ".join(written))
        return row, tokens

    def _heard(
        self, wave: Floats, factor: float, features: NDArray[np.float16] | None, cut: bool, length: int, rng: np.random.Generator
    ) -> Row:
        """``wave``, made ``factor`` times faster, as a row: silence around it, noise under it, and the teacher's ``features`` of it."""
        options = self.options
        row = Row(only_heard=True, ends=True)
        row.cut = cut
        row.silence(int(rng.integers(0, MOST_LEAD * FRAME)))
        row.level = augment.rms(wave)
        if features is not None:
            row.targets.append((row.samples, len(wave), factor, 0, features, None))
        row.parts.append(wave)
        row.samples += len(wave)
        row.silence(0 if cut else options.tail_frames * FRAME)
        samples = np.concatenate(row.parts)[: (length - len(AROUND)) * FRAME]  # of the silence a part of a frame may be too much
        samples = augment.add_noise(samples, self._noise(rng), row.level, options.augment, rng)
        row.finish(samples, options.mask_frames, options.delay_frames, rng, options.late_frames)
        return row

    def _nobody(self, shortest: int, length: int, rng: np.random.Generator) -> Drawn:
        """A noise, hiss, tones or nothing, in equal shares. How loud, no model of this kind hears."""
        samples = int(rng.integers(max(shortest, SHORTEST_CUT), length - len(AROUND) + 1)) * FRAME
        noise, kind = self._noise(rng), int(rng.integers(4))
        if kind == 0 and noise is not None and len(noise):
            wave = np.resize(np.roll(noise, -int(rng.integers(len(noise)))), samples)
        elif kind == 1:
            wave = augment.tilt_spectrum(rng.standard_normal(samples, dtype=np.float32), float(rng.uniform(-0.9, 0.9)))
        elif kind == 2:
            pitches = rng.uniform(50, 2000, int(rng.integers(1, 5)))
            wave = 0.1 * np.sin(2 * np.pi * pitches[:, None] * np.arange(samples) / SAMPLE_RATE).sum(0)
        else:
            wave = np.zeros(samples)
        row = Row(only_heard=True, ends=True)
        row.finish(wave.astype(np.float32), 0, self.options.delay_frames, rng)
        return row, []

    def _noise(self, rng: np.random.Generator) -> NDArray[np.float32] | None:
        if not self.speech.noise:
            return None
        which, clip = self.speech.noise[int(rng.integers(len(self.speech.noise)))]
        return self.speech.stores[which].samples(clip)

    def _lined_up(self, written: list[list[int]], length: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Tokens of each row → ids and labels [B, L]; wrong tokens are drawn from those of the batch, and so as often as they are used."""
        ids, labels = np.full((len(written), length), text.END), np.full((len(written), length), IGNORE)
        ids[:, 0] = text.TRANSCRIBE
        for i, tokens in enumerate(written):
            ids[i, 1 : len(tokens) + 1] = tokens
            labels[i, : len(tokens) + 1] = [*tokens, text.END]
        used = np.asarray([token for tokens in written for token in tokens])
        if len(used):
            wrong = (rng.random(ids.shape) < self.options.wrong_tokens) & (ids >= len(text.SPECIAL_TOKENS))
            ids = np.where(wrong, rng.choice(used, ids.shape), ids)
        return torch.from_numpy(ids), torch.from_numpy(labels)


def whole_clip(samples: NDArray[np.float32], options: ClipOptions) -> Row:
    """A clip as it is, to be listened to: no change but the loudness, which the model does not hear."""
    row = Row(only_heard=True, ends=True)
    row.finish(np.pad(samples, (0, options.tail_frames * FRAME)), 0, options.delay_frames, np.random.default_rng(0))
    return row
