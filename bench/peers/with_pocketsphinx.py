"""pocketsphinx as its own live example has it: its endpointer, one utterance for each stretch of speech, its packaged en-us models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dragoman.model.backend import Floats
from dragoman.stream.vad import pcm16
from peer import Entry, Line, Peer


class PocketSphinx:
    def __init__(self, decoder: Any, endpointer: Any) -> None:
        self._decoder, self._endpointer = decoder, endpointer
        self._pcm = b""
        self._in_speech, self._told = False, ""

    def push(self, samples: Floats) -> list[Line]:
        self._pcm += pcm16(samples)
        size, lines = self._endpointer.frame_bytes, list[Line]()
        while len(self._pcm) > size:  # the last frame stays: the endpointer wants to know which one it is
            frame, self._pcm = self._pcm[:size], self._pcm[size:]
            lines += self._hear(self._endpointer.process(frame))
        return lines

    def finish(self) -> list[Line]:
        lines = self._hear(self._endpointer.end_stream(self._pcm))
        return [*lines, self._end()] if self._in_speech else lines

    def _hear(self, speech: bytes | None) -> list[Line]:
        if speech is None:
            return []
        if not self._in_speech:
            self._decoder.start_utt()
            self._in_speech, self._told = True, ""
        self._decoder.process_raw(speech)
        if not self._endpointer.in_speech:
            return [self._end()]
        text = self._text()
        if text == self._told:
            return []
        self._told = text
        return [Line(self._endpointer.speech_start, self._endpointer.speech_start, "", text)]

    def _end(self) -> Line:
        self._decoder.end_utt()
        self._in_speech = False
        return Line(self._endpointer.speech_start, self._endpointer.speech_end, self._text(), over=True)

    def _text(self) -> str:
        found = self._decoder.hyp()
        return found.hypstr if found is not None else ""


def load() -> Callable[[], Peer]:
    from pocketsphinx import Decoder, Endpointer

    decoder = Decoder(samprate=16_000, loglevel="FATAL")
    return lambda: PocketSphinx(decoder, Endpointer(sample_rate=16_000))


ENTRY = Entry(
    "pocketsphinx",
    "its Endpointer and its packaged en-us models, all by default; committed at the end of an utterance",
    ("pocketsphinx",),
    load,
)
