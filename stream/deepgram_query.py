"""The query of Deepgram's ``/v1/listen`` → what a session is to do. No socket here; docs/protocol.md has the table of all options.

Three kinds of options: those that are obeyed, those that change nothing here, and those that promise something that this server cannot
keep (who speaks, what is blacked out): asking for one of these is an error, for a client would not see that it is missing.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from . import g711
from .config import SessionOptions
from .container import CONTAINER_RATE
from .pcm import HIGHEST_RATE, LOWEST_RATE, MOST_CHANNELS
from .protocol import WireError

LEAST_ENDPOINTING_MS = 320  # a segment that is cut at every short pause is recognised badly
LEAST_UTTERANCE_END_MS = 1000
_LAWS: dict[str, g711.Law] = {"mulaw": "ULAW", "alaw": "ALAW"}
_ENCODINGS = ("linear16", *_LAWS)
CONTAINER = "container"
_OBEYED = (
    "channels",
    "encoding",
    "endpointing",
    "interim_results",
    "keyterm",
    "keywords",
    "language",
    "sample_rate",
    "utterance_end_ms",
    "vad_events",
)
IGNORED = (
    "dictation",
    "extra",
    "filler_words",
    "mip_opt_out",
    "model",
    "no_delay",
    "numerals",
    "profanity_filter",
    "punctuate",
    "smart_format",
    "tag",
    "version",
)
REFUSED = (
    "alternatives",
    "callback",
    "callback_method",
    "detect_entities",
    "detect_language",
    "diarize",
    "diarize_model",
    "language_hint",
    "multichannel",
    "redact",
    "replace",
    "search",
)
_NOTHING = ("", "false", "0", "none")  # values with which a refused option asks for nothing


@dataclass(frozen=True, slots=True)
class Listening:
    """What the query asks for. ``asked``: options of a session."""

    asked: dict[str, Any]
    encoding: str  # "container": none was named, so the audio says itself what it is
    sample_rate: int  # Hz
    channels: int
    interim_results: bool
    vad_events: bool
    endpointing: bool  # whether silences are marked speech_final
    utterance_end_ms: int | None

    def decode(self, data: bytes) -> bytes:
        """Audio as it came → int16, little endian."""
        return g711.decode(data, _LAWS[self.encoding]) if self.encoding in _LAWS else data


def read_query(pairs: Iterable[tuple[str, str]], options: SessionOptions) -> Listening:
    """Keys and values → what they ask for; ``options`` are the configured ones. Raises WireError."""
    values: dict[str, list[str]] = {}
    for key, value in pairs:
        values.setdefault(key, []).append(value)
    for key, several in values.items():
        _check(key, several)
    one = {key: several[-1] for key, several in values.items()}
    encoding = _encoding(one)
    endpointing = one.get("endpointing", "true").lower()
    asked: dict[str, Any] = {"targets": ()}  # the protocol has no place for a translation
    if "language" in one:
        asked["language"] = one["language"]
    terms = [*values.get("keyterm", ()), *(re.sub(r":-?[\d.]+$", "", word) for word in values.get("keywords", ()))]
    if terms:
        asked["glossary"] = tuple(terms)
    if endpointing not in ("true", "false"):
        hangover_ms = max(LEAST_ENDPOINTING_MS, _number("endpointing", endpointing, 0, 5000))
        asked["endpoint"] = {**options.endpoint.model_dump(), "hangover_ms": hangover_ms}
    utterance_end_ms = one.get("utterance_end_ms", "")
    return Listening(
        asked,
        encoding,
        CONTAINER_RATE if encoding == CONTAINER else _number("sample_rate", one.get("sample_rate", ""), LOWEST_RATE, HIGHEST_RATE),
        _number("channels", one.get("channels", "1"), 1, 2 if encoding == CONTAINER else MOST_CHANNELS),
        interim_results=_flag(one, "interim_results"),
        vad_events=_flag(one, "vad_events"),
        endpointing=endpointing != "false",
        utterance_end_ms=_number("utterance_end_ms", utterance_end_ms, LEAST_UTTERANCE_END_MS, 60_000) if utterance_end_ms else None,
    )


def _check(key: str, several: list[str]) -> None:
    if key in REFUSED:
        if any(value.lower() not in _NOTHING for value in several) and (key, several) != ("alternatives", ["1"]):
            raise WireError("bad_message", f"{key}={several[0][:40]}: this server cannot do that; leave {key!r} out")
    elif key not in _OBEYED and key not in IGNORED:
        near = difflib.get_close_matches(key, (*_OBEYED, *IGNORED), n=1)
        raise WireError("bad_message", f"unknown option {key[:40]!r}" + (f"; did you mean {near[0]!r}?" if near else ""))


def _encoding(one: dict[str, str]) -> str:
    encoding = one.get("encoding")
    if encoding is None:
        return CONTAINER
    if encoding not in _ENCODINGS:
        raise WireError("bad_audio", f"encoding {encoding[:40]!r}, expected one of {', '.join(_ENCODINGS)}, or none for Ogg and WebM")
    return encoding


def _flag(one: dict[str, str], key: str) -> bool:
    value = one.get(key, "false").lower()
    if value not in ("true", "false"):
        raise WireError("bad_message", f"{key} is {value[:40]!r}, expected true or false")
    return value == "true"


def _number(key: str, value: str, least: int, most: int) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", value) or not least <= int(value) <= most:
        raise WireError("bad_message", f"{key} is {value[:40]!r}, expected a whole number from {least} to {most}")
    return int(value)
