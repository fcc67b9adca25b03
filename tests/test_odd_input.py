"""The shipped detector and the shipped model where nobody speaks: no word may be written. ``bench/odd_input.py`` tries more of this."""

from __future__ import annotations

import numpy as np
import pytest
from dragoman.model.backend import Floats
from dragoman.model.load import Loaded, load
from dragoman.stream.config import SessionOptions
from dragoman.stream.events import Final
from dragoman.stream.session import Session
from dragoman.stream.vad import Vad

from .listeners import ScriptedVad, transcribe

SAMPLES = 15 * 16_000


def white_noise(level_db: float) -> Floats:
    """``level_db``: RMS below full scale."""
    return (np.random.default_rng(0).standard_normal(SAMPLES) * 10 ** (level_db / 20)).astype(np.float32)


SIGNALS: dict[str, Floats] = {
    "digital silence": np.zeros(SAMPLES, np.float32),
    "white noise, -50 dBFS": white_noise(-50),
    "white noise, -30 dBFS": white_noise(-30),
    "a tone of 440 Hz, -20 dBFS": (0.14 * np.sin(2 * np.pi * 440 * np.arange(SAMPLES) / 16_000)).astype(np.float32),
}


@pytest.fixture(scope="module")
def small() -> Loaded:
    return load(threads=1)


def texts(loaded: Loaded, samples: Floats, vad: Vad | None = None) -> list[str]:
    """Of the segments, with default options, in pieces of 100 ms as a microphone has them."""
    events = transcribe(Session(loaded, SessionOptions(), encoding="float32", vad=vad), samples, cuts=range(0, SAMPLES, 1600))
    return [event.text for event in events if isinstance(event, Final)]


@pytest.mark.parametrize("samples", SIGNALS.values(), ids=SIGNALS)
def test_where_nobody_speaks_nothing_comes_to_the_model(small: Loaded, samples: Floats) -> None:
    assert texts(small, samples) == []


@pytest.mark.parametrize("samples", SIGNALS.values(), ids=SIGNALS)
def test_what_a_detector_takes_for_speech_is_no_word_to_the_model(small: Loaded, samples: Floats) -> None:
    found = texts(small, samples, ScriptedVad([True] * (SAMPLES // 640)))
    assert found and "".join(found).strip() == ""
