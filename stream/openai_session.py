"""OpenAI's realtime transcription: what a client may say, and what a session is set to. No socket here; docs/protocol.md shows it all.

Two dialects say the same: the present one nests (``session.update``), the older one is flat (``transcription_session.update``).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from . import g711
from .config import Language, SessionOptions
from .pcm import HIGHEST_RATE, LOWEST_RATE
from .protocol import WireError

RATE = 24_000  # Hz, of audio/pcm unless the client says another
_BLOCK_MS = {"minimal": 320, "low": 320, "medium": 640, "high": 960, "xhigh": 960}
_LAWS: dict[str, g711.Law] = {"audio/pcmu": "ULAW", "audio/pcma": "ALAW"}
_FLAT_FORMATS = {"pcm16": "audio/pcm", "g711_ulaw": "audio/pcmu", "g711_alaw": "audio/pcma"}


class EventError(WireError):
    """A client's event that cannot be obeyed; the session goes on. ``param``: the key that is to blame."""

    def __init__(self, message: str, *, param: str | None = None, name: str = "bad_message") -> None:
        super().__init__("bad_message", message)
        self.param, self.name = param, name


class Section(BaseModel):
    """Keys that are known, and no others."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _ignored() -> Any:
    """A key that is taken, changes nothing, and is therefore not shown as in effect."""
    return Field(default=None, exclude=True)


class AudioFormat(Section):
    """``audio/pcm`` is 16-bit, little endian, mono."""

    type: Literal["audio/pcm", "audio/pcmu", "audio/pcma"] = "audio/pcm"
    rate: int | None = Field(default=None, ge=LOWEST_RATE, le=HIGHEST_RATE)  # OpenAI takes 24000 alone

    @property
    def sample_rate(self) -> int:
        return g711.RATE if self.type in _LAWS else self.rate or RATE

    def decode(self, data: bytes) -> bytes:
        """Audio as it came → int16, little endian."""
        return g711.decode(data, _LAWS[self.type]) if self.type in _LAWS else data


class Transcription(Section):
    """What is written down."""

    language: Language | None = None
    keywords: tuple[Annotated[str, Field(max_length=200)], ...] | None = Field(default=None, max_length=200)
    delay: Literal["minimal", "low", "medium", "high", "xhigh"] | None = None
    model: Any = _ignored()
    prompt: Any = _ignored()


class ServerVad(Section):
    """Turns end at a silence. None in its place: they end when the client says so."""

    type: Literal["server_vad"] = "server_vad"
    threshold: float | None = None
    prefix_padding_ms: int | None = None
    silence_duration_ms: int | None = None
    create_response: Any = _ignored()
    interrupt_response: Any = _ignored()
    idle_timeout_ms: Any = _ignored()


class AudioInput(Section):
    format: AudioFormat = AudioFormat()
    transcription: Transcription = Transcription()
    turn_detection: ServerVad | None = ServerVad()
    noise_reduction: Any = _ignored()


class _Audio(Section):
    input: dict[str, Any] = {}


class _Nested(Section):
    type: Literal["transcription"]
    audio: _Audio = _Audio()
    include: Any = None


class _Flat(Section):
    input_audio_format: Literal["pcm16", "g711_ulaw", "g711_alaw"] | None = None
    input_audio_transcription: dict[str, Any] | None = None
    turn_detection: dict[str, Any] | None = None
    input_audio_noise_reduction: Any = None
    include: Any = None
    modalities: Any = None
    client_secret: Any = None


class ClientEvent(Section):
    """What every event of a client may have."""

    event_id: str | None = Field(default=None, max_length=512)


class Update(ClientEvent):
    """Change what is given, leave the rest."""

    type: Literal["session.update"]
    session: _Nested

    @property
    def input(self) -> dict[str, Any]:
        return self.session.audio.input


class FlatUpdate(ClientEvent):
    """The same in the older dialect."""

    type: Literal["transcription_session.update"]
    session: _Flat

    @property
    def input(self) -> dict[str, Any]:
        """As ``Update`` would say it."""
        flat = self.session.model_dump(include=self.session.model_fields_set)
        names = {"input_audio_format": "format", "input_audio_transcription": "transcription", "turn_detection": "turn_detection"}
        nested = {new: flat[old] for old, new in names.items() if old in flat}
        if "format" in nested:
            nested["format"] = {"type": _FLAT_FORMATS[nested["format"] or "pcm16"]}
        return nested


class AudioEvent(ClientEvent):
    """Audio in base64."""

    audio: str

    def data(self) -> bytes:
        """The bytes. Raises EventError for what is no base64, or empty."""
        try:
            data = base64.b64decode(self.audio, validate=True)
        except (binascii.Error, ValueError) as error:
            raise EventError(f"audio is not base64 ({error}): {self.audio[:40]!r}", param="audio") from error
        if not data:
            raise EventError("audio is empty, expected at least one sample", param="audio")
        return data


class Append(AudioEvent):
    """More audio."""

    type: Literal["input_audio_buffer.append"]


class CommitBuffer(ClientEvent):
    """The turn is over."""

    type: Literal["input_audio_buffer.commit"]


class ClearBuffer(ClientEvent):
    """Forget what was not yet committed."""

    type: Literal["input_audio_buffer.clear"]


TranscriptionEvent = Update | FlatUpdate | Append | CommitBuffer | ClearBuffer
T = TypeVar("T")
_KNOWN = (
    "session.update",
    "transcription_session.update",
    "input_audio_buffer.append",
    "input_audio_buffer.commit",
    "input_audio_buffer.clear",
)
_EVENT: TypeAdapter[TranscriptionEvent] = TypeAdapter(Annotated[TranscriptionEvent, Field(discriminator="type")])
_INPUT: TypeAdapter[AudioInput] = TypeAdapter(AudioInput)


def read_event(raw: Mapping[str, Any]) -> TranscriptionEvent:
    """A JSON object → event. Raises EventError."""
    return checked(_EVENT, raw, kinds=_KNOWN)


@dataclass(frozen=True, slots=True)
class Setup:
    """What a session is set to: as OpenAI says it, and as ours does (``asked``, options of a session)."""

    input: AudioInput
    asked: Mapping[str, Any]
    raw: Mapping[str, Any]  # what ``input`` was read from

    @classmethod
    def of(cls, options: SessionOptions) -> Setup:
        """As the server is configured."""
        vad: dict[str, Any] = {
            "type": "server_vad",
            "prefix_padding_ms": options.endpoint.pre_roll_ms,
            "silence_duration_ms": options.endpoint.hangover_ms,
        }
        if options.vad.kind == "silero":
            vad["threshold"] = options.vad.threshold
        raw = {"format": {"type": "audio/pcm", "rate": RATE}, "transcription": {"language": options.language}, "turn_detection": vad}
        return cls._read(raw, options)

    def updated(self, changes: Mapping[str, Any], options: SessionOptions) -> Setup:
        """``changes``: what stood in ``audio.input``. Raises EventError."""
        raw = {**self.raw, **changes}
        if isinstance(said := changes.get("transcription"), dict):
            changes = {**changes, "transcription": one_language(cast(dict[str, Any], said), "session.audio.input.transcription.")}
        for name in ("transcription", "turn_detection"):
            old, new = self.raw.get(name), changes.get(name)
            if isinstance(old, dict) and isinstance(new, dict):
                raw[name] = {**cast(dict[str, Any], old), **cast(dict[str, Any], new)}
        if raw.get("transcription") is None:
            raw["transcription"] = {}
        return self._read(raw, options)

    @classmethod
    def _read(cls, raw: Mapping[str, Any], options: SessionOptions) -> Setup:
        found = checked(_INPUT, raw, "session.audio.input.")
        vad = found.turn_detection
        asked = {**asked_of(found.transcription), "targets": ()}  # the protocol has no place for a translation
        if vad is not None:
            asked["vad"] = _with(options.vad, threshold=vad.threshold)
            asked["endpoint"] = _with(options.endpoint, pre_roll_ms=vad.prefix_padding_ms, hangover_ms=vad.silence_duration_ms)
        return cls(found, asked, raw)

    def hears_as(self, other: Setup) -> bool:
        """Whether a stream that was opened for one does for the other."""
        ours, theirs = self.input, other.input
        return (self.asked, ours.format, ours.turn_detection is None) == (other.asked, theirs.format, theirs.turn_detection is None)

    def shown(self, session_id: str, model: str, *, flat: bool) -> dict[str, Any]:
        """The configuration in effect, in either dialect."""
        said = self.input.model_dump(exclude_none=True)
        said["transcription"]["model"] = model
        said["turn_detection"] = said.get("turn_detection")  # None says something here
        named = {"id": session_id, "object": "realtime.transcription_session"}
        if not flat:
            if self.input.format.type == "audio/pcm":
                said["format"]["rate"] = self.input.format.sample_rate
            return {**named, "type": "transcription", "audio": {"input": said}}
        kind = next(old for old, new in _FLAT_FORMATS.items() if new == self.input.format.type)
        return {
            **named,
            "input_audio_format": kind,
            "input_audio_transcription": said["transcription"],
            "turn_detection": said["turn_detection"],
        }


def asked_of(said: Transcription) -> dict[str, Any]:
    """What is written down → options of a session."""
    asked = {"language": said.language, "glossary": said.keywords, "block_ms": _BLOCK_MS.get(said.delay or "")}
    return {key: value for key, value in asked.items() if value is not None}


def one_language(said: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """``languages`` with one language → ``language``, as models of OpenAI's that guess want it said. Raises EventError for any more."""
    if "languages" not in said:
        return dict(said)
    languages: Any = said["languages"]
    if not isinstance(languages, list) or len(cast(list[Any], languages)) != 1:
        param = prefix + "languages"
        raise EventError(
            f"{param} is {str(cast(object, languages))[:60]}, expected a list of one: a session hears one language", param=param
        )
    return {**{key: value for key, value in said.items() if key != "languages"}, "language": languages[0]}


def _with(section: BaseModel, **changes: Any) -> dict[str, Any]:
    return {**section.model_dump(), **{key: value for key, value in changes.items() if value is not None}}


def checked(adapter: TypeAdapter[T], raw: Mapping[str, Any], prefix: str = "", kinds: Sequence[str] = ()) -> T:
    """``prefix``: where ``raw`` stood in the event. ``kinds``: types of events, which are no keys; of others there are
    none. Raises EventError that names the key."""
    if kinds and raw.get("type") not in kinds:
        raise EventError(f"event type {str(raw.get('type'))[:60]!r}, expected one of {', '.join(kinds)}", param="type")
    try:
        return adapter.validate_python(raw)
    except ValidationError as error:
        item = error.errors(include_url=False)[0]
        param = prefix + ".".join(str(part) for part in item["loc"] if part not in kinds)
        if item["type"] == "extra_forbidden":
            raise EventError(f"unknown key {param[:100]!r}", param=param) from error
        got = "" if item["type"] == "missing" else f", got {str(item['input'])[:60]!r}"
        raise EventError(f"{param}: {item['msg']}{got}", param=param) from error
