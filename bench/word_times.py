"""How far the session's word times are from a forced alignment, in ms, for words that were heard right.

    python bench/word_times.py --store FOLDER --split dev-clean --limit 60 --threads 1

FOLDER is a store of decoded speech (model/store.py); nothing is written into it. The reference: a character probe, trained with CTC on
Moonshine tiny's features of some hours of the store's transcribed training speech, and its Viterbi path through each dev transcript
(model/training/align.py); with --reference it is kept in that file, and read from there the next time. Clips are joined into talks
(stream/talk.py), which are heard in pieces of 40 ms. A word of the session is matched with one of the transcript by least edit distance,
and counts only if the two are equal.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from dragoman.model.backend import Floats
from dragoman.model.config import SAMPLE_RATE
from dragoman.model.load import load
from dragoman.model.store import Clip as StoredClip
from dragoman.model.store import Store
from dragoman.stream import Final, Session, SessionOptions
from dragoman.stream.events import Event
from dragoman.stream.measures import matched
from dragoman.stream.simulate import in_pieces
from dragoman.stream.talk import Clip, Talk, make_talks, read_clips, speech_span

Times = list[tuple[float, float]]  # where each word of a clip begins and ends
LONG_WORD = 4  # letters: longer words are seldom matched by chance


@dataclass
class Errors:
    """Session minus reference, in ms, of each matched word."""

    starts_ms: list[float] = field(default_factory=list[float])
    ends_ms: list[float] = field(default_factory=list[float])
    long: list[bool] = field(default_factory=list[bool])
    said: int = 0  # words of the reference
    written: int = 0  # of the session

    def add(self, events: Iterable[Event], talk: Talk, times: Mapping[str, Times]) -> None:
        """One talk. ``times``: of each clip's words, by the name of the clip."""
        starts = [part.start_ms + start_ms for part in talk.utterances for start_ms, _ in times[part.clip.name]]
        ends = [part.start_ms + end_ms for part in talk.utterances for _, end_ms in times[part.clip.name]]
        words = [word for event in events if isinstance(event, Final) for word in event.words]
        reference = talk.text.split()
        for place, heard in matched(reference, [word.text.strip() for word in words]):
            self.starts_ms.append(words[heard].start_ms - starts[place])
            self.ends_ms.append(words[heard].end_ms - ends[place])
            self.long.append(len(reference[place]) >= LONG_WORD)
        self.said += len(reference)
        self.written += len(words)


def line(name: str, errors_ms: Sequence[float]) -> str:
    """Median and 90th percentile of the absolute error, and the median with its sign, which a constant delay would move."""
    if not errors_ms:
        return f"  {name}: nothing matched"
    sizes = np.abs(errors_ms)
    p90_ms, within = np.percentile(sizes, 90), 100 * np.mean(sizes <= 200)
    late = f"{abs(median(errors_ms)):.0f} ms too {'late' if median(errors_ms) > 0 else 'early'} in the median"
    return f"  {name}: absolute error p50 {median(sizes):.0f}, p90 {p90_ms:.0f} ms; {late}; {within:.0f} % within 200 ms"


class Reference:
    """Forced alignment of known words."""

    def __init__(self, store: Store, hours: float, passes: int, threads: int, seed: int) -> None:
        import torch
        from dragoman.model.training.align import train_probe
        from dragoman.model.training.speech import Speech
        from dragoman.model.training.teachers import SPREAD, FeatureTable, MoonshineEncoder

        torch.set_num_threads(threads)
        self._store, self._encoder, self._unit = store, MoonshineEncoder(threads), SPREAD
        cached, clips, filled_s = FeatureTable(store.folder), list[StoredClip](), 0.0
        speech: Any = Speech([(store.folder, 1.0)], None)
        candidates = [clip for _, clip, _ in speech.labelled if any(letter.isalpha() for letter in clip.text)]
        random.Random(seed).shuffle(candidates)
        for clip in candidates:
            if filled_s >= 3600 * hours:
                break
            clips.append(clip)
            filled_s += clip.seconds
        features = {clip.id: cached[clip.id] if clip.id in cached else self._features(store.samples(clip)) for clip in clips}
        some = np.concatenate([np.asarray(each, np.float32) for each in list(features.values())[:400]])
        speech.labelled, speech.tables = [(0, clip, clip.text) for clip in clips], [features]
        speech.spread = self._spread = some.mean(0), some.std(0) + 1e-3
        print(f"probe: {filled_s / 3600:.2f} h of {len(clips)} training clips, {passes} passes")
        self._probe = train_probe(speech, passes=passes, seed=seed)

    def words_ms(self, samples: Floats, words: Sequence[str]) -> tuple[list[float], list[float]]:
        """Where each word begins and ends: the moments of its first and of its last character."""
        import torch
        from dragoman.model.training.align import viterbi
        from dragoman.model.training.teachers import CENTRE_SAMPLES, HOP_SAMPLES
        from dragoman.model.training.text import ctc_targets

        standard = (np.asarray(self._features(samples), np.float32) - self._spread[0]) / self._spread[1]
        with torch.inference_mode():
            logprobs = self._probe(torch.from_numpy(standard[None].astype(np.float32)))[0].numpy()
        at_ms = [1000 * (row * HOP_SAMPLES + CENTRE_SAMPLES) / SAMPLE_RATE for row in viterbi(logprobs, ctc_targets(" ".join(words)))]
        starts, ends, place = list[float](), list[float](), 0
        for word in words:
            letters = len(ctc_targets(word))
            if letters and place:
                place += 1  # the space
            starts.append(at_ms[min(place, len(at_ms) - 1)])
            place += letters
            ends.append(at_ms[max(0, place - 1)])
        return starts, ends

    def _features(self, samples: Floats) -> Any:
        return (self._encoder(samples) / self._unit).astype(np.float16)


def aligned(reference: Reference, clips: Sequence[Clip]) -> dict[str, Times]:
    """Word times of each clip, in ms, by its name."""
    return {clip.name: list(zip(*reference.words_ms(clip.read(), clip.text.split()), strict=True)) for clip in clips}


def check(clips: Sequence[Clip], times: Mapping[str, Times]) -> str:
    """What the level of the clips says of the reference itself."""
    first_ms, last_ms = list[float](), list[float]()
    for clip in clips:
        first, last = (1000 * place / SAMPLE_RATE for place in speech_span(clip.read(), clip.name))
        first_ms.append(times[clip.name][0][0] - first)
        last_ms.append(times[clip.name][-1][1] - last)
    says = f"the first word of a clip begins {median(first_ms):+.0f} ms and the last one ends {median(last_ms):+.0f} ms"
    return f"reference: {says} (medians) from where the level says that speech does"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--split", default="dev-clean")
    parser.add_argument("--limit", type=int, default=60, help="clips")
    parser.add_argument("--model", default="small")
    parser.add_argument("--blocks", type=int, nargs="+", default=[320, 640])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--probe-hours", type=float, default=2.0)
    parser.add_argument("--probe-passes", type=int, default=8)
    parser.add_argument("--reference", type=Path, help="file for the alignment")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    loaded, clips = load(given.model, threads=given.threads), read_clips(given.store, given.split)[: given.limit]
    if given.reference is not None and given.reference.exists():
        times = json.loads(given.reference.read_text())
    else:
        times = aligned(Reference(Store(given.store), given.probe_hours, given.probe_passes, given.threads, given.seed), clips)
        if given.reference is not None:
            given.reference.write_text(json.dumps(times))
    print(check(clips, times))
    talks = list(make_talks(clips, 120.0, seed=given.seed))
    delay_ms = loaded.backend.spec.config.hearing_delay_ms
    for block_ms in given.blocks:
        errors = Errors()
        for talk in talks:
            session = Session(loaded, SessionOptions(block_ms=block_ms), encoding="float32")
            events = [event for piece in in_pieces(talk.samples) for event in session.push(piece)]
            errors.add([*events, *session.finish()], talk, times)
        shown = f"{len(errors.ends_ms)} words matched of {errors.said} said and {errors.written} written"
        print(f"{given.split}, {len(clips)} clips, model {given.model} (hearing delay {delay_ms} ms), block {block_ms} ms: {shown}")
        print(line("ends of words", errors.ends_ms))
        print(line("beginnings", errors.starts_ms))
        far = [error for error, is_long in zip(errors.ends_ms, errors.long, strict=True) if is_long]
        print(line(f"ends of the {len(far)} words of {LONG_WORD} letters and more", far))


if __name__ == "__main__":
    main()
