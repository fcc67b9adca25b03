"""Opus on the socket: words arrive, times are of the decoder's clock, what is no packet is said."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import pytest
from dragoman.model.errors import AudioFormatError
from dragoman.stream.opus import OpusDecoder
from websockets.asyncio.client import connect

from .fakes import speech
from .live import make_engine, rest, run, serving, talking, text_of
from .test_native import rest_of

pytest.importorskip("av", reason="needs the extra video")

from .opus import packets  # noqa: E402

START: dict[str, Any] = {"sample_rate": 48_000, "encoding": "opus"}
FINISH = json.dumps({"type": "finish"})
TEXT = "the quick brown fox"


@pytest.mark.parametrize(("packet_ms", "channels"), [(20, 1), (60, 2)])
def test_packets_are_heard(packet_ms: int, channels: int) -> None:
    sent = packets(speech(TEXT, silence_s=1.0), packet_ms=packet_ms, channels=channels)

    async def test() -> tuple[dict[str, Any], list[dict[str, Any]]]:
        async with serving(make_engine()) as live, talking(live, channels=channels, **START) as (socket, ready):
            for packet in sent:
                await socket.send(packet)
            await socket.send(FINISH)
            return ready, await rest(socket)

    ready, messages = run(test())
    assert ready["sample_rate"] == 48_000
    assert text_of(messages) == [TEXT]
    assert messages[-1]["audio_ms"] == len(sent) * packet_ms


def test_the_decoder_outlives_a_lost_connection() -> None:
    sent = packets(speech(TEXT, silence_s=1.0))

    async def test() -> list[dict[str, Any]]:
        async with serving(make_engine()) as live:
            async with talking(live, **START) as (socket, ready):
                for packet in sent[:40]:
                    await socket.send(packet)
                socket.transport.abort()
            async with connect(live.ws) as socket:
                await socket.send(json.dumps({"type": "resume", "session": ready["session"], "after_seq": 0}))
                again = json.loads(await socket.recv())
                packet_index, inside = divmod(again["received_samples"], 960)
                assert again["resumed"] and inside == 0 and packet_index <= 40
                for packet in sent[packet_index:]:
                    await socket.send(packet)
                await socket.send(FINISH)
                return await rest(socket)

    messages = run(test())
    assert text_of(messages) == [TEXT] and messages[-1]["audio_ms"] == len(sent) * 20


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (b"", "an Opus packet of 0 bytes"),
        (b"OggS" + bytes(200), "begins as an Ogg file, expected raw Opus packets"),
        (b"\x1a\x45\xdf\xa3" + bytes(200), "begins as a WebM or Matroska file"),
        (b"\xff\xff", "2 bytes that begin with ffff are no Opus packet"),
    ],
)
def test_what_is_no_packet_ends_the_session(bad: bytes, says: str) -> None:
    async def test() -> tuple[dict[str, Any], int | None, int]:
        async with serving(make_engine()) as live, talking(live, **START) as (socket, _):
            before = [] if "begins as" in says else packets(speech("the"))
            for message in (*before, bad):
                await socket.send(message)
            return (await rest_of(socket))[-1], socket.close_code, len(live.engine.active)

    told, code, left = run(test())
    assert (told["type"], told["code"], code, left) == ("error", "bad_audio", 1008, 0)
    assert says in told["message"]


def test_without_pyav_opus_is_refused_and_takes_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)

    async def test() -> tuple[dict[str, Any], int]:
        async with serving(make_engine()) as live, talking(live, **START) as (_, told):
            return told, live.engine.opened_count

    told, opened = run(test())
    assert (told["code"], opened) == ("bad_audio", 0) and 'pip install "dragoman[video]"' in told["message"]


def test_garbage_is_decoded_or_refused_and_the_decoder_goes_on() -> None:
    """What an encoder never made is an AudioFormatError or at most 120 ms of audio; neither harms the packets after it."""
    decoder, random = OpusDecoder(1), np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        try:
            assert len(decoder.decode(random.bytes(int(random.integers(1, 200))))) <= 2 * 5760
        except AudioFormatError:
            refused += 1
    assert 0 < refused < 300
    tone = (0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)).astype(np.float32)
    heard = b"".join(decoder.decode(packet) for packet in packets(tone))
    assert np.abs(np.frombuffer(heard, "<i2")[24_000:]).max() == pytest.approx(0.5 * 32767, rel=0.1)
