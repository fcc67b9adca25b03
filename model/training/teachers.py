"""Hidden states of a published encoder as dense targets: hearing can be learnt from any speech, without a transcript.

The teacher is Moonshine tiny (Useful Sensors, MIT licence), whose ONNX encoder comes with the ``moonshine-voice`` package.
Row r of its output is centred near sample 384 r + 192 of the 16 kHz input (measured). Targets are thrown away after training.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from rich.progress import track

from ..store import Store

HOP_SAMPLES = 384
CENTRE_SAMPLES = 192
WIDTH = 288
SPREAD = 0.566  # standard deviation of the teacher's output, used to bring the targets to unit size
LONGEST_SAMPLES = 20 * 16_000  # attention in the teacher is quadratic; longer clips are cut into pieces of this size


def moonshine_assets() -> Path:
    """The folder of Moonshine tiny's files. Raises ModuleNotFoundError or FileNotFoundError that says what to install."""
    spec = importlib.util.find_spec("moonshine_voice")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the teacher needs the package moonshine-voice: pip install 'dragoman[train]'")
    path = Path(spec.origin).parent / "assets" / "tiny-en"
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: only moonshine-voice 0.0.x carries it; pip install 'moonshine-voice<0.1'")
    return path


class MoonshineEncoder:
    """``__call__``: float32 [samples] at 16 kHz → float32 [rows, 288], one row for each 384 samples."""

    def __init__(self, threads: int = 1) -> None:
        path = moonshine_assets() / "encoder_model.ort"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        pieces = [samples[i : i + LONGEST_SAMPLES] for i in range(0, len(samples), LONGEST_SAMPLES)]
        return np.concatenate([self._encode(piece) for piece in pieces if len(piece) >= 1024])

    def _encode(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        feed = {"input_values": samples[None], "attention_mask": np.ones((1, len(samples)), np.int64)}
        return np.asarray(self._session.run(["last_hidden_state"], feed)[0])[0]


def write_features(store_folder: Path, part: int = 0, parts: int = 1) -> None:
    """Encode every speech clip of a store whose number ≡ part (mod parts); writes ``features-<part>.f16`` and its row counts.

    Goes on where an earlier run stopped: rows are counted in a table that is flushed after the rows themselves.
    """
    store, encoder = Store(store_folder), MoonshineEncoder()
    table = store_folder / f"features-{part}.tsv"
    done: dict[str, int] = {}
    if table.exists():
        done = {line.split("\t")[0]: int(line.split("\t")[1]) for line in table.read_text().splitlines()}
    elsewhere = {line.split("\t")[0] for other in store_folder.glob("features-*.tsv") for line in other.read_text().splitlines()}
    path = store_folder / f"features-{part}.f16"
    with path.open("ab") as out, table.open("a") as rows:
        out.truncate(sum(done.values()) * WIDTH * 2)
        mine = [c for i, c in enumerate(store.clips) if i % parts == part and c.id not in elsewhere]
        mine = [c for c in mine if c.split in {"train", "unlabelled"} and c.samples >= 4096]
        for clip in track(mine, description=f"teacher features {part + 1}/{parts}"):
            features = encoder(store.samples(clip))
            out.write((features / SPREAD).astype(np.float16).tobytes())
            out.flush()
            rows.write(f"{clip.id}\t{len(features)}\n")
            rows.flush()


class FeatureTable:
    """Random access to what was written for each row of the teacher: its features, or characters aligned with them."""

    def __init__(self, store_folder: Path, name: str = "features", dtype: type[np.generic] = np.float16, width: int = WIDTH) -> None:
        self._where: dict[str, tuple[int, int, int]] = {}
        self._maps: list[NDArray[Any]] = []
        for table in sorted(store_folder.glob(f"{name}-*.tsv")):
            offset = 0
            for line in table.read_text().splitlines():
                clip, rows = line.split("\t")
                self._where[clip] = (len(self._maps), offset, int(rows))
                offset += int(rows)
            if offset:
                data = np.memmap(next(path for path in store_folder.glob(f"{table.stem}.*") if path != table), dtype=dtype, mode="r")
                self._maps.append(data[: offset * width].reshape(-1, width))

    def spread(self, clips: int = 400) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mean and standard deviation [width] over a sample of clips. A few dimensions are a hundred times wider than the rest, and say
        little: targets must be standardised one by one."""
        names = list(self._where)[:: max(1, len(self._where) // clips)]
        sample = np.concatenate([np.asarray(self[name], np.float32) for name in names])
        return sample.mean(0), sample.std(0) + 1e-3

    def __contains__(self, clip_id: str) -> bool:
        return clip_id in self._where

    def __len__(self) -> int:
        return len(self._where)

    def __getitem__(self, clip_id: str) -> NDArray[Any]:
        """[rows, width], as written."""
        which, offset, rows = self._where[clip_id]
        return self._maps[which][offset : offset + rows]
