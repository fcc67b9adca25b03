"""A wire between a client and a server of this machine that breaks when a test says so: whatever is under way in it is lost.

And what an unbroken run says of the same talk.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import cache

import numpy as np
from dragoman.model.backend import Floats
from dragoman.stream.events import Event

from .fakes import WORDS, ScriptedBackend, speech
from .listeners import session, transcribe

PIECE_BYTES = 4096


class Wire:
    """``port`` is where clients connect. Each connection breaks after so many bytes, both ways counted, as ``budgets`` says."""

    def __init__(self, upstream: int, budgets: Iterator[int | None] | None = None) -> None:
        self.upstream, self.port, self.cuts = upstream, 0, 0
        self._budgets = budgets or iter(())
        self._left: int | None = None  # bytes that the newest connection may still carry
        self._writers: set[asyncio.StreamWriter] = set()
        self._connections: set[asyncio.Task[None]] = set()
        self._stalled: set[asyncio.Task[None]] = set()

    def cut(self) -> None:
        """Break every connection there is."""
        self.cuts += 1
        for writer in self._writers:
            writer.transport.abort()

    def stall(self) -> None:
        """Nothing comes through any more, and nobody is told: a network that has died, a cable pulled."""
        self._stalled |= self._connections

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        writers = {writer}
        try:
            self._left = next(self._budgets, None)
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.upstream)
            writers.add(up_writer)
            self._writers |= writers
            pumps = [asyncio.create_task(self._pump(*pair, task)) for pair in ((reader, up_writer), (up_reader, writer))]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
        except OSError:
            pass  # nobody there
        finally:
            self._writers -= writers
            for each in writers:
                each.transport.abort()
            self._connections.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: asyncio.Task[None]) -> None:
        """One direction. A connection that is over its budget breaks in the middle of what it carries."""
        while piece := await reader.read(PIECE_BYTES):
            if connection in self._stalled:
                await asyncio.Event().wait()
            if self._left is not None:
                self._left -= len(piece)
                if self._left < 0:
                    writer.write(piece[: len(piece) // 2])
                    self.cuts += 1
                    return
            writer.write(piece)
            await writer.drain()

    async def close(self) -> None:
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)


@asynccontextmanager
async def wire(upstream: int, budgets: Iterator[int | None] | None = None) -> AsyncIterator[Wire]:
    line = Wire(upstream, budgets)
    server = await asyncio.start_server(line.connected, "127.0.0.1", 0)
    line.port = server.sockets[0].getsockname()[1]
    try:
        yield line
    finally:
        server.close()
        await line.close()


def long_talk(minutes: float, seed: int = 0) -> tuple[Floats, list[str]]:
    """Speech for a scripted backend, sentences and pauses of random length → samples at 16 kHz, and the sentences."""
    random = np.random.default_rng(seed)
    parts: list[Floats] = []
    sentences: list[str] = []
    samples = 0
    while samples < minutes * 60 * 16_000:
        sentence = " ".join(random.choice(WORDS, random.integers(1, 9)))
        parts.append(speech(sentence, silence_s=float(random.integers(20, 60)) * 0.04))
        sentences.append(sentence)
        samples += len(parts[-1])
    return np.concatenate(parts), sentences


HEARD_BY = ScriptedBackend()


@cache
def hearing(
    seed: int, start_ms: int, targets: tuple[str, ...], translation: str = "stable", block_ms: int = 320, longest_s: float | None = None
) -> list[Event]:
    """What a session says of a talk, from a moment on."""
    stream = session(HEARD_BY, targets=targets, translation=translation, block_ms=block_ms, endpoint={"longest_s": longest_s})
    return transcribe(stream, long_talk(0.1, seed)[0][start_ms * 16 :])
