"""Rows of training: ``<bos><audio> frames <end-of-audio><transcribe> text <end>`` in batches of a few fixed shapes.

Some rows go on with ``<de> translation <end>``, as a session asks for one (:mod:`..prompt`, format "tokens"). Some hold only what is
written: ``<bos><transcribe> sentence <end><transcribe> sentence <end>``, without the tokens around audio, so that no audio and silent
audio stay different things.

A batch is a pure function of (seed, step): a run goes on from any step with the very batches it would have seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import tokenizers
from numpy.typing import NDArray
from torch.utils.data import Dataset

from ..errors import ConfigError
from ..store import Clip
from . import augment, text
from .augment import AugmentOptions
from .compose import Piece, Vocabulary
from .ngrams import NGrams
from .rows import Batch, Row, collate
from .speech import Speaker, Speech, Spoken, drawn
from .splices import FRAME, PAUSE, PAUSES, Run, cut_run, written_after
from .translations import Translations

_SENTENCES_TRIED = 100  # that do not fit, or have a word that the speaker never said: about one in eleven can be said
_TRANSCRIPTS_APART = 8  # every eighth one tells which tokens are usual


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """What rows look like. ``shapes`` are (T, B, share of batches)."""

    shapes: tuple[tuple[int, int, float], ...] = ((192, 21, 0.4), (320, 12, 0.25), (512, 8, 0.35))
    delay_frames: int = 6  # how long after a sound its target comes: the student cannot look ahead
    late_frames: int = 0  # and how long after it comes once more, in a higher layer (depths.late); 0: it does not
    several: float = 0.5  # chance of one more utterance in a row that has room
    silence: float = 0.02  # share of rows without speech: they must give no words
    labelled: float = 0.7  # share of clips drawn from those with a transcript
    heard: float = 0.0  # share of batches without text, of clips with or without a transcript: the layers above hearing and spelling rest
    truncate: float = 0.5  # share of rows whose last utterance is cut at a random moment, with the words heard by then (align.py)
    cut_first: float = 0.3  # of these, of the shortest shape, the share that holds nothing else; the others are cut where the row is full
    translate: float = 0.0  # share of transcribed rows whose clips all have a translation, which follows the transcript
    splice: float = 0.0  # share of rows with speech that are runs of one speaker's words, joined (splices.py): next to nothing to guess
    splice_words: tuple[int, int] = (2, 8)  # words of such a run
    compose: float = 0.0  # share of the other rows with speech that are sentences of the texts in one speaker's own words (compose.py)
    written: float = 0.0  # share of rows without audio: sentences alone, each word asked for, so that words are learnt at little cost
    pairs: float = 0.0  # share of rows without audio: sentences and their translation, which alone is asked for
    mask_frames: int = 6  # longest run of frames replaced by noise; two runs for each 5 s
    wrong_tokens: float = 0.0  # share of a transcript's tokens that are given wrong as input: what comes next must be heard, not guessed
    augment: AugmentOptions = field(default_factory=AugmentOptions)


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
        ngrams: NGrams | None = None,
    ) -> None:
        self.speech, self.tokenizer, self.options, self.seed = speech, tokenizer, options, seed
        if translations is None and (options.translate or options.pairs):
            raise ConfigError(f"batches.translate is {options.translate} and batches.pairs {options.pairs}, but there are no translations")
        if (options.written or options.compose) and not sentences:
            raise ConfigError(f"batches.written is {options.written} and batches.compose {options.compose}, but there are no sentences")
        self.sentences, self.ngrams = sentences, ngrams
        self.translations, self._translated = translations, speech.translated(translations) if translations and options.translate else {}
        self._counts: dict[str, int] = {}  # tokens of each transcript met so far
        self._vocabularies: dict[Speaker, Vocabulary] = {}  # of the speakers met so far

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, step: int) -> Batch:
        rng = np.random.default_rng((self.seed, step))
        shares = np.asarray([share for _, _, share in self.options.shapes])
        length, rows, _ = self.options.shapes[int(rng.choice(len(shares), p=shares / shares.sum()))]
        only_heard = bool(self.options.heard and rng.random() < self.options.heard)
        return collate([self._row(length, rng, only_heard) for _ in range(rows)], length, self.speech.spread, self.ngrams)

    def _row(self, length: int, rng: np.random.Generator, only_heard: bool) -> Row:
        row, options = Row(only_heard), self.options
        if only_heard:
            self._speak(row, length, rng)
            return self._finished(row, length, rng)
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
        elif options.compose and rng.random() < options.compose:
            self._compose(row, length, rng)
        else:
            self._speak(row, length, rng)
        return self._finished(row, length, rng)

    def _finished(self, row: Row, length: int, rng: np.random.Generator) -> Row:
        options = self.options
        if not row.cut:
            row.silence(int(rng.integers(0, 8_000)))
        room = (length - 5 - row.text_tokens) * FRAME  # <bos>, <audio>, its end, <transcribe>, <end>
        samples = np.concatenate(row.parts)[:room]
        noise = None
        if self.speech.noise:
            which, clip = self.speech.noise[int(rng.integers(len(self.speech.noise)))]
            noise = self.speech.stores[which].samples(clip)
        samples = augment.add_noise(samples, noise, row.level or 0.05, options.augment, rng)
        row.finish(samples, options.mask_frames, options.delay_frames, rng, options.late_frames)
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

    def _speak(self, row: Row, length: int, rng: np.random.Generator) -> None:
        """Fill a row with utterances; a row is either all transcribed or all without text, and all translated or none."""
        row.labelled = not row.only_heard and bool(rng.random() < self.options.labelled)
        if row.labelled and self._translated and rng.random() < self.options.translate:
            row.language = sorted(self._translated)[int(rng.integers(len(self._translated)))]
        may_cut = not row.labelled or (rng.random() < self.options.truncate and row.language is None)
        shortest = min(shape[0] for shape in self.options.shapes)  # a longer row that holds nothing else is two thirds padding
        cut_first, misses = row.labelled and may_cut and length == shortest and rng.random() < self.options.cut_first, 0
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

    def _splice(self, row: Row, length: int, rng: np.random.Generator) -> None:
        """Fill a row with runs of words out of one speaker's clips; most of them follow each other without a pause."""
        row.labelled, said, misses = True, "", 0
        _, clips = self.speech.draw_speaker(rng)
        change = augment.draw_change(self.speech.rooms, self.options.augment, rng)  # the voice stays: no joint is to be heard
        slowest = 1 + self.options.augment.speed
        while misses < 12:
            drawn = self.speech.draw_run(clips, self.options.splice_words, rng)
            written = "" if drawn is None else written_after(drawn[2], said)
            room = length - row.samples // FRAME - row.text_tokens - len(self.tokenizer.encode(written).ids) - 20
            if drawn is None or len(drawn[3]) * slowest > room * FRAME:
                misses += 1
                continue
            which, clip, run, wave = drawn
            self._append(row, which, clip, wave, written, run.letters, rng, run.start, change=change)
            said = written
            if rng.random() < PAUSES:
                row.silence(int(rng.integers(*PAUSE)))
        row.silence(self.options.delay_frames * FRAME)  # a cut word has no silence of its own behind it

    def _compose(self, row: Row, length: int, rng: np.random.Generator) -> None:
        """Fill a row with sentences in one speaker's words; of a speaker who has few, with fewer, and with runs behind them."""
        row.labelled, misses = True, 0
        speaker, clips = self.speech.draw_speaker(rng)
        if speaker not in self._vocabularies:
            self._vocabularies[speaker] = Vocabulary(clips)
        change = augment.draw_change(self.speech.rooms, self.options.augment, rng)
        while misses < _SENTENCES_TRIED:
            sentence = self.sentences[int(rng.integers(len(self.sentences)))]
            runs = self._said_by(clips, self._vocabularies[speaker].pieces(sentence, rng))
            room = length - row.samples // FRAME - row.text_tokens - self._count(sentence) - 20
            if not runs or sum(len(wave) for *_, wave in runs) * (1 + self.options.augment.speed) > room * FRAME:
                misses += 1
                continue
            words, at = sentence.split(), 0
            for which, clip, run, wave in runs:
                count = len(run.words.split())
                self._append(row, which, clip, wave, " ".join(words[at : at + count]), run.letters, rng, run.start, change=change)
                at += count
            row.silence(int(rng.integers(1_600, 12_000)))
        if not row.tokens:
            self._splice(row, length, rng)

    def _said_by(self, clips: Sequence[Spoken], pieces: Sequence[Piece]) -> list[tuple[int, Clip, Run, NDArray[np.float32]]]:
        """Pieces of a speaker's clips → store, clip, run and its samples; none if one of them cannot be cut out."""
        runs: list[tuple[int, Clip, Run, NDArray[np.float32]]] = []
        for piece in pieces:
            which, clip, words, _ = clips[piece.clip]
            wave, letters = self.speech.stores[which].samples(clip), self.speech.letters[which][clip.id]
            run = cut_run(wave, words, letters, piece.first, piece.count)
            if run is None:
                return []
            runs.append((which, clip, run, wave[run.start : run.end]))
        return runs

    def _draw(self, row: Row, rng: np.random.Generator) -> tuple[tuple[int, Clip, str], str]:
        """An utterance, and its translation into the row's language ("" where it has none)."""
        if row.language is None or self.translations is None:
            return (self.speech.draw_heard(rng) if row.only_heard else self.speech.draw(rng, row.labelled)), ""
        places, chance = self._translated[row.language]
        item = self.speech.labelled[places[drawn(chance, rng)]]
        known = self.translations.of(item[2], row.language)
        return item, known[int(rng.integers(len(known)))]

    def _pairs(self, translations: Translations, row: Row, length: int, rng: np.random.Generator) -> Row:
        """Up to six sentences, then their translations. Their words are not asked for: nothing was heard that would say them."""
        row.language = translations.languages()[int(rng.integers(len(translations.languages())))]
        row.labelled, row.asks_words = True, False
        for _ in range(int(rng.integers(1, 7))):
            english, other = translations.draw(row.language, rng)
            if row.text_tokens + self._count(english) + self._count(other) > length - 8:
                break
            self._write(row, english, None, 1.0)
            row.translation += self.tokenizer.encode(other).ids
        row.finish(np.zeros(0, np.float32), 0, self.options.delay_frames, rng)
        return row

    def _written(self, row: Row, length: int, rng: np.random.Generator) -> Row:
        """Sentences until the row is full; the last one is cut where it ends."""
        row.labelled = row.alone = True
        while len(row.tokens) < length - 1:
            words = self.sentences[int(rng.integers(len(self.sentences)))]
            row.tokens += [text.TRANSCRIBE, *self.tokenizer.encode(words).ids, text.END]
        row.finish(np.zeros(0, np.float32), 0, self.options.delay_frames, rng)
        return row

    def _write(self, row: Row, words: str, letters: Sequence[float] | None, factor: float) -> None:
        """Append the tokens of a transcript, and the frames in which its letters are heard; a mark goes with the letter before."""
        encoded = self.tokenizer.encode(words)
        row.tokens += encoded.ids
        spelt = [sum(c != text.SPACE for c in text.ctc_targets(token)) for token in encoded.tokens]
        if not letters or not len(letters) >= sum(spelt) == sum(c != text.SPACE for c in text.ctc_targets(words)):
            row.windows += [(-1, -1)] * len(spelt)
            return
        first, delay, at = row.samples / FRAME, self.options.delay_frames, 0
        latest = max(delay, self.options.late_frames)
        for n in spelt:
            low, high = letters[at if n else max(at - 1, 0)], letters[max(at + n - 1, 0)]
            row.windows.append((int(first + low / factor) + delay - 2, int(first + (high + 1) / factor) + latest + 2))
            at += n

    def _count(self, words: str) -> int:
        if words not in self._counts:
            self._counts[words] = len(self.tokenizer.encode(words).ids) if words else 0
        return self._counts[words]

    def _add(self, row: Row, which: int, clip: Clip, words: str, rng: np.random.Generator, cut_frames: int | None = None) -> None:
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
        row: Row,
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
