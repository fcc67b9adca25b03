"""A fake PortAudio: devices, and streams whose audio the test speaks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

INPUT = {"name": "Desk microphone", "max_input_channels": 2, "default_samplerate": 48_000.0}
OUTPUT = {"name": "Loudspeaker", "max_input_channels": 0, "default_samplerate": 44_100.0}
SPEAKERS = {"name": "Built-in Audio", "max_input_channels": 0, "default_samplerate": 48_000.0}
MONITOR = {"name": "Monitor of Built-in Audio", "max_input_channels": 2, "default_samplerate": 48_000.0}
OTHER_MONITOR = {"name": "Monitor of HDMI", "max_input_channels": 2, "default_samplerate": 44_100.0}
PULSE = {"name": "pulse", "max_input_channels": 32, "default_samplerate": 44_100.0}
HEADSET = {"name": "Headset", "max_input_channels": 1, "default_samplerate": 16_000.0}


class FakeStream:
    """An InputStream whose audio the test speaks."""

    def __init__(self, **settings: Any) -> None:
        self.settings, self.active, self.closed = settings, False, False

    def start(self) -> None:
        self.active = True

    def close(self) -> None:
        self.active, self.closed = False, True

    def speak(self, *samples: int, at_s: float = 0.0, overflow: bool = False) -> None:
        """``at_s``: when the first sample was taken, by a clock that some drivers have; ``overflow``: others before it were lost."""
        block = np.array(samples, np.int16)[:, None]
        self.settings["callback"](block, len(block), SimpleNamespace(inputBufferAdcTime=at_s), SimpleNamespace(input_overflow=overflow))
        block[:] = -1  # PortAudio uses its buffer again


class FakeAudio:
    """The module sounddevice."""

    class PortAudioError(Exception):
        pass

    def __init__(self, found: list[dict[str, Any]], default: int, output: int = 0) -> None:
        self._found, self.default = found, SimpleNamespace(device=(default, output))
        self.streams: list[FakeStream] = []

    def query_devices(self) -> list[dict[str, Any]]:
        return self._found

    def InputStream(self, **settings: Any) -> FakeStream:
        if settings["device"] == 9:
            raise self.PortAudioError("Device unavailable")
        self.streams.append(FakeStream(**settings))
        return self.streams[-1]
