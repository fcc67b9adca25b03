"""The work behind ``dragoman connect``: a file or the microphone through a server → text."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..stream import ConfigError, open_source, paced, parse_options
from .microphone import Microphone
from .remote import Remote, Restart
from .render import Form, make_renderer


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command line asked for; None: as the server is configured."""

    url: str
    file: Path | None = None  # None: the microphone
    language: str | None = None
    targets: list[str] | None = None
    block_ms: int | None = None
    steady: bool | None = None
    realtime: bool = False
    device: int | None = None
    loopback: bool = False
    key: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class _Feed:
    """Audio to be sent: bytes, and how many samples were lost before them. ``stop`` ends it early."""

    blocks: Iterator[tuple[bytes, int]]
    sample_rate: int
    channels: int
    encoding: str
    stop: Callable[[], None]


def connect(wanted: Wanted, form: Form) -> int:
    """Send and show until the audio ends or Ctrl-C, which still brings the text of all that was sent; a second one does not wait for it.
    Returns 0. Raises DragomanError."""
    with _feed(wanted) as feed:
        asyncio.run(_talk(wanted, feed, form))
    return 0


def read_key(path: Path | None, environment: Mapping[str, str]) -> str | None:
    """The server's key, from a file or else from DRAGOMAN_KEY. Not from a flag: other users of a machine see the flags of its programs.

    Raises ConfigError for a file that cannot be read or holds more than one word.
    """
    if path is None:
        return environment.get("DRAGOMAN_KEY") or None
    try:
        key = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or 'not ASCII text'}") from error
    if not key or len(key.split()) > 1:
        raise ConfigError(f"{path}: expected one key and nothing else")
    return key


async def _talk(wanted: Wanted, feed: _Feed, form: Form) -> None:
    remote = Remote(
        wanted.url,
        sample_rate=feed.sample_rate,
        channels=feed.channels,
        encoding=feed.encoding,
        language=wanted.language,
        targets=wanted.targets,
        block_ms=wanted.block_ms,
        steady=wanted.steady,
        live=wanted.file is None,
        key=wanted.key,
        restarted=_tell_restart,
        unreachable=_tell_unreachable,
    )
    if wanted.key and remote.is_in_the_clear:
        sys.stderr.write(f"the key crosses the network in the clear to {remote.url}; expected wss:// or https://\n")
    async with remote:
        assert remote.ready is not None, "the server has answered"
        renderer = make_renderer(form, sys.stdout, parse_options({"session": {"targets": list(remote.ready.targets)}}))
        loop = asyncio.get_running_loop()

        def stop() -> None:
            feed.stop()
            loop.remove_signal_handler(signal.SIGINT)  # a second one breaks off: nobody may be there to tell the rest

        with contextlib.suppress(NotImplementedError, RuntimeError):  # Windows, or not the main thread: Ctrl-C breaks off
            loop.add_signal_handler(signal.SIGINT, stop)
        sender = asyncio.create_task(_send(remote, feed))
        try:
            async for event in remote:
                renderer.show(event)
            if sender.done():
                await sender
            else:  # the server has ended the session: it is stopping, or the time is up
                sys.stderr.write("the server has ended the session\n")
                feed.stop()
        finally:
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)
            renderer.close()


def _tell_restart(restart: Restart) -> None:
    lost = f"; {restart.lost_ms / 1000:.1f} s before that are lost" if restart.lost_ms else ""
    what = "ended" if restart.ended else "lost"
    sys.stderr.write(f"the server has {what} this session; another one goes on from {restart.at_ms / 1000:.1f} s{lost}\n")


def _tell_unreachable(why: Exception) -> None:
    sys.stderr.write(f"{why}; trying again\n")


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
