"""What a run needs before its first step: stores of decoded or synthetic speech, the teacher's features, the teachers' texts.

Made by one process for each core, because none of it uses a second thread well. Each part goes on where a killed run stopped.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from ..errors import ConfigError
from . import text
from .labels import write_labels
from .store import build_from_folder, build_from_shards
from .synthesis import read_sentences, synthesise
from .teachers import write_features
from .voices import Flite


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """One store of speech. ``shards``, ``audio`` or ``reads`` says what to make it from; none of them: it exists."""

    folder: str
    weight: float = 1.0  # share of its labelled clips in the batches, for each second
    shards: str | None = None  # folder of tar shards with a manifest.tsv
    audio: str | None = None  # folder of sound files with a .txt beside each
    reads: str | None = None  # text file, one sentence a line, read by flite's voices (synthesis.py) for ``hours``
    hours: float = 8.0
    features: bool = True  # regress the teacher's features on it
    labels: float | None = None  # take the teachers' texts (labels.py), for clips without a transcript at this share of ``weight``


def user_path(name: str) -> Path:
    return Path(name).expanduser()


def make_stores(stores: Sequence[StoreOptions], workers: int) -> None:
    """Make every store that is not there yet, and its features as soon as it is."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        running: dict[Future[None], StoreOptions | None] = {pool.submit(make_store, store): store for store in stores}
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                made = running.pop(future)
                future.result()
                if made is not None and made.features:
                    folder = user_path(made.folder)
                    running |= {pool.submit(write_features, folder, part, workers): None for part in range(workers)}


def make_store(store: StoreOptions) -> None:
    """Decode or synthesise one store. Raises ConfigError where nothing says what it is made from."""
    folder = user_path(store.folder)
    if store.reads is not None:
        synthesise(Flite(), read_sentences(user_path(store.reads)), folder, hours=store.hours)
    elif not (folder / "clips.tsv").exists():
        part = folder.with_name(f"part.{folder.name}")  # a store that stands under its name is whole
        shutil.rmtree(part, ignore_errors=True)
        if store.shards is not None:
            build_from_shards(user_path(store.shards), part)
        elif store.audio is not None:
            build_from_folder(user_path(store.audio), part)
        else:
            raise ConfigError(f"the store {folder} does not exist, and none of 'shards', 'audio' and 'reads' says what to make it from")
        os.replace(part, folder)


def make_labels(folders: Iterable[Path], case: text.TrueCaser, workers: int) -> None:
    """The teachers' texts for the stores that ask for them."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        parts = [pool.submit(write_labels, folder, case, part, workers) for folder in folders for part in range(workers)]
        for future in parts:
            future.result()
