"""A few hundred hostile inputs for each target of ``fuzzing``, the same ones every time; ``python -m tests.fuzz`` goes on from here."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("av", reason="needs the extra video")

from .fuzz import SHARES  # noqa: E402
from .fuzzing import TARGETS, seeds  # noqa: E402

# A WAV file whose samples are of a kind that nobody knows.
STRANGE_WAV = b"RIFF\x64\x1f\x00\x00WAVEfmt \x10\x00\x00\x00\x34\x12\x01\x00\x80>\x00\x00\x00}\x00\x00\x02\x00\x10\x00data@\x1f\x00\x00"

# Those that talk to a whole server, or to FFmpeg's threads, take milliseconds each.
SLOW = {"pcm_audio": 40, "container": 30, "sound_file": 40, "http": 30, "frames": 25, "conversation": 25, "form": 60}
TEXT_OF_NO_TEXT = b"\x81\x83\x00\x00\x00\x00\xff\xfe\xfd"
# What fuzzers have found, each once an exception, or a line in the log for a client's fault.
FOUND = [
    ("sound_file", STRANGE_WAV + bytes(8000)),
    # audio that was received stood first among what is sent again: an empty message
    ("numbers", bytes(30) + b"\x0f\x00\x02\x1e\x00\x00\x27\x00\x00=\x00\x00F\x36\x00b\x00\x00"),
    ("native_messages", b'{"type": {"type": "start"}}'),  # an answer of a server to our client
    ("openai_messages", b'{"type": "input_audio_buffer.commi", "event_id": "\\ud800"}'),  # half a character, quoted in the answer
    ("openai_translation_messages", b'{"type": "session.clos", "event_id": "\\ud800"}'),
    ("gate", b"/v1/info\norigin: http://[\n"),  # an address that cannot be taken apart
    ("frames", b"\x01" + TEXT_OF_NO_TEXT),  # text that is no UTF-8: a traceback in the log for each
    ("conversation", bytes(24) + b"\x01\x80"),  # the same after the server has closed
    ("frames", b"\x01\x81\x80\x00\x00\x00\x00" + b"\xff" * 40),  # broken frames while the server is about to answer
    ("http", b"GET /v1/stream HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
     b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"),  # a refusal: an error in the log for each
]  # fmt: skip


def mutated(seed: bytes, changes: int, number: int) -> bytes:
    """A good input with some bytes overwritten, doubled or taken away."""
    dice, data = random.Random(number), bytearray(seed)
    for _ in range(changes):
        place = dice.randrange(len(data) + 1)
        size = dice.choice((1, 1, 2, 8, 100))
        kind = dice.randrange(4)
        if kind == 0:
            data[place : place + size] = dice.randbytes(size)
        elif kind == 1:
            del data[place : place + size]
        elif kind == 2:
            data[place:place] = data[place : place + size] * dice.choice((1, 1, 30))
        else:
            data[place : place + 1] = dice.choice((b'"\\ud800"', b"1e999", b"NaN", b"[" * 300, b"{}", b"\xff\xff\xff\xff", b"\x00", b"-1"))
    return bytes(data)


@pytest.mark.parametrize("name", TARGETS)
def test_good_inputs(name: str) -> None:
    for seed in seeds(name):
        TARGETS[name](seed)
    TARGETS[name](b"")


@pytest.mark.parametrize("name", TARGETS)
def test_hostile_inputs(name: str) -> None:
    good = seeds(name)

    @settings(max_examples=SLOW.get(name, 60), deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(st.binary(max_size=300) | st.builds(mutated, st.sampled_from(good), st.integers(1, 6), st.integers(0, 2**32)))
    def holds(data: bytes) -> None:
        TARGETS[name](data)

    holds()


@pytest.mark.parametrize(("name", "data"), FOUND)
def test_what_was_found_once(name: str, data: bytes) -> None:
    TARGETS[name](data)


def test_every_target_has_its_share_of_the_long_run() -> None:
    assert set(SHARES) == set(TARGETS) and sum(SHARES.values()) > 1_000_000
