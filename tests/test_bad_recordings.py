"""Recordings as people make them, through the real detector: speech is found where it is, and a fault of the recording is no speech."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from dragoman.model.backend import Floats
from dragoman.stream.events import Event, SpeechEnded, SpeechStarted
from dragoman.stream.session import Session

from .fakes import ScriptedBackend
from .listeners import check_promises, finals, loaded

CLIP = Path(__file__).parent / "clips" / "market.flac"
RATE = 16_000
NEAR_MS = 200


def clean() -> Floats:
    samples, rate = soundfile.read(str(CLIP), dtype="float32")
    assert rate == RATE
    quiet = np.zeros(RATE, np.float32)
    return np.concatenate([quiet, samples, quiet])


def heard(samples: Floats, rate: int = RATE) -> list[Event]:
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    session = Session(loaded(ScriptedBackend(lambda loudness: "we met them")), sample_rate=rate, channels=channels)
    events = [event for start in range(0, len(samples), rate // 10) for event in session.push(samples[start : start + rate // 10])]
    events += session.finish()
    check_promises(events)
    return events


def spans(events: list[Event]) -> list[int]:
    return [event.at_ms for event in events if isinstance(event, SpeechStarted | SpeechEnded)]


@pytest.fixture(scope="module")
def expected() -> list[int]:
    found = spans(heard(clean()))
    assert len(found) >= 2
    return found


def telephone() -> tuple[Floats, int]:
    """8 kHz, eight bits of it."""
    narrow = soxr.resample(clean(), RATE, 8_000)
    return np.round(narrow * 127).astype(np.float32) / 127, 8_000


def studio() -> tuple[Floats, int]:
    """96 kHz, stereo, with a whistle at 30 kHz that nobody hears."""
    wide = soxr.resample(clean(), RATE, 96_000)
    whistle = 0.1 * np.sin(2 * np.pi * 30_000 * np.arange(len(wide)) / 96_000)
    return np.stack([wide, wide], axis=1) + whistle[:, None].astype(np.float32), 96_000


def dead_channel() -> tuple[Floats, int]:
    return np.stack([clean(), np.zeros_like(clean())], axis=1), RATE


def clipped() -> tuple[Floats, int]:
    loud = clean() * 8
    assert np.mean(np.abs(loud) >= 1) > 0.05
    return np.clip(loud, -1, 1), RATE


def over_full_scale() -> tuple[Floats, int]:
    """Floats may go beyond 1; a mixer's file does."""
    loud = clean() / np.abs(clean()).max() * 4
    return loud.astype(np.float32), RATE


def direct_current() -> tuple[Floats, int]:
    return clean() + np.float32(0.2), RATE


def quiet() -> tuple[Floats, int]:
    return clean() * np.float32(0.05), RATE


@pytest.mark.parametrize("recording", [telephone, studio, dead_channel, clipped, over_full_scale, direct_current, quiet])
def test_speech_is_found_where_it_is(recording: object, expected: list[int]) -> None:
    samples, rate = recording()  # type: ignore[operator]
    events = heard(samples, rate)
    found = spans(events)
    assert len(finals(events)) == len(expected) // 2 == len(found) // 2
    assert max(abs(at - wanted) for at, wanted in zip(found, expected, strict=True)) <= NEAR_MS


@pytest.mark.parametrize("level", [0.0, 0.5, -1.0])
def test_a_constant_level_is_silence(level: float) -> None:
    assert spans(heard(np.full(3 * RATE, level, np.float32))) == []


def test_a_plug_that_is_pulled_is_no_speech() -> None:
    """A click to full scale, then nothing."""
    samples = np.zeros(3 * RATE, np.float32)
    samples[RATE : RATE + 40] = 1.0
    assert finals(heard(samples)) == []
