"""Time and text: sessions, their options and events, audio sources, and what clients need of the model.

loaded = load_model()
session = Session(loaded, sample_rate=16_000)
for block in recording:
    for event in session.push(block): ...
for event in session.finish(): ...
"""

from ..model.errors import (
    AudioFormatError,
    CheckpointError,
    ConfigError,
    DeviceError,
    DragomanError,
    OverloadedError,
    ProtocolError,
    TaskError,
)
from ..model.load import Loaded, load
from .config import ModelOptions, Options, SessionOptions, load_options, parse_options
from .events import (
    Clocks,
    Committed,
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
    to_mapping,
)
from .session import Session
from .source import ArraySource, AudioSource, FileSource, open_source, paced
from .stats import Stats


def load_model(options: ModelOptions | None = None, *, progress: bool = False) -> Loaded:
    """The model that the options name, by default the one in the package. Raises CheckpointError, ConfigError, BackendError."""
    wanted = options or ModelOptions()
    return load(
        wanted.name,
        runtime=wanted.runtime,
        device=wanted.device,
        dtype=wanted.dtype,
        assistant=wanted.assistant,
        threads=wanted.threads,
        progress=progress,
    )


__all__ = [
    "ArraySource",
    "AudioFormatError",
    "AudioSource",
    "CheckpointError",
    "Clocks",
    "Committed",
    "ConfigError",
    "DeviceError",
    "DragomanError",
    "Dropped",
    "Ended",
    "Event",
    "FileSource",
    "Final",
    "Formatted",
    "Loaded",
    "ModelOptions",
    "Options",
    "OverloadedError",
    "Partial",
    "ProtocolError",
    "Session",
    "SessionOptions",
    "SpeechEnded",
    "SpeechStarted",
    "Stats",
    "TaskError",
    "Translation",
    "TranslationDraft",
    "Word",
    "load_model",
    "load_options",
    "open_source",
    "paced",
    "parse_options",
    "to_mapping",
]
