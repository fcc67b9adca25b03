"""Which files are read, and where their text goes."""

from __future__ import annotations

from pathlib import Path

import pytest
from dragoman.clients.outputs import Piece, plan
from dragoman.stream import ConfigError


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def texts(pieces: list[Piece], folder: Path) -> list[tuple[str, str | None]]:
    return [
        (piece.source.relative_to(folder).as_posix(), None if piece.text is None else piece.text.relative_to(folder).as_posix())
        for piece in pieces
    ]


def test_a_folder_is_searched_for_sound_and_video(tmp_path: Path) -> None:
    touch(tmp_path, "b.wav", "a.MP4", "x/y/c.opus", "notes.txt", ".hidden.wav", ".git/d.wav", "x/e.wav/inside.md", "code.ts")
    pieces, problems = plan([tmp_path], "srt", out=None, beside=True)
    assert texts(pieces, tmp_path) == [("a.MP4", "a.srt"), ("b.wav", "b.srt"), ("x/y/c.opus", "x/y/c.srt")]
    assert problems == []


def test_an_out_folder_keeps_what_is_below_the_folder(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.wav", "in/x/a.wav", "one.mp3")
    pieces, _ = plan([tmp_path / "in", tmp_path / "one.mp3"], "vtt", out=tmp_path / "out", beside=True)
    assert [text for _, text in texts(pieces, tmp_path)] == ["out/a.vtt", "out/x/a.vtt", "out/one.vtt"]


def test_several_folders_keep_their_names(tmp_path: Path) -> None:
    touch(tmp_path, "may/a.wav", "june/a.wav")
    pieces, _ = plan([tmp_path / "may", tmp_path / "june"], "txt", out=tmp_path / "out", beside=False)
    assert [text for _, text in texts(pieces, tmp_path)] == ["out/may/a.txt", "out/june/a.txt"]


def test_names_that_would_collide_keep_their_endings(tmp_path: Path) -> None:
    touch(tmp_path, "a.wav", "a.mp3", "b.wav")
    pieces, _ = plan([tmp_path], "srt", out=None, beside=True)
    assert [text for _, text in texts(pieces, tmp_path)] == ["a.mp3.srt", "a.wav.srt", "b.srt"]
    touch(tmp_path, "x/a.wav")
    with pytest.raises(ConfigError, match="would both be written to"):
        plan([tmp_path / "a.wav", tmp_path / "x" / "a.wav"], "srt", out=tmp_path / "out", beside=True)


def test_languages_have_files_of_their_own(tmp_path: Path) -> None:
    touch(tmp_path, "talk.wav", "talk.mp3", "b.wav")
    (piece,), _ = plan([tmp_path / "b.wav"], "srt", out=None, beside=False, languages=("de", "fr"))
    assert piece.text == tmp_path / "b.srt"
    assert piece.translations == (("de", tmp_path / "b.de.srt"), ("fr", tmp_path / "b.fr.srt"))
    pieces, _ = plan([tmp_path], "vtt", out=tmp_path / "out", beside=True, languages=("de",))
    assert [piece.translations[0][1].name for piece in pieces] == ["b.de.vtt", "talk.mp3.de.vtt", "talk.wav.de.vtt"]
    touch(tmp_path, "b.de.wav")
    with pytest.raises(ConfigError, match=r"b\.wav would both be written to .*b\.de\.srt"):
        plan([tmp_path], "srt", out=None, beside=True, languages=("de",))


@pytest.mark.parametrize(
    ("names", "out", "beside", "expected"),
    [
        (["a.wav"], None, True, [None]),
        (["a.wav", "b.wav"], None, False, [None, None]),
        (["a.wav", "b.wav"], None, True, ["a.json", "b.json"]),
        (["a.wav", "b.wav"], "-", True, [None, None]),
        (["a.wav"], "out", False, ["out/a.json"]),
        (["a.wav", "a.wav", "b.wav"], None, True, ["a.json", "b.json"]),
    ],
)
def test_standard_output_or_files(tmp_path: Path, names: list[str], out: str | None, beside: bool, expected: list[str | None]) -> None:
    where = None if out is None else Path("-") if out == "-" else tmp_path / out
    pieces, _ = plan([tmp_path / name for name in names], "json", out=where, beside=beside)
    assert [text for _, text in texts(pieces, tmp_path)] == expected


def test_a_folder_of_one_file_is_still_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.wav")
    pieces, _ = plan([tmp_path / "in"], "srt", out=None, beside=True)
    assert texts(pieces, tmp_path) == [("in/a.wav", "in/a.srt")]


def test_a_folder_without_sound_is_a_problem_and_no_end(tmp_path: Path) -> None:
    touch(tmp_path, "empty/notes.txt", "a.wav")
    pieces, problems = plan([tmp_path / "empty", tmp_path / "a.wav"], "txt", out=None, beside=True)
    assert texts(pieces, tmp_path) == [("a.wav", "a.txt")]
    assert len(problems) == 1 and "no sound or video in this folder" in problems[0]


def test_one_caption_file_cannot_hold_several(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2 files would become one srt file"):
        plan([tmp_path / "a.wav", tmp_path / "b.wav"], "srt", out=Path("-"), beside=True)
