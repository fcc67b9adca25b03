"""Files → text: the work behind ``dragoman transcribe``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from ..stream import AudioFormatError, AudioSource, ConfigError, Loaded, Options, Session, open_source, paced
from .outputs import Piece, plan
from .render import CaptionRenderer, Form, Renderer, RendererGroup, make_renderer

Advance = Callable[[float], None]  # seconds of audio done
Begin = Callable[[str, float | None], Advance]  # the next file: its name, its length in s


@dataclass(frozen=True, slots=True)
class Wish:
    """What the command line asked for."""

    given: tuple[Path, ...]  # files and folders
    form: Form
    realtime: bool = False
    stats: bool = False
    out: Path | None = None  # a folder: one text file for each file; "-": standard output
    beside: bool = False  # several files: the text of each beside it
    overwrite: bool = False
    only_translation: bool = False
    separate: bool = False  # captions: a file for each language


@dataclass(frozen=True, slots=True)
class Plan:
    """A wish that can be fulfilled. ``problems``: what is wrong with parts of it."""

    wish: Wish
    pieces: list[Piece]
    problems: list[str]


def check(wish: Wish, options: Options) -> Plan:
    """Raises ConfigError for a wish that no model could fulfil."""
    if wish.only_translation and not options.session.targets:
        raise ConfigError("--only-translation without a translation: expected --to CODE")
    if wish.only_translation and wish.form in ("json", "live"):
        raise ConfigError(f"--only-translation with {wish.form} output, expected --srt, --vtt or --txt")
    if wish.separate and not options.session.targets:
        raise ConfigError("--separate without a translation: expected --to CODE")
    if wish.separate and wish.form not in ("srt", "vtt"):
        raise ConfigError(f"--separate with {wish.form} output, expected --srt or --vtt")
    own = options.session.targets if wish.separate else ()
    pieces, problems = plan(wish.given, wish.form, out=wish.out, beside=wish.beside, languages=own)
    return Plan(wish, pieces, problems)


def transcribe_files(todo: Plan, loaded: Loaded, options: Options) -> int:
    """Every file in turn. One that cannot be read is reported, what was heard of it is shown, and the next one follows.

    Returns the exit code: 0, 1 if something failed, 130 after Ctrl-C. Raises TaskError for what the model cannot do.
    """
    for problem in todo.problems:
        report(problem)
    failures = len(todo.problems)
    shown = any(piece.text is None for piece in todo.pieces) and sys.stdout.isatty()  # a bar would wipe lines of text away
    try:
        with progress_bars(len(todo.pieces), wanted=not shown) as begin:
            for piece in todo.pieces:
                failures += not _one_file(piece, todo, loaded, options, begin)
    except KeyboardInterrupt:
        return 130
    return 1 if failures else 0


def _one_file(piece: Piece, todo: Plan, loaded: Loaded, options: Options, begin: Begin) -> bool:
    """Whether it went well; if not, it was reported."""
    wish, path = todo.wish, piece.source
    try:
        source = open_source(path)
        try:
            advance = begin(path.name, source.duration_s)
            session = Session(loaded, options.session, sample_rate=source.sample_rate, channels=source.channels, encoding="float32")
            with _rendered(piece, todo, options) as renderer:
                _hear(source, session, renderer, wish, advance)
        finally:
            source.close()
    except (AudioFormatError, ConfigError) as error:
        report(str(error) if str(path) in str(error) else f"{path}: {error}")
        return False
    return True


def _hear(source: AudioSource, session: Session, renderer: Renderer, wish: Wish, advance: Advance) -> None:
    """One file through one session. Whatever ends it, what was heard is flushed and shown."""
    try:
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
        if wish.stats:
            print_stats(session)


@contextmanager
def _rendered(piece: Piece, todo: Plan, options: Options) -> Generator[Renderer]:
    """What writes the text of a piece, and its files. Raises ConfigError naming one that cannot be written or is there already."""
    wish, own = todo.wish, piece.translations
    wanted = [*([] if own and wish.only_translation else [(None, piece.text)]), *own]
    for _, path in wanted:  # before the first of them is begun
        if path is not None and path.exists() and not wish.overwrite:
            raise ConfigError(f"{piece.source}: {path} is there already; add --overwrite to replace it")
    with ExitStack() as files:
        outs = [(code, files.enter_context(_text_file(piece.source, path)) if path else sys.stdout) for code, path in wanted]
        if own:
            assert wish.form in ("srt", "vtt")
            yield RendererGroup([CaptionRenderer(out, wish.form, code) for code, out in outs])
        else:
            name = str(piece.source) if len(todo.pieces) > 1 and piece.text is None else None
            yield make_renderer(wish.form, outs[0][1], options, name=name, only_translation=wish.only_translation)


@contextmanager
def _text_file(source: Path, path: Path) -> Generator[TextIO]:
    """Where text goes: under its name once all of it is there, until then under the name with ".part", which stays if the source breaks
    off and something was heard of it. Raises ConfigError naming both."""
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("w", encoding="utf-8") as out:
                yield out
        except BaseException:
            if part.exists():
                if part.stat().st_size:
                    report(f"{source}: what was heard of it is in {part}")
                else:
                    part.unlink()
            raise
        part.replace(path)
    except OSError as error:
        raise ConfigError(f"{source}: cannot write {path}: {error.strerror or error}") from error


@contextmanager
def progress_bars(count: int, *, wanted: bool) -> Generator[Begin]:
    """A bar for the current file and, where there are several, one for all: on standard error, if that is a terminal and ``wanted``.

    Gives a function to be called with each file's name and length, which gives one that takes the seconds just done.
    """
    if not (wanted and sys.stderr.isatty()):
        yield lambda name, duration_s: lambda seconds: None
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
    # Standard output may be a file: only what goes to standard error is kept clear of the bars.
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False) as progress:
        whole = progress.add_task(f"all {count} files", total=count) if count > 1 else None
        begun, current = 0, None

        def begin(name: str, duration_s: float | None) -> Advance:
            nonlocal begun, current
            if current is not None:
                progress.remove_task(current)
            task = current = progress.add_task(Path(name).name, total=duration_s)
            before, done_s, begun = begun, 0.0, begun + 1

            def advance(seconds: float) -> None:
                nonlocal done_s
                done_s += seconds
                progress.update(task, completed=done_s)
                if whole is not None:
                    progress.update(whole, completed=before + (min(1.0, done_s / duration_s) if duration_s else 0.0))

            return advance

        yield begin


@contextmanager
def progress_bar(name: str, duration_s: float | None, *, wanted: bool) -> Generator[Advance]:
    """One bar; see ``progress_bars``."""
    with progress_bars(1, wanted=wanted) as begin:
        yield begin(name, duration_s)


def print_stats(session: Session) -> None:
    """The session's numbers on standard error, so that they mix with no text."""
    sys.stderr.write("".join(f"  {line}\n" for line in session.stats.lines()))


def report(message: str) -> None:
    """An error for people: one line on standard error."""
    sys.stderr.write(f"dragoman: {message}\n")
