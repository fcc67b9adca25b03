"""Films as tests need them: a sound track, and a picture that nobody looks at."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from dragoman.model.backend import Floats

_RATE = 48_000
_CODECS = {".mp4": ("aac", "mpeg4"), ".mkv": ("libopus", "mpeg4"), ".webm": ("libopus", "libvpx"), ".m4a": ("aac", ""), ".aac": ("aac", "")}


def film(path: Path, samples: Floats, *, late_s: float = 0.0, layout: str = "mono", picture_s: float | None = None, **options: str) -> Path:
    """Mono float32 at 16 kHz → a file by the ending of ``path``, its sound ``late_s`` behind the beginning of the picture."""
    sound, picture = _CODECS[path.suffix]
    with av.open(str(path), "w", options=options) as out:
        track: Any = out.add_stream(sound, rate=_RATE)
        track.layout = layout
        screen: Any = out.add_stream(picture, rate=10) if picture else None
        if screen is not None:
            screen.width, screen.height, screen.pix_fmt = 64, 64, "yuv420p"
            for place in range(round(10 * (late_s + len(samples) / 16_000 if picture_s is None else picture_s))):
                image = av.VideoFrame.from_ndarray(np.full((64, 64, 3), place % 255, np.uint8), format="rgb24")
                image.pts, image.time_base = place, Fraction(1, 10)
                out.mux(screen.encode(image))
        loud = np.repeat((samples * 32767).astype(np.int16), 3)
        for start in range(0, len(loud), 960):
            part = np.repeat(loud[start : start + 960], 2 if layout == "stereo" else 1)[None]
            frame = av.AudioFrame.from_ndarray(part, format="s16", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = _RATE, start + round(late_s * _RATE), Fraction(1, _RATE)
            out.mux(track.encode(frame))
        for stream in (track, screen):
            if stream is not None:
                out.mux(stream.encode(None))
    return path
