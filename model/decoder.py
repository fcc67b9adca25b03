"""Greedy decoding with draft and verify, over any backend (spec 5.3). Framework-free: it yields work and is sent the results.

The invariant of the loop: the cache holds everything up to, but not including, the last chosen token, and the kept hidden state is the
one at the cache's last position. That is what a drafter needs, and what makes the result independent of every draft.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from .backend import Cache, Ids, Step
from .work import Append, Draft, Job


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """What the model says now, after the committed text."""

    ids: tuple[int, ...]  # text ids that follow ``committed``, without the stop token
    logprobs: tuple[float, ...]  # one for each id
    stopped: bool  # True: the model ended the text; False: the limit was reached
    agreed_tokens: int  # leading tokens of ``draft`` that the model confirmed (LocalAgreement-2)
    forwards: int  # Append works
    drafted_tokens: int  # guessed by the drafter (the caller's own draft does not count)
    accepted_tokens: int  # of those, confirmed


def hypothesis(
    cache: Cache,
    tail: Sequence[int],
    committed: Sequence[int],
    draft: Sequence[int],
    *,
    stop: Collection[int],
    limit_tokens: int,
    max_draft: int,
) -> Job[Hypothesis]:
    """One fork of the trunk: mark, append ``tail + committed + draft`` in ONE forward, keep the draft up to the first
    disagreement, go on with the drafter's guesses until a stop token or ``limit_tokens``, truncate to the mark (also on error).

    ``tail + committed`` needs at least one token. ``draft`` is the previous unstable text (may be empty, old or wrong): neither it
    nor ``max_draft`` changes the ids (in int8 and int4 a near tie may fall otherwise: onnx_writer.py). The cache is left as it was
    found. Raises what the backend raises.
    """
    forced = [*tail, *committed]
    assert forced, "a hypothesis needs at least one token to start from"
    said = _Said(frozenset(stop), limit_tokens)
    mark = cache.length
    try:
        new, guess = forced, list(draft[: limit_tokens - 1])
        while limit_tokens > 0:
            before = cache.length
            step: Step = yield Append(cache, np.array([*new, *guess], dtype=np.int64), wanted=1 + len(guess))
            row = len(step.ids) - 1 - len(guess)  # where the answer to the last new token stands
            kept = said.verify(step, row, guess)
            if said.ended:
                break
            cache.truncate(before + len(new) + kept)  # the awkward case is none: with all guesses kept this drops nothing
            hidden, new = step.hidden[row + kept], said.ids[-1:]
            guess = []
            count = min(max_draft, said.room - 1)  # the verifying forward itself adds one token
            if count > 0:
                guessed: Ids = yield Draft(cache, hidden, new[0], count)
                guess = [int(token) for token in guessed[:count]]
            said.drafted += len(guess)
        return said.hypothesis(draft)
    finally:
        cache.truncate(mark)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading items two sequences share."""
    for place, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return place
    return min(len(a), len(b))


@dataclass(slots=True)
class _Said:
    """The text so far and its counters."""

    stop: frozenset[int]
    limit_tokens: int
    ids: list[int] = field(default_factory=list[int])
    logprobs: list[float] = field(default_factory=list[float])
    stopped: bool = False
    forwards: int = 0
    drafted: int = 0
    accepted: int = 0

    @property
    def room(self) -> int:
        return self.limit_tokens - len(self.ids)

    @property
    def ended(self) -> bool:
        return self.stopped or self.room <= 0

    def verify(self, step: Step, row: int, guess: Sequence[int]) -> int:
        """Take the model's own tokens from ``row`` on, as long as the guess agrees, plus one. Returns how many guesses were kept."""
        kept = common_prefix(guess, [int(token) for token in step.ids[row : row + len(guess)]])
        if self.forwards:
            self.accepted += kept
        self.forwards += 1
        for place in range(row, row + kept + 1):
            token = int(step.ids[place])
            if token in self.stop:
                self.stopped = True
            if self.ended:
                break
            self.ids.append(token)
            self.logprobs.append(float(step.logprobs[place]))
        return kept

    def hypothesis(self, draft: Sequence[int]) -> Hypothesis:
        return Hypothesis(
            ids=tuple(self.ids),
            logprobs=tuple(self.logprobs),
            stopped=self.stopped,
            agreed_tokens=common_prefix(self.ids, draft),
            forwards=self.forwards,
            drafted_tokens=self.drafted,
            accepted_tokens=self.accepted,
        )
