"""Word error rate through the session that users meet, beside the same model on whole clips; real-time factor and peak memory too.

    python bench/streaming_wer.py --store FOLDER --split dev-clean --limit 100 --threads 1

FOLDER is a store of decoded speech (model/store.py). Each clip is one stream: pushed in 100 ms pieces, then finished.
"""

from __future__ import annotations

import argparse
import platform
import resource
import time
from pathlib import Path

import numpy as np
from dragoman.model.config import SAMPLE_RATE
from dragoman.model.load import load
from dragoman.model.scoring import word_errors
from dragoman.model.store import Store
from dragoman.model.training.evaluate import noisy, offline
from dragoman.stream import Final, Session, SessionOptions
from rich.progress import track

PIECE_SAMPLES = SAMPLE_RATE // 10
TRAILING_S = 0.3  # as in the offline figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--model", default="small")
    parser.add_argument("--split", nargs="+", default=["dev-clean"])
    parser.add_argument("--limit", type=int)
    parser.add_argument("--block-ms", type=int, default=640)
    parser.add_argument("--noise-db", type=float)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-offline", action="store_true")
    given = parser.parse_args()
    loaded, store = load(given.model, threads=given.threads), Store(given.store)
    options = SessionOptions(block_ms=given.block_ms)
    print(f"{platform.machine()}, {given.threads} thread(s), block {given.block_ms} ms, model {given.model}")
    for split in given.split:
        clips = [clip for clip in store.clips if clip.split == split][: given.limit]
        texts, compute_s, segments = [], 0.0, 0
        for clip in track(clips, description=f"streaming {split}"):
            session = Session(loaded, options, encoding="float32")
            rest = np.random.default_rng(0).standard_normal(int(TRAILING_S * SAMPLE_RATE), dtype=np.float32) * 1e-3
            wave = np.concatenate([noisy(store, clip, given.noise_db), rest]).astype(np.float32)
            begin = time.process_time()
            events = [event for i in range(0, len(wave), PIECE_SAMPLES) for event in session.push(wave[i : i + PIECE_SAMPLES])]
            events += session.finish()
            compute_s += time.process_time() - begin
            finals = [event.text for event in events if isinstance(event, Final)]
            segments += len(finals)
            texts.append(" ".join(finals))
        references = [clip.text for clip in clips]
        audio_s = sum(clip.seconds for clip in clips)
        line = f"{split}: streaming {word_errors(references, texts)}; {len(clips)} clips, {segments} segments"
        print(f"{line}; {compute_s / audio_s:.3f} CPU seconds for each audio second")
        if not given.no_offline:
            print(f"{split}: offline   {word_errors(references, offline(loaded, store, clips, noise_db=given.noise_db))}")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
