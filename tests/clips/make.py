"""Make the clips of this folder again: ``python tests/clips/make.py --kokoro FOLDER`` (see README.md beside this file).

FOLDER holds ``kokoro.onnx``, ``vocab.json`` and ``voices/*.bin``. Needs the commands flite and espeak-ng, and dragoman[train].
"""

from __future__ import annotations

import argparse
import io
import subprocess
from pathlib import Path

import numpy as np
import soundfile
import soxr
from dragoman.model.training.kokoro import ACCENTS, MODEL_RATE, Kokoro
from numpy.typing import NDArray

HERE = Path(__file__).parent
Wave = NDArray[np.float32]


def sentences(name: str) -> list[str]:
    return (HERE / f"{name}.txt").read_text(encoding="utf-8").splitlines()


def with_pauses(parts: list[Wave], rate: int, *, pause_s: float) -> Wave:
    """Sentences end to end, with a pause before, between and after them; a very soft noise, because no room is digitally silent."""
    pause = np.zeros(int(pause_s * rate), np.float32)
    joined = np.concatenate([pause, *(piece for part in parts for piece in (part, pause))])
    noise = np.random.default_rng(0).normal(0.0, 3e-4, len(joined))
    return (0.7 * joined / np.abs(joined).max() + noise).astype(np.float32)


def flite(text: str, voice: str) -> tuple[Wave, int]:
    done = subprocess.run(["flite", "-voice", voice, "-t", text, "-o", "/dev/stdout"], capture_output=True, check=True)
    return soundfile.read(io.BytesIO(done.stdout), dtype="float32")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kokoro", type=Path, required=True)
    folder: Path = parser.parse_args().kokoro
    kokoro = Kokoro(folder / "kokoro.onnx", folder / "vocab.json", folder / "voices")

    def spoken(name: str, voice: str) -> list[Wave]:
        return [kokoro.wave(text, kokoro.voices[voice], ACCENTS[voice[0]]) for text in sentences(name)]

    lighthouse = with_pauses(spoken("lighthouse", "af_heart"), MODEL_RATE, pause_s=0.45)
    soundfile.write(HERE / "lighthouse.ogg", lighthouse, MODEL_RATE, format="OGG", subtype="OPUS")

    talk = soxr.resample(with_pauses(spoken("talk", "bm_george"), MODEL_RATE, pause_s=0.35), MODEL_RATE, 48_000)
    stereo = np.stack([0.9 * talk, 0.6 * talk], axis=1)
    soundfile.write(HERE / "talk.ogg", stereo, 48_000, format="OGG", subtype="OPUS")

    parts = [flite(text, "slt") for text in sentences("market")]
    soundfile.write(HERE / "market.flac", with_pauses([wave for wave, _ in parts], parts[0][1], pause_s=0.35), parts[0][1])


if __name__ == "__main__":
    main()
