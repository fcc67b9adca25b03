"""Stores of speech that says, at every moment, which clip and which moment of it is heard."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from dragoman.model.training.rows import Batch
from dragoman.model.training.speech import LEAST_CLIPS, Speech
from dragoman.model.training.splices import FRAME
from dragoman.model.training.store import StoreWriter
from dragoman.model.training.teachers import CENTRE_SAMPLES, HOP_SAMPLES, WIDTH

WORDS = ["tom", "saw", "a", "red", "house", "by", "the", "river", "today"]


def spoken_letters(words: list[str], first: int = 4) -> list[int]:
    """Frames of letters: one every second frame, and four frames between words."""
    frames, at = list[int](), first
    for word in words:
        for _ in word:
            frames.append(at)
            at += 2
        at += 4
    return frames


def make_speech(folder: Path, *, aligned: bool = True, clips: int = LEAST_CLIPS, speakers: Sequence[str] = ("s",)) -> Speech:
    """Clips whose teacher's features say which clip (column 0) and which moment of it, in frames (column 1), they are of."""
    rng, writer = np.random.default_rng(0), StoreWriter(folder)
    features, sizes, moments = list[np.ndarray](), list[str](), list[str]()
    for i in range(clips):
        words = [WORDS[j] for j in rng.permutation(len(WORDS))]
        letters = spoken_letters(words)
        wave = rng.standard_normal((letters[-1] + 6) * FRAME, dtype=np.float32) * 0.1
        writer.add(wave, id=f"clip{i}", split="train", lang="en", speaker=speakers[i % len(speakers)], source="t", text=" ".join(words))
        rows = np.zeros((len(wave) // HOP_SAMPLES, WIDTH), np.float16)
        rows[:, 0], rows[:, 1] = i, (np.arange(len(rows)) * HOP_SAMPLES + CENTRE_SAMPLES) / FRAME
        features.append(rows)
        sizes.append(f"clip{i}\t{len(rows)}\n")
        ends = [letters[sum(map(len, words[: place + 1])) - 1] for place in range(len(words))]
        moments.append(f"clip{i}\t{' '.join(map(str, ends))}\t{' '.join(map(str, letters))}\n")
    writer.close()
    np.concatenate(features).tofile(folder / "features-0.f16")
    (folder / "features-0.tsv").write_text("".join(sizes))
    if aligned:
        (folder / "words.tsv").write_text("".join(moments))
    return Speech([(folder, 1.0)], None)


def heard(batch: Batch, speech: Speech) -> np.ndarray:
    """[B T, 2]: the clip and the moment of it, in frames, that are heard at each position; NaN where there is no speech."""
    found = np.full((batch.ids.numel(), 2), np.nan)
    found[batch.feature_rows] = (batch.features.numpy() * speech.spread[1] + speech.spread[0])[:, :2]
    return found


def letters_near(speech: Speech, clip: int, moment: float, reach: int) -> str:
    """What is spelt in a clip up to ``reach`` frames before and behind a moment."""
    letters = zip(speech.labelled[clip][2].replace(" ", ""), speech.letters[0][f"clip{clip}"], strict=True)
    return "".join(letter for letter, at in letters if abs(at - moment) <= reach)
