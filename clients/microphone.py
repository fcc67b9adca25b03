"""The microphone, through PortAudio (the extra ``mic``). The audio thread copies and hands over; it never waits."""

from __future__ import annotations

import os
import queue
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..stream import DeviceError

BLOCK_MS = 40
QUEUE_BLOCKS = 250  # 10 s: longer than any pause of the model, short enough to notice

# Inputs that give what plays on this machine: PulseAudio and PipeWire, PortAudio on WASAPI, Windows drivers, virtual devices of macOS.
_LOOPBACK = re.compile(r"^monitor of |\.monitor$|\[loopback\]|^stereo mix|^(blackhole|soundflower|loopback audio)", re.IGNORECASE)
# Where PortAudio speaks ALSA only, it lists no monitors, but one device "pulse" that records whatever this variable names.
_PULSE, _PULSE_VARIABLE, _PULSE_MONITOR = "pulse", "PULSE_SOURCE", "@DEFAULT_MONITOR@"


@dataclass(frozen=True, slots=True)
class Device:
    """An input device."""

    index: int
    name: str
    channels: int
    sample_rate: int
    is_default: bool
    is_loopback: bool = False  # what plays on this machine, not a microphone


@dataclass(frozen=True, slots=True)
class Heard:
    """What the microphone hands over: int16 [n, channels], n ≥ 1, and how many samples were lost just before."""

    samples: NDArray[np.int16]
    lost_samples: int


class Microphone:
    """An open input device: a context whose ``blocks`` go on until ``stop``."""

    def __init__(self, device: int | None = None, *, loopback: bool = False, queue_blocks: int = QUEUE_BLOCKS) -> None:
        """``device``: index in ``devices()``, or None for the system's default. ``loopback``: what plays on this machine instead.

        Raises DeviceError.
        """
        self._audio = _sounddevice()
        found = _find_loopback(self._audio) if loopback else _find(device)
        self.device, self.sample_rate = found, found.sample_rate
        self.channels = min(2, found.channels) if found.is_loopback else 1  # a loopback plays no other count than its own
        self._queue: queue.Queue[Heard | None] = queue.Queue(queue_blocks)
        self._received_samples = 0  # counted by the audio thread alone
        self._lost_samples = 0  # since the last block that found room
        self._next_s = 0.0  # when the next block begins if nothing is lost, by the stream's clock; 0: that tells no times
        self._stopped = False

    def __enter__(self) -> Microphone:
        try:
            self._stream: Any = self._audio.InputStream(
                device=self.device.index,
                samplerate=self.sample_rate,
                channels=self.channels,
                dtype="int16",
                blocksize=self.sample_rate * BLOCK_MS // 1000,
                callback=self._take,
                finished_callback=self._finished,
            )
            self._stream.start()
        except self._audio.PortAudioError as error:
            raise DeviceError(f"microphone {self.device.index} ({self.device.name}) cannot be opened: {error}") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
        self._stream.close()

    @property
    def received_ms(self) -> int:
        """Recorded so far, in ms of stream time: what ``blocks`` has handed over, what waits for it, and what was lost."""
        return self._received_samples * 1000 // self.sample_rate

    def stop(self) -> None:
        """End ``blocks`` after what has been recorded."""
        self._stopped = True

    def blocks(self, *, wait_s: float = 0.2) -> Iterator[Heard]:
        """What was recorded, in order, until ``stop``; if the end was lost, a sample of silence tells how much. Raises DeviceError when
        the device disappears."""
        while True:
            try:
                heard = self._queue.get(timeout=wait_s)
            except queue.Empty:
                if not self._stopped and self._stream.active:
                    continue
                lost_samples, self._lost_samples = self._lost_samples, 0
                if lost_samples:  # no block comes to tell it, and no session takes an empty one
                    yield Heard(np.zeros((1, self.channels), np.int16), lost_samples)
                if self._stopped:
                    return
                raise DeviceError(f"microphone {self.device.index} ({self.device.name}) stopped: unplugged?") from None
            if heard is not None:
                yield heard

    def _take(self, samples: NDArray[np.int16], count: int, times: Any, status: Any) -> None:
        """Called by the audio thread."""
        if self._stopped:
            return
        at_s = times.inputBufferAdcTime if times else 0.0
        if status and status.input_overflow:  # the driver lost audio
            missing = self._missing(at_s) or count  # at least a block where no time tells how much
            self._lost_samples += missing
            self._received_samples += missing
        self._received_samples += count
        self._next_s = at_s and at_s + count / self.sample_rate
        try:
            self._queue.put_nowait(Heard(samples.copy(), self._lost_samples))
            self._lost_samples = 0
        except queue.Full:
            self._lost_samples += count

    def _missing(self, at_s: float) -> int:
        """Samples between the last block and one that begins at ``at_s``; 0 if that cannot be told. Not counted from the first block on:
        the clocks of device and machine drift apart."""
        return max(0, round((at_s - self._next_s) * self.sample_rate)) if at_s and self._next_s else 0

    def _finished(self) -> None:
        """Called by the audio thread when the stream ends: wakes ``blocks``."""
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            pass  # blocks() has enough to wake for


def devices() -> list[Device]:
    """All input devices. Raises DeviceError without PortAudio; an empty list means that there is no microphone."""
    audio = _sounddevice()
    default = _default_index(audio)
    return [
        Device(
            index,
            str(raw["name"]),
            int(raw["max_input_channels"]),
            int(raw["default_samplerate"]),
            index == default,
            _LOOPBACK.search(str(raw["name"])) is not None,
        )
        for index, raw in enumerate(audio.query_devices())
        if int(raw["max_input_channels"]) > 0
    ]


def _find(wanted: int | None) -> Device:
    found = devices()
    if not found:
        raise DeviceError("no microphone on this machine: found 0 input devices, expected at least one")
    if wanted is None:
        return next((device for device in found if device.is_default), found[0])
    for device in found:
        if device.index == wanted:
            return device
    known = ", ".join(f"{device.index} ({device.name})" for device in found)
    raise DeviceError(f"no input device {wanted}; there are {known}")


def _find_loopback(audio: Any) -> Device:
    """What the default output plays, else any loopback device there is."""
    found = devices()
    loopbacks = [device for device in found if device.is_loopback]
    output = int(audio.default.device[1])
    playing = str(audio.query_devices()[output]["name"]) if output >= 0 else ""
    for device in sorted(loopbacks, key=lambda device: playing not in device.name):
        return device
    for device in found:
        if device.name == _PULSE:
            os.environ.setdefault(_PULSE_VARIABLE, _PULSE_MONITOR)  # read when the device is opened
            return replace(device, name="what this machine plays", is_loopback=True)
    known = ", ".join(f"{device.index} ({device.name})" for device in found) or "none"
    raise DeviceError(
        f"no loopback device; the inputs are {known}. Windows: switch on 'Stereo Mix'; macOS: install BlackHole; "
        "Linux: a monitor of PulseAudio or PipeWire, or its ALSA plugin"
    )


def _default_index(audio: Any) -> int:
    return int(audio.default.device[0])


def _sounddevice() -> Any:
    """The sounddevice module; imported late because it opens PortAudio."""
    try:
        import sounddevice
    except ImportError as error:
        raise DeviceError('the microphone needs the package sounddevice: pip install "dragoman[mic]"') from error
    except OSError as error:
        raise DeviceError(f"the microphone needs the PortAudio library ({error}); on Debian: apt-get install libportaudio2") from error
    return sounddevice
