"""Word error rate of a model folder on the dev splits of a store, whole clips at once ("offline"); BLEU and chrF of its translations.

    python -m dragoman.model.training.evaluate --store FOLDER --model small --split dev-clean
    python -m dragoman.model.training.evaluate --model small --to de --pairs en-de.tsv.xz                      # from the English text
    python -m dragoman.model.training.evaluate --model small --to de --pairs en-de.tsv.xz --store FOLDER --split held-out   # from speech

Translation is measured on the 1,000 held-out pairs of the file; from speech, on the clips that say their English sides.

The figure through the session that users meet comes from bench/streaming_wer.py; it may be at most a point worse.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from ..errors import as_command
from ..load import Loaded, load
from ..offline import transcribe_job, transcript, translate_job
from ..scoring import WordErrors, word_errors
from ..store import Clip, Store
from ..work import run_together
from .augment import rms
from .sentences import plain
from .translations import Pair, read_held_out


def offline(loaded: Loaded, store: Store, clips: Sequence[Clip], *, batch: int = 16, noise_db: float | None = None) -> list[str]:
    """Transcripts of whole clips; ``noise_db`` adds the store's noise clips at that signal-to-noise ratio."""
    return heard(loaded, [clip.samples for clip in clips], lambda i: noisy(store, clips[i], noise_db), batch=batch)


def heard(loaded: Loaded, samples: Sequence[int], wave: Callable[[int], NDArray[np.float32]], *, batch: int = 16) -> list[str]:
    """Transcripts of whole waves, given how long each is, and each when its turn comes; those of like length together."""
    order = sorted(range(len(samples)), key=samples.__getitem__)
    texts = [""] * len(samples)
    groups = [order[i : i + batch] for i in range(0, len(order), batch)]
    for group in track(groups, description="transcribing"):
        found = run_together(loaded.backend, [transcribe_job(loaded, wave(i)) for i in group])
        for i, hypo in zip(group, found, strict=True):
            texts[i] = transcript(loaded, hypo)
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


def translation_report(
    loaded: Loaded, target: str, held_out: Sequence[Pair], store: Store | None, split: str, *, limit: int | None, noise_db: float | None
) -> tuple[str, list[dict[str, str]]]:
    """BLEU and chrF (sacrebleu) as a line, and the triples behind them; without a store the English text is translated."""
    references: dict[str, list[str]] = defaultdict(list)
    for english, other in held_out:
        references[plain(english)].append(other)
    if store is None:
        wanted = [(english, None) for english in dict.fromkeys(english for english, _ in held_out)][:limit]
    else:
        wanted = [(clip.text, clip) for clip in store.clips if clip.split == split and plain(clip.text) in references][:limit]
    if not wanted:
        raise SystemExit(f"no clip of split {split!r} says the English side of a held-out pair")
    texts: list[str] = []
    for english, clip in track(wanted, description=f"translating into {target}"):
        heard = None if clip is None or store is None else noisy(store, clip, noise_db)
        job = translate_job(loaded, target, samples=heard, transcript=english if clip is None else None)
        texts.append(loaded.tokenizer.decode(run_together(loaded.backend, [job])[0].ids).strip())
    triples = [{"english": e, "reference": references[plain(e)][0], "hypothesis": t} for (e, _), t in zip(wanted, texts, strict=True)]
    return translation_scores(texts, [references[plain(english)] for english, _ in wanted]), triples


def translation_scores(texts: Sequence[str], references: Sequence[Sequence[str]]) -> str:
    """Corpus BLEU and chrF2 with their signatures; a text may have several references."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    most = max(len(each) for each in references)
    streams: Any = [[each[i] if i < len(each) else None for each in references] for i in range(most)]  # None: no further one
    lines: list[str] = []
    for metric in (BLEU(), CHRF()):
        score = metric.corpus_score(list(texts), streams)
        lines.append(f"{score.name} {score.score:.1f} ({metric.get_signature()})")
    return "; ".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, help="folder made by the training reader, with dev clips")
    parser.add_argument("--to", help="measure translation into this language instead")
    parser.add_argument("--pairs", type=Path, help="with --to: file of English TAB other, the last pairs of which are held out")
    parser.add_argument("--model", default="small")
    parser.add_argument("--split", nargs="+", default=["dev-clean"])
    parser.add_argument("--limit", type=int, help="only the first clips of each split")
    parser.add_argument("--noise-db", type=float, help="add noise clips at this signal-to-noise ratio")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write references and hypotheses here, one JSON object a line")
    given = parser.parse_args(arguments)
    if (given.to is None) != (given.pairs is None) or (given.to is None and given.store is None):
        parser.error("expected --store, or --to and --pairs together")
    loaded, store = load(given.model, threads=given.threads), None if given.store is None else Store(given.store)
    held_out = [] if given.pairs is None else read_held_out(given.pairs)
    for split in given.split if store is not None else ["text"]:
        begin = time.monotonic()
        if given.to is not None:
            line, pairs = translation_report(loaded, given.to, held_out, store, split, limit=given.limit, noise_db=given.noise_db)
        else:
            assert store is not None
            line, pairs = report(loaded, store, split, limit=given.limit, noise_db=given.noise_db)
        print(f"{split}: {line}, {len(pairs)} clips or sentences, {time.monotonic() - begin:.0f} s")
        if given.out is not None:
            with given.out.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps({"split": split, **pair}) + "\n" for pair in pairs)


if __name__ == "__main__":
    as_command(main)
