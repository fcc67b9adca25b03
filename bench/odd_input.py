"""What the session makes of input that is not clean speech at a good level: nothing at all, noise, tones; quiet, loud and restless speech.

    python bench/odd_input.py --store FOLDER --split dev-clean --seconds 120

FOLDER is a store of decoded speech (model/store.py); what its split "noise" holds is heard too, if there is one. Without speech no word may
be written. The speech is the same each time, so the rates may be compared.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from dragoman.model.backend import Floats
from dragoman.model.config import SAMPLE_RATE
from dragoman.model.load import Loaded, load
from dragoman.model.scoring import word_errors
from dragoman.model.store import Clip, Store
from dragoman.stream import Final, Session, SessionOptions
from dragoman.stream.simulate import in_pieces
from dragoman.stream.talk import hiss, speech_span
from rich.progress import track

PAUSE_S = 1.0  # between sentences, where there is to be one
NO_SPEECH_S = 60


def no_speech(seconds: int, beds: Sequence[Floats]) -> Iterator[tuple[str, Floats]]:
    """Signals [n] float32 in which nothing is said."""
    time_s = np.arange(seconds * SAMPLE_RATE, dtype=np.float32) / SAMPLE_RATE
    rng = np.random.default_rng(0)
    yield "digital silence", np.zeros_like(time_s)
    for level_db in (-70, -50, -30):
        yield f"white noise, {level_db} dBFS", (rng.standard_normal(len(time_s)) * 10 ** (level_db / 20)).astype(np.float32)
    yield "a tone of 440 Hz, -20 dBFS", (0.14 * np.sin(2 * np.pi * 440 * time_s)).astype(np.float32)
    yield "chords of four notes, two a second", chords(time_s)
    if beds:
        yield "the noise of the store", np.concatenate(beds)[: 5 * seconds * SAMPLE_RATE]


def chords(time_s: Floats) -> Floats:
    """Three harmonics a note, each note struck anew and fading away."""
    notes_hz = 220 * 2 ** (np.array([[0, 4, 7, 12], [5, 9, 12, 17], [7, 11, 14, 19], [9, 12, 16, 21]]) / 12)
    beat = (time_s * 2).astype(int)
    struck = np.exp(-4 * (time_s * 2 - beat))
    voices = [np.sin(2 * np.pi * k * notes_hz[beat % 4, n] * time_s) / k for n in range(4) for k in (1, 2, 3)]
    return (0.05 * struck * np.sum(voices, axis=0)).astype(np.float32)


def trimmed(wave: Floats, name: str) -> Floats:
    """Without the silence at its ends."""
    first, last = speech_span(wave, name)
    return wave[first:last]


def spoken(waves: Sequence[Floats]) -> Iterator[tuple[str, Floats]]:
    """The same speech in several ways, each as one stream."""
    pause = hiss(int(PAUSE_S * SAMPLE_RATE), np.random.default_rng(0))
    talk = np.concatenate([part for wave in waves for part in (wave, pause)])
    yield "with a second between the sentences", talk
    yield "without a pause", np.concatenate([*waves, pause])
    yield "30 dB quieter", talk * np.float32(10 ** (-30 / 20))
    yield "18 dB louder and clipped", np.clip(talk * np.float32(10 ** (18 / 20)), -1, 1)


def hear(loaded: Loaded, options: SessionOptions, wave: Floats) -> list[str]:
    """Texts of the segments."""
    session = Session(loaded, options, encoding="float32")
    pieces = track(list(in_pieces(wave)), description="listening", transient=True)
    events = [event for piece in pieces for event in session.push(piece)]
    return [event.text for event in [*events, *session.finish()] if isinstance(event, Final)]


def enough(clips: Sequence[Clip], seconds: float) -> list[Clip]:
    """The first clips that last so long together."""
    ends = np.cumsum([clip.seconds for clip in clips])
    return list(clips[: int(np.searchsorted(ends, seconds)) + 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--model", default="small")
    parser.add_argument("--split", default="dev-clean")
    parser.add_argument("--seconds", type=float, default=120, help="of speech")
    parser.add_argument("--block-ms", type=int, default=640)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    loaded, store, options = load(given.model, threads=given.threads), Store(given.store), SessionOptions(block_ms=given.block_ms)
    for name, wave in no_speech(NO_SPEECH_S, [store.samples(clip) for clip in store.clips if clip.split == "noise"]):
        texts = [text for text in hear(loaded, options, wave) if text.strip()]
        print(f"{name}, {len(wave) / SAMPLE_RATE:.0f} s: {sum(len(text.split()) for text in texts)} words {texts or ''}")
    clips = enough([clip for clip in store.clips if clip.split == given.split], given.seconds)
    if not clips:
        parser.error(f"the store has no clip of split {given.split!r}; it has {sorted({clip.split for clip in store.clips})}")
    for name, wave in spoken([trimmed(store.samples(clip), clip.id) for clip in clips]):
        texts = hear(loaded, options, wave)
        errors = word_errors([" ".join(clip.text for clip in clips)], [" ".join(texts)])
        print(f"{len(clips)} clips of {given.split}, {name}, {len(wave) / SAMPLE_RATE:.0f} s: {errors}; {len(texts)} segments")


if __name__ == "__main__":
    main()
