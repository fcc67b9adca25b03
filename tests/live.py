"""A real server on a free port of 127.0.0.1 with a scripted backend behind it, and the little that tests need to talk to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Executor, Future
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from dragoman.model.backend import Floats
from dragoman.stream.config import Options, ServerOptions, SessionOptions
from dragoman.stream.engine import Engine
from dragoman.stream.server import Server, listen_on, make_app
from websockets.asyncio.client import ClientConnection, connect

from .fakes import ScriptedBackend
from .listeners import LoudnessVad, loaded

T = TypeVar("T")
PATIENCE_S = 20.0


class Inline(Executor):
    """Runs the work where it is submitted: an engine without a thread takes the same turns every time."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        done: Future[T] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except Exception as error:
            done.set_exception(error)
        return done


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def run(test: Coroutine[Any, Any, T]) -> T:
    """A coroutine to its end; one that hangs fails instead."""
    return asyncio.run(asyncio.wait_for(test, PATIENCE_S))


async def breath() -> None:
    """Let the event loop run once: other tasks get their turn, no time is waited for."""
    loop = asyncio.get_running_loop()
    turn = loop.create_future()
    loop.call_soon(lambda: turn.done() or turn.set_result(None))  # done: who waits was cancelled
    await turn


def make_engine(backend: ScriptedBackend | None = None, **parts: Any) -> Engine:
    """An engine on a scripted backend; keywords of ServerOptions and SessionOptions may be mixed with those of Engine."""
    server = {name: parts.pop(name) for name in list(parts) if name in ServerOptions.model_fields}
    session = {name: parts.pop(name) for name in list(parts) if name in SessionOptions.model_fields}
    options = Options.model_validate({"server": {"port": 0, **server}, "session": session})
    parts.setdefault("make_vad", LoudnessVad)
    parts.setdefault("executor", Inline())
    return Engine(loaded(backend or ScriptedBackend()), options, **parts)


@dataclass
class Live:
    """A running server."""

    engine: Engine
    server: Server
    port: int

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws(self) -> str:
        return f"ws://127.0.0.1:{self.port}/v1/stream"


@asynccontextmanager
async def serving(engine: Engine, pages: Path | None = None) -> AsyncIterator[Live]:
    taken = listen_on(engine.options)
    opened = asyncio.Event()
    server = Server(make_app(engine, pages=pages), taken, opened.set)
    async with engine:
        running = asyncio.create_task(server.run_until_stopped())
        await opened.wait()
        try:
            yield Live(engine, server, taken.getsockname()[1])
        finally:
            server.should_exit = True
            await running
            taken.close()


@asynccontextmanager
async def talking(live: Live, **start: Any) -> AsyncIterator[tuple[ClientConnection, dict[str, Any]]]:
    """A connection that has sent its start and read the answer."""
    async with connect(live.ws, max_size=None) as socket:
        await socket.send(json.dumps({"type": "start", "sample_rate": 16000, **start}))
        yield socket, json.loads(await socket.recv())


def pcm(samples: Floats) -> bytes:
    return (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()


async def rest(socket: ClientConnection) -> list[dict[str, Any]]:
    """Every message until the server closes."""
    return [json.loads(message) async for message in socket]


def text_of(messages: list[dict[str, Any]]) -> list[str]:
    return [message["text"].strip() for message in messages if message["type"] == "final" and message["text"]]
