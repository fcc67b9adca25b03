"""OpenAI's realtime translation: its own client against our server, then what clients do wrong."""

from __future__ import annotations

import base64
import json
import re
import time
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from dragoman.model.backend import Floats
from dragoman.stream.config import SessionOptions
from dragoman.stream.events import Partial, Translation, TranslationDraft
from dragoman.stream.openai_connection import ServerEvent
from dragoman.stream.openai_session import EventError
from dragoman.stream.openai_translation import Deltas
from dragoman.stream.openai_translation_session import NEVER_S, TranslationSetup, read_translation_event
from websockets.asyncio.client import connect

from .fakes import ScriptedBackend, scripted_translation, speech
from .listeners import session, transcribe
from .live import Live, breath, make_engine, run, serving
from .test_openai_realtime import appends as transcription_appends
from .test_openai_realtime import converse, read_until, told_of

openai = pytest.importorskip("openai", reason="needs the extra dev")
server_events: Any = pytest.importorskip("openai.types.realtime.realtime_translation_server_event")

PAGE = (Path(__file__).parents[1] / "docs" / "protocol.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"<!-- openai translation: (\w+) -->\n```json\n(.*?)```", PAGE, re.DOTALL)
PATH = "/v1/realtime/translations?model=gpt-realtime-translate"
INPUT, OUTPUT, CLOSED = "session.input_transcript.delta", "session.output_transcript.delta", "session.closed"
CLOSE = {"type": "session.close"}
FIRST, SECOND = "the quick brown fox", "jumps over a lazy dog."
TALK = np.concatenate([speech(FIRST, silence_s=1.0), speech(SECOND, silence_s=1.0)])


def appends(samples: Floats) -> list[dict[str, Any]]:
    return [{**message, "type": "session.input_audio_buffer.append"} for message in transcription_appends(samples)]


def update(language: str | None = None, **sides: Any) -> dict[str, Any]:
    audio = {**({} if language is None else {"output": {"language": language}}), **sides}
    return {"type": "session.update", "session": {"audio": audio}}


def text_of(events: list[dict[str, Any]], kind: str = OUTPUT) -> str:
    return "".join(event["delta"] for event in events if event["type"] == kind)


async def talk(live: Live, *messages: Any, until: str | None = None, times: int = 1) -> tuple[list[dict[str, Any]], int | None]:
    return await converse(live, *messages, until=until, times=times, path=PATH)


# The client library, as it is


def test_the_client_library_translates_a_clip() -> None:
    """``session.close`` brings what is left, ``session.closed`` is the last event, and the iteration ends by itself."""

    async def test() -> list[Any]:
        async with serving(make_engine()) as live:
            client = openai.AsyncOpenAI(base_url=live.http + "/v1", api_key="none is needed")
            async with client.realtime.translations.connect(model="gpt-realtime-translate") as connection:
                await connection.session.update(
                    session={"audio": {"output": {"language": "de"}, "input": {"transcription": {"model": "gpt-realtime-whisper"}}}}
                )
                for message in appends(TALK):
                    await connection.session.input_audio_buffer.append(audio=message["audio"])
                await connection.session.close()
                events = [event async for event in connection]
            await client.close()
            while live.engine.streams:
                await breath()
            return events

    events = run(test())
    kinds = [event.type for event in events]
    assert kinds[:2] == ["session.created", "session.updated"] and kinds[-1] == CLOSED
    created, updated = events[0].session, events[1].session
    assert (created.type, created.audio.output.language, created.audio.input.transcription) == ("translation", None, None)
    assert (updated.audio.output.language, updated.audio.input.transcription.model, updated.model) == ("de", "scripted", "scripted")
    raw = [event.to_dict() for event in events]
    assert text_of(raw, INPUT) == f"{FIRST} {SECOND}"
    assert text_of(raw) == f"{scripted_translation(FIRST, 'de')} {scripted_translation(SECOND, 'de')}"
    assert kinds.count(OUTPUT) == 2, "a translation comes when its segment is over, and not at the end of the talk"
    assert kinds.count(INPUT) > 4, "what is said comes while it is spoken"
    elapsed = [event.elapsed_ms for event in events if event.type in (INPUT, OUTPUT)]
    assert elapsed == sorted(elapsed) and all(ms % 200 == 0 for ms in elapsed)
    first = next(event for event in events if event.type == OUTPUT)
    assert 1600 <= first.elapsed_ms <= 2600, "the first sentence lasts 1.6 s, its silence 1 s"
    assert len({event.event_id for event in events}) == len(events)


def test_the_client_librarys_events_are_whole() -> None:
    """Its models take every event as it is: nothing they require is missing."""

    async def test() -> list[dict[str, Any]]:
        async with serving(make_engine(targets=["de"])) as live:
            said = [{"type": "nonsense"}, update("de", input={"transcription": {"model": "x"}}), *appends(TALK), CLOSE]
            return (await talk(live, *said))[0]

    kinds = {
        get_args(part.model_fields["type"].annotation)[0]: part
        for part in get_args(get_args(server_events.RealtimeTranslationServerEvent)[0])
    }
    events = run(test())
    assert {event["type"] for event in events} == set(kinds) - {"session.output_audio.delta"}
    for event in events:
        kinds[event["type"]].model_validate(event, strict=True)


def test_the_client_library_is_told_what_a_model_without_translation_can_do() -> None:
    async def test() -> tuple[list[Any], Any]:
        backend = ScriptedBackend()
        backend.prompts.targets = ()
        async with serving(make_engine(backend)) as live:
            client = openai.AsyncOpenAI(base_url=live.http + "/v1", api_key="none is needed")
            async with client.realtime.translations.connect(model="gpt-realtime-translate") as connection:
                await connection.session.update(session={"audio": {"output": {"language": "de"}}}, event_id="mine")
                events = [await connection.recv(), await connection.recv()]
                await connection.session.input_audio_buffer.append(audio=appends(TALK)[0]["audio"])
                events.append(await connection.recv())
                await connection.session.close()
                events.append(await connection.recv())
            await client.close()
            return events, live.engine.opened_count

    (created, refused, again, closed), opened = run(test())
    assert created.type == "session.created" and closed.type == CLOSED and opened == 0
    assert (refused.error.code, refused.error.event_id) == ("bad_task", "mine")
    assert refused.error.message == "this model does not translate into 'de'; it knows no translation, it transcribes en"
    assert "it only transcribes" in again.error.message and again.error.param == "session.audio.output.language"


# The protocol


def test_a_configured_target_needs_no_update() -> None:
    async def test() -> list[dict[str, Any]]:
        async with serving(make_engine(targets=["fr", "de"])) as live:
            return (await talk(live, *appends(TALK), CLOSE))[0]

    events = run(test())
    assert events[0]["session"]["audio"]["output"]["language"] == "fr"
    assert text_of(events) == f"{scripted_translation(FIRST, 'fr')} {scripted_translation(SECOND, 'fr')}"
    assert text_of(events, INPUT) == "", "nobody asked for what was said"


def test_a_target_may_have_a_region() -> None:
    async def test() -> list[dict[str, Any]]:
        async with serving(make_engine()) as live:
            return (await talk(live, update("de-AT", input={"transcription": {"language": "en_GB"}}), *appends(TALK), CLOSE))[0]

    events = run(test())
    assert told_of(events) == [] and events[1]["session"]["audio"]["output"]["language"] == "de"
    assert text_of(events) == f"{scripted_translation(FIRST, 'de')} {scripted_translation(SECOND, 'de')}"


def test_the_language_changes_in_the_middle() -> None:
    """What was heard before is still translated as it was asked for; a server with one place has room for that."""

    async def test() -> tuple[list[dict[str, Any]], int]:
        async with serving(make_engine(max_sessions=1)) as live:
            transcribed = {"transcription": {"model": "x"}}
            said = [update("de", input=transcribed), *appends(speech(FIRST)), update("fr"), *appends(speech(SECOND)), CLOSE]
            return (await talk(live, *said))[0], live.engine.opened_count

    events, opened = run(test())
    assert text_of(events) == f"{scripted_translation(FIRST, 'de')} {scripted_translation(SECOND, 'fr')}" and opened == 2
    assert text_of(events, INPUT) == f"{FIRST} {SECOND}"
    elapsed = [event["elapsed_ms"] for event in events if event["type"] in (INPUT, OUTPUT)]
    assert elapsed == sorted(elapsed) and elapsed[-1] > 1600, "times count from the beginning of the connection"


def test_an_update_that_changes_nothing_that_matters_costs_nothing() -> None:
    async def test() -> tuple[list[dict[str, Any]], int]:
        async with serving(make_engine()) as live:
            harmless = update(input={"noise_reduction": {"type": "near_field"}, "transcription": {"model": "x", "prompt": "foxes"}})
            said = [update("de"), *appends(speech("the quick")), harmless, *appends(speech("brown fox", silence_s=1.0)), CLOSE]
            return (await talk(live, *said))[0], live.engine.opened_count

    events, opened = run(test())
    assert text_of(events) == scripted_translation(FIRST, "de") and opened == 1


def test_a_time_limit_is_told() -> None:
    async def test() -> list[dict[str, Any]]:
        told = []
        for parts in ({}, {"session_s": 600.0}):
            async with serving(make_engine(**parts)) as live:
                told += (await talk(live, CLOSE))[0][:1]
        return told

    never, soon = (event["session"]["expires_at"] for event in run(test()))
    assert never == NEVER_S and 0 < soon - time.time() <= 600


def test_closing_before_any_audio_closes() -> None:
    async def test() -> tuple[list[dict[str, Any]], int | None]:
        async with serving(make_engine()) as live:
            return await talk(live, CLOSE)

    events, code = run(test())
    assert [event["type"] for event in events] == ["session.created", CLOSED] and code == 1000


def test_what_comes_after_the_close_is_an_error_and_loses_nothing() -> None:
    async def test() -> tuple[list[dict[str, Any]], int | None]:
        async with serving(make_engine()) as live:
            return await talk(live, update("de"), *appends(TALK), CLOSE, appends(TALK)[0], update("fr"), CLOSE)

    events, code = run(test())
    assert text_of(events) == f"{scripted_translation(FIRST, 'de')} {scripted_translation(SECOND, 'de')}"
    assert events[-1]["type"] == CLOSED and code == 1000
    assert all("after" in error["message"] for error in told_of(events))


def test_a_server_that_stops_tells_what_it_has_heard() -> None:
    async def test() -> tuple[list[dict[str, Any]], int | None]:
        async with serving(make_engine(drain_s=0.0)) as live:
            told: list[dict[str, Any]] = []
            async with connect(f"ws://127.0.0.1:{live.port}{PATH}") as socket:
                for message in [update("de", input={"transcription": {"model": "x"}}), *appends(speech(FIRST))]:
                    await socket.send(json.dumps(message))
                await read_until(socket, told, INPUT)
                while not live.engine.active[0].inbox.empty:
                    await breath()
                live.server.stop()
                told += [json.loads(message) async for message in socket]
                return told, socket.close_code

    events, code = run(test())
    assert text_of(events) == scripted_translation(FIRST, "de") and events[-1]["type"] == CLOSED and code == 1001


# What goes wrong


@pytest.mark.parametrize(
    ("message", "code", "param", "says"),
    [
        ("hello", "bad_message", None, "not JSON"),
        (b"\0\0", "bad_message", None, "a binary message of 2 bytes, expected JSON text"),
        ({"type": "response.create"}, "bad_message", "type", "'response.create', expected one of session.update"),
        ({"type": "input_audio_buffer.append", "audio": "AAAA"}, "bad_message", "type", "session.input_audio_buffer.append"),
        ({}, "bad_message", "type", "'None', expected one of"),
        ({"type": "session.update"}, "bad_message", "session", "Field required"),
        ({"type": "session.update", "session": {"voice": "x"}}, "bad_message", "session.voice", "unknown key"),
        ({"type": "session.update", "session": {"type": "realtime"}}, "bad_message", "session.type", "'translation', got 'realtime'"),
        (update(voice={}), "bad_message", "session.audio.voice", "unknown key"),
        (update(output=None), "bad_message", "session.audio.output", "got 'None'"),
        (update(output={"language": 7}), "bad_message", "session.audio.output.language", "valid string, got '7'"),
        (update(input={"transcription": {"languages": []}}), "bad_message", "session.audio.input.transcription.languages", "a list of one"),
        (update("xx"), "bad_task", None, "does not translate into 'xx'; it knows de, es, fr"),
        (update("en"), "bad_task", None, "cannot translate 'en' into itself"),
        (update(input={"format": {"type": "audio/pcm", "rate": 1}}), "bad_message", "session.audio.input.format.rate", "got '1'"),
        ({"type": "session.input_audio_buffer.append"}, "bad_message", "audio", "Field required"),
        ({"type": "session.input_audio_buffer.append", "audio": "no base64!"}, "bad_message", "audio", "not base64"),
        ({"type": "session.input_audio_buffer.append", "audio": "AAAA"}, "bad_audio", None, "3 bytes of audio"),
    ],
)
def test_a_mistake_is_told_and_the_session_goes_on(message: Any, code: str, param: str | None, says: str) -> None:
    if isinstance(message, dict):
        message = {**message, "event_id": "mine"}

    async def test() -> list[dict[str, Any]]:
        async with serving(make_engine()) as live:
            return (await talk(live, update("de"), message, *appends(speech(FIRST, silence_s=1.0)), CLOSE))[0]

    events = run(test())
    (error,) = told_of(events)
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", code, param)
    assert says in error["message"] and len(error["message"]) < 500
    assert error["event_id"] == ("mine" if isinstance(message, dict) else None)
    assert text_of(events) == scripted_translation(FIRST, "de") and events[-1]["type"] == CLOSED


def test_an_update_that_cannot_be_obeyed_changes_nothing() -> None:
    async def test() -> list[dict[str, Any]]:
        async with serving(make_engine()) as live:
            return (await talk(live, update("de"), update("xx"), update(), CLOSE))[0]

    _, updated, refused, again, _ = run(test())
    assert refused["type"] == "error" and updated["session"] == again["session"]


def test_audio_before_a_language_is_told_what_there_is() -> None:
    async def test() -> tuple[list[dict[str, Any]], int]:
        async with serving(make_engine()) as live:
            return (await talk(live, appends(TALK)[0], update("de"), *appends(TALK), CLOSE))[0], live.engine.opened_count

    events, opened = run(test())
    (error,) = told_of(events)
    assert "no language to translate into" in error["message"] and error["message"].endswith("this model knows de, es, fr")
    assert len(text_of(events).split()) == 9 and opened == 1


def test_a_full_server_says_when_to_come_again() -> None:
    async def test() -> tuple[list[dict[str, Any]], int | None]:
        async with serving(make_engine(max_sessions=1)) as live:
            await live.engine.open()
            return await talk(live)

    told, code = run(test())
    (error,) = told_of(told)
    assert (error["type"], error["code"], code) == ("server_error", "overloaded", 1013) and error["retry_after_s"] > 0


def test_a_model_that_fails_ends_the_session_with_its_error() -> None:
    async def test() -> tuple[list[dict[str, Any]], int | None, int]:
        backend = ScriptedBackend()
        async with serving(make_engine(backend)) as live:
            backend.fail_next = "listen"
            told, code = await talk(live, update("de"), *appends(TALK))
            return told, code, len(live.engine.streams)

    events, code, left = run(test())
    assert (events[-1]["error"]["type"], code, left) == ("server_error", 1011, 0) and "scripted failure" in events[-1]["error"]["message"]
    assert CLOSED not in [event["type"] for event in events]


def test_a_client_that_leaves_frees_its_place() -> None:
    async def test() -> None:
        async with serving(make_engine()) as live:
            async with connect(f"ws://127.0.0.1:{live.port}{PATH}") as socket:
                for message in (update("de"), appends(TALK)[0]):
                    await socket.send(json.dumps(message))
                while not live.engine.streams:
                    await breath()
                socket.transport.abort()
            while live.engine.streams:
                await breath()

    run(test())


# Without a socket


@pytest.mark.parametrize("translation", ["stable", "draft"])
def test_drafts_and_tails_are_never_told(translation: str) -> None:
    """Nothing on this socket can be taken back: what may still change stays here."""
    deltas = Deltas("de")
    deltas.transcribes = True
    events = transcribe(session(targets=["de"], translation=translation, block_ms=320), TALK)
    assert any(isinstance(event, Partial) and event.tail for event in events), "the script has unstable text"
    assert any(isinstance(event, TranslationDraft) for event in events) == (translation == "draft")
    told: list[ServerEvent] = [message for event in events for message in deltas.tell(event)]
    assert text_of(told, INPUT) == f"{FIRST} {SECOND}"
    assert text_of(told) == " ".join(event.text.strip() for event in events if isinstance(event, Translation))


@pytest.mark.parametrize(("target", "joined"), [("de", "eins zwei"), ("ja", "einszwei"), ("zh", "einszwei")])
def test_sentences_are_joined_as_their_language_does(target: str, joined: str) -> None:
    at = session().clocks
    deltas = Deltas(target)
    told = [message for text in ("eins", " ", "zwei ") for message in deltas.tell(Translation(at, 0, target, text, 0, 0))]
    assert text_of(told) == joined


def test_what_is_asked_of_a_session() -> None:
    options = SessionOptions()
    setup = TranslationSetup.of(options)
    assert setup.asked == {"targets": ()}
    said = {"model": "x", "languages": ["de"], "keywords": ["Özdemir"], "delay": "low"}
    changed = setup.updated({"output": {"language": "en"}, "input": {"transcription": said}})
    assert changed.asked == {"targets": ("en",), "language": "de", "glossary": ("Özdemir",), "block_ms": 320}
    off = changed.updated({"input": {"transcription": None}})
    assert off.asked == {"targets": ("en",)} and off.shown("s", "m")["audio"]["input"] == {"format": {"type": "audio/pcm", "rate": 24000}}


@pytest.mark.parametrize(("side", "body"), EXAMPLES, ids=[json.loads(body)["type"] for _, body in EXAMPLES])
def test_examples_of_the_page(side: str, body: str) -> None:
    raw = json.loads(body)
    if side == "client":
        read_translation_event(raw)
        return
    kinds = get_args(get_args(server_events.RealtimeTranslationServerEvent)[0])
    (kind,) = (part for part in kinds if raw["type"] in get_args(part.model_fields["type"].annotation))
    kind.model_validate(raw)
    assert {"type", "event_id"} <= set(raw) <= set(kind.model_fields)


def test_the_page_shows_every_event() -> None:
    kinds = {json.loads(body)["type"] for _, body in EXAMPLES}
    assert kinds == {
        "session.update",
        "session.input_audio_buffer.append",
        "session.close",
        "session.created",
        INPUT,
        OUTPUT,
        CLOSED,
    }


def test_reading_an_event_never_fails_otherwise() -> None:
    for raw in ({"type": None}, {"type": []}, {"type": "session.update"}, {"type": "session.update", "session": []}):
        with pytest.raises(EventError):
            read_translation_event(raw)


def test_audio_at_another_rate_is_taken_at_its_word() -> None:
    async def test() -> list[dict[str, Any]]:
        async with serving(make_engine()) as live:
            audio = (np.clip(TALK, -1, 1) * 32767).astype("<i2").tobytes()
            append = {"type": "session.input_audio_buffer.append", "audio": base64.b64encode(audio).decode()}
            return (await talk(live, update("de", input={"format": {"type": "audio/pcm", "rate": 16000}}), append, CLOSE))[0]

    assert len(text_of(run(test())).split()) == 9
