"""Numbers of a session."""

from __future__ import annotations

import pytest
from dragoman.stream.guards import GuardCounts
from dragoman.stream.stats import DraftCounts, Stats, add_stats


def test_real_time_factor() -> None:
    assert Stats().real_time_factor == 0.0
    assert Stats(audio_ms=2000, compute_s=0.5).real_time_factor == pytest.approx(0.25)


def test_lines_tell_shares_and_what_is_missing() -> None:
    stats = Stats()
    stats.drafts["transcript", "hypothesis"] = DraftCounts(4, 3)
    text = "\n".join(stats.lines())
    assert "3 of 4 (75 %)" in text
    assert "no text" in text
    assert "2 cut at a control token, 3 thoughts taken out," in "\n".join(Stats(GuardCounts(special=2, thoughts=3)).lines())
    assert "first text       640 ms" in "\n".join(Stats(first_text_ms=640).lines())


def test_sums_keep_tasks_and_sources_apart() -> None:
    total, more = Stats(audio_ms=10), Stats(audio_ms=5)
    more.guards.loops = 2
    more.drafts["translation", "mtp"] = DraftCounts(8, 5, 1)
    for _ in range(2):
        add_stats(total, more)
    assert (total.audio_ms, total.guards.loops, total.drafted_tokens, total.accepted_tokens) == (20, 4, 16, 10)
    assert total.drafts["translation", "mtp"] == DraftCounts(16, 10, 2) and total.redrafted_tokens == 0
