"""Pulse-code audio of any common shape → 16 kHz mono float32.

The same samples come out under any cutting of the input: the resampler is fed lots of a fixed size, whatever the pushes were.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import soxr
from numpy.typing import NDArray

from ..model.backend import Floats
from ..model.config import SAMPLE_RATE
from ..model.errors import AudioFormatError

Encoding = Literal["int16", "float32"]
Pcm = bytes | bytearray | memoryview | NDArray[np.int16] | NDArray[np.float32]

LOWEST_RATE, HIGHEST_RATE = 8_000, 192_000
MOST_CHANNELS = 32
LARGEST_SAMPLE = 8.0  # float audio is nominally in [-1, 1]; beyond this it is not audio but integers in floats
_LOTS_PER_SECOND = 50


class PcmReader:
    """Pushed audio → float32 [n] at 16 kHz, mono. One for each stream."""

    def __init__(self, sample_rate: int = SAMPLE_RATE, channels: int = 1, encoding: Encoding = "int16") -> None:
        """``encoding`` tells how BYTES are to be read (little endian, channels interleaved); arrays carry their own dtype.

        Raises AudioFormatError for a rate, a channel count or an encoding that is not supported.
        """
        if not LOWEST_RATE <= sample_rate <= HIGHEST_RATE:
            raise AudioFormatError(f"sample rate {sample_rate} Hz, expected {LOWEST_RATE} to {HIGHEST_RATE} Hz")
        if not 1 <= channels <= MOST_CHANNELS:
            raise AudioFormatError(f"{channels} channels, expected 1 to {MOST_CHANNELS}")
        if encoding not in ("int16", "float32"):
            raise AudioFormatError(f"encoding {encoding!r}, expected 'int16' or 'float32'")
        self.sample_rate, self.channels = sample_rate, channels
        self.encoding: Encoding = encoding
        self.received_samples = 0  # at the input rate, for each channel
        self._made_samples = 0  # at 16 kHz
        self._lot_samples = sample_rate // _LOTS_PER_SECOND
        self._waiting = np.empty(0, np.float32)
        self._resampler = None if sample_rate == SAMPLE_RATE else soxr.ResampleStream(sample_rate, SAMPLE_RATE, 1, dtype="float32")

    @property
    def received_ms(self) -> int:
        return self.received_samples * 1000 // self.sample_rate

    def push(self, pcm: Pcm) -> Floats:
        """Bytes, or an array [n] or [n, channels] of int16 or float32, n ≥ 1 → float32 [m].

        Raises AudioFormatError before anything is taken in, so a refused push changes nothing.
        """
        mono = self._mono(_samples(pcm, self.encoding, self.channels))
        self.received_samples += len(mono)
        if self._resampler is None:
            return mono
        waiting = np.concatenate([self._waiting, mono])
        whole = len(waiting) - len(waiting) % self._lot_samples
        self._waiting = waiting[whole:].copy()
        lots = waiting[:whole].reshape(-1, self._lot_samples)
        made = _joined([self._resampler.resample_chunk(lot) for lot in lots])
        self._made_samples += len(made)
        return made

    def flush(self) -> Floats:
        """What the resampler still holds of what was pushed; float32 [m], so that all that came out is as long as what was pushed, to
        the sample. What is pushed later is resampled as if it were the beginning of a stream."""
        if self._resampler is None:
            return np.empty(0, np.float32)
        rest, self._waiting = self._waiting, np.empty(0, np.float32)
        made = self._resampler.resample_chunk(rest, last=True)
        self._resampler.clear()
        missing = round(self.received_samples * SAMPLE_RATE / self.sample_rate) - self._made_samples - len(made)
        made = np.pad(made, (0, missing)) if missing > 0 else made[: len(made) + missing]
        self._made_samples += len(made)
        return made

    def _mono(self, samples: NDArray[np.int16] | NDArray[np.float32]) -> Floats:
        """[n, channels] → float32 [n], the mean of the channels. Raises AudioFormatError for values that are no audio."""
        if samples.dtype == np.int16:
            return _mean(samples.astype(np.float32) / np.float32(32768.0))
        floats = samples.astype(np.float32, copy=False)
        largest = float(np.abs(floats).max())  # NaN and Inf come through max()
        if not np.isfinite(largest):
            bad = int(np.count_nonzero(~np.isfinite(floats)))
            raise AudioFormatError(f"{bad} of {floats.size} samples are NaN or infinite, expected finite values in [-1, 1]")
        if largest > LARGEST_SAMPLE:
            raise AudioFormatError(f"float32 samples reach {largest:g}, expected values in [-1, 1] (are they integers in floats?)")
        return _mean(floats)


def _mean(samples: Floats) -> Floats:
    """[n, channels] → [n], an array of its own. NumPy takes ten times as long for the mean of one as for a copy."""
    return samples[:, 0].copy() if samples.shape[1] == 1 else samples.mean(axis=1, dtype=np.float32)


def _samples(pcm: Pcm, encoding: Encoding, channels: int) -> NDArray[np.int16] | NDArray[np.float32]:
    """Pushed audio → [n, channels], n ≥ 1, of int16 or float32."""
    if isinstance(pcm, np.ndarray):
        return _from_array(pcm, channels)
    if not isinstance(pcm, bytes | bytearray | memoryview):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise AudioFormatError(f"audio of type {type(pcm).__name__}, expected bytes or a NumPy array")
    dtype = np.dtype("<i2" if encoding == "int16" else "<f4")
    size, step = memoryview(pcm).nbytes, dtype.itemsize * channels
    if size == 0:
        raise AudioFormatError("0 bytes of audio, expected at least one sample")
    if size % step:
        raise AudioFormatError(f"{size} bytes of audio, expected a multiple of {step} ({channels} channel(s) of {encoding})")
    return np.frombuffer(pcm, dtype).reshape(-1, channels)


def _from_array(pcm: NDArray[np.int16] | NDArray[np.float32], channels: int) -> NDArray[np.int16] | NDArray[np.float32]:
    dtype: np.dtype[Any] = pcm.dtype  # whatever the caller passed, the annotation notwithstanding
    if dtype != np.int16 and dtype != np.float32:
        raise AudioFormatError(f"audio of dtype {pcm.dtype}, expected int16 or float32")
    if pcm.size == 0:
        raise AudioFormatError(f"audio of shape {list(pcm.shape)} is empty, expected at least one sample")
    shaped = pcm[:, None] if pcm.ndim == 1 else pcm
    if shaped.ndim != 2 or shaped.shape[1] != channels:
        want = "[n] or [n, 1]" if channels == 1 else f"[n, {channels}]"
        raise AudioFormatError(f"audio of shape {list(pcm.shape)}, expected {want}")
    return shaped


def _joined(parts: list[Floats]) -> Floats:
    return np.concatenate(parts) if parts else np.empty(0, np.float32)
