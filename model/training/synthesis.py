"""Synthetic speech: sentences of a text file → a :class:`.store.Store`, in many voices, rates and pitches.

    python -m dragoman.model.training.synthesis --voice flite --sentences FILE --hours 10 --out STORE

Line n of the file is always said in the same voice (the chance is seeded with the line), so an interrupted run goes on where it
stopped and two runs give the same audio. Once the file is used up a new "take" begins, with other voices.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..config import SAMPLE_RATE
from ..errors import AudioFormatError, ConfigError, as_command
from ..store import COLUMNS, read_clips
from .hibari import Hibari
from .store import StoreWriter
from .voices import Flite, Utterance, Voice

log = logging.getLogger(__name__)

VOICES = {"flite": Flite, "hibari": Hibari}  # that need no files of their own
CLIPS_AT_ONCE = 16  # written together: what a killed run loses at most
LOG_EVERY_S = 60.0


def trimmed(samples: NDArray[np.float32], *, keep_s: float = 0.15, floor: float = 0.01) -> NDArray[np.float32]:
    """Cut the silence at both ends down to ``keep_s``; [n] → [≤ n]."""
    loud = np.flatnonzero(np.abs(samples) > floor)
    if len(loud) == 0:
        return samples[:0]
    keep = int(keep_s * SAMPLE_RATE)
    return samples[max(0, loud[0] - keep) : loud[-1] + keep]


def read_sentences(path: Path, *, longest_words: int = 40) -> list[str]:
    """The lines of a text file, white space made single; empty and over-long lines become "" so that numbers stay line numbers."""
    if not path.exists():
        raise ConfigError(f"{path} does not exist; expected a text file, one sentence a line (sentences.py and passages.py make some)")
    lines = [" ".join(line.split()) for line in path.read_text(encoding="utf-8").splitlines()]
    sentences = [line if len(line.split()) <= longest_words else "" for line in lines]
    if not any(sentences):
        raise ConfigError(f"{path}: expected one sentence a line, of at most {longest_words} words; none was found")
    return sentences


def mend(folder: Path) -> None:
    """Cut a store back to its last whole clip, after a run that was killed while it wrote."""
    audio, table = folder / "audio.i16", folder / "clips.tsv"
    if not table.exists():
        audio.unlink(missing_ok=True)
        return
    samples = audio.stat().st_size // 2
    good_bytes, end_samples = 0, 0
    for number, line in enumerate(table.read_bytes().splitlines(keepends=True)):
        fields = line.decode("utf-8", "replace").rstrip("\n").split("\t")
        if not line.endswith(b"\n") or len(fields) != len(COLUMNS):
            break
        if number:
            end = int(fields[-2]) + int(fields[-1])
            if end > samples:
                break
            end_samples = end
        good_bytes += len(line)
    with table.open("r+b") as file:
        file.truncate(good_bytes)
    with audio.open("r+b") as file:
        file.truncate(end_samples * 2)


def voice_named(name: str) -> Voice:
    """One of ``VOICES``. Raises ConfigError for another name, BackendError where the synthesiser is not installed."""
    if name not in VOICES:
        raise ConfigError(f"the voice is {name!r}, expected one of {', '.join(VOICES)}")
    return VOICES[name]()


def plan(sentences: Sequence[str], known: set[str], *, source: str, first_line: int) -> Iterator[tuple[str, int, int, str]]:
    """(id, take, line, text) of every sentence still to say, for ever."""
    for take in count():
        for line in range(first_line, len(sentences)):
            name = f"{source}-{take}-{line:07d}"
            if sentences[line] and name not in known:
                yield name, take, line, sentences[line]


def spoken(voice: Voice, text: str, chance: np.random.Generator, *, longest_s: float) -> Utterance | None:
    """One trimmed utterance; None where the voice fails or the clip is shorter than 0.3 s or longer than ``longest_s``."""
    try:
        said = voice.say(text, chance)
    except AudioFormatError as error:
        log.warning("left out: %s", error)
        return None
    samples = trimmed(said.samples)
    return Utterance(samples, said.speaker) if 0.3 <= len(samples) / SAMPLE_RATE <= longest_s else None


def synthesise(
    voice: Voice,
    sentences: Sequence[str],
    folder: Path,
    *,
    hours: float,
    split: str = "train",
    lang: str = "en",
    seed: int = 0,
    first_line: int = 0,
    longest_s: float = 12.0,
    jobs: int = 1,
) -> float:
    """Add clips until the store holds ``hours`` from this source; returns the hours it holds. Clips longer than ``longest_s`` are
    left out. Raises AudioFormatError if a whole batch of sentences gives nothing."""
    if not any(sentences[first_line:]):
        raise ConfigError(f"no sentence from line {first_line} on; the file has {len(sentences)} lines")
    folder.mkdir(parents=True, exist_ok=True)
    mend(folder)
    table = folder / "clips.tsv"
    clips = [clip for clip in read_clips(table) if clip.source == voice.source] if table.exists() else []
    work = plan(sentences, {clip.id for clip in clips}, source=voice.source, first_line=first_line)

    def one(item: tuple[str, int, int, str]) -> Utterance | None:
        return spoken(voice, item[3], np.random.default_rng((seed, item[1], item[2])), longest_s=longest_s)

    common = {"split": split, "lang": lang, "source": voice.source, "licence": voice.licence}
    meter = Meter(sum(clip.seconds for clip in clips), hours * 3600.0)
    with meter, ThreadPoolExecutor(jobs) as pool:
        while meter.seconds < meter.total_s:
            batch = list(islice(work, CLIPS_AT_ONCE))
            good = [(item, said) for item, said in zip(batch, pool.map(one, batch), strict=True) if said is not None]
            if not good:
                raise AudioFormatError(f"{len(batch)} sentences in a row gave no clip of 0.3 to {longest_s} s, from {batch[0][3]!r} on")
            meter.add(_write(folder, [(item[0], item[3], said) for item, said in good], common, limit_s=meter.total_s - meter.seconds))
    return meter.seconds / 3600.0


def _write(folder: Path, clips: Sequence[tuple[str, str, Utterance]], common: dict[str, str], *, limit_s: float) -> float:
    """Append (id, text, utterance) until ``limit_s`` is reached; returns the seconds added."""
    writer, added_s = StoreWriter(folder), 0.0
    for name, text, said in clips:
        if added_s < limit_s:
            writer.add(said.samples, id=name, speaker=said.speaker, text=text, **common)
            added_s += len(said.samples) / SAMPLE_RATE
    writer.close()
    return added_s


class Meter:
    """Progress in seconds of speech: a bar on a terminal, otherwise a log line a minute."""

    def __init__(self, done_s: float, total_s: float) -> None:
        self.seconds, self.total_s = done_s, total_s
        self._new_s, self._began, self._logged = 0.0, time.monotonic(), 0.0
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.1f} %"))
        self._bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task("synthesising", total=total_s)
        self._bar.update(self._task, completed=done_s)

    def __enter__(self) -> Meter:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        self._log()

    def add(self, seconds: float) -> None:
        self.seconds += seconds
        self._new_s += seconds
        self._bar.update(self._task, completed=self.seconds)
        if self._bar.disable and time.monotonic() - self._logged > LOG_EVERY_S:
            self._log()

    def _log(self) -> None:
        self._logged = time.monotonic()
        speed = self._new_s / max(self._logged - self._began, 1e-9)
        log.info("%.3f of %.3f h, %.1f times real time", self.seconds / 3600.0, self.total_s / 3600.0, speed)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m dragoman.model.training.synthesis", description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--voice", choices=(*VOICES, "kokoro"), required=True)
    add("--sentences", type=Path, required=True, help="text file, one sentence a line, cased and punctuated")
    add("--hours", type=float, required=True, help="hours the store shall hold from this voice")
    add("--out", type=Path, required=True, help="store folder; an existing one is continued")
    add("--first-line", type=int, default=0, help="leave out the lines before this one")
    add("--seed", type=int, default=0)
    add("--split", default="train")
    add("--longest-s", type=float, default=12.0, help="leave out longer clips")
    add("--jobs", type=int, default=1, help="sentences said at the same moment")
    add("--kokoro-model", type=Path, help="Kokoro-82M as one ONNX file")
    add("--kokoro-vocabulary", type=Path, help="vocab.json: token id of each phoneme character")
    add("--kokoro-voices", type=Path, help="folder of voice files, <name>.bin")
    return parser.parse_args()


def _voice(options: argparse.Namespace) -> Voice:
    if options.voice in VOICES:
        return voice_named(options.voice)
    paths = (options.kokoro_model, options.kokoro_vocabulary, options.kokoro_voices)
    if None in paths:
        raise ConfigError("--voice kokoro needs --kokoro-model, --kokoro-vocabulary and --kokoro-voices")
    from .kokoro import Kokoro  # needs onnxruntime, which flite does not

    return Kokoro(*paths)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options = _arguments()
    keywords = {name: getattr(options, name) for name in ("hours", "split", "seed", "first_line", "longest_s", "jobs")}
    held = synthesise(_voice(options), read_sentences(options.sentences), options.out, **keywords)
    log.info("%s holds %.3f h from %s", options.out, held, options.voice)


if __name__ == "__main__":
    as_command(main)
