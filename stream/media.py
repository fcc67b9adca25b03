"""Sound out of whatever FFmpeg reads, through PyAV (the extra ``video``): films, M4A, WebM and the rest that libsndfile does not know."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..model.backend import Floats
from ..model.errors import AudioFormatError

# What may be opened. Play lists and the like are left out on purpose: they name other files and addresses, which nobody asked us to read.
_FORMATS = "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dsf,eac3,flac,flv,matroska,mov,mp3,mpc,mpc8,mpeg,mpegts,mxf,oma,ogg,rm,tta,voc,w64,wav,wv"
_EXACT = ("matroska", "mov", "ogg", "flac", "caf", "wav")  # whose headers know how long they are; others only estimate it
_GAP_S, _LONGEST_GAP_S = 0.1, 600.0  # holes in a track's times are filled with silence; beyond this the times are wrong, not the audio


class MediaSource:
    """The (first or default) sound track of a file, in mono or stereo, never held in memory as a whole.

    Times are those of the film: a track that begins late, or has a hole, is filled with silence, so that captions fit the picture.
    """

    def __init__(self, path: Path, block_ms: int) -> None:
        """Raises AudioFormatError for a file that FFmpeg cannot read or that holds no sound, and where PyAV is not installed."""
        try:
            import av
        except ImportError as error:
            raise AudioFormatError(f'{path}: video and other formats need the package PyAV: pip install "dragoman[video]"') from error
        self._av: Any = av
        try:
            options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
            self._container: Any = self._av.open(f"file:{path}", options=options)
        except self._av.FFmpegError as error:
            raise AudioFormatError(f"{path}: {error.strerror}") from error
        track: Any = self._container.streams.best("audio")
        if track is not None and track.codec_context is None:
            self._container.close()
            raise AudioFormatError(f"{path}: holds sound of a codec that nobody here knows")
        if track is None or not track.rate:
            kinds = ", ".join(sorted({str(stream.type) for stream in self._container.streams})) or "nothing"
            self._container.close()
            raise AudioFormatError(f"{path}: holds {kinds} and no sound track, expected one")
        self._track = track
        self.name, self.sample_rate, self.channels = str(path), int(track.rate), min(2, int(track.channels))
        length = self._container.duration
        self.duration_s: float | None = length / av.time_base if length else None
        self._block_samples = max(1, self.sample_rate * block_ms // 1000)
        self._start_s = (self._container.start_time or 0) / av.time_base
        self._end_s = 0.0  # of what was read, of any track

    def blocks(self) -> Iterator[Floats]:
        """float32 [n, channels]. Raises AudioFormatError where the file is broken; what came before it is sound."""
        waiting, waiting_samples, read_samples = list[Floats](), 0, 0
        try:
            for at_s, part in self._parts():
                for piece in (*self._silence(at_s, read_samples), part):
                    waiting.append(piece)
                    waiting_samples += len(piece)
                    read_samples += len(piece)
                    if waiting_samples >= self._block_samples:
                        yield np.concatenate(waiting)
                        waiting, waiting_samples = [], 0
        except (self._av.FFmpegError, ValueError) as error:  # ValueError: the format changes in the middle of the track
            if waiting:
                yield np.concatenate(waiting)
            raise self._broken(read_samples, str(getattr(error, "strerror", error))) from error
        if waiting:
            yield np.concatenate(waiting)
        if not read_samples:
            raise AudioFormatError(f"{self.name}: the sound track holds 0 samples, expected at least one")
        if self.duration_s is not None and self.duration_s - self._end_s > self._tolerance_s(self.duration_s):
            raise self._broken(read_samples, "the file is cut off")

    def close(self) -> None:
        self._container.close()

    def _parts(self) -> Iterator[tuple[float | None, Floats]]:
        """Decoded audio [n, channels] and where it begins in the film, in s."""
        layout = "mono" if self.channels == 1 else "stereo"  # FFmpeg knows where the voice is among the channels of a film
        mixer: Any = self._av.AudioResampler(format="flt", layout=layout, rate=self.sample_rate)
        for packet in self._container.demux():
            if packet.pts is not None:
                end = float((packet.pts + (packet.duration or 0)) * packet.time_base) - self._start_s
                self._end_s = max(self._end_s, end)
            if packet.stream is not self._track and packet.stream.index != self._track.index:
                continue
            for frame in packet.decode():
                at_s = None if frame.time is None else float(frame.time) - self._start_s
                for mixed in mixer.resample(frame):
                    yield at_s, self._samples(mixed)
                    at_s = None
        for mixed in mixer.resample(None):
            yield None, self._samples(mixed)

    def _samples(self, frame: Any) -> Floats:
        return np.asarray(frame.to_ndarray(), np.float32).reshape(-1, self.channels)

    def _silence(self, at_s: float | None, read_samples: int) -> Iterator[Floats]:
        hole = 0 if at_s is None else round(at_s * self.sample_rate) - read_samples
        if not _GAP_S * self.sample_rate <= hole <= _LONGEST_GAP_S * self.sample_rate:
            return
        for start in range(0, hole, self._block_samples):
            yield np.zeros((min(self._block_samples, hole - start), self.channels), np.float32)

    def _tolerance_s(self, duration_s: float) -> float:
        """How much may be missing at the end before a file counts as cut off."""
        exact = any(name in _EXACT for name in str(self._container.format.name).split(","))
        return 0.25 if exact else max(1.0, duration_s / 4)

    def _broken(self, read_samples: int, reason: str) -> AudioFormatError:
        expected = "more" if self.duration_s is None else f"{self.duration_s:.2f} s"
        return AudioFormatError(f"{self.name}: broken after {read_samples / self.sample_rate:.2f} s, expected {expected} ({reason})")
