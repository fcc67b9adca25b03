"""Any rate, any channels, any cutting → the same 16 kHz mono samples; what is no audio is refused before it is taken in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from dragoman.model.errors import AudioFormatError
from dragoman.stream.pcm import PcmReader
from hypothesis import given, settings
from hypothesis import strategies as st


def tone(rate: int, seconds: float, hertz: float = 440.0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def read(reader: PcmReader, pieces: list[Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.concatenate([*(reader.push(piece) for piece in pieces), reader.flush()])


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000, 96_000, 192_000])
def test_a_tone_keeps_its_pitch_loudness_and_length(rate: int) -> None:
    heard = read(PcmReader(rate), [tone(rate, 1.0)])
    assert abs(len(heard) - 16_000) <= 1
    middle = heard[2000:14_000]
    expected = tone(16_000, 1.0)[2000:14_000]
    assert np.abs(middle - expected).max() < 0.01


def test_what_lies_above_the_new_band_is_filtered_out() -> None:
    """A strided slice would fold 15 kHz down to 1 kHz."""
    heard = read(PcmReader(48_000), [tone(48_000, 1.0, hertz=15_000)])
    assert np.abs(heard[2000:14_000]).max() < 0.001


@settings(max_examples=40, deadline=None)
@given(
    rate=st.sampled_from([8_000, 16_000, 22_050, 44_100, 48_000]),
    channels=st.integers(1, 3),
    cuts=st.lists(st.integers(1, 9_999), max_size=12),
    seed=st.integers(0, 1000),
)
def test_the_cutting_does_not_matter(rate: int, channels: int, cuts: list[int], seed: int) -> None:
    samples = np.random.default_rng(seed).integers(-20_000, 20_000, (10_000, channels), dtype=np.int16)
    pieces = [piece for piece in np.split(samples, sorted(set(cuts))) if len(piece)]
    whole, cut = PcmReader(rate, channels), PcmReader(rate, channels)
    assert np.array_equal(read(whole, [samples]), read(cut, pieces))
    assert whole.received_ms == cut.received_ms == 10_000 * 1000 // rate


def test_bytes_and_arrays_are_the_same_audio() -> None:
    samples = np.array([[100, 300], [-200, 400], [32_767, -32_768]], np.int16)
    from_bytes = PcmReader(channels=2).push(samples.tobytes())
    from_memory = PcmReader(channels=2).push(memoryview(samples.tobytes()))
    from_array = PcmReader(channels=2).push(samples)
    floats = (samples / 32768).astype(np.float32)
    from_floats = PcmReader(channels=2, encoding="float32").push(floats.tobytes())
    assert from_array == pytest.approx(np.array([200, 100, -0.5]) / 32768)
    for other in (from_bytes, from_memory, from_floats):
        assert np.array_equal(from_array, other)


@pytest.mark.parametrize(
    ("pcm", "says"),
    [
        (b"", "0 bytes"),
        (b"\0\0\0", "3 bytes of audio, expected a multiple of 2"),
        (np.zeros(0, np.float32), "is empty"),
        (np.zeros(4, np.float64), "dtype float64, expected int16 or float32"),
        (np.zeros(4, np.int32), "dtype int32"),
        (np.zeros((4, 2), np.int16), r"shape \[4, 2\], expected \[n\] or \[n, 1\]"),
        (np.zeros((2, 2, 2), np.int16), r"shape \[2, 2, 2\]"),
        (np.array([0, np.nan, np.inf, 0], np.float32), "2 of 4 samples are NaN or infinite"),
        (np.array([0, 20_000], np.float32), "reach 20000"),
        ([0, 1], "type list, expected bytes or a NumPy array"),
    ],
)
def test_what_is_no_audio_is_refused_and_changes_nothing(pcm: Any, says: str) -> None:
    reader, twin = PcmReader(44_100), PcmReader(44_100)
    begin, end = tone(44_100, 0.3), tone(44_100, 0.2, hertz=300)
    heard = [reader.push(begin)]
    with pytest.raises(AudioFormatError, match=says):
        reader.push(pcm)
    heard += [reader.push(end), reader.flush()]
    assert np.array_equal(np.concatenate(heard), read(twin, [begin, end]))


@pytest.mark.parametrize(
    ("format", "says"),
    [
        ({"sample_rate": 7_999}, "7999 Hz, expected 8000 to 192000"),
        ({"sample_rate": 192_001}, "192001 Hz"),
        ({"channels": 0}, "0 channels"),
        ({"encoding": "mulaw"}, "'mulaw', expected 'int16' or 'float32'"),
    ],
)
def test_formats_that_are_not_supported(format: dict[str, Any], says: str) -> None:
    with pytest.raises(AudioFormatError, match=says):
        PcmReader(**format)


@settings(max_examples=60, deadline=None)
@given(rate=st.integers(8_000, 192_000), cuts=st.lists(st.integers(1, 5_000), min_size=1, max_size=20))
def test_parts_that_are_flushed_one_by_one_are_as_long_as_what_was_pushed(rate: int, cuts: list[int]) -> None:
    reader, made = PcmReader(rate), 0
    for length in cuts:
        made += len(reader.push(np.ones(length, np.int16))) + len(reader.flush())
        assert made == round(reader.received_samples * 16_000 / rate) or rate == 16_000


def test_a_tone_goes_on_after_a_flush() -> None:
    reader, samples = PcmReader(48_000), tone(48_000, 1.0)
    first = read(reader, [samples[:24_000]])
    second = read(reader, [samples[24_000:]])
    assert (len(first), len(second)) == (8_000, 8_000)
    assert (
        np.abs(
            np.concatenate([first[1000:7000], second[1000:7000]])
            - np.concatenate([tone(16_000, 1.0)[1000:7000], tone(16_000, 1.0)[9000:15_000]])
        ).max()
        < 0.01
    )
