"""Whether a model has learnt to hear or has learnt its clips by heart: word error rate of clips that it learnt from, and of new ones.

    python bench/known_and_new.py --store FOLDER --model small
    python bench/known_and_new.py --store FOLDER --model small --voice    # the same sentences in a voice that it may not know (hibari-tts)

Whole clips of each source, as many of the training split as of the dev split. Where the two differ much, more hours of the same clips do
not help; where they do not once a voice reads the same sentences, the sentences are not what it knows by heart.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from dragoman.model.load import load
from dragoman.model.scoring import word_errors
from dragoman.model.store import Clip, Store
from dragoman.model.training.evaluate import heard, offline
from dragoman.model.training.voices import Voice

PAIRS = (("librispeech", "dev-clean"), ("commonvoice13", "dev-commonvoice"), ("speechocean762", "dev-l2"))  # source of training, dev split
LONGEST_S = 16.0


def some_clips(store: Store, split: str, source: str | None, count: int, chance: np.random.Generator) -> list[Clip]:
    fit = [c for c in store.clips if c.split == split and c.text and c.seconds < LONGEST_S and source in (None, c.source)]
    return [fit[i] for i in chance.permutation(len(fit))[:count]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--model", default="small")
    parser.add_argument("--clips", type=int, default=100, help="of each split")
    parser.add_argument("--voice", action="store_true", help="also as Hibari reads them")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    store, loaded, voice = Store(given.store), load(given.model, threads=given.threads), None
    if given.voice:
        from dragoman.model.training.hibari import Hibari

        voice: Voice | None = Hibari()
    print("clips\tWER" + "\tread by Hibari" * given.voice)
    for source, split in PAIRS:
        for name, clips in (
            (f"train, {source}", some_clips(store, "train", source, given.clips, np.random.default_rng(1))),
            (split, some_clips(store, split, None, given.clips, np.random.default_rng(1))),
        ):
            said = [clip.text for clip in clips]
            texts = [offline(loaded, store, clips)]
            if voice is not None:
                chance = np.random.default_rng(3)
                waves = [voice.say(f"{line.lower().capitalize()}.", chance).samples for line in said]
                texts.append(heard(loaded, [len(wave) for wave in waves], waves.__getitem__))
            rates = [word_errors(said, text).rate for text in texts]
            print(f"{name} ({len(clips)})\t" + "\t".join(f"{rate:.1%}" for rate in rates), flush=True)


if __name__ == "__main__":
    main()
