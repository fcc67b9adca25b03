"""Making a store: a folder of decoded speech that training reads by memory map (:mod:`dragoman.model.store`).

Decoding Opus costs more than a training step, so it is done once; memory maps let the feeder's processes share one copy. Once
:mod:`.teachers` has run, the folder holds ``features.f16`` too: the teacher's hidden states, end to end.
"""

from __future__ import annotations

import csv
import io
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from rich.progress import track

from ..config import SAMPLE_RATE
from ..errors import AudioFormatError
from ..store import COLUMNS
from .processes import process_pool


class StoreWriter:
    """Append clips to a store folder; :meth:`close` makes the last rows readable."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._audio = (folder / "audio.i16").open("ab")
        self._offset = self._audio.tell() // 2
        table = folder / "clips.tsv"
        fresh = not table.exists()
        self._table = table.open("a", encoding="utf-8", newline="")
        if fresh:
            self._table.write("\t".join(COLUMNS) + "\n")

    def add(self, samples: NDArray[np.float32], **row: str) -> None:
        """Append one clip; ``samples`` is float32 mono at 16 kHz, the rest are the text columns of ``clips.tsv``."""
        pcm = (np.clip(samples, -1.0, 1.0) * 32767.0).astype(np.int16)
        values = {**row, "offset_samples": self._offset, "samples": len(pcm)}
        self._audio.write(pcm.tobytes())
        self._table.write("\t".join(str(values.get(name, "")) for name in COLUMNS) + "\n")
        self._offset += len(pcm)

    def take(self, folder: Path) -> None:
        """Append all clips of another store."""
        with (folder / "audio.i16").open("rb") as audio, (folder / "clips.tsv").open(encoding="utf-8", newline="") as table:
            shutil.copyfileobj(audio, self._audio)
            for row in csv.DictReader(table, delimiter="\t", quoting=csv.QUOTE_NONE):
                row["offset_samples"] = str(self._offset + int(row["offset_samples"]))
                self._table.write("\t".join(row[name] for name in COLUMNS) + "\n")
        self._offset = self._audio.tell() // 2

    def close(self) -> None:
        self._audio.close()
        self._table.close()


def decode(data: bytes, name: str) -> NDArray[np.float32]:
    """Sound file bytes → float32 mono at 16 kHz. Raises AudioFormatError naming the clip."""
    try:
        wave, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise AudioFormatError(f"{name}: not a readable sound file ({error})") from error
    mono = wave.mean(axis=1)
    return mono if rate == SAMPLE_RATE else soxr.resample(mono, rate, SAMPLE_RATE)


def build_from_shards(corpus: Path, folder: Path, workers: int = 1) -> None:
    """Decode a corpus (tar shards beside a ``manifest.tsv``) into a store, which is the same whatever the number of ``workers``."""
    rows = _manifest(corpus)
    shards = sorted({row["shard"] for row in rows.values()})
    shares = [share.tolist() for share in np.array_split(shards, workers) if len(share)]
    parts = [folder / f"part{number}" for number in range(len(shares))]
    with process_pool(workers) as pool:
        for _ in pool.map(_decode_shards, [corpus] * len(shares), shares, parts):
            pass
    writer = StoreWriter(folder)
    for part in parts:
        writer.take(part)
        shutil.rmtree(part)
    writer.close()


def _manifest(corpus: Path) -> dict[str, dict[str, str]]:
    with (corpus / "manifest.tsv").open(encoding="utf-8", newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)}


def _decode_shards(corpus: Path, shards: Sequence[str], folder: Path) -> None:
    rows, writer = _manifest(corpus), StoreWriter(folder)
    for shard in track(shards, description="decoding shards"):
        for name, data in _members(corpus / shard):
            row = rows.get(name)
            if row is not None:
                keep = {key: row[key] or "" for key in ("id", "split", "lang", "speaker", "source", "licence", "text")}
                writer.add(decode(data, name), **keep)
    writer.close()


def build_from_folder(source: Path, folder: Path, *, split: str = "train", lang: str = "en") -> int:
    """Any folder of sound files with a transcript beside each (``talk.wav`` + ``talk.txt``) → a store; returns the clip count."""
    pairs = [(path, path.with_suffix(".txt")) for path in _sound_files(source)]
    pairs = [(sound, text) for sound, text in pairs if text.exists()]
    if not pairs:
        raise AudioFormatError(f"{source}: no sound file with a .txt transcript of the same name was found")
    writer = StoreWriter(folder)
    for sound, text in track(pairs, description="decoding files"):
        transcript = " ".join(text.read_text(encoding="utf-8").split())
        writer.add(
            decode(sound.read_bytes(), str(sound)),
            id=str(sound.relative_to(source)),
            split=split,
            lang=lang,
            speaker=sound.parent.name,
            source=source.name,
            licence="user",
            text=transcript,
        )
    writer.close()
    return len(pairs)


def _sound_files(source: Path) -> Iterable[Path]:
    return sorted(path for path in source.rglob("*") if path.suffix.lower() in {".wav", ".flac", ".ogg", ".opus", ".mp3"})


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path) as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is not None:
                yield member.name, file.read()
