"""OpenAI's realtime transcription: its own client against our server, then what clients do wrong."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from dragoman.model.backend import Floats
from dragoman.stream import g711
from dragoman.stream.config import SessionOptions
from dragoman.stream.events import Clocks, Committed, Event, Final, Partial, SpeechEnded, SpeechStarted
from dragoman.stream.openai_realtime import ServerEvent, Turns
from dragoman.stream.openai_session import EventError, Setup, read_event
from dragoman.stream.protocol import LARGEST_AUDIO_BYTES, Failure
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from .fakes import ScriptedBackend, speech
from .listeners import session
from .live import Live, breath, make_engine, pcm, run, serving

openai = pytest.importorskip("openai", reason="needs the extra dev")
server_events: Any = pytest.importorskip("openai.types.realtime.realtime_server_event")

PAGE = (Path(__file__).parents[1] / "docs" / "protocol.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"<!-- openai: (\w+) -->\n```json\n(.*?)```", PAGE, re.DOTALL)
DELTA = "conversation.item.input_audio_transcription.delta"
COMPLETED = "conversation.item.input_audio_transcription.completed"
FAILED = "conversation.item.input_audio_transcription.failed"
MANUAL = {"type": "session.update", "session": {"type": "transcription", "audio": {"input": {"turn_detection": None}}}}
COMMIT, CLEAR = {"type": "input_audio_buffer.commit"}, {"type": "input_audio_buffer.clear"}


def at_rate(samples: Floats, sample_rate: int) -> Floats:
    """16 kHz → another rate."""
    at = np.arange(int(len(samples) * sample_rate / 16_000)) * 16_000 / sample_rate
    return np.interp(at, np.arange(len(samples)), samples).astype(np.float32)


def appends(samples: Floats, sample_rate: int = 24_000, encode: Callable[[Floats], bytes] = pcm) -> Iterator[dict[str, Any]]:
    audio = encode(at_rate(samples, sample_rate))
    for start in range(0, len(audio), 9_600):
        yield {"type": "input_audio_buffer.append", "audio": base64.b64encode(audio[start : start + 9_600]).decode()}


def mulaw(samples: Floats) -> bytes:
    """The nearest code for each sample."""
    table = np.frombuffer(g711.decode(bytes(range(256)), "ULAW"), "<i2").astype(np.float32)
    return np.abs(samples[:, None] * 32767 - table[None]).argmin(axis=1).astype(np.uint8).tobytes()


def check_items(events: list[dict[str, Any]]) -> list[str]:
    """Every item's deltas are its transcript, an item is committed before it is completed and nothing follows. The transcripts."""
    said: dict[str, str] = {}
    committed: list[str] = []
    transcripts: list[str] = []
    ended: set[str] = set()
    for event in events:
        item = event.get("item_id")
        assert item not in ended, "an item goes on after it was completed"
        if event["type"] == DELTA:
            said[str(item)] = said.get(str(item), "") + event["delta"]
        elif event["type"] == "input_audio_buffer.committed":
            assert event["previous_item_id"] == (committed[-1] if committed else None)
            committed.append(str(item))
        elif event["type"] == COMPLETED:
            assert item == committed[-1] and event["transcript"] == said.get(str(item), "")
            transcripts.append(event["transcript"])
            ended.add(str(item))
    return transcripts


async def converse(
    live: Live,
    *messages: dict[str, Any] | str | bytes,
    until: str | None = None,
    times: int = 1,
    path: str = "/v1/realtime?intent=transcription",
) -> tuple[list[dict[str, Any]], int | None]:
    """Send all, then read until the event ``until`` has come so many times, or the server closes."""
    told: list[dict[str, Any]] = []
    async with connect(f"ws://127.0.0.1:{live.port}{path}", max_size=None) as socket:
        try:
            for message in messages:
                await socket.send(json.dumps(message) if isinstance(message, dict) else message)
            await read_until(socket, told, until, times)
        except ConnectionClosed:
            told += [json.loads(left) async for left in _left(socket)]
        return told, socket.close_code


async def read_until(socket: ClientConnection, told: list[dict[str, Any]], until: str | None, times: int = 1) -> None:
    while until is None or [event["type"] for event in told].count(until) < times:
        told.append(json.loads(await socket.recv()))


async def _left(socket: ClientConnection) -> Any:
    try:
        async for message in socket:
            yield message
    except ConnectionClosed:
        return


# The client library, as it is


def test_the_client_library_with_server_vad() -> None:
    samples = np.concatenate([speech("the quick brown fox", silence_s=1.0), speech("jumps over a lazy dog.", silence_s=1.0)])

    async def test() -> list[Any]:
        events: list[Any] = []
        async with serving(make_engine()) as live:
            client = openai.AsyncOpenAI(base_url=live.http + "/v1", api_key="none is needed")
            async with client.realtime.connect(extra_query={"intent": "transcription"}) as connection:
                transcription = {"model": "gpt-4o-transcribe", "language": "en", "prompt": "foxes"}
                vad = {"type": "server_vad", "threshold": 0.5, "prefix_padding_ms": 300, "silence_duration_ms": 500}
                audio = {"input": {"transcription": transcription, "turn_detection": vad, "noise_reduction": {"type": "near_field"}}}
                await connection.session.update(session={"type": "transcription", "audio": audio})
                for message in appends(samples):
                    await connection.input_audio_buffer.append(audio=message["audio"])
                async for event in connection:
                    events.append(event)
                    if [seen.type for seen in events].count(COMPLETED) == 2:
                        break
            await client.close()
            while live.engine.streams:
                await breath()
        return events

    events = run(test())
    assert [event.type for event in events[:2]] == ["session.created", "session.updated"]
    shown = events[1].session.audio.input
    assert (shown.format.type, shown.format.rate, shown.transcription.language) == ("audio/pcm", 24000, "en")
    assert (shown.turn_detection.silence_duration_ms, shown.turn_detection.prefix_padding_ms) == (500, 300)
    assert shown.transcription.model == "scripted" and shown.transcription.prompt is None and shown.noise_reduction is None
    raw = [event.to_dict() for event in events]
    assert check_items(raw) == ["the quick brown fox", "jumps over a lazy dog."]
    kinds = [event.type for event in events if event.type != DELTA][2:]
    turn = ["speech_started", "speech_stopped", "committed"]
    assert kinds == [*(f"input_audio_buffer.{kind}" for kind in turn), COMPLETED] * 2
    starts = [event.audio_start_ms for event in events if event.type.endswith("speech_started")]
    stops = [event.audio_end_ms for event in events if event.type.endswith("speech_stopped")]
    assert starts[0] == 0 and 2200 < starts[1] <= 2640 and 1600 < stops[0] < starts[1] < 4600 < stops[1]
    assert len([event for event in events if event.type == DELTA]) > 4, "text comes while it is spoken"
    usage = [event.usage for event in events if event.type == COMPLETED]
    assert usage[0].type == "duration" and usage[0].seconds == pytest.approx((stops[0] - starts[0]) / 1000)
    assert len({event.event_id for event in events}) == len(events)


def test_the_client_library_with_turns_of_its_own() -> None:
    """Push to talk: an item lasts from commit to commit, whatever pauses are in it."""
    first = np.concatenate([speech("the quick", silence_s=1.5), speech("brown fox", silence_s=0.2)])

    async def test() -> list[Any]:
        events: list[Any] = []
        async with serving(make_engine()) as live:
            client = openai.AsyncOpenAI(base_url=live.http + "/v1", api_key="none is needed")
            async with client.realtime.connect(extra_query={"intent": "transcription"}) as connection:
                await connection.send(MANUAL)
                for turn in (first, speech("five trains")):
                    for message in appends(turn):
                        await connection.input_audio_buffer.append(audio=message["audio"])
                    await connection.input_audio_buffer.commit()
                async for event in connection:
                    events.append(event)
                    if [seen.type for seen in events].count(COMPLETED) == 2:
                        break
            await client.close()
        return events

    events = run(test())
    assert events[1].session.audio.input.turn_detection is None
    assert check_items([event.to_dict() for event in events]) == ["the quick brown fox", "five trains"]
    assert not [event for event in events if "speech_st" in event.type]


def test_the_older_client_library() -> None:
    async def test() -> list[Any]:
        events: list[Any] = []
        async with serving(make_engine()) as live:
            ws = live.http.replace("http", "ws") + "/v1"
            client = openai.AsyncOpenAI(base_url=live.http + "/v1", websocket_base_url=ws, api_key="none is needed")
            async with client.beta.realtime.connect(model="whisper-1", extra_query={"intent": "transcription"}) as connection:
                wanted = {"input_audio_format": "g711_ulaw", "input_audio_transcription": {"model": "whisper-1", "language": "en"}}
                await connection.transcription_session.update(session=wanted)  # type: ignore[arg-type]
                for message in appends(speech("the quick brown fox", silence_s=1.0), 8000, mulaw):
                    await connection.input_audio_buffer.append(audio=message["audio"])
                async for event in connection:
                    events.append(event)
                    if event.type == COMPLETED:
                        break
            await client.close()
        return events

    events = run(test())
    assert events[1].type == "transcription_session.updated" and events[1].session.input_audio_format == "g711_ulaw"
    assert check_items([event.to_dict() for event in events]) == ["the quick brown fox"]


# The protocol


def test_a_browser_offers_its_key_as_a_subprotocol() -> None:
    async def test() -> tuple[str | None, str]:
        async with serving(make_engine()) as live:
            offered: Any = ["realtime", "openai-insecure-api-key.none"]
            async with connect(f"ws://127.0.0.1:{live.port}/v1/realtime?intent=transcription", subprotocols=offered) as socket:
                return socket.subprotocol, json.loads(await socket.recv())["type"]

    assert run(test()) == ("realtime", "session.created")


@pytest.mark.parametrize("sample_rate", [8000, 16_000, 48_000])
def test_other_rates_are_taken_at_their_word(sample_rate: int) -> None:
    audio = {"input": {"format": {"type": "audio/pcm", "rate": sample_rate}}}
    update = {"type": "session.update", "session": {"type": "transcription", "audio": audio}}

    async def test() -> list[dict[str, Any]]:
        async with serving(make_engine()) as live:
            return (await converse(live, update, *appends(speech("the quick brown fox", silence_s=1.0), sample_rate), until=COMPLETED))[0]

    events = run(test())
    assert events[1]["session"]["audio"]["input"]["format"]["rate"] == sample_rate
    assert check_items(events) == ["the quick brown fox"]


def test_a_commit_cuts_a_turn_short_and_is_always_answered() -> None:
    async def test() -> list[dict[str, Any]]:
        async with serving(make_engine()) as live:
            said = [*appends(speech("the quick brown fox")), COMMIT, *appends(np.zeros(16_000, np.float32)), COMMIT]
            return (await converse(live, *said, until=COMPLETED, times=2))[0]

    events = run(test())
    assert check_items(events) == ["the quick brown fox", ""]
    assert "input_audio_buffer.speech_stopped" not in [event["type"] for event in events], "nobody has stopped speaking"


def test_what_is_cleared_is_not_completed() -> None:
    async def test() -> list[dict[str, Any]]:
        async with serving(make_engine()) as live:
            said = [MANUAL, *appends(speech("the quick brown")), CLEAR, *appends(speech("five trains")), COMMIT]
            return (await converse(live, *said, until=COMPLETED))[0]

    events = run(test())
    assert [event["transcript"] for event in events if event["type"] == COMPLETED] == ["five trains"]
    assert "input_audio_buffer.cleared" in [event["type"] for event in events]
    last = events[-1]["item_id"]
    assert "".join(event["delta"] for event in events if event["type"] == DELTA and event["item_id"] == last) == "five trains"


def test_a_clear_in_the_middle_of_speech_leaves_no_item() -> None:
    async def test() -> list[dict[str, Any]]:
        async with serving(make_engine()) as live:
            said = [*appends(speech("the quick brown")), CLEAR, COMMIT, *appends(speech("five trains", silence_s=1.0))]
            return (await converse(live, *said, until=COMPLETED))[0]

    events = run(test())
    (error,) = told_of(events)
    assert error["code"] == "input_audio_buffer_commit_empty", "what was cleared is not there to be committed"
    assert check_items(events) == ["five trains"]
    assert [event["item_id"] for event in events if event["type"].endswith("committed")] == [events[-1]["item_id"]]


def test_an_update_in_the_middle_ends_what_was_said_before() -> None:
    """The place of a stream is free before the next one is opened: it works on a server with one place."""

    def update(delay: str) -> dict[str, Any]:
        audio = {"input": {"transcription": {"delay": delay}}}
        return {"type": "session.update", "session": {"type": "transcription", "audio": audio}}

    async def test() -> tuple[list[dict[str, Any]], int]:
        async with serving(make_engine(max_sessions=1)) as live:
            said = [*appends(speech("the quick")), update("low"), *appends(speech("brown fox")), MANUAL]
            said += [*appends(speech("five trains")), update("high"), *appends(speech("left early.")), COMMIT]
            told, _ = await converse(live, *said, until=COMPLETED, times=4)
            return told, live.engine.opened_count

    events, opened = run(test())
    assert check_items(events) == ["the quick", "brown fox", "five trains", "left early."]
    starts = [event["audio_start_ms"] for event in events if event["type"].endswith("speech_started")]
    assert starts == [0, 800], "times count from the beginning of the connection"
    assert opened == 4 and [event["type"] for event in events].count("session.updated") == 3


def test_an_update_that_changes_nothing_that_matters_costs_nothing() -> None:
    audio = {"input": {"transcription": {"prompt": "foxes", "model": "whisper-1"}}}
    update = {"type": "session.update", "session": {"type": "transcription", "audio": audio}}

    async def test() -> tuple[list[dict[str, Any]], int]:
        async with serving(make_engine()) as live:
            said = [*appends(speech("the quick")), update, *appends(speech("brown fox", silence_s=1.0))]
            return (await converse(live, *said, until=COMPLETED))[0], live.engine.opened_count

    events, opened = run(test())
    assert check_items(events) == ["the quick brown fox"] and opened == 1


# What goes wrong


def told_of(told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event["error"] for event in told if event["type"] == "error"]


@pytest.mark.parametrize(
    ("message", "code", "param", "says"),
    [
        ("hello", "bad_message", None, "not JSON"),
        ("[1]", "bad_message", None, "JSON of type list"),
        ("[" * 60_000, "bad_message", None, "not JSON"),
        (b"\0\0", "bad_message", None, "a binary message of 2 bytes, expected JSON text"),
        (bytes(LARGEST_AUDIO_BYTES + 2), "too_large", None, "1048578 bytes"),
        ('"' + "x" * LARGEST_AUDIO_BYTES + '"', "too_large", None, "1048578 characters, expected at most 1048576"),
        ({"type": "response.create"}, "bad_message", "type", "'response.create', expected one of session.update"),
        ({"type": {"a": 1}}, "bad_message", "type", "expected one of"),
        ({}, "bad_message", "type", "'None', expected one of"),
        ({"type": "input_audio_buffer.append"}, "bad_message", "audio", "Field required"),
        ({"type": "input_audio_buffer.append", "audio": 7}, "bad_message", "audio", "valid string, got '7'"),
        ({"type": "input_audio_buffer.append", "audio": "no base64!"}, "bad_message", "audio", "not base64"),
        ({"type": "input_audio_buffer.append", "audio": "äöü"}, "bad_message", "audio", "not base64"),
        ({"type": "input_audio_buffer.append", "audio": ""}, "bad_message", "audio", "empty"),
        ({"type": "input_audio_buffer.append", "audio": "AAAA"}, "bad_audio", None, "3 bytes of audio, expected a multiple of 2"),
        (COMMIT, "input_audio_buffer_commit_empty", None, "no audio since the last commit"),
        ({"type": "session.update", "session": {"type": "realtime"}}, "bad_message", "session.type", "'transcription', got 'realtime'"),
        ({"type": "session.update", "session": {"type": "transcription", "voice": "x"}}, "bad_message", "session.voice", "unknown key"),
    ],
)
def test_a_mistake_is_told_and_the_session_goes_on(message: Any, code: str, param: str | None, says: str) -> None:
    if isinstance(message, dict):
        message = {**message, "event_id": "mine"}

    async def test() -> list[dict[str, Any]]:
        async with serving(make_engine()) as live:
            return (await converse(live, message, *appends(speech("the quick", silence_s=1.0)), until=COMPLETED))[0]

    events = run(test())
    (error,) = told_of(events)
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", code, param)
    assert says in error["message"] and len(error["message"]) < 500
    assert error["event_id"] == ("mine" if isinstance(message, dict) else None)
    assert check_items(events) == ["the quick"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"turn_detection": {"type": "semantic_vad"}}, "turn_detection.type: Input should be 'server_vad', got 'semantic_vad'"),
        ({"turn_detection": {"type": "server_vad", "silence_duration_ms": 10}}, "session.endpoint.hangover_ms"),
        ({"turn_detection": {"type": "server_vad", "threshold": 1.5}}, "session.vad.threshold"),
        ({"format": {"type": "audio/opus"}}, "format.type: Input should be 'audio/pcm', 'audio/pcmu' or 'audio/pcma', got 'audio/opus'"),
        ({"format": {"type": "audio/pcm", "rate": 4000}}, "greater than or equal to 8000, got '4000'"),
        ({"transcription": {"language": "xx"}}, "this model does not transcribe 'xx'; it knows en"),
        ({"transcription": {"languages": ["en", "de"]}}, "languages is ['en', 'de'], expected a list of one: a session hears one language"),
        ({"transcription": {"languages": "en"}}, "expected a list of one"),
        ({"transcription": {"languages": ["xx"]}}, "this model does not transcribe 'xx'; it knows en"),
        ({"transcription": {"language": "sv-SE"}}, "this model does not transcribe 'sv-SE'; it knows en"),
        ({"transcription": {"speakers": 2}}, "unknown key 'session.audio.input.transcription.speakers'"),
    ],
)
def test_an_update_that_cannot_be_obeyed_changes_nothing(changes: dict[str, Any], says: str) -> None:
    update = {"type": "session.update", "session": {"type": "transcription", "audio": {"input": changes}}}
    empty = {"type": "session.update", "session": {"type": "transcription"}}

    async def test() -> list[dict[str, Any]]:
        async with serving(make_engine()) as live:
            return (await converse(live, update, empty, until="session.updated"))[0]

    created, refused, updated = run(test())
    assert says in refused["error"]["message"]
    assert created["session"] == updated["session"]


@pytest.mark.parametrize("said", [{"language": "en-US"}, {"languages": ["EN"]}])
def test_a_language_may_have_a_region(said: dict[str, Any]) -> None:
    update = {"type": "session.update", "session": {"type": "transcription", "audio": {"input": {"transcription": said}}}}

    async def test() -> list[dict[str, Any]]:
        async with serving(make_engine()) as live:
            return (await converse(live, update, *appends(speech("the quick", silence_s=1.0)), until=COMPLETED))[0]

    events = run(test())
    assert told_of(events) == [] and check_items(events) == ["the quick"]
    assert events[1]["session"]["audio"]["input"]["transcription"]["language"] == "en"


def test_a_conversation_is_refused() -> None:
    async def test() -> tuple[list[dict[str, Any]], int | None]:
        async with serving(make_engine()) as live:
            return await converse(live, path="/v1/realtime?model=gpt-realtime")

    told, code = run(test())
    assert code == 1008 and "expected /v1/realtime?intent=transcription" in told_of(told)[0]["message"]


def test_a_full_server_says_when_to_come_again_and_an_idle_client_takes_no_place() -> None:
    async def test() -> tuple[list[dict[str, Any]], int | None]:
        async with serving(make_engine(max_sessions=1)) as live:
            async with connect(f"ws://127.0.0.1:{live.port}/v1/realtime?intent=transcription") as early:
                await early.recv()
                await live.engine.open()
                told, code = await converse(live)
                assert told_of(told)[0]["code"] == "overloaded" and code == 1013
                await early.send(json.dumps(next(appends(speech("the quick")))))
                return [json.loads(await early.recv())], (await early.wait_closed(), early.close_code)[1]

    told, code = run(test())
    (error,) = told_of(told)
    assert (error["type"], error["code"], code) == ("server_error", "overloaded", 1013) and error["retry_after_s"] > 0


def test_a_model_that_fails_leaves_no_item_without_an_end() -> None:
    async def test() -> tuple[list[dict[str, Any]], int | None]:
        backend = ScriptedBackend()
        async with serving(make_engine(backend)) as live:
            backend.fail_next = "listen"
            told, code = await converse(live, MANUAL, *appends(speech("the quick brown fox", silence_s=1.0)))
            assert not live.engine.streams
            return told, code

    events, code = run(test())
    failed, error = events[-2:]
    assert failed["type"] == FAILED and failed["error"]["code"] == "internal" and code == 1011
    assert {event["item_id"] for event in events if event["type"] == DELTA} <= {failed["item_id"]}
    assert error["error"]["type"] == "server_error" and "scripted failure" in error["error"]["message"]


def test_a_client_that_leaves_frees_its_place() -> None:
    async def test() -> None:
        async with serving(make_engine()) as live:
            async with connect(f"ws://127.0.0.1:{live.port}/v1/realtime?intent=transcription") as socket:
                await socket.send(json.dumps(next(appends(speech("the quick")))))
                while not live.engine.streams:
                    await breath()
                socket.transport.abort()
            while live.engine.streams:
                await breath()

    run(test())


def test_draining_completes_what_was_heard() -> None:
    async def test() -> tuple[list[dict[str, Any]], int | None]:
        async with serving(make_engine(drain_s=0.0)) as live:
            told: list[dict[str, Any]] = []
            async with connect(f"ws://127.0.0.1:{live.port}/v1/realtime?intent=transcription") as socket:
                for message in [MANUAL, *appends(speech("the quick brown fox"))]:
                    await socket.send(json.dumps(message))
                await read_until(socket, told, DELTA)
                while not live.engine.active[0].inbox.empty:
                    await breath()
                live.server.stop()
                told += [json.loads(message) async for message in socket]
                return told, socket.close_code

    events, code = run(test())
    assert check_items(events) == ["the quick brown fox"] and code == 1001


def test_a_foreign_page_is_kept_out() -> None:
    async def test() -> int:
        async with serving(make_engine()) as live:
            url = f"ws://127.0.0.1:{live.port}/v1/realtime?intent=transcription"
            with pytest.raises(Exception, match="403") as caught:
                await connect(url, origin="https://elsewhere.example")  # type: ignore[arg-type]
            return caught.value.response.status_code  # type: ignore[attr-defined]

    assert run(test()) == 403


def test_a_file_sent_at_once_waits_for_room_and_loses_nothing() -> None:
    text = "the quick brown fox jumps over a lazy dog. we met them again on monday,"

    async def test() -> list[dict[str, Any]]:
        async with serving(make_engine(queue_ms=1000)) as live:
            return (await converse(live, MANUAL, *appends(speech(text)), COMMIT, until=COMPLETED))[0]

    assert check_items(run(test())) == [text]


# Without a socket


def tell_all(turns: Turns, events: list[Event]) -> list[ServerEvent]:
    return [told for event in events for told in turns.tell(event)]


def test_a_clear_does_not_take_back_an_item_that_was_committed() -> None:
    at = Clocks(900, 900, 900)
    turns = Turns()
    told = tell_all(turns, [SpeechStarted(at, 0, 0), Partial(at, 0, "the", "", ()), SpeechEnded(at, 0, 800, "silence")])
    turns.marks.append("clear")
    told += tell_all(turns, [Final(at, 0, " fox", "the fox", (), 0, 800, "silence"), Committed(at, 900)])
    assert check_items(told) == ["the fox"]


@pytest.mark.parametrize("manual", [False, True])
def test_unstable_text_is_never_told(manual: bool) -> None:
    stream, turns = session(block_ms=320), Turns()
    turns.manual = manual
    samples = np.concatenate([speech("the quick brown fox jumps", silence_s=1.0), speech("over a lazy dog.", silence_s=1.0)])
    events = [*stream.push(samples), *stream.commit()]
    turns.marks.append("commit")
    assert any(isinstance(event, Partial) and event.tail for event in events), "the script has unstable text"
    texts = ["the quick brown fox jumps", "over a lazy dog."]
    assert check_items(tell_all(turns, events)) == ([" ".join(texts)] if manual else [*texts, ""])


def test_a_failure_names_the_open_item() -> None:
    turns = Turns()
    assert list(turns.fail(Failure(code="internal", message="x"))) == []
    (started,) = turns.tell(SpeechStarted(Clocks(0, 0, 0), 0, 0))
    (failed,) = turns.fail(Failure(code="internal", message="x"))
    assert failed["item_id"] == started["item_id"]


def test_g711_is_what_the_standard_says() -> None:
    """ITU-T G.711, tables 1 and 2: the largest values, and silence."""
    ulaw = np.frombuffer(g711.decode(bytes([0x00, 0x80, 0x7F, 0xFF]), "ULAW"), "<i2")
    alaw = np.frombuffer(g711.decode(bytes([0x2A, 0xAA, 0x55, 0xD5]), "ALAW"), "<i2")
    assert ulaw.tolist() == [-32124, 32124, 0, 0]
    assert alaw.tolist() == [-32256, 32256, -8, 8]


def test_delay_sets_the_blocks() -> None:
    options = SessionOptions()
    blocks = [
        Setup.of(options).updated({"transcription": {"delay": delay}}, options).asked["block_ms"]
        for delay in ("minimal", "low", "medium", "high", "xhigh")
    ]
    assert blocks == [320, 320, 640, 960, 960] and "block_ms" not in Setup.of(options).asked


@pytest.mark.parametrize(("side", "body"), EXAMPLES, ids=[json.loads(body)["type"] for _, body in EXAMPLES])
def test_examples_of_the_page(side: str, body: str) -> None:
    raw = json.loads(body)
    if side == "client":
        read_event(raw)
        return
    union = get_args(server_events.RealtimeServerEvent)[0]
    (kind,) = (part for part in get_args(union) if raw["type"] in get_args(part.model_fields["type"].annotation))
    assert {"type", "event_id"} <= set(raw) <= set(kind.model_fields)
    kind.model_validate(raw)


def test_the_page_shows_every_event() -> None:
    kinds = {json.loads(body)["type"] for _, body in EXAMPLES}
    buffer = {
        f"input_audio_buffer.{kind}" for kind in ("append", "commit", "clear", "cleared", "committed", "speech_started", "speech_stopped")
    }
    assert kinds == buffer | {"session.update", "session.created", "error", DELTA, COMPLETED, FAILED}


def test_reading_an_event_never_fails_otherwise() -> None:
    for raw in ({"type": None}, {"type": []}, {"type": "session.update"}, {"type": "session.update", "session": []}):
        with pytest.raises(EventError):
            read_event(raw)


def test_clients_at_the_same_time_get_their_own_words() -> None:
    texts = ["the quick brown fox", "we met them again", "nobody knew why"]

    async def test() -> list[list[str]]:
        async with serving(make_engine(executor=None)) as live:
            each = (converse(live, *appends(speech(text, silence_s=1.0)), until=COMPLETED) for text in texts)
            return [check_items(told) for told, _ in await asyncio.gather(*each)]

    assert run(test()) == [[text] for text in texts]
