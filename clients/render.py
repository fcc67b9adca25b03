"""Events → what people read: live text on a terminal, plain lines, JSON lines, SRT, VTT. The only file that writes to standard output."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Literal, Protocol, TextIO

from ..stream.captions import Cue, CueTimes, cut_bilingual, cut_cues, spread, srt, vtt
from ..stream.config import Options
from ..stream.events import Dropped, Event, Final, Formatted, Partial, SpeechStarted, Translation, TranslationDraft, to_mapping

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.segment import Segment
    from rich.text import Text

Form = Literal["live", "txt", "json", "srt", "vtt"]


class Renderer(Protocol):
    """Shows the events of one stream."""

    def show(self, event: Event) -> None: ...

    def close(self) -> None:
        """Write what is still held back. Called once, also after an error."""
        ...


class TextRenderer:
    """One line for each segment; translations below it, each behind its language.

    ``formatted``: the formatted text stands in place of the plain one, which stays where a guard left none of it, or none comes.
    """

    def __init__(self, out: TextIO, *, with_source: bool = True, formatted: bool = False) -> None:
        self._out, self._with_source, self._formatted = out, with_source, formatted
        self._said = ""  # of the last segment, if it is not yet written: waits for its formatted text

    def show(self, event: Event) -> None:
        if isinstance(event, Formatted) and self._formatted:
            self._said = event.text.strip() or self._said
        if not isinstance(event, Dropped):  # that may stand before the formatted text; whatever else comes, comes after it
            self._release()
        if isinstance(event, Final):
            self._said = event.text.strip()
            if not self._formatted:
                self._release()
        elif isinstance(event, Translation) and event.text:
            self._line(f"[{event.language}] {event.text}")

    def close(self) -> None:
        self._release()
        self._out.flush()

    def _release(self) -> None:
        said, self._said = self._said, ""
        if said and self._with_source:
            self._line(said)

    def _line(self, text: str) -> None:
        self._out.write(text + "\n")
        self._out.flush()  # a reader at the other end of a pipe sees each line when it is final


class JsonRenderer:
    """One event a line. ``name``, if given, goes into each line as ``file``."""

    def __init__(self, out: TextIO, name: str | None = None) -> None:
        self._out, self._name = out, name

    def show(self, event: Event) -> None:
        mapping = to_mapping(event)
        if self._name is not None:
            mapping["file"] = self._name
        self._out.write(json.dumps(mapping, ensure_ascii=False) + "\n")
        self._out.flush()

    def close(self) -> None:
        self._out.flush()


class CaptionRenderer:
    """SubRip or WebVTT, of the transcript or (``language``) of one translation."""

    def __init__(self, out: TextIO, form: Literal["srt", "vtt"], language: str | None = None) -> None:
        self._cues, self._language = _CueWriter(out, form), language

    def show(self, event: Event) -> None:
        if self._language is None and isinstance(event, Final):
            words = list(event.words)
        elif isinstance(event, Translation) and event.language == self._language:
            words = spread(event.text, event.start_ms, event.end_ms)
        else:
            return
        self._cues.write(cut_cues(words))

    def close(self) -> None:
        self._cues.close()


class BilingualRenderer:
    """SubRip or WebVTT with what is said and its translations in one cue, in the order of ``targets``."""

    def __init__(self, out: TextIO, form: Literal["srt", "vtt"], targets: Sequence[str], *, with_source: bool = True) -> None:
        self._cues, self._targets, self._with_source = _CueWriter(out, form), tuple(targets), with_source
        self._final: Final | None = None  # waits for its translations
        self._said: dict[str, str] = {}

    def show(self, event: Event) -> None:
        if isinstance(event, Final):
            self._release()
            self._final = event
        elif isinstance(event, Translation):
            self._said[event.language] = event.text
            if len(self._said) == len(self._targets):
                self._release()

    def close(self) -> None:
        self._release()
        self._cues.close()

    def _release(self) -> None:
        final, self._final = self._final, None
        said, self._said = self._said, {}
        if final is not None:
            texts = [said[target] for target in self._targets if target in said]
            self._cues.write(cut_bilingual(final.words, texts, with_source=self._with_source))


class RendererGroup:
    """Shows the events of one stream in several places."""

    def __init__(self, renderers: Sequence[Renderer]) -> None:
        self._renderers = tuple(renderers)

    def show(self, event: Event) -> None:
        for each in self._renderers:
            each.show(event)

    def close(self) -> None:
        with ExitStack() as every:  # the others too where one fails
            for each in self._renderers:
                every.callback(each.close)


class _CueWriter:
    """Cues in order → a caption file."""

    def __init__(self, out: TextIO, form: Literal["srt", "vtt"]) -> None:
        self._out, self._form = out, form
        self._times, self._number = CueTimes(), 0
        if form == "vtt":
            out.write("WEBVTT\n\n")

    def write(self, cues: Iterable[Cue]) -> None:
        self._put(self._times.push(cues))

    def close(self) -> None:
        self._put(self._times.close())
        self._out.flush()

    def _put(self, cues: Iterable[Cue]) -> None:
        for cue in cues:
            self._number += 1
            self._out.write(srt(self._number, cue) if self._form == "srt" else vtt(cue))
            self._out.flush()


class LiveRenderer:
    """A terminal: committed words plain, the unstable tail dim; a finished segment stays above as a line of its own.

    Drafts of translations stand dim below the text, each until its translation takes its place.
    """

    def __init__(self, out: TextIO, *, animate: bool | None = None) -> None:
        """``animate``: redraw the current line in place; by default where the terminal can."""
        from rich.console import Console
        from rich.live import Live

        self._console = Console(file=out, force_terminal=animate, highlight=False, soft_wrap=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False)
        self._committed = self._tail = ""
        self._drafts: dict[str, str] = {}  # by language
        self._live.start()

    def show(self, event: Event) -> None:
        from rich.text import Text

        if isinstance(event, SpeechStarted):
            self._now("", "", drafts={})
        elif isinstance(event, Partial):
            self._now(self._committed + event.delta, event.tail)
        elif isinstance(event, TranslationDraft):
            self._now(self._committed, self._tail, drafts={**self._drafts, event.language: event.text})
        elif isinstance(event, Final):
            said = event.text.strip()
            self._now("", "", drafts=self._drafts if said else {})  # of nothing there comes no translation
            if said:
                self._console.print(Text(said))
        elif isinstance(event, Formatted) and event.text:
            self._console.print(Text(event.text, "bold"))
        elif isinstance(event, Translation):
            self._now(self._committed, self._tail, drafts={code: text for code, text in self._drafts.items() if code != event.language})
            if event.text:
                self._console.print(Text.assemble((f"[{event.language}] ", "cyan"), event.text))
        elif isinstance(event, Dropped):
            self._console.print(Text(f"({event.duration_ms} ms of audio lost: this machine is too slow)", "red"))

    def close(self) -> None:
        self._live.stop()

    def _now(self, committed: str, tail: str, *, drafts: dict[str, str] | None = None) -> None:
        """What is shown in place, if that has changed."""
        from rich.text import Text

        before = (self._committed, self._tail, self._drafts)
        self._committed, self._tail = committed, tail
        self._drafts = self._drafts if drafts is None else drafts
        if before == (self._committed, self._tail, self._drafts):
            return
        lines = [Text.assemble(committed, (tail, "dim"))] if committed or tail else []
        lines += [Text(f"[{language}] {text}", "dim") for language, text in self._drafts.items() if text]
        self._live.update(_LastLines(Text("\n").join(lines)), refresh=True)


class _LastLines:
    """Text whose last lines are shown where the terminal is too low for all: the newest words stand there."""

    def __init__(self, text: Text) -> None:
        self._text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        from rich.segment import Segment

        for line in console.render_lines(self._text, options, pad=False)[-options.size.height :]:
            yield from line
            yield Segment.line()


def make_renderer(form: Form, out: TextIO, options: Options, *, name: str | None = None, only_translation: bool = False) -> Renderer:
    """The renderer of a form. Captions hold the transcript and below it the translations wanted, or (``only_translation``) these alone."""
    targets = options.session.targets
    if form == "live":
        return LiveRenderer(out)
    if form == "json":
        return JsonRenderer(out, name)
    if form == "txt":
        return TextRenderer(out, with_source=not only_translation, formatted=options.session.style is not None)
    if not targets or (only_translation and len(targets) == 1):  # one language: its own line breaks and times
        return CaptionRenderer(out, form, next(iter(targets), None))
    return BilingualRenderer(out, form, targets, with_source=not only_translation)
