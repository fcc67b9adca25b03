"""Messages of the native socket ``/v1/stream``, version 1; docs/protocol.md shows each of them. No socket here: text in, models out.

Client: one Start or Resume, then binary audio, and Gap, KeepAlive, Commit, Finish at any place in it.
Server: one Ready, then events (numbered, kept for Resume), with Progress and Notice between them; a Failure is always the last.
"""

from __future__ import annotations

import difflib
import json
import re
from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ..model.errors import AudioFormatError, DragomanError, OverloadedError, ProtocolError, TaskError
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
    to_mapping,
)
from .opus import OPUS_CHANNELS, OPUS_RATE
from .pcm import HIGHEST_RATE, LOWEST_RATE, MOST_CHANNELS, Encoding

VERSION = 1
LARGEST_TEXT_BYTES = 64 * 1024
LARGEST_AUDIO_BYTES = 1024 * 1024
MOST_GAP_SAMPLES = HIGHEST_RATE * 60  # in one message; a longer gap takes several

Code = Literal[
    "bad_message",
    "bad_audio",
    "bad_task",
    "too_large",
    "idle",
    "unauthorized",
    "overloaded",
    "draining",
    "unknown_session",
    "replaced",
    "internal",
]
CLOSE_CODES: dict[Code, int] = {  # of RFC 6455, section 7.4.1
    "bad_message": 1008,
    "bad_audio": 1008,
    "bad_task": 1008,
    "too_large": 1009,
    "idle": 1008,
    "unauthorized": 1008,
    "overloaded": 1013,
    "draining": 1013,
    "unknown_session": 1008,
    "replaced": 1008,
    "internal": 1011,
}
# opus: raw packets; container: Ogg or WebM; both as they are once decoded
ENCODINGS: dict[str, Encoding] = {"pcm_s16le": "int16", "pcm_f32le": "float32", "opus": "int16", "container": "int16"}


class WireError(ProtocolError):
    """A fault that the other side is told of. ``code`` is one of those in docs/protocol.md."""

    def __init__(self, code: Code, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.code: Code = code
        self.retry_after_s = retry_after_s


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


# Client → server


class Start(_Message):
    """The first message of a new session: what the audio is, what is wanted of it."""

    type: Literal["start"] = "start"
    version: Literal[1] = VERSION
    sample_rate: int = Field(ge=LOWEST_RATE, le=HIGHEST_RATE)  # Hz, the true one: the server resamples
    channels: int = Field(default=1, ge=1, le=MOST_CHANNELS)  # interleaved; their mean is heard
    encoding: str = "pcm_s16le"
    language: str | None = None  # None, here and below: as the server is configured
    targets: tuple[str, ...] | None = Field(default=None, max_length=8)
    glossary: tuple[Annotated[str, Field(max_length=200)], ...] | None = Field(default=None, max_length=200)
    terms: tuple[Annotated[str, Field(max_length=400)], ...] | None = Field(default=None, max_length=200)  # "de:keeper=Wärter"
    style: str | None = Field(default=None, max_length=200)
    translation: Literal["stable", "draft"] | None = None
    block_ms: int | None = Field(default=None, ge=80, le=4000)
    hold_back_words: int | None = Field(default=None, ge=0, le=10)
    steady: bool | None = None


class Resume(_Message):
    """The first message of a new connection to a session whose connection was lost."""

    type: Literal["resume"] = "resume"
    version: Literal[1] = VERSION
    session: str = Field(max_length=64)
    after_seq: int = Field(ge=0)  # number of the last event that arrived; 0: none did


class Gap(_Message):
    """Audio that the client lost; the stream's time goes on over it."""

    type: Literal["gap"] = "gap"
    samples: int = Field(ge=1, le=MOST_GAP_SAMPLES)  # of each channel, at the declared rate


class KeepAlive(_Message):
    """The client is there, but has no audio at present."""

    type: Literal["keep_alive"] = "keep_alive"


class Commit(_Message):
    """The speaker's turn is over, whatever the voice detector thinks: the open segment ends here, and ``committed`` follows its final."""

    type: Literal["commit"] = "commit"


class Finish(_Message):
    """No more audio comes: everything heard is committed, the server sends ``ended`` and closes."""

    type: Literal["finish"] = "finish"


ClientMessage = Start | Resume | Gap | KeepAlive | Commit | Finish
_CLIENT_KINDS = (Start, Resume, Gap, KeepAlive, Commit, Finish)


# Server → client


class Limits(_Message):
    """What the server takes and keeps."""

    message_bytes: int = LARGEST_AUDIO_BYTES  # of one binary message
    text_bytes: int = LARGEST_TEXT_BYTES
    idle_s: float  # a connection from which nothing comes for so long, not even the answer to a ping, is closed
    resume_s: float  # a session whose connection was lost is kept for so long


class Ready(_Message):
    """The answer to Start and Resume: audio may come."""

    type: Literal["ready"] = "ready"
    version: Literal[1] = VERSION
    session: str
    model: str
    resumed: bool = False
    seq: int = 0  # number of the newest event of the session
    received_samples: int = 0  # of each channel: the client goes on, after a Resume, with the sample of this number
    received_ms: int = 0
    received_bytes: int | None = None  # of a container: the client goes on with the byte of this number instead
    sample_rate: int
    block_ms: int
    language: str
    targets: tuple[str, ...]
    languages: tuple[str, ...]  # that the model hears …
    known_targets: tuple[str, ...]  # … and translates into
    limits: Limits


class Progress(_Message):
    """The lag contract between events; neither numbered nor kept. ``received_samples`` need not be sent again after a lost connection."""

    type: Literal["progress"] = "progress"
    clocks: dict[Literal["received_ms", "processed_ms", "committed_ms"], int]
    lag_ms: int  # received and not yet processed
    received_samples: int
    received_bytes: int | None = None  # of a container, in place of the samples
    level: int = Field(ge=0, le=4)  # of economy: 0 as configured … 4 new sessions are refused
    seq: int  # of the newest event


class Notice(_Message):
    """Something that the client should know and need not act on: within ``within_s`` the server stops (``draining``), or ends this
    session because it has lasted long enough (``time_limit``)."""

    type: Literal["notice"] = "notice"
    code: Literal["draining", "time_limit"]
    message: str
    within_s: float


class Failure(_Message):
    """What went wrong; the connection is closed after it. ``type`` on the wire is "error"."""

    type: Literal["error"] = "error"
    code: Code
    message: str
    retry_after_s: float | None = None


ServerMessage = Ready | Progress | Notice | Failure

_CLIENT: TypeAdapter[ClientMessage] = TypeAdapter(Annotated[ClientMessage, Field(discriminator="type")])
_SERVER: TypeAdapter[ServerMessage] = TypeAdapter(Annotated[ServerMessage, Field(discriminator="type")])
_EVENTS: dict[str, TypeAdapter[Any]] = {
    "speech_started": TypeAdapter(SpeechStarted),
    "partial": TypeAdapter(Partial),
    "speech_ended": TypeAdapter(SpeechEnded),
    "final": TypeAdapter(Final),
    "translation": TypeAdapter(Translation),
    "translation_draft": TypeAdapter(TranslationDraft),
    "formatted": TypeAdapter(Formatted),
    "dropped": TypeAdapter(Dropped),
    "committed": TypeAdapter(Committed),
    "ended": TypeAdapter(Ended),
}
M = TypeVar("M")


def read_client(text: str) -> ClientMessage:
    """Text of one frame → message. Raises WireError that tells what is wrong with it."""
    if len(text.encode("utf-8", "surrogatepass")) > LARGEST_TEXT_BYTES:
        raise WireError("too_large", f"a text message of {len(text)} characters, expected at most {LARGEST_TEXT_BYTES} bytes")
    message = _read(_CLIENT, mapping_of(text))
    if isinstance(message, Start):
        _check_audio(message)
    return message


def _check_audio(start: Start) -> None:
    if start.encoding not in ENCODINGS:
        why = " ('opus' means raw packets, 'container' Ogg or WebM)" if re.search("opus|ogg|webm", start.encoding, re.I) else ""
        raise WireError("bad_audio", f"encoding {start.encoding!r}, expected one of {', '.join(ENCODINGS)}{why}")
    if start.encoding in ("opus", "container") and (start.sample_rate != OPUS_RATE or start.channels not in OPUS_CHANNELS):
        got = f"{start.channels} channel(s) at {start.sample_rate} Hz"
        expected = f"expected 1 or 2 channels at {OPUS_RATE} Hz, as it is decoded to"
        raise WireError("bad_audio", f"encoding {start.encoding!r} with {got}, {expected}")


def read_server(text: str) -> ServerMessage | tuple[int, Event]:
    """Text of one frame → message, or an event with its number. Raises WireError."""
    raw = mapping_of(text)
    kind = raw.get("type")
    if not isinstance(kind, str) or kind not in _EVENTS:
        return _read(_SERVER, raw)
    seq = raw.pop("seq", None)
    if not isinstance(seq, int):
        raise WireError("bad_message", f"an event with seq {seq!r}, expected a number")
    raw.pop("type")
    return seq, _read(_EVENTS[kind], raw)


def write(message: ClientMessage | ServerMessage) -> str:
    """Message → text of one frame. Fields that say nothing (None) are left out."""
    return message.model_dump_json(exclude_none=True)


def write_event(seq: int, event: Event, received_ms: int = 0) -> str:
    """Event number ``seq`` → text of one frame. ``received_ms``: what had been received by then, if that is more than the session knew."""
    mapping = to_mapping(event)
    mapping["clocks"]["received_ms"] = max(received_ms, event.clocks.received_ms)
    return json.dumps({"type": mapping.pop("type"), "seq": seq, **mapping}, ensure_ascii=False)


def progress(clocks: Clocks, received_samples: int, level: int, seq: int, received_bytes: int | None = None) -> Progress:
    """Clocks of this moment → message."""
    times: dict[Literal["received_ms", "processed_ms", "committed_ms"], int] = {
        "received_ms": clocks.received_ms,
        "processed_ms": clocks.processed_ms,
        "committed_ms": clocks.committed_ms,
    }
    return Progress(
        clocks=times, lag_ms=clocks.lag_ms, received_samples=received_samples, received_bytes=received_bytes, level=level, seq=seq
    )


def failure(error: Exception) -> Failure:
    """Any error → the message that tells the client. Errors that are not ours tell nothing of the server's inside."""
    message = str(error).encode("utf-8", "replace").decode()  # what a client sent may be quoted, and may be no text
    if isinstance(error, WireError):
        return Failure(code=error.code, message=message, retry_after_s=error.retry_after_s)
    if isinstance(error, OverloadedError):
        return Failure(code="overloaded", message=message, retry_after_s=error.retry_after_s)
    if isinstance(error, TaskError):
        return Failure(code="bad_task", message=message)
    if isinstance(error, AudioFormatError):
        return Failure(code="bad_audio", message=message)
    return Failure(code="internal", message=message if isinstance(error, DragomanError) else "the server failed; its log says more")


def mapping_of(text: str) -> dict[str, Any]:
    """Text of one frame → a JSON object. Raises WireError (bad_message)."""
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WireError("bad_message", f"not JSON ({str(error)[:80]}): {text[:60]!r}") from error
    if not isinstance(raw, dict):
        raise WireError("bad_message", f"JSON of type {type(raw).__name__}, expected an object with a type")
    return cast(dict[str, Any], raw)


def _read(adapter: TypeAdapter[M], raw: dict[str, Any]) -> M:
    try:
        return adapter.validate_python(raw)
    except ValidationError as error:
        problems = "; ".join(_problem(dict(item), raw) for item in error.errors(include_url=False)[:5])
        raise WireError("bad_message", problems) from error


def _problem(item: dict[str, Any], raw: dict[str, Any]) -> str:
    place = ".".join(str(part) for part in item["loc"] if part != raw.get("type"))
    if item["type"] in ("union_tag_invalid", "union_tag_not_found"):
        known = [kind.model_fields["type"].default for kind in _CLIENT_KINDS]
        return f"message type {str(raw.get('type'))[:40]!r}, expected one of {', '.join(known)}"
    if item["type"] == "extra_forbidden":
        fields = next((set(kind.model_fields) for kind in _CLIENT_KINDS if _is(kind, raw)), set[str]())
        near = difflib.get_close_matches(place, sorted(fields), n=1)
        return f"unknown key {place[:40]!r}" + (f"; did you mean {near[0]!r}?" if near else "")
    got = "" if item["type"] == "missing" else f", got {str(item['input'])[:40]!r}"
    return f"{place}: {item['msg']}{got}"


def _is(kind: type[BaseModel], raw: dict[str, Any]) -> bool:
    return kind.model_fields["type"].default == raw.get("type")
