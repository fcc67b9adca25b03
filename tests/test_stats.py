"""Numbers of a session."""

from __future__ import annotations

import pytest
from dragoman.stream.stats import Stats


def test_real_time_factor() -> None:
    assert Stats().real_time_factor == 0.0
    assert Stats(audio_ms=2000, compute_s=0.5).real_time_factor == pytest.approx(0.25)


def test_lines_tell_shares_and_what_is_missing() -> None:
    text = "\n".join(Stats(agreed_tokens=3, redrafted_tokens=4).lines())
    assert "3 of 4 (75 %)" in text
    assert "no text" in text
    assert "first text       640 ms" in "\n".join(Stats(first_text_ms=640).lines())
