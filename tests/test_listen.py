"""Live captions from a fake microphone."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from itertools import groupby
from typing import Any

import numpy as np
import pytest
from dragoman.clients.listen import list_devices, listen
from dragoman.clients.microphone import BLOCK_MS, QUEUE_BLOCKS, Microphone
from dragoman.model.backend import Floats
from dragoman.model.errors import BackendError
from dragoman.stream import DeviceError, Dropped, Ended, Event, Options, Session
from dragoman.stream.lag import LEVELS, REFUSING

from .fakes import ScriptedBackend, speech
from .listeners import LoudnessVad, check_promises, finals, loaded, session, transcribe
from .sound_card import HEADSET, MONITOR, OUTPUT, FakeAudio, FakeStream

OPTIONS = Options.model_validate({"session": {"block_ms": 320}})
BLOCK = 16 * BLOCK_MS  # samples
TEN_SECONDS = "the quick brown fox jumps over a lazy dog. we met them again on monday, and then all five trains left early. nobody knew why"


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


class Talk:
    """Somebody talks to ``listen``, then presses Ctrl-C. Time is the test's: it passes while the model works and while nothing waits to
    be heard, and what is said meanwhile arrives."""

    def __init__(
        self, audio: FakeAudio, monkeypatch: pytest.MonkeyPatch, samples: Floats, forward_s: Callable[[float], float], hole_ms: int = 0
    ) -> None:
        """``forward_s``: what the model needs for a forward at a time. ``hole_ms``: so much the driver loses in the middle."""
        self.now_s, self.received_ms = 0.0, 0
        self.shown: list[tuple[Event, int]] = []  # with what had been received by then
        self.levels: list[int] = []  # of economy, at each block of audio
        self._samples, self._said, self._hole_ms = (samples * 32767).astype(np.int16), 0, hole_ms
        talk = self

        class Backend(ScriptedBackend):
            def step(self, work: Any, *, wanted: Any = None) -> Any:
                talk.pass_s(forward_s(talk.now_s))
                return super().step(work, wanted=wanted)

        class Noting(Session):
            def push(self, pcm: Any) -> list[Event]:
                talk.levels.append(next(level for level, economy in enumerate(LEVELS) if economy is self.economy))
                return super().push(pcm)

        class Stream(FakeStream):
            @property
            def active(self) -> bool:  # asked when nothing waits to be heard
                talk.pass_s(BLOCK_MS / 1000)
                return True

            @active.setter
            def active(self, value: bool) -> None: ...

        audio.InputStream = self._open  # type: ignore[method-assign]
        monkeypatch.setattr("dragoman.clients.listen.Session", Noting)
        monkeypatch.setattr("dragoman.clients.listen.make_renderer", lambda *rest: self)
        self._stream_class, self._microphone = Stream, Microphone()
        blocks = self._microphone.blocks
        self._microphone.blocks = lambda **options: blocks(wait_s=0)  # type: ignore[method-assign]
        self._loaded = loaded(Backend())

    def caption(self) -> Talk:
        listen(self._loaded, OPTIONS, microphone=self._microphone, form="json", clock=lambda: self.now_s)
        return self

    @property
    def events(self) -> list[Event]:
        return [event for event, _ in self.shown]

    def pass_s(self, duration_s: float) -> None:
        self.now_s += duration_s
        while self.received_ms + BLOCK_MS <= self.now_s * 1000 and self._said < len(self._samples):
            hole_ms = self._hole_ms if 2 * self._said >= len(self._samples) else 0
            self._hole_ms -= hole_ms
            self.now_s += hole_ms / 1000  # the machine was asleep
            self.received_ms += hole_ms
            block = self._samples[self._said : self._said + BLOCK]
            self._stream.speak(*block, at_s=1 + self.received_ms / 1000, overflow=hole_ms > 0)
            self._said += len(block)
            self.received_ms += BLOCK_MS
        if self._said >= len(self._samples):
            self._microphone.stop()

    # As a renderer

    def show(self, event: Event) -> None:
        self.shown.append((event, self.received_ms))

    def close(self) -> None: ...

    def _open(self, **settings: Any) -> FakeStream:
        self._stream = self._stream_class(**settings)
        return self._stream


def changes(levels: list[int]) -> list[int]:
    return [level for level, _ in groupby(levels)]


def test_a_machine_that_keeps_up_saves_nothing(audio: FakeAudio, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = np.tile(speech(TEN_SECONDS), 2)
    talk = Talk(audio, monkeypatch, samples, lambda now_s: 0.1).caption()
    assert set(talk.levels) == {0}
    assert talk.events == transcribe(session(block_ms=320), (samples * 32767).astype(np.int16))


def test_a_slow_machine_saves_work_before_it_loses_audio(audio: FakeAudio, monkeypatch: pytest.MonkeyPatch) -> None:
    """As configured, its work takes 1.7 times as long as the audio."""
    talk = Talk(audio, monkeypatch, np.tile(speech(TEN_SECONDS), 6), lambda now_s: 0.22).caption()
    check_promises(talk.events)
    assert changes(talk.levels)[:3] == [0, 1, 2]
    assert not [event for event in talk.events if isinstance(event, Dropped)]
    assert " ".join(finals(talk.events)) == " ".join([TEN_SECONDS] * 6)


def test_a_machine_that_was_busy_for_a_while_comes_back(audio: FakeAudio, monkeypatch: pytest.MonkeyPatch) -> None:
    talk = Talk(audio, monkeypatch, np.tile(speech(TEN_SECONDS), 6), lambda now_s: 0.22 if now_s < 20 else 0.0).caption()
    assert changes(talk.levels) == [0, 1, 2, 1, 0]


def test_one_long_pause_of_the_model_is_seen_at_once(audio: FakeAudio, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has come meanwhile has waited since the work began, not since it ended."""
    talk = Talk(audio, monkeypatch, np.tile(speech(TEN_SECONDS), 2), lambda now_s: 1.5 if 5.0 <= now_s < 5.5 else 0.0).caption()
    assert changes(talk.levels) == [0, 1, 0]


def test_a_machine_that_was_asleep_is_not_behind(audio: FakeAudio, monkeypatch: pytest.MonkeyPatch) -> None:
    talk = Talk(audio, monkeypatch, np.tile(speech(TEN_SECONDS), 2), lambda now_s: 0.0, hole_ms=60_000).caption()
    assert [event.duration_ms for event in talk.events if isinstance(event, Dropped)] == [60_000]
    assert set(talk.levels) == {0}


def test_the_clocks_count_audio_that_waits_or_was_lost(audio: FakeAudio, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that no economy helps; the levels end where a server would refuse, for here is nobody to refuse."""
    talk = Talk(audio, monkeypatch, np.tile(speech(TEN_SECONDS), 6), lambda now_s: 0.5).caption()
    check_promises(talk.events)
    assert [event.clocks.received_ms for event in talk.events] == [received_ms for _, received_ms in talk.shown]
    assert max(event.clocks.lag_ms for event in talk.events) > QUEUE_BLOCKS * BLOCK_MS
    assert [event for event in talk.events if isinstance(event, Dropped)]
    assert changes(talk.levels) == list(range(REFUSING))


def test_what_still_waits_when_the_model_fails_has_been_received(audio: FakeAudio, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = iter([BackendError("out of memory")])

    def forward_s(now_s: float) -> float:
        if now_s < 6:
            return 0.22
        for failure in failures:
            raise failure
        return 0.0

    talk = Talk(audio, monkeypatch, speech(TEN_SECONDS), forward_s)
    with pytest.raises(BackendError, match="out of memory"):
        talk.caption()
    check_promises(talk.events)
    last = talk.events[-1]
    assert isinstance(last, Ended) and last.clocks.received_ms == talk.received_ms > last.clocks.processed_ms


def test_devices_are_listed(audio: FakeAudio, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert list_devices() == 0
    assert capsys.readouterr().out == "*   1  Headset  (1 channels, 16000 Hz)\n"
    monkeypatch.setitem(sys.modules, "sounddevice", FakeAudio([MONITOR], default=-1))  # type: ignore[arg-type]
    list_devices()
    assert capsys.readouterr().out == "    0  Monitor of Built-in Audio  (2 channels, 48000 Hz) (loopback)\n"
    monkeypatch.setitem(sys.modules, "sounddevice", FakeAudio([OUTPUT], default=-1))  # type: ignore[arg-type]
    with pytest.raises(DeviceError, match="found 0 input devices"):
        list_devices()
