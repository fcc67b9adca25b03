"""Live captions from a fake microphone."""

from __future__ import annotations

import json
import signal
import sys
from typing import Any

import numpy as np
import pytest
from dragoman.clients.listen import list_devices, listen
from dragoman.clients.microphone import Microphone
from dragoman.stream import DeviceError, Options

from .fakes import ScriptedBackend, speech
from .listeners import LoudnessVad, loaded
from .test_microphone import HEADSET, MONITOR, OUTPUT, FakeAudio, FakeStream

OPTIONS = Options.model_validate({"session": {"block_ms": 320}})


@pytest.fixture
def audio(monkeypatch: pytest.MonkeyPatch) -> FakeAudio:
    fake = FakeAudio([OUTPUT, HEADSET], default=1)
    monkeypatch.setitem(sys.modules, "sounddevice", fake)  # type: ignore[arg-type]
    monkeypatch.setattr("dragoman.stream.session.make_vad", lambda *rest, **options: LoudnessVad())
    return fake


class Recorded(FakeStream):
    """Says all of its samples when it starts; then somebody presses Ctrl-C."""

    samples = np.zeros(0, np.int16)

    def start(self) -> None:
        super().start()
        step = self.settings["blocksize"]
        for at in range(0, len(self.samples), step):
            self.speak(*self.samples[at : at + step])
        signal.raise_signal(signal.SIGINT)


def record(audio: FakeAudio, text: str) -> None:
    class Stream(Recorded):
        samples = (speech(text) * 32767).astype(np.int16)

    audio.InputStream = Stream  # type: ignore[assignment, method-assign]


def test_ctrl_c_flushes_what_was_heard(audio: FakeAudio, capsys: pytest.CaptureFixture[str]) -> None:
    record(audio, "the quick brown fox")
    before = signal.getsignal(signal.SIGINT)
    assert listen(loaded(ScriptedBackend()), OPTIONS, microphone=Microphone(), form="txt", stats=True) == 0
    out, err = capsys.readouterr()
    assert out == "the quick brown fox\n"
    assert "listening to Headset; Ctrl-C ends" in err and "real-time factor" in err and "lost" in err
    assert signal.getsignal(signal.SIGINT) is before


def test_lost_audio_is_told(audio: FakeAudio, capsys: pytest.CaptureFixture[str]) -> None:
    record(audio, "the quick brown fox")
    microphone = Microphone(queue_blocks=20)  # 0.8 s of the 1.6 s
    original = microphone.blocks

    def late(**options: Any) -> Any:
        audio_went_on = np.zeros((640, 1), np.int16)
        for place, heard in enumerate(original(wait_s=0)):
            yield heard
            if place == 0:
                microphone._stopped = False  # pyright: ignore[reportPrivateUsage]
                microphone._take(audio_went_on, 640, None, None)  # pyright: ignore[reportPrivateUsage]
                microphone.stop()

    microphone.blocks = late  # type: ignore[method-assign]
    assert listen(loaded(ScriptedBackend()), OPTIONS, microphone=microphone, form="json") == 0
    out, err = capsys.readouterr()
    lost = [event for event in map(json.loads, out.splitlines()) if event["type"] == "dropped"]
    assert [(event["at_ms"], event["duration_ms"]) for event in lost] == [(800, 800)]
    assert "800 ms of audio were lost" in err


def test_an_unplugged_microphone_leaves_the_text_so_far(audio: FakeAudio, capsys: pytest.CaptureFixture[str]) -> None:
    class Unplugged(Recorded):
        samples = (speech("the quick fox") * 32767).astype(np.int16)

        def start(self) -> None:
            self.active = False
            for at in range(0, len(self.samples), 640):
                self.speak(*self.samples[at : at + 640])
            self.settings["finished_callback"]()

    audio.InputStream = Unplugged  # type: ignore[assignment, method-assign]
    microphone = Microphone()
    original = microphone.blocks
    microphone.blocks = lambda **options: original(wait_s=0)  # type: ignore[method-assign]
    with pytest.raises(DeviceError, match="unplugged"):
        listen(loaded(ScriptedBackend()), OPTIONS, microphone=microphone, form="txt")
    assert capsys.readouterr().out == "the quick fox\n"


def test_devices_are_listed(audio: FakeAudio, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert list_devices() == 0
    assert capsys.readouterr().out == "*   1  Headset  (1 channels, 16000 Hz)\n"
    monkeypatch.setitem(sys.modules, "sounddevice", FakeAudio([MONITOR], default=-1))  # type: ignore[arg-type]
    list_devices()
    assert capsys.readouterr().out == "    0  Monitor of Built-in Audio  (2 channels, 48000 Hz) (loopback)\n"
    monkeypatch.setitem(sys.modules, "sounddevice", FakeAudio([OUTPUT], default=-1))  # type: ignore[arg-type]
    with pytest.raises(DeviceError, match="found 0 input devices"):
        list_devices()
