"""What a stream costs at the end of an hour, over what it costs at its beginning: one session in its last minutes, and fresh ones in their
second minute, which hear the same minute of speech side by side.

    pip install ".[bench]"
    python bench/hour.py STORE --split dev-clean --minutes 60 --rounds 6

Both take turns, piece by piece of 40 ms, and each is first as often as the other: whatever else the machine does in that minute falls on
both alike, so the ratio can be told where two minutes an hour apart could not be compared (`dragoman bench --long 60` measures those). CPU
time of the thread; events are thrown away. Every round has a fresh session and is the next minute of the old one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from dragoman.clients.bench import describe_machine
from dragoman.model.backend import Floats
from dragoman.model.load import Loaded, load
from dragoman.stream import Session, SessionOptions
from dragoman.stream.bench import whole_minutes
from dragoman.stream.simulate import in_pieces
from dragoman.stream.talk import read_clips
from rich.progress import Progress


def hear(session: Session, samples: Floats) -> None:
    for piece in in_pieces(samples):
        session.push(piece)


def side_by_side(sessions: Sequence[Session], samples: Floats) -> list[float]:
    """CPU seconds of each for the same samples."""
    spent = [0.0] * len(sessions)
    for turn, piece in enumerate(in_pieces(samples)):
        for place in range(len(sessions)):
            mine = (place + turn) % len(sessions)
            begin = time.thread_time()
            sessions[mine].push(piece)
            spent[mine] += time.thread_time() - begin
    return spent


def rounds(loaded: Loaded, minute: Floats, options: SessionOptions, minutes: int, count: int) -> list[tuple[float, float]]:
    """(old, fresh) CPU seconds of each round; the first is of the minute ``minutes`` of the old session."""
    found: list[tuple[float, float]] = []
    with Progress() as bar:
        task = bar.add_task("minutes heard", total=minutes - 1 + 3 * count)
        old = Session(loaded, options)
        for _ in range(minutes - 1):
            hear(old, minute)
            bar.advance(task)
        for _ in range(count):
            fresh = Session(loaded, options)
            hear(fresh, minute)
            bar.advance(task)
            found.append(tuple(side_by_side([old, fresh], minute)))  # type: ignore[arg-type]
            bar.advance(task, 2)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--split")
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--model", default="small")
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--block", type=int, default=640)
    given = parser.parse_args(arguments)
    minute = whole_minutes(read_clips(given.clips, split=given.split)[: given.limit]).samples
    options = SessionOptions(block_ms=given.block)
    found = rounds(load(given.model, threads=1), minute, options, given.minutes, given.rounds)
    print(describe_machine())
    for place, (old, fresh) in enumerate(found):
        print(f"minute {given.minutes + place}: {old:.2f} s, minute 2 beside it: {fresh:.2f} s, {old / fresh:.3f}")
    print(f"together: {sum(old for old, _ in found) / sum(fresh for _, fresh in found):.3f}")


if __name__ == "__main__":
    main()
