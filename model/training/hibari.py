"""Hibari (hibari-tts, Apache-2.0: one voice of Kokoro-82M distilled) as a voice for :mod:`.synthesis`, a hundred times real time.

Its network foretells a spectrum each 12.5 ms apart from the pitch, so one voice becomes many that differ as people do: in the length of
the tract (all formants move together), in the pitch and how far it moves, in breath, and in the rate, of the whole and of single syllables.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, cast

import numpy as np
import soxr
from numpy.typing import NDArray

from ..errors import AudioFormatError, BackendError
from .curves import Curves, at
from .store import SAMPLE_RATE
from .voices import Utterance

FRAMES_PER_S = 80
UNVOICED_HZ = 40.0  # a pitch of no more is none (hibari.dsp.pulses)


class Hibari:
    """The voice that is in the package, read by American or British rules."""

    source = "hibari"
    licence = "Hibari and Kokoro-82M (Apache-2.0)"

    def __init__(self) -> None:
        """Raises BackendError where the package is not installed."""
        try:
            package, self._dsp, words = (cast("Any", import_module(name)) for name in ("hibari", "hibari.dsp", "hibari.g2p"))
        except ImportError as error:
            raise BackendError("the voice hibari needs a package that is not installed; expected: pip install hibari-tts") from error
        self._readers: dict[str, Any] = {name: package.Hibari(g2p=words.G2P(british=name == "gb")) for name in ("us", "gb")}

    def say(self, text: str, chance: np.random.Generator) -> Utterance:
        """Raises AudioFormatError for a text of no sound."""
        accent = "gb" if chance.random() < 0.2 else "us"
        pitch = float(np.exp(chance.uniform(np.log(0.5), np.log(1.3))))
        # The lower the voice, the longer the tract: men's formants lie some 15 % below women's, their pitch at little more than half.
        tract = 1.0 + 0.2 * float(np.log(pitch)) + float(chance.normal(0.0, 0.05))
        reader = self._readers[accent]
        parts = [self._wave(reader, sounds, pitch, tract, chance) for sounds in reader.phonemize(text)]
        if not parts:
            raise AudioFormatError(f"hibari has no sounds for {text!r}")
        return Utterance(soxr.resample(np.concatenate(parts), self._dsp.SR, SAMPLE_RATE), f"{accent} {pitch:.2f} {tract:.2f}")

    def _wave(self, reader: Any, sounds: str, pitch: float, tract: float, chance: np.random.Generator) -> NDArray[np.float32]:
        feed = {"ids": np.asarray([reader.ids(sounds)], np.int64), "speed": np.asarray([chance.uniform(0.8, 1.3)], np.float32)}
        *spectra, f0 = (curves[0] for curves in reader.sess.run(None, feed))
        places = uneven(len(f0), chance)
        harmonics, turn, breath, free, phase = (stretched(at(each, places), tract) for each in spectra)
        f0 = at(f0[None], places)[0]
        voiced = f0 > UNVOICED_HZ
        if voiced.any():
            mean, moves = float(np.exp(np.log(f0[voiced]).mean())), float(chance.uniform(0.6, 1.3))
            f0 = np.where(voiced, pitch * mean * (np.maximum(f0, UNVOICED_HZ) / mean) ** moves, 0.0).astype(np.float32)
        louder = np.float32(chance.uniform(-0.5, 0.7))  # 4 dB less breath to 6 dB more
        return self._dsp.synth(harmonics, turn, breath + louder, free, phase, f0, chance)


def uneven(frames: int, chance: np.random.Generator) -> NDArray[np.float64]:
    """Places among ``frames`` frames, one after the other, that go faster and slower: every 150 ms another rate, of ± a quarter."""
    knots = np.exp(chance.normal(0.0, 0.2, frames * 20 // (3 * FRAMES_PER_S) + 2))
    rates = np.interp(np.linspace(0, len(knots) - 1, 2 * frames), np.arange(len(knots)), knots)
    places = np.cumsum(rates) - rates[0]
    return places[places <= frames - 1]


def stretched(spectra: Curves, factor: float) -> Curves:
    """[bins, F], formants at ``factor`` times their frequencies."""
    return np.ascontiguousarray(at(np.ascontiguousarray(spectra.T), np.clip(np.arange(len(spectra)) / factor, 0, len(spectra) - 1)).T)
