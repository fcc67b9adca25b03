"""What :mod:`.synthesis` asks of a synthesiser, and CMU Flite as the cheapest one."""

from __future__ import annotations

import io
import shutil
import subprocess
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from ..errors import AudioFormatError, BackendError
from .store import SAMPLE_RATE


@dataclass(frozen=True, slots=True)
class Utterance:
    """One spoken sentence: float32 mono [n] at ``SAMPLE_RATE`` in [-1, 1], and who spoke it."""

    samples: NDArray[np.float32]
    speaker: str


class Voice(Protocol):
    """A synthesiser. ``say`` is called from several threads and draws voice, rate and pitch from ``chance``."""

    source: str
    licence: str

    def say(self, text: str, chance: np.random.Generator) -> Utterance: ...


class Flite:
    """CMU Flite, by its command; some 70 times real time on one core.

    Only four built-in voices, so each sentence also gets a "tract" factor: the wave is resampled by it, which moves the formants
    and the pitch together as a shorter or longer vocal tract does, while ``duration_stretch`` keeps the rate apart from it.
    """

    source = "flite"
    licence = "CMU Flite voices (BSD-like, attribution)"
    pitch_hz = {"awb": 125.0, "slt": 170.0, "kal16": 95.0, "rms": 0.0}  # 0: the voice ignores int_f0_target_mean

    def __init__(self, command: str = "flite") -> None:
        found = shutil.which(command)
        if found is None:
            raise BackendError(f"the command {command!r} was not found; expected CMU Flite (on Debian: apt-get install flite)")
        self.command = found

    def say(self, text: str, chance: np.random.Generator) -> Utterance:
        """Raises AudioFormatError if flite gives no sound for the text."""
        name = str(chance.choice(sorted(self.pitch_hz)))
        tract = float(chance.uniform(0.88, 1.14))
        settings = {"duration_stretch": float(chance.uniform(0.78, 1.3)) * tract}
        if self.pitch_hz[name]:
            settings["int_f0_target_mean"] = self.pitch_hz[name] * float(chance.uniform(0.8, 1.3)) / tract
        options = [part for key, value in settings.items() for part in ("--setf", f"{key}={value:.3f}")]
        done = subprocess.run([self.command, "-voice", name, *options, "-t", text, "-o", "/dev/stdout"], capture_output=True, check=False)
        if done.returncode or len(done.stdout) <= 44:  # 44: an empty WAV file
            raise AudioFormatError(f"flite gave no sound for {text!r} (exit code {done.returncode}): {done.stderr.decode()[:200]}")
        wave, rate = soundfile.read(io.BytesIO(done.stdout), dtype="float32")
        return Utterance(soxr.resample(wave, rate * tract, SAMPLE_RATE), name)
