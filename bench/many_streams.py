"""How many live streams one model serves on this machine: N sessions in real time through ``stream/engine.py``, with real speech.

    pip install ".[bench]"
    python bench/many_streams.py STORE --split dev-clean                    # searches the largest N with p95 commit lag below 1 s
    python bench/many_streams.py STORE --split dev-clean --streams 20 40    # or tries these

Every stream begins at a moment of its own within the first two seconds, and pieces of 40 ms arrive when they have been spoken. Every
trial is a process of its own. What comes out is compared, event by event, with what one session alone says to the same talk.

``--clock real`` is what a server does. ``--clock virtual`` is for a machine that has other work as well: the same engine on an event loop
whose time jumps to whatever comes next; a worker's turn takes the CPU time that it took here, and as many turns run side by side as there
are workers. What the event loop itself does then takes no time, so a trial counts only if all CPU time fits into the workers' cores.

    commit lag     from the end of a word to the event that commits it, as docs/bench.md has it
    added          from when the audio that an event needed was there to when the event was out: work, and waiting for other streams
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import selectors
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from dragoman.clients.bench import describe_machine
from dragoman.stream import Session, load_model
from dragoman.stream.bench import resident_mb
from dragoman.stream.config import ModelOptions, Options, ServerOptions, SessionOptions
from dragoman.stream.engine import Engine
from dragoman.stream.events import Event
from dragoman.stream.measures import commit_lags, delays, erasure, final_delays
from dragoman.stream.simulate import PIECE_MS, Turn, in_pieces, simulate
from dragoman.stream.talk import Talk, make_talks, read_clips
from dragoman.stream.vad import pcm16

STAGGER_S = 2.0
STEPS = 5  # of the search, once it is between two numbers


@dataclass(frozen=True)
class Trial:
    """Everything that a process of its own needs."""

    streams: int
    workers: int
    clock: str
    model: str
    options: SessionOptions
    talks: tuple[Talk, ...]
    expected: tuple[list[tuple[Event, float]], ...]  # of each talk: what one session alone says, and when the audio for it was there


@dataclass(frozen=True)
class Outcome:
    streams: int
    lag_p50_ms: float | None
    lag_p95_ms: float | None
    added_p50_ms: float
    added_p95_ms: float
    final_p50_ms: float | None
    final_p95_ms: float | None
    erasure: float | None
    cores_busy: float  # while every stream is fed
    loop_share: float  # of the CPU time, outside the turns of the workers
    cpu_s_per_audio_s: float
    memory_mb: float  # at most, with all streams
    mb_per_stream: float  # above one stream, of an engine that is warm
    level: int  # of economy, at most: above 0 the engine was behind and saved work
    same_as_alone: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--split")
    parser.add_argument("--streams", type=int, nargs="+", help="numbers to try instead of a search")
    parser.add_argument("--most-ms", type=float, default=1000.0, help="p95 of the commit lag")
    parser.add_argument("--most-added-ms", type=float, help="p95 of what is added instead, where a model's lag is too large even alone")
    parser.add_argument("--block", type=int, default=320)
    parser.add_argument("--talks", type=int, default=6, help="different ones, given to the streams in turn")
    parser.add_argument("--talk-seconds", type=float, default=20.0)
    parser.add_argument("--model", default="small")
    parser.add_argument("--workers", type=int, default=2, help="threads that run the model")
    parser.add_argument("--clock", choices=("real", "virtual"), default="real")
    parser.add_argument("--out", type=Path, help="a JSON file")
    given = parser.parse_args()
    options = SessionOptions(block_ms=given.block)
    found = make_talks(read_clips(given.clips, given.split), given.talk_seconds)
    talks = tuple(without_audio_of_clips(next(found)) for _ in range(given.talks))
    expected, alone = zip(*(alone_on(talk, given.model, options) for talk in talks), strict=True)
    lags = [lag for turns, talk in zip(alone, talks, strict=True) for lag in commit_lags(turns, talk).unaware_ms]
    print(f"commit lag if work took no time, p50 / p95: {delays(lags, len(lags)).p50_ms} / {delays(lags, len(lags)).p95_ms} ms")

    def run(streams: int) -> Outcome:
        outcome = in_a_process(Trial(streams, given.workers, given.clock, given.model, options, talks, expected))
        print(json.dumps(asdict(outcome)), flush=True)
        return outcome

    outcomes = [run(streams) for streams in given.streams] if given.streams else search(run, given)
    if given.out:
        settings = {name: value for name, value in vars(given).items() if name not in ("clips", "out")}
        report = {"machine": describe_machine(), "settings": settings, "trials": [asdict(outcome) for outcome in outcomes]}
        given.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def search(run: Callable[[int], Outcome], given: argparse.Namespace) -> list[Outcome]:
    """Doubles until the lag is too large, then halves the distance."""
    outcomes: list[Outcome] = []

    def keeps_up(streams: int) -> bool:
        outcomes.append(run(streams))
        last = outcomes[-1]
        if given.most_added_ms is None:
            quick = last.lag_p95_ms is not None and last.lag_p95_ms < given.most_ms
        else:
            quick = last.added_p95_ms < given.most_added_ms
        return quick and last.level == 0 and last.cores_busy < given.workers

    good, bad = 0, 10
    while keeps_up(bad):
        good, bad = bad, 2 * bad
    for _ in range(STEPS if good else 0):
        if bad - good > max(1, good // 16):
            middle = (good + bad) // 2
            good, bad = (middle, bad) if keeps_up(middle) else (good, middle)
    print(f"largest number of streams that is quick enough: {good}")
    return outcomes


def without_audio_of_clips(talk: Talk) -> Talk:
    """A store behind every clip would be sent to each process whole."""
    return Talk(talk.samples, tuple(replace(each, clip=replace(each.clip, read=np.zeros)) for each in talk.utterances))


def alone_on(talk: Talk, model: str, options: SessionOptions) -> tuple[list[tuple[Event, float]], list[Turn]]:
    turns = list(simulate(Session(load_model(ModelOptions(name=model)), options, encoding="float32"), in_pieces(as_sent(talk.samples))))
    return [(event, turn.arrived_ms) for turn in turns for event in turn.events], turns


def as_sent(samples: Any) -> Any:
    """What is left of float32 samples after they were sent as int16."""
    return np.frombuffer(pcm16(samples), "<i2").astype(np.float32) / np.float32(32768)


def in_a_process(trial: Trial) -> Outcome:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(run_trial, trial).result()


def run_trial(trial: Trial) -> Outcome:
    if trial.clock == "real":
        return asyncio.run(measure(trial, None))
    loop = VirtualLoop()
    return asyncio.Runner(loop_factory=lambda: loop).run(measure(trial, VirtualWorkers(loop, trial.workers)))


class VirtualLoop(asyncio.SelectorEventLoop):
    """Nobody waits: when nothing is ready, it is as late as the next thing is due."""

    def __init__(self) -> None:
        self.now_s = 0.0
        super().__init__(_Jump(self))

    def time(self) -> float:
        return self.now_s


class _Jump(selectors.DefaultSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        self._loop.now_s += max(0.0, timeout or 0.0)
        return super().select(0)


class VirtualWorkers(Executor):
    """Runs what is submitted at once, and says so when as much time has passed as it took of the CPU."""

    def __init__(self, loop: VirtualLoop, workers: int) -> None:
        self._loop, self._free_s = loop, [0.0] * workers
        self.cpu_s = 0.0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        began_s = time.thread_time()
        result = fn(*args, **kwargs)
        took_s = time.thread_time() - began_s
        self.cpu_s += took_s
        free_s = max(self._loop.now_s, min(self._free_s)) + took_s
        self._free_s[self._free_s.index(min(self._free_s))] = free_s
        self._loop.call_at(free_s, done.set_result, result)
        return done


async def measure(trial: Trial, executor: VirtualWorkers | None) -> Outcome:
    options = Options(session=trial.options, server=ServerOptions(max_sessions=trial.streams + 1, workers=trial.workers))
    memory_mb, now = resident_mb(), asyncio.get_running_loop().time
    async with Engine(load_model(ModelOptions(name=trial.model)), options, executor=executor, clock=now) as engine:
        await engine.warm_up()
        await live(engine, trial.talks[0].samples[:80_000], now())  # one stream: what follows is the price of further ones
        before_mb, began_cpu_s, began_s, turns_cpu_s = memory_mb(), time.process_time(), now(), executor.cpu_s if executor else 0.0
        watching = asyncio.create_task(watch(engine, memory_mb, trial.streams))
        starts_s = began_s + np.random.default_rng(0).uniform(0.1, STAGGER_S, trial.streams)
        heard = await asyncio.gather(
            *(live(engine, trial.talks[place % len(trial.talks)].samples, float(start_s)) for place, start_s in enumerate(starts_s))
        )
        cpu_s, elapsed_s = time.process_time() - began_cpu_s, now() - began_s
        turns_cpu_s = executor.cpu_s - turns_cpu_s if executor else float("nan")
        watching.cancel()
        peak_mb, level, busy = await watching
    return figures(trial, heard, before_mb, peak_mb, level, cpu_s, turns_cpu_s, busy or cpu_s / elapsed_s)


async def watch(engine: Engine, memory_mb: Any, streams: int) -> tuple[float, int, float | None]:
    """Until it is cancelled → the most memory, the highest level of economy, and how many cores are busy while all ``streams`` are fed:
    with those who begin and those who have ended the average of a short run is too low. None if that was too short to be seen."""
    peak_mb, level, now = 0.0, 0, asyncio.get_running_loop().time
    full: list[tuple[float, float]] = []
    try:
        while True:
            peak_mb, level = max(peak_mb, memory_mb()), max(level, engine.gauge.level)
            if sum(0 < stream.clocks.received_ms and not stream.inbox.finished for stream in engine.active) == streams:
                full.append((now(), time.process_time()))
            engine.tick()
            await asyncio.sleep(0.5)
    except asyncio.CancelledError:
        (began_s, began_cpu_s), (ended_s, ended_cpu_s) = (full[0], full[-1]) if full else ((0.0, 0.0), (0.0, 0.0))
        return peak_mb, level, (ended_cpu_s - began_cpu_s) / (ended_s - began_s) if ended_s > began_s else None


async def live(engine: Engine, samples: Any, start_s: float) -> list[tuple[Event, float]]:
    """One sender and its reader → events, and when each was out, in ms since the audio began."""
    stream = await engine.open(encoding="int16")
    owner, now = object(), asyncio.get_running_loop().time
    stream.attach(owner)

    async def send() -> None:
        due_s = start_s
        for piece in in_pieces(samples):
            due_s += PIECE_MS / 1000
            await asyncio.sleep(max(0.0, due_s - now()))
            await stream.push(pcm16(piece))
        stream.finish()

    sending = asyncio.create_task(send())
    heard = [(item[1], 1000 * (now() - start_s)) async for item in stream.follow(owner) if isinstance(item, tuple)]
    await sending
    engine.detach(stream)
    return heard


def figures(
    trial: Trial,
    heard: Sequence[list[tuple[Event, float]]],
    before_mb: float,
    peak_mb: float,
    level: int,
    cpu_s: float,
    turns_cpu_s: float,
    busy: float,
) -> Outcome:
    lags, finals, added, erased, kept, same, audio_s = [], [], [], 0, 0, True, 0.0
    words = utterances = 0
    for place, events in enumerate(heard):
        talk, expected = trial.talks[place % len(trial.talks)], trial.expected[place % len(trial.talks)]
        same = same and [timeless(event) for event, _ in events] == [timeless(event) for event, _ in expected]
        turns = [Turn((event,), arrived_ms, out_ms, 0.0, 0.0) for (event, out_ms), (_, arrived_ms) in zip(events, expected, strict=False)]
        found, flicker = commit_lags(turns, talk), erasure(turns)
        lags += found.aware_ms
        finals += final_delays(turns, talk)
        added += [turn.behind_ms for turn in turns]
        words, utterances, audio_s = words + found.words, utterances + len(talk.utterances), audio_s + talk.duration_s
        erased, kept = erased + flicker.erased, kept + flicker.final
    lag, final, more = delays(lags, words), delays(finals, utterances), delays(added, len(added))
    return Outcome(
        streams=trial.streams,
        lag_p50_ms=lag.p50_ms,
        lag_p95_ms=lag.p95_ms,
        added_p50_ms=more.p50_ms or 0.0,
        added_p95_ms=more.p95_ms or 0.0,
        final_p50_ms=final.p50_ms,
        final_p95_ms=final.p95_ms,
        erasure=round(erased / kept, 3) if kept else None,
        cores_busy=round(busy, 2),
        loop_share=round(1 - turns_cpu_s / cpu_s, 3),
        cpu_s_per_audio_s=round(cpu_s / audio_s, 4),
        memory_mb=round(peak_mb, 1),
        mb_per_stream=round((peak_mb - before_mb) / max(1, trial.streams - 1), 2),
        level=level,
        same_as_alone=same,
    )


def timeless(event: Event) -> Event:
    """An event without what depends on when it was computed: what had arrived by then, and what drafts were worth."""
    bare = replace(event, clocks=replace(event.clocks, received_ms=0))
    return replace(bare, drafts=()) if hasattr(bare, "drafts") else bare  # type: ignore[call-arg]


if __name__ == "__main__":
    main()
