"""Talks through sessions of several block sizes, and what came of it: the measuring part of ``dragoman bench``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, cycle, islice, repeat
from time import perf_counter, process_time
from typing import Any

import numpy as np

from ..model.config import SAMPLE_RATE
from ..model.load import Loaded
from ..model.offline import transcribe_job, transcript
from ..model.scoring import WordErrors, word_errors
from ..model.work import run
from .config import SessionOptions
from .events import Drafts, Ended, Final
from .measures import Delays, Erasure, commit_lags, delays, erasure, final_delays, final_works, first_partials
from .session import Session
from .simulate import PIECE_MS, Turn, in_pieces, simulate
from .talk import LONGEST_PAUSE_S, Clip, Talk, hiss, make_talks

Advance = Callable[[float], None]  # seconds of audio done
_MINUTE_S = 60
_WARM_UP_S = 3


@dataclass(frozen=True, slots=True)
class BlockFigures:
    """Everything measured with one block size, over all talks."""

    block_ms: int
    errors: WordErrors
    commit_lag: Delays
    commit_lag_unaware: Delays  # with work that takes no time
    by_alignment: bool  # of the commit lags: ends of words from a reference alignment, else from the session
    first_partial: Delays
    final_delay: Delays
    final_work: Delays  # from when a segment's end was there to be noticed
    erasure: Erasure
    drafts: tuple[Drafts, ...]  # those that there were, of each task and source
    audio_s: float
    compute_s: float
    cpu_s: float
    behind_ms: float  # most that work was ever behind the audio
    peak_memory_mb: float
    texts: tuple[str, ...]  # of each talk


@dataclass(frozen=True, slots=True)
class Minute:
    """One minute of a long stream. ``memory_mb``: resident at its end."""

    number: int
    cpu_s: float
    compute_s: float
    behind_ms: float
    memory_mb: float


class Tally:
    """Sums over talks for one block size."""

    def __init__(self, block_ms: int) -> None:
        self.block_ms = block_ms
        self._aware_ms, self._unaware_ms = list[float](), list[float]()
        self._first_ms, self._final_ms, self._work_ms = list[float](), list[float](), list[float]()
        self._words = self._utterances = self._erased = self._final_words = 0
        self._offered, self._accepted = Counter[tuple[str, str]](), Counter[tuple[str, str]]()  # tokens of drafts, by task and source
        self._aligned = True
        self._references, self._texts = list[str](), list[str]()
        self._audio_s = self._compute_s = self._cpu_s = self._behind_ms = self._peak_mb = 0.0

    def add(self, turns: Sequence[Turn], talk: Talk, peak_mb: float) -> None:
        lags, erased = commit_lags(turns, talk), erasure(turns)
        self._aware_ms += lags.aware_ms
        self._unaware_ms += lags.unaware_ms
        self._words += lags.words
        self._aligned = self._aligned and lags.by_alignment
        self._first_ms += first_partials(turns, talk)
        self._final_ms += final_delays(turns, talk)
        self._work_ms += final_works(turns)
        self._utterances += len(talk.utterances)
        self._erased, self._final_words = self._erased + erased.erased, self._final_words + erased.final
        for drafts in (drafts for turn in turns for event in turn.events if isinstance(event, Ended) for drafts in event.drafts):
            self._offered[drafts.task, drafts.source] += drafts.offered_tokens
            self._accepted[drafts.task, drafts.source] += drafts.accepted_tokens
        self._references.append(talk.text)
        self._texts.append(" ".join(event.text.strip() for turn in turns for event in turn.events if isinstance(event, Final)))
        self._audio_s += talk.duration_s
        self._compute_s += sum(turn.compute_s for turn in turns)
        self._cpu_s += sum(turn.cpu_s for turn in turns)
        self._behind_ms = max([self._behind_ms, *(turn.behind_ms for turn in turns)])
        self._peak_mb = max(self._peak_mb, peak_mb)

    def figures(self) -> BlockFigures:
        return BlockFigures(
            self.block_ms,
            word_errors(self._references, self._texts),
            delays(self._aware_ms, self._words),
            delays(self._unaware_ms, self._words),
            self._aligned,
            delays(self._first_ms, self._utterances),
            delays(self._final_ms, self._utterances),
            delays(self._work_ms, len(self._work_ms)),
            Erasure(self._erased, self._final_words),
            tuple(Drafts(*place, offered, self._accepted[place]) for place, offered in self._offered.items()),
            self._audio_s,
            self._compute_s,
            self._cpu_s,
            self._behind_ms,
            self._peak_mb,
            tuple(self._texts),
        )


class Bench:
    """Measures one loaded model. Sessions run alone, one at a time, without the lag contract of a server: nothing is saved when late."""

    def __init__(
        self,
        loaded: Loaded,
        *,
        open_session: Callable[[SessionOptions], Session] | None = None,
        clock: Callable[[], float] = perf_counter,
        cpu_clock: Callable[[], float] = process_time,
        memory_mb: Callable[[], float] | None = None,
    ) -> None:
        self._loaded = loaded
        self._open: Callable[[SessionOptions], Session] = open_session or partial(Session, loaded)
        self._clock, self._cpu_clock = clock, cpu_clock
        self._memory_mb = memory_mb or resident_mb()

    def warm_up(self, talk: Talk, options: SessionOptions) -> None:
        """The first calls of a runtime are slower than all others and count nowhere."""
        samples = int((_WARM_UP_S + talk.utterances[0].onset_ms / 1000) * SAMPLE_RATE)
        for _ in simulate(self._open(options), in_pieces(talk.samples[:samples])):
            pass

    def streaming(self, talks: Iterable[Talk], settings: Sequence[SessionOptions], advance: Advance) -> list[BlockFigures]:
        """Every talk with every block size, one after the other, so that a machine's moods fall on all sizes alike."""
        tallies = [Tally(options.block_ms) for options in settings]
        for talk in talks:
            for options, tally in zip(settings, tallies, strict=True):
                turns, peak_mb = list[Turn](), 0.0
                for turn in self._simulate(self._open(options), talk.samples, advance):
                    turns.append(turn)
                    peak_mb = max(peak_mb, self._memory_mb())
                tally.add(turns, talk, peak_mb)
        return [tally.figures() for tally in tallies]

    def offline(self, clips: Sequence[Clip], advance: Advance) -> list[str]:
        """The same model on each clip whole, one hypothesis at its end: what streaming costs in words is the difference to this."""
        texts: list[str] = []
        for clip in clips:
            found = run(self._loaded.backend, transcribe_job(self._loaded, clip.read()))
            texts.append(transcript(self._loaded, found))
            advance(clip.duration_s)
        return texts

    def minutes(self, talk: Talk, count: int, options: SessionOptions, advance: Advance) -> list[Minute]:
        """A talk of whole minutes again and again, ``count`` minutes in ONE session. The events are not kept: only the session may grow."""
        assert len(talk.samples) % (_MINUTE_S * SAMPLE_RATE) == 0, "minutes are compared, so each must hold the same"
        pieces = _MINUTE_S * 1000 // PIECE_MS
        audio = islice(chain.from_iterable(map(in_pieces, repeat(talk.samples))), pieces * count)
        turns = simulate(self._open(options), audio, clock=self._clock, cpu_clock=self._cpu_clock)
        found: list[Minute] = []
        for number in range(1, count + 1):
            # The turn that finishes the stream belongs to the last minute.
            of_minute = islice(turns, pieces + (number == count))
            cpu_s = compute_s = behind_ms = 0.0
            for turn in of_minute:
                cpu_s, compute_s, behind_ms = cpu_s + turn.cpu_s, compute_s + turn.compute_s, max(behind_ms, turn.behind_ms)
                advance(PIECE_MS / 1000)
            found.append(Minute(number, cpu_s, compute_s, behind_ms, self._memory_mb()))
        return found

    def _simulate(self, session: Session, samples: Any, advance: Advance) -> Iterator[Turn]:
        for turn in simulate(session, in_pieces(samples), clock=self._clock, cpu_clock=self._cpu_clock):
            advance(PIECE_MS / 1000)
            yield turn


def offline_errors(talks: Sequence[Sequence[Clip]], texts: Sequence[str]) -> WordErrors:
    """Errors of whole clips, joined into the talks that they stand in, so that both ways are scored on the same references."""
    rest = iter(texts)
    return word_errors(
        [" ".join(clip.text for clip in clips) for clips in talks],
        [" ".join(islice(rest, len(clips))) for clips in talks],
    )


def whole_minutes(clips: Sequence[Clip], *, seed: int = 0) -> Talk:
    """A talk of one minute, filled up with clips from the beginning again if need be; of more minutes only if no clip fits into one."""
    room_s = _MINUTE_S - LONGEST_PAUSE_S  # behind the first pause
    fitting = [clip for clip in clips if clip.duration_s + LONGEST_PAUSE_S <= room_s]
    talk = next(make_talks(cycle(fitting or clips), room_s, seed=seed))
    minute = _MINUTE_S * SAMPLE_RATE
    rest = hiss(-len(talk.samples) % minute, np.random.default_rng(seed))
    return Talk(np.concatenate([talk.samples, rest]), talk.utterances)


def resident_mb() -> Callable[[], float]:
    """A function that tells how much of this process is in memory, in MB of 2^20 bytes."""
    import psutil

    process: Any = psutil.Process()  # the library has no types
    return lambda: float(process.memory_info().rss) / 2**20
