"""G.711, the code of telephones: one byte a sample, 8 kHz, logarithmic. libsndfile knows both laws."""

from __future__ import annotations

import functools
import io
from typing import Any, Literal

import numpy as np
import soundfile
from numpy.typing import NDArray

Law = Literal["ULAW", "ALAW"]
RATE = 8_000  # Hz


def decode(data: bytes, law: Law) -> bytes:
    """Bytes of ITU-T G.711 → int16, little endian, as many samples."""
    return _table(law)[np.frombuffer(data, np.uint8)].tobytes()


@functools.cache
def _table(law: Law) -> NDArray[np.int16]:
    """What each of the 256 bytes stands for."""
    read: Any = soundfile.read(io.BytesIO(bytes(range(256))), samplerate=RATE, channels=1, format="RAW", subtype=law, dtype="int16")
    return np.ascontiguousarray(read[0], dtype="<i2")
