"""The exception tree of the project.

DragomanError
├── ConfigError          a configuration file, flag or key
├── CheckpointError      a weights folder: missing, unexpected or mis-shaped tensors
├── BackendError         a runtime that cannot load or run
│   └── CacheError       a rewind deeper than the slack, an append beyond the capacity
├── AudioFormatError     bytes that are not the audio they were said to be
├── TaskError            a task or language that the loaded model lacks
├── DeviceError          a microphone that is missing or stopped
├── ProtocolError        a wire message
└── OverloadedError      no room for a new session; carries ``retry_after_s``

Every message says what was got and what was expected.
"""

from __future__ import annotations

from collections.abc import Callable


class DragomanError(Exception):
    """Base of all errors that dragoman raises on purpose."""


class ConfigError(DragomanError):
    """A configuration value is unknown, missing or out of range."""


class CheckpointError(DragomanError):
    """A weights folder does not hold what the configuration needs; the message lists every difference."""


class BackendError(DragomanError):
    """A runtime (torch, ONNX Runtime) could not load or run a model."""


class CacheError(BackendError):
    """A cache was asked to rewind or grow beyond what it keeps."""


class AudioFormatError(DragomanError):
    """Audio that cannot be read, or is not what it was declared to be."""


class TaskError(DragomanError):
    """The loaded model does not know this task or language; the message lists those it knows."""


class DeviceError(DragomanError):
    """A microphone or loopback device is missing, busy or was unplugged."""


class ProtocolError(DragomanError):
    """A wire message that breaks the protocol."""


class OverloadedError(DragomanError):
    """No room for another session."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


def as_command(main: Callable[[], object]) -> None:
    """Run ``main`` of a module that is a command of its own. What it was given wrong is one line for people, and the exit code 1."""
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except (DragomanError, OSError) as error:
        raise SystemExit(f"dragoman: {error}") from error
