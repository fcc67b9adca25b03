"""Raw Opus packets → PCM, through PyAV (the extra ``video``), for the socket. One decoder for each stream: it remembers the last packet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..model.errors import AudioFormatError

OPUS_RATE = 48_000  # Hz: the clock of every Opus decoder, whatever the sender recorded at
OPUS_CHANNELS = (1, 2)
_CONTAINERS = {b"OggS": "an Ogg file", b"\x1a\x45\xdf\xa3": "a WebM or Matroska file"}


class OpusDecoder:
    """``decode`` one packet after another (RFC 6716; no Ogg or WebM around it, no RTP header before it)."""

    received_bytes: int | None = None  # a client that comes back counts packets by their samples

    def __init__(self, channels: int) -> None:
        """``channels``: 1 or 2, of what comes out; the packets themselves may be either. Raises AudioFormatError without PyAV."""
        try:
            import av
        except ImportError as error:
            raise AudioFormatError('Opus needs the package PyAV here (pip install "dragoman[video]"); send PCM') from error
        self._av: Any = av
        self._is_first = True
        self._decoder: Any = av.CodecContext.create("libopus", "r")
        self._decoder.sample_rate = OPUS_RATE
        self._decoder.layout = "stereo" if channels == 2 else "mono"

    def decode(self, packet: bytes) -> bytes:
        """One packet of 2.5 to 120 ms → int16, little endian, channels interleaved. Raises AudioFormatError for what is no packet."""
        if not packet:  # the decoder would take it for the end of the stream
            raise AudioFormatError("an Opus packet of 0 bytes, expected at least one")
        if self._is_first and packet[:4] in _CONTAINERS:  # which the decoder may take for a packet
            expected = "expected raw Opus packets, one in each message (encoding 'container' takes such a file)"
            raise AudioFormatError(f"the audio begins as {_CONTAINERS[packet[:4]]}, {expected}")
        self._is_first = False
        try:
            frames = self._decoder.decode(self._av.Packet(packet))
        except self._av.FFmpegError as error:
            raise AudioFormatError(f"{len(packet)} bytes that begin with {packet[:4].hex()} are no Opus packet") from error
        return b"".join(frame.to_ndarray().astype("<i2").tobytes() for frame in frames)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """One packet, as ``ContainerDecoder.feed``."""
        yield self.decode(data)

    def end(self) -> Iterator[bytes]:
        """Nothing is held back."""
        yield from ()

    def close(self) -> None:
        """Nothing to let go."""
