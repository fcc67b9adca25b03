"""A whole clip at once: what the model says when it may hear everything first. Streaming is compared with this."""

from __future__ import annotations

import numpy as np

from .backend import Floats
from .config import SAMPLE_RATE
from .decoder import Hypothesis, hypothesis
from .load import Loaded
from .prompt import Task
from .work import Append, Job, Listen

TOKENS_PER_S = 10.0  # nobody speaks faster; a loop stops here


def transcribe_job(loaded: Loaded, samples: Floats, trailing_s: float = 0.3, *, max_draft: int = 0) -> Job[Hypothesis]:
    """One whole clip: prompt, all frames, one hypothesis.

    ``trailing_s`` of faint noise follows the clip, as a live stream goes on after the last word. ``max_draft``: tokens
    of one draft; they change the speed alone.
    """
    size = loaded.backend.spec.frame_samples
    rest = np.random.default_rng(0).standard_normal(int(trailing_s * SAMPLE_RATE), dtype=np.float32) * 1e-3
    wave = np.concatenate([samples, rest])
    frames = np.pad(wave, (0, -len(wave) % size)).reshape(-1, size)
    cache, task = loaded.backend.new_cache(), Task()
    yield Append(cache, np.asarray(loaded.prompts.prefix(task)))
    yield Listen(cache, frames)
    limit = 8 + int(len(wave) / SAMPLE_RATE * TOKENS_PER_S)
    tail = loaded.prompts.tail(task)
    return (yield from hypothesis(cache, tail, (), (), stop=loaded.prompts.stop, limit_tokens=limit, max_draft=max_draft))
