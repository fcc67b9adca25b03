"""The work behind ``dragoman connect``: a file or the microphone through a server → text."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..stream import open_source, paced, parse_options
from .microphone import Microphone
from .remote import Remote
from .render import Form, make_renderer


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command line asked for; None: as the server is configured."""

    url: str
    file: Path | None = None  # None: the microphone
    language: str | None = None
    targets: list[str] | None = None
    block_ms: int | None = None
    realtime: bool = False
    device: int | None = None
    loopback: bool = False


@dataclass(frozen=True, slots=True)
class _Feed:
    """Audio to be sent: bytes, and how many samples were lost before them. ``stop`` ends it early."""

    blocks: Iterator[tuple[bytes, int]]
    sample_rate: int
    channels: int
    encoding: str
    stop: Callable[[], None]


def connect(wanted: Wanted, form: Form) -> int:
    """Send and show until the audio ends or Ctrl-C, which still brings the text of all that was sent. Returns 0. Raises DragomanError."""
    with _feed(wanted) as feed:
        asyncio.run(_talk(wanted, feed, form))
    return 0


async def _talk(wanted: Wanted, feed: _Feed, form: Form) -> None:
    remote = Remote(
        wanted.url,
        sample_rate=feed.sample_rate,
        channels=feed.channels,
        encoding=feed.encoding,
        language=wanted.language,
        targets=wanted.targets,
        block_ms=wanted.block_ms,
    )
    async with remote:
        renderer = make_renderer(form, sys.stdout, parse_options({"session": {"targets": wanted.targets or []}}))
        with contextlib.suppress(NotImplementedError, RuntimeError):  # Windows, or not the main thread: Ctrl-C breaks off
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, feed.stop)
        sender = asyncio.create_task(_send(remote, feed))
        try:
            async for event in remote:
                renderer.show(event)
            await sender
        finally:
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)
            renderer.close()


async def _send(remote: Remote, feed: _Feed) -> None:
    """The blocks are read in a thread: a microphone makes its reader wait. Whatever ends the audio, what was sent is finished."""
    try:
        while (block := await asyncio.to_thread(next, feed.blocks, None)) is not None:
            pcm, lost_samples = block
            if lost_samples:
                await remote.lose(lost_samples)
            await remote.send(pcm)
    finally:
        await remote.finish()


@contextlib.contextmanager
def _feed(wanted: Wanted) -> Generator[_Feed]:
    if wanted.file is None:
        with Microphone(wanted.device, loopback=wanted.loopback) as microphone:
            sys.stderr.write(f"listening to {microphone.device.name}; Ctrl-C ends\n")
            blocks = ((heard.samples.astype("<i2").tobytes(), heard.lost_samples) for heard in microphone.blocks())
            yield _Feed(blocks, microphone.sample_rate, microphone.channels, "pcm_s16le", microphone.stop)
        return
    source, stopped = open_source(wanted.file), asyncio.Event()

    def read() -> Iterator[tuple[bytes, int]]:
        floats = source.blocks()
        for block in paced(floats, source.sample_rate) if wanted.realtime else floats:
            if stopped.is_set():
                return
            yield np.ascontiguousarray(block, dtype="<f4").tobytes(), 0

    try:
        yield _Feed(read(), source.sample_rate, source.channels, "pcm_f32le", stopped.set)
    finally:
        source.close()
