"""Where audio comes from: files and arrays, block by block. (The microphone is a client's business.)"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import soundfile

from ..model.backend import Floats
from ..model.config import SAMPLE_RATE
from ..model.errors import AudioFormatError
from .media import MediaSource

BLOCK_MS = 100

# Where libsndfile's log of a file's header tells of a chunk that is longer than the file, as in "data : 64000 (should be 31978)".
_SHORT = re.compile(r"^\s*(data|SSND|Data Size|riff|Riff size)\s*:\s*(\d+) \(should be (\d+)\)", re.MULTILINE)
_STREAMED_BYTES = 0x7FF0_0000  # who writes into a pipe cannot know the length, and puts the largest number there


class AudioSource(Protocol):
    """Audio of one stream. ``blocks`` gives float32 [n, channels] in [-1, 1] at ``sample_rate``; ``close`` may be called at any time."""

    name: str
    sample_rate: int
    channels: int
    duration_s: float | None  # None: unknown or endless

    def blocks(self) -> Iterator[Floats]: ...

    def close(self) -> None: ...


_UNKNOWN_SAMPLES = 1 << 62  # and more: libsndfile's length of a FLAC file whose header has none, because it went into a pipe


class _NotOurs(AudioFormatError):
    """A file that libsndfile does not read."""


class _Forward(soundfile.SoundFile):
    """A file whose end nobody knows: at the end libsndfile cannot seek to where it is, and would lose the last block over it."""

    def seekable(self) -> bool:
        return False


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
            if "does not exist" in reason:  # what it says of an MP3 that is none
                reason = "Format not recognised"
            raise _NotOurs(f"{path}: {reason}; expected WAV, FLAC, Ogg (Vorbis, Opus) or MP3") from error
        if not self._file.frames:
            self._file.close()
            raise AudioFormatError(f"{path}: holds 0 samples, expected at least one")
        self.name = str(path)
        self.sample_rate, self.channels = int(self._file.samplerate), int(self._file.channels)
        self._promised_samples: int | None = None
        if self._file.frames < _UNKNOWN_SAMPLES:
            self._promised_samples = int(self._file.frames) + self._cut_off_samples(path.stat().st_size)
        else:
            self._file.close()
            self._file = _Forward(str(path))
        self.duration_s: float | None = None if self._promised_samples is None else self._promised_samples / self.sample_rate
        self._block_samples = max(1, self.sample_rate * block_ms // 1000)

    def blocks(self) -> Iterator[Floats]:
        """float32 [n, channels]. Raises AudioFormatError where the file is broken; what came before it is sound."""
        read_samples, promised = 0, self._promised_samples
        while True:
            try:
                block = self._file.read(self._block_samples, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                raise self._broken(read_samples, error.error_string) from error
            if not len(block):
                break
            read_samples += len(block)
            yield np.asarray(block, np.float32)
        if promised is None:
            return
        # Some formats only estimate their length: they count as cut off when a quarter is missing, others when a tenth of a second is.
        estimated = self._file.format in ("OGG", "MPEG")
        if promised - read_samples > (promised // 4 if estimated else self.sample_rate // 10):
            raise self._broken(read_samples, "the file is cut off")

    def close(self) -> None:
        self._file.close()

    def _cut_off_samples(self, file_bytes: int) -> int:
        """What the header of a WAV, W64, AIFF or AU file promises beyond the file's end, which libsndfile only tells its log."""
        lengths = [(int(promised), int(there)) for _, promised, there in _SHORT.findall(self._file.extra_info)]
        missing_bytes = max((promised - there for promised, there in lengths if promised < _STREAMED_BYTES), default=0)
        return round(self._file.frames * max(0, missing_bytes) / file_bytes)

    def _broken(self, read_samples: int, reason: str) -> AudioFormatError:
        expected = "" if self.duration_s is None else f", expected {self.duration_s:.2f} s"
        return AudioFormatError(f"{self.name}: broken after {read_samples / self.sample_rate:.2f} s{expected} ({reason.rstrip('.')})")


def open_source(path: Path, block_ms: int = BLOCK_MS) -> FileSource | MediaSource:
    """A file of sound or video: by libsndfile if it knows the format, else by FFmpeg (the extra ``video``).

    Raises AudioFormatError for a file that is missing, empty, broken at once, or neither; without the extra the error names it.
    """
    try:
        return FileSource(path, block_ms)
    except _NotOurs as refused:
        try:
            return MediaSource(path, block_ms)
        except AudioFormatError as error:
            other = str(error).removeprefix(f"{path}: ")
            raise AudioFormatError(f"{refused}, or what FFmpeg reads ({other})") from error


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
