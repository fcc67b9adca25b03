"""Where words are lost between a whole clip and the session that users meet: the same clips, one step after another.

    python bench/streaming_gap.py --store FOLDER --split dev-l2 dev-commonvoice --limit 150 --show 5

FOLDER is a store of decoded speech (model/store.py). Each clip is one stream, followed by 0.3 s of faint noise. The voice detector listens
once; what it found is replayed in every step. The interval behind a difference is that of 95 of 100 random draws of as many clips.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from dragoman.model.backend import Floats
from dragoman.model.config import SAMPLE_RATE
from dragoman.model.load import Loaded, load
from dragoman.model.offline import transcribe_job, transcript
from dragoman.model.scoring import word_errors
from dragoman.model.store import Clip, Store
from dragoman.model.work import run
from dragoman.stream import Final, Session, SessionOptions
from dragoman.stream.lag import Economy
from dragoman.stream.vad import Vad, make_vad

PIECE_SAMPLES = SAMPLE_RATE // 10
TRAILING_S = 0.3
FRAME_SAMPLES = 640
DRAWS = 1000
AT_THE_END = Economy(hypothesis_every=0)  # nothing is said, and so nothing committed, before a segment ends


@dataclass(frozen=True, slots=True)
class Step:
    """``detector``: whether the voice detector decides; without it all of a clip is speech."""

    name: str
    detector: bool = True
    lead_in_ms: int | None = None  # none: the default
    block_ms: int = 640
    commits: bool = True  # as it goes


STEPS = (
    Step("session, all is speech, one hypothesis at the end", detector=False, lead_in_ms=0, commits=False),
    Step("+ the voice detector decides", lead_in_ms=0, commits=False),
    Step("+ lead-in", commits=False),
    Step("+ commits as it goes, blocks of 640 ms: the default"),
    Step("the same in blocks of 320 ms", block_ms=320),
    Step("the default without lead-in", lead_in_ms=0),
)


class Replayed:
    """A detector whose decisions are known."""

    def __init__(self, decisions: Sequence[bool]) -> None:
        self._decisions = iter(decisions)

    def is_speech(self, frame: Floats) -> bool:
        return next(self._decisions, False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--model", default="small")
    parser.add_argument("--split", nargs="+", default=["dev-l2", "dev-commonvoice"])
    parser.add_argument("--limit", type=int, default=150)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--show", type=int, default=0, help="print so many clips that come out otherwise than whole")
    given = parser.parse_args()
    loaded, store = load(given.model, threads=given.threads), Store(given.store)
    for split in given.split:
        clips = [clip for clip in store.clips if clip.split == split][: given.limit]
        waves = [followed(store.samples(clip)) for clip in clips]
        heard = [decisions(wave, make_vad("silero")) for wave in waves]
        whole = [transcript(loaded, run(loaded.backend, transcribe_job(loaded, wave, 0.0))) for wave in waves]
        print(f"{split}: {len(clips)} clips\n{'whole clip, one hypothesis':52} {word_errors([clip.text for clip in clips], whole)}")
        finals: list[list[Final]] = []
        for step in STEPS:
            told = [transcribed(loaded, wave, each, step) for wave, each in zip(waves, heard, strict=True)]
            print(line(step, clips, whole, told), flush=True)
            finals = told if step is STEPS[3] else finals
        if given.show:
            show(clips, whole, finals, heard, given.show)


def followed(wave: Floats) -> Floats:
    rest = np.random.default_rng(0).standard_normal(int(TRAILING_S * SAMPLE_RATE), dtype=np.float32) * 1e-3
    return np.concatenate([wave, rest]).astype(np.float32)


def decisions(wave: Floats, vad: Vad) -> list[bool]:
    return [vad.is_speech(frame) for frame in np.pad(wave, (0, -len(wave) % FRAME_SAMPLES)).reshape(-1, FRAME_SAMPLES)]


def transcribed(loaded: Loaded, wave: Floats, heard: Sequence[bool], step: Step) -> list[Final]:
    endpoint: dict[str, Any] = {} if step.lead_in_ms is None else {"lead_in_ms": step.lead_in_ms}
    options = SessionOptions.model_validate({"block_ms": step.block_ms, "endpoint": endpoint})
    session = Session(loaded, options, encoding="float32", vad=Replayed(heard if step.detector else [True] * len(heard)))
    if not step.commits:
        session.economy = AT_THE_END
    pieces = [wave[start : start + PIECE_SAMPLES] for start in range(0, len(wave), PIECE_SAMPLES)]
    events = [*chain.from_iterable(map(session.push, pieces)), *session.finish()]
    return [event for event in events if isinstance(event, Final)]


def line(step: Step, clips: Sequence[Clip], whole: Sequence[str], told: Sequence[Sequence[Final]]) -> str:
    """Errors of a step, and by how many points it is worse than whole clips."""
    references, texts = [clip.text for clip in clips], [" ".join(final.text for final in finals) for finals in told]
    each = [(word_errors([r], [t]), word_errors([r], [w])) for r, t, w in zip(references, texts, whole, strict=True)]
    words = np.array([a.words for a, _ in each])
    more = np.array([a.rate * a.words - b.rate * b.words for a, b in each])
    drawn = np.random.default_rng(0).integers(len(clips), size=(DRAWS, len(clips)))
    low, high = np.percentile(100 * more[drawn].sum(axis=1) / words[drawn].sum(axis=1), [2.5, 97.5])
    worse = f"{100 * more.sum() / words.sum():+.1f} [{low:+.1f}, {high:+.1f}]"
    return f"{step.name:52} {word_errors(references, texts)}; {worse}; {sum(map(len, told))} segments"


def show(clips: Sequence[Clip], whole: Sequence[str], told: Sequence[Sequence[Final]], heard: Sequence[Sequence[bool]], most: int) -> None:
    other = [place for place, finals in enumerate(told) if " ".join(final.text for final in finals) != whole[place]]
    print(f"\n{len(other)} of {len(clips)} come out otherwise than whole")
    for place in other[:most]:
        speech = [frame * 40 for frame, is_speech in enumerate(heard[place]) if is_speech]
        where = f"speech from {speech[0]} to {speech[-1] + 40} ms" if speech else "no speech"
        print(f"{clips[place].id}: {len(heard[place]) * 40} ms, {where}\n  reference {clips[place].text}\n  whole     {whole[place]}")
        for final in told[place]:
            print(f"  session   {final.text}  [{final.start_ms} to {final.end_ms} ms, {final.reason}]")
    print()


if __name__ == "__main__":
    main()
