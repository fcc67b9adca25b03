"""What a session says: one frozen dataclass for each kind of event.

Life of a segment: SpeechStarted, (Partial, TranslationDraft*)*, SpeechEnded, Final, Formatted?, Translation*.
The stream ends with Ended. Dropped may stand anywhere, Committed wherever no segment is open.

Text arrives append-only: the ``delta`` of every Partial and Final of a segment, joined in order without a separator, is that segment's
transcript. A delta is never repeated and never taken back. ``tail`` is what follows for the time being; the next event replaces it.

All times are milliseconds of STREAM time: samples received, not the clock on the wall. They never go back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Clocks:
    """How far the stream is, in ms of stream time: committed ≤ processed ≤ received.

    ``received_ms`` tells how much had been pushed when the event was made. It is the only number in any event that depends on how the
    audio was cut into pushes, so it takes no part in comparisons.
    """

    received_ms: int = field(compare=False)
    processed_ms: int  # heard by the model, or known to be silence
    committed_ms: int  # everything said up to here is in the committed text

    @property
    def lag_ms(self) -> int:
        """Audio that waits: received but not yet processed."""
        return self.received_ms - self.processed_ms

    def with_received(self, received_ms: int) -> Clocks:
        """The same where ``received_ms`` has come in, of which a session knows only what was pushed to it."""
        return replace(self, received_ms=max(received_ms, self.received_ms))


@dataclass(frozen=True, slots=True)
class Word:
    """A committed word. Its times are ESTIMATES: a model without an aligner says which block brought a word; words share their block."""

    text: str  # with its leading space: the words' texts joined are the text
    start_ms: int
    end_ms: int
    logprob: float  # mean over its tokens


def whole_words(words: Iterable[Word]) -> list[Word]:
    """A full stop that was committed after its word belongs to it."""
    whole: list[Word] = []
    for word in words:
        if whole and not any(letter.isalnum() for letter in word.text):
            last = whole[-1]
            whole[-1] = Word(last.text + word.text, last.start_ms, word.end_ms, last.logprob)
        else:
            whole.append(word)
    return whole


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events."""

    clocks: Clocks

    def with_received(self, received_ms: int) -> Self:
        """The same with that of its clocks."""
        return replace(self, clocks=self.clocks.with_received(received_ms))


@dataclass(frozen=True, slots=True)
class SpeechStarted(Event):
    """A segment begins at ``at_ms``, pre-roll included."""

    segment: int
    at_ms: int


@dataclass(frozen=True, slots=True)
class Partial(Event):
    """New committed text (``delta``, with its words) and the unstable rest (``tail``), either of which may be empty."""

    segment: int
    delta: str
    tail: str
    words: tuple[Word, ...]  # those that ``delta`` completed


@dataclass(frozen=True, slots=True)
class SpeechEnded(Event):
    """A segment ends at ``at_ms``. reason: silence | sentence | length | commit | finish."""

    segment: int
    at_ms: int
    reason: str


@dataclass(frozen=True, slots=True)
class Final(Event):
    """The rest of the segment's text (``delta``) and, for convenience, all of it. ``text`` is empty when nothing was recognised."""

    segment: int
    delta: str
    text: str
    words: tuple[Word, ...]  # all words of the segment
    start_ms: int
    end_ms: int
    reason: str


@dataclass(frozen=True, slots=True)
class Translation(Event):
    """The final translation of a segment. It comes after the segment's Final and never changes."""

    segment: int
    language: str  # ISO 639-1
    text: str
    start_ms: int
    end_ms: int


@dataclass(frozen=True, slots=True)
class TranslationDraft(Event):
    """The committed words of an unfinished segment, translated for the time being; the next draft or the Translation replaces it."""

    segment: int
    language: str  # ISO 639-1
    text: str


@dataclass(frozen=True, slots=True)
class Formatted(Event):
    """A segment's text in the style that was asked for. It comes after the segment's Final and never changes."""

    segment: int
    text: str
    start_ms: int
    end_ms: int


@dataclass(frozen=True, slots=True)
class Dropped(Event):
    """Audio was lost before it reached the session (a full queue). The stream's time goes on over the gap as silence."""

    at_ms: int
    duration_ms: int


@dataclass(frozen=True, slots=True)
class Committed(Event):
    """The answer to a client's ``commit``: every whole frame pushed before it lies before ``at_ms``, and all text up to there is final."""

    at_ms: int


@dataclass(frozen=True, slots=True)
class Drafts:
    """Tokens that were guessed ahead and verified in one forward, over the whole stream."""

    task: str  # transcript | translation | formatted
    source: str  # hypothesis (the previous one of the same text) | mtp (the drafter)
    offered_tokens: int
    accepted_tokens: int  # of those, confirmed by the model


@dataclass(frozen=True, slots=True)
class Ended(Event):
    """The last event of a stream. ``drafts`` tells of cost alone: like ``received_ms`` it takes no part in comparisons."""

    audio_ms: int
    drafts: tuple[Drafts, ...] = field(default=(), compare=False)  # those that there were


_NAMES: dict[type[Event], str] = {
    SpeechStarted: "speech_started",
    Partial: "partial",
    SpeechEnded: "speech_ended",
    Final: "final",
    Translation: "translation",
    TranslationDraft: "translation_draft",
    Formatted: "formatted",
    Dropped: "dropped",
    Committed: "committed",
    Ended: "ended",
}


def to_mapping(event: Event) -> dict[str, Any]:
    """Event → a JSON-ready mapping whose first key is ``type``."""
    return {"type": _NAMES[type(event)], **asdict(event)}
