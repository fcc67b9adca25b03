"""Sound out of an Ogg or WebM stream while it arrives, through PyAV (the extra ``video``): what ``MediaRecorder`` of browsers and the
pipes of ffmpeg and GStreamer make. The bytes may be cut anywhere.

FFmpeg pulls its input, and a socket pushes. So FFmpeg runs in a thread of its own, which moves only while ``feed`` or ``end`` waits for
it: always one of the two works, nothing is shared meanwhile, and what comes out depends on the bytes alone.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

from ..model.errors import AudioFormatError
from .opus import OPUS_RATE
from .pcm import HIGHEST_RATE, LOWEST_RATE

CONTAINER_RATE = OPUS_RATE  # Hz, of what comes out, whatever is inside
# By their first bytes. Nothing else is tried: most of FFmpeg's formats cannot be read without seeking, and some name other files.
_FORMATS = {b"OggS": ("ogg", "Ogg"), b"\x1a\x45\xdf\xa3": ("matroska", "WebM")}
_OTHERS = {b"RIFF": "a WAV file", b"fLaC": "a FLAC file", b"ID3\x03": "an MP3 file", b"ID3\x04": "an MP3 file"}
_CODECS = ("opus", "vorbis", "flac")
_MARK_BYTES = 4
_MOST_DEAF_BYTES = 8 * 1024 * 1024  # without any sound: a video track may stand between, but memory must not grow with what never ends
_LOT_BYTES = 64 * 1024  # of PCM that is handed over at once: changing threads costs more than decoding a packet
_GAP_S, _LONGEST_GAP_S = 0.1, 600.0  # holes in the times are told as lost; beyond this the times are wrong, not the audio

Piece = bytes | int  # int16, little endian, channels interleaved; or so many samples of each channel that are missing here


class _Hungry:
    """FFmpeg has used all bytes there are."""


class _Over:
    """FFmpeg has come to the end."""


class ContainerDecoder:
    """One for each stream. Raises AudioFormatError for bytes that are no such stream; what came out before is sound."""

    def __init__(self, channels: int) -> None:
        """``channels``: 1 or 2, of what comes out; the mean of those inside. Raises AudioFormatError without PyAV."""
        try:
            import av
        except ImportError as error:
            raise AudioFormatError('Ogg and WebM need the package PyAV here (pip install "dragoman[video]"); send PCM') from error
        self._av: Any = av
        self.received_bytes = 0
        self._layout = "stereo" if channels == 2 else "mono"
        self._waiting = bytearray()  # not yet read by FFmpeg
        self._heard_samples = 0  # of each channel, holes included
        self._silent_bytes = 0  # read since the last sound
        self._lot = bytearray()  # decoded, not yet handed over
        self._refusal: AudioFormatError | None = None  # an error in ``read`` would pass through FFmpeg, which may call it again
        self._ended = self._closed = False
        self._name = "container"
        self._thread: threading.Thread | None = None
        self._go, self._out = threading.Semaphore(0), SimpleQueue[Piece | type[_Hungry | _Over] | Exception]()

    def feed(self, data: bytes) -> Iterator[Piece]:
        """More of the stream, at least one byte → what is to be heard of it. An iteration that is broken off goes on with the next one."""
        if not data:
            raise AudioFormatError("0 bytes of audio, expected at least one")
        if self._closed:
            raise AudioFormatError(f"{len(data)} bytes behind the end of the {self._name} stream, expected none")
        self._waiting += data
        self.received_bytes += len(data)
        yield from self._hear()

    def end(self) -> Iterator[Piece]:
        """No more comes. Raises AudioFormatError if there was nothing to be heard in all the bytes; half a packet at the end is let go."""
        self._ended = True
        yield from self._hear()
        if not self._heard_samples and self.received_bytes:
            raise AudioFormatError(f"{self.received_bytes} bytes of a container end before any sound, expected an Ogg or WebM stream")

    def close(self) -> None:
        """Let FFmpeg go, wherever it is."""
        self._ended = self._closed = True
        self._waiting.clear()
        self._go.release()

    # The caller's side

    def _hear(self) -> Iterator[Piece]:
        if self._thread is None:
            if len(self._waiting) < _MARK_BYTES:
                return  # not even known what it is
            self._start()
        while not self._closed:
            self._go.release()
            piece = self._out.get()
            if isinstance(piece, Exception):
                self._closed = True
                raise piece
            if isinstance(piece, type):
                self._closed = piece is _Over
                return
            yield piece

    def _start(self) -> None:
        mark = bytes(self._waiting[:_MARK_BYTES])
        if mark not in _FORMATS:
            begins = f"as {_OTHERS[mark]}" if mark in _OTHERS else f"with {mark.hex()}"
            raise AudioFormatError(f"the audio begins {begins}, expected Ogg or WebM; of samples the encoding has to be named")
        form, self._name = _FORMATS[mark]
        self._thread = threading.Thread(target=self._run, args=(form,), name="dragoman-container", daemon=True)
        self._thread.start()

    # FFmpeg's side: all below runs in the thread

    def read(self, size: int) -> bytes:
        """What FFmpeg calls for more bytes; none: the end."""
        while not self._waiting and not self._ended:
            self._hand_over()
            self._tell(_Hungry)
        if self._silent_bytes > _MOST_DEAF_BYTES:
            why = f"{self._silent_bytes} bytes of {self._name} without any sound, expected some within {_MOST_DEAF_BYTES}"
            self._refusal = AudioFormatError(why)
            return b""
        data = bytes(self._waiting[:size])
        del self._waiting[:size]
        self._silent_bytes += len(data)
        return data

    def _tell(self, piece: Piece | type[_Hungry]) -> None:
        """Hand over, and wait until more is wanted."""
        if not self._closed:
            self._out.put(piece)
            self._go.acquire()

    def _run(self, form: str) -> None:
        self._go.acquire()
        last: Exception | type[_Over] = _Over
        try:
            self._decode(form)
        except AudioFormatError as error:
            last = error
        except (self._av.FFmpegError, ValueError) as error:
            reason = str(getattr(error, "strerror", error))
            last = AudioFormatError(f"the {self._name} stream is broken after {self._heard_samples / CONTAINER_RATE:.2f} s ({reason})")
        except Exception as error:  # the caller waits: whatever it is has to reach it
            last = error
        self._hand_over()
        self._out.put(self._refusal or last)

    def _decode(self, form: str) -> None:
        # Without looking ahead: a second of audio may still be a second away.
        options = {"analyzeduration": "0"}
        with self._av.open(self, format=form, options=options, metadata_errors="ignore") as container:
            tracks = container.streams.audio
            if not tracks:
                kinds = ", ".join(sorted({str(stream.type) for stream in container.streams})) or "nothing"
                raise AudioFormatError(f"the {self._name} stream holds {kinds} and no sound track, expected one")
            context = tracks[0].codec_context
            codec = context.name if context is not None else "an unknown codec"
            if codec not in _CODECS:
                raise AudioFormatError(f"the {self._name} stream holds {codec}, expected one of {', '.join(_CODECS)}")
            self._play(container.demux(tracks[0]))

    def _play(self, packets: Iterator[Any]) -> None:
        mixer, shape, first_s, last_s = None, None, 0.0, math.inf
        for packet in packets:
            for frame in packet.decode():
                if not LOWEST_RATE <= frame.sample_rate <= HIGHEST_RATE:  # a few bytes at 10 Hz would be hours
                    raise AudioFormatError(
                        f"the {self._name} stream holds sound at {frame.sample_rate} Hz, expected {LOWEST_RATE} to {HIGHEST_RATE} Hz"
                    )
                if shape != (frame.format.name, frame.layout.name, frame.sample_rate):  # an Ogg stream may be followed by another
                    self._sound(mixer.resample(None) if mixer else ())
                    shape = (frame.format.name, frame.layout.name, frame.sample_rate)
                    mixer = self._av.AudioResampler(format="s16", layout=self._layout, rate=CONTAINER_RATE)
                if frame.time is not None:
                    if frame.time < last_s:  # the first recording, or another behind it, whose times begin anew
                        first_s = frame.time - self._heard_samples / CONTAINER_RATE
                    last_s = frame.time
                    self._skip(round((frame.time - first_s) * CONTAINER_RATE) - self._heard_samples)
                self._sound(mixer.resample(frame) if mixer else ())
        self._sound(mixer.resample(None) if mixer else ())

    def _skip(self, hole_samples: int) -> None:
        """The sender's times go on where there is no sound: it was lost on the way."""
        if _GAP_S * CONTAINER_RATE <= hole_samples <= _LONGEST_GAP_S * CONTAINER_RATE:
            self._heard_samples += hole_samples
            self._hand_over()
            self._tell(hole_samples)

    def _sound(self, frames: Any) -> None:
        for frame in frames:
            if frame.samples:
                self._heard_samples += frame.samples
                self._silent_bytes = 0
                self._lot += frame.to_ndarray().astype("<i2").tobytes()
                if len(self._lot) >= _LOT_BYTES:
                    self._hand_over()

    def _hand_over(self) -> None:
        lot, self._lot = bytes(self._lot), bytearray()
        if lot:
            self._tell(lot)
