"""Jobs of many sessions in common turns."""

from __future__ import annotations

import numpy as np
import pytest
from dragoman.model.errors import AudioFormatError, BackendError
from dragoman.stream.events import Event, Final, Partial, Translation
from dragoman.stream.scheduler import Lane, Scheduler

from .fakes import ScriptedBackend, speech
from .listeners import finals, session

TEXTS = ("the quick brown fox", "we met them again", "nobody knew why it was so cold here")


def run_out(scheduler: Scheduler, lanes: list[Lane]) -> list[Event]:
    while any(lane.job for lane in lanes):
        scheduler.turn(lanes)
    return [event for lane in lanes for event in lane.events]


def lanes_of(backend: ScriptedBackend, texts: tuple[str, ...] = TEXTS) -> list[Lane]:
    lanes = [Lane(session(backend)) for _ in texts]
    for lane, text in zip(lanes, texts, strict=True):
        lane.give(lane.session.work(speech(text, silence_s=1.0)))
    return lanes


def test_sessions_together_say_what_each_says_alone() -> None:
    alone = [session().push(speech(text, silence_s=1.0)) for text in TEXTS]
    backend = ScriptedBackend()
    lanes = lanes_of(backend)
    run_out(Scheduler(backend), lanes)
    assert [lane.events for lane in lanes] == alone
    assert max(size for _, size in backend.calls) == len(TEXTS), "like works go together"


def test_a_batch_is_no_larger_than_said() -> None:
    backend = ScriptedBackend()
    lanes = lanes_of(backend, TEXTS * 2)
    run_out(Scheduler(backend, most_together=4), lanes)
    assert max(size for _, size in backend.calls) == 4
    assert [finals(lane.events) for lane in lanes] == [[text] for text in TEXTS * 2]


def test_one_comes_while_others_are_at_work() -> None:
    backend = ScriptedBackend()
    scheduler, lanes = Scheduler(backend), lanes_of(backend)
    for _ in range(5):
        scheduler.turn(lanes)
    late = Lane(session(backend))
    late.give(late.session.work(speech("five trains", silence_s=1.0)))
    run_out(scheduler, [late, *lanes])
    assert finals(late.events) == ["five trains"]
    assert [finals(lane.events) for lane in lanes] == [[text] for text in TEXTS]


@pytest.mark.parametrize("verb", ["listen", "step"])
def test_a_batch_that_fails_is_run_one_by_one(verb: str) -> None:
    """One failure of a common call costs nobody a word."""
    backend = ScriptedBackend()
    scheduler, lanes = Scheduler(backend), lanes_of(backend)
    for _ in range(4):
        scheduler.turn(lanes)
    backend.fail_next = verb
    run_out(scheduler, lanes)
    assert backend.fail_next == "" and [lane.error for lane in lanes] == [None] * 3
    assert [finals(lane.events) for lane in lanes] == [[text] for text in TEXTS]


class Poisoned(ScriptedBackend):
    """Fails, after it has appended, whenever a chosen cache is in the batch."""

    poisoned = -1.0

    def listen(self, work):  # type: ignore[no-untyped-def]
        super().listen(work)
        for _, frames in work:
            if np.isclose(float(np.abs(frames).max()), self.poisoned, atol=1e-3):
                raise BackendError("this stream breaks the model")


def test_only_the_culprit_fails() -> None:
    backend = Poisoned()
    lanes = [Lane(session(backend)) for _ in TEXTS]
    for lane, text in zip(lanes, TEXTS, strict=True):
        lane.give(lane.session.work(speech(text, silence_s=1.0)))
    backend.poisoned = float(np.abs(speech(TEXTS[1])).max())
    run_out(Scheduler(backend), lanes)
    assert [type(lane.error) for lane in lanes] == [type(None), BackendError, type(None)]
    assert [finals(lane.events) for lane in (lanes[0], lanes[2])] == [[TEXTS[0]], [TEXTS[2]]]


def test_bad_audio_is_its_senders_error() -> None:
    backend = ScriptedBackend()
    bad, good = Lane(session(backend)), Lane(session(backend))
    bad.give(bad.session.work(np.full(640, np.nan, np.float32)))
    good.give(good.session.work(speech(TEXTS[0], silence_s=1.0)))
    run_out(Scheduler(backend), [bad, good])
    assert isinstance(bad.error, AudioFormatError)
    assert finals(good.events) == [TEXTS[0]]


def test_the_time_of_a_common_call_is_shared() -> None:
    now_s = iter(range(100_000))
    backend = ScriptedBackend()
    lanes = lanes_of(backend)
    run_out(Scheduler(backend, clock=lambda: float(next(now_s))), lanes)
    spent_s = sum(lane.session.stats.compute_s for lane in lanes)
    moves_and_calls = next(now_s) // 2  # the clock was read before and after each
    assert spent_s == pytest.approx(moves_and_calls, abs=0.5)


def test_several_steps_of_a_turn_are_several_turns() -> None:
    step_by_step, at_once = lanes_of(ScriptedBackend()), lanes_of(ScriptedBackend())
    scheduler = Scheduler(ScriptedBackend())
    for _ in range(5):
        scheduler.turn(step_by_step)
    scheduler.turn(at_once, steps=5)
    assert [type(lane.work) for lane in at_once] == [type(lane.work) for lane in step_by_step]
    while not any(isinstance(event, Partial) for lane in step_by_step for event in lane.events):
        scheduler.turn(step_by_step)
    scheduler.turn(at_once, steps=100_000)
    assert [lane.events for lane in at_once] == [lane.events for lane in step_by_step], "and it ends when there is text to tell"


def test_a_caption_does_not_wait_for_its_translations() -> None:
    backend = ScriptedBackend()
    lane = Lane(session(backend, targets=("de", "fr")))
    alone = session(targets=("de", "fr")).push(speech(TEXTS[0], silence_s=1.0))
    scheduler, told, waited = Scheduler(backend), list[Event](), dict[type[Event], bool]()
    lane.give(lane.session.work(speech(TEXTS[0], silence_s=1.0)))
    while lane.job is not None:
        scheduler.turn([lane], steps=100_000)
        waited |= {type(event): lane.job is None for event in lane.events}
        told, lane.events = told + lane.events, []
    assert told == alone, "the same events, each as soon as it is known"
    assert waited[Final] is False and waited[Translation] is True
