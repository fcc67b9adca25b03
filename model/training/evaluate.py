"""Word error rate of a model folder on the dev splits of a store, whole clips at once ("offline").

    python -m dragoman.model.training.evaluate --store FOLDER --model small --split dev-clean

The figure through the session that users meet comes from bench/streaming_wer.py; it may be at most a point worse.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from ..load import Loaded, load
from ..offline import transcribe_job
from ..scoring import WordErrors, word_errors
from ..store import Clip, Store
from ..work import run_together
from .augment import rms


def offline(loaded: Loaded, store: Store, clips: Sequence[Clip], *, batch: int = 16, noise_db: float | None = None) -> list[str]:
    """Transcripts of whole clips; ``noise_db`` adds the store's noise clips at that signal-to-noise ratio."""
    order = sorted(range(len(clips)), key=lambda i: clips[i].samples)
    texts = [""] * len(clips)
    groups = [order[i : i + batch] for i in range(0, len(order), batch)]
    for group in track(groups, description="transcribing"):
        waves = [noisy(store, clips[i], noise_db) for i in group]
        found = run_together(loaded.backend, [transcribe_job(loaded, wave) for wave in waves])
        for i, hypo in zip(group, found, strict=True):
            texts[i] = loaded.tokenizer.decode(hypo.ids).strip()
    return texts


def noisy(store: Store, clip: Clip, noise_db: float | None) -> NDArray[np.float32]:
    """A clip, with noise chosen by its name at a signal-to-noise ratio in dB."""
    wave = store.samples(clip)
    beds = [c for c in store.clips if c.split == "noise"]
    if noise_db is None or not beds:
        return wave
    seed = int.from_bytes(clip.id.encode()[-8:], "little") % (1 << 32)
    bed = np.resize(store.samples(beds[seed % len(beds)]), len(wave))
    level = rms(wave) / max(rms(bed), 1e-6) * 10 ** (-noise_db / 20)
    return (wave + bed * level).astype(np.float32)


def report(
    loaded: Loaded, store: Store, split: str, *, limit: int | None, noise_db: float | None
) -> tuple[WordErrors, list[dict[str, str]]]:
    clips = [clip for clip in store.clips if clip.split == split][:limit]
    if not clips:
        raise SystemExit(f"the store {store.folder} has no clip of split {split!r}; it has {sorted({c.split for c in store.clips})}")
    texts = offline(loaded, store, clips, noise_db=noise_db)
    pairs = [{"id": clip.id, "reference": clip.text, "hypothesis": text} for clip, text in zip(clips, texts, strict=True)]
    return word_errors([p["reference"] for p in pairs], [p["hypothesis"] for p in pairs]), pairs


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True, help="folder made by the training reader, with dev clips")
    parser.add_argument("--model", default="small")
    parser.add_argument("--split", nargs="+", default=["dev-clean"])
    parser.add_argument("--limit", type=int, help="only the first clips of each split")
    parser.add_argument("--noise-db", type=float, help="add noise clips at this signal-to-noise ratio")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write references and hypotheses here, one JSON object a line")
    given = parser.parse_args(arguments)
    loaded, store = load(given.model, threads=given.threads), Store(given.store)
    for split in given.split:
        begin = time.monotonic()
        errors, pairs = report(loaded, store, split, limit=given.limit, noise_db=given.noise_db)
        print(f"{split}: {errors}, {len(pairs)} clips, {time.monotonic() - begin:.0f} s")
        if given.out is not None:
            with given.out.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps({"split": split, **pair}) + "\n" for pair in pairs)


if __name__ == "__main__":
    main()
