"""Clients that have nothing to say for a while, on each socket: who is there stays, who is gone is found out. And a server that has nothing
to say for a while, because it is behind: it says so. Time is put forward."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from dragoman.model.backend import Floats
from websockets.asyncio.client import ClientConnection, connect

from .fakes import speech
from .listeners import LoudnessVad, silence
from .live import Clock, Live, breath, make_engine, pcm, run, serving
from .patience import LoopClock, run_ahead
from .test_native import rest_of

START = json.dumps({"type": "start", "sample_rate": 16_000})
LONG_S = 10 * 60
WORDS = ("the quick brown fox", "jumps over a lazy dog.")
PATHS = {
    "native": "/v1/stream",
    "openai": "/v1/realtime?intent=transcription",
    "deepgram": "/v1/listen?encoding=linear16&sample_rate=16000",
}


@asynccontextmanager
async def quiet(live: Live, protocol: str) -> AsyncIterator[ClientConnection]:
    """A connection whose own library sends no pings."""
    async with connect(f"ws://127.0.0.1:{live.port}{PATHS[protocol]}", max_size=None, ping_interval=None) as socket:
        if protocol == "native":
            await socket.send(START)
            while not live.engine.streams:
                await breath()
        yield socket


async def say(socket: ClientConnection, protocol: str, text: str) -> None:
    """A turn of push-to-talk."""
    audio = pcm(speech(text))
    if protocol == "openai":
        rate = {"audio": {"input": {"format": {"type": "audio/pcm", "rate": 16_000}, "turn_detection": None}}}
        await socket.send(json.dumps({"type": "session.update", "session": {"type": "transcription", **rate}}))
        await socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": base64.b64encode(audio).decode()}))
        await socket.send(json.dumps({"type": "input_audio_buffer.commit"}))
    else:
        await socket.send(audio)
        await socket.send(json.dumps({"type": "commit" if protocol == "native" else "Finalize"}))


async def send(socket: ClientConnection, protocol: str, samples: Floats) -> None:
    """Audio as it is, after the first turn of push-to-talk."""
    audio = pcm(samples)
    if protocol == "openai":
        await socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": base64.b64encode(audio).decode()}))
    else:
        await socket.send(audio)


async def heard(socket: ClientConnection, all_told: list[dict[str, Any]] | None = None) -> str:
    """The next finished text. ``all_told``: takes everything up to it."""
    while True:
        told = json.loads(await socket.recv())
        if all_told is not None:
            all_told.append(told)
        assert told["type"] not in ("error", "Error"), told
        if told["type"] == "final":
            return told["text"].strip()
        if told["type"] == "conversation.item.input_audio_transcription.completed":
            return told["transcript"]
        if told["type"] == "Results" and told["is_final"]:
            return told["channel"]["alternatives"][0]["transcript"]


@pytest.mark.parametrize("protocol", PATHS)
def test_a_muted_client_is_not_cut_off(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Push-to-talk: a turn, ten minutes of nothing, not even a keep-alive, and a turn."""

    async def test() -> tuple[list[str], int]:
        async with serving(make_engine()) as live, quiet(live, protocol) as socket:
            clock, texts = LoopClock(live, monkeypatch), list[str]()
            for text in WORDS:
                await clock.forward(LONG_S)
                await say(socket, protocol, text)
                texts.append(await heard(socket))
            return texts, live.engine.opened_count

    assert run_ahead(test()) == (list(WORDS), 1)


@pytest.mark.parametrize("protocol", PATHS)
def test_a_client_that_is_gone_is_found_out(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that fell asleep: its connection is open, and nobody answers."""

    async def test() -> tuple[dict[str, Any], int | None, int]:
        async with serving(make_engine()) as live, quiet(live, protocol) as socket:
            await say(socket, protocol, WORDS[0])
            await heard(socket)
            clock = LoopClock(live, monkeypatch)
            socket.transport.pause_reading()
            await clock.forward(50, answered=False)
            (stream,) = live.engine.streams.values()
            assert stream.detached_s is None, "not yet: an answer may be late"
            await clock.forward(20, step_s=5, answered=False)
            while stream.id in live.engine.streams and stream.detached_s is None:
                await breath()
            left = len(live.engine.streams)
            socket.transport.resume_reading()
            return (await rest_of(socket))[-1], socket.close_code, left

    told, code, left = run_ahead(test())
    said = told["error"] if protocol == "openai" else told
    assert "idle" in (said.get("code"), said.get("variant")) and code == 1008
    assert "nothing came for 60 s" in said["description" if protocol == "deepgram" else "message"]
    assert left == (1 if protocol == "native" else 0), "the native session waits for its client"


def test_who_was_found_gone_may_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> tuple[dict[str, Any], str]:
        async with serving(make_engine()) as live:
            async with quiet(live, "native") as socket:
                ready = json.loads(await socket.recv())
                await socket.send(pcm(speech(WORDS[0])))
                socket.transport.pause_reading()
                await LoopClock(live, monkeypatch).forward(70, answered=False)
                socket.transport.abort()
            async with connect(live.ws) as socket:
                await socket.send(json.dumps({"type": "resume", "session": ready["session"], "after_seq": 0}))
                again = json.loads(await socket.recv())
                await socket.send(json.dumps({"type": "commit"}))
                return again, await heard(socket)

    again, text = run_ahead(test())
    assert again["resumed"] and text == WORDS[0]


def test_pings_do_not_stand_for_the_first_message(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> tuple[dict[str, Any], int | None]:
        async with serving(make_engine()) as live, connect(live.ws, ping_interval=None) as socket:
            await LoopClock(live, monkeypatch).forward(15, step_s=2.5, answered=False)
            return (await rest_of(socket))[-1], socket.close_code

    told, code = run_ahead(test())
    assert (told["code"], code) == ("idle", 1008) and "nothing came for 10 s" in told["message"]


@pytest.mark.parametrize("protocol", ["openai", "deepgram"])
def test_pings_get_through_to_a_server_that_is_behind(protocol: str) -> None:
    """Their libraries give a connection up whose ping is not answered in 20 s, and none of these protocols can come back."""

    async def test() -> None:
        async with serving(make_engine(queue_ms=1000)) as live, quiet(live, protocol) as socket:
            await say(socket, protocol, WORDS[0])
            await heard(socket)
            (stream,) = live.engine.streams.values()
            stream.prepare = lambda: False  # type: ignore[method-assign]  # nothing is heard any more
            for _ in range(16):
                await send(socket, protocol, np.tile(speech(WORDS[0]), 10))
            await (await socket.ping())
            assert stream.inbox.waiting_ms > 60_000

    run(test())


class PacedVad(LoudnessVad):
    """As on a machine that takes ``pace`` seconds for each second of audio."""

    def __init__(self, clock: Clock, pace: float) -> None:
        self._clock, self._pace = clock, pace

    def is_speech(self, frame: Floats) -> bool:
        self._clock.now_s += self._pace * len(frame) / 16_000
        return super().is_speech(frame)


def told_at(pace: float, protocol: str) -> list[dict[str, Any]]:
    """All that a client is told that says a little, then sends half a minute of silence at once and says a little more."""

    async def test() -> list[dict[str, Any]]:
        clock, told = Clock(), list[dict[str, Any]]()
        engine = make_engine(queue_ms=1000, clock=clock, make_vad=lambda: PacedVad(clock, pace))
        async with serving(engine) as live, quiet(live, protocol) as socket:
            await say(socket, protocol, WORDS[0])
            assert await heard(socket, told) == WORDS[0]
            (stream,) = live.engine.streams.values()
            stream.prepare = lambda: False  # type: ignore[method-assign]  # until all is there
            for _ in range(3):  # a message has its limit
                await send(socket, protocol, silence(10.0))
            while stream.inbox.waiting_ms < 30_000:
                await breath()
            del stream.prepare
            await say(socket, protocol, WORDS[1])
            assert await heard(socket, told) == WORDS[1]
            return told

    return run(test())


def signs_of(told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Nobody has asked for interim results: one that comes all the same is a sign."""
    return [message for message in told if message["type"] == "dragoman.lag" or message["type"] == "Results" and not message["is_final"]]


def test_a_client_of_openais_protocol_is_told_that_the_server_is_behind() -> None:
    """Beyond 5 s, each time that this has doubled, and once when all is heard that was sent."""
    signs = signs_of(told_at(4.0, "openai"))
    assert all(set(sign) == {"type", "event_id", "behind_ms"} for sign in signs)
    first, second, third, last = [sign["behind_ms"] for sign in signs]
    assert 5_000 < first <= 10_000 < second <= 20_000 < third <= 25_000 and last < 2_500


def test_a_client_of_deepgrams_protocol_is_told_that_the_server_is_behind() -> None:
    """At the same times, by empty results that end where the audio is heard so far: from that its users reckon how late their text is."""
    signs = signs_of(told_at(4.0, "deepgram"))
    assert all((sign["channel"]["alternatives"][0]["transcript"], sign["duration"]) == ("", 0) for sign in signs)
    assert [sign["start"] for sign in signs] == pytest.approx([3.4, 5.2, 8.4, 31.4], abs=0.8)


@pytest.mark.parametrize("protocol", ["openai", "deepgram"])
def test_a_server_that_hears_faster_than_a_client_may_speak_is_not_behind(protocol: str) -> None:
    """However much has been sent at once."""
    assert signs_of(told_at(0.5, protocol)) == []
