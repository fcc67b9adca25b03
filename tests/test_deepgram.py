"""Deepgram's live transcription: its own client against our server, then what clients do wrong."""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dragoman.model.backend import Floats
from dragoman.stream import g711
from dragoman.stream.config import SessionOptions
from dragoman.stream.deepgram import Results
from dragoman.stream.deepgram_query import IGNORED, REFUSED, Listening, read_query
from dragoman.stream.events import Clocks, Final, Partial, SpeechStarted, Word
from dragoman.stream.protocol import LARGEST_AUDIO_BYTES, WireError
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from .containers import container
from .fakes import ScriptedBackend, speech
from .listeners import session, silence
from .live import Live, breath, make_engine, pcm, run, serving

deepgram = pytest.importorskip("deepgram", reason="needs the extra dev")
DeepgramClientEnvironment: Any = pytest.importorskip("deepgram.environment").DeepgramClientEnvironment
EventType: Any = pytest.importorskip("deepgram.core.events").EventType
ApiError: Any = pytest.importorskip("deepgram.core.api_error").ApiError
types: Any = pytest.importorskip("deepgram.listen.v1.types")

PAGE = (Path(__file__).parents[1] / "docs" / "protocol.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"<!-- deepgram: (\w+) -->\n```json\n(.*?)```", PAGE, re.DOTALL)
PLAIN = "encoding=linear16&sample_rate=16000"
CLOSE, FINALIZE = json.dumps({"type": "CloseStream"}), json.dumps({"type": "Finalize"})
TWO = np.concatenate([speech("the quick brown fox", silence_s=2.5), speech("jumps over a lazy dog.", silence_s=1.0)])
# The client library connects with a part of its own library that is going away.
OLD_CONNECT = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def pieces(samples: Floats, size: int = 3200) -> list[bytes]:
    audio = pcm(samples)
    return [audio[start : start + size] for start in range(0, len(audio), size)]


async def converse(live: Live, query: str, *messages: str | bytes) -> tuple[list[dict[str, Any]], int | None]:
    """Send all, then read until the server closes."""
    told: list[dict[str, Any]] = []
    async with connect(f"ws://127.0.0.1:{live.port}/v1/listen?{query}", max_size=None) as socket:
        try:
            for message in messages:
                await socket.send(message)
        except ConnectionClosed:
            pass
        try:
            async for message in socket:
                told.append(json.loads(message))
        except ConnectionClosed:
            pass
        return told, socket.close_code


def ask(
    query: str, *messages: str | bytes, backend: ScriptedBackend | None = None, **parts: Any
) -> tuple[list[dict[str, Any]], int | None]:
    async def test() -> tuple[list[dict[str, Any]], int | None]:
        async with serving(make_engine(backend, **parts)) as live:
            answer = await converse(live, query, *messages)
            while live.engine.streams:
                await breath()
            return answer

    return run(test())


def finals(told: list[dict[str, Any]]) -> list[str]:
    return [text_of(message) for message in told if message["type"] == "Results" and message["is_final"]]


def text_of(message: dict[str, Any]) -> str:
    return message["channel"]["alternatives"][0]["transcript"]


def kinds(told: list[dict[str, Any]]) -> list[str]:
    return [message["type"] for message in told]


# The client library, as it is


def library(live: Live) -> Any:
    ws = live.http.replace("http", "ws")
    place = DeepgramClientEnvironment(base=live.http, production=ws, agent=ws, agent_rest=live.http)
    return deepgram.AsyncDeepgramClient(api_key="none is needed", environment=place)


@OLD_CONNECT
def test_the_client_library() -> None:
    async def test() -> list[Any]:
        events: list[Any] = []
        async with serving(make_engine()) as live:
            client = library(live)
            wanted: Any = {"interim_results": "true", "vad_events": "true", "utterance_end_ms": "1000", "endpointing": "300"}
            wanted |= {"model": "nova-3", "language": "en-US", "punctuate": "true", "smart_format": "true"}
            async with client.listen.v1.connect(encoding="linear16", sample_rate="16000", channels="1", **wanted) as connection:
                connection.on(EventType.MESSAGE, events.append)
                for piece in pieces(TWO):
                    await connection.send_media(piece)
                await connection.send_keep_alive()
                await connection.send_finalize()
                await connection.send_close_stream()
                await connection.start_listening()
        return events

    events = run(test())
    known = {type(event) for event in events}
    assert known == {getattr(types, f"ListenV1{kind}") for kind in ("Results", "SpeechStarted", "UtteranceEnd", "Metadata")}
    results = [event for event in events if event.type == "Results"]
    last = [event for event in results if event.is_final and event.channel.alternatives[0].transcript]
    assert [event.channel.alternatives[0].transcript for event in last] == ["the quick brown fox", "jumps over a lazy dog."]
    assert [event.speech_final for event in last] == [True, True]
    assert sum(not event.is_final for event in results) > 3, "text comes while it is spoken"
    words = last[0].channel.alternatives[0].words
    assert [word.word for word in words] == "the quick brown fox".split()
    assert all(before.end <= after.start for before, after in zip(words, words[1:], strict=False))
    assert last[0].start == 0 and 1.6 <= last[0].duration < 2.6
    assert events[-1].type == "Metadata" and events[-1].sha256 == hashlib.sha256(pcm(TWO)).hexdigest()
    assert (events[-1].duration, events[-1].channels) == (pytest.approx(7.1), 1)


@OLD_CONNECT
def test_the_client_library_is_told_of_a_refusal() -> None:
    async def test() -> Any:
        async with serving(make_engine()) as live:
            client = library(live)
            with pytest.raises(ApiError) as caught:
                async with client.listen.v1.connect(model="nova-3", encoding="linear16", sample_rate="16000", diarize="true"):
                    pass
            return caught.value.status_code

    assert run(test()) == 400


# The protocol


def test_nothing_but_finals_unless_more_is_asked_for() -> None:
    told, code = ask(PLAIN, *pieces(TWO), CLOSE)
    assert kinds(told) == ["Results", "Results", "Metadata"] and code == 1000
    assert finals(told) == ["the quick brown fox", "jumps over a lazy dog."]
    assert {message["metadata"]["request_id"] for message in told[:2]} == {told[2]["request_id"]}


def test_interim_results_are_the_segment_so_far_and_the_final_never_loses_a_committed_word() -> None:
    told, _ = ask(PLAIN + "&interim_results=true", *pieces(TWO), CLOSE, block_ms=320, hold_back_words=0)
    committed: list[dict[str, Any]] = []
    for message in told[:-1]:
        words = message["channel"]["alternatives"][0]["words"]
        assert words[: len(committed)] == committed, "a committed word has changed"
        committed = [] if message["is_final"] else words
    interim = [text_of(message) for message in told[:-1] if not message["is_final"]]
    assert len(interim) > 5 and any(text not in "the quick brown fox jumps over a lazy dog." for text in interim), "unstable text is shown"


def test_utterance_end_comes_so_long_after_the_last_word() -> None:
    told, _ = ask(PLAIN + "&utterance_end_ms=1000", *pieces(TWO), CLOSE)
    assert kinds(told) == ["Results", "UtteranceEnd", "Results", "Metadata"], "the second pause is shorter"
    last = told[0]["channel"]["alternatives"][0]["words"][-1]
    assert told[1]["last_word_end"] == last["end"]


@pytest.mark.parametrize(
    ("query", "segments", "marks"),
    [
        ("", ["the quick", "brown fox"], [True, True]),
        ("&endpointing=1000", ["the quick brown fox"], [True]),
        ("&endpointing=10", ["the quick", "brown fox"], [True, True]),
        ("&endpointing=false", ["the quick", "brown fox"], [False, False]),
    ],
)
def test_endpointing_is_the_silence_that_ends_an_utterance(query: str, segments: list[str], marks: list[bool]) -> None:
    samples = np.concatenate([speech("the quick", silence_s=0.8), speech("brown fox", silence_s=1.2)])
    told, _ = ask(PLAIN + query, *pieces(samples), CLOSE)
    assert finals(told) == segments and [message["speech_final"] for message in told[:-1]] == marks


def test_finalize_is_always_answered() -> None:
    told, _ = ask(PLAIN, *pieces(speech("the quick")), FINALIZE, *pieces(silence(1.0)), FINALIZE, *pieces(speech("brown fox")), CLOSE)
    marks = [(text_of(message), message["from_finalize"], message["speech_final"]) for message in told[:-1]]
    assert marks == [("the quick", True, False), ("", True, False), ("brown fox", False, False)]


def test_an_empty_message_closes_the_stream_as_older_clients_expect() -> None:
    told, code = ask(PLAIN, *pieces(speech("the quick")), b"")
    assert finals(told) == ["the quick"] and told[-1]["type"] == "Metadata" and code == 1000


def test_channels_are_heard_as_one() -> None:
    both = np.repeat(speech("the quick brown", silence_s=1.0)[:, None], 2, axis=1)
    told, _ = ask(PLAIN + "&channels=2", *pieces(both), CLOSE)
    assert finals(told) == ["the quick brown"] and told[-1]["duration"] == pytest.approx(2.2) and told[-1]["channels"] == 2


@pytest.mark.parametrize(("encoding", "law"), [("mulaw", "ULAW"), ("alaw", "ALAW")])
def test_telephone_audio(encoding: str, law: Any) -> None:
    codes = np.frombuffer(g711.decode(bytes(range(256)), law), "<i2").astype(np.float32)
    samples = speech("the quick brown", silence_s=1.0)[::2] * 32767  # a tone of 250 Hz loses nothing by this
    audio = np.abs(samples[:, None] - codes[None]).argmin(axis=1).astype(np.uint8).tobytes()
    told, _ = ask(f"encoding={encoding}&sample_rate=8000", audio[:7001], audio[7001:], CLOSE)
    assert finals(told) == ["the quick brown"] and told[-1]["duration"] == pytest.approx(2.2)


@pytest.mark.parametrize("form", ["webm", "ogg"])
def test_without_an_encoding_it_is_a_container(form: str) -> None:
    """What MediaRecorder makes, as Deepgram's own examples for the browser send it."""
    audio = container(speech("the quick brown", silence_s=1.0), form)
    told, code = ask("interim_results=true", *(audio[start : start + 900] for start in range(0, len(audio), 900)), CLOSE)
    assert finals(told) == ["the quick brown"] and code == 1000
    assert told[-1]["duration"] == pytest.approx(2.2, abs=0.02) and told[-1]["sha256"] == hashlib.sha256(audio).hexdigest()


def test_samples_without_their_encoding_are_told_apart_from_a_container() -> None:
    pytest.importorskip("av", reason="needs the extra video")
    told, closed = ask("", *pieces(speech("the quick")), CLOSE)
    assert (told[-1]["variant"], closed) == ("bad_audio", 1008) and "of samples the encoding has to be named" in told[-1]["description"]


def test_options_do_not_change_within_a_stream() -> None:
    told, _ = ask(PLAIN, json.dumps({"type": "Configure", "keyterms": ["fox"]}), *pieces(speech("the quick")), CLOSE)
    assert told[0]["type"] == "ConfigureFailure" and finals(told) == ["the quick"]


def test_a_browser_offers_its_key_as_a_subprotocol() -> None:
    async def test() -> str | None:
        async with serving(make_engine()) as live:
            offered: Any = ["token", "none"]
            async with connect(f"ws://127.0.0.1:{live.port}/v1/listen?{PLAIN}", subprotocols=offered) as socket:
                return socket.subprotocol

    assert run(test()) == "token"


def test_a_file_sent_at_once_waits_for_room_and_loses_nothing() -> None:
    text = "the quick brown fox jumps over a lazy dog. we met them again on monday,"
    told, _ = ask(PLAIN, *pieces(speech(text), 64_000), CLOSE, queue_ms=1000)
    assert " ".join(finals(told)) == text


def test_draining_commits_what_was_heard() -> None:
    async def test() -> tuple[list[dict[str, Any]], int | None]:
        async with serving(make_engine(drain_s=0.0)) as live, connect(f"ws://127.0.0.1:{live.port}/v1/listen?{PLAIN}") as socket:
            await socket.send(pcm(speech("the quick brown fox")))
            while live.engine.active[0].clocks.processed_ms < 1000:
                await breath()
            live.server.stop()
            return [json.loads(message) async for message in socket], socket.close_code

    told, code = run(test())
    assert finals(told) == ["the quick brown fox"] and told[-1]["type"] == "Metadata" and code == 1001


# What goes wrong


def refused(query: str, **parts: Any) -> tuple[int, dict[str, Any], dict[str, str]]:
    async def test() -> tuple[int, dict[str, Any], dict[str, str]]:
        async with serving(make_engine(**parts)) as live:
            if parts.get("max_sessions") == 1:
                await live.engine.open()
            with pytest.raises(InvalidStatus) as caught:
                await connect(f"ws://127.0.0.1:{live.port}/v1/listen?{query}")
            answer = caught.value.response
            return answer.status_code, json.loads(answer.body or b"{}"), {key.lower(): value for key, value in answer.headers.items()}

    return run(test())


@pytest.mark.parametrize(
    ("query", "code", "says"),
    [
        ("encoding=opus&sample_rate=48000", "bad_audio", "'opus', expected one of linear16, mulaw, alaw, or none for Ogg and WebM"),
        ("channels=3", "bad_message", "channels is '3', expected a whole number from 1 to 2"),
        ("encoding=linear16", "bad_message", "sample_rate is '', expected a whole number from 8000 to 192000"),
        ("encoding=linear16&sample_rate=4000", "bad_message", "sample_rate is '4000'"),
        ("encoding=linear16&sample_rate=٣٢٠٠٠", "bad_message", "sample_rate is"),
        (PLAIN + "&channels=33", "bad_message", "channels is '33', expected a whole number from 1 to 32"),
        (PLAIN + "&interim_results=perhaps", "bad_message", "interim_results is 'perhaps', expected true or false"),
        (PLAIN + "&endpointing=soon", "bad_message", "endpointing is 'soon'"),
        (PLAIN + "&utterance_end_ms=10", "bad_message", "utterance_end_ms is '10', expected a whole number from 1000"),
        (PLAIN + "&intrim_results=true", "bad_message", "unknown option 'intrim_results'; did you mean 'interim_results'?"),
        (PLAIN + "&redact=pci", "bad_message", "redact=pci: this server cannot do that; leave 'redact' out"),
        (PLAIN + "&language=multi", "bad_task", "does not transcribe 'multi'; it knows en"),
    ],
)
def test_what_is_wrong_with_the_query_is_told_before_the_socket_opens(query: str, code: str, says: str) -> None:
    status, body, _ = refused(query)
    assert (status, body["err_code"]) == (400, code) and says in body["err_msg"] and body["request_id"]


def test_a_full_server_says_when_to_come_again() -> None:
    status, body, headers = refused(PLAIN, max_sessions=1)
    assert (status, body["err_code"], headers["retry-after"]) == (503, "overloaded", "5")


@pytest.mark.parametrize(
    ("message", "code", "close_code", "says"),
    [
        ("hello", "bad_message", 1008, "not JSON"),
        ("[1]", "bad_message", 1008, "JSON of type list"),
        ('{"type": "Finalise"}', "bad_message", 1008, "'Finalise', expected KeepAlive, Finalize, CloseStream or audio"),
        ('{"type": ["a"]}', "bad_message", 1008, "expected KeepAlive"),
        ("x" * 70_000, "too_large", 1009, "70000 characters"),
        (b"\0\0\0", "bad_audio", 1008, "3 bytes of audio, expected a multiple of 2"),
        (bytes(LARGEST_AUDIO_BYTES + 2), "too_large", 1009, "1048578 bytes"),
    ],
)
def test_hostile_and_mistaken_clients(message: str | bytes, code: str, close_code: int, says: str) -> None:
    told, closed = ask(PLAIN, message)
    assert (told[-1]["type"], told[-1]["variant"], closed) == ("Error", code, close_code) and says in told[-1]["description"]


def test_a_model_that_fails_is_told() -> None:
    backend = ScriptedBackend()
    backend.fail_next = "listen"
    told, closed = ask(PLAIN, *pieces(speech("the quick brown fox", silence_s=1.0)), backend=backend)
    assert (told[-1]["variant"], closed) == ("internal", 1011) and "scripted failure" in told[-1]["description"]


def test_a_foreign_page_is_kept_out() -> None:
    async def test() -> int:
        async with serving(make_engine()) as live:
            with pytest.raises(InvalidStatus) as caught:
                await connect(f"ws://127.0.0.1:{live.port}/v1/listen?{PLAIN}", origin="https://elsewhere.example")  # type: ignore[arg-type]
            return caught.value.response.status_code

    assert run(test()) == 403


# Without a socket


def listening(query: str = PLAIN) -> Listening:
    return read_query([(part.split("=")[0], part.split("=")[1]) for part in query.split("&")], SessionOptions())


def test_the_query_sets_the_session() -> None:
    assert listening().asked == {"targets": ()}
    asked = listening(PLAIN + "&language=de-CH&keyterm=Fuchs&keywords=Hund:2.5&endpointing=10").asked
    options = SessionOptions.model_validate(asked)
    assert (options.language, options.glossary) == ("de", ("Fuchs", "Hund"))
    assert options.endpoint.hangover_ms == 320, "not in every gap between two words"


def test_options_that_ask_for_nothing_are_no_error() -> None:
    assert listening(PLAIN + "&diarize=false&multichannel=False&alternatives=1&redact=") == listening()
    for key in REFUSED:
        with pytest.raises(WireError, match=key):
            listening(f"{PLAIN}&{key}=true")


def test_a_confidence_is_the_models_own() -> None:
    words = (Word(" Dogs", 0, 400, math.log(0.5)), Word(".", 400, 440, math.log(0.9)), Word(" bark", 440, 800, math.log(0.7)))
    results = Results(listening(), {})
    (told,) = results.tell(Final(Clocks(900, 900, 900), 0, "", " Dogs. bark", words, 0, 800, "silence"))
    best = told["channel"]["alternatives"][0]
    assert [(word["word"], word["punctuated_word"]) for word in best["words"]] == [("dogs", "Dogs."), ("bark", "bark")]
    assert [word["confidence"] for word in best["words"]] == pytest.approx([0.5, 0.7]) and best["confidence"] == pytest.approx(0.6)
    (empty,) = results.tell(Final(Clocks(900, 900, 900), 1, "", "", (), 0, 800, "silence"))
    assert empty["channel"]["alternatives"][0] == {"transcript": "", "confidence": 0.0, "words": []}


@pytest.mark.parametrize("interim", [True, False])
def test_a_sign_takes_no_text_back_and_brings_none_that_was_not_asked_for(interim: bool) -> None:
    """The result that tells a client how far its audio is heard, in the middle of a segment and after it."""
    metadata = {"request_id": "", "model_info": {"name": "", "version": "", "arch": ""}, "model_uuid": ""}
    results = Results(listening(PLAIN + "&interim_results=true" if interim else PLAIN), metadata)

    def sign(processed_ms: int) -> tuple[str, int, float, float]:
        told = results.so_far(processed_ms)
        types.ListenV1Results.model_validate(told)
        assert not (told["is_final"] or told["speech_final"] or told["from_finalize"])
        return text_of(told), len(told["channel"]["alternatives"][0]["words"]), told["start"], told["duration"]

    at, dogs = Clocks(900, 900, 900), Word(" Dogs", 200, 400, 0.0)
    told = [*results.tell(SpeechStarted(at, 0, 200)), *results.tell(Partial(at, 0, " Dogs", " bar", (dogs,)))]
    assert [text_of(message) for message in told] == ["Dogs bar"] * interim
    assert sign(1200) == (("Dogs bar", 1, 0.2, 1.0) if interim else ("", 0, 1.2, 0.0))
    list(results.tell(Final(at, 0, " bark", " Dogs bark", (dogs,), 200, 800, "silence")))
    assert sign(2500) == ("", 0, 2.5, 0.0)


def test_a_segment_that_was_cut_for_length_is_final_but_no_end_of_speech() -> None:
    stream, results = session(endpoint={"longest_s": 2}), Results(listening(), {})
    events = [*stream.push(speech("the quick brown fox jumps over", silence_s=1.0)), *stream.finish()]
    told = [message for event in events for message in results.tell(event)]
    assert [message["speech_final"] for message in told] == [False, True] and all(message["is_final"] for message in told)


@pytest.mark.parametrize(("side", "body"), EXAMPLES, ids=[json.loads(body)["type"] for _, body in EXAMPLES])
def test_examples_of_the_page(side: str, body: str) -> None:
    raw = json.loads(body)
    if side == "server":
        kind = getattr(types, f"ListenV1{raw['type']}")
        kind.model_validate(raw)
    else:
        assert set(raw) == {"type"} and raw["type"] in ("KeepAlive", "Finalize", "CloseStream")


def test_the_page_shows_every_message_and_names_every_option() -> None:
    shown = {json.loads(body)["type"] for _, body in EXAMPLES}
    client, server = {"KeepAlive", "Finalize", "CloseStream"}, {"Results", "SpeechStarted", "UtteranceEnd", "Metadata", "Error"}
    assert shown == client | server
    section = PAGE[PAGE.index("## Deepgram") :]
    assert [key for key in (*IGNORED, *REFUSED) if f"`{key}`" not in section] == []
