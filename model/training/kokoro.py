"""Kokoro-82M (hexgrad, Apache-2.0) as a voice for :mod:`.synthesis`: text → espeak-ng phonemes → tokens → ONNX → speech.

Needs three things given by path: the model as one ONNX file (inputs ``tokens`` int64 [1, n], ``style`` float32 [1, 256],
``speed`` float32 [1]; output 24 kHz), ``vocab.json`` (token id of each phoneme character) and a folder of voice files (float32
[510, 256]; the row is chosen by the number of tokens). The names of the voices say the accent: ``a`` US, ``b`` British English.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import soxr
from numpy.typing import NDArray

from ..errors import AudioFormatError, BackendError, ConfigError
from .store import SAMPLE_RATE
from .voices import Utterance

MODEL_RATE = 24_000
ROWS, WIDTH = 510, 256
ACCENTS = {"a": "en-us", "b": "en-gb"}  # first letter of a voice's name → espeak-ng's language

# espeak-ng's spelling of a sound → the one the model was trained on; longest first. "^" ties the two halves of one sound.
_SOUNDS = {
    "ʔˌn\u0329": "tᵊn",
    "ʔn\u0329": "tᵊn",
    "a^ɪ": "I",
    "a^ʊ": "W",
    "d^ʒ": "ʤ",
    "e^ɪ": "A",
    "t^ʃ": "ʧ",
    "ɔ^ɪ": "Y",
    "ə^l": "ᵊl",
    "ʔn": "tᵊn",
    "ʔ": "t",
    "ɚ": "əɹ",
    "r": "ɹ",
    "x": "k",
    "ç": "k",
    "ɐ": "ə",
    "ɬ": "l",
    "ʲ": "",
    "\u0303": "",
}
_ACCENT_SOUNDS = {
    "en-us": {"o^ʊ": "O", "ɜːɹ": "ɜɹ", "ɜː": "ɜɹ", "ɪə": "iə", "ː": "", "ɾ": "T"},
    "en-gb": {"e^ə": "ɛː", "iə": "ɪə", "ə^ʊ": "Q"},
}
_TITLES = re.compile(r"\b(Mr|Mrs|Ms|Dr|St|Prof|Rev|Capt|Col|Gen|Lt)\.")
_PAUSES = re.compile(r"([.,;:!?…—]+[\"”’)]*(?=\s|$)|—)")


def phonemes(text: str, accent: str, command: str = "espeak-ng") -> str:
    """English text → the model's phoneme characters; punctuation that makes a pause is kept in place.

    Raises AudioFormatError if espeak-ng fails.
    """
    pieces = _PAUSES.split(_TITLES.sub(r"\1", text))
    words = [re.sub(r"\s+", " ", piece).strip(" \"'()“”‘’.") for piece in pieces[0::2]]
    pauses = [mark[0] if mark[0] != "—" else " —" for mark in pieces[1::2]] + [""]
    spoken = [_ipa(part, accent, command) if part else "" for part in words]
    joined = " ".join(sound + pause for sound, pause in zip(spoken, pauses, strict=True) if sound or pause)
    return re.sub(r"\s+", " ", _respelt(joined, accent)).strip()


def _ipa(text: str, accent: str, command: str) -> str:
    arguments = [command, "-q", "--ipa", "--tie=^", "-v", accent, text]
    done = subprocess.run(arguments, capture_output=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise AudioFormatError(f"espeak-ng failed on {text!r} (exit code {done.returncode}): {done.stderr.decode()[:200]}")
    return " ".join(done.stdout.decode("utf-8").split())


def _respelt(ipa: str, accent: str) -> str:
    for old, new in _SOUNDS.items():
        ipa = ipa.replace(old, new)
    ipa = re.sub("(\\S)\u0329", r"ᵊ\1", ipa).replace("\u0329", "")
    for old, new in _ACCENT_SOUNDS[accent].items():
        ipa = ipa.replace(old, new)
    return ipa.replace("o", "ɔ").replace("e", "A").replace("^", "")


class Kokoro:
    """The 28 English voices, alone or as random mixes of two of one accent."""

    source = "kokoro"
    licence = "Kokoro-82M (Apache-2.0)"

    def __init__(self, model: Path, vocabulary: Path, voices: Path, *, threads: int = 1, command: str = "espeak-ng") -> None:
        if shutil.which(command) is None:
            raise BackendError(f"the command {command!r} was not found; expected espeak-ng (on Debian: apt-get install espeak-ng)")
        table = json.loads(vocabulary.read_text(encoding="utf-8"))
        self.vocabulary: dict[str, int] = table.get("vocab", table)
        self.voices = {path.stem: _read_voice(path) for path in sorted(voices.glob("[ab][fm]_*.bin"))}
        if not self.voices:
            raise ConfigError(f"{voices}: expected voice files named like af_heart.bin or bm_george.bin; none was found")
        self.command = command
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session: Any = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

    def say(self, text: str, chance: np.random.Generator) -> Utterance:
        """In a random voice or a mix of two, at a random rate and a slightly moved tract (see :class:`.voices.Flite`)."""
        names = sorted(self.voices)
        first = str(chance.choice(names))
        second = str(chance.choice([name for name in names if name[0] == first[0]]))
        part = float(chance.uniform(0.25, 0.75)) if chance.random() < 0.5 and second != first else 1.0
        style = (part * self.voices[first] + (1.0 - part) * self.voices[second]).astype(np.float32)
        tract = float(chance.uniform(0.94, 1.07))
        wave = self.wave(text, style, ACCENTS[first[0]], speed=float(chance.uniform(0.8, 1.25)) / tract)
        return Utterance(soxr.resample(wave, MODEL_RATE * tract, SAMPLE_RATE), first if part == 1.0 else f"{first}+{second}")

    def wave(self, text: str, style: NDArray[np.float32], accent: str, *, speed: float = 1.0) -> NDArray[np.float32]:
        """``style`` [510, 256] → float32 [n] at 24 kHz. Raises AudioFormatError for a text of no sound or of too many tokens."""
        ids = [self.vocabulary[sound] for sound in phonemes(text, accent, self.command) if sound in self.vocabulary]
        if not 1 <= len(ids) < ROWS:
            raise AudioFormatError(f"{text!r} has {len(ids)} tokens; Kokoro speaks 1 to {ROWS - 1} at once")
        feed = {
            "tokens": np.array([[0, *ids, 0]], np.int64),
            "style": np.asarray(style[len(ids)], np.float32).reshape(1, WIDTH),
            "speed": np.array([speed], np.float32),
        }
        return np.asarray(self._session.run(None, feed)[0], np.float32).reshape(-1)


def _read_voice(path: Path) -> NDArray[np.float32]:
    values = np.fromfile(path, np.float32)
    if values.size != ROWS * WIDTH:
        raise ConfigError(f"{path}: {values.size} values; expected {ROWS} x {WIDTH} float32")
    return values.reshape(ROWS, WIDTH)
