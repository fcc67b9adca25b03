"""Live captions from a microphone: the work behind ``dragoman listen`` and ``dragoman devices``."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from ..stream import DeviceError, Event, Loaded, Options, Session
from ..stream.lag import LEVELS, REFUSING, Gauge, Schedule
from .microphone import Microphone, devices
from .render import Form, Renderer, make_renderer
from .transcribe import print_stats


def listen(
    loaded: Loaded,
    options: Options,
    *,
    microphone: Microphone,
    form: Form,
    stats: bool = False,
    clock: Callable[[], float] = perf_counter,
) -> int:
    """Caption until Ctrl-C, which flushes what was heard. Behind schedule, work is saved before audio is lost; what is lost all the same
    is told and keeps its time. ``clock``: seconds that only grow. Returns 0. Raises DeviceError."""
    session = Session(loaded, options.session, sample_rate=microphone.sample_rate, channels=microphone.channels, clock=clock)
    renderer = make_renderer(form, sys.stdout, options)
    sys.stderr.write(f"listening to {microphone.device.name}; Ctrl-C ends\n")
    try:
        with _until_interrupted(microphone), microphone:
            _caption(microphone, session, renderer, clock)
    finally:
        try:
            _show(session.finish(), microphone, renderer)
        finally:
            renderer.close()
    if session.stats.dropped_ms:
        sys.stderr.write(f"{session.stats.dropped_ms} ms of audio were lost because this machine was too slow\n")
    if stats:
        print_stats(session)
    return 0


def list_devices() -> int:
    """All input devices, one a line, the default marked. Raises DeviceError if there is none."""
    found = devices()
    if not found:
        raise DeviceError("no microphone on this machine: found 0 input devices, expected at least one")
    for device in found:
        mark, kind = "*" if device.is_default else " ", " (loopback)" if device.is_loopback else ""
        sys.stdout.write(f"{mark} {device.index:3d}  {device.name}  ({device.channels} channels, {device.sample_rate} Hz){kind}\n")
    return 0


def _caption(microphone: Microphone, session: Session, renderer: Renderer, clock: Callable[[], float]) -> None:
    """Everything that is recorded, under the lag contract of a server: up to its last level but one, for there is nobody to refuse."""
    gauge, schedule = Gauge(), Schedule()

    def measure() -> None:
        now_s = clock()
        level = gauge.update(schedule.behind_ms(microphone.received_ms, session.clocks.received_ms, now_s), now_s)
        session.economy = LEVELS[min(level, REFUSING - 1)]

    session.tell = lambda events: _show(events, microphone, renderer)  # a caption does not wait for its translations
    for heard in microphone.blocks():
        measure()  # the schedule must know since when audio waits: what arrives during the work has waited for it
        events = session.drop(heard.lost_samples) if heard.lost_samples else []
        _show([*events, *session.push(heard.samples)], microphone, renderer)
        measure()


def _show(events: Iterable[Event], microphone: Microphone, renderer: Renderer) -> None:
    """A session knows only what was pushed; what still waits in the microphone's queue has been received too."""
    for event in events:
        renderer.show(event.with_received(microphone.received_ms))


@contextmanager
def _until_interrupted(microphone: Microphone) -> Generator[None]:
    """Ctrl-C stops the microphone instead of breaking into the model; what was recorded is still captioned. A second one breaks off."""

    def stop(number: int, frame: Any) -> None:
        microphone.stop()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
