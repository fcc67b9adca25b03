"""Where a segment of speech begins and ends: a state machine over one yes or no for each frame.

    idle ──enough speech──► speaking ──silence as long as the hangover, or the segment is full──► idle (or on, see ``resume``)

The hangover shortens as a segment nears its longest length, so that the cut falls into a short pause rather than into a word.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum


class Signal(Enum):
    """What a frame meant."""

    SILENCE = "silence"  # outside any segment
    START = "start"  # a segment began at ``first_frame`` and holds this frame
    SPEECH = "speech"  # inside a segment
    END = "end"  # this frame is the segment's last; ``reason`` tells why


@dataclass(frozen=True, slots=True)
class EndpointFrames:
    """The endpointer's settings, in frames."""

    start_frames: int = 2  # so many speech frames …
    start_window_frames: int = 4  # … among so many begin a segment
    pre_roll_frames: int = 6  # audio from before the first speech frame that still belongs to the segment
    lead_in_frames: int = 9  # audio from before the segment that is heard with it
    hangover_frames: int = 15  # silence that ends a segment
    sentence_hangover_frames: int = 8  # … after a finished sentence
    short_hangover_frames: int = 3  # … in a segment that is full
    longest_frames: int = 300  # a segment is full

    @property
    def reach_frames(self) -> int:
        """The most frames that a segment holds when it starts: how far back audio must be kept."""
        return self.pre_roll_frames + self.start_window_frames


_SETTLING_FRAMES = 3  # after the last speech frame: what the detector calls silence may still hold the breath of a word


class Endpointer:
    """One for each stream. ``frame`` counts the frames seen, ``first_frame`` is where the current segment began."""

    def __init__(self, settings: EndpointFrames) -> None:
        assert settings.start_frames <= settings.start_window_frames, "the window must hold the frames that begin a segment"
        assert settings.longest_frames > settings.reach_frames, "no room in a segment for its beginning"
        self.settings = settings
        self.frame = 0
        self.first_frame = 0
        self.last_speech_frame = -1
        self.speaking = False
        self.reason = ""
        self._earliest = 0  # the first frame that no earlier segment holds
        self._silent_from = 0  # the first frame behind the words of the earlier segments
        self._recent: deque[bool] = deque(maxlen=settings.start_window_frames)
        self._sentence_ended = False

    @property
    def segment_frames(self) -> int:
        """Frames in the current segment so far."""
        return self.frame - self.first_frame

    @property
    def room_frames(self) -> int:
        """Frames until the current segment is full."""
        return self.settings.longest_frames - self.segment_frames

    @property
    def lead_in_frames(self) -> int:
        """Frames before the current segment that may be heard with it: silence, though an earlier segment may have ended with it."""
        return max(0, min(self.settings.lead_in_frames, self.first_frame - self._silent_from))

    @property
    def silent_frames(self) -> int:
        """Frames since the last one with speech."""
        return self.frame - 1 - self.last_speech_frame

    def sure_frames(self, most: int) -> int:
        """How many of the next ``most`` frames are SPEECH to ``push``, whatever is decided on them: what decides may wait for more."""
        if not self.speaking:
            return 0
        for sure in range(most, 0, -1):  # what holds of more frames holds of fewer
            length = self.segment_frames + sure
            if self.silent_frames + sure < self._hangover_frames(length) and length < self.settings.longest_frames:
                return sure
        return 0

    def push(self, is_speech: bool) -> Signal:
        """The next frame's decision → what it means."""
        index, self.frame = self.frame, self.frame + 1
        if is_speech:
            self.last_speech_frame, self._sentence_ended = index, False
        if not self.speaking:
            return self._idle(is_speech)
        if self.silent_frames >= self._hangover_frames(self.segment_frames):
            self.close("sentence" if self._sentence_ended and self.silent_frames < self.settings.hangover_frames else "silence")
        elif self.segment_frames >= self.settings.longest_frames:
            self.close("length")
        return Signal.SPEECH if self.speaking else Signal.END

    def sentence_ended(self) -> None:
        """The text says that a sentence is complete: unless speech goes on, a shorter silence is enough."""
        self._sentence_ended = True

    def close(self, reason: str) -> None:
        """End the current segment with the frame seen last."""
        self.speaking, self.reason, self._sentence_ended = False, reason, False
        self._silent_from = self.last_speech_frame + 1 + _SETTLING_FRAMES
        self.mark()

    def mark(self) -> None:
        """No later segment holds what came before; what was silent in it may still be heard with one."""
        self._earliest = self.frame
        self._recent.clear()

    def resume(self, frames: int) -> None:
        """After an end: the last ``frames`` frames were not part of that segment. If there is speech in them, the next one has begun."""
        self.first_frame = self._earliest = self.frame - frames
        self.speaking = self.last_speech_frame >= self.first_frame

    def _idle(self, is_speech: bool) -> Signal:
        self._recent.append(is_speech)
        if sum(self._recent) < self.settings.start_frames:
            return Signal.SILENCE
        first_speech = self.frame - len(self._recent) + list(self._recent).index(True)
        self.first_frame = max(self._earliest, first_speech - self.settings.pre_roll_frames)
        self.speaking, self.reason = True, ""
        return Signal.START

    def _hangover_frames(self, segment_frames: int) -> float:
        settings = self.settings
        full = settings.sentence_hangover_frames if self._sentence_ended else settings.hangover_frames
        # Falls in a straight line from the whole hangover at half of the longest segment to the short one at its end.
        filled = max(0.0, 2.0 * segment_frames / settings.longest_frames - 1.0)
        return full - filled * max(0, full - settings.short_hangover_frames)
