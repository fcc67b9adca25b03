"""Ogg and WebM on the sockets: heard while they arrive, however they are cut, and whatever is wrong with them."""

from __future__ import annotations

import asyncio
import io
import json
import sys
import threading
from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
import pytest
import soundfile
from dragoman.model.errors import AudioFormatError
from dragoman.stream.container import ContainerDecoder
from dragoman.stream.events import Dropped, Event, Final
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import connect

from .containers import LIVE_WEBM, SHORT_PAGES, container, ogg_pages
from .fakes import speech
from .live import breath, make_engine, rest, run, serving, talking, text_of
from .test_native import rest_of

av = pytest.importorskip("av", reason="needs the extra video")

TEXT = "the quick brown fox jumps over a lazy dog."
START: dict[str, Any] = {"sample_rate": 48_000, "encoding": "container"}
FINISH = json.dumps({"type": "finish"})
SAMPLES = speech(TEXT, silence_s=1.0)
LENGTH = 3 * len(SAMPLES)  # at 48 kHz


@cache
def recorded(kind: str) -> bytes:
    """What a sender makes of SAMPLES."""
    if kind == "vorbis":
        out = io.BytesIO()
        soundfile.write(out, SAMPLES, 16_000, format="OGG", subtype="VORBIS")
        return out.getvalue()
    makers = {
        "MediaRecorder": lambda: container(SAMPLES, "webm", **LIVE_WEBM),
        "webm": lambda: container(SAMPLES, "webm"),
        "ogg": lambda: container(SAMPLES, "ogg", **SHORT_PAGES),
        "ogg pages of a second": lambda: container(SAMPLES, "ogg"),
        "flac": lambda: container(SAMPLES, "ogg", "flac", rate=16_000),
        "film": lambda: container(SAMPLES, "webm", picture=True),
        "stereo": lambda: container(SAMPLES, "webm", layout="stereo"),
    }
    return makers[kind]()


KINDS = ("MediaRecorder", "webm", "ogg", "ogg pages of a second", "vorbis", "flac", "film", "stereo")


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """Bytes → messages."""
    ends = [*sorted({place for place in places if 0 < place < len(data)}), len(data)]
    return [data[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def every(data: bytes, size: int) -> list[bytes]:
    return cut(data, range(0, len(data), size))


def decoded(messages: Iterable[bytes]) -> tuple[bytes, list[tuple[int, int]], str]:
    """PCM, (where, how long) of the holes in it, in samples, and what went wrong. Leaves no thread behind."""
    decoder, pcm, holes, error = ContainerDecoder(1), b"", list[tuple[int, int]](), ""
    try:
        for message in messages:
            for piece in decoder.feed(message):
                if isinstance(piece, int):
                    holes.append((len(pcm) // 2, piece))
                else:
                    pcm += piece
        for piece in decoder.end():
            pcm += piece if isinstance(piece, bytes) else b""
    except AudioFormatError as broken:
        error = str(broken)
    decoder.close()
    return pcm, holes, error


async def heard(messages: Iterable[bytes]) -> list[Event]:
    """Events of a stream of the engine that takes these messages."""
    async with make_engine(block_ms=320) as engine:
        stream = await engine.open(sample_rate=48_000)
        stream.decoder = ContainerDecoder(1)
        stream.attach(owner := object())
        sending = asyncio.create_task(send_to(stream, messages))
        events = [item[1] async for item in stream.follow(owner) if isinstance(item, tuple)]
        await sending
        return events


async def send_to(stream: Any, messages: Iterable[bytes]) -> None:
    for message in messages:
        await stream.hear(message)
    await stream.end()


def text(events: list[Event]) -> str:
    return " ".join(event.text for event in events if isinstance(event, Final) and event.text)


# What is right


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_heard_over_the_socket(kind: str) -> None:
    async def test() -> tuple[dict[str, Any], list[dict[str, Any]]]:
        async with serving(make_engine()) as live, talking(live, **START) as (socket, ready):
            for message in every(recorded(kind), 3000):
                await socket.send(message)
            await socket.send(FINISH)
            return ready, await rest(socket)

    ready, messages = run(test())
    assert ready["sample_rate"] == 48_000 and ready["received_bytes"] == 0
    assert text_of(messages) == [TEXT]
    assert abs(messages[-1]["audio_ms"] - LENGTH // 48) <= 20
    assert {message["received_bytes"] for message in messages if message["type"] == "progress"} <= set(range(len(recorded(kind)) + 1))


@given(st.sampled_from(["MediaRecorder", "ogg"]), st.lists(st.integers(1, 60_000), max_size=12), st.integers(1, 400))
@settings(max_examples=12)
def test_any_cutting_into_messages_gives_the_same_events(kind: str, places: list[int], head: int) -> None:
    """``head``: how far the beginning comes byte by byte, where headers are."""
    data = recorded(kind)
    events = run(heard(cut(data, [*range(head), *places])))
    assert events == run(heard([data]))
    assert text(events) == TEXT


@pytest.mark.parametrize("kind", ["MediaRecorder", "ogg", "film"])
def test_audio_is_heard_as_soon_as_it_is_there(kind: str) -> None:
    """A live stream must not wait for FFmpeg to look ahead, nor for the message after."""
    data = recorded(kind)
    for place in range(900, len(data), len(data) // 7):
        decoder = ContainerDecoder(1)
        at_once = sum(len(piece) // 2 for piece in decoder.feed(data[:place]) if isinstance(piece, bytes))
        held_back = sum(len(piece) // 2 for piece in decoder.end() if isinstance(piece, bytes))
        decoder.close()
        assert at_once > 0 and held_back <= 960, "at most the packet that has just begun"


def test_one_recording_after_another() -> None:
    """MediaRecorder that is stopped and started again, ffmpeg that was restarted: a new header in the middle."""
    for kind in ("MediaRecorder", "ogg"):
        pcm, holes, error = decoded(every(recorded(kind) * 2, 1000))
        assert (holes, error) == ([], "") and abs(len(pcm) // 2 - 2 * LENGTH) <= 960


def test_a_lost_connection_goes_on_with_the_byte_that_is_missing() -> None:
    data = recorded("MediaRecorder")

    async def test() -> tuple[dict[str, Any], list[dict[str, Any]]]:
        async with serving(make_engine()) as live:
            async with talking(live, **START) as (socket, ready):
                for message in every(data[:30_000], 700):
                    await socket.send(message)
                while live.engine.active[0].received_bytes < 20_000:  # type: ignore[operator]
                    await breath()
                socket.transport.abort()
            async with connect(live.ws) as socket:
                await socket.send(json.dumps({"type": "resume", "session": ready["session"], "after_seq": 0}))
                again = json.loads(await socket.recv())
                for message in every(data[again["received_bytes"] :], 5000):
                    await socket.send(message)
                await socket.send(FINISH)
                return again, await rest(socket)

    again, messages = run(test())
    assert again["resumed"] and 20_000 <= again["received_bytes"] <= 30_000
    assert text_of(messages) == [TEXT] and abs(messages[-1]["audio_ms"] - LENGTH // 48) <= 20


# What is wrong


def test_a_hole_in_the_stream_is_told_and_keeps_its_time() -> None:
    """Pages that never came: 400 ms of the last pause."""
    pages = ogg_pages(recorded("ogg"))
    holed = b"".join(pages[:-30] + pages[-10:])
    pcm, holes, error = decoded(every(holed, 999))
    assert error == "" and [length for _, length in holes] == [20 * 960] and len(pcm) // 2 + 20 * 960 == LENGTH
    events = run(heard([holed]))
    assert text(events) == TEXT and sum(event.duration_ms for event in events if isinstance(event, Dropped)) == 400


@pytest.mark.parametrize("rate", [10, 7_999])
def test_sound_at_a_rate_that_cannot_be_is_refused(rate: int) -> None:
    """200 bytes of silence at 10 Hz would be two hours at 48 kHz."""
    sink = io.BytesIO()
    with av.open(sink, "w", format="ogg") as out:
        track = out.add_stream("flac", rate=rate, options={"frame_size": "65535"})
        track.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 65_535), np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.pts = rate, 0
        out.mux([*track.encode(frame), *track.encode(None)])
    assert len(sink.getvalue()) < 500
    pcm, holes, error = decoded([sink.getvalue()])
    assert (pcm, holes) == (b"", []) and f"holds sound at {rate} Hz, expected 8000 to 192000 Hz" in error


def test_a_hole_in_a_second_recording_is_told_too() -> None:
    """Its times begin anew."""
    data = recorded("ogg")
    pages = ogg_pages(data)
    holed = b"".join(pages[:-30] + pages[-10:])
    for stream in (data + holed, holed + data):
        pcm, holes, error = decoded(every(stream, 999))
        assert error == "" and [length for _, length in holes] == [20 * 960]
        assert abs(len(pcm) // 2 + 20 * 960 - 2 * LENGTH) <= 960


@pytest.mark.parametrize("kind", ["MediaRecorder", "ogg", "flac", "film"])
def test_what_was_cut_off_is_heard_up_to_there(kind: str) -> None:
    data = recorded(kind)
    whole, _, _ = decoded([data])
    for place in (*range(1, 900, 53), *range(2000, len(data), len(data) // 9)):
        pcm, holes, error = decoded(every(data[:place], 500))
        assert holes == [] and whole.startswith(pcm[:-2400]), "but for the last 25 ms, where a resampler ends"
        assert bool(pcm) != bool(error), (place, error)  # an error only where nothing could be heard
        assert len(pcm) >= len(whole) * (place - 20_000) // len(data) or not pcm


@given(
    st.sampled_from(["MediaRecorder", "ogg", "flac"]),
    st.lists(st.tuples(st.integers(0, 60_000), st.binary(min_size=1, max_size=60)), max_size=4),
)
@settings(max_examples=25)
def test_a_damaged_stream_is_heard_or_refused_and_never_hangs(kind: str, wounds: list[tuple[int, bytes]]) -> None:
    data = bytearray(recorded(kind))
    for place, part in wounds:
        data[place : place + len(part)] = part
    pcm, holes, error = decoded(every(bytes(data), 4000))
    # Damaged times make holes that never were, but none longer than ten minutes; damaged audio is no longer than it was.
    assert len(pcm) // 2 <= LENGTH * 1.5 and all(length <= 600 * 48_000 for _, length in holes)
    first = min((place for place, _ in wounds), default=len(data))
    if first > 40_000:
        before, _, _ = decoded([recorded(kind)[: first - 16_000]])
        assert pcm.startswith(before), "what came before the damage is heard"
    assert error or len(pcm) // 2 + sum(length for _, length in holes) > LENGTH // 2 or wounds


@given(st.sampled_from([b"OggS", b"\x1a\x45\xdf\xa3"]), st.binary(max_size=3000), st.integers(1, 3000))
@settings(max_examples=25)
def test_garbage_behind_the_first_bytes_is_refused(mark: bytes, rest: bytes, size: int) -> None:
    pcm, holes, error = decoded(every(mark + rest, size))
    assert pcm == b"" and holes == [] and error


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([b"RIFF", bytes(100)], "begins as a WAV file, expected Ogg or WebM; of samples the encoding has to be named"),
        ([bytes(200)], "begins with 00000000, expected Ogg or WebM"),
        ([b"Og"], "2 bytes of a container end before any sound"),
        ([b""], "0 bytes of audio"),
        ([recorded("MediaRecorder")[:300]], "the WebM stream is broken after 0.00 s"),
        ([container(SAMPLES[:16_000], "webm", "")], "holds video and no sound track, expected one"),
        ([container(SAMPLES[:16_000], "matroska", "aac")], "holds aac, expected one of opus, vorbis, flac"),
    ],
)
def test_what_is_no_such_stream_ends_the_session(messages: list[bytes], says: str) -> None:
    async def test() -> tuple[list[dict[str, Any]], int | None, int]:
        async with serving(make_engine()) as live, talking(live, **START) as (socket, _):
            for message in (*messages, FINISH):
                await socket.send(message)
            return await rest_of(socket), socket.close_code, len(live.engine.active)

    told, code, left = run(test())
    assert (told[-1]["type"], told[-1]["code"], code, left) == ("error", "bad_audio", 1008, 0)
    assert says in told[-1]["message"]
    assert not [message for message in told if message["type"] == "ended"]


def test_what_was_heard_before_the_fault_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that gives up in the middle, whatever of: all words before it are final before the error comes."""
    feed = ContainerDecoder.feed

    def fragile(self: ContainerDecoder, data: bytes) -> Any:
        if self.received_bytes > 30_000:
            raise AudioFormatError("broken after 2.40 s")
        yield from feed(self, data)

    monkeypatch.setattr(ContainerDecoder, "feed", fragile)

    async def test() -> tuple[list[dict[str, Any]], int | None]:
        async with serving(make_engine()) as live, talking(live, **START) as (socket, _):
            for message in (*every(recorded("MediaRecorder"), 1000), FINISH):
                await socket.send(message)
            return await rest_of(socket), socket.close_code

    told, code = run(test())
    (said,) = text_of(told)
    assert TEXT.startswith(said) and len(said.split()) >= 5
    assert (told[-1]["code"], told[-1]["message"], code) == ("bad_audio", "broken after 2.40 s", 1008)


def test_a_stream_without_end_or_sound_does_not_fill_the_memory() -> None:
    decoder = ContainerDecoder(1)
    header = recorded("MediaRecorder")[:300]
    void = b"\xec\x01\xff\xff\xff\xff\xff\xff\xfe"  # an element of EBML that is to be skipped, and never ends
    with pytest.raises(AudioFormatError, match=r"8\d{6} bytes of WebM without any sound, expected some within 8388608"):
        for message in (header + void, *(bytes(1 << 20) for _ in range(10))):
            assert list(decoder.feed(message)) == []


def test_times_that_jump_are_no_audio_that_was_lost() -> None:
    """A page that claims to end in a million seconds: the stream goes on, and no silence is made up."""
    pages = ogg_pages(recorded("ogg"))
    far = bytearray(pages[100])
    far[6:14] = (48_000_000_000).to_bytes(8, "little")
    pcm, holes, _ = decoded([b"".join([*pages[:100], bytes(far), *pages[101:]])])  # its checksum is wrong now, so the page is left out
    assert len(pcm) // 2 >= LENGTH - 5 * 960 and sum(length for _, length in holes) <= 5 * 960


def test_no_thread_is_left_behind() -> None:
    def threads() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "dragoman-container"]

    async def test() -> int:
        async with serving(make_engine(resume_s=0.0)) as live, talking(live, **START) as (socket, _):
            await socket.send(recorded("MediaRecorder")[:20_000])
            while not live.engine.active[0].received_bytes:
                await breath()
            running = len(threads())
            socket.transport.abort()
            while live.engine.active[0].detached_s is None:
                await breath()
            live.engine.tick()
            return running

    assert run(test()) == 1
    for thread in threads():
        thread.join(5)
    assert threads() == []


def test_without_pyav_it_is_refused_and_takes_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)

    async def test() -> tuple[dict[str, Any], int]:
        async with serving(make_engine()) as live, talking(live, **START) as (_, told):
            return told, live.engine.opened_count

    told, opened = run(test())
    assert (told["code"], opened) == ("bad_audio", 0) and 'pip install "dragoman[video]"' in told["message"]


def test_two_channels_come_out_as_they_were_asked_for() -> None:
    decoder = ContainerDecoder(2)
    pcm = b"".join(piece for piece in decoder.feed(recorded("MediaRecorder")) if isinstance(piece, bytes))
    decoder.close()
    both = np.frombuffer(pcm, "<i2").reshape(-1, 2)
    assert abs(len(both) - LENGTH) <= 960 and np.array_equal(both[:, 0], both[:, 1])
