"""A whole clip at once: what the model says when it may hear everything first. Streaming is compared with this."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .backend import Floats
from .config import SAMPLE_RATE
from .decoder import Hypothesis, hypothesis
from .errors import TaskError
from .load import Loaded
from .loops import MOST_AFTER_LOOP, find_loop, translation_without_loop
from .prompt import Task
from .work import Append, Job, Listen

TOKENS_PER_S = 10.0  # nobody speaks faster; a loop stops here
LOOP_TOKENS, LOOP_COPIES = 12, 3  # what is cut as a repetition, as in a session (stream/config.py, GuardOptions)


def transcribe_job(loaded: Loaded, samples: Floats, trailing_s: float = 0.3, *, max_draft: int = 0) -> Job[Hypothesis]:
    """One whole clip: prompt, all frames, one hypothesis.

    ``trailing_s`` of faint noise follows the clip, as a live stream goes on after the last word. ``max_draft``: tokens
    of one draft; they change the speed alone.
    """
    frames = _frames(loaded, samples, trailing_s)
    cache, task = loaded.backend.new_cache(), Task()
    yield Append(cache, np.asarray(loaded.prompts.prefix(task)))
    yield Listen(cache, frames)
    limit = 8 + int(len(samples) / SAMPLE_RATE * TOKENS_PER_S + trailing_s * TOKENS_PER_S)
    tail = loaded.prompts.tail(task)
    return (yield from hypothesis(cache, tail, (), (), stop=loaded.prompts.stop, limit_tokens=limit, max_draft=max_draft))


def transcript(loaded: Loaded, found: Hypothesis) -> str:
    """The text of a whole clip's hypothesis, cut where it begins to repeat itself."""
    cut = find_loop(found.ids, LOOP_TOKENS, LOOP_COPIES, most_after=MOST_AFTER_LOOP if found.stopped else None)
    return loaded.tokenizer.decode(found.ids[:cut]).strip()


def _frames(loaded: Loaded, samples: Floats, trailing_s: float = 0.3) -> Floats:
    """Whole frames of a clip and the faint noise behind it."""
    size = loaded.backend.spec.frame_samples
    rest = np.random.default_rng(0).standard_normal(int(trailing_s * SAMPLE_RATE), dtype=np.float32) * 1e-3
    wave = np.concatenate([samples, rest])
    return np.pad(wave, (0, -len(wave) % size)).reshape(-1, size)


def translate_job(loaded: Loaded, target: str, *, samples: Floats | None = None, transcript: str | None = None) -> Job[Hypothesis]:
    """The translation of a clip, of a text, or of a clip whose transcript is known, as a session asks for it; all parts as one hypothesis.

    Without ``transcript`` the model's own is translated. Raises TaskError for a target that the model lacks.
    """
    if samples is None and transcript is None:
        raise TaskError("nothing to translate: expected samples, a transcript or both")
    task, prompts, backend = Task(targets=(target,)), loaded.prompts, loaded.backend
    if transcript is not None:
        words = loaded.tokenizer.encode(transcript)
    else:
        assert samples is not None
        words = list((yield from transcribe_job(loaded, samples)).ids)
    cache = backend.new_cache()
    yield Append(cache, np.asarray(prompts.prefix(task)))
    if samples is not None:
        yield Listen(cache, _frames(loaded, samples))
    found: list[Hypothesis] = []
    for said in prompts.to_translate(words):
        tail = prompts.translate(task, target, said)
        limit = prompts.translation_tokens(said)
        part = yield from hypothesis(cache, tail, (), (), stop=prompts.stop, limit_tokens=limit, max_draft=0)
        kept = translation_without_loop(said, part.ids)
        found.append(replace(part, ids=part.ids[:kept], logprobs=part.logprobs[:kept]))
    return Hypothesis(
        ids=tuple(token for part in found for token in part.ids),
        logprobs=tuple(value for part in found for value in part.logprobs),
        stopped=all(part.stopped for part in found),
        agreed_tokens=0,
        forwards=sum(part.forwards for part in found),
        drafted_tokens=0,
        accepted_tokens=0,
    )
