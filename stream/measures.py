"""What a stream was like for its reader, from the events of a simulated talk. docs/bench.md explains every figure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from .events import Final, Partial, SpeechStarted, Word
from .simulate import Turn
from .talk import Talk


@dataclass(frozen=True, slots=True)
class Delays:
    """A distribution, in ms. ``count`` of ``asked`` could be measured; both percentiles are None if that is 0."""

    count: int
    asked: int
    p50_ms: float | None
    p95_ms: float | None


def delays(values_ms: Sequence[float], asked: int) -> Delays:
    """Percentiles with linear interpolation between neighbours."""
    if not values_ms:
        return Delays(0, asked, None, None)
    p50_ms, p95_ms = np.percentile(values_ms, (50, 95))
    return Delays(len(values_ms), asked, round(float(p50_ms), 1), round(float(p95_ms), 1))


# Words


@dataclass(frozen=True, slots=True)
class Lags:
    """Of each measured word. ``aware`` of computation: what the reader sees; ``unaware``: what the rule of committing costs alone."""

    aware_ms: list[float]
    unaware_ms: list[float]
    words: int  # committed
    by_alignment: bool  # else by the session's own word times, which are estimates


def commit_lags(turns: Sequence[Turn], talk: Talk) -> Lags:
    """Commit lag of each word: the moment at which the event that commits it is out, minus the end of the word in the audio.

    Where the talk is aligned, a committed word is matched with the reference word by edit distance, and only words that were heard
    right have a lag. Else the word's own ``end_ms`` counts. Both ways of counting computation are those of the IWSLT evaluations.
    """
    said = list(committed_words(turns))
    ends_ms = talk.word_ends_ms
    if ends_ms is None:
        ended = [(word.end_ms, turn) for word, turn in said]
    else:
        pairs = matched(talk.text.split(), [word.text for word, _ in said])
        ended = [(ends_ms[reference], said[place][1]) for reference, place in pairs]
    aware_ms = [turn.out_ms - end_ms for end_ms, turn in ended]
    return Lags(aware_ms, [turn.arrived_ms - end_ms for end_ms, turn in ended], len(said), ends_ms is not None)


def committed_words(turns: Sequence[Turn]) -> Iterator[tuple[Word, Turn]]:
    """Every committed word once, with the turn that brought it; a mark that follows a word is none."""
    told = 0
    for turn in turns:
        for event in turn.events:
            if isinstance(event, SpeechStarted):
                told = 0
            elif isinstance(event, Partial | Final):
                new = event.words[told:] if isinstance(event, Final) else event.words
                told += len(new)
                yield from ((word, turn) for word in new if _plain(word.text))


def matched(reference: Sequence[str], hypothesis: Sequence[str]) -> list[tuple[int, int]]:
    """Places (in reference, in hypothesis) of the words that are equal on the path of least edit distance, but for case and marks."""
    import jiwer

    if not reference or not hypothesis:
        return []
    # Every word must stay a word, or the places would shift: one of marks alone is written as a dash.
    one, other = (" ".join(_plain(word) or "-" for word in words) for words in (reference, hypothesis))
    chunks = jiwer.process_words(one, other).alignments[0]
    equal = [chunk for chunk in chunks if chunk.type == "equal"]
    return [(c.ref_start_idx + i, c.hyp_start_idx + i) for c in equal for i in range(c.ref_end_idx - c.ref_start_idx)]


def _plain(word: str) -> str:
    return "".join(c for c in word.casefold() if c.isalnum())


# Flicker


@dataclass(frozen=True, slots=True)
class Erasure:
    """Words taken back and words that stayed."""

    erased: int
    final: int

    @property
    def normalised(self) -> float | None:
        """Words taken back for each word that stayed; 0: what was shown once never changed. None if nothing stayed."""
        return self.erased / self.final if self.final else None


def erasure(turns: Sequence[Turn]) -> Erasure:
    """Normalised erasure, as in Arivazhagan et al. 2020, "Re-translation versus Streaming for Simultaneous Translation", in words.

    What a reader sees is committed text and tail. From one event of a segment to the next, every word behind the longest common prefix
    of the two was erased; case and marks count, since they flicker too.
    """
    erased, final, shown, committed = 0, 0, list[str](), ""
    for event in (event for turn in turns for event in turn.events):
        if isinstance(event, SpeechStarted):
            shown, committed = [], ""
        elif isinstance(event, Partial | Final):
            committed += event.delta
            now = (committed + event.tail if isinstance(event, Partial) else event.text).split()
            erased += len(shown) - _common(shown, now)
            shown = now
            final += len(now) if isinstance(event, Final) else 0
    return Erasure(erased, final)


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


# Segments


@dataclass(slots=True)
class _Segment:
    start_ms: float
    first_text_ms: float | None = None  # when the first text was out
    end_ms: float = field(default=float("inf"))
    out_ms: float | None = None  # when the Final was out


def first_partials(turns: Sequence[Turn], talk: Talk) -> list[float]:
    """From the onset of speech to the first event with text, in ms, for every utterance that opens a segment and gets text.

    One that begins while the segment of the utterance before is open shows up as more words of that: it has no first partial.
    """
    segments, found = _segments(turns), list[float]()
    ended_ms = 0.0
    for utterance in talk.utterances:
        heard_in = next((segment for segment in segments if segment.end_ms > utterance.onset_ms), None)
        if heard_in and ended_ms <= heard_in.start_ms <= utterance.end_ms and heard_in.first_text_ms is not None:
            found.append(heard_in.first_text_ms - utterance.onset_ms)
        ended_ms = utterance.end_ms
    return found


def final_delays(turns: Sequence[Turn], talk: Talk) -> list[float]:
    """From the true end of speech to the Final, in ms, for every utterance whose segment ends before the next one begins."""
    segments, found = _segments(turns), list[float]()
    onsets_ms = [*(utterance.onset_ms for utterance in talk.utterances[1:]), float("inf")]
    for utterance, next_ms in zip(talk.utterances, onsets_ms, strict=True):
        ended_in = next((segment for segment in segments if segment.end_ms >= utterance.end_ms), None)
        if ended_in and ended_in.out_ms is not None and ended_in.start_ms < utterance.end_ms and ended_in.end_ms <= next_ms:
            found.append(ended_in.out_ms - utterance.end_ms)
    return found


def final_works(turns: Sequence[Turn]) -> list[float]:
    """From when the audio that ended a segment was there to its Final, in ms: what comes on top of the silence that ends it."""
    return [turn.behind_ms for turn in turns for event in turn.events if isinstance(event, Final)]


def _segments(turns: Sequence[Turn]) -> list[_Segment]:
    segments: list[_Segment] = []
    for turn in turns:
        for event in turn.events:
            if isinstance(event, SpeechStarted):
                segments.append(_Segment(event.at_ms))
            elif isinstance(event, Partial | Final):
                segment = segments[-1]
                text = event.text if isinstance(event, Final) else event.delta + event.tail
                if segment.first_text_ms is None and text.strip():
                    segment.first_text_ms = turn.out_ms
                if isinstance(event, Final):
                    segment.end_ms, segment.out_ms = event.end_ms, turn.out_ms
    return segments
