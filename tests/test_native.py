"""The native socket over real loopback connections: honest clients, lost ones and hostile ones."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
import pytest
from dragoman.stream.protocol import LARGEST_AUDIO_BYTES
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from .fakes import ScriptedBackend, speech
from .live import Live, make_engine, pcm, rest, run, serving, talking, text_of

START = json.dumps({"type": "start", "sample_rate": 16000})
FINISH = json.dumps({"type": "finish"})


async def send(socket: Any, samples: np.ndarray, block: int = 1600) -> None:
    for start in range(0, len(samples), block):
        await socket.send(pcm(samples[start : start + block]))


def test_audio_in_events_out() -> None:
    async def test() -> tuple[dict[str, Any], list[dict[str, Any]], int | None]:
        async with serving(make_engine()) as live, talking(live, targets=["de"], block_ms=320) as (socket, ready):
            await send(socket, speech("the quick brown fox", silence_s=1.0))
            await socket.send(FINISH)
            return ready, await rest(socket), socket.close_code

    ready, messages, code = run(test())
    assert ready["type"] == "ready" and ready["block_ms"] == 320 and ready["targets"] == ["de"] and ready["model"] == "scripted"
    events = [message for message in messages if "seq" in message and message["type"] != "progress"]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert text_of(messages) == ["the quick brown fox"]
    assert [event["text"] for event in events if event["type"] == "translation"] == ["dethe dequick debrown defox"]
    assert events[-1]["type"] == "ended" and events[-1]["audio_ms"] == 2600
    assert any(message["type"] == "progress" for message in messages)
    assert all({"received_ms", "processed_ms", "committed_ms"} == set(message["clocks"]) for message in messages)
    assert code == 1000


def test_languages_may_have_regions() -> None:
    async def test() -> tuple[dict[str, Any], list[dict[str, Any]]]:
        async with serving(make_engine()) as live, talking(live, language="en-US", targets=["de_DE", "FR"]) as (socket, ready):
            await send(socket, speech("the quick brown fox", silence_s=1.0))
            await socket.send(FINISH)
            return ready, await rest(socket)

    ready, messages = run(test())
    assert (ready["language"], ready["targets"]) == ("en", ["de", "fr"])
    assert [message["language"] for message in messages if message["type"] == "translation"] == ["de", "fr"]


def test_who_wants_calm_captions_says_so() -> None:
    async def tails(held: int) -> list[str]:
        async with serving(make_engine()) as live, talking(live, block_ms=320, hold_back_words=held) as (socket, _):
            await send(socket, speech("the quick brown fox jumps over", silence_s=1.0))
            await socket.send(FINISH)
            return [message["tail"] for message in await rest(socket) if message["type"] == "partial"]

    quick, calm = run(tails(0)), run(tails(10))
    assert sum(map(bool, quick)) > 3 and sum(map(bool, calm)) <= 1, "the end is shown when silence follows"


def test_who_wants_captions_that_stand_still_says_so() -> None:
    async def test() -> list[dict[str, Any]]:
        async with serving(make_engine()) as live, talking(live, block_ms=320, steady=True) as (socket, _):
            await send(socket, speech("the quick brown fox jumps over", silence_s=1.0))
            await socket.send(FINISH)
            return [message for message in await rest(socket) if message["type"] == "partial"]

    partials = run(test())
    assert len(partials) > 1 and not any(partial["tail"] for partial in partials)


@pytest.mark.parametrize(
    ("sample_rate", "channels", "encoding"), [(48000, 2, "pcm_f32le"), (44100, 1, "pcm_s16le"), (8000, 1, "pcm_s16le")]
)
def test_the_true_sample_rate_is_heard(sample_rate: int, channels: int, encoding: str) -> None:
    """Browsers record at 44.1 or 48 kHz whatever they are asked for (complaints: incoherent text, sample rate confusion)."""
    heard = speech("the quick brown fox", silence_s=1.0)
    at = np.arange(int(len(heard) * sample_rate / 16_000)) * 16_000 / sample_rate
    samples = np.repeat(np.interp(at, np.arange(len(heard)), heard)[:, None], channels, axis=1)
    audio = samples.astype("<f4").tobytes() if encoding == "pcm_f32le" else pcm(samples.astype(np.float32))

    async def test() -> list[dict[str, Any]]:
        wanted = {"sample_rate": sample_rate, "channels": channels, "encoding": encoding}
        async with serving(make_engine()) as live, talking(live, **wanted) as (socket, _):
            for start in range(0, len(audio), 40_000):
                await socket.send(audio[start : start + 40_000])
            await socket.send(FINISH)
            return await rest(socket)

    messages = run(test())
    assert text_of(messages) == ["the quick brown fox"]
    assert abs(messages[-1]["audio_ms"] - 2600) <= 1


def test_a_file_sent_at_once_waits_for_room_and_loses_nothing() -> None:
    text = "the quick brown fox jumps over a lazy dog. we met them again on monday, and then all five trains left early."

    async def test() -> list[dict[str, Any]]:
        async with serving(make_engine(queue_ms=1000)) as live, talking(live) as (socket, _):
            await send(socket, speech(text, silence_s=1.0), block=8000)
            await socket.send(FINISH)
            return await rest(socket)

    assert " ".join(text_of(run(test()))) == text


@pytest.mark.parametrize("cut", [0, 3000, 12_345, 30_000])
def test_a_lost_connection_is_resumed_without_a_gap_or_a_repetition(cut: int) -> None:
    samples = speech("the quick brown fox jumps over a lazy dog.", silence_s=1.0)

    async def test() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        async with serving(make_engine()) as live:
            before: list[dict[str, Any]] = []
            async with talking(live) as (socket, ready):
                await send(socket, samples[:cut])
                if cut:
                    before.append(json.loads(await socket.recv()))
                socket.transport.abort()  # no goodbye
            seq = max((message["seq"] for message in before), default=0)
            async with connect(live.ws) as socket:
                await socket.send(json.dumps({"type": "resume", "session": ready["session"], "after_seq": seq}))
                again = json.loads(await socket.recv())
                assert again["resumed"] and again["session"] == ready["session"] and again["received_samples"] <= cut
                await send(socket, samples[again["received_samples"] :])
                await socket.send(FINISH)
                return before, await rest(socket)

    before, after = run(test())
    events = [message for message in [*before, *after] if message["type"] != "progress"]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert text_of(events) == ["the quick brown fox jumps over a lazy dog."]
    assert events[-1]["audio_ms"] == len(samples) * 1000 // 16_000


def test_the_end_is_not_lost_with_the_connection() -> None:
    """Final text arrives although the connection broke after finish (complaint: final transcript lost)."""

    async def test() -> list[dict[str, Any]]:
        async with serving(make_engine()) as live:
            async with talking(live) as (socket, ready):
                await send(socket, speech("the quick brown fox"))
                await socket.send(FINISH)
                while json.loads(await socket.recv())["type"] != "ended":
                    pass
                socket.transport.abort()
            async with connect(live.ws) as socket:
                await socket.send(json.dumps({"type": "resume", "session": ready["session"], "after_seq": 1}))
                return await rest(socket)

    messages = run(test())
    assert text_of(messages) == ["the quick brown fox"] and messages[-1]["type"] == "ended"


def test_a_second_connection_takes_over() -> None:
    async def test() -> tuple[dict[str, Any], int | None, list[dict[str, Any]], int]:
        async with serving(make_engine()) as live, talking(live) as (old, ready):
            async with connect(live.ws) as new:
                await new.send(json.dumps({"type": "resume", "session": ready["session"], "after_seq": 0}))
                await new.recv()
                last = (await rest_of(old))[-1]
                await send(new, speech("the quick brown fox"))
                await new.send(FINISH)
                return last, old.close_code, await rest(new), len(live.engine.streams)

    last, code, messages, kept = run(test())
    assert (last["type"], last["code"], code) == ("error", "replaced", 1008)
    assert text_of(messages) == ["the quick brown fox"] and kept == 1


async def complaint(live: Live, *messages: str | bytes) -> tuple[dict[str, Any], int | None]:
    """The server's last word to a client that sends these, and the close code."""
    async with connect(live.ws, max_size=None) as socket:
        try:
            for message in messages:
                await socket.send(message)
        except ConnectionClosed:
            pass
        told = await rest_of(socket)
        return (told[-1] if told else {}), socket.close_code


async def rest_of(socket: Any) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = []
    try:
        async for message in socket:
            told.append(json.loads(message))
    except ConnectionClosed:
        pass
    return told


@pytest.mark.parametrize(
    ("messages", "code", "close_code", "says"),
    [
        ([b"\0\0"], "bad_message", 1008, "the first message is audio, expected 'start' or 'resume'"),
        (["hello"], "bad_message", 1008, "not JSON"),
        ([FINISH], "bad_message", 1008, "the first message is 'finish'"),
        ([START, START], "bad_message", 1008, "'start' in the middle of a session"),
        ([START, "AAAA"], "bad_message", 1008, "not JSON"),
        ([START, FINISH, b"\0\0"], "bad_message", 1008, "audio after finish"),
        ([START, b"\0\0\0"], "bad_audio", 1008, "3 bytes of audio, expected a multiple of 2"),
        ([START, b""], "bad_audio", 1008, "0 bytes of audio"),
        ([START, bytes(LARGEST_AUDIO_BYTES + 2)], "too_large", 1009, "1048578 bytes, expected at most 1048576"),
        ([START, "x" * 70_000], "too_large", 1009, "70000 characters"),
        ([json.dumps({"type": "start", "sample_rate": 16000, "targets": ["xx"]})], "bad_task", 1008, "it knows de, es, fr"),
        ([json.dumps({"type": "start", "sample_rate": 16000, "targets": ["de", "de"]})], "bad_message", 1008, "stands twice"),
        (
            [json.dumps({"type": "start", "sample_rate": 16000, "encoding": "webm-opus"})],
            "bad_audio",
            1008,
            "'opus' means raw packets, 'container' Ogg or WebM",
        ),
        ([json.dumps({"type": "resume", "session": "nobody", "after_seq": 0})], "unknown_session", 1008, "no session 'nobody'"),
    ],
)
def test_hostile_and_mistaken_clients(messages: list[str | bytes], code: str, close_code: int, says: str) -> None:
    async def test() -> tuple[dict[str, Any], int | None, int]:
        async with serving(make_engine()) as live:
            told, closed = await complaint(live, *messages)
            return told, closed, len(live.engine.active)

    told, closed, left = run(test())
    assert (told["type"], told["code"], closed) == ("error", code, close_code)
    assert says in told["message"]
    assert left == 0, "a broken client holds no place"


def test_floats_that_are_no_audio_end_the_session_with_its_text() -> None:
    start = json.dumps({"type": "start", "sample_rate": 16000, "encoding": "pcm_f32le"})
    good = speech("the quick brown fox", silence_s=1.0).astype("<f4").tobytes()
    bad = np.full(640, np.nan, "<f4").tobytes()

    async def test() -> list[dict[str, Any]]:
        async with serving(make_engine()) as live, connect(live.ws) as socket:
            for message in (start, good, bad):
                await socket.send(message)
            return await rest_of(socket)

    messages = run(test())
    assert text_of(messages) == ["the quick brown fox"]
    assert messages[-1]["code"] == "bad_audio" and "NaN" in messages[-1]["message"]


def test_a_huge_frame_is_not_even_read() -> None:
    async def test() -> tuple[int | None, int]:
        async with serving(make_engine()) as live:
            _, closed = await complaint(live, START, bytes(4 * LARGEST_AUDIO_BYTES))
            return closed, len(live.engine.active)

    assert run(test()) == (1009, 0)


def test_a_client_that_never_says_a_word_is_closed() -> None:
    async def test() -> tuple[dict[str, Any], int | None]:
        async with serving(make_engine(idle_s=0.05)) as live:
            return await complaint(live)

    told, closed = run(test())
    assert (told["code"], closed) == ("idle", 1008)


def test_a_full_server_says_when_to_come_again() -> None:
    async def test() -> tuple[dict[str, Any], int | None]:
        async with serving(make_engine(max_sessions=1)) as live, talking(live):
            return await complaint(live, START)

    told, closed = run(test())
    assert (told["code"], closed) == ("overloaded", 1013) and told["retry_after_s"] > 0


def test_a_gap_is_part_of_the_stream() -> None:
    async def test() -> list[dict[str, Any]]:
        async with serving(make_engine()) as live, talking(live) as (socket, _):
            await send(socket, speech("the quick", silence_s=1.0))
            await socket.send(json.dumps({"type": "gap", "samples": 32_000}))
            await socket.send(json.dumps({"type": "keep_alive"}))
            await send(socket, speech("brown fox", silence_s=1.0))
            await socket.send(FINISH)
            return await rest(socket)

    messages = run(test())
    dropped = [message for message in messages if message["type"] == "dropped"]
    assert [(message["at_ms"], message["duration_ms"]) for message in dropped] == [(1800, 2000)]
    assert text_of(messages) == ["the quick", "brown fox"] and messages[-1]["audio_ms"] == 5600


def test_push_to_talk() -> None:
    async def test() -> list[dict[str, Any]]:
        async with serving(make_engine()) as live, talking(live) as (socket, _):
            await send(socket, speech("the quick brown fox"))
            await socket.send(json.dumps({"type": "commit"}))
            await send(socket, speech("jumps over", silence_s=1.0))
            await socket.send(FINISH)
            return await rest(socket)

    messages = run(test())
    assert text_of(messages) == ["the quick brown fox", "jumps over"]
    assert [message["reason"] for message in messages if message["type"] == "final"] == ["commit", "silence"]
    assert [message["at_ms"] for message in messages if message["type"] == "committed"] == [1600]


def test_a_model_that_fails_is_told_as_internal() -> None:
    async def test() -> list[dict[str, Any]]:
        backend = ScriptedBackend()
        async with serving(make_engine(backend)) as live, talking(live) as (socket, _):
            backend.fail_next = "listen"
            await send(socket, speech("the quick brown fox", silence_s=1.0))
            return await rest_of(socket)

    messages = run(test())
    assert messages[-1]["code"] == "internal" and "scripted failure" in messages[-1]["message"]


def test_clients_at_the_same_time_get_their_own_words() -> None:
    texts = ["the quick brown fox", "we met them again", "nobody knew why", "five trains left early."]

    async def one(live: Live, text: str) -> list[str]:
        async with talking(live) as (socket, _):
            await send(socket, speech(text, silence_s=1.0))
            await socket.send(FINISH)
            return text_of(await rest(socket))

    async def test() -> list[list[str]]:
        async with serving(make_engine(executor=None)) as live:
            return list(await asyncio.gather(*(one(live, text) for text in texts)))

    assert run(test()) == [[text] for text in texts]
