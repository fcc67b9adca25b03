"""What waits at the two ends of a stream: audio on its way in, events on their way out. Pure and bounded."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from ..model.errors import DragomanError
from .events import Event
from .pcm import Encoding

SLICE_MS = 240  # a job takes no more audio at once: the voice detector runs in it, and other sessions wait meanwhile
GAP_SLICE_MS = 5_000
_MOST_BYTES = 32 * 1024 * 1024  # of audio that waits, however many channels it has
_COMMIT_MS = 40  # a commit takes as much room as a frame of audio, so that a flood of them has to wait too
_SAMPLE_BYTES = {"int16": 2, "float32": 4}


@dataclass(frozen=True, slots=True)
class Audio:
    """Whole samples of all channels; grows while it waits."""

    pcm: bytearray


@dataclass(frozen=True, slots=True)
class Lost:
    """``samples`` of each channel that the sender lost."""

    samples: int


@dataclass(frozen=True, slots=True)
class Commit:
    """The sender ends a turn here."""


@dataclass(frozen=True, slots=True)
class Over:
    """No more audio comes. ``error``: because it was broken here."""

    error: Exception | None = None


Piece = Audio | Lost | Commit | Over


class Inbox:
    """Audio that has arrived and is not yet heard, with a high mark (``full``) and a low one (``has_room``)."""

    def __init__(self, sample_rate: int, channels: int, encoding: Encoding, *, high_ms: int = 10_000) -> None:
        self.sample_rate = sample_rate
        self.received_samples = 0  # of each channel, gaps included
        self.finished = False
        self.step_bytes = _SAMPLE_BYTES[encoding] * channels
        self._slice_bytes = max(1, sample_rate * SLICE_MS // 1000) * self.step_bytes
        self._slice_lost = sample_rate * GAP_SLICE_MS // 1000
        self._commit_samples = sample_rate * _COMMIT_MS // 1000
        self._pieces: deque[Piece] = deque()
        self._waiting_samples = 0
        self._high_samples = min(sample_rate * high_ms // 1000, _MOST_BYTES // self.step_bytes)

    @property
    def received_ms(self) -> int:
        return self.received_samples * 1000 // self.sample_rate

    @property
    def waiting_ms(self) -> int:
        return self._waiting_samples * 1000 // self.sample_rate

    @property
    def full(self) -> bool:
        """The sender has to wait, until ``has_room``."""
        return self._waiting_samples >= self._high_samples

    @property
    def crammed(self) -> bool:
        """No sender may send more, whatever becomes of it."""
        return self._waiting_samples >= _MOST_BYTES // self.step_bytes

    @property
    def has_room(self) -> bool:
        """Half of the high mark, so that sender and worker do not wake one another for every block."""
        return self._waiting_samples <= self._high_samples // 2

    @property
    def empty(self) -> bool:
        return not self._pieces

    def put(self, pcm: bytes) -> None:
        """Take audio in. Raises DragomanError after ``finish``; whether it is audio at all is for the session to say, but half
        a sample would shift everything after it, so that is an error at once (ValueError)."""
        self._check_open()
        if not pcm or len(pcm) % self.step_bytes:
            raise ValueError(f"{len(pcm)} bytes of audio, expected a multiple of {self.step_bytes}, at least one sample")
        last = self._pieces[-1] if self._pieces else None
        # A client that sends sample by sample must cost no more than one that does not.
        start = min(len(pcm), self._slice_bytes - len(last.pcm)) if isinstance(last, Audio) else 0
        if isinstance(last, Audio):
            last.pcm.extend(pcm[:start])
        for begin in range(start, len(pcm), self._slice_bytes):
            self._pieces.append(Audio(bytearray(pcm[begin : begin + self._slice_bytes])))
        self._count(len(pcm) // self.step_bytes)

    def lose(self, samples: int) -> None:
        """The sender lost ``samples``; the time goes on."""
        self._check_open()
        for start in range(0, samples, self._slice_lost):
            self._pieces.append(Lost(min(self._slice_lost, samples - start)))
        self._count(samples)

    def commit(self) -> None:
        """The sender ends a turn. Raises DragomanError after ``finish``."""
        self._check_open()
        self._pieces.append(Commit())
        self._waiting_samples += self._commit_samples

    def finish(self, error: Exception | None = None) -> None:
        """No more comes, because of ``error`` if there is one; a second call changes nothing."""
        if not self.finished:
            self.finished = True
            self._pieces.append(Over(error))

    def take(self) -> Piece:
        """The oldest piece. The inbox must not be empty."""
        piece = self._pieces.popleft()
        if isinstance(piece, Audio):
            self._waiting_samples -= len(piece.pcm) // self.step_bytes
        elif isinstance(piece, Lost):
            self._waiting_samples -= piece.samples
        elif isinstance(piece, Commit):
            self._waiting_samples -= self._commit_samples
        return piece

    def _check_open(self) -> None:
        if self.finished:
            raise DragomanError("audio after finish: the stream is over, expected a new session for more audio")

    def _count(self, samples: int) -> None:
        self.received_samples += samples
        self._waiting_samples += samples


class EventLog:
    """Numbered events, 1, 2, 3, …; the newest ``keep`` are kept for a client that comes back."""

    def __init__(self, keep: int = 2000) -> None:
        self.last_seq = 0
        self.sent_seq = 0  # handed to a client, which may yet have lost it
        self._keep = keep
        self._events: deque[tuple[int, Event]] = deque()

    @property
    def full(self) -> bool:
        """So many events wait for a slow reader that no more may be made."""
        return self.last_seq - self.sent_seq >= self._keep // 2

    def add(self, event: Event) -> None:
        self.last_seq += 1
        self._events.append((self.last_seq, event))
        while len(self._events) > self._keep:
            self._events.popleft()

    def has(self, after_seq: int) -> bool:
        """Whether every event after this number is still here, and the number is one that was given."""
        first = self._events[0][0] if self._events else self.last_seq + 1
        return first - 1 <= after_seq <= self.last_seq

    def after(self, seq: int) -> list[tuple[int, Event]]:
        """Events after this number, oldest first."""
        newest = self.last_seq - seq
        return [] if newest <= 0 else list(self._events)[-newest:]
