"""A fake PortAudio: what is recorded arrives in order, what is lost is counted, what is missing is said."""

from __future__ import annotations

import os
import sys

import pytest
from dragoman.clients.microphone import BLOCK_MS, Microphone, devices
from dragoman.stream import DeviceError

from .sound_card import HEADSET, INPUT, MONITOR, OTHER_MONITOR, OUTPUT, PULSE, SPEAKERS, FakeAudio


@pytest.fixture
def audio(monkeypatch: pytest.MonkeyPatch) -> FakeAudio:
    fake = FakeAudio([OUTPUT, INPUT, HEADSET], default=2)
    monkeypatch.setitem(sys.modules, "sounddevice", fake)  # type: ignore[arg-type]
    return fake


def test_only_inputs_are_listed_and_the_default_is_marked(audio: FakeAudio) -> None:
    assert [(device.index, device.name, device.is_default) for device in devices()] == [
        (1, "Desk microphone", False),
        (2, "Headset", True),
    ]


def test_a_device_opens_at_its_own_rate(audio: FakeAudio) -> None:
    with Microphone(1) as microphone:
        settings = audio.streams[0].settings
        assert microphone.sample_rate == settings["samplerate"] == 48_000
        assert (settings["device"], settings["channels"], settings["dtype"]) == (1, 1, "int16")
        assert settings["blocksize"] == 48_000 * BLOCK_MS // 1000
    assert audio.streams[0].closed


def test_blocks_arrive_in_order_and_as_copies(audio: FakeAudio) -> None:
    with Microphone() as microphone:
        stream = audio.streams[0]
        stream.speak(1, 2)
        stream.speak(3)
        microphone.stop()
        stream.speak(4)  # after the stop
        heard = list(microphone.blocks(wait_s=0))
    assert [block.samples[:, 0].tolist() for block in heard] == [[1, 2], [3]]
    assert [block.lost_samples for block in heard] == [0, 0]


def test_a_full_queue_never_blocks_and_counts_what_it_drops(audio: FakeAudio) -> None:
    with Microphone(queue_blocks=2) as microphone:
        stream, blocks = audio.streams[0], microphone.blocks(wait_s=0)
        for value in range(5):
            stream.speak(value, value, value)
        assert next(blocks).samples[0, 0] == 0
        stream.speak(7)
        microphone.stop()
        rest = list(blocks)
    assert [(block.samples[0, 0], block.lost_samples) for block in rest] == [(1, 0), (7, 9)]


def test_what_is_lost_at_the_end_is_told_with_a_sample_of_silence(audio: FakeAudio) -> None:
    with Microphone(queue_blocks=2) as microphone:
        for value in range(1, 6):
            audio.streams[0].speak(*[value] * 4)
        microphone.stop()
        heard = list(microphone.blocks(wait_s=0))
        assert list(microphone.blocks(wait_s=0)) == [], "once"
    assert [(block.samples[:, 0].tolist(), block.lost_samples) for block in heard] == [([1] * 4, 0), ([2] * 4, 0), ([0], 12)]


def test_what_a_loopback_loses_at_the_end_has_its_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeAudio([MONITOR, SPEAKERS], default=0, output=1)
    monkeypatch.setitem(sys.modules, "sounddevice", fake)  # type: ignore[arg-type]
    with Microphone(loopback=True, queue_blocks=1) as microphone:
        fake.streams[0].speak(1)
        fake.streams[0].speak(2)
        microphone.stop()
        assert list(microphone.blocks(wait_s=0))[-1].samples.shape == (1, 2)


@pytest.mark.parametrize(
    ("began_s", "at_s", "lost_samples"),
    [
        (7.0, 7.5, 7_996),  # of 16 000 a second, 4 were heard
        (7.0, 7.0, 4),  # no time has passed
        (7.0, 6.0, 4),
        (0.0, 0.0, 4),
        (0.0, 7.0, 4),  # nothing to compare with
        (7.0, 0.0, 4),
    ],
)
def test_what_the_driver_loses_is_counted_by_its_clock_or_is_a_block(
    audio: FakeAudio, began_s: float, at_s: float, lost_samples: int
) -> None:
    with Microphone() as microphone:
        stream = audio.streams[0]
        stream.speak(1, 1, 1, 1, at_s=began_s)
        stream.speak(2, 2, 2, 2, at_s=at_s, overflow=True)
        stream.speak(3, 3, 3, 3, at_s=at_s and at_s + 9)  # no flag, no loss
        microphone.stop()
        heard = list(microphone.blocks(wait_s=0))
    assert [(block.samples[0, 0], block.lost_samples) for block in heard] == [(1, 0), (2, lost_samples), (3, 0)]


def test_what_the_driver_loses_is_told_when_there_is_room_again(audio: FakeAudio) -> None:
    with Microphone(queue_blocks=1) as microphone:
        stream, blocks = audio.streams[0], microphone.blocks(wait_s=0)
        stream.speak(1, 1, at_s=1.0)
        stream.speak(2, 2, at_s=1.0 + 12 / 16_000, overflow=True)  # after 10 that the driver lost
        assert next(blocks).lost_samples == 0
        stream.speak(3, 3, at_s=1.0 + 14 / 16_000)
        microphone.stop()
        assert [block.lost_samples for block in blocks] == [12]


def test_received_is_what_was_recorded_however_much_of_it_waits_or_was_lost(audio: FakeAudio) -> None:
    with Microphone(1, queue_blocks=1) as microphone:  # 48 kHz
        stream, received = audio.streams[0], [microphone.received_ms]
        for step in (
            lambda: stream.speak(*[1] * 4800, at_s=1.0),
            lambda: stream.speak(*[2] * 4800, at_s=1.1),  # finds no room
            lambda: next(microphone.blocks(wait_s=0)),
            lambda: stream.speak(*[3] * 4800, at_s=1.7, overflow=True),  # after half a second that the driver lost
            microphone.stop,
            lambda: stream.speak(*[4] * 4800),
        ):
            step()
            received.append(microphone.received_ms)
    assert received == [0, 100, 200, 200, 800, 800, 800]


def test_an_unplugged_microphone_is_an_error(audio: FakeAudio) -> None:
    with Microphone() as microphone:
        stream = audio.streams[0]
        stream.speak(1)
        stream.active = False
        stream.settings["finished_callback"]()
        blocks = microphone.blocks(wait_s=0)
        next(blocks)
        with pytest.raises(DeviceError, match=r"microphone 2 \(Headset\) stopped"):
            next(blocks)


def test_what_was_lost_before_a_microphone_was_unplugged_is_told(audio: FakeAudio) -> None:
    with Microphone(queue_blocks=1) as microphone:
        stream, blocks = audio.streams[0], microphone.blocks(wait_s=0)
        stream.speak(1)
        stream.speak(2, 2)
        stream.active = False
        stream.settings["finished_callback"]()
        assert [next(blocks).lost_samples for _ in range(2)] == [0, 2]
        with pytest.raises(DeviceError, match="unplugged"):
            next(blocks)


@pytest.mark.parametrize(
    ("name", "is_loopback"),
    [
        ("Monitor of Built-in Audio Analog Stereo", True),
        ("alsa_output.pci-0000_00_1f.3.analog-stereo.monitor", True),
        ("Speakers (Realtek(R) Audio) [Loopback]", True),
        ("Stereo Mix (Realtek(R) Audio)", True),
        ("BlackHole 2ch", True),
        ("Desk microphone", False),
        ("Monitor webcam microphone", False),
        ("Stereo microphone", False),
    ],
)
def test_loopback_devices_are_known_by_their_names(monkeypatch: pytest.MonkeyPatch, name: str, is_loopback: bool) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", FakeAudio([{**INPUT, "name": name}], default=0))  # type: ignore[arg-type]
    assert [device.is_loopback for device in devices()] == [is_loopback]


def test_loopback_is_that_of_the_default_output(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeAudio([INPUT, OTHER_MONITOR, MONITOR, SPEAKERS], default=0, output=3)
    monkeypatch.setitem(sys.modules, "sounddevice", fake)  # type: ignore[arg-type]
    with Microphone(loopback=True) as microphone:
        settings = fake.streams[0].settings
        assert (settings["device"], settings["channels"], settings["samplerate"]) == (2, 2, 48_000)
        assert microphone.channels == 2 and microphone.device.name == "Monitor of Built-in Audio"
    fake.default.device = (0, -1)
    assert Microphone(loopback=True).device.name == "Monitor of HDMI", "no default output: the first there is"


def test_loopback_by_the_alsa_plugin_of_pulseaudio(monkeypatch: pytest.MonkeyPatch) -> None:
    """PortAudio on ALSA lists no monitors; the plugin records what the variable names when it is opened."""
    monkeypatch.setitem(sys.modules, "sounddevice", FakeAudio([OUTPUT, INPUT, PULSE], default=1))  # type: ignore[arg-type]
    monkeypatch.setenv("PULSE_SOURCE", "")  # so that it is put back
    monkeypatch.delenv("PULSE_SOURCE")
    microphone = Microphone(loopback=True)
    assert (microphone.device.index, microphone.channels, microphone.device.name) == (2, 2, "what this machine plays")
    assert os.environ["PULSE_SOURCE"] == "@DEFAULT_MONITOR@"
    monkeypatch.setenv("PULSE_SOURCE", "mine.monitor")
    Microphone(loopback=True)
    assert os.environ["PULSE_SOURCE"] == "mine.monitor", "who has chosen a source keeps it"


def test_a_machine_without_loopback_says_what_helps(audio: FakeAudio) -> None:
    with pytest.raises(
        DeviceError, match=r"no loopback device; the inputs are 1 \(Desk microphone\), 2 \(Headset\).*Stereo Mix.*BlackHole"
    ):
        Microphone(loopback=True)


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", FakeAudio([OUTPUT], default=-1))  # type: ignore[arg-type]
    with pytest.raises(DeviceError, match="found 0 input devices"):
        Microphone()
    assert devices() == []
    busy = [OUTPUT] * 9 + [INPUT]
    monkeypatch.setitem(sys.modules, "sounddevice", FakeAudio(busy, default=9))  # type: ignore[arg-type]
    with pytest.raises(DeviceError, match=r"no input device 5; there are 9 \(Desk microphone\)"):
        Microphone(5)
    with pytest.raises(DeviceError, match="cannot be opened: Device unavailable"), Microphone():
        pass


def test_a_missing_package_or_library_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(DeviceError, match=r'pip install "dragoman\[mic\]"'):
        devices()

    class NoLibrary:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == "sounddevice":
                raise OSError("PortAudio library not found")

    monkeypatch.delitem(sys.modules, "sounddevice")
    monkeypatch.setattr(sys, "meta_path", [NoLibrary(), *sys.meta_path])
    with pytest.raises(DeviceError, match="PortAudio library not found.*libportaudio2"):
        devices()
