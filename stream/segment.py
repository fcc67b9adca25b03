"""One segment of speech: its trunk (prompt and audio, append-only), its forks (hypotheses, translations) and its text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..model.backend import Cache, Floats
from ..model.decoder import Hypothesis, common_prefix, hypothesis
from ..model.prompt import Prompts, Task
from ..model.work import Job, Listen
from .answers import PARDONED
from .drafting import Drafting
from .guards import Guards
from .stats import Stats, Turn
from .transcript import Transcript

_FAINT_RMS = 1e-3  # -60 dBFS: a quiet room
_SMOOTHED_FRAMES = 3
_FORMATTED_TOKENS = 2  # for one of the transcript


@dataclass(frozen=True, slots=True)
class Translated:
    """A part of a transcript, and how it was translated."""

    said: list[int]
    ids: tuple[int, ...]
    text: str


class Segment:
    """``frames`` waiting for the next block, the ``cache`` of what was heard, the ``transcript`` of what was said."""

    def __init__(
        self,
        cache: Cache,
        transcript: Transcript,
        first_frame: int,
        *,
        prompts: Prompts,
        task: Task,
        guards: Guards,
        stats: Stats,
        drafting: Drafting,
        max_draft: int,
        patience_ms: int | None = None,
        reopen: Callable[[], Job[Cache]] | None = None,
        carried: str = "",
    ) -> None:
        """``first_frame``: where the segment begins, counted from the beginning of the stream. ``patience_ms``: how long a word waits to be
        heard twice alike. ``reopen``: a fresh cache with a firmer
        prompt, for a model that may answer what it hears; without it nothing is checked for answers. ``carried``: the text before it
        that stands in the prompt of ``cache``, and not in the firmer one."""
        self.cache, self.transcript, self.first_frame = cache, transcript, first_frame
        self.lead_in: list[Floats] = []  # frames from before the segment, heard with its first ones
        self.waiting: list[Floats] = []  # frames [frame_samples], not yet in the trunk
        self.heard_frames = 0  # in the trunk, lead-in and padding left out
        self.padded_frames = 0  # of faint noise behind them
        self.looped = False  # or answered: its text must not lead the next segment astray
        self._reopen, self._is_firm, self._insisted = reopen, False, False
        self._carried = carried
        self._frames: list[Floats] = []  # [n, frame_samples] each; kept as long as they may have to be heard again
        self._translated: dict[str, list[Translated]] = {}  # the parts, for each target
        self._prompts, self._task, self._guards, self._stats = prompts, task, guards, stats
        self._drafting, self._max_draft, self._patience_ms = drafting, max_draft, patience_ms

    @property
    def heard_frame(self) -> int:
        """One behind the last frame of the stream that is in the trunk."""
        return self.first_frame + self.heard_frames

    def listen(self) -> Job[None]:
        """Append the lead-in and the waiting frames to the trunk. On an error they go on waiting."""
        if self.waiting:
            frames = np.stack([*self.lead_in, *self.waiting])
            yield Listen(self.cache, frames)
            if self._reopen is not None and not self._is_firm:
                self._frames.append(frames)
            self.heard_frames += len(self.waiting)
            self.lead_in, self.waiting = [], []

    def cut(self, most_frames: int) -> int:
        """Cut at the quietest place among the last ``most_frames`` of those that wait, which is seldom inside a word. Returns how many
        frames were cut off."""
        begin = max(0, len(self.waiting) - most_frames)
        if len(self.waiting) - begin <= _SMOOTHED_FRAMES:
            return 0
        power = [float(np.mean(np.square(frame))) for frame in self.waiting[begin:]]
        # Smoothed: the closure before a "t" or "k" is silent too, but short.
        smooth = np.convolve(power, np.ones(_SMOOTHED_FRAMES), mode="valid")
        kept = begin + int(np.argmin(smooth)) + 1 + _SMOOTHED_FRAMES // 2
        rest = len(self.waiting) - kept
        del self.waiting[kept:]
        return rest

    def pad(self, frames: int, frame_samples: int) -> Job[None]:
        """Append faint noise that takes no stream time: a model that hears with a delay needs it before its last hypothesis."""
        if frames > 0:
            padding = faint_noise(frames, frame_samples)
            yield Listen(self.cache, padding)
            self.padded_frames += frames
            if self._reopen is not None and not self._is_firm:
                self._frames.append(padding)

    def guess(self, *, audio_s: float, heard_ms: int, word_is_over: bool) -> Job[int]:
        """One fork: a new hypothesis, its agreed part committed. ``audio_s``: length of the segment so far; ``heard_ms``: where the speech
        in it ends. Returns the index of the first new word in ``transcript.words``."""
        text, draft = self.transcript, self.transcript.unstable_ids
        limit_tokens = self._guards.limit_tokens(audio_s, len(text.committed_ids))
        found, kept = yield from self._say(draft, limit_tokens)
        if self._reopen is not None:
            found, kept = yield from self._without_answer(found, kept, draft, limit_tokens, audio_s)
        agreed = min(common_prefix(found.ids, draft), kept)
        is_whole = kept == len(found.ids) and found.stopped
        return text.update(
            found.ids[:kept],
            found.logprobs[:kept],
            agreed,
            heard_ms=heard_ms,
            word_is_over=word_is_over and is_whole,
            patience_ms=self._patience_ms,
        )

    def _say(self, draft: Sequence[int], limit_tokens: int) -> Job[tuple[Hypothesis, int]]:
        """A hypothesis, and how many of its ids the guards let pass."""
        committed = self.transcript.committed_ids
        found = yield from self._fork("transcript", self._prompts.tail(self._task), committed, draft, limit_tokens)
        kept, looped = self._guards.keep(committed, found.ids, stopped=found.stopped)
        self.looped = self.looped or looped
        return found, kept

    def _without_answer(
        self, found: Hypothesis, kept: int, draft: Sequence[int], limit_tokens: int, audio_s: float
    ) -> Job[tuple[Hypothesis, int]]:
        """The hypothesis if it may have been said. Else the segment is heard again with a firmer prompt; what answers that is dropped."""
        said = self._whole(found.ids[:kept])
        doubt = self._guards.doubt(said, audio_s, "" if self._is_firm else self._carried)
        if doubt is not None and not self._is_firm:
            yield from self._hear_again()
            found, kept = yield from self._say(draft, limit_tokens)
            again = self._whole(found.ids[:kept])
            doubt = self._guards.doubt(again, audio_s)
            self._insisted = again == said
        if doubt is None or (doubt in PARDONED and self._insisted):
            return found, kept
        self.looped = True
        return found, 0

    def _hear_again(self) -> Job[None]:
        assert self._reopen is not None, "there is a firmer prompt"
        cache = yield from self._reopen()
        for frames in self._frames:  # block by block, so that no other stream has to wait for all of it
            yield Listen(cache, frames)
        self.cache, self._frames, self._is_firm = cache, [], True
        self._guards.counts.reheard += 1

    def _whole(self, ids: Sequence[int]) -> str:
        return self.transcript.decode([*self.transcript.committed_ids, *ids]).strip()

    def translate(self, target: str) -> Job[str]:
        """A further turn of the same fork: the words committed so far into ``target``. Raises TaskError."""
        known, made = self._translated.get(target, []), list[Translated]()
        for place, said in enumerate(self._prompts.to_translate(self.transcript.committed_ids)):
            part = known[place] if place < len(known) else None
            if part is None or said != part.said or not self._prompts.by_sentence:  # what was heard since may change a translation
                part = yield from self._translate_part(target, said, () if part is None else part.ids)
            made.append(part)
        self._translated[target] = made
        return " ".join(part.text for part in made if part.text)

    def _translate_part(self, target: str, said: list[int], old: Sequence[int]) -> Job[Translated]:
        asked = self._prompts.translate(self._task, target, said)
        found = yield from self._fork("translation", asked, (), old, self._prompts.translation_tokens(said))
        kept = self._guards.keep_translation(said, found.ids, stopped=found.stopped)
        text = self.transcript.decode(found.ids[:kept]).rstrip("\ufffd").strip()  # a cut may go through a character
        if text and kept == len(found.ids) and not found.stopped:
            text = f"{text.rsplit(' ', 1)[0]}…"  # half a word would look like a whole one
        return Translated(said, found.ids[:kept], text)

    def formatted(self) -> Job[str]:
        """A further turn as well: the committed transcript in the task's style. Raises TaskError."""
        asked = self._prompts.formatted(self._task, self.transcript.committed_ids)
        found = yield from self._fork("formatted", asked, (), (), 16 + _FORMATTED_TOKENS * len(self.transcript.committed_ids))
        kept, _ = self._guards.keep((), found.ids, stopped=found.stopped)
        return self.transcript.decode(found.ids[:kept]).strip()

    def _fork(self, turn: Turn, tail: Sequence[int], committed: Sequence[int], old: Sequence[int], limit_tokens: int) -> Job[Hypothesis]:
        """``old``: what was last said in this turn, a draft unless drafts of this kind do not pay. ``limit_tokens`` holds as far as the
        cache can take a fork back: a flood would else end the session."""
        drafting = self._drafting
        if (room := self.cache.room) is not None:
            limit_tokens = min(limit_tokens, max(0, room - len(tail) - len(committed) + 1))  # the last token is never appended
        found = yield from hypothesis(
            self.cache,
            tail,
            committed,
            old if drafting.pays(turn, "hypothesis") else (),
            stop=self._prompts.stop,
            limit_tokens=limit_tokens,
            max_draft=self._max_draft if drafting.pays(turn, "mtp") else 0,
        )
        self._stats.hypotheses += 1
        self._stats.forwards += found.forwards
        drafting.note_hypothesis(turn, len(old), common_prefix(found.ids, old))
        if self._max_draft:
            drafting.note_mtp(turn, found.drafted_tokens, found.accepted_tokens)
        spoken = self._guards.spoken(found.ids)
        return replace(found, ids=tuple(found.ids[place] for place in spoken), logprobs=tuple(found.logprobs[place] for place in spoken))


def faint_noise(frames: int, frame_samples: int) -> Floats:
    """[frames, frame_samples] of what stands for a silence that nobody recorded, the same each time. Not zeros: no microphone gives them,
    and a model that has seldom heard them hears the words beside them worse."""
    return np.random.default_rng(0).standard_normal((frames, frame_samples), dtype=np.float32) * np.float32(_FAINT_RMS)
