"""Sessions on disk, where the one who runs the server has asked for it: audio as WAV, events as JSON lines, for a set time.

Files are readable for the server's user only. A thread of its own writes, so that a slow disk holds nobody up; a session whose
audio waits there in too large an amount, or whose file cannot be written, is recorded no further and goes on.
"""

from __future__ import annotations

import logging
import os
import re
import struct
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Literal

from ..model.errors import ConfigError
from .pcm import Encoding

What = Literal["text", "audio", "both"]
_LOG = logging.getLogger(__name__)
_OURS = re.compile(r"dragoman-\d{8}T\d{6}Z-[0-9a-f]{12}\.(wav|jsonl)")  # nothing else is ever deleted
_DAY_S = 24 * 3600.0
_MOST_WAITING_BYTES = 64 * 1024 * 1024
_ENDLESS_BYTES = 0x7FFF_0000  # in a header: who reads it goes by the end of the file
_FORMATS: dict[Encoding, tuple[int, int]] = {"int16": (1, 2), "float32": (3, 4)}  # number of the WAV format, bytes of a sample


class Recorder:
    """All recordings of a server."""

    def __init__(
        self, folder: Path, what: What, days: float, *, clock: Callable[[], float] = time.time, executor: Executor | None = None
    ) -> None:
        """``clock``: seconds since 1970. ``executor``: where files are written, one after the other. Raises ConfigError for a folder that
        cannot be written to."""
        make_folder(folder)
        self.folder, self.what, self._kept_s = folder, what, days * _DAY_S
        self._clock = clock
        self._executor = executor or ThreadPoolExecutor(1, thread_name_prefix="dragoman-recorder")
        self._swept_s = -float("inf")

    def open(self, sample_rate: int, channels: int, encoding: Encoding) -> Recording:
        """A new session. Its files are made when there is something to write."""
        # Not the number of the session: whoever knows that may resume it.
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self._clock()))
        name = f"dragoman-{stamp}-{uuid.uuid4().hex[:12]}"
        wav = self.folder / f"{name}.wav" if self.what != "text" else None
        jsonl = self.folder / f"{name}.jsonl" if self.what != "audio" else None
        return Recording(wav, jsonl, wav_header(sample_rate, channels, encoding), self._executor)

    def sweep(self) -> None:
        """Delete what is too old. To be called often; looks into the folder at most once an hour, or ten times within the time kept."""
        now_s = self._clock()
        if now_s - self._swept_s >= min(3600.0, self._kept_s / 10):
            self._swept_s = now_s
            self._executor.submit(self._delete, now_s - self._kept_s)

    def close(self) -> None:
        """Wait until everything is written."""
        self._executor.shutdown()

    def _delete(self, before_s: float) -> None:
        try:
            for path in self.folder.iterdir():
                if _OURS.fullmatch(path.name) and path.lstat().st_mtime < before_s:
                    path.unlink()
        except OSError as error:
            _LOG.error("old recordings cannot be deleted: %s", error)


class Recording:
    """One session. All methods return at once."""

    def __init__(self, wav: Path | None, jsonl: Path | None, header: bytes, executor: Executor) -> None:
        self._wav_path, self._jsonl_path, self._header = wav, jsonl, header
        self._executor = executor
        self._wav: BinaryIO | None = None
        self._jsonl: BinaryIO | None = None
        self._waiting_bytes = 0
        self._over = False  # closed, or given up

    def audio(self, pcm: bytes) -> None:
        """Audio as the session hears it."""
        if self._wav_path is not None:
            self._submit(len(pcm), lambda: self._audio_file().write(pcm))

    def silence(self, size_bytes: int) -> None:
        """Audio that the sender lost: the times stay right, and the file system stores nothing for it."""
        if self._wav_path is not None:
            self._submit(0, lambda: self._audio_file().seek(size_bytes, os.SEEK_CUR))

    def event(self, line: str) -> None:
        """An event as JSON."""
        if self._jsonl_path is not None:
            data = line.encode() + b"\n"
            self._submit(len(data), lambda: self._text_file().write(data))

    def close(self) -> None:
        """Nothing more comes; a second call changes nothing."""
        if not self._over:
            self._over = True
            self._executor.submit(self._close)

    def _submit(self, size_bytes: int, write: Callable[[], object]) -> None:
        if self._over:
            return
        if self._waiting_bytes + size_bytes > _MOST_WAITING_BYTES:
            _LOG.error("a session is recorded no further: the disk does not keep up")
            self.close()
            return
        self._waiting_bytes += size_bytes
        self._executor.submit(self._run, size_bytes, write)

    # In the thread that writes

    def _run(self, size_bytes: int, write: Callable[[], object]) -> None:
        try:
            write()
        except OSError as error:
            if not self._over:
                _LOG.error("a session is recorded no further: %s", error)
            self.close()
        finally:
            self._waiting_bytes -= size_bytes

    def _audio_file(self) -> BinaryIO:
        assert self._wav_path is not None, "audio is recorded"
        if self._wav is None:
            self._wav = _new(self._wav_path)
            self._wav.write(self._header)
        return self._wav

    def _text_file(self) -> BinaryIO:
        assert self._jsonl_path is not None, "text is recorded"
        if self._jsonl is None:
            self._jsonl = _new(self._jsonl_path)
        return self._jsonl

    def _close(self) -> None:
        try:
            if self._wav is not None:
                end = self._wav.tell()
                self._wav.truncate(end)  # where it ends with audio that was lost
                size = min(end - len(self._header), _ENDLESS_BYTES)
                self._wav.seek(4)
                self._wav.write(struct.pack("<I", size + len(self._header) - 8))
                self._wav.seek(len(self._header) - 4)
                self._wav.write(struct.pack("<I", size))
        except OSError as error:
            _LOG.error("a recording has no length in its header: %s", error)
        for file in (self._wav, self._jsonl):
            if file is not None:
                try:
                    file.close()
                except OSError as error:
                    _LOG.error("a recording lacks its end: %s", error)


def make_folder(folder: Path) -> None:
    """The folder, for its owner alone if it is new. Raises ConfigError where nothing can be written."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror or error}, expected a folder for recordings") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"{folder}: cannot be written to, expected a folder for recordings")


def wav_header(sample_rate: int, channels: int, encoding: Encoding) -> bytes:
    """The 44 bytes before the samples; the length is not known yet."""
    number, size = _FORMATS[encoding]
    step = size * channels
    form = struct.pack("<HHIIHH", number, channels, sample_rate, sample_rate * step, step, 8 * size)
    return (
        b"RIFF"
        + struct.pack("<I", _ENDLESS_BYTES)
        + b"WAVEfmt "
        + struct.pack("<I", 16)
        + form
        + b"data"
        + struct.pack("<I", _ENDLESS_BYTES)
    )


def _new(path: Path) -> BinaryIO:
    """A file that was not there before, for its owner's eyes."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
