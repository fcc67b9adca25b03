"""Stores of noise and tiny students for the tests of training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tokenizers
import torch
from dragoman.model.store import Store
from dragoman.model.training.batches import Batches, BatchOptions
from dragoman.model.training.package import config_of
from dragoman.model.training.run import SizeOptions
from dragoman.model.training.speech import Speech
from dragoman.model.training.store import StoreWriter
from dragoman.model.training.student import Depths, Student
from dragoman.model.training.teachers import WIDTH

SENTENCES = ["The cat sat on the mat.", "Where is the red house?", "I like Berlin in May.", "We saw it all."]


def make_store(folder: Path, *, features: bool = True) -> Store:
    """Twelve clips of noise with transcripts, four without, and the teacher's features of all (random)."""
    rng = np.random.default_rng(0)
    writer = StoreWriter(folder)
    names = []
    for i in range(16):
        wave = rng.standard_normal(int(rng.integers(12_000, 24_000)), dtype=np.float32) * 0.1
        split = "train" if i < 12 else "unlabelled"
        writer.add(wave, id=f"clip{i}", split=split, lang="en", speaker="s", text=SENTENCES[i % 4] if i < 12 else "")
        names.append((f"clip{i}", len(wave) // 384))
    writer.add(rng.standard_normal(30_000, dtype=np.float32) * 0.1, id="fan", split="noise", lang="noise")
    writer.close()
    if features:
        total = sum(rows for _, rows in names)
        rng.standard_normal((total, WIDTH)).astype(np.float16).tofile(folder / "features-0.f16")
        (folder / "features-0.tsv").write_text("".join(f"{name}\t{rows}\n" for name, rows in names))
        rng.integers(0, 28, total).astype(np.int8).tofile(folder / "characters-0.i8")
        (folder / "characters-0.tsv").write_text("".join(f"{name}\t{rows}\n" for name, rows in names))
    return Store(folder)


def make_batches(tmp_path: Path, tokenizer: tokenizers.Tokenizer, **options: object) -> Batches:
    if not (tmp_path / "store").exists():
        make_store(tmp_path / "store")
    speech = Speech([(tmp_path / "store", 1.0)], None)
    given = {"shapes": ((96, 3, 1.0),), **options}
    return Batches(speech, tokenizer, BatchOptions(**given), seed=7, sentences=SENTENCES)  # type: ignore[arg-type]


def make_student(dropout: float = 0.0) -> Student:
    torch.manual_seed(0)
    sizes = SizeOptions(
        hidden_size=32,
        intermediate_size=64,
        layers="SSF",
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        global_head_dim=32,
        vocab_size=320,
    )
    return Student(config_of(sizes.backbone()), Depths(1, 2, 3, late=2), dropout)
