"""The speech that a run draws from: clips with a transcript, clips without, noise and rooms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..config import SAMPLE_RATE
from ..errors import ConfigError
from ..store import Clip, Store, read_labels, read_letter_frames, read_word_ends
from . import text
from .splices import agreed_runs
from .teachers import WIDTH, FeatureTable
from .translations import Translations

SHORTEST_SAMPLES, LONGEST_SAMPLES = 4096, int(17.4 * SAMPLE_RATE)  # of the clips that are used
LEAST_CLIPS = 20  # with fewer, a row of one speaker's words would say the same again and again
Floats = NDArray[np.float64]
Spoken = tuple[int, Clip, str, tuple[tuple[int, int], ...]]  # store, clip, text, ranges of its words that are known to be right


class Speech:
    """All stores of a run: clips with a transcript, clips without, noise and rooms.

    ``labels``: for each store None, or how much a second of speech with the teachers' text (:mod:`.labels`) counts beside a second of
    transcribed speech; then upper-case transcripts are taken as the teachers write them, too. ``sources``: how often clips with a
    transcript are drawn, by their source; one that is not named: 1.0.
    """

    def __init__(
        self,
        folders: Sequence[tuple[Path, float]],
        case: text.TrueCaser | None,
        *,
        split: str = "train",
        labels: Sequence[float | None] | None = None,
        sources: Mapping[str, float] | None = None,
    ) -> None:
        self.stores = [Store(folder) for folder, _ in folders]
        self.tables = [FeatureTable(folder) for folder, _ in folders]
        self.characters = [FeatureTable(folder, "characters", np.int8, 1) for folder, _ in folders]
        self.word_ends = [read_word_ends(folder) for folder, _ in folders]
        self.letters = [read_letter_frames(folder) for folder, _ in folders]
        full = next((table for table in self.tables if len(table)), None)
        self.spread = full.spread() if full is not None else (np.zeros(WIDTH, np.float32), np.ones(WIDTH, np.float32))
        self.labelled: list[tuple[int, Clip, str]] = []
        self.unlabelled: list[tuple[int, Clip, str]] = []
        self.partly: list[Spoken] = []  # of the unlabelled, those of which the two teachers agree on some words
        self.noise: list[tuple[int, Clip]] = []
        rooms: list[tuple[int, Clip]] = []
        weights: list[float] = []
        for i, (store, (folder, weight)) in enumerate(zip(self.stores, folders, strict=True)):
            pseudo = labels[i] if labels is not None else None
            rows = {} if pseudo is None else read_labels(folder)
            known = {name: row for name, row in rows.items() if row.text}
            for clip in store.clips:
                usable, label = SHORTEST_SAMPLES <= clip.samples <= LONGEST_SAMPLES, known.get(clip.id)
                share = weight * (sources or {}).get(clip.source, 1.0) * min(clip.seconds, 12.0)
                if clip.split == split and clip.text and usable:
                    self.labelled.append((i, clip, label.text if label else case(clip.text) if case else clip.text))
                    weights.append(share)
                elif clip.split == "unlabelled" and usable and pseudo and label:
                    self.labelled.append((i, clip, label.text))
                    weights.append(share * pseudo)
                elif clip.split == "unlabelled" and usable:
                    self.unlabelled.append((i, clip, ""))
                    if pseudo and clip.id in rows and (runs := agreed_runs(rows[clip.id].moonshine, rows[clip.id].whisper)):
                        self.partly.append((i, clip, rows[clip.id].moonshine, tuple(runs)))
                elif clip.split == "noise":
                    self.noise.append((i, clip))
                elif clip.split == "rir":
                    rooms.append((i, clip))
        self.rooms = [self.stores[i].samples(clip) for i, clip in rooms]
        self.chance = np.cumsum(np.asarray(weights) / sum(weights))

    @cached_property
    def _speakers(self) -> dict[tuple[int, str, str], list[Spoken]]:
        """Aligned clips of each speaker; those of speakers with less than ``LEAST_CLIPS`` go together, by source."""
        spoken = [(i, clip, words, ((0, len(words.split())),)) for i, clip, words in self.labelled] + self.partly
        aligned = [item for item in spoken if item[1].id in self.letters[item[0]]]
        clips = Counter((i, clip.source, clip.speaker) for i, clip, *_ in aligned)
        found: dict[tuple[int, str, str], list[Spoken]] = {}
        for item in aligned:
            key = (item[0], item[1].source, item[1].speaker)
            found.setdefault(key if clips[key] >= LEAST_CLIPS else (*key[:2], ""), []).append(item)
        return found

    def draw_speaker(self, rng: np.random.Generator) -> list[Spoken]:
        """One speaker's aligned clips. Raises ConfigError where none is aligned."""
        if not self._speakers:
            raise ConfigError("batches.splice cuts clips between words, but no clip of the stores is aligned (words.tsv)")
        while True:
            i, clip, _ = self.draw(rng, True)
            if clip.id in self.letters[i]:
                return self._speakers.get((i, clip.source, clip.speaker)) or self._speakers[i, clip.source, ""]

    def translated(self, translations: Translations) -> dict[str, tuple[list[int], Floats]]:
        """Language → (places in ``labelled`` of the clips with a translation, their cumulated chances), where there are any."""
        chances, found = np.diff(self.chance, prepend=0.0), dict[str, tuple[list[int], Floats]]()
        for language in translations.languages():
            places = [i for i, (_, _, words) in enumerate(self.labelled) if translations.of(words, language)]
            if places:
                found[language] = places, np.cumsum(chances[places] / chances[places].sum())
        return found

    def draw(self, rng: np.random.Generator, labelled: bool) -> tuple[int, Clip, str]:
        if labelled or not self.unlabelled:
            return self.labelled[min(int(np.searchsorted(self.chance, rng.random())), len(self.labelled) - 1)]
        return self.unlabelled[int(rng.integers(len(self.unlabelled)))]
