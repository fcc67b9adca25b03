"""Drafts are counted by task and source, and stop where they cost more than they save. Time is the backend's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from dragoman.stream.config import SessionOptions
from dragoman.stream.drafting import Drafting, ForwardCost, Switch
from dragoman.stream.events import Drafts, Ended, Event
from dragoman.stream.scheduler import Lane, Scheduler
from dragoman.stream.session import Session
from dragoman.stream.stats import DraftCounts, Stats

from .fakes import ScriptedBackend, hear, speech
from .listeners import LoudnessVad, loaded, session, transcribe

TALK = speech("the quick brown fox jumps over a lazy dog. we met them again on monday,", silence_s=1.0)


class TimedBackend(ScriptedBackend):
    """Each forward takes ``fixed_s + row_s * tokens``, each call of the drafter ``drafter_s``."""

    def __init__(self, *args: Any, fixed_s: float = 0.010, row_s: float = 0.001, drafter_s: float = 0.001, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.now_s = 0.0
        self.fixed_s, self.row_s, self.drafter_s = fixed_s, row_s, drafter_s

    def step(self, work: Any, *, wanted: Any = None) -> Any:
        self.now_s += self.fixed_s + self.row_s * sum(len(ids) for _, ids in work)
        return super().step(work, wanted=wanted)

    def draft(self, work: Any) -> Any:
        self.now_s += self.drafter_s
        return super().draft(work)


def listen_to(backend: TimedBackend, times: int = 6, **options: Any) -> tuple[Session, list[Event]]:
    stream = Session(loaded(backend), SessionOptions.model_validate(options), vad=LoudnessVad(), clock=lambda: backend.now_s)
    events: list[Event] = []
    for _ in range(times):
        events += stream.push(TALK)
    return stream, events + stream.finish()


def untimed(times: int = 6, **options: Any) -> list[Event]:
    stream = session(**options)
    return [event for _ in range(times) for event in stream.push(TALK)] + stream.finish()


def test_the_cost_of_a_forward_is_fitted() -> None:
    cost = ForwardCost()
    for _ in range(10):
        cost.add(20, 0.030)
    assert cost.fit() is None, "forwards of one length cannot tell the two apart"
    for tokens in (1, 5, 9, 30):
        cost.add(tokens, 0.010 + 0.001 * tokens)
    assert cost.fit() == pytest.approx((0.010, 0.001))
    cost.add(1, 60.0)  # the machine was asleep
    assert cost.of(1) == pytest.approx(0.011, abs=0.012)
    for tokens in (1, 5, 9, 30) * 100:
        cost.add(tokens, 0.002 * tokens)
    assert cost.fit() == pytest.approx((0.0, 0.002), abs=1e-4), "older measurements are forgotten"


def test_neither_part_of_the_cost_is_negative() -> None:
    cost = ForwardCost()
    for tokens, seconds in ((1, 0.03), (10, 0.02), (20, 0.01)) * 4:
        cost.add(tokens, seconds)
    fitted = cost.fit()
    assert fitted is not None and fitted[1] == 0.0 and fitted[0] > 0
    for tokens in (10, 20, 30) * 200:
        cost.add(tokens, 0.003 * tokens - 0.02)
    fitted = cost.fit()
    assert fitted is not None and fitted[0] >= 0 and fitted[1] > 0


def test_a_switch_waits_and_does_not_flutter() -> None:
    switch = Switch()
    assert [switch.note(0.0, 1.0) for _ in range(16)] == [False] * 15 + [True] and not switch.on
    for saved, spent in ((1.0, 1.2), (1.2, 1.0)) * 50:  # either side a little dearer
        assert not switch.note(saved, spent) and not switch.on
    for _ in range(200):
        switch.note(1.3, 1.0)
    assert switch.on
    for saved, spent in ((1.0, 1.2), (1.2, 1.0)) * 50:
        assert not switch.note(saved, spent) and switch.on


def test_a_drafter_that_failed_is_tried_again_more_and_more_seldom() -> None:
    switch, rests = Switch(), list[int]()
    for _ in range(6):
        while not switch.note(0.0, 1.0):
            pass
        rests.append(0)
        while not switch.on:
            switch.rest()
            rests[-1] += 1
    assert rests == [64, 128, 256, 512, 1024, 1024]


@pytest.mark.parametrize(
    ("drafter", "drafter_s", "stays"),
    [("oracle", 0.001, True), ("bad", 0.001, False), ("oracle", 0.500, False)],
    ids=["right and cheap", "wrong", "right but dear"],
)
def test_the_drafter_stops_where_it_costs_more_than_it_saves(drafter: str, drafter_s: float, stays: bool) -> None:
    backend = TimedBackend(drafter=drafter, drafter_s=drafter_s)
    stream, events = listen_to(backend)
    assert events == untimed()
    counts = stream.stats.drafts["transcript", "mtp"]
    assert counts.offered_tokens > 0 and counts.stopped == (0 if stays else 1)
    assert counts.accepted_tokens == (counts.offered_tokens if drafter == "oracle" else 0) or stays
    half, _ = listen_to(TimedBackend(drafter=drafter, drafter_s=drafter_s), times=3)
    assert (counts.offered_tokens > half.stats.drafts["transcript", "mtp"].offered_tokens) == stays, "once stopped it rests"


def restless(loudness: Sequence[float]) -> str:
    """Says everything anew with each block, so that no old hypothesis is ever right."""
    said = hear(loudness).split()
    return " ".join(word + "x" * (len(loudness) // 16 % 3 + 1) for word in said)


@pytest.mark.parametrize(("row_s", "stops"), [(0.0001, False), (0.010, True)], ids=["rows are free", "rows are dear"])
def test_old_hypotheses_stop_where_rows_are_dear_and_the_model_restless(row_s: float, stops: bool) -> None:
    """With free rows a wrong draft costs next to nothing, and it saves nothing either: judged by what it costs."""
    stream, events = listen_to(TimedBackend(restless, row_s=row_s), times=10)
    plain = session(ScriptedBackend(restless))
    assert events == [event for _ in range(10) for event in plain.push(TALK)] + plain.finish()
    counts = stream.stats.drafts["transcript", "hypothesis"]
    assert counts.offered_tokens > counts.accepted_tokens
    assert counts.stopped == 1 or not stops
    assert stream.stats.drafts["translation", "hypothesis"] == DraftCounts()


def test_old_hypotheses_that_are_right_stay() -> None:
    stream, _ = listen_to(TimedBackend(row_s=0.010))
    assert stream.stats.drafts["transcript", "hypothesis"].stopped == 0


def test_drafts_begin_again_when_they_would_have_paid() -> None:
    """Whether an old hypothesis was right shows without offering it."""
    stats = Stats()
    drafting = Drafting(stats.drafts)
    for tokens in (1, 10) * 8:
        drafting.cost.add(tokens, 0.010 + 0.005 * tokens)
    for _ in range(16):
        drafting.note_hypothesis("transcript", 10, 0)
    assert not drafting.pays("transcript", "hypothesis") and drafting.pays("translation", "hypothesis")
    offered = stats.drafts["transcript", "hypothesis"].offered_tokens
    for _ in range(15):
        drafting.note_hypothesis("transcript", 10, 10)
        assert not drafting.pays("transcript", "hypothesis")
    drafting.note_hypothesis("transcript", 10, 10)
    assert drafting.pays("transcript", "hypothesis")
    assert stats.drafts["transcript", "hypothesis"].offered_tokens == offered == 160, "what is not offered is not counted"


def test_the_last_event_tells_what_drafts_brought() -> None:
    stream, events = listen_to(TimedBackend(drafter="oracle"), times=1, targets=("de",))
    assert isinstance(events[-1], Ended)
    told = {(each.task, each.source): each for each in events[-1].drafts}
    assert set(told) == {("transcript", "hypothesis"), ("transcript", "mtp"), ("translation", "mtp")}
    for (task, source), each in told.items():
        counts = stream.stats.drafts[task, source]  # type: ignore[index]
        assert each == Drafts(task, source, counts.offered_tokens, counts.accepted_tokens)
        assert 0 < each.accepted_tokens <= each.offered_tokens


def test_a_scheduler_measures_too() -> None:
    backend = TimedBackend(drafter="bad")
    lanes = [Lane(session(backend)) for _ in range(2)]
    scheduler = Scheduler(backend, clock=lambda: backend.now_s)
    for _ in range(6):
        for lane in lanes:
            lane.give(lane.session.work(TALK))
        while any(lane.job is not None for lane in lanes):
            scheduler.turn(lanes)
    assert [lane.session.stats.drafts["transcript", "mtp"].stopped for lane in lanes] == [1, 1]
    alone = session()
    assert lanes[0].events == [event for _ in range(6) for event in alone.push(TALK)]
    fitted = lanes[0].session.drafting.cost.fit()
    assert fitted is not None and fitted[0] == pytest.approx(0.005, rel=0.3), "each of two streams bears half of a forward"
    assert transcribe(session(), TALK)
