"""Word times of a model that knows a word only some time after it was said."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from dragoman.model.backend import ModelSpec
from dragoman.stream.events import Final
from dragoman.stream.talk import Clip, make_talks

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
    assert median(late - at for late, at in zip(untold, told, strict=True)) == 240
    assert abs(median(told)) <= 80 < median(untold)


def test_the_last_word_ends_where_speech_does() -> None:
    """The silence behind the last word lets the model finish: nothing is taken off there."""
    assert abs(errors_ms(240)[-1]) <= 80


def word_times() -> Any:
    """The script of bench/, which is not installed."""
    path = Path(__file__).parents[1] / "bench" / "word_times.py"
    spec = importlib.util.spec_from_file_location("word_times", path)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    sys.modules["word_times"] = script  # its dataclasses look themselves up
    spec.loader.exec_module(script)
    return script


def test_the_bench_measures_what_is_known() -> None:
    """A reference that is moved by 300 ms, and a word that was not said: only words that are equal count."""
    pytest.importorskip("jiwer", reason="needs the extra bench")
    script = word_times()
    said = speech(TEXT)
    clip = Clip("one", TEXT.replace("fox", "dog"), len(said) / 16_000, lambda: said)
    (talk,) = make_talks([clip], 60.0)
    events = transcribe(session(block_ms=320), talk.samples)

    def measured(moved_ms: float) -> Any:
        times = {"one": [(400.0 * place - moved_ms, 400.0 * place + 400 - moved_ms) for place in range(len(TEXT.split()))]}
        errors = script.Errors()
        errors.add(events, talk, times)
        return errors

    true, moved = measured(0), measured(300)
    assert (true.said, true.written, len(true.ends_ms)) == (13, 13, 12)
    assert true.long == [len(word) >= 4 for word in clip.text.split() if word != "dog"]
    assert np.abs(true.ends_ms).max() <= 330, "a word is dated within its block"
    assert [late - at for late, at in zip(moved.ends_ms, true.ends_ms, strict=True)] == pytest.approx([300] * 12)
    assert "275 ms too late" in script.line("ends", [275.0, 275.0]) and "1 ms too early" in script.line("ends", [-1.0])
    assert script.line("ends", []) == "  ends: nothing matched"


def test_the_bench_finds_where_words_are_said() -> None:
    """Its own reference: first and last character of each word, and what the probe of the training code says between them."""
    torch = pytest.importorskip("torch")
    for needed in ("rapidfuzz", "scipy"):
        pytest.importorskip(needed, reason="needs the extra train")
    from dragoman.model.training.text import ctc_targets

    script = word_times()
    words = ["we", "--", "met", "them"]
    targets = ctc_targets(" ".join(words))
    logprobs = torch.full((1, 5 * len(targets), 64), -9.0)
    for place, target in enumerate(targets):  # a spike in every fifth row
        logprobs[0, 5 * place + 2, target] = -0.01
        logprobs[0, [5 * place + at for at in (0, 1, 3, 4)], 0] = -0.01
    reference = object.__new__(script.Reference)
    reference._probe, reference._spread, reference._features = lambda features: logprobs, (0.0, 1.0), lambda samples: np.zeros((1, 1))
    starts, ends = reference.words_ms(np.zeros(16_000, np.float32), words)
    at_ms = [(row * 384 + 192) / 16 for row in range(2, 5 * len(targets), 5)]
    assert starts == pytest.approx([at_ms[0], at_ms[2], at_ms[3], at_ms[7]])  # of marks alone nothing is heard
    assert ends == pytest.approx([at_ms[1], at_ms[1], at_ms[5], at_ms[10]])
