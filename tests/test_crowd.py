"""Many at once, for long, and a server that is told to stop meanwhile. The long ones are marked ``soak``: see docs/reliability.md."""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from dragoman.clients.remote import Remote
from dragoman.model.backend import Floats
from dragoman.model.errors import OverloadedError, ProtocolError
from dragoman.stream.events import Ended, Event
from dragoman.stream.live import Stream
from dragoman.stream.session import Session
from dragoman.stream.source import ArraySource, paced
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from .fakes import WORDS, ScriptedBackend, speech
from .flaky import long_talk
from .listeners import check_promises, finals, session, silence, transcribe
from .live import Live, breath, make_engine, pcm, serving
from .memory import give_back_free_memory, resident_bytes

CROWD_S = 180.0  # a soak test that takes longer hangs; on a machine of its own each takes a minute or less
BLOCK = 4000  # samples in a message: 250 ms


def cheap(loudness: Sequence[float]) -> str:
    """A transcript that costs nothing to think of."""
    return " ".join(WORDS[: len(loudness) // 12])


def percentile(values: Sequence[float], share: float) -> float:
    return float(np.percentile(np.asarray(values), share)) if values else 0.0


# More than there are places for


async def refusals(live: Live, kind: str, gate: asyncio.Semaphore) -> dict[str, Any]:
    """Knock at one of the doors of a full server → the error that is told there."""
    path = {
        "native": "/v1/stream",
        "openai": "/v1/realtime?intent=transcription",
        "translation": "/v1/realtime/translations?model=x",
    }[kind]
    async with gate, connect(f"ws://127.0.0.1:{live.port}{path}") as socket:
        if kind == "native":
            await socket.send('{"type": "start", "sample_rate": 16000}')
        told = [json.loads(await socket.recv())]
        try:
            await socket.recv()
        except ConnectionClosed:
            pass
        error = told[0] if kind == "native" else told[0]["error"]
        return {**error, "close_code": socket.close_code}


def test_beyond_the_last_place_every_door_says_when_to_come_again() -> None:
    async def test() -> tuple[list[dict[str, Any]], int]:
        async with serving(make_engine(max_sessions=2)) as live:
            for _ in range(2):
                await live.engine.open()
            gate = asyncio.Semaphore(8)
            kinds = ["native", "openai", "translation"] * 8
            return await asyncio.gather(*(refusals(live, kind, gate) for kind in kinds)), live.engine.refused_count

    told, refused = asyncio.run(asyncio.wait_for(test(), 20))
    assert {(error["code"], error["close_code"]) for error in told} == {("overloaded", 1013)} and refused == 24
    assert all(error["retry_after_s"] > 0 and "2 of 2 sessions are in use" in error["message"] for error in told)


@pytest.mark.soak
def test_those_inside_keep_their_lag_while_others_are_refused() -> None:
    """Eight talk at the pace of speech; five hundred others knock. How long after it was sent a piece of audio is known to be heard."""
    samples, _ = long_talk(0.25, 4)

    async def inside(live: Live, lags: list[float]) -> list[Event]:
        sent_s: list[float] = []
        async with Remote(live.ws, block_ms=320) as remote:

            async def say() -> None:
                blocks = paced(ArraySource(samples, 16_000, block_ms=100).blocks(), 16_000)
                while (block := await asyncio.to_thread(next, blocks, None)) is not None:
                    await remote.send(pcm(block))
                    sent_s.append(time.monotonic())
                await remote.finish()

            saying, events = asyncio.create_task(say()), list[Event]()
            async for event in remote:
                events.append(event)
                piece = min(len(sent_s) - 1, event.clocks.processed_ms // 100)
                lags.append(time.monotonic() - sent_s[piece])
            await saying
        return events

    async def storm(live: Live) -> list[dict[str, Any]]:
        gate = asyncio.Semaphore(4)
        return await asyncio.gather(*(refusals(live, kind, gate) for kind in ["native", "openai", "translation"] * 167))

    async def test(knock: bool) -> tuple[list[float], int, int]:
        lags: list[float] = []
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(24))  # eight wait for the next piece of speech in threads
        async with serving(make_engine(ScriptedBackend(cheap), executor=None, max_sessions=8)) as live:
            talks = [asyncio.create_task(inside(live, lags)) for _ in range(8)]
            while len(live.engine.active) < 8:
                await breath()
            told = await storm(live) if knock else []
            for events in await asyncio.gather(*talks):
                check_promises(events)
                assert events[-1].clocks.processed_ms == len(samples) // 16
            assert {error["code"] for error in told} <= {"overloaded"} and all(error["retry_after_s"] > 0 for error in told)
            return lags, live.engine.gauge.level, len(told)

    (calm, _, _), (stormy, level, refused) = (asyncio.run(asyncio.wait_for(test(knock), CROWD_S)) for knock in (False, True))
    p95_calm, p95_stormy = percentile(calm, 95), percentile(stormy, 95)
    print(
        f"\nlag p50, p95: {percentile(calm, 50):.3f}, {p95_calm:.3f} s; {refused} refused: {percentile(stormy, 50):.3f}, {p95_stormy:.3f} s"
    )
    assert refused == 501 and level == 0, "nobody was behind schedule"
    assert p95_stormy < p95_calm + 0.5


# Coming and going


@dataclass
class Crowd:
    """What a crowd has seen."""

    sessions: int = 0
    dropped: int = 0
    left: int = 0
    refused: int = 0
    late: int = 0
    audio_ms: int = 0
    wrong: list[str] = field(default_factory=list[str])


async def visitor(live: Live, seed: int, audio_s: float, crowd: Crowd) -> None:
    """Sessions one after another, until so much time has passed on the clock of the audio, half of it away: some lose their connection and
    come back, some leave without a word, some read slowly; each that stays to its end has its own words."""
    random = np.random.default_rng(seed)
    left_s = audio_s
    while left_s > 0:
        sentences = [" ".join(random.choice(WORDS, random.integers(1, 7))) for _ in range(random.integers(1, 4))]
        samples = np.concatenate([speech(sentence, silence_s=float(random.uniform(1, 12))) for sentence in sentences])
        behaviour = random.choice(["stays", "loses", "leaves", "slow"], p=[0.5, 0.2, 0.15, 0.15])
        try:
            await visit(live, samples, sentences, behaviour, int(random.integers(1, 6)), crowd)
            left_s -= len(samples) / 16_000 * float(random.uniform(1, 3))  # away for up to twice as long
        except OverloadedError as error:
            assert error.retry_after_s > 0
            crowd.refused += 1
            for _ in range(200):
                await breath()
        except ProtocolError as error:
            if "timed out during opening handshake" not in str(error):
                raise
            crowd.late += 1  # all come at once, and the machine has other things to do as well


async def visit(live: Live, samples: Floats, sentences: list[str], behaviour: str, moment: int, crowd: Crowd) -> None:
    async with Remote(live.ws, pause=lambda _: breath()) as remote:
        crowd.sessions += 1
        audio, read = pcm(samples), list[Event]()

        async def say() -> None:
            for start in range(0, len(audio), 2 * BLOCK):
                await remote.send(audio[start : start + 2 * BLOCK])
            await remote.finish()

        saying = asyncio.create_task(say())
        try:
            async for event in remote:
                read.append(event)
                if len(read) == moment and behaviour == "leaves":
                    crowd.left += 1
                    return
                if len(read) == moment and behaviour == "loses" and remote._socket is not None:  # pyright: ignore[reportPrivateUsage]
                    crowd.dropped += 1
                    remote._socket.transport.abort()  # pyright: ignore[reportPrivateUsage]
                if behaviour == "slow":
                    for _ in range(50):
                        await breath()
            await saying
        finally:
            saying.cancel()
            await asyncio.gather(saying, return_exceptions=True)
    check_promises(read)
    crowd.audio_ms += len(samples) // 16
    if finals(read) != sentences:
        crowd.wrong.append(f"{finals(read)} for {sentences}")


def come_and_go(visitors: int, places: int, audio_s: float) -> tuple[Crowd, float, int]:
    """A crowd, by how many MB the process grew between half time and the end, what lies free in its heap given back, and by how many
    objects of Python's."""
    grown, objects = list[int](), list[int]()
    gc.collect()
    before = sessions_alive()

    async def test() -> Crowd:
        crowd = Crowd()
        async with serving(make_engine(backend := ScriptedBackend(), max_sessions=places, executor=None, resume_s=0.1)) as live:
            for part in (0, 1):
                each = (visitor(live, seed + 1000 * part, audio_s / 2, crowd) for seed in range(visitors))
                await asyncio.gather(*each)
                while live.engine.streams:  # those who left without a word
                    await breath()
                    live.engine.tick()
                backend.calls.clear()  # the fake's own history
                backend._known.clear()  # pyright: ignore[reportPrivateUsage]
                gc.collect()
                give_back_free_memory()
                grown.append(resident_bytes())
                objects.append(len(gc.get_objects()))
                assert sessions_alive() <= before, "nothing is left of those who have gone"
            assert crowd.refused <= live.engine.refused_count
        return crowd

    crowd = asyncio.run(asyncio.wait_for(test(), CROWD_S))
    return crowd, (grown[1] - grown[0]) / 1e6, objects[1] - objects[0]


def sessions_alive() -> int:
    return sum(type(each) in (Stream, Session) for each in gc.get_objects())  # isinstance would ask proxies for their class


def test_twelve_come_and_go_and_seven_have_a_place() -> None:
    crowd, _, _ = come_and_go(visitors=12, places=7, audio_s=6.0)
    assert crowd.wrong == [] and crowd.sessions >= 12 and crowd.refused > 0
    assert crowd.dropped and crowd.left


@pytest.mark.soak
def test_sixty_four_come_and_go_for_ten_minutes() -> None:
    """On the clock of the audio, which is sent as fast as it goes; there are sixty places."""
    crowd, grown_mb, objects = come_and_go(visitors=64, places=60, audio_s=600.0)
    print(f"\n{crowd}; memory grew by {grown_mb:.1f} MB in the second half, by {objects} objects")
    assert objects < 1000, "hundreds of sessions have come and gone meanwhile"
    assert grown_mb < 15, "less than a second of audio for each of them"  # and 2 to 7 MB from run to run
    assert crowd.wrong == [] and crowd.sessions > 64 * 8 and crowd.dropped > 64 and crowd.left > 64


# Stopping


def stop_under_load(clients: int, seed: int) -> int:
    """SIGTERM while all are talking, and nobody finishes by itself. How many words were told."""
    backend = ScriptedBackend()
    samples, _ = long_talk(1.0, seed)

    async def one(live: Live, start: int, told: asyncio.Semaphore) -> tuple[list[Event], Floats]:
        mine = samples[start * 16_000 :]
        async with Remote(live.ws, block_ms=320) as remote:

            async def say() -> None:
                audio = pcm(mine)
                for begin in range(0, len(audio), 2 * BLOCK):
                    await remote.send(audio[begin : begin + 2 * BLOCK])
                    await breath()

            saying, events = asyncio.create_task(say()), list[Event]()
            async for event in remote:
                events.append(event)
                if len(events) == 3:
                    told.release()
            saying.cancel()
            await asyncio.gather(saying, return_exceptions=True)
            return events, mine

    async def test() -> list[tuple[list[Event], Floats]]:
        async with serving(make_engine(backend, executor=None, max_sessions=clients, drain_s=0.0, queue_ms=2000)) as live:
            told = asyncio.Semaphore(0)
            talks = [asyncio.create_task(one(live, number % 20, told)) for number in range(clients)]
            for _ in range(clients // 2):
                await told.acquire()
            signal.raise_signal(signal.SIGTERM)
            return await asyncio.gather(*talks)

    words = 0
    for events, mine in asyncio.run(asyncio.wait_for(test(), CROWD_S)):
        check_promises(events)
        assert isinstance(events[-1], Ended)
        heard = np.frombuffer(pcm(mine), "<i2")[: events[-1].audio_ms * 16]
        alone = transcribe(session(backend, block_ms=320), heard)
        assert finals(events) == finals(alone), "what was heard is told to its end, as if the client had finished"
        words += sum(len(text.split()) for text in finals(events))
    return words


def test_sigterm_under_load_loses_no_word() -> None:
    assert stop_under_load(8, seed=5) > 0


@pytest.mark.soak
def test_sigterm_under_the_load_of_sixty_four_loses_no_word() -> None:
    words = sum(stop_under_load(64, seed) for seed in range(3))
    print(f"\n{words} words in 192 sessions")
    assert words > 192


# For long


@pytest.mark.soak
def test_three_hours_through_a_socket_are_as_light_as_the_first_minutes() -> None:
    """As fast as the server hears, with a model that costs nothing: everything else is measured. Server and client are one process."""
    minute = pcm(np.concatenate([np.concatenate([speech(" ".join(WORDS[:8])), silence(16.8)])] * 3))
    memory, cost_s, lags = list[int](), list[float](), list[list[int]]()

    async def test() -> tuple[int, int]:
        async with serving(make_engine(backend := ScriptedBackend(cheap), executor=None, queue_ms=5000)) as live, Remote(live.ws) as remote:

            async def say() -> None:
                for _ in range(180):
                    for start in range(0, len(minute), 2 * BLOCK):
                        await remote.send(minute[start : start + 2 * BLOCK])
                await remote.finish()

            saying, segments, began_s = asyncio.create_task(say()), 0, time.process_time()
            lags.append([])
            async for event in remote:
                segments += bool(finals([event]))
                lags[-1].append(event.clocks.lag_ms)
                if event.clocks.processed_ms >= len(lags) * 60_000 and len(lags) < 180:
                    backend.calls.clear()  # the fake's own history
                    memory.append(resident_bytes())
                    cost_s.append(time.process_time() - began_s)
                    began_s = time.process_time()
                    lags.append([])
            await saying
            return segments, event.clocks.processed_ms

    segments, heard_ms = asyncio.run(asyncio.wait_for(test(), CROWD_S))
    grown_mb = (max(memory[10:]) - memory[10]) / 1e6
    early, late = ([lag for part in lags[span] for lag in part] for span in (slice(10, 40), slice(150, 180)))
    ratio = sum(cost_s[-30:]) / sum(cost_s[10:40])
    print(
        f"\n{grown_mb:.1f} MB more than after ten minutes; lag p95 {percentile(early, 95):.0f} → {percentile(late, 95):.0f} ms; "
        f"CPU of the last half hour / of minutes 10 to 40: {ratio:.2f} ({sum(cost_s[-30:]) / 30:.3f} s for a minute)"
    )
    assert segments == 540 and heard_ms == 10_800_000
    assert grown_mb < 5
    assert percentile(late, 95) <= percentile(early, 95) + 640, "a block more or less"
    assert ratio < 1.3
