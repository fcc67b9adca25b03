"""Many streams on one model: no thread, no socket, no clock but the test's."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from dragoman.model.errors import AudioFormatError, BackendError, OverloadedError, TaskError
from dragoman.stream.config import SessionOptions
from dragoman.stream.engine import Engine
from dragoman.stream.events import Dropped, Ended, Event, Final
from dragoman.stream.lag import LEVELS, REFUSING, Gauge
from dragoman.stream.live import Stream
from dragoman.stream.protocol import Notice, Progress, WireError
from hypothesis import given, settings
from hypothesis import strategies as st

from .fakes import ScriptedBackend, hear, speech
from .listeners import check_promises, finals, session, transcribe
from .live import Clock, breath, make_engine, pcm, run

LONG = "the quick brown fox jumps over a lazy dog. we met them again on monday, and then all five trains left early. nobody knew why"


async def follow(stream: Stream, after_seq: int = 0) -> list[Event]:
    owner = object()
    stream.attach(owner)
    return [item[1] async for item in stream.follow(owner, after_seq) if isinstance(item, tuple)]


async def say(stream: Stream, text: str, *, silence_s: float = 1.0, block: int = 1600) -> None:
    audio = pcm(speech(text, silence_s=silence_s))
    for start in range(0, len(audio), 2 * block):
        await stream.push(audio[start : start + 2 * block])


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(2000):
        await breath()


def test_a_stream_says_what_a_session_says() -> None:
    async def test() -> list[Event]:
        async with make_engine() as engine:
            stream = await engine.open(SessionOptions(targets=("de",)))
            following = asyncio.create_task(follow(stream))
            await say(stream, "the quick brown fox jumps over a lazy dog.")
            stream.finish()
            return await following

    events = run(test())
    assert events == transcribe(
        session(targets=["de"]), np.frombuffer(pcm(speech("the quick brown fox jumps over a lazy dog.", silence_s=1.0)), "<i2")
    )
    check_promises(events)


def test_streams_do_not_mix() -> None:
    """Everyone's words go to whoever said them (complaint: shared state garbles users' text)."""
    texts = ["the quick brown fox", "we met them again", "nobody knew why", "five trains left early.", "it was so cold here"] * 2

    async def one(engine: Engine, text: str) -> list[str]:
        stream = await engine.open()
        following = asyncio.create_task(follow(stream))
        await say(stream, text)
        stream.finish()
        return finals(await following)

    async def test() -> list[list[str]]:
        async with make_engine(backend, max_sessions=20) as engine:
            return list(await asyncio.gather(*(one(engine, text) for text in texts)))

    backend = ScriptedBackend()
    assert run(test()) == [[text] for text in texts]
    assert max(size for _, size in backend.calls) > 1, "work of several streams goes together"


def test_a_sender_waits_when_too_much_waits() -> None:
    async def test() -> tuple[int, list[str]]:
        async with make_engine(queue_ms=1000) as engine:
            stream = await engine.open()
            pushing = asyncio.create_task(say(stream, "the quick brown fox jumps over a lazy dog."))
            most_ms, following = 0, asyncio.create_task(follow(stream))
            while not pushing.done():
                most_ms = max(most_ms, stream.inbox.waiting_ms)
                await breath()
            stream.finish()
            return most_ms, finals(await following)

    most_ms, texts = run(test())
    assert most_ms <= 1100, "the high mark and one push"
    assert texts == ["the quick brown fox jumps over a lazy dog."]


def test_a_reader_that_does_not_read_stops_the_work_and_loses_nothing() -> None:
    async def test() -> tuple[bool, list[str]]:
        async with make_engine(queue_ms=600_000) as engine:
            stream = await engine.open()
            stream.log._keep = 16  # pyright: ignore[reportPrivateUsage]
            await say(stream, LONG)
            stream.finish()
            await settle()
            stopped = stream.inbox.waiting_ms > 1000 and stream.log.last_seq < 16
            return stopped, finals(await follow(stream))

    stopped, texts = run(test())
    assert stopped
    assert " ".join(texts) == LONG


def test_a_reader_that_does_not_read_makes_nobody_save() -> None:
    async def test() -> tuple[float, int]:
        clock = Clock()
        async with make_engine(clock=clock, queue_ms=600_000) as engine:
            stream = await engine.open()
            stream.log._keep = 16  # pyright: ignore[reportPrivateUsage]
            await say(stream, LONG)
            await settle()
            for _ in range(100):
                clock.now_s += 1.0
                engine.tick()
            assert stream.inbox.waiting_ms > 1000
            return engine.behind_ms(), engine.gauge.level

    assert run(test()) == (0.0, 0)


def test_nothing_is_left_of_a_session_that_is_over() -> None:
    """Memory is freed when clients leave (complaints: memory grows with each session, is not freed on disconnect)."""

    async def test() -> list[object]:
        clock = Clock()
        async with make_engine(clock=clock, max_sessions=3) as engine:
            left = list[weakref.ref[Any]]()
            for number in range(3):
                stream = await engine.open()
                await say(stream, "the quick brown fox", silence_s=0)
                await settle()
                left += [weakref.ref(stream), weakref.ref(stream.session)]
                if number == 0:
                    engine.discard(stream)
                else:
                    if number == 1:
                        stream.finish()
                    engine.detach(stream)
            del stream
            clock.now_s += 60
            engine.tick()
            await settle()
            gc.collect()
            return [reference() for reference in left]

    assert run(test()) == [None] * 6


def test_no_room_for_one_more() -> None:
    async def test() -> None:
        async with make_engine(max_sessions=2) as engine:
            first, _ = await engine.open(), await engine.open()
            with pytest.raises(OverloadedError, match="2 of 2 sessions are in use") as caught:
                await engine.open()
            assert caught.value.retry_after_s > 0
            first.finish()
            await follow(first)
            await engine.open()
            assert (engine.opened_count, engine.refused_count) == (3, 1)

    run(test())


def test_two_at_the_same_moment_do_not_share_the_last_place() -> None:
    async def test() -> list[Any]:
        async with make_engine(max_sessions=1) as engine:
            return await asyncio.gather(engine.open(), engine.open(), return_exceptions=True)

    got = run(test())
    assert [type(result) for result in got] == [Stream, OverloadedError]


def test_a_language_that_the_model_lacks_takes_no_place() -> None:
    async def test() -> None:
        async with make_engine(max_sessions=1) as engine:
            with pytest.raises(TaskError, match="does not translate into 'xx'"):
                await engine.open(SessionOptions(targets=("xx",)))
            with pytest.raises(AudioFormatError, match="sample rate 5"):
                await engine.open(sample_rate=5)
            await engine.open()

    run(test())


def test_behind_schedule_it_saves_and_at_last_refuses() -> None:
    async def test() -> None:
        clock = Clock()
        async with make_engine(clock=clock, gauge=Gauge(settle_s=0.0), queue_ms=60_000) as engine:
            watched, file = await engine.open(), await engine.open(background=True)
            levels = [engine.gauge.level]
            # The model is stuck: audio arrives, nothing is heard.
            for stream in (watched, file):
                stream.prepare = lambda: False  # type: ignore[method-assign]
            for _ in range(11):
                await watched.push(bytes(32_000))
                await file.push(bytes(32_000))
                clock.now_s += 2.0
                engine.tick()
                levels.append(engine.gauge.level)
            assert levels == sorted(levels) and levels[-1] == REFUSING
            assert watched.session.economy == LEVELS[REFUSING] and watched.level == REFUSING
            assert file.session.economy == LEVELS[0], "a file is not live, it only waits"
            with pytest.raises(OverloadedError, match="behind schedule") as caught:
                await engine.open()
            assert caught.value.retry_after_s >= 5
            for stream in (watched, file):
                del stream.prepare
                engine._nudge(stream)  # pyright: ignore[reportPrivateUsage]
            await settle()
            for _ in range(60):
                clock.now_s += 1.0
                engine.tick()
            assert engine.gauge.level == 0 and watched.session.economy == LEVELS[0]
            assert watched.session.stats.audio_ms == 11_000, "no audio was dropped"

    run(test())


def test_a_short_queue_reaches_every_level_too() -> None:
    """With a second of room the sender waits with all the rest: how late that is must be seen all the same."""

    async def test() -> tuple[int, int, list[str]]:
        clock = Clock()
        async with make_engine(clock=clock, gauge=Gauge(settle_s=0.0), queue_ms=1000) as engine:
            stream = await engine.open()
            stream.prepare = lambda: False  # type: ignore[method-assign]  # the model is stuck
            pushing = asyncio.create_task(say(stream, "the quick brown fox jumps over a lazy dog."))
            await settle()
            for _ in range(20):
                clock.now_s += 1.0
                engine.tick()
            stuck = engine.gauge.level
            del stream.prepare
            engine._nudge(stream)  # pyright: ignore[reportPrivateUsage]
            await pushing
            stream.finish()
            texts = finals(await follow(stream))
            for _ in range(60):
                clock.now_s += 1.0
                engine.tick()
            return stuck, engine.gauge.level, texts

    assert run(test()) == (REFUSING, 0, ["the quick brown fox jumps over a lazy dog."])


def test_a_lost_stream_is_kept_for_a_while() -> None:
    async def test() -> None:
        clock = Clock()
        async with make_engine(clock=clock, resume_s=60) as engine:
            stream = await engine.open()
            engine.detach(stream)
            clock.now_s += 59
            engine.tick()
            assert engine.find(stream.id, 0) is stream
            stream.attach(object())
            clock.now_s += 1000
            engine.tick()
            assert engine.streams, "it has an owner again"
            engine.detach(stream)
            clock.now_s += 60
            engine.tick()
            assert not engine.streams
            with pytest.raises(WireError, match="it is over, or was left for more than 60 s"):
                engine.find(stream.id, 0)

    run(test())


def test_following_again_brings_what_was_missed_and_nothing_twice() -> None:
    async def test() -> tuple[list[Event], list[Event], Exception]:
        async with make_engine() as engine:
            stream = await engine.open()
            first, owner = list[Event](), object()
            stream.attach(owner)
            await say(stream, "the quick brown fox jumps")
            async for item in stream.follow(owner):
                if isinstance(item, tuple):
                    first.append(item[1])
                if len(first) == 4:
                    break
            old = asyncio.create_task(_drain(stream, owner))
            await settle()
            again = asyncio.create_task(follow(stream, 4))
            await settle()
            await say(stream, "over a lazy dog.")
            stream.finish()
            rest = await again
            with pytest.raises(WireError, match="another connection") as caught:
                await old
            return first, rest, caught.value

    first, rest, error = run(test())
    assert isinstance(error, WireError) and error.code == "replaced"
    check_promises([*first, *rest])
    assert finals([*first, *rest]) == ["the quick brown fox jumps", "over a lazy dog."]


async def _drain(stream: Stream, owner: object) -> None:
    async for _ in stream.follow(owner, 4):
        pass


def test_a_failing_model_ends_the_stream_with_all_it_knows() -> None:
    async def test() -> tuple[list[Event], list[str]]:
        backend = ScriptedBackend()
        async with make_engine(backend) as engine:
            stream, other = await engine.open(), await engine.open()
            await say(stream, "the quick brown fox jumps over", silence_s=0)
            await settle()
            backend.fail_next = "listen"
            await say(stream, "a lazy dog.")
            stream.finish()
            told: list[Event] = []
            owner = object()
            stream.attach(owner)
            with pytest.raises(BackendError, match="scripted failure"):
                async for item in stream.follow(owner):
                    if isinstance(item, tuple):
                        told.append(item[1])
            with pytest.raises(BackendError):
                await stream.push(bytes(2))
            await say(other, "we met them again")
            other.finish()
            return told, finals(await follow(other))

    told, other = run(test())
    assert not isinstance(told[-1], Ended) and "quick brown fox" in finals(told)[0]
    assert other == ["we met them again"]


def test_a_gap_is_told_and_keeps_the_time() -> None:
    async def test() -> list[Event]:
        async with make_engine() as engine:
            stream = await engine.open()
            await say(stream, "the quick", silence_s=0)
            await stream.lose(16_000)
            await say(stream, "brown fox")
            stream.finish()
            return await follow(stream)

    events = run(test())
    assert [(event.at_ms, event.duration_ms) for event in events if isinstance(event, Dropped)] == [(800, 1000)]
    assert [event.start_ms for event in events if isinstance(event, Final)] == [0, 1560]
    assert events[-1].clocks.processed_ms == 800 + 1000 + 800 + 1000


def test_progress_has_the_clocks_of_the_moment() -> None:
    async def test() -> list[Progress]:
        async with make_engine() as engine:
            stream = await engine.open()
            await say(stream, "the quick brown fox")
            stream.finish()
            stream.attach(None)
            return [item async for item in stream.follow(None) if isinstance(item, Progress)]

    told = run(test())
    assert told, "progress comes"
    for before, after in zip(told, told[1:], strict=False):
        assert before.clocks["processed_ms"] <= after.clocks["processed_ms"] <= after.clocks["received_ms"]
        assert after.clocks["processed_ms"] - before.clocks["processed_ms"] >= 500 or before.level != after.level
    assert all(message.lag_ms == message.clocks["received_ms"] - message.clocks["processed_ms"] for message in told)


def test_draining_lets_streams_finish_and_then_finishes_them() -> None:
    async def test() -> tuple[list[Any], list[str]]:
        clock = Clock()
        async with make_engine(clock=clock, drain_s=30) as engine:
            stream = await engine.open()
            items, owner = list[Any](), object()
            stream.attach(owner)

            async def collect() -> None:
                async for item in stream.follow(owner):
                    items.append(item)
                engine.detach(stream)

            collecting = asyncio.create_task(collect())
            await say(stream, "the quick brown", silence_s=0)
            engine.drain()
            with pytest.raises(WireError, match="takes no new session"):
                await engine.open()
            await say(stream, "fox", silence_s=0)
            clock.now_s += 29
            engine.tick()
            await settle()
            assert not engine.drained and not collecting.done()
            clock.now_s += 1
            engine.tick()
            await collecting
            assert engine.drained
            return items, finals(item[1] for item in items if isinstance(item, tuple))

    items, texts = run(test())
    assert [item.within_s for item in items if isinstance(item, Notice)] == [30]
    assert texts == ["the quick brown fox"]


def test_a_discarded_stream_leaves_its_numbers_and_nothing_else() -> None:
    async def test() -> None:
        async with make_engine(max_sessions=1) as engine:
            stream = await engine.open()
            await say(stream, "the quick brown fox")
            await settle()
            before = engine.stats()
            engine.discard(stream)
            engine.discard(stream)
            assert engine.stats() == before and before.segments == 1 and before.audio_ms == 2600
            with pytest.raises(WireError):
                await stream.push(bytes(2))
            await engine.open()

    run(test())


def test_warming_up_fills_the_prompts_and_counts_for_nobody() -> None:
    async def test() -> None:
        backend = ScriptedBackend()
        async with make_engine(backend) as engine:
            await engine.warm_up()
            assert {verb for verb, _ in backend.calls} >= {"listen", "step"}
            assert engine.stats().audio_ms == 0 and not engine.streams

    run(test())


def test_one_worker_thread_by_default() -> None:
    """The same words with the model on its thread."""

    async def test() -> list[str]:
        async with make_engine(executor=None) as engine:
            stream = await engine.open()
            following = asyncio.create_task(follow(stream))
            await say(stream, "the quick brown fox")
            stream.finish()
            return finals(await following)

    assert run(test()) == ["the quick brown fox"]


@settings(max_examples=15)
@given(st.data())
def test_any_cutting_among_any_neighbours_gives_the_same_events(data: st.DataObject) -> None:
    """The promise of a session holds for every stream of an engine, whoever else is on it."""
    texts = data.draw(
        st.lists(st.sampled_from(["the quick brown fox", "five trains left early.", "it was so cold here"]), min_size=1, max_size=4)
    )
    audio = [pcm(speech(text, silence_s=0.8)) for text in texts]
    sizes = [data.draw(st.lists(st.integers(50, 20_000), min_size=1, max_size=4)) for _ in texts]

    async def one(engine: Engine, whole: bytes, cuts: list[int]) -> list[Event]:
        stream = await engine.open(background=len(cuts) == 2)
        following = asyncio.create_task(follow(stream))
        start, turn = 0, 0
        while start < len(whole):
            size = 2 * cuts[turn % len(cuts)]
            await stream.push(whole[start : start + size])
            await breath()
            start, turn = start + size, turn + 1
        stream.finish()
        return await following

    async def test() -> list[list[Event]]:
        async with make_engine(queue_ms=1000) as engine:
            return list(await asyncio.gather(*(one(engine, *pair) for pair in zip(audio, sizes, strict=True))))

    for events, whole in zip(run(test()), audio, strict=True):
        check_promises(events)
        assert events == transcribe(session(), np.frombuffer(whole, "<i2"))


class Watched(ScriptedBackend):
    """Notices when a stream is at two workers, and lets nobody pass before two workers were in it at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self._inside: set[int] = set()
        self._meeting = threading.Barrier(2)
        self.met = False

    def listen(self, work: Sequence[tuple[Any, Any]]) -> None:
        with self._alone(work):
            if not self.met:
                self._meeting.wait(timeout=10)
                self.met = True
            super().listen(work)

    def step(self, work: Sequence[tuple[Any, Any]], *, wanted: Sequence[int] | None = None) -> Any:
        with self._alone(work):
            return super().step(work, wanted=wanted)

    @contextmanager
    def _alone(self, work: Sequence[tuple[Any, Any]]) -> Iterator[None]:
        caches = {id(cache) for cache, _ in work}
        assert not caches & self._inside, "a stream is at two workers"
        self._inside |= caches
        try:
            yield
        finally:
            self._inside -= caches


def test_several_workers_say_what_each_session_says_alone() -> None:
    texts = ["the quick brown fox", "we met them again", "nobody knew why", "five trains left early.", "it was so cold here"] * 2

    async def one(engine: Engine, text: str) -> list[Event]:
        stream = await engine.open()
        following = asyncio.create_task(follow(stream))
        await say(stream, text)
        stream.finish()
        return await following

    async def test() -> list[list[Event]]:
        async with make_engine(backend, max_sessions=20, workers=2, executor=None) as engine:
            return list(await asyncio.gather(*(one(engine, text) for text in texts)))

    backend = Watched()
    told = run(test())
    assert backend.met
    alone = [transcribe(session(), np.frombuffer(pcm(speech(text, silence_s=1.0)), "<i2")) for text in texts]
    assert [[without_arrival(event) for event in events] for events in told] == [[without_arrival(e) for e in events] for events in alone]


def without_arrival(event: Event) -> Event:
    """How much had arrived when an event was told depends on the pace of the threads."""
    return replace(event, clocks=replace(event.clocks, received_ms=0))


def test_as_many_workers_as_there_are_cores_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    workers: list[int] = []
    for threads in (0, 1, 2, 4, 8):
        backend = ScriptedBackend()
        backend.spec = replace(backend.spec, threads=threads)
        workers.append(make_engine(backend)._workers)  # pyright: ignore[reportPrivateUsage]
    assert workers == [1, 6, 3, 1, 1]


def test_an_idle_worker_is_woken_for_its_share() -> None:
    """Streams that become ready while one worker is busy do not wait for it."""

    async def test() -> list[str]:
        backend = ScriptedBackend()
        held, free = threading.Event(), threading.Event()

        def slow(loudness: Sequence[float]) -> str:
            text = hear(loudness)
            if "fox" in text:
                held.set()
                free.wait(timeout=10)
            return text

        backend._script = slow  # pyright: ignore[reportPrivateUsage]
        async with make_engine(backend, workers=2, executor=None) as engine:
            stuck, other = await engine.open(), await engine.open()
            await say(stuck, "fox")
            stuck.finish()
            while not held.is_set():
                await breath()
            await say(other, "nobody knew why")
            other.finish()
            texts = finals(await follow(other))
            free.set()
            return texts + finals(await follow(stuck))

    assert run(test()) == ["nobody knew why", "fox"]


def test_behind_schedule_an_idle_worker_leaves_the_core_to_live_streams() -> None:
    async def test() -> list[bool]:
        engine = make_engine(workers=2, gauge=Gauge())
        watched, file = await engine.open(), await engine.open(background=True)
        file.inbox.put(bytes(3200))
        engine._nudge(file)  # pyright: ignore[reportPrivateUsage]
        engine.gauge.level = 1
        engine._at_work.add(watched)  # pyright: ignore[reportPrivateUsage]
        return [file in engine._next_turn() for _ in range(8)]  # pyright: ignore[reportPrivateUsage]

    assert run(test()) == [False, False, False, True] * 2


def test_who_waits_longest_is_next_and_only_who_waits_is_looked_at() -> None:
    async def test() -> tuple[list[int], list[int]]:
        engine = make_engine(workers=1, max_sessions=20)
        streams = [await engine.open() for _ in range(10)]
        looked: list[int] = []
        for number, stream in enumerate(streams):
            stream.prepare = lambda number=number: looked.append(number) or number % 2 == 0  # type: ignore[method-assign]
        for number in (4, 3, 2):
            engine._nudge(streams[number])  # pyright: ignore[reportPrivateUsage]
        taken = [streams.index(stream) for stream in engine._next_turn()]  # pyright: ignore[reportPrivateUsage]
        engine._next_turn()  # pyright: ignore[reportPrivateUsage]
        return taken, looked

    taken, looked = run(test())
    assert taken == [4, 2]
    assert looked == [4, 3, 2, 4, 2], "3 had nothing to do, and is forgotten until it is woken"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_model_that_runs_streams_one_by_one_finishes_one_job_before_the_next(workers: int) -> None:
    """Streams in turn, step by step, would all be as late as the last of them; and every step would cost a round trip to a worker."""
    texts = ["the quick brown fox", "we met them again", "nobody knew why", "five trains left early."]

    async def one(engine: Engine, text: str) -> list[Event]:
        stream = await engine.open()
        following = asyncio.create_task(follow(stream))
        await say(stream, text)
        stream.finish()
        return await following

    async def test() -> list[list[Event]]:
        async with make_engine(backend, max_sessions=20, workers=workers, executor=None) as engine:
            turn = engine._scheduler.turn  # pyright: ignore[reportPrivateUsage]

            def watched(lanes: Sequence[Any], steps: int = 1) -> None:
                turn(lanes, steps)
                turns.append((len(lanes), lanes[0].job is None))

            engine._scheduler.turn = watched  # type: ignore[method-assign]
            return list(await asyncio.gather(*(one(engine, text) for text in texts)))

    backend, turns = ScriptedBackend(), list[tuple[int, bool]]()
    backend.spec = replace(backend.spec, together=False)
    told = run(test())
    assert set(turns) == {(1, True)}
    alone = [transcribe(session(), np.frombuffer(pcm(speech(text, silence_s=1.0)), "<i2")) for text in texts]
    assert [[without_arrival(event) for event in events] for events in told] == [[without_arrival(e) for e in events] for events in alone]


def test_sessions_that_have_ended_do_not_pile_up() -> None:
    """One visitor that comes and goes: of what is kept for those who come back there is no more than there are places."""

    async def test() -> tuple[int, list[str], str]:
        async with make_engine(max_sessions=3) as engine:
            opened: list[str] = []
            for _ in range(10):
                stream = await engine.open()
                opened.append(stream.id)
                stream.attach(stream)
                stream.finish()
                async for _ in stream.follow(stream):
                    pass
                engine.detach(stream)
            lost = await engine.open()  # still going on: kept whatever has ended
            engine.detach(lost)
            return len(engine.streams), [each for each in engine.streams if each != lost.id], opened[-3:]  # type: ignore[return-value]

    kept, ended, last = run(test())
    assert kept == 4 and ended == last


def test_a_sender_whose_connection_must_stay_alive_is_read_on() -> None:
    """Of OpenAI's and Deepgram's clients, whose pings wait behind the audio: up to what a session may hold at most."""

    async def test() -> tuple[int, bool, float]:
        async with make_engine(queue_ms=1000) as engine:
            stream = await engine.open()
            stream.reads_on = True
            stream.prepare = lambda: False  # type: ignore[method-assign]  # nothing is heard
            for _ in range(100):
                await stream.push(bytes(32_000))
            behind_ms = stream.behind_ms(engine.clock() + 60), stream.behind_ms(engine.clock() + 120)
            stream.inbox.put(bytes(32 * 1024 * 1024))
            waiting = asyncio.create_task(stream.push(bytes(32_000)))
            for _ in range(20):
                await breath()
            waits = not waiting.done()
            waiting.cancel()
            return stream.inbox.waiting_ms, waits, behind_ms[1] - behind_ms[0]

    waiting_ms, waits, later_ms = run(test())
    assert waiting_ms > 1_000_000 and waits
    assert later_ms == pytest.approx(60_000), "a queue that grows does not hide how late it is"
