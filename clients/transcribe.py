"""Files → text: the work behind ``dragoman transcribe``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from ..stream import AudioFormatError, ConfigError, FileSource, Loaded, Options, Session, paced
from .render import Form, Renderer, make_renderer

Advance = Callable[[float], None]  # seconds of audio done


@dataclass(frozen=True, slots=True)
class Wish:
    """What the command line asked for."""

    files: tuple[Path, ...]
    form: Form
    realtime: bool = False
    stats: bool = False
    output: Path | None = None  # a folder: one file of text for each file of audio


def transcribe_files(wish: Wish, loaded: Loaded, options: Options) -> int:
    """Every file in turn. One that cannot be read is reported, what was heard of it is shown, and the next one follows.

    Returns the exit code: 0, 1 if a file failed, 130 after Ctrl-C.
    """
    failures = 0
    for path in wish.files:
        try:
            source = FileSource(path)
            session = Session(loaded, options.session, sample_rate=source.sample_rate, channels=source.channels, encoding="float32")
            with _text_file(wish, path) as out:
                name = str(path) if len(wish.files) > 1 else None
                renderer = make_renderer(wish.form, out, options, name=name)
                _one(source, session, renderer, wish)
        except AudioFormatError as error:
            failures += 1
            report(str(error) if str(path) in str(error) else f"{path}: {error}")
        except KeyboardInterrupt:
            return 130
    return 1 if failures else 0


def _one(source: FileSource, session: Session, renderer: Renderer, wish: Wish) -> None:
    """One file through one session. Whatever ends it, what was heard is flushed and shown."""
    try:
        with progress_bar(source.name, source.duration_s, wanted=wish.form != "live") as advance:
            blocks = source.blocks()
            for block in paced(blocks, source.sample_rate) if wish.realtime else blocks:
                for event in session.push(block):
                    renderer.show(event)
                advance(len(block) / source.sample_rate)
    finally:
        try:
            for event in session.finish():
                renderer.show(event)
        finally:
            renderer.close()
            source.close()
        if wish.stats:
            print_stats(session)


def check(wish: Wish, options: Options) -> None:
    """Raises ConfigError for a wish that no model could fulfil."""
    captions = wish.form in ("srt", "vtt")
    if captions and len(options.session.targets) > 1:
        raise ConfigError(f"captions are in one language, got --to {','.join(options.session.targets)}; run once for each, or use --json")
    if captions and len(wish.files) > 1 and wish.output is None:
        raise ConfigError(f"{len(wish.files)} files would become one {wish.form} file; add --output FOLDER for one file each")


@contextmanager
def _text_file(wish: Wish, path: Path) -> Generator[TextIO]:
    if wish.output is None:
        yield sys.stdout
        return
    try:
        wish.output.mkdir(parents=True, exist_ok=True)
        with (wish.output / f"{path.stem}.{wish.form}").open("w", encoding="utf-8") as out:
            yield out
    except OSError as error:
        raise ConfigError(f"--output {wish.output}: {error.strerror or error}") from error


@contextmanager
def progress_bar(name: str, duration_s: float | None, *, wanted: bool) -> Generator[Advance]:
    """A bar on standard error, if that is a terminal and ``wanted``. Gives a function that takes the seconds just done."""
    if not (wanted and sys.stderr.isatty()):
        yield lambda seconds: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(Path(name).name, total=duration_s)
        yield lambda seconds: progress.advance(task, seconds)


def print_stats(session: Session) -> None:
    """The session's numbers on standard error, so that they mix with no text."""
    sys.stderr.write("".join(f"  {line}\n" for line in session.stats.lines()))


def report(message: str) -> None:
    """An error for people: one line on standard error."""
    sys.stderr.write(f"dragoman: {message}\n")
