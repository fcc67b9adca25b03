"""Messages of the native socket, and that docs/protocol.md tells the truth about them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from dragoman.model.errors import AudioFormatError, BackendError, OverloadedError, TaskError
from dragoman.stream.events import Clocks, Ended, Event
from dragoman.stream.protocol import (
    CLOSE_CODES,
    LARGEST_TEXT_BYTES,
    Failure,
    Progress,
    Start,
    WireError,
    failure,
    progress,
    read_client,
    read_server,
    write,
    write_event,
)
from hypothesis import given
from hypothesis import strategies as st

from .fakes import speech
from .listeners import session, transcribe

PAGE = (Path(__file__).parents[1] / "docs" / "protocol.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"<!-- example: (\w+) -->\n```json\n(.*?)```", PAGE, re.DOTALL)


def test_the_page_has_every_message() -> None:
    kinds = {json.loads(body).get("type") for _, body in EXAMPLES}
    client, server = {"start", "resume", "gap", "keep_alive", "commit", "finish"}, {"ready", "progress", "notice", "error"}
    events = {"speech_started", "partial", "speech_ended", "final", "formatted", "translation_draft", "translation"}
    events |= {"dropped", "committed", "ended"}
    assert kinds - {None} == client | server | events


@pytest.mark.parametrize(("kind", "body"), EXAMPLES, ids=[json.loads(body).get("type", "json") for _, body in EXAMPLES])
def test_examples_of_the_page(kind: str, body: str) -> None:
    raw = json.loads(body)
    if kind == "client":
        assert set(raw) <= set(json.loads(write(read_client(body))))
    elif kind == "server":
        message = read_server(body)
        assert not isinstance(message, tuple) and json.loads(write(message)) == raw
    elif kind == "event":
        message = read_server(body)
        assert isinstance(message, tuple) and json.loads(write_event(*message)) == raw


def test_the_page_lists_every_code() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (\d{4}) \|", PAGE, re.MULTILINE))
    assert rows == {code: str(close) for code, close in CLOSE_CODES.items()}


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("hello", "bad_message", "not JSON"),
        ("[" * 100_000, "too_large", "100000 characters"),
        ("[" * 60_000, "bad_message", "not JSON"),
        ("[1]", "bad_message", "JSON of type list"),
        ("{}", "bad_message", "expected one of start, resume"),
        ('{"type": "strat"}', "bad_message", "'strat', expected one of start, resume"),
        ('{"type": {"a": []}}', "bad_message", "expected one of start"),
        ('{"type": "start"}', "bad_message", "sample_rate: Field required"),
        ('{"type": "start", "sample_rate": 44}', "bad_message", "greater than or equal to 8000, got '44'"),
        ('{"type": "start", "sample_rate": 16000, "langage": "en"}', "bad_message", "unknown key 'langage'; did you mean 'language'?"),
        ('{"type": "start", "sample_rate": 16000, "version": 2}', "bad_message", "version: Input should be 1, got '2'"),
        (
            '{"type": "start", "sample_rate": 48000, "encoding": "webm-opus"}',
            "bad_audio",
            "'opus' means raw packets, 'container' Ogg or WebM",
        ),
        (
            '{"type": "start", "sample_rate": 16000, "encoding": "opus"}',
            "bad_audio",
            "'opus' with 1 channel(s) at 16000 Hz, expected 1 or 2 channels",
        ),
        ('{"type": "start", "sample_rate": 48000, "channels": 3, "encoding": "opus"}', "bad_audio", "3 channel(s) at 48000 Hz"),
        (
            '{"type": "start", "sample_rate": 48000, "encoding": "mulaw"}',
            "bad_audio",
            "'mulaw', expected one of pcm_s16le, pcm_f32le, opus, container",
        ),
        ('{"type": "resume", "session": "x", "after_seq": -1}', "bad_message", "after_seq"),
        ('{"type": "gap", "samples": 0}', "bad_message", "samples"),
    ],
)
def test_a_bad_message_is_told_what_is_wrong_with_it(text: str, code: str, says: str) -> None:
    with pytest.raises(WireError, match=re.escape(says)) as caught:
        read_client(text)
    assert caught.value.code == code
    assert len(str(caught.value)) < 500


def test_a_message_within_the_limit_is_read() -> None:
    words = ["x" * 100] * 200
    text = write(Start(sample_rate=16000, glossary=tuple(words)))
    assert len(text) < LARGEST_TEXT_BYTES and read_client(text) == Start(sample_rate=16000, glossary=tuple(words))


def test_events_come_through_the_wire_unchanged() -> None:
    events = transcribe(session(targets=["de"]), speech("the quick brown fox", silence_s=1.0))
    assert len({type(event) for event in events}) >= 6
    for seq, event in enumerate(events, 1):
        again: tuple[int, Event] | object = read_server(write_event(seq, event))
        assert again == (seq, event)


def test_received_counts_what_waits() -> None:
    event = Ended(Clocks(100, 100, 100), 100)
    assert json.loads(write_event(1, event, 500))["clocks"]["received_ms"] == 500
    assert json.loads(write_event(1, event, 50))["clocks"]["received_ms"] == 100


def test_progress_has_all_clocks() -> None:
    message = progress(Clocks(900, 500, 400), 14_400, 2, 7)
    assert isinstance(message, Progress) and message.lag_ms == 400
    assert json.loads(write(message))["clocks"] == {"received_ms": 900, "processed_ms": 500, "committed_ms": 400}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (WireError("idle", "x"), "idle"),
        (TaskError("x"), "bad_task"),
        (AudioFormatError("x"), "bad_audio"),
        (BackendError("x"), "internal"),
    ],
)
def test_errors_have_codes(error: Exception, code: str) -> None:
    assert failure(error) == Failure(code=code, message="x")  # type: ignore[arg-type]


def test_overload_says_when_to_come_again() -> None:
    assert failure(OverloadedError("full", retry_after_s=5.0)).retry_after_s == 5.0


def test_foreign_errors_tell_nothing_of_the_inside() -> None:
    assert "secret" not in failure(RuntimeError("/secret/path")).message


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_FIELDS = st.sampled_from(
    ["version", "sample_rate", "channels", "encoding", "language", "targets", "glossary", "session", "after_seq", "samples"]
)
_KINDS = st.sampled_from(["start", "resume", "gap", "keep_alive", "finish"])


@given(
    st.text()
    | st.builds(lambda kind, more: json.dumps({"type": kind, "sample_rate": 16000, **more}), _KINDS, st.dictionaries(_FIELDS, _JSON))
)
def test_whatever_comes_is_a_message_or_an_error_that_can_be_told(text: str) -> None:
    try:
        message = read_client(text)
    except WireError as error:
        told = failure(error)
        assert json.loads(write(told).encode())["code"] in CLOSE_CODES and len(told.message) < 2000
    else:
        assert read_client(write(message)) == message


def test_half_a_character_can_be_told() -> None:
    text = '{"type": "resume", "session": "\\ud800", "after_seq": 0, "\\ud800": 1}'
    with pytest.raises(WireError) as caught:
        read_client(text)
    assert write(failure(caught.value)).encode()
