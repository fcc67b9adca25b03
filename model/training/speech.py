"""The speech that a run draws from: clips with a transcript, clips without, noise and rooms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..config import SAMPLE_RATE
from ..errors import ConfigError
from ..store import Clip, Store, read_labels, read_letter_frames, read_word_ends
from . import text
from .splices import Run, agreed_runs, cut_run
from .teachers import WIDTH, FeatureTable
from .translations import Translations

SHORTEST_SAMPLES, LONGEST_SAMPLES = 4096, int(17.4 * SAMPLE_RATE)  # of the clips that are used
LEAST_CLIPS = 20  # with fewer, a row of one speaker's words would say the same again and again
UNKNOWN = ("", "?")  # speakers of clips of which nobody told
Floats = NDArray[np.float64]
Speaker = tuple[int, str, str]  # store, source, speaker
Spoken = tuple[int, Clip, str, tuple[tuple[int, int], ...]]  # store, clip, text, ranges of its words that are known to be right


class Speech:
    """All stores of a run: clips with a transcript, clips without, noise and rooms.

    ``labels``: for each store None, or how much a second of speech with the teachers' text (:mod:`.labels`) counts beside a second of
    transcribed speech; then upper-case transcripts are taken as the teachers write them, too. ``mutual_error``: where the two differ in a
    smaller share of their words, the first one's reading is learnt from. ``sources``: how often clips with a transcript are drawn, by
    their source; one that is not named: 1.0.
    """

    def __init__(
        self,
        folders: Sequence[tuple[Path, float]],
        case: text.TrueCaser | None,
        *,
        split: str = "train",
        labels: Sequence[float | None] | None = None,
        sources: Mapping[str, float] | None = None,
        mutual_error: float = 0.0,
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
                    if pseudo and clip.id in rows:
                        if runs := agreed_runs(rows[clip.id].moonshine, rows[clip.id].whisper):
                            self.partly.append((i, clip, rows[clip.id].moonshine, tuple(runs)))
                        if rows[clip.id].mutual_error < mutual_error:
                            self.labelled.append((i, clip, rows[clip.id].moonshine))
                            weights.append(share * pseudo)
                elif clip.split == "noise":
                    self.noise.append((i, clip))
                elif clip.split == "rir":
                    rooms.append((i, clip))
        self.rooms = [self.stores[i].samples(clip) for i, clip in rooms]
        self.chance = np.cumsum(np.asarray(weights) / sum(weights))

    @cached_property
    def _speakers(self) -> dict[Speaker, list[Spoken]]:
        """Aligned clips of each speaker who is known and has at least ``LEAST_CLIPS``."""
        found: dict[Speaker, list[Spoken]] = {}
        doubtful = {(i, clip.id) for i, clip, *_ in self.partly}
        known = [(i, clip, words, ((0, len(words.split())),)) for i, clip, words in self.labelled if (i, clip.id) not in doubtful]
        for item in known + self.partly:
            if item[1].id in self.letters[item[0]] and item[1].speaker not in UNKNOWN:
                found.setdefault(_speaker(item[0], item[1]), []).append(item)
        return {speaker: clips for speaker, clips in found.items() if len(clips) >= LEAST_CLIPS}

    @cached_property
    def _of_speakers(self) -> tuple[list[int], Floats]:
        """Places in ``labelled`` of the clips of such a speaker, and their cumulated chances."""
        return self._chances([place for place, (i, clip, _) in enumerate(self.labelled) if _speaker(i, clip) in self._speakers])

    def draw_speaker(self, rng: np.random.Generator) -> tuple[Speaker, list[Spoken]]:
        """A speaker and their aligned clips, by the speech that there is of each. Raises ConfigError where there is no such speaker."""
        places, chance = self._of_speakers
        if not places:
            why = f"no speaker of the stores is known and has {LEAST_CLIPS} transcribed clips that are aligned (words.tsv)"
            raise ConfigError(f"batches.splice joins one speaker's words, but {why}")
        i, clip, _ = self.labelled[places[drawn(chance, rng)]]
        return _speaker(i, clip), self._speakers[_speaker(i, clip)]

    def draw_run(
        self, clips: Sequence[Spoken], count: tuple[int, int], rng: np.random.Generator
    ) -> tuple[int, Clip, Run, NDArray[np.float32]] | None:
        """Fewest to most words in a row of one of ``clips`` → store, clip, run and its samples; None if they cannot be cut out."""
        which, clip, words, known = clips[int(rng.integers(len(clips)))]
        low, high = known[int(rng.integers(len(known)))]
        so_many = min(int(rng.integers(count[0], count[1] + 1)), high - low)
        wave, first = self.stores[which].samples(clip), int(rng.integers(low, high - so_many + 1))
        run = cut_run(wave, words, self.letters[which][clip.id], first, so_many)
        return None if run is None else (which, clip, run, wave[run.start : run.end])

    def _chances(self, places: list[int]) -> tuple[list[int], Floats]:
        """The same places, and the cumulated chances of their clips among them."""
        chances = np.diff(self.chance, prepend=0.0)[places]
        return places, np.cumsum(chances / chances.sum()) if places else chances

    def translated(self, translations: Translations) -> dict[str, tuple[list[int], Floats]]:
        """Language → (places in ``labelled`` of the clips with a translation, their cumulated chances), where there are any."""
        found = dict[str, tuple[list[int], Floats]]()
        for language in translations.languages():
            places = [i for i, (_, _, words) in enumerate(self.labelled) if translations.of(words, language)]
            if places:
                found[language] = self._chances(places)
        return found

    def draw(self, rng: np.random.Generator, labelled: bool) -> tuple[int, Clip, str]:
        if labelled or not self.unlabelled:
            return self.labelled[drawn(self.chance, rng)]
        return self.unlabelled[int(rng.integers(len(self.unlabelled)))]

    @cached_property
    def _heard(self) -> tuple[list[tuple[int, Clip, str]], Floats]:
        """Every clip with the teacher's features, without its text, and the cumulated seconds."""
        clips = {(i, clip.id): (i, clip, "") for i, clip, _ in self.unlabelled + self.labelled if clip.id in self.tables[i]}
        return list(clips.values()), np.cumsum([clip.seconds for _, clip, _ in clips.values()])

    def draw_heard(self, rng: np.random.Generator) -> tuple[int, Clip, str]:
        """A clip to be heard only, by its length. Raises ConfigError where the teacher's features are nowhere."""
        clips, seconds = self._heard
        if not clips:
            raise ConfigError("batches.heard asks for rows that are only heard, but no store has the teacher's features (stores.features)")
        return clips[drawn(seconds / seconds[-1], rng)]


def drawn(chance: Floats, rng: np.random.Generator) -> int:
    """A place by the cumulated chances of all places."""
    return min(int(np.searchsorted(chance, rng.random())), len(chance) - 1)


def _speaker(store: int, clip: Clip) -> Speaker:
    return store, clip.source, clip.speaker
