"""Ogg and WebM as browsers and pipes make them, in memory."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from dragoman.model.backend import Floats

_RATE = 48_000
# MediaRecorder writes clusters as it goes and never says how long they are; ffmpeg fills a page of Ogg with a second unless told otherwise.
LIVE_WEBM = {"live": "1", "cluster_time_limit": "250"}
SHORT_PAGES = {"page_duration": "20000"}


class _Sink:
    """A pipe: nothing can be written again."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, part: bytes) -> int:
        self.data += part
        return len(part)


def container(
    samples: Floats,
    form: str = "webm",
    codec: str = "libopus",
    *,
    layout: str = "mono",
    rate: int = _RATE,
    picture: bool = False,
    **options: str,
) -> bytes:
    """Mono float32 at 16 kHz → a stream of ``form``; ``rate``: a multiple of 16 kHz, or 16 kHz itself. Without PyAV the test is skipped."""
    av = pytest.importorskip("av", reason="needs the extra video")
    sink, track, screen = _Sink(), None, None
    with av.open(sink, "w", format=form, options=options) as out:
        if codec:
            track = _track(out, codec, rate, layout)
        if picture or not codec:
            screen = out.add_stream("libvpx", rate=10)
            screen.width, screen.height, screen.pix_fmt = 64, 64, "yuv420p"
        for number in range(len(samples) // 1600 if screen is not None else 0):
            image = av.VideoFrame.from_ndarray(np.full((64, 64, 3), number % 255, np.uint8), format="rgb24")
            image.pts, image.time_base = number, Fraction(1, 10)
            out.mux(screen.encode(image))
        if track is not None:
            _encode(out, track, np.repeat((samples * 32767).astype(np.int16), rate // 16_000), rate, layout)
        for stream in (track, screen):
            if stream is not None:
                out.mux(stream.encode(None))
    return bytes(sink.data)


def _track(out: Any, codec: str, rate: int, layout: str) -> Any:
    track = out.add_stream(codec, rate=rate)
    track.layout = layout
    return track


def _encode(out: Any, track: Any, loud: Any, rate: int, layout: str) -> None:
    import av

    to_track = av.AudioResampler(format=track.format.name, layout=layout, rate=rate, frame_size=track.codec_context.frame_size or 960)
    for start in range(0, len(loud), 960):
        part = np.repeat(loud[start : start + 960], 2 if layout == "stereo" else 1)[None]
        frame = av.AudioFrame.from_ndarray(part, format="s16", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        for fitted in to_track.resample(frame):
            out.mux(track.encode(fitted))
    for fitted in to_track.resample(None):
        out.mux(track.encode(fitted))


def ogg_pages(data: bytes) -> list[bytes]:
    """An Ogg stream → its pages."""
    return [b"OggS" + page for page in data.split(b"OggS")[1:]]
