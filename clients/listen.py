"""Live captions from a microphone: the work behind ``dragoman listen`` and ``dragoman devices``."""

from __future__ import annotations

import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from ..stream import DeviceError, Loaded, Options, Session
from .microphone import Microphone, devices
from .render import Form, Renderer, make_renderer
from .transcribe import print_stats


def listen(loaded: Loaded, options: Options, *, microphone: Microphone, form: Form, stats: bool = False) -> int:
    """Caption until Ctrl-C, which flushes what was heard. Lost audio is told and keeps its time. Returns 0. Raises DeviceError."""
    session = Session(loaded, options.session, sample_rate=microphone.sample_rate, channels=microphone.channels)
    renderer = make_renderer(form, sys.stdout, options)
    sys.stderr.write(f"listening to {microphone.device.name}; Ctrl-C ends\n")
    try:
        with _until_interrupted(microphone), microphone:
            _caption(microphone, session, renderer)
    finally:
        try:
            for event in session.finish():
                renderer.show(event)
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


def _caption(microphone: Microphone, session: Session, renderer: Renderer) -> None:
    for heard in microphone.blocks():
        events = session.drop(heard.lost_samples) if heard.lost_samples else []
        for event in [*events, *session.push(heard.samples)]:
            renderer.show(event)


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
