"""Word times of a model that knows a word only some time after it was said."""

from __future__ import annotations

from dataclasses import replace
from statistics import median

import numpy as np
import pytest
from dragoman.model.backend import ModelSpec
from dragoman.stream.events import Final

from .fakes import ScriptedBackend, hear, speech
from .listeners import check_promises, session, silence, transcribe

TEXT = "the quick brown fox jumps over a lazy dog. we met them again"
DELAY_FRAMES = 6


def late_listener(told_ms: int) -> ScriptedBackend:
    """Hears everything 240 ms late, as a model does that was taught so, and whose folder says ``told_ms``."""
    backend = ScriptedBackend(lambda loudness: hear(loudness[:-DELAY_FRAMES]))
    backend.config = replace(backend.config, hearing_delay_ms=told_ms)
    backend.spec = ModelSpec("late", backend.config)
    return backend


def errors_ms(told_ms: int) -> list[int]:
    """How much too late each word's end is told."""
    samples = np.concatenate([silence(1.0), speech(TEXT, silence_s=1.0)])
    events = transcribe(session(late_listener(told_ms), block_ms=320), samples)
    check_promises(events)
    final = next(event for event in events if isinstance(event, Final))
    assert final.text == TEXT
    return [word.end_ms - (1000 + 400 * (place + 1)) for place, word in enumerate(final.words)]


def test_the_delay_is_taken_from_word_times() -> None:
    told, untold = errors_ms(240), errors_ms(0)
    assert median(untold) - median(told) == pytest.approx(240, abs=40)
    assert abs(median(told)) <= 160 < median(untold)


def test_the_last_word_ends_where_speech_does() -> None:
    """The silence behind the last word lets the model finish: nothing is taken off there."""
    assert abs(errors_ms(240)[-1]) <= 80
