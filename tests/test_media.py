"""Sound out of films: at the right time, to the end, with clear words where there is none."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from dragoman.model.backend import Floats
from dragoman.model.errors import AudioFormatError
from dragoman.stream.media import MediaSource
from dragoman.stream.source import FileSource, open_source

av = pytest.importorskip("av", reason="needs the extra video")

from .media import film  # noqa: E402

TONE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(48_000) / 16_000)).astype(np.float32)


def hear(path: Path) -> tuple[Floats, str]:
    """Samples [n, channels] until the end or the fault, and the fault."""
    source, blocks = open_source(path), list[Floats]()
    try:
        blocks.extend(source.blocks())
    except AudioFormatError as error:
        return np.concatenate([*blocks, np.zeros((0, source.channels), np.float32)]), str(error)
    finally:
        source.close()
    return np.concatenate(blocks), ""


def begins_s(samples: Floats) -> float:
    return int(np.argmax(np.abs(samples[:, 0]) > 0.3)) / 48_000


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm", "a.m4a", "a.aac"])
def test_the_sound_of_a_film(tmp_path: Path, name: str) -> None:
    path = film(tmp_path / name, TONE)
    source = open_source(path)
    assert isinstance(source, MediaSource)
    assert (source.sample_rate, source.channels) == (48_000, 1)
    assert source.duration_s == pytest.approx(3.0, abs=0.05)
    source.close()
    heard, fault = hear(path)
    assert fault == "" and len(heard) / 48_000 == pytest.approx(3.0, abs=0.05)
    assert np.sqrt(np.mean(np.square(heard[4800:-4800]))) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)
    assert begins_s(heard) < 0.05


def test_both_channels_are_heard_as_loud_as_they_are(tmp_path: Path) -> None:
    heard, _ = hear(film(tmp_path / "a.mkv", TONE, layout="stereo"))
    assert heard.shape[1] == 2
    assert np.sqrt(np.mean(np.square(heard[4800:-4800]))) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_sound_that_begins_late_keeps_its_time(tmp_path: Path, name: str) -> None:
    """Captions must fit the picture: one second of it comes before the sound."""
    heard, fault = hear(film(tmp_path / name, TONE, late_s=1.0))
    assert fault == "" and begins_s(heard) == pytest.approx(1.0, abs=0.05)
    assert np.abs(heard[: int(0.9 * 48_000)]).max() == 0


def test_sound_that_ends_before_the_picture_is_whole(tmp_path: Path) -> None:
    heard, fault = hear(film(tmp_path / "a.mkv", TONE, picture_s=5.0))
    assert fault == "" and len(heard) / 48_000 == pytest.approx(3.0, abs=0.05)


@pytest.mark.parametrize(("name", "options"), [("a.mkv", {}), ("a.webm", {}), ("a.mp4", {"movflags": "faststart"})])
def test_a_film_that_breaks_off_gives_what_it_has_and_then_says_so(tmp_path: Path, name: str, options: dict[str, str]) -> None:
    path = film(tmp_path / name, TONE, **options)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    heard, fault = hear(path)
    assert 1.0 < len(heard) / 48_000 < 2.0
    assert "broken after 1." in fault and "expected 3.0" in fault


def test_a_film_without_sound_and_files_that_are_none(tmp_path: Path) -> None:
    silent = tmp_path / "silent.mp4"
    with av.open(str(silent), "w") as out:
        screen = out.add_stream("mpeg4", rate=10)
        screen.width, screen.height, screen.pix_fmt = 64, 64, "yuv420p"  # type: ignore[attr-defined]
        for _ in range(5):
            out.mux(screen.encode(av.VideoFrame(64, 64, "yuv420p")))  # type: ignore[attr-defined]
        out.mux(screen.encode(None))  # type: ignore[attr-defined]
    text = tmp_path / "notes.mp4"
    text.write_text("no film at all, but long enough to be looked at " * 20)
    for path, says in (
        (silent, "holds video and no sound track"),
        (text, "expected WAV, FLAC.*or what FFmpeg reads"),
        (tmp_path, "folder"),
    ):
        with pytest.raises(AudioFormatError, match=says):
            open_source(path)


def test_a_play_list_is_not_followed(tmp_path: Path) -> None:
    """It names other files and addresses, which nobody asked us to read."""
    film(tmp_path / "part.m4a", TONE)
    for name, text in (
        ("list.m3u8", f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{tmp_path}/part.m4a\n#EXT-X-ENDLIST\n"),
        ("list.ffconcat", "ffconcat version 1.0\nfile part.m4a\n"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(AudioFormatError, match="FFmpeg"):
            open_source(tmp_path / name)


def test_a_name_that_looks_like_an_address_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    film(tmp_path / "a.m4a", TONE).rename("http:a.m4a")
    assert hear(Path("http:a.m4a"))[1] == ""


def test_without_pyav_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = film(tmp_path / "a.mp4", TONE)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(AudioFormatError, match=r'a\.mp4: .*pip install "dragoman\[video\]"') as told:
        open_source(path)
    assert str(told.value).count("a.mp4") == 1


def test_what_libsndfile_reads_needs_no_pyav(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    assert isinstance(open_source(clips / "talk.ogg"), FileSource)
