"""Clips with transcripts → talks: long speech of which it is known what is said in it, and when.

A talk is pause, clip, pause, clip, …, pause. The pauses hold faint noise, since no microphone is digitally silent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ..model.backend import Floats
from ..model.config import SAMPLE_RATE
from ..model.errors import AudioFormatError, ConfigError
from ..model.store import Clip as StoredClip
from ..model.store import Store, read_word_ends
from .pcm import PcmReader
from .source import FileSource

SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.3, 1.5
SOUND_FILES = (".wav", ".flac", ".ogg", ".opus", ".mp3")
WANTED = "CLIPS is a folder of sound files with the words of each in a .txt of the same name, or a store folder with --split"
_HISS = 1e-3  # RMS of the noise in pauses
_SPEECH_RANGE_DB = 35.0
_STEP_SAMPLES = SAMPLE_RATE // 50
_ALIGNED_FRAME_MS = 40


@dataclass(frozen=True, slots=True)
class Clip:
    """A recording and its words. ``read`` gives float32 [n] at 16 kHz."""

    name: str
    text: str
    duration_s: float
    read: Callable[[], Floats]
    word_ends_ms: tuple[float, ...] | None = None  # where each word of ``text.split()`` ends, if an alignment is known


@dataclass(frozen=True, slots=True)
class Utterance:
    """A clip's place in a talk, in ms of the talk: its first sample, and where speech begins and ends in it."""

    clip: Clip
    start_ms: float
    onset_ms: float
    end_ms: float


@dataclass(frozen=True, slots=True)
class Talk:
    """``samples``: float32 [n] at 16 kHz."""

    samples: Floats
    utterances: tuple[Utterance, ...]

    @property
    def text(self) -> str:
        return " ".join(utterance.clip.text for utterance in self.utterances)

    @property
    def duration_s(self) -> float:
        return len(self.samples) / SAMPLE_RATE

    @property
    def word_ends_ms(self) -> list[float] | None:
        """Where each word of ``text.split()`` ends, in ms of the talk; None unless every clip is aligned."""
        ends: list[float] = []
        for utterance in self.utterances:
            if utterance.clip.word_ends_ms is None:
                return None
            ends += [utterance.start_ms + end_ms for end_ms in utterance.clip.word_ends_ms]
        return ends


def make_talks(clips: Iterable[Clip], talk_s: float, *, seed: int = 0) -> Iterator[Talk]:
    """Clips in their order, as many in a talk as fit into ``talk_s`` seconds, at least one. The same seed gives the same samples.

    Raises AudioFormatError for a clip that cannot be read or in which nothing is to be heard.
    """
    number, waiting, filled_s = 0, list[Clip](), 0.0
    for clip in clips:
        longest_s = clip.duration_s + LONGEST_PAUSE_S
        if waiting and filled_s + longest_s > talk_s:
            yield _talk(waiting, np.random.default_rng((seed, number)))
            number, waiting, filled_s = number + 1, [], 0.0
        waiting.append(clip)
        filled_s += longest_s
    if waiting:
        yield _talk(waiting, np.random.default_rng((seed, number)))


def _talk(clips: Iterable[Clip], rng: np.random.Generator) -> Talk:
    parts, utterances = [_pause(rng)], list[Utterance]()
    for clip in clips:
        samples = clip.read()
        first, last = speech_span(samples, clip.name)
        start = sum(len(part) for part in parts)
        utterances.append(Utterance(clip, _ms(start), _ms(start + first), _ms(start + last)))
        parts += [samples, _pause(rng)]
    return Talk(np.concatenate(parts), tuple(utterances))


def _pause(rng: np.random.Generator) -> Floats:
    return hiss(int(rng.uniform(SHORTEST_PAUSE_S, LONGEST_PAUSE_S) * SAMPLE_RATE), rng)


def hiss(samples: int, rng: np.random.Generator) -> Floats:
    """The noise of a pause, float32 [samples]."""
    return rng.standard_normal(samples, dtype=np.float32) * np.float32(_HISS)


def speech_span(samples: Floats, name: str) -> tuple[int, int]:
    """Where speech begins and ends in a clip, in samples [first, last): its 20 ms steps within 35 dB of the loudest one.

    Raises AudioFormatError naming the clip if all of it is silent.
    """
    steps = np.pad(samples, (0, -len(samples) % _STEP_SAMPLES)).reshape(-1, _STEP_SAMPLES)
    power = np.mean(np.square(steps, dtype=np.float64), axis=1)
    if not len(power) or power.max() == 0:
        raise AudioFormatError(f"{name}: nothing is to be heard in {len(samples)} samples, expected speech")
    loud = np.flatnonzero(power >= power.max() * 10 ** (-_SPEECH_RANGE_DB / 10))
    return int(loud[0]) * _STEP_SAMPLES, min(len(samples), (int(loud[-1]) + 1) * _STEP_SAMPLES)


def _ms(samples: int) -> float:
    return samples * 1000 / SAMPLE_RATE


# Where clips come from


def read_clips(folder: Path, split: str | None = None) -> list[Clip]:
    """The clips of a folder (see ``WANTED``), sorted by name, or one split of a store, in its order. Samples are read later.

    Raises ConfigError for a folder without clips, AudioFormatError for a file that is no audio or an alignment that does not fit.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: {'is a file' if folder.exists() else 'does not exist'}; {WANTED}")
    if split is not None or (folder / "clips.tsv").exists():
        return _of_store(folder, split)
    sounds = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SOUND_FILES and path.with_suffix(".txt").exists())
    if not sounds:
        raise ConfigError(f"{folder}: no sound file ({', '.join(SOUND_FILES)}) with a .txt beside it; {WANTED}")
    return [_of_file(path, path.relative_to(folder).as_posix()) for path in sounds]


def _of_file(path: Path, name: str) -> Clip:
    try:
        text = " ".join(path.with_suffix(".txt").read_text(encoding="utf-8").split())
    except UnicodeDecodeError as error:
        raise AudioFormatError(f"{path.with_suffix('.txt')}: not UTF-8 text ({error})") from error
    if not text:
        raise AudioFormatError(f"{path.with_suffix('.txt')}: holds no words, expected the transcript of {path.name}")
    source = FileSource(path)
    source.close()
    ends_ms = read_ctm(path.with_suffix(".ctm"), len(text.split())) if path.with_suffix(".ctm").exists() else None
    return Clip(name, text, source.duration_s or 0.0, partial(_read_file, path), ends_ms)


def _read_file(path: Path) -> Floats:
    source = FileSource(path)
    try:
        reader = PcmReader(source.sample_rate, source.channels)
        parts = [reader.push(block) for block in source.blocks()]
        return np.concatenate([*parts, reader.flush()])
    finally:
        source.close()


def read_ctm(path: Path, words: int) -> tuple[float, ...]:
    """Word times of one clip, as NIST's sclite reads them: a line ``clip channel start_s duration_s word`` for each → ends in ms.

    Raises AudioFormatError for a line that is none, and for another count than ``words``.
    """
    ends_ms: list[float] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        fields = line.split()
        if not fields or line.startswith(";;"):
            continue
        try:
            ends_ms.append(1000 * (float(fields[2]) + float(fields[3])))
        except (IndexError, ValueError) as error:
            raise AudioFormatError(f"{path}:{number}: {line!r}, expected 'clip channel start_s duration_s word'") from error
    if len(ends_ms) != words:
        raise AudioFormatError(f"{path}: {len(ends_ms)} words, expected the {words} of {path.with_suffix('.txt').name}")
    return tuple(ends_ms)


def _of_store(folder: Path, split: str | None) -> list[Clip]:
    if not (folder / "clips.tsv").exists():
        raise ConfigError(f"{folder}: no clips.tsv, so it is no store and has no split {split!r}; {WANTED}")
    try:
        store, ends = Store(folder), read_word_ends(folder)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{folder}: not a whole store ({error}), expected clips.tsv with its columns and audio.i16") from error
    found = [clip for clip in store.clips if clip.split == split and clip.text]
    if not found:
        known = ", ".join(sorted({clip.split for clip in store.clips if clip.text}))
        raise ConfigError(f"{folder}: a store without transcribed clips of split {split!r}, expected --split with one of {known}")
    return [Clip(clip.id, clip.text, clip.seconds, partial(store.samples, clip), _aligned(clip, ends)) for clip in found]


def _aligned(clip: StoredClip, ends: dict[str, list[int]]) -> tuple[float, ...] | None:
    """The store's alignment says in which frame a word ends: the middle of it is at most half a frame wrong."""
    frames = ends.get(clip.id)
    if frames is None or len(frames) != len(clip.text.split()):
        return None
    return tuple((frame + 0.5) * _ALIGNED_FRAME_MS for frame in frames)
