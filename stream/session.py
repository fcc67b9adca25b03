"""The heart of the service, without input or output: samples in, events out.

    push ─► pcm ─► framer ─► vad, endpointer ─► segment: trunk, fork, transcript ─► events

Everything is counted in frames of the stream, never in pushes, so any cutting of the audio gives the same events. ``work`` is a
generator that yields the model work it needs: ``push`` and ``finish`` drive it alone, an engine may drive many sessions together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from time import perf_counter
from typing import Any

import numpy as np

from ..model.backend import Backend, Floats
from ..model.errors import DragomanError, TaskError
from ..model.load import Loaded
from ..model.prompt import Task, Term
from ..model.work import Job, Work, perform, run
from .config import SessionOptions
from .drafting import Drafting
from .endpoint import Endpointer, Signal
from .events import (
    Clocks,
    Committed,
    Drafts,
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
)
from .framer import Framer
from .glossary import Spelling
from .guards import Guards, channel_ids, special_ids
from .lag import LARGEST_FACTOR, LEVELS, Economy
from .opening import Openings
from .pcm import Encoding, Pcm, PcmReader
from .segment import Segment, faint_noise
from .stats import Stats
from .transcript import Transcript
from .vad import Vad, decide, make_vad

_LEAST_SEGMENT_MS = 2000  # that must be left beside the prompt, as for ``endpoint.longest_s``
_CUT_MS = 480  # so much at least waits unheard when a segment is full: it is cut somewhere among the frames that wait


class Session:
    """One stream. The loaded model is shared and never changed; everything that changes lives here."""

    def __init__(
        self,
        loaded: Loaded,
        options: SessionOptions | None = None,
        *,
        # Audio format of what is pushed
        sample_rate: int = 16_000,
        channels: int = 1,
        encoding: Encoding = "int16",
        # Parts that may be given
        vad: Vad | None = None,
        openings: Openings | None = None,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        """``openings``: prompt caches shared with other sessions of the same model. ``clock``: seconds, for ``stats.compute_s`` and for
        whether drafts pay; no event but ``Ended.drafts`` depends on it (in int8 a near tie may, too).

        Raises TaskError for a language that the model lacks or a glossary that leaves no place for audio, AudioFormatError for an audio
        format that cannot be.
        """
        self.options = options or SessionOptions()
        self.task = _task(self.options)
        loaded.prompts.check(self.task)
        self._backend, self._tokenizer, self._prompts = loaded.backend, loaded.tokenizer, loaded.prompts
        self._frame_samples, self._frame_ms = loaded.backend.spec.frame_samples, loaded.backend.spec.config.audio.frame_ms
        self._block_frames = max(1, round(self.options.block_ms / self._frame_ms))
        self._trailing_frames = round(self.options.endpoint.trailing_ms / self._frame_ms)
        self._cut_frames = round(_CUT_MS / self._frame_ms)
        self._delay_frames = round(loaded.backend.spec.config.hearing_delay_ms / self._frame_ms)
        self._clock = clock
        # Gets what ``push`` and ``finish`` would return as it is made, while they are still at work.
        self.tell: Callable[[list[Event]], None] | None = None
        # Parts, one of each for this stream
        config = loaded.backend.spec.config
        self._pcm, self._framer = PcmReader(sample_rate, channels, encoding), Framer(self._frame_samples)
        self._vad = vad or make_vad(**self.options.vad.model_dump())
        self._settings = self.options.endpoint.frames(self._frame_ms, config.longest_segment_s)
        self._longest_positions = config.longest_positions
        self._endpointer = Endpointer(replace(self._settings, longest_frames=self._checked_frames()))
        self._guards = Guards(
            special_ids(config.special, self._tokenizer),
            **self.options.guards.model_dump(),
            language=self.task.language,
            channel=channel_ids(self._tokenizer),
        )
        self._spelling = Spelling(() if loaded.prompts.instructed else self.options.glossary)  # else the prompt has it
        self._openings = openings or Openings(self._backend, self._prompts)
        self.stats = Stats(guards=self._guards.counts)
        self.drafting = Drafting(self.stats.drafts)
        # What changes
        longest_frames = LARGEST_FACTOR * self._block_frames + self._cut_frames  # that can wait when a full segment is cut
        self._recent: deque[Floats] = deque(maxlen=max(self._settings.reach_frames, longest_frames) + self._settings.lead_in_frames)
        self._frames: deque[Floats] = deque()  # pushed, not yet looked at
        self._decided: deque[bool] = deque()  # of the first of these, whether somebody speaks
        self._events: list[Event] = []  # made, not yet returned
        self._segment: Segment | None = None
        self._index = 0  # of the current or next segment
        self._gap_samples = 0  # lost before they arrived, not yet made up for by silence
        self._carried = ""
        self._processed_ms = self._committed_ms = self._unguessed_blocks = 0
        self._told_tail = ""
        self._flushed = self._ended = False
        self.economy: Economy = LEVELS[0]  # what a server behind schedule has the session save; it may change between any two jobs

    # Driving

    def push(self, pcm: Pcm) -> list[Event]:
        """Audio as bytes in the declared encoding, or an array [n] or [n, channels] of int16 or float32; any length from one sample on.

        Returns the events it gave rise to, often none. Raises AudioFormatError before anything is taken in; after it, and after
        a BackendError, the session goes on: events that were already made come with the next call.
        """
        return self._drive(self.work(pcm))

    def finish(self) -> list[Event]:
        """End the stream: everything heard is committed, the last event is Ended. A second call returns []. Raises BackendError."""
        return self._drive(self.work(None))

    def drop(self, samples: int) -> list[Event]:
        """Tell that ``samples`` (at the input rate) were lost before they arrived. Times go on over the gap, which counts as silence."""
        return self._drive(self.gap(samples))

    def commit(self) -> list[Event]:
        """End the segment that is being spoken, if there is one, as if by a silence; the last event is Committed. The stream goes on,
        and what is less than a frame at its end belongs to what follows. Raises BackendError."""
        return self._drive(self.committing())

    def work(self, pcm: Pcm | None) -> Job[list[Event]]:
        """The job behind ``push`` and ``finish`` (None). One job of a session must end before its next one begins."""
        if pcm is not None:
            self._take(pcm)
        yield from self._advance(to_the_last=self._flushed)  # flushed: finish() failed before, and is called again
        if pcm is None and not self._flushed:
            self._flushed = True
            self._frames.extend([*self._framer.push(self._pcm.flush()), *self._framer.flush()])
            yield from self._advance(to_the_last=True)
        if self._flushed and not self._ended:
            yield from self._end_segment("finish")
            self._ended, self._processed_ms, self._committed_ms = True, self._pcm.received_ms, self._pcm.received_ms
            self._events.append(Ended(self.clocks, self._pcm.received_ms, self._drafts()))
        return self.take_events()

    def gap(self, samples: int) -> Job[list[Event]]:
        """The job behind ``drop``."""
        if samples > 0:
            self._check_open("a gap")
            duration_ms = samples * 1000 // self._pcm.sample_rate
            self._events.append(Dropped(self.clocks, self._pcm.received_ms, duration_ms))
            self.stats.dropped_ms += duration_ms
            self._gap_samples += samples
        yield from self._advance()
        return self.take_events()

    def committing(self) -> Job[list[Event]]:
        """The job behind ``commit``."""
        self._check_open("commit()")
        yield from self._advance()
        self._frames.extend(self._framer.push(self._pcm.flush()))  # what the resampler holds was said before this
        yield from self._advance(to_the_last=True)
        yield from self._end_segment("commit")
        self._endpointer.mark()
        at_ms = self._ms(self._endpointer.frame)
        self._committed_ms = max(self._committed_ms, at_ms)
        self._events.append(Committed(self.clocks, at_ms))
        return self.take_events()

    def take_events(self) -> list[Event]:
        """The events that the job at work has made so far: a caption need not wait for its translations. What is taken here, the job
        does not return."""
        events, self._events = self._events, []
        return events

    @property
    def clocks(self) -> Clocks:
        """How far the stream is."""
        received_ms = self._pcm.received_ms
        return Clocks(received_ms, min(received_ms, self._processed_ms), min(received_ms, self._committed_ms))

    def _drive(self, job: Job[list[Event]]) -> list[Event]:
        began_s = self._clock()
        try:
            return run(self._backend, job, perform=self._perform)
        finally:
            self.stats.compute_s += self._clock() - began_s

    def _perform(self, backend: Backend, works: Sequence[Work]) -> list[Any]:
        if self.tell is not None and self._events:
            self.tell(self.take_events())
        began_s = self._clock()
        results = perform(backend, works)
        self.drafting.measured(works[0], self._clock() - began_s)  # a session alone has one work at a time
        return results

    # One frame

    def _check_open(self, what: str) -> None:
        if self._flushed:
            raise DragomanError(f"{what} after finish(): the session is over, expected a new Session for more audio")

    def _take(self, pcm: Pcm) -> None:
        self._check_open("audio")
        while self._gap_samples:  # a job failed in the middle of a gap
            self._fill_gap(self._pcm.sample_rate)
        self._feed(pcm)

    def _feed(self, pcm: Pcm) -> None:
        self._frames.extend(self._framer.push(self._pcm.push(pcm)))
        self.stats.audio_ms = self._pcm.received_ms

    def _advance(self, *, to_the_last: bool = False) -> Job[None]:
        """Look at the frames that wait, and at the silence of a gap: second by second, for a long one must not need memory.

        Frames that change nothing, whatever is heard in them, wait for one that may, as the detector takes less for all of them together;
        ``to_the_last``: no more are coming.
        """
        while self._frames or self._gap_samples:
            if not self._frames:
                self._fill_gap(self._pcm.sample_rate)
            while self._frames:
                if not self._decided:
                    together = 1 + self._sure_frames()
                    if len(self._frames) < together and not self._gap_samples and not to_the_last:
                        return
                    self._decided.extend(decide(self._vad, list(islice(self._frames, together))))
                yield from self._hear(self._frames.popleft(), self._decided.popleft())

    def _sure_frames(self) -> int:
        """How many of the next frames neither begin nor end a segment, and do not fill a block."""
        if self._segment is None:
            return 0
        left = self._block_frames * self.economy.block_factor - len(self._segment.waiting)
        return self._endpointer.sure_frames(left - 1)

    def _fill_gap(self, most_samples: int) -> None:
        part = min(self._gap_samples, most_samples)
        self._gap_samples -= part
        self._feed(np.zeros((part, self._pcm.channels), np.float32))

    def _hear(self, frame: Floats, is_speech: bool) -> Job[None]:
        signal = self._endpointer.push(is_speech)
        self._recent.append(frame)
        if signal is Signal.SILENCE:
            self._stay_idle()
            return
        segment = self._segment
        if signal is Signal.START or segment is None:  # None: opening it failed, and speech goes on
            segment = yield from self._open()
        else:
            segment.waiting.append(frame)
        if signal is Signal.END:
            yield from self._close(segment)
        elif len(segment.waiting) >= self._block_frames * self.economy.block_factor and self._endpointer.room_frames >= self._cut_frames:
            yield from self._block(segment)  # the last frames of a full segment wait: it may have to be cut among them

    def _stay_idle(self) -> None:
        frame = self._endpointer.frame
        self._guards.counts.silent_frames += 1
        self._processed_ms = max(self._processed_ms, self._ms(frame))
        # The last frames may yet become the beginning of a segment: what is said in them is not committed.
        self._committed_ms = max(self._committed_ms, self._ms(frame - self._endpointer.settings.reach_frames))

    def _open(self) -> Job[Segment]:
        endpointer, carried = self._endpointer, self._carried
        # Carried text takes its place from the segment, but never half of it: so much may already wait behind the last cut.
        longest_frames, most_frames = self._longest_frames(carried), self._longest_frames()
        if longest_frames < max(self._least_frames, most_frames // 2):
            carried, longest_frames = "", most_frames
        cache = yield from self._openings.open(self.task, carried)
        endpointer.settings = replace(self._settings, longest_frames=longest_frames)
        recent = list(self._recent)
        waiting, before = recent[-endpointer.segment_frames :], recent[: -endpointer.segment_frames]
        start_ms = max(self._committed_ms, self._ms(endpointer.first_frame))
        transcript = Transcript(self._tokenizer, start_ms, self._spelling)
        asked, most = self.options.max_draft, self._backend.spec.max_draft
        segment = Segment(
            cache,
            transcript,
            endpointer.frame - len(waiting),
            prompts=self._prompts,
            task=self.task,
            guards=self._guards,
            stats=self.stats,
            drafting=self.drafting,
            max_draft=most if asked is None else min(asked, most),
            patience_ms=round(self.options.patience_blocks * self.options.block_ms),
            reopen=(lambda: self._openings.open_firmly(self.task)) if self._prompts.instructed else None,
            carried=carried,
        )
        segment.lead_in, segment.waiting = self._lead_in(before), waiting
        self._segment, self._told_tail = segment, ""
        self._events.append(SpeechStarted(self.clocks, self._index, self._ms(endpointer.first_frame)))
        return segment

    @property
    def _least_frames(self) -> int:
        """As short as the longest segment may become for its prompt."""
        settings = self._settings
        return min(settings.longest_frames, max(settings.reach_frames + 1, round(_LEAST_SEGMENT_MS / self._frame_ms)))

    def _longest_frames(self, carried: str = "") -> int:
        """How long a segment may be: as the settings say, or as its prompt leaves positions to hear in."""
        longest_frames = self._settings.longest_frames
        if self._longest_positions is None:
            return longest_frames
        ids = len(self._prompts.opening(self.task, carried)) + len(self._prompts.tail(self.task))
        return min(longest_frames, self._longest_positions - ids - self._settings.lead_in_frames - self._trailing_frames)

    def _checked_frames(self) -> int:
        """The same without carried text. Raises TaskError where it is too short to be of use."""
        longest_frames = self._longest_frames()
        if longest_frames < self._least_frames:
            raise TaskError(
                f"the prompt takes {len(self._prompts.prefix(self.task))} of the {self._longest_positions} positions in which this model "
                f"can hear and leaves {max(0, longest_frames) * self._frame_ms / 1000:.2f} s for a segment, expected at least "
                f"{self._least_frames * self._frame_ms / 1000:.2f} s: shorten the glossary ({len(self.task.glossary)} terms)"
            )
        return longest_frames

    def _lead_in(self, before: Sequence[Floats]) -> list[Floats]:
        """Silence that the model hears before a segment: what is said comes out worse without. It takes no stream time. ``before``: the
        stream's own last frames, heard as far as there are no words in them; for what is missing stands faint noise."""
        own = min(self._endpointer.lead_in_frames, len(before))
        missing = self._endpointer.settings.lead_in_frames - own
        return [*faint_noise(missing, self._frame_samples), *before[len(before) - own :]]

    def _block(self, segment: Segment) -> Job[None]:
        """A block of audio is complete: extend the trunk, fork, tell what is new."""
        block_frames, silent_frames = len(segment.waiting), self._endpointer.silent_frames
        yield from self._listen(segment)
        if silent_frames - block_frames >= self._trailing_frames:
            return  # the last hypothesis heard all the speech there is and the silence after it
        self._unguessed_blocks += 1
        if not 0 < self.economy.hypothesis_every <= self._unguessed_blocks:
            return
        self._unguessed_blocks = 0
        first = yield from self._guess(segment)
        text = segment.transcript
        if text.ends_sentence and not text.unstable_ids:
            self._endpointer.sentence_ended()
        words = tuple(text.words[first:])
        tail = "" if self.options.steady else text.shown_tail(0 if self._word_is_over else self.options.hold_back_words)
        if words or tail != self._told_tail:
            self._tell_text(segment)
            self._told_tail = tail
            self._events.append(Partial(self.clocks, self._index, "".join(word.text for word in words), tail, words))
        if words and self.options.translation == "draft" and self.economy.translation_drafts:
            yield from self._draft_translations(segment)

    def _draft_translations(self, segment: Segment) -> Job[None]:
        for target in self.task.targets:
            text = yield from segment.translate(target)
            self._events.append(TranslationDraft(self.clocks, self._index, target, text))

    def _close(self, segment: Segment) -> Job[None]:
        """The segment has ended: a last hypothesis, everything committed, translations."""
        endpointer, reason, told = self._endpointer, self._endpointer.reason, len(segment.transcript.words)
        silent_frames = endpointer.silent_frames
        if reason == "length":
            endpointer.resume(segment.cut(endpointer.settings.longest_frames // 2))
        end_ms = min(self._ms(segment.heard_frame + len(segment.waiting)), self._pcm.received_ms)
        self._events.append(SpeechEnded(self.clocks, self._index, end_ms, reason))
        try:
            yield from self._listen(segment)
            yield from segment.pad(self._trailing_frames - silent_frames, self._frame_samples)
            yield from self._guess(segment)
        finally:  # when the model fails, what is known is still told
            segment.transcript.flush()
            self._tell_final(segment, told, end_ms, reason)
        final = self._events[-1]
        assert isinstance(final, Final), "a segment is told before it is translated"
        if not final.text:
            return
        if self.task.style is not None:
            text = yield from segment.formatted()
            self._events.append(Formatted(self.clocks, final.segment, text, final.start_ms, final.end_ms))
        for target in self.task.targets:
            text = yield from segment.translate(target)
            self._events.append(Translation(self.clocks, final.segment, target, text, final.start_ms, final.end_ms))

    def _end_segment(self, reason: str) -> Job[None]:
        """At the client's wish, not at a silence."""
        if self._endpointer.speaking:
            segment = self._segment or (yield from self._open())
            self._endpointer.close(reason)
            yield from self._close(segment)

    # Steps of a segment

    def _listen(self, segment: Segment) -> Job[None]:
        yield from segment.listen()
        self._processed_ms = max(self._processed_ms, self._ms(segment.heard_frame))

    def _guess(self, segment: Segment) -> Job[int]:
        endpointer = self._endpointer
        late_frames = max(0, self._delay_frames - segment.padded_frames)  # a word is known so much later than it is heard
        known_frame = min(endpointer.last_speech_frame + 1, segment.heard_frame - late_frames)
        heard_ms = min(self._ms(known_frame), self._pcm.received_ms)
        audio_s = segment.heard_frames * self._frame_ms / 1000
        first = yield from segment.guess(audio_s=audio_s, heard_ms=heard_ms, word_is_over=self._word_is_over)
        self._committed_ms = max(self._committed_ms, segment.transcript.committed_ms)
        return first

    @property
    def _word_is_over(self) -> bool:
        """Whether silence shows that the last word is complete."""
        return self._endpointer.silent_frames >= self._trailing_frames

    def _tell_text(self, segment: Segment) -> None:
        if self.stats.first_text_ms is None:
            self.stats.first_text_ms = self._ms(segment.heard_frames)

    def _tell_final(self, segment: Segment, told: int, end_ms: int, reason: str) -> None:
        text, start_ms = segment.transcript, self._ms(segment.first_frame)
        if text.text:
            self._tell_text(segment)
        self._committed_ms = max(self._committed_ms, end_ms)
        self._processed_ms = max(self._processed_ms, end_ms)
        delta = "".join(word.text for word in text.words[told:])
        self._events.append(Final(self.clocks, self._index, delta, text.text, tuple(text.words), start_ms, end_ms, reason))
        self.stats.segments += 1
        self.stats.committed_tokens += len(text.committed_ids)
        carries = self.options.carry_over and not segment.looped  # a loop in the prompt feeds the next one
        self._carried = text.last_sentence if carries else ""
        self._segment, self._index = None, self._index + 1

    def _drafts(self) -> tuple[Drafts, ...]:
        counts = self.stats.drafts.items()
        return tuple(Drafts(*place, each.offered_tokens, each.accepted_tokens) for place, each in counts if each.offered_tokens)

    def _ms(self, frame: int) -> int:
        """Where a frame begins, in ms of stream time."""
        return max(0, int(frame * self._frame_ms))


def _task(options: SessionOptions) -> Task:
    terms = tuple(Term.read(term) for term in options.terms)
    return Task(options.language, options.targets, options.glossary, terms, options.style)
