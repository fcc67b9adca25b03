"""Rows of training: ``<bos><audio> frames <end-of-audio><transcribe> text <end>`` in batches of a few fixed shapes.

Some rows go on with ``<de> translation <end>``, as a session asks for one (:mod:`..prompt`, format "tokens"). Some hold only what is
written: ``<bos><transcribe> sentence <end><transcribe> sentence <end>``, without the tokens around audio, so that no audio and silent
audio stay different things.

A batch is a pure function of (seed, step): a run goes on from any step with the very batches it would have seen.
Axes: B rows, T positions, F clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import tokenizers
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import ConfigError
from ..store import Clip
from . import augment, text
from .augment import AugmentOptions
from .speech import Speech
from .splices import FRAME, cut_run, written_after
from .teachers import CENTRE_SAMPLES, HOP_SAMPLES, WIDTH
from .translations import Translations

IGNORE = -100
_TRANSCRIPTS_APART = 8  # every eighth one tells which tokens are usual


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """What rows look like. ``shapes`` are (T, B, share of batches)."""

    shapes: tuple[tuple[int, int, float], ...] = ((192, 21, 0.4), (320, 12, 0.25), (512, 8, 0.35))
    delay_frames: int = 6  # how long after a sound its target comes: the student cannot look ahead
    several: float = 0.5  # chance of one more utterance in a row that has room
    silence: float = 0.02  # share of rows without speech: they must give no words
    labelled: float = 0.7  # share of clips drawn from those with a transcript
    truncate: float = 0.5  # share of rows whose last utterance is cut at a random moment, with the words heard by then (align.py)
    cut_first: float = 0.3  # of these, the share that holds nothing else; the others are cut where the row is full
    translate: float = 0.0  # share of transcribed rows whose clips all have a translation, which follows the transcript
    splice: float = 0.0  # share of rows with speech that are runs of one speaker's words, joined (splices.py): next to nothing to guess
    splice_words: tuple[int, int] = (2, 8)  # words of such a run
    written: float = 0.0  # share of rows without audio: sentences alone, each word asked for, so that words are learnt at little cost
    pairs: float = 0.0  # share of rows without audio: sentences and their translation, which alone is asked for
    mask_frames: int = 6  # longest run of frames replaced by noise; two runs for each 5 s
    wrong_tokens: float = 0.0  # share of a transcript's tokens that are given wrong as input: what comes next must be heard, not guessed
    augment: AugmentOptions = field(default_factory=AugmentOptions)


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's input. ``frames`` and ``ids`` share positions: a position is audio or a token or padding."""

    frames: Tensor  # [B, T, 640] float32; zero where there is no audio
    ids: Tensor  # [B, T] int64; PAD where there is no token
    is_text: Tensor  # [B, T] bool
    labels: Tensor  # [B, T] int64: the token that follows; IGNORE where nothing is asked
    windows: Tensor  # [B, T, 2] int64: first and last position where the letters of the label are heard; -1 where nobody knows
    features: Tensor  # [n, 288] float32: teacher's hidden states, standardised
    characters: Tensor  # [n] int64: the character that is said at the moment of each of these rows; IGNORE where nobody knows
    feature_rows: Tensor  # [n] int64: flat position (b T + t) of each
    ctc: Tensor  # [m] int64 characters of all rows, end to end
    ctc_lengths: Tensor  # [B] int64; 0: no transcript
    audio_frames: Tensor  # [B] int64
    audio_seconds: float


class Batches(Dataset[Batch]):
    """``batches[step]`` → Batch."""

    def __init__(
        self,
        speech: Speech,
        tokenizer: tokenizers.Tokenizer,
        options: BatchOptions,
        seed: int,
        translations: Translations | None = None,
        sentences: Sequence[str] = (),
    ) -> None:
        self.speech, self.tokenizer, self.options, self.seed = speech, tokenizer, options, seed
        if translations is None and (options.translate or options.pairs):
            raise ConfigError(f"batches.translate is {options.translate} and batches.pairs {options.pairs}, but there are no translations")
        if options.written and not sentences:
            raise ConfigError(f"batches.written is {options.written}, but there are no sentences")
        self.sentences = sentences
        self.translations, self._translated = translations, speech.translated(translations) if translations and options.translate else {}
        self._counts: dict[str, int] = {}  # tokens of each transcript met so far

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, step: int) -> Batch:
        rng = np.random.default_rng((self.seed, step))
        shares = np.asarray([share for _, _, share in self.options.shapes])
        length, rows, _ = self.options.shapes[int(rng.choice(len(shares), p=shares / shares.sum()))]
        return _collate([self._row(length, rng) for _ in range(rows)], length, self.speech.spread)

    def _row(self, length: int, rng: np.random.Generator) -> _Row:
        row, options = _Row(), self.options
        if options.pairs and self.translations is not None and rng.random() < options.pairs:
            return self._pairs(self.translations, row, length, rng)
        if options.written and rng.random() < options.written:
            return self._written(row, length, rng)
        row.silence(int(rng.integers(0, 2 * FRAME)) if rng.random() < 0.7 else int(rng.integers(0, 16_000)))
        if rng.random() < options.silence:
            row.silence(int(rng.integers(FRAME, (length - 8) * FRAME)))
            row.labelled = True
        elif options.splice and rng.random() < options.splice:
            self._splice(row, length, rng)
        else:
            self._speak(row, length, rng)
        if not row.cut:
            row.silence(int(rng.integers(0, 8_000)))
        room = (length - 5 - row.text_tokens) * FRAME  # <bos>, <audio>, its end, <transcribe>, <end>
        samples = np.concatenate(row.parts)[:room]
        noise = None
        if self.speech.noise:
            which, clip = self.speech.noise[int(rng.integers(len(self.speech.noise)))]
            noise = self.speech.stores[which].samples(clip)
        samples = augment.add_noise(samples, noise, row.level or 0.05, options.augment, rng)
        row.finish(samples, options, rng)
        if options.wrong_tokens:
            row.given = self._spoil(row.tokens, rng)
        return row

    def _spoil(self, tokens: list[int], rng: np.random.Generator) -> list[int]:
        """A decoder that only ever saw right words before the next one is helpless after its first error (exposure bias)."""
        wrong = rng.random(len(tokens)) < self.options.wrong_tokens
        return np.where(wrong, rng.choice(self._usual_tokens, len(tokens)), tokens).tolist()

    @cached_property
    def _usual_tokens(self) -> NDArray[np.int64]:
        """Tokens as often as transcripts have them: one that never occurs would be known to be wrong."""
        return np.asarray([i for _, _, words in self.speech.labelled[::_TRANSCRIPTS_APART] for i in self.tokenizer.encode(words).ids])

    def _speak(self, row: _Row, length: int, rng: np.random.Generator) -> None:
        """Fill a row with utterances; a row is either all transcribed or all without text, and all translated or none."""
        row.labelled = bool(rng.random() < self.options.labelled)
        if row.labelled and self._translated and rng.random() < self.options.translate:
            row.language = sorted(self._translated)[int(rng.integers(len(self._translated)))]
        may_cut = not row.labelled or (rng.random() < self.options.truncate and row.language is None)
        cut_first, misses = row.labelled and may_cut and rng.random() < self.options.cut_first, 0
        while misses < 24:  # a short clip that fills the row's rest is worth looking for: padding costs as much as speech
            (which, clip, words), other = self._draw(row, rng)
            slowest = 1 + self.options.augment.speed
            room = length - row.samples // FRAME - row.text_tokens - self._count(words) - self._count(other) - 20
            fits = clip.seconds * slowest * 25 <= room
            cuttable = may_cut and (cut_first or misses > 8) and (not row.labelled or clip.id in self.speech.word_ends[which])
            if cuttable and room > 16:
                frames = int(min(room / slowest, clip.samples // FRAME))
                self._add(row, which, clip, words, rng, int(rng.integers(8, frames)) if fits else frames)
                break
            if not fits:
                misses += 1
                continue
            self._add(row, which, clip, words, rng)
            row.translation += self.tokenizer.encode(other).ids if other else []
            if rng.random() > self.options.several and row.samples > length * FRAME // 4:
                break
            row.silence(int(rng.integers(1_600, 12_000)))

    def _splice(self, row: _Row, length: int, rng: np.random.Generator) -> None:
        """Fill a row with runs of words out of one speaker's clips; most of them follow each other without a pause."""
        row.labelled, said, misses = True, "", 0
        speaker = self.speech.draw_speaker(rng)
        change = augment.draw_change(self.speech.rooms, self.options.augment, rng)  # the voice stays: no joint is to be heard
        slowest, (fewest, most) = 1 + self.options.augment.speed, self.options.splice_words
        while misses < 12:
            which, clip, words, runs = speaker[int(rng.integers(len(speaker)))]
            low, high = runs[int(rng.integers(len(runs)))]
            wave, count = self.speech.stores[which].samples(clip), min(int(rng.integers(fewest, most + 1)), high - low)
            first = int(rng.integers(low, high - count + 1))
            run = cut_run(wave, words, self.speech.letters[which][clip.id], first, count)
            written = "" if run is None else written_after(run, said)
            room = length - row.samples // FRAME - row.text_tokens - len(self.tokenizer.encode(written).ids) - 20
            if run is None or (run.end - run.start) * slowest > room * FRAME:
                misses += 1
                continue
            self._append(row, which, clip, wave[run.start : run.end], written, run.letters, rng, run.start, change=change)
            said = written
            if rng.random() < 0.15:
                row.silence(int(rng.integers(1_600, 12_000)))
        row.silence(self.options.delay_frames * FRAME)  # a cut word has no silence of its own behind it

    def _draw(self, row: _Row, rng: np.random.Generator) -> tuple[tuple[int, Clip, str], str]:
        """An utterance, and its translation into the row's language ("" where it has none)."""
        if row.language is None or self.translations is None:
            return self.speech.draw(rng, row.labelled), ""
        places, chance = self._translated[row.language]
        drawn = self.speech.labelled[places[min(int(np.searchsorted(chance, rng.random())), len(places) - 1)]]
        known = self.translations.of(drawn[2], row.language)
        return drawn, known[int(rng.integers(len(known)))]

    def _pairs(self, translations: Translations, row: _Row, length: int, rng: np.random.Generator) -> _Row:
        """Up to six sentences, then their translations. Their words are not asked for: nothing was heard that would say them."""
        row.language = translations.languages()[int(rng.integers(len(translations.languages())))]
        row.labelled, row.asks_words = True, False
        for _ in range(int(rng.integers(1, 7))):
            english, other = translations.draw(row.language, rng)
            if row.text_tokens + self._count(english) + self._count(other) > length - 8:
                break
            self._write(row, english, None, 1.0)
            row.translation += self.tokenizer.encode(other).ids
        row.finish(np.zeros(0, np.float32), self.options, rng)
        return row

    def _written(self, row: _Row, length: int, rng: np.random.Generator) -> _Row:
        """Sentences until the row is full; the last one is cut where it ends."""
        row.labelled = row.alone = True
        while len(row.tokens) < length - 1:
            words = self.sentences[int(rng.integers(len(self.sentences)))]
            row.tokens += [text.TRANSCRIBE, *self.tokenizer.encode(words).ids, text.END]
        row.finish(np.zeros(0, np.float32), self.options, rng)
        return row

    def _write(self, row: _Row, words: str, letters: Sequence[float] | None, factor: float) -> None:
        """Append the tokens of a transcript, and the frames in which its letters are heard; a mark goes with the letter before."""
        encoded = self.tokenizer.encode(words)
        row.tokens += encoded.ids
        spelt = [sum(c != text.SPACE for c in text.ctc_targets(token)) for token in encoded.tokens]
        if not letters or sum(spelt) != sum(c != text.SPACE for c in text.ctc_targets(words)):
            row.windows += [(-1, -1)] * len(spelt)
            return
        first, delay, at = row.samples / FRAME, self.options.delay_frames, 0
        for n in spelt:
            low, high = letters[at if n else max(at - 1, 0)], letters[max(at + n - 1, 0)]
            row.windows.append((int(first + low / factor) + delay - 2, int(first + (high + 1) / factor) + delay + 2))
            at += n

    def _count(self, words: str) -> int:
        if words not in self._counts:
            self._counts[words] = len(self.tokenizer.encode(words).ids) if words else 0
        return self._counts[words]

    def _add(self, row: _Row, which: int, clip: Clip, words: str, rng: np.random.Generator, cut_frames: int | None = None) -> None:
        """Append an utterance, whole or its first ``cut_frames`` with the words heard by then."""
        wave = self.speech.stores[which].samples(clip)
        ends = self.speech.word_ends[which].get(clip.id) if row.labelled else None
        if cut_frames is not None:
            row.cut, wave = True, wave[: cut_frames * FRAME]
        if cut_frames is not None and ends is not None:
            words = " ".join(words.split()[: sum(end + self.options.delay_frames < cut_frames for end in ends)])
        self._append(row, which, clip, wave, words, self.speech.letters[which].get(clip.id), rng)

    def _append(
        self,
        row: _Row,
        which: int,
        clip: Clip,
        wave: NDArray[np.float32],
        words: str,
        letters: Sequence[float] | None,
        rng: np.random.Generator,
        start: int = 0,
        change: augment.Change | None = None,
    ) -> None:
        """Append ``wave``, a clip's samples from ``start`` on, and what is said in it. ``change``: that of the pieces before it; None: its
        own, and a loudness of its own, by ± 6 dB."""
        own = augment.draw_change(self.speech.rooms, self.options.augment, rng) if change is None else change
        wave, factor = own.of(wave), own.factor
        if words:
            self._write(row, words, letters, factor)
        level = augment.rms(wave)
        if row.level:
            wave = wave * (row.level / max(level, 1e-6)) * (2 ** float(rng.uniform(-1, 1)) if change is None else 1.0)
        row.level = row.level or level
        table, characters = self.speech.tables[which], self.speech.characters[which]
        if clip.id in table:
            classes = characters[clip.id][:, 0] if clip.id in characters else None
            row.targets.append((row.samples, len(wave), factor, start, table[clip.id], classes))
        spelt = text.ctc_targets(words)
        row.characters += [1, *spelt] if row.characters and spelt else spelt
        row.parts.append(wave)
        row.samples += len(wave)


class _Row:
    """One row in the making."""

    def __init__(self) -> None:
        self.parts: list[NDArray[np.float32]] = []
        self.samples = 0
        self.level = 0.0
        self.labelled = False
        self.cut = False  # the audio ends inside an utterance
        self.tokens: list[int] = []
        self.given: list[int] | None = None  # the tokens as the model is shown them; None: as they are
        self.language: str | None = None  # translated into
        self.translation: list[int] = []
        self.asks_words = True
        self.alone = False  # sentences without audio, in the row's own order
        self.windows: list[tuple[int, int]] = []  # for each token the frames in which its word is heard
        self.characters: list[int] = []
        self.targets: list[
            tuple[int, int, float, int, NDArray[np.float16], NDArray[np.int8] | None]
        ] = []  # place in the row, samples, speed, place in the clip, the clip's rows, classes

    @property
    def text_tokens(self) -> int:
        """Of the transcript, and of the translation with the two tokens around it."""
        return len(self.tokens) + (0 if self.language is None else len(self.translation) + 2)

    def silence(self, samples: int) -> None:
        self.parts.append(np.zeros(samples, np.float32))
        self.samples += samples

    def finish(self, samples: NDArray[np.float32], options: BatchOptions, rng: np.random.Generator) -> None:
        """Cut into frames, mask, and line the teacher's rows up with the frames."""
        gain = 10 ** float(rng.uniform(-1.2, 0.3))
        samples = np.clip(samples * gain, -1, 1)
        samples = np.pad(samples, (0, -len(samples) % FRAME))
        self.frames = samples.reshape(-1, FRAME).astype(np.float32)
        for _ in range(int(rng.poisson(len(self.frames) / 60)) if options.mask_frames else 0):
            start, run = int(rng.integers(len(self.frames))), int(rng.integers(1, options.mask_frames + 1))
            part = self.frames[start : start + run]
            part[:] = rng.standard_normal(part.shape, dtype=np.float32) * 0.01
        self._align(options.delay_frames)

    def _align(self, delay: int) -> None:
        """Frame t looks at the moment (t − delay + ½) · 640 samples; the teacher's rows are interpolated there."""
        places, values, spoken = [np.zeros(0, np.int64)], [np.zeros((0, WIDTH), np.float16)], [np.zeros(0, np.int64)]
        frames = np.arange(len(self.frames))
        for place, samples, factor, start, rows, classes in self.targets:
            at = (frames - delay + 0.5) * FRAME - place
            keep = (at >= 0) & (at < samples)
            r = np.clip((at[keep] * factor + start - CENTRE_SAMPLES) / HOP_SAMPLES, 0, len(rows) - 1.001)
            low = r.astype(np.int64)
            part = (r - low)[:, None].astype(np.float32)
            values.append((rows[low] * (1 - part) + rows[np.minimum(low + 1, len(rows) - 1)] * part).astype(np.float16))
            places.append(frames[keep])
            spoken.append(np.full(len(low), IGNORE) if classes is None else classes[np.round(r).astype(np.int64)].astype(np.int64))
        self.feature_frames, self.features, self.spoken = np.concatenate(places), np.concatenate(values), np.concatenate(spoken)


def _collate(rows: list[_Row], length: int, spread: tuple[NDArray[np.float32], NDArray[np.float32]]) -> Batch:
    b = len(rows)
    frames = np.zeros((b, length, FRAME), np.float32)
    ids, labels = np.full((b, length), text.PAD), np.full((b, length), IGNORE)
    is_text, windows = np.zeros((b, length), bool), np.full((b, length, 2), -1)
    places: list[NDArray[np.int64]] = []
    for i, row in enumerate(rows):
        n = len(row.frames)
        frames[i, 2 : 2 + n] = row.frames
        ids[i, :2], is_text[i, :2] = (text.BOS, text.BEGIN_AUDIO), True
        places.append(i * length + 2 + row.feature_frames)
        if row.alone:
            ids[i], is_text[i] = [text.BOS, *row.tokens[: length - 1]], True
            labels[i, :-1] = np.where(ids[i, 1:] == text.TRANSCRIBE, IGNORE, ids[i, 1:])  # that a sentence follows is not for it to say
            continue
        if row.labelled:
            tail = [text.END_AUDIO, text.TRANSCRIBE, *row.tokens, text.END]
            if row.language is not None:
                tail += [text.TRANSLATE[row.language], *row.translation, text.END]
            said, tail = len(row.tokens), tail[: length - 2 - n]
            ids[i, 2 + n : 2 + n + len(tail)] = tail
            if row.given is not None:
                ids[i, 4 + n : 4 + n + len(row.given)] = row.given
            is_text[i, 2 + n : 2 + n + len(tail)] = True
            labels[i, 3 + n : 1 + n + len(tail)] = tail[2:]
            labels[i, 4 + n + said : 5 + n + said] = IGNORE  # who asks says into which language
            if not row.asks_words:
                labels[i, 3 + n : 4 + n + said] = IGNORE
            heard = np.asarray(row.windows, np.int64).reshape(-1, 2)[: min(said, len(tail) - 3)]
            known = heard[:, 0] >= 0
            windows[i, 3 + n : 3 + n + len(heard)][known] = 2 + np.clip(heard[known], 0, n - 1)
    features = np.concatenate([row.features for row in rows])
    return Batch(
        frames=torch.from_numpy(frames),
        ids=torch.from_numpy(ids),
        is_text=torch.from_numpy(is_text),
        labels=torch.from_numpy(labels),
        windows=torch.from_numpy(windows),
        features=torch.from_numpy((features - spread[0]) / spread[1]),
        characters=torch.from_numpy(np.concatenate([row.spoken for row in rows])),
        feature_rows=torch.from_numpy(np.concatenate(places)),
        ctc=torch.tensor([c for row in rows for c in row.characters], dtype=torch.int64),
        ctc_lengths=torch.tensor([len(row.characters) for row in rows]),
        audio_frames=torch.tensor([len(row.frames) for row in rows]),
        audio_seconds=sum(len(row.frames) for row in rows) / 25.0,
    )
