"""OpenAI's realtime translation: what a client may say, and what a session is set to. No socket here; docs/protocol.md shows it all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

from pydantic import Field, TypeAdapter

from .config import Language, SessionOptions
from .openai_session import AudioEvent, AudioFormat, ClientEvent, Section, Transcription, asked_of, checked, one_language

NEVER_S = 4_102_444_800  # 2100-01-01, for ``expires_at`` where there is no time limit: clients require a number


class _Input(Section):
    """``format`` and most of ``transcription`` are ours: OpenAI takes 24 kHz alone and guesses what is spoken."""

    format: AudioFormat = AudioFormat()
    transcription: Transcription | None = None  # None: what was said is not told, only its translation
    noise_reduction: Any = Field(default=None, exclude=True)  # is taken and changes nothing


class _Output(Section):
    language: Language | None = None  # None: nothing can be translated yet


class _Audio(Section):
    input: _Input = _Input()
    output: _Output = _Output()


class _Changes(Section):
    """What may stand in ``session``; looked into by ``TranslationSetup``."""

    type: Literal["translation"] | None = None
    audio: dict[str, Any] = {}


class UpdateTranslation(ClientEvent):
    """Change what is given, leave the rest."""

    type: Literal["session.update"]
    session: _Changes


class AppendSpeech(AudioEvent):
    """More audio."""

    type: Literal["session.input_audio_buffer.append"]


class CloseTranslation(ClientEvent):
    """No more audio comes: tell what is left."""

    type: Literal["session.close"]


TranslationEvent = UpdateTranslation | AppendSpeech | CloseTranslation
_KNOWN = ("session.update", "session.input_audio_buffer.append", "session.close")
_EVENT: TypeAdapter[TranslationEvent] = TypeAdapter(Annotated[TranslationEvent, Field(discriminator="type")])
_AUDIO: TypeAdapter[_Audio] = TypeAdapter(_Audio)


def read_translation_event(raw: Mapping[str, Any]) -> TranslationEvent:
    """A JSON object → event. Raises EventError."""
    return checked(_EVENT, raw, kinds=_KNOWN)


@dataclass(frozen=True, slots=True)
class TranslationSetup:
    """What a session is set to: as OpenAI says it, and as ours does (``asked``, options of a session)."""

    audio: _Audio
    asked: Mapping[str, Any]
    raw: Mapping[str, Any]  # what ``audio`` was read from

    @classmethod
    def of(cls, options: SessionOptions) -> TranslationSetup:
        """As the server is configured: its first target, if it has one."""
        target = options.targets[0] if options.targets else None
        return cls._read({"input": {"format": {"type": "audio/pcm"}, "transcription": None}, "output": {"language": target}})

    def updated(self, changes: Mapping[str, Any]) -> TranslationSetup:
        """``changes``: what stood in ``session.audio``. Raises EventError."""
        raw: dict[str, Any] = {**self.raw, **changes}
        for side in ("input", "output"):
            raw[side] = _merged(self.raw[side], changes.get(side, {}))
        return self._read(raw)

    @classmethod
    def _read(cls, raw: Mapping[str, Any]) -> TranslationSetup:
        audio = checked(_AUDIO, raw, "session.audio.")
        asked = asked_of(audio.input.transcription or Transcription())
        return cls(audio, {**asked, "targets": () if audio.output.language is None else (audio.output.language,)}, raw)

    def hears_as(self, other: TranslationSetup) -> bool:
        """Whether a stream that was opened for one does for the other."""
        return (self.asked, self.audio.input.format) == (other.asked, other.audio.input.format)

    def shown(self, session_id: str, model: str, *, expires_at: int = NEVER_S) -> dict[str, Any]:
        """The configuration in effect. ``expires_at``: seconds since 1970."""
        said = self.audio.model_dump(exclude_none=True)
        said["input"]["format"]["rate"] = self.audio.input.format.sample_rate
        if self.audio.input.transcription is not None:
            said["input"]["transcription"]["model"] = model
        return {"id": session_id, "type": "translation", "model": model, "expires_at": expires_at, "audio": said}


def _merged(old: Mapping[str, Any], new: Any) -> Any:
    """One side's settings. What is no object is left for the check to name."""
    if not isinstance(new, dict):
        return new
    merged = {**old, **cast(dict[str, Any], new)}
    before, after = old.get("transcription"), merged.get("transcription")
    if isinstance(after, dict):
        merged["transcription"] = {**(before or {}), **one_language(cast(dict[str, Any], after), "session.audio.input.transcription.")}
    return merged
