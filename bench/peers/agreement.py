"""LocalAgreement-2 for recognisers that only know whole clips: decode the open segment again and again, commit what two results share.

As in Macháček et al. 2023, "Turning Whisper into Real-Time Transcription System". Segments begin and end by our voice detector and
endpointer, with our default settings, so that cutting is no difference between them and us.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile

import numpy as np
from dragoman.model.backend import Floats
from dragoman.model.config import SAMPLE_RATE
from dragoman.stream.config import SessionOptions
from dragoman.stream.endpoint import Endpointer, Signal
from dragoman.stream.framer import Framer
from dragoman.stream.vad import Vad, make_vad
from peer import Line

FRAME_SAMPLES = 640
FRAME_S = FRAME_SAMPLES / SAMPLE_RATE
LONGEST_S = 24.0


class LocalAgreement:
    """``transcribe``: float32 [n] at 16 kHz → text. ``every_s``: speech between two decodings."""

    def __init__(self, transcribe: Callable[[Floats], str], *, every_s: float, vad: Vad | None = None) -> None:
        options = SessionOptions()
        self._transcribe, self._every_frames = transcribe, round(every_s / FRAME_S)
        self._vad = vad or make_vad(**options.vad.model_dump())
        self._endpointer = Endpointer(options.endpoint.frames(1000 * FRAME_S, LONGEST_S))
        self._framer = Framer(FRAME_SAMPLES)
        self._recent: list[Floats] = []  # frames that may belong to the next segment
        self._segment: list[Floats] = []
        self._new_frames = 0
        self._committed: list[str] = []
        self._unstable: list[str] = []

    def push(self, samples: Floats) -> list[Line]:
        return [line for frame in self._framer.push(samples) for line in self._hear(frame)]

    def finish(self) -> list[Line]:
        lines = [line for frame in self._framer.flush() for line in self._hear(frame)]
        if self._endpointer.speaking:
            self._endpointer.close("finish")
            lines.append(self._end())
        return lines

    def _hear(self, frame: Floats) -> list[Line]:
        signal = self._endpointer.push(self._vad.is_speech(frame))
        if signal in (Signal.SILENCE, Signal.START):
            self._recent = [*self._recent, frame][-self._endpointer.settings.reach_frames :]
        if signal is Signal.SILENCE:
            return []
        if signal is Signal.START:
            self._segment = self._recent[-self._endpointer.segment_frames :]
            self._new_frames, self._committed, self._unstable = len(self._segment), [], []
            return []
        self._segment.append(frame)
        self._new_frames += 1
        if signal is Signal.END:
            return [self._end()]
        if self._new_frames < self._every_frames or self._endpointer.silent_frames >= self._every_frames:
            return []
        self._new_frames = 0
        words = self._words()
        agreed = [word for word, _ in takewhile(lambda pair: pair[0] == pair[1], zip(words, self._unstable, strict=False))]
        self._committed += agreed
        self._unstable = words[len(agreed) :]
        return [self._line()]

    def _end(self) -> Line:
        """What is committed stays; all else is as the last decoding says. If speech goes on, the segment was full."""
        self._committed += self._words()
        self._unstable = []
        line = self._line(over=True)
        self._recent = []
        return line

    def _words(self) -> list[str]:
        """The words behind the committed ones, by a decoding of the whole segment."""
        return self._transcribe(np.concatenate(self._segment)).split()[len(self._committed) :]

    def _line(self, *, over: bool = False) -> Line:
        text, tail = " ".join(self._committed), " ".join(self._unstable)
        first_s = self._endpointer.first_frame * FRAME_S
        return Line(first_s, self._endpointer.frame * FRAME_S, text, " " + tail if text and tail else tail, over)
