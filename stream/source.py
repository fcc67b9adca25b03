"""Where audio comes from: files and arrays, block by block. (The microphone is a client's business.)"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import soundfile

from ..model.backend import Floats
from ..model.config import SAMPLE_RATE
from ..model.errors import AudioFormatError

BLOCK_MS = 100


class AudioSource(Protocol):
    """Audio of one stream. ``blocks`` gives float32 [n, channels] in [-1, 1] at ``sample_rate``; ``close`` may be called at any time."""

    name: str
    sample_rate: int
    channels: int
    duration_s: float | None  # None: unknown or endless

    def blocks(self) -> Iterator[Floats]: ...

    def close(self) -> None: ...


class FileSource:
    """A file that libsndfile reads (WAV, FLAC, Ogg Vorbis and Opus, MP3 …), never held in memory as a whole."""

    def __init__(self, path: Path, block_ms: int = BLOCK_MS) -> None:
        """Raises AudioFormatError for a file that is missing, empty, or no audio."""
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "is a pipe or a device" if path.exists() else "does not exist"
            raise AudioFormatError(f"{path}: {what}, expected an audio file")
        try:
            self._file = soundfile.SoundFile(str(path))
        except soundfile.LibsndfileError as error:
            reason = error.error_string.rstrip(".")
            raise AudioFormatError(f"{path}: {reason}; expected WAV, FLAC, Ogg (Vorbis, Opus) or MP3") from error
        if not self._file.frames:
            self._file.close()
            raise AudioFormatError(f"{path}: holds 0 samples, expected at least one")
        self.name = str(path)
        self.sample_rate, self.channels = int(self._file.samplerate), int(self._file.channels)
        self.duration_s: float | None = self._file.frames / self.sample_rate
        self._block_samples = max(1, self.sample_rate * block_ms // 1000)

    def blocks(self) -> Iterator[Floats]:
        """float32 [n, channels]. Raises AudioFormatError where the file is broken; what came before it is sound."""
        read_samples, promised = 0, int(self._file.frames)
        while True:
            try:
                block = self._file.read(self._block_samples, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                raise self._broken(read_samples, error.error_string) from error
            if not len(block):
                break
            read_samples += len(block)
            yield np.asarray(block, np.float32)
        # Some formats only estimate their length: a file counts as cut off when a tenth of a second (FLAC) or a quarter of it is missing.
        missing = promised - read_samples
        if missing > (self.sample_rate // 10 if self._file.format == "FLAC" else promised // 4):
            raise self._broken(read_samples, "the file is cut off")

    def close(self) -> None:
        self._file.close()

    def _broken(self, read_samples: int, reason: str) -> AudioFormatError:
        at_s, expected_s = read_samples / self.sample_rate, self.duration_s or 0.0
        return AudioFormatError(f"{self.name}: broken after {at_s:.2f} s, expected {expected_s:.2f} s ({reason.rstrip('.')})")


class ArraySource:
    """Samples that are in memory: float32 [n] or [n, channels]."""

    def __init__(self, samples: Floats, sample_rate: int = SAMPLE_RATE, *, name: str = "array", block_ms: int = BLOCK_MS) -> None:
        self._samples = samples[:, None] if samples.ndim == 1 else samples
        self.name, self.sample_rate, self.channels = name, sample_rate, self._samples.shape[1]
        self.duration_s: float | None = len(samples) / sample_rate
        self._block_samples = max(1, sample_rate * block_ms // 1000)

    def blocks(self) -> Iterator[Floats]:
        for start in range(0, len(self._samples), self._block_samples):
            yield self._samples[start : start + self._block_samples]

    def close(self) -> None:
        """Nothing to close."""


def paced(
    blocks: Iterator[Floats],
    sample_rate: int,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Floats]:
    """Blocks no earlier than they would have been recorded. Who falls behind is not slowed down further."""
    began_s, samples = clock(), 0
    for block in blocks:
        samples += len(block)
        ahead_s = began_s + samples / sample_rate - clock()
        if ahead_s > 0:
            sleep(ahead_s)
        yield block
