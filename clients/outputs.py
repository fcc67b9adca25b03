"""What the command line named → the files to read, and where the text of each goes. Nothing is opened here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..stream import ConfigError
from .render import Form

# What a folder is searched for; a file that is named itself is tried whatever it is called. (No .ts: most such files are programs.)
SOUND = frozenset(
    ".aac .ac3 .aif .aifc .aiff .amr .ape .au .caf .flac .m4a .mka .mp3 .oga .ogg .opus .w64 .wav .wma .wv".split(),
)
VIDEO = frozenset(".3gp .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .mxf .ogv .webm .wmv".split())
STDOUT = Path("-")


@dataclass(frozen=True, slots=True)
class Piece:
    """A file to read. ``text``: where what it says goes, None: standard output. ``translations``: what has a file of its own."""

    source: Path
    text: Path | None
    translations: tuple[tuple[str, Path], ...] = ()


@dataclass(frozen=True, slots=True)
class _Found:
    source: Path
    name: Path  # below the folder of ``--out``


def plan(
    given: Sequence[Path], form: Form, *, out: Path | None, beside: bool, languages: Sequence[str] = ()
) -> tuple[list[Piece], list[str]]:
    """Files and folders → pieces in order, and what is wrong with some of them, as sentences.

    ``out``: a folder for the text, or "-" for standard output. Without it, several files (or a folder) give one text file beside each
    when ``beside``; all other text goes to standard output. ``languages``: those that get a file of their own, beside the text, which is
    a file then too. Raises ConfigError where several captions would become one.
    """
    found, problems = _find(given)
    many = len(found) > 1 or any(path.is_dir() for path in given)
    if languages and out == STDOUT:
        raise ConfigError("a file for each language cannot go to standard output; leave --out away, or name a folder")
    if not languages and (out == STDOUT or (out is None and not (beside and many))):
        if len(found) > 1 and form in ("srt", "vtt"):
            raise ConfigError(f"{len(found)} files would become one {form} file; leave --out away for one file each beside them")
        return [Piece(one.source, None) for one in found], problems
    return _named(found, form, out, languages), problems


def _find(given: Iterable[Path]) -> tuple[list[_Found], list[str]]:
    given, found, problems = list(given), list[_Found](), list[str]()
    folders = [path for path in given if path.is_dir()]
    for path in given:
        if path not in folders:
            found.append(_Found(path, Path(path.name)))
            continue
        below = sorted(inner for inner in path.rglob("*") if _is_wanted(inner, path))
        root = path if len(folders) == 1 else path.absolute().parent  # several folders keep their own names
        found += [_Found(inner, inner.absolute().relative_to(root.absolute())) for inner in below]
        if not below:
            problems.append(f"{path}: no sound or video in this folder or below, expected names that end in .wav, .mp3, .mp4 or the like")
    once = {one.source.absolute(): one for one in reversed(found)}  # who is named twice is read once
    return [one for one in found if once[one.source.absolute()] is one], problems


def _is_wanted(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.suffix.lower() in SOUND | VIDEO and not hidden and path.is_file()


def _named(found: list[_Found], form: Form, out: Path | None, languages: Sequence[str]) -> list[Piece]:
    """talk.wav → talk.srt, and talk.de.srt; where talk.mp3 stands beside it → talk.wav.srt and talk.mp3.srt. Raises ConfigError for what
    still collides."""

    def place(one: _Found, name: str) -> Path:
        return one.source.with_name(name) if out is None else out / one.name.with_name(name)

    short = [place(one, f"{one.source.stem}.{form}") for one in found]
    shared = {path for path, times in Counter(short).items() if times > 1}
    texts = [place(one, f"{one.source.name}.{form}") if path in shared else path for one, path in zip(found, short, strict=True)]
    taken: dict[Path, Path] = {}
    pieces: list[Piece] = []
    for one, text in zip(found, texts, strict=True):
        own = [(code, text.with_suffix(f".{code}{text.suffix}")) for code in languages]  # as players look for them
        for path in (text, *(path for _, path in own)):
            if path in taken:
                raise ConfigError(f"{taken[path]} and {one.source} would both be written to {path}; run them into different folders")
            taken[path] = one.source
        pieces.append(Piece(one.source, text, tuple(own)))
    return pieces
