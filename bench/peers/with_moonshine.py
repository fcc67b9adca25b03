"""moonshine-voice with its own streaming API, voice detector and packaged tiny-en. A line of it may change until it is complete."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dragoman.model.backend import Floats
from peer import Entry, Line, Peer

EVERY_S = 0.5  # its default


class Moonshine:
    def __init__(self, transcriber: Any) -> None:
        self._stream = transcriber.create_stream()
        self._stream.add_listener(self._changed)
        self._stream.start()
        self._lines: list[Line] = []
        self._open: int | None = None  # id of the line that was told last and is not over

    def push(self, samples: Floats) -> list[Line]:
        self._stream.add_audio(samples.tolist())
        return self._told()

    def finish(self) -> list[Line]:
        self._stream.stop()
        lines = self._told()
        self._stream.close()
        return lines

    def _changed(self, event: Any) -> None:
        kind, line = type(event).__name__, event.line
        if kind == "Error":
            raise event.error
        if kind not in ("LineStarted", "LineTextChanged", "LineCompleted") or line.is_complete != (kind == "LineCompleted"):
            return  # a line that is complete is told once
        assert self._open in (None, line.line_id), "its lines come one after the other"
        text, end_s = line.text.strip(), line.start_time + line.duration
        self._open = None if line.is_complete else line.line_id
        if line.is_complete:
            self._lines.append(Line(line.start_time, end_s, text, over=True))
        else:
            self._lines.append(Line(line.start_time, end_s, "", text))

    def _told(self) -> list[Line]:
        lines, self._lines = self._lines, []
        return lines


def load() -> Callable[[], Peer]:
    from moonshine_voice import ModelArch, Transcriber, get_model_path

    transcriber = Transcriber(get_model_path("tiny-en"), ModelArch.TINY, update_interval=EVERY_S, options={"return_audio_data": "false"})
    return lambda: Moonshine(transcriber)


ENTRY = Entry(
    "moonshine tiny-en",
    f"moonshine-voice's Transcriber.create_stream(), an update every {EVERY_S:g} s (its default); committed when a line is complete",
    ("moonshine-voice",),
    load,
)
