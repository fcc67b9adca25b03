"""What happens to a clip on its way into a batch. NumPy only; every function is pure, given its generator.

The model normalises each frame's loudness away, so noise between words reaches it as loud as speech: noise, rooms and pauses
belong into training from the first step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft, signal

from ..config import SAMPLE_RATE
from .curves import at

Wave = NDArray[np.float32]
FORMANT_WINDOW = 512  # samples
SMOOTHED = 40  # coefficients of the cepstrum that are kept: 2.5 ms, less than a period of 300 Hz


@dataclass(frozen=True, slots=True)
class AugmentOptions:
    """Probabilities and ranges; all zero is no augmentation."""

    speed: float = 0.12  # factor 1 ± this
    noise: float = 0.6  # share of rows with a noise clip under them
    snr_db: tuple[float, float] = (5.0, 35.0)
    hiss: float = 0.5  # share of rows with a faint white floor
    room: float = 0.2  # share of clips played in a room
    tilt: float = 0.3  # share of clips through a first-order filter
    band: float = 0.1  # share of clips cut to telephone bandwidth
    equalise: float = 0.0  # share of clips through three bands of an equaliser, as microphones and throats differ
    mute: float = 0.0  # share of clips that lose a band of half an octave to one and a half
    formants: float = 0.0  # share of clips whose formants are moved by up to 16 %, and nothing else


def change_speed(wave: Wave, factor: float) -> Wave:
    """Resample by linear interpolation: ``factor`` > 1 is faster and higher."""
    places = np.arange(0, len(wave) - 1, factor, dtype=np.float64)
    return np.interp(places, np.arange(len(wave)), wave).astype(np.float32)


def play_in_room(wave: Wave, response: Wave) -> Wave:
    """Convolve with an impulse response whose direct sound is moved to time zero, so that targets stay aligned."""
    response = response[int(np.argmax(np.abs(response))) :][:8000]
    wet = signal.fftconvolve(wave, response)[: len(wave)]
    return (wet * (rms(wave) / max(rms(wet), 1e-8))).astype(np.float32)


def tilt_spectrum(wave: Wave, amount: float) -> Wave:
    """First-order tilt: positive amounts brighten, negative ones dull."""
    return np.asarray(signal.lfilter([1.0, -amount], [1.0], wave), np.float32)


def equalise(wave: Wave, bands: Sequence[tuple[float, float]]) -> Wave:
    """Raise or lower bands of an octave around (hertz, decibels), by peaking filters (R. Bristow-Johnson, "Audio EQ Cookbook")."""
    for hertz, decibels in bands:
        a, turn = 10 ** (decibels / 40), 2 * np.pi * hertz / SAMPLE_RATE
        width = np.sin(turn) * np.sinh(np.log(2) / 2 * turn / np.sin(turn))
        b = [1 + width * a, -2 * np.cos(turn), 1 - width * a]
        wave = np.asarray(signal.lfilter(b, [1 + width / a, -2 * np.cos(turn), 1 - width / a], wave), np.float32)
    return wave


def mute(wave: Wave, low: float, high: float) -> Wave:
    """Take out what is between two frequencies (hertz), as SpecAugment masks them in spectra (Park et al., arXiv 1904.08779)."""
    sos = signal.butter(3, [low, high], "bandstop", fs=SAMPLE_RATE, output="sos")
    return np.asarray(signal.sosfilt(sos, wave), np.float32)


def move_formants(wave: Wave, factor: float) -> Wave:
    """Put formants at ``factor`` times their frequencies, as a shorter throat would (> 1), and leave pitch and time alone.

    Each spectrum (32 ms, every 16) is multiplied by what its envelope, smoothed in the cepstrum, becomes when it is stretched: the "Vocal
    Tract Length Perturbation" of N. Jaitly and G. Hinton (2013), for samples.
    """
    window = np.sqrt(signal.get_window("hann", FORMANT_WINDOW)).astype(np.float32)
    hop = FORMANT_WINDOW // 2
    padded = np.pad(wave, (hop, FORMANT_WINDOW))
    frames = np.lib.stride_tricks.sliding_window_view(padded, FORMANT_WINDOW)[::hop] * window
    spectra = np.asarray(fft.rfft(frames), np.complex64)
    cepstra = np.asarray(fft.irfft(np.log(np.abs(spectra) + 1e-5)), np.float32)
    cepstra[:, SMOOTHED:-SMOOTHED] = 0.0
    envelope = np.asarray(fft.rfft(cepstra), np.complex64).real
    moved = at(envelope, np.minimum(np.arange(hop + 1) / factor, hop))
    frames = np.asarray(fft.irfft(spectra * np.exp(np.clip(moved - envelope, -3.0, 3.0))), np.float32) * window
    halves = frames.reshape(-1, 2, hop)
    return (halves[1:, 0] + halves[:-1, 1]).reshape(-1)[: len(wave)].astype(np.float32)


def telephone(wave: Wave) -> Wave:
    """Keep 300–3400 Hz."""
    sos = signal.butter(4, [300, 3400], "bandpass", fs=SAMPLE_RATE, output="sos")
    return np.asarray(signal.sosfilt(sos, wave), np.float32)


def rms(wave: Wave) -> float:
    return float(np.sqrt(np.mean(np.square(wave, dtype=np.float64)))) if len(wave) else 0.0


@dataclass(frozen=True, slots=True)
class Change:
    """How a voice in a room is changed, so that several pieces of one speaker may be changed alike."""

    factor: float = 1.0  # of speed; maps targets to the new time axis
    tilt: float | None = None
    response: Wave | None = None  # of a room
    telephone: bool = False
    bands: tuple[tuple[float, float], ...] = ()  # of the equaliser: hertz, decibels
    muted: tuple[float, float] | None = None  # hertz
    formants: float = 1.0  # a factor of their frequencies, beside ``factor``

    def samples(self, before: int) -> int:
        """How many samples ``of`` makes of so many."""
        return math.ceil((before - 1) / self.factor) if self.factor != 1.0 else before

    def of(self, wave: Wave) -> Wave:
        if self.factor != 1.0:
            wave = change_speed(wave, self.factor)
        if self.formants != 1.0:
            wave = move_formants(wave, self.formants)
        if self.tilt is not None:
            wave = tilt_spectrum(wave, self.tilt)
        if self.bands:
            wave = equalise(wave, self.bands)
        if self.muted is not None:
            wave = mute(wave, *self.muted)
        if self.response is not None:
            wave = play_in_room(wave, self.response)
        return telephone(wave) if self.telephone else wave


def draw_change(rooms: list[Wave], options: AugmentOptions, rng: np.random.Generator) -> Change:
    factor = float(rng.uniform(1 - options.speed, 1 + options.speed)) if options.speed else 1.0
    tilt = float(rng.uniform(-0.6, 0.9)) if rng.random() < options.tilt else None
    response = rooms[int(rng.integers(len(rooms)))] if rooms and rng.random() < options.room else None
    narrow = rng.random() < options.band
    bands: tuple[tuple[float, float], ...] = ()
    if options.equalise and rng.random() < options.equalise:
        hertz, decibels = np.exp(rng.uniform(np.log(150), np.log(6000), 3)), rng.uniform(-9, 9, 3)
        bands = tuple(zip(hertz.tolist(), decibels.tolist(), strict=True))
    muted = None
    if options.mute and rng.random() < options.mute:
        low, octaves = math.exp(rng.uniform(math.log(150), math.log(4000))), rng.uniform(0.5, 1.5)
        muted = low, min(low * 2**octaves, 7900.0)
    formants = 1.0
    if options.formants and rng.random() < options.formants:
        formants = float(np.exp(rng.uniform(-0.15, 0.15)))
    return Change(factor, tilt, response, narrow, bands, muted, formants)


def add_noise(row: Wave, noise: Wave | None, level: float, options: AugmentOptions, rng: np.random.Generator) -> Wave:
    """Put a noise clip (repeated as needed) and a faint hiss under a whole row; ``level`` is the rms of its speech."""
    if noise is not None and len(noise) and rng.random() < options.noise:
        start = int(rng.integers(len(noise)))
        bed = np.resize(np.roll(noise, -start), len(row))
        snr_db = float(rng.uniform(*options.snr_db))
        row = (row + bed * (level / max(rms(bed), 1e-6) * 10 ** (-snr_db / 20))).astype(np.float32)
    if rng.random() < options.hiss:
        hiss = rng.standard_normal(len(row), dtype=np.float32) * 10 ** float(rng.uniform(-4.5, -2.5))
        row = (row + hiss).astype(np.float32)
    return row.astype(np.float32)
