"""Audio on its way in, events on their way out."""

from __future__ import annotations

import pytest
from dragoman.model.errors import DragomanError
from dragoman.stream.events import Clocks, Ended
from dragoman.stream.inbox import Audio, Commit, EventLog, Inbox, Lost, Over
from hypothesis import given
from hypothesis import strategies as st


def drain(inbox: Inbox) -> list[object]:
    pieces: list[object] = []
    while not inbox.empty:
        pieces.append(inbox.take())
    return pieces


@given(st.lists(st.integers(1, 30_000), max_size=8), st.sampled_from([8000, 16000, 44100]), st.integers(1, 3))
def test_what_goes_in_comes_out_in_slices(sizes: list[int], sample_rate: int, channels: int) -> None:
    inbox = Inbox(sample_rate, channels, "int16")
    whole = b""
    for number, size in enumerate(sizes):
        part = bytes([number % 256]) * (size * 2 * channels)
        inbox.put(part)
        whole += part
    assert inbox.received_samples == sum(sizes)
    pieces = [piece for piece in drain(inbox) if isinstance(piece, Audio)]
    assert b"".join(piece.pcm for piece in pieces) == whole
    assert all(len(piece.pcm) <= sample_rate * channels * 2 // 4 for piece in pieces)
    assert all(len(piece.pcm) % (2 * channels) == 0 for piece in pieces)
    assert inbox.waiting_ms == 0


def test_a_client_that_sends_sample_by_sample_costs_no_more() -> None:
    inbox = Inbox(16_000, 1, "int16")
    for number in range(10_000):
        inbox.put(number.to_bytes(2, "little"))
    pieces = [piece.pcm for piece in drain(inbox) if isinstance(piece, Audio)]
    assert len(pieces) == 3 and b"".join(pieces) == b"".join(number.to_bytes(2, "little") for number in range(10_000))


def test_marks() -> None:
    inbox = Inbox(16_000, 1, "int16", high_ms=1000)
    inbox.put(bytes(2 * 15_999))
    assert not inbox.full
    inbox.put(bytes(2))
    assert inbox.full and not inbox.has_room
    while not inbox.has_room:
        inbox.take()
    assert inbox.waiting_ms <= 500 and not inbox.full


def test_half_a_sample_is_refused_and_changes_nothing() -> None:
    inbox = Inbox(16_000, 2, "float32")
    with pytest.raises(ValueError, match="7 bytes of audio, expected a multiple of 8"):
        inbox.put(bytes(7))
    with pytest.raises(ValueError, match="0 bytes"):
        inbox.put(b"")
    assert inbox.empty and inbox.received_samples == 0


def test_a_gap_keeps_its_place_and_its_length() -> None:
    inbox = Inbox(16_000, 1, "int16")
    inbox.put(bytes(200))
    inbox.lose(200_000)
    inbox.put(bytes(2))
    pieces = drain(inbox)
    assert [type(piece) for piece in pieces] == [Audio, Lost, Lost, Lost, Audio]
    assert sum(piece.samples for piece in pieces if isinstance(piece, Lost)) == 200_000
    assert inbox.received_samples == 200_101


def test_nothing_comes_after_the_end() -> None:
    inbox = Inbox(16_000, 1, "int16")
    inbox.finish()
    inbox.finish()
    assert drain(inbox) == [Over()]
    with pytest.raises(DragomanError, match="audio after finish"):
        inbox.put(bytes(2))
    with pytest.raises(DragomanError, match="audio after finish"):
        inbox.lose(2)


def event(number: int) -> Ended:
    return Ended(Clocks(number, number, number), number)


def test_the_log_keeps_the_newest() -> None:
    log = EventLog(keep=10)
    assert log.has(0) and log.after(0) == [] and not log.has(1)
    for number in range(1, 26):
        log.add(event(number))
    assert log.after(20) == [(seq, event(seq)) for seq in range(21, 26)]
    assert log.has(15) and not log.has(14) and log.has(25) and not log.has(26)
    assert [seq for seq, _ in log.after(15)] == list(range(16, 26))


def test_a_slow_reader_fills_the_log() -> None:
    log = EventLog(keep=10)
    for number in range(5):
        assert not log.full
        log.add(event(number))
    assert log.full
    log.sent_seq = 1
    assert not log.full


def test_a_flood_of_commits_has_to_wait() -> None:
    inbox = Inbox(16_000, 1, "int16", high_ms=1000)
    inbox.put(bytes(320))
    commits = 0
    while not inbox.full:
        inbox.commit()
        commits += 1
    assert commits < 30 and inbox.received_samples == 160, "a commit is no audio"
    assert [type(piece) for piece in drain(inbox)] == [Audio, *[Commit] * commits]
    assert inbox.has_room and inbox.waiting_ms == 0
