"""Opus packets as a client's encoder makes them."""

from __future__ import annotations

import av
import numpy as np
from dragoman.model.backend import Floats


def packets(samples: Floats, *, rate: int = 16_000, packet_ms: int = 20, channels: int = 1) -> list[bytes]:
    """Mono float32 at ``rate`` (one that divides 48 kHz) → raw packets."""
    encoder = av.CodecContext.create("libopus", "w")
    encoder.sample_rate, encoder.layout, encoder.format = 48_000, "stereo" if channels == 2 else "mono", "s16"  # type: ignore[attr-defined]
    encoder.bit_rate, encoder.options = 64_000, {"frame_duration": str(packet_ms)}
    at_48 = np.repeat(samples, 48_000 // rate)
    size, made = 48 * packet_ms, list[bytes]()
    for start in range(0, len(at_48) - size + 1, size):
        interleaved = np.repeat((at_48[start : start + size] * 32767).astype(np.int16), channels)[None]
        frame = av.AudioFrame.from_ndarray(interleaved, format="s16", layout=encoder.layout.name)  # type: ignore[attr-defined]
        frame.sample_rate, frame.pts = 48_000, start
        made += [bytes(packet) for packet in encoder.encode(frame)]  # type: ignore[attr-defined]
    return made + [bytes(packet) for packet in encoder.encode(None)]  # type: ignore[attr-defined]
