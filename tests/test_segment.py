"""Trunk and forks of one segment."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from dragoman.model.cache import Ring
from dragoman.model.errors import BackendError
from dragoman.model.prompt import Task
from dragoman.model.work import run
from dragoman.stream.drafting import Drafting
from dragoman.stream.guards import Guards, special_ids
from dragoman.stream.opening import Openings
from dragoman.stream.segment import Segment
from dragoman.stream.stats import Stats
from dragoman.stream.transcript import Transcript

from .fakes import FRAME, ScriptedBackend, speech


def make(backend: ScriptedBackend, text: str) -> Segment:
    """A segment whose frames wait."""
    task = Task(targets=("de",))
    guards = Guards(
        special_ids(backend.config.special, backend.tokenizer), tokens_per_second=12, floor_tokens=8, loop_tokens=12, loop_copies=3
    )
    cache = run(backend, Openings(backend, backend.prompts).open(task))  # type: ignore[arg-type]
    stats = Stats()
    segment = Segment(
        cache,
        Transcript(backend.tokenizer, 0),
        0,
        prompts=backend.prompts,
        task=task,
        guards=guards,
        stats=stats,
        drafting=Drafting(stats.drafts),
        max_draft=0,
    )
    segment.waiting = list(speech(text).reshape(-1, FRAME))
    return segment


def test_forks_leave_the_trunk_as_it_was() -> None:
    backend = ScriptedBackend()
    segment = make(backend, "the quick fox")
    run(backend, segment.listen())  # type: ignore[arg-type]
    length = segment.cache.length
    for _ in range(2):
        run(backend, segment.guess(audio_s=1.2, heard_ms=1200, word_is_over=False))  # type: ignore[arg-type]
    assert segment.transcript.text == "the quick"
    segment.transcript.flush()
    assert run(backend, segment.translate("de")) == "dethe dequick defox"  # type: ignore[arg-type]
    assert segment.cache.length == length and segment.heard_frames == 30


def test_an_agreeing_hypothesis_costs_one_forward() -> None:
    """The previous unstable text is a draft: verified, not decoded again."""
    backend = ScriptedBackend()
    segment = make(backend, "the quick brown fox jumps")
    run(backend, segment.listen())  # type: ignore[arg-type]
    stats = segment._stats  # pyright: ignore[reportPrivateUsage]
    run(backend, segment.guess(audio_s=2.0, heard_ms=2000, word_is_over=False))  # type: ignore[arg-type]
    dear = stats.forwards
    run(backend, segment.guess(audio_s=2.0, heard_ms=2000, word_is_over=False))  # type: ignore[arg-type]
    assert dear >= 5 and stats.forwards == dear + 1
    assert stats.agreed_tokens == stats.redrafted_tokens > 0


FLOOD = " ".join(f"{word}{place}" for place in range(200) for word in ("quick", "fox"))  # and no loop


def test_a_flood_is_as_long_as_the_cache_can_take_back() -> None:
    """Each fork, to the token: one more would have raised CacheError, and ended the session."""
    backend = ScriptedBackend(lambda loudness: FLOOD, ring=Ring(window=64, capacity=64 + 50 - 1))
    segment = make(backend, "the quick brown fox jumps over a lazy dog.")
    run(backend, segment.listen())  # type: ignore[arg-type]
    length, counts = segment.cache.length, segment._guards.counts  # pyright: ignore[reportPrivateUsage]
    assert segment.cache.room == 50
    run(backend, segment.guess(audio_s=40.0, heard_ms=3600, word_is_over=False))  # type: ignore[arg-type]
    assert (len(segment.transcript.unstable_ids), counts.capped) == (50 - 2 + 1, 1), "all but the last token and the 2 of the tail"
    segment.transcript.flush()
    assert run(backend, segment.translate("de")) == "" and counts.capped == 2, "no room at all"  # type: ignore[arg-type]
    assert segment.cache.length == length


def test_a_translation_without_an_end_is_told_to_have_none() -> None:
    """Up to its last whole word, and with an ellipsis."""
    backend = ScriptedBackend(ring=Ring(window=64, capacity=64 + 50 - 1))
    segment = make(backend, "the quick brown fox jumps over a lazy dog.")
    run(backend, segment.listen())  # type: ignore[arg-type]
    run(backend, segment.guess(audio_s=4.0, heard_ms=3600, word_is_over=False))  # type: ignore[arg-type]
    segment.transcript.flush()
    whole = run(backend, segment.translate("de"))  # type: ignore[arg-type]
    segment._prompts = Short(backend.prompts)  # type: ignore[assignment]  # pyright: ignore[reportPrivateUsage]
    cut = run(backend, segment.translate("de"))  # type: ignore[arg-type]
    assert cut.endswith("…") and 3 <= len(cut.split()) < len(whole.split()) and whole.startswith(f"{cut[:-1]} ")


class Short:
    """Prompts that give a translation few tokens."""

    def __init__(self, prompts: Any) -> None:
        self._prompts = prompts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._prompts, name)

    def translation_tokens(self, said: Any) -> int:
        return 16


def test_frames_that_could_not_be_heard_go_on_waiting() -> None:
    backend = ScriptedBackend()
    segment = make(backend, "the")
    backend.fail_next = "listen"
    with pytest.raises(BackendError):
        run(backend, segment.listen())  # type: ignore[arg-type]
    assert len(segment.waiting) == 10 and segment.heard_frames == 0
    run(backend, segment.listen())  # type: ignore[arg-type]
    assert segment.waiting == [] and segment.heard_frames == 10


def test_the_cut_is_in_the_quietest_place_and_loses_nothing() -> None:
    segment = make(ScriptedBackend(), "the")
    loud, closure, pause = (np.full(FRAME, level, np.float32) for level in (0.5, 0.0, 0.1))
    segment.waiting = [loud, loud, closure, loud, loud, pause, pause, pause, loud, loud]
    assert segment.cut(10) == 3, "cut in the middle of the pause, not in the short closure"
    assert len(segment.waiting) == 7
    segment.waiting = [pause, pause, pause, loud, loud, loud, closure, loud, loud, loud]
    assert segment.cut(6) == 4 and len(segment.waiting) == 6, "no further back than it may"
    for frames in range(5):
        segment.waiting = [loud] * frames
        assert segment.cut(10) + len(segment.waiting) == frames


def test_padding_takes_no_stream_time_and_is_no_digital_silence() -> None:
    backend = ScriptedBackend()
    segment = make(backend, "the")
    before = segment.cache.length
    run(backend, segment.pad(3, FRAME))  # type: ignore[arg-type]
    run(backend, segment.pad(0, FRAME))  # type: ignore[arg-type]
    run(backend, segment.pad(-2, FRAME))  # type: ignore[arg-type]
    assert segment.cache.length == before + 3 and segment.heard_frames == 0
    assert all(0 < level < 0.002 for _, level in segment.cache.items[before:])  # type: ignore[attr-defined]
    assert np.isfinite(segment.waiting).all()
