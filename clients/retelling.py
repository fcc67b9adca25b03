"""One stream's events, although the server that heard it was killed and another one hears the unfinished part again. Pure.

What was told stays told: numbers and times of the new session are put behind those of the old one, and words that are heard a second time
are not told a second time. As long as no server is lost, events go through as they are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..stream import (
    Clocks,
    Dropped,
    Ended,
    Event,
    Final,
    Formatted,
    Partial,
    SpeechEnded,
    SpeechStarted,
    Translation,
    TranslationDraft,
    Word,
)
from ..stream.protocol import Progress

_TIMES = ("at_ms", "start_ms", "end_ms", "audio_ms")
_FORMATTED = "formatted"
_LEAD_IN_MS = 400
_KEPT_SILENCE_MS = 2000  # a segment begins at most so long before the audio in which its server notices it, lead-in included


@dataclass(slots=True)
class _Segment:
    """A segment of which not everything was told."""

    number: int
    at_ms: int
    words: list[Word] = field(default_factory=list[Word])
    ended_ms: int | None = None  # SpeechEnded was told
    final: bool = False  # Final was told
    waits_for: set[str] = field(default_factory=set[str])  # languages and ``_FORMATTED``, after the Final


class Retelling:
    """``resume_ms`` is where a server that knows nothing must begin to listen; ``restart`` says that one does."""

    def __init__(self, *, formatted: bool = False) -> None:
        """``formatted``: the session writes formatted text."""
        self.targets: Sequence[str] = ()  # translations that the session makes
        self._formatted = formatted
        self._clocks = Clocks(0, 0, 0)  # told last
        self._open: _Segment | None = None
        self._next = 0  # number of the next segment
        self._ended_ms = 0  # where the last segment that was told to the end ends
        self._last_ms = 0  # where the last word that was told ends
        self._dropped_ms = 0  # where the last gap that was told ends
        # Since a restart
        self._restarted = False
        self._offset_ms = self._first = 0  # of the session: its beginning, and the number of its first segment, as told
        self._again = False  # the open segment was told in part by a server that is gone
        self._left: deque[Word] = deque()  # its words that were not yet heard again
        self._told_ms = 0  # where they end
        self._heard = 0  # words of the present segment that this session has told us of

    @property
    def resume_ms(self) -> int:
        """Everything before this moment was told, and told to the end."""
        if self._open is None:
            return self._clocks.committed_ms
        # A segment is heard better with a little of the silence before it.
        return max(min(self._ended_ms, self._open.at_ms), self._open.at_ms - _LEAD_IN_MS)

    @property
    def keep_ms(self) -> int:
        """Audio before this is not needed for a restart, now or later: :attr:`resume_ms` goes back when a segment begins."""
        return min(self.resume_ms, max(self._ended_ms, self._clocks.committed_ms - _KEPT_SILENCE_MS))

    def restart(self, at_ms: int) -> list[Event]:
        """A new session hears the stream from ``at_ms`` on. What is told at once: audio that nobody has any more, if that is later than
        ``resume_ms``."""
        lost_ms = at_ms - self.resume_ms
        self._restarted, self._again, self._offset_ms, self._heard = True, self._open is not None, at_ms, 0
        self._first = self._next if self._open is None else self._open.number
        self._left = deque(word for word in self._open.words if word.end_ms > at_ms) if self._open is not None else deque()
        self._told_ms = self._left[-1].end_ms if self._left else 0
        if lost_ms <= 0:
            return []
        self._dropped_ms = at_ms
        return [Dropped(self._clocks, at_ms - lost_ms, lost_ms)]

    def progressed(self, message: Progress, *, complete: bool) -> Progress:
        """The message in times of the stream. ``complete``: no event before it is still on its way."""
        clocks = self._later(Clocks(**message.clocks))
        if complete:
            self._clocks = clocks
        times: Any = {"received_ms": clocks.received_ms, "processed_ms": clocks.processed_ms, "committed_ms": clocks.committed_ms}
        return message.model_copy(update={"clocks": times}) if self._restarted else message

    def tell(self, event: Event) -> list[Event]:
        """An event of the server → what the user is told."""
        event = self._shifted(event)
        told = self._retold(event) if self._restarted else [event]
        for each in told:
            self._follow(each)
        self._clocks = event.clocks
        return told

    # Keeping track

    def _follow(self, event: Event) -> None:
        segment = self._open
        if isinstance(event, Partial | Final) and event.words:
            self._last_ms = event.words[-1].end_ms
        if isinstance(event, SpeechStarted):
            self._open, self._next = _Segment(event.segment, event.at_ms), event.segment + 1
        elif isinstance(event, Dropped):
            self._dropped_ms = event.at_ms + event.duration_ms
        if segment is None:
            return
        if isinstance(event, Partial):
            segment.words += event.words
        elif isinstance(event, SpeechEnded):
            segment.ended_ms = event.at_ms
        elif isinstance(event, Final):
            segment.final, segment.words = True, list(event.words)
            if event.text:
                segment.waits_for = {*self.targets, *([_FORMATTED] if self._formatted else [])}
        elif isinstance(event, Translation):
            segment.waits_for.discard(event.language)
        elif isinstance(event, Formatted):
            segment.waits_for.discard(_FORMATTED)
        if segment is self._open and segment.final and not segment.waits_for:
            self._open, self._again, self._ended_ms = None, False, segment.ended_ms or 0

    # After a restart

    def _later(self, clocks: Clocks) -> Clocks:
        """In times of the stream; no clock goes back."""
        if not self._restarted:
            return clocks
        return Clocks(
            max(self._clocks.received_ms, clocks.received_ms + self._offset_ms),
            max(self._clocks.processed_ms, clocks.processed_ms + self._offset_ms),
            max(self._clocks.committed_ms, clocks.committed_ms + self._offset_ms),
        )

    def _shifted(self, event: Event) -> Event:
        """In times and numbers of the stream."""
        if not self._restarted:
            return event
        changes: dict[str, Any] = {name: getattr(event, name) + self._offset_ms for name in _TIMES if hasattr(event, name)}
        if hasattr(event, "segment"):
            changes["segment"] = getattr(event, "segment") + self._first  # noqa: B009
        words: tuple[Word, ...] = getattr(event, "words", ())
        if words:
            changes["words"] = tuple(
                replace(word, start_ms=word.start_ms + self._offset_ms, end_ms=word.end_ms + self._offset_ms) for word in words
            )
        return replace(event, clocks=self._later(event.clocks), **changes)

    def _retold(self, event: Event) -> list[Event]:
        if isinstance(event, SpeechStarted):
            return self._started(event)
        if isinstance(event, Partial):
            return self._partial(event)
        if isinstance(event, SpeechEnded):
            return [] if self._again and self._open is not None and self._open.ended_ms is not None else [event]
        if isinstance(event, Final):
            return self._final(event)
        if isinstance(event, Translation):
            return [event] if not self._again or self._waits_for(event.language) else []
        if isinstance(event, Formatted):
            return [event] if not self._again or self._waits_for(_FORMATTED) else []
        if isinstance(event, TranslationDraft):
            return [] if self._left or self._open is not None and self._open.final else [event]
        if isinstance(event, Dropped):
            return [event] if event.at_ms + event.duration_ms > self._dropped_ms else []
        if isinstance(event, Ended):
            return [*self._closed(event.clocks), event]
        return [event]

    def _started(self, event: SpeechStarted) -> list[Event]:
        self._heard = 0
        segment = self._open
        if segment is None or not self._again or event.segment != segment.number:
            self._again = False
            return [event]
        if segment.ended_ms is None or event.at_ms < segment.ended_ms:
            return []  # the open segment, heard again
        closing = self._closed(event.clocks)  # nothing was heard of it this time
        self._first, self._again = self._first + 1, False
        return [*closing, replace(event, segment=event.segment + 1)]

    def _partial(self, event: Partial) -> list[Event]:
        fresh = self._fresh(event.words)
        self._heard += len(event.words)
        if self._left and not fresh or self._again and self._open is not None and self._open.final:
            return []
        return [replace(event, delta=_joined(fresh), words=tuple(fresh))]

    def _final(self, event: Final) -> list[Event]:
        fresh = self._fresh(event.words[self._heard :])
        if event.end_ms >= self._told_ms:
            self._left.clear()
        segment = self._open
        if segment is None or segment.final:
            return []
        words = (*segment.words, *fresh)
        end_ms = max(event.end_ms, words[-1].end_ms if words else 0)
        return [replace(event, delta=_joined(fresh), text=_joined(words), words=words, start_ms=segment.at_ms, end_ms=end_ms)]

    def _fresh(self, words: Sequence[Word]) -> list[Word]:
        """Those that were not told before the restart, and not before any that were."""
        fresh: list[Word] = []
        last_ms = self._last_ms
        for word in words:
            if self._left and not fresh:
                if _bare(word) == _bare(self._left[0]):
                    self._left.popleft()
                    continue
                if word.end_ms <= self._told_ms:
                    continue  # it is heard differently this time; what was told stays
                self._left.clear()
            last_ms, start_ms = max(last_ms, word.end_ms), max(last_ms, word.start_ms)
            fresh.append(replace(word, start_ms=start_ms, end_ms=max(start_ms, word.end_ms)))
        return fresh

    def _waits_for(self, what: str) -> bool:
        return self._open is not None and self._open.final and what in self._open.waits_for

    def _closed(self, clocks: Clocks) -> list[Event]:
        """The end of a segment that the new session has not heard again."""
        segment = self._open
        if segment is None or segment.final:
            return []
        end_ms = segment.ended_ms or max(segment.at_ms, segment.words[-1].end_ms if segment.words else 0)
        ended = [] if segment.ended_ms is not None else [SpeechEnded(clocks, segment.number, end_ms, "finish")]
        text = _joined(segment.words)
        return [*ended, Final(clocks, segment.number, "", text, tuple(segment.words), segment.at_ms, end_ms, "finish")]


def _joined(words: Sequence[Word]) -> str:
    return "".join(word.text for word in words)


def _bare(word: Word) -> str:
    return word.text.strip().strip(".,;:!?").casefold()
