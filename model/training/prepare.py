"""What a run needs before its first step: stores of decoded or synthetic speech, the teacher's features, the teachers' texts.

Made by one process for each core, because none of it uses a second thread well. Each part goes on where a killed run stopped.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..errors import ConfigError
from . import sentences, text
from .align import align, train_probe
from .labels import write_labels
from .processes import process_pool
from .speech import Speech
from .store import build_from_folder, build_from_shards
from .synthesis import read_sentences, synthesise, voice_named
from .teachers import write_features


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """One store of speech. ``shards``, ``audio`` or ``reads`` says what to make it from; none of them: it exists."""

    folder: str
    weight: float = 1.0  # share of its labelled clips in the batches, for each second
    shards: str | None = None  # folder of tar shards with a manifest.tsv
    audio: str | None = None  # folder of sound files with a .txt beside each
    reads: str | None = None  # text file, one sentence a line, that a synthesiser reads (synthesis.py) for ``hours``
    voice: str = "flite"  # which: one of synthesis.VOICES
    hours: float = 8.0
    features: bool = True  # regress the teacher's features on it
    labels: float | None = None  # take the teachers' texts (labels.py), for clips without a transcript at this share of ``weight``


def user_path(name: str) -> Path:
    return Path(name).expanduser()


def sentences_of(names: Iterable[str]) -> Iterator[str]:
    """The lines of the text files that a run's file names."""
    for name in names:
        with user_path(name).open(encoding="utf-8") as file:
            yield from (line.rstrip("\n") for line in file)


@cache
def true_caser(names: tuple[str, ...]) -> text.TrueCaser | None:
    """Counting the words of all sentences takes seconds, and aligning, batches and the probe each want the result."""
    return text.TrueCaser(sentences_of(names)) if names else None


def labels_case(names: tuple[str, ...]) -> text.TrueCaser:
    """The same for the teachers' texts, which want one in any case."""
    return true_caser(names) or text.TrueCaser(())


def make_speech(stores: Sequence[StoreOptions], names: tuple[str, ...], texts: str | None, workers: int) -> None:
    """Make the sentences, every store, the teacher's features and texts and the word times that do not exist yet. ``names``: text files,
    one sentence a line, of which the first is written from the folder ``texts``. Raises ConfigError."""
    write_sentences(stores, names, texts)
    for store in stores:
        if store.shards is not None and store.reads is None and not (user_path(store.folder) / "clips.tsv").exists():
            _expect("stores.shards", user_path(store.shards) / "manifest.tsv")
    make_stores(stores, workers)
    wanted = [user_path(store.folder) for store in stores if store.labels is not None]
    if wanted:
        make_labels(wanted, labels_case(names), workers)
    make_word_times(stores, names, workers)


def write_sentences(stores: Sequence[StoreOptions], names: Sequence[str], texts: str | None) -> None:
    if texts is None or all(user_path(name).exists() for name in names):
        return
    shards = next((store.shards for store in stores if store.shards is not None), None)
    if shards is None or not names:
        raise ConfigError("'text' needs a store with 'shards', whose dev transcripts are left out, and text files to write to")
    manifest, folder = user_path(shards) / "manifest.tsv", user_path(texts)
    _expect("stores.shards", manifest)
    _expect("text", folder / "sentences-en.txt.xz")
    sentences.write(folder, manifest, user_path(names[0]).parent)


def _expect(key: str, path: Path) -> None:
    """``path`` is a file of the corpus. Raises ConfigError where it is not there."""
    if not path.exists():
        raise ConfigError(
            f"{key}: {path} does not exist; the corpus is not part of the repository: name audio of your own, as docs/training.md shows"
        )


def make_word_times(stores: Sequence[StoreOptions], names: tuple[str, ...], workers: int) -> None:
    """Characters and word times of all transcribed clips, once the teacher's features are there; again when there are new
    clips or labels."""
    known = [(user_path(store.folder), store.labels) for store in stores if store.features]
    if all(aligned(folder, labels is not None) for folder, labels in known):
        return
    folders = [folder for folder, _ in known]
    speech = Speech([(folder, 1.0) for folder in folders], true_caser(names), labels=[labels for _, labels in known])
    align(train_probe(speech), speech, folders, workers=workers)


def aligned(folder: Path, labels: bool) -> bool:
    """Whether nothing is newer than the word times of a store."""
    words = folder / "words.tsv"
    used = [*folder.glob("features-*.tsv"), *(folder.glob("labels-*.tsv") if labels else ())]
    return words.exists() and all(path.stat().st_mtime <= words.stat().st_mtime for path in used)


def make_stores(stores: Sequence[StoreOptions], workers: int) -> None:
    """Make every store that is not there yet, and its features as soon as it is."""
    with process_pool(workers) as pool:
        running: dict[Future[None], StoreOptions | None] = {pool.submit(make_store, store, workers): store for store in stores}
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                made = running.pop(future)
                future.result()
                if made is not None and made.features:
                    folder = user_path(made.folder)
                    running |= {pool.submit(write_features, folder, part, workers): None for part in range(workers)}


def make_store(store: StoreOptions, workers: int = 1) -> None:
    """Decode, by so many processes, or synthesise one store. Raises ConfigError where nothing says what it is made from."""
    folder = user_path(store.folder)
    if store.reads is not None:
        synthesise(voice_named(store.voice), read_sentences(user_path(store.reads)), folder, hours=store.hours)
    elif not (folder / "clips.tsv").exists():
        part = folder.with_name(f"part.{folder.name}")  # a store that stands under its name is whole
        shutil.rmtree(part, ignore_errors=True)
        if store.shards is not None:
            build_from_shards(user_path(store.shards), part, workers)
        elif store.audio is not None:
            build_from_folder(user_path(store.audio), part)
        else:
            raise ConfigError(f"the store {folder} does not exist, and none of 'shards', 'audio' and 'reads' says what to make it from")
        os.replace(part, folder)


def make_labels(folders: Iterable[Path], case: text.TrueCaser, workers: int) -> None:
    """The teachers' texts for the stores that ask for them."""
    with process_pool(workers) as pool:
        parts = [pool.submit(write_labels, folder, case, part, workers) for folder in folders for part in range(workers)]
        for future in parts:
            future.result()
