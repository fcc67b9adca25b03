"""Files block by block, and clear words about what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from dragoman.model.errors import AudioFormatError
from dragoman.stream.pcm import PcmReader
from dragoman.stream.source import ArraySource, FileSource, open_source, paced

NOISE = np.random.default_rng(0).uniform(-0.4, 0.4, (22_050 * 2, 2)).astype(np.float32)


@pytest.mark.parametrize(
    ("suffix", "subtype", "exact"),
    [("wav", "PCM_16", True), ("wav", "FLOAT", True), ("flac", "PCM_24", True), ("ogg", "VORBIS", False), ("mp3", "MPEG_LAYER_III", False)],
)
def test_files_come_in_blocks(tmp_path: Path, suffix: str, subtype: str, exact: bool) -> None:
    path = tmp_path / f"noise.{suffix}"
    soundfile.write(str(path), NOISE, 22_050, subtype=subtype)
    source = FileSource(path, block_ms=100)
    blocks = list(source.blocks())
    assert (source.sample_rate, source.channels, source.duration_s) == (22_050, 2, pytest.approx(2.0, abs=0.1))
    assert all(block.dtype == np.float32 and len(block) <= 2205 for block in blocks)
    heard = np.concatenate(blocks)
    assert abs(len(heard) - len(NOISE)) <= 0.1 * 22_050
    if exact:
        assert np.abs(heard - NOISE).max() < 1e-4
    source.close()


def test_opus(tmp_path: Path) -> None:
    path = tmp_path / "noise.ogg"
    soundfile.write(str(path), NOISE[:, 0], 24_000, format="OGG", subtype="OPUS")
    assert FileSource(path).sample_rate in (24_000, 48_000)


def test_files_that_are_no_audio(tmp_path: Path) -> None:
    text = tmp_path / "notes.wav"
    text.write_text("not audio")
    song = tmp_path / "notes.mp3"
    song.write_text("not audio")
    empty = tmp_path / "empty.wav"
    soundfile.write(str(empty), np.zeros(0, np.float32), 16_000)
    for path, says in (
        (tmp_path / "nowhere.wav", "does not exist"),
        (tmp_path, "is a folder"),
        (Path("/dev/null"), "is a pipe or a device"),
        (text, "Format not recognised; expected WAV, FLAC"),
        (song, "Format not recognised; expected WAV, FLAC"),
        (empty, "holds 0 samples"),
    ):
        with pytest.raises(AudioFormatError, match=says):
            FileSource(path)


def test_a_file_that_breaks_off_gives_what_it_has_and_then_says_so(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole.flac", tmp_path / "broken.flac"
    soundfile.write(str(whole), NOISE[:, 0], 22_050)
    broken.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    heard: list[np.ndarray] = []  # type: ignore[type-arg]
    with pytest.raises(AudioFormatError, match=r"broken after 0\.\d\d s, expected 2\.00 s"):
        for block in FileSource(broken).blocks():
            heard.append(block[:, 0])
    samples = np.concatenate(heard)
    assert len(samples) > 0.5 * 22_050
    assert np.abs(samples - NOISE[: len(samples), 0]).max() < 1e-3


@pytest.mark.parametrize(
    ("format", "subtype"),
    [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAVEX", "PCM_24"), ("W64", "PCM_16"), ("RF64", "PCM_16"), ("AIFF", "PCM_16"), ("AU", "PCM_16")],
)
def test_uncompressed_files_that_break_off_are_noticed(tmp_path: Path, format: str, subtype: str) -> None:
    """libsndfile reads them to their end and says nothing."""
    path = tmp_path / "a"
    soundfile.write(str(path), NOISE, 22_050, format=format, subtype=subtype)
    whole = FileSource(path)
    assert sum(map(len, whole.blocks())) == len(NOISE)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    source, heard = FileSource(path), 0
    assert source.duration_s == pytest.approx(2.0, abs=0.01)
    with pytest.raises(AudioFormatError, match=r"broken after 1\.00 s, expected 2\.00 s \(the file is cut off\)"):
        for block in source.blocks():
            heard += len(block)
    assert heard == pytest.approx(22_050, abs=100)


@pytest.mark.parametrize("size", [0xFFFF_FFFF, 0x7FFF_FFFF, 0x7FFF_F000])
def test_a_wav_out_of_a_pipe_has_no_length_and_is_whole(tmp_path: Path, size: int) -> None:
    path = tmp_path / "pipe.wav"
    soundfile.write(str(path), NOISE, 22_050, subtype="PCM_16")
    whole = bytearray(path.read_bytes())
    for at in (4, whole.index(b"data") + 4):
        whole[at : at + 4] = size.to_bytes(4, "little")
    path.write_bytes(whole)
    assert sum(map(len, FileSource(path).blocks())) == len(NOISE)


def test_what_is_missing_behind_the_sound_is_not_missed(tmp_path: Path) -> None:
    """The names and pictures that some programs write behind the samples."""
    path = tmp_path / "tagged.wav"
    soundfile.write(str(path), NOISE, 22_050, subtype="PCM_16")
    whole = bytearray(path.read_bytes())
    whole[4:8] = (len(whole) - 8 + 50_000).to_bytes(4, "little")
    path.write_bytes(whole + b"LIST" + (49_992).to_bytes(4, "little") + b"INFO")
    assert sum(map(len, FileSource(path).blocks())) == len(NOISE)


@pytest.mark.parametrize(
    ("rate", "says"), [(0, "expected WAV"), (1, "1 Hz, expected 8000"), (4_000, "4000 Hz"), (4_000_000_000, "expected WAV")]
)
def test_a_header_with_a_rate_that_cannot_be(tmp_path: Path, rate: int, says: str) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(str(path), NOISE, 22_050, subtype="PCM_16")
    whole = bytearray(path.read_bytes())
    whole[24:28] = rate.to_bytes(4, "little")
    path.write_bytes(whole)
    with pytest.raises(AudioFormatError, match=says):
        source = open_source(path)
        PcmReader(source.sample_rate, source.channels, "float32")


def test_arrays_are_cut_into_blocks() -> None:
    samples = np.arange(1000, dtype=np.float32)
    source = ArraySource(samples, 8000, block_ms=50)
    blocks = list(source.blocks())
    assert [len(block) for block in blocks] == [400, 400, 200] and source.channels == 1
    assert np.array_equal(np.concatenate(blocks)[:, 0], samples)
    assert source.duration_s == 0.125


def test_paced_blocks_come_no_earlier_than_they_were_recorded() -> None:
    now, times = [100.0], list[float]()

    def sleep(duration_s: float) -> None:
        assert duration_s > 0
        now[0] += duration_s

    blocks = iter([np.zeros((1600, 1), np.float32)] * 4)
    for index, _ in enumerate(paced(blocks, 16_000, clock=lambda: now[0], sleep=sleep)):
        times.append(round(now[0] - 100, 6))
        if index == 1:
            now[0] += 0.15  # the listener is slow: the next blocks are late, but not later than they must be
    assert times == [0.1, 0.2, 0.35, 0.4]


def test_a_flac_out_of_a_pipe_has_no_length_and_is_whole(tmp_path: Path) -> None:
    """Whoever writes a header before the samples cannot know their number, and leaves it 0 (RFC 9639, section 8.2)."""
    path = tmp_path / "pipe.flac"
    soundfile.write(str(path), NOISE, 22_050)
    whole = bytearray(path.read_bytes())
    whole[21] &= 0xF0  # 36 bits of the first block, which begins with the eighth byte
    whole[22:26] = bytes(4)
    path.write_bytes(whole)
    source = FileSource(path)
    assert source.duration_s is None and source.sample_rate == 22_050
    assert sum(map(len, source.blocks())) == len(NOISE)
    path.write_bytes(whole[: len(whole) * 2 // 3])
    heard = 0
    with pytest.raises(AudioFormatError, match=r"broken after [01]\.\d\d s \("):
        for block in FileSource(path).blocks():
            heard += len(block)
    assert heard > len(NOISE) // 2
