"""The Backend over ONNX Runtime: exported graphs, no torch. Streams run one after the other.

Everything that changes while a stream runs lives in its OnnxCache. Axes as in ``onnx_graphs.py``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from .backend import Cache, Floats, Hidden, Ids, ModelSpec, Step, check_apart, check_frames, check_patches, ids_to_embed
from .cache import SLACK_TOKENS, SLIDING, Mask, new_ring
from .config import BackboneConfig, ModelConfig
from .errors import BackendError, CacheError, TaskError
from .graph_weights import NOTE
from .onnx_cache import OnnxCache, Store

ort: Any = onnxruntime  # untyped
FORMAT = 1
_HEAD_ROWS = 64  # positions that go through the head at once: 12B's logits are 1 MB for each
_LOWEST = np.float32(-3e38)
_LARGE_BYTES = 64_000_000  # of weights: with less, a second thread takes more time to wake than it saves


class OnnxBackend:
    """See ``Backend``. ``graphs``: a folder that ``export.py`` wrote. Raises BackendError if ONNX Runtime cannot load them."""

    def __init__(
        self,
        graphs: Path,
        config: ModelConfig,
        *,
        name: str = "onnx",
        threads: int | None = None,
        slack_tokens: int = SLACK_TOKENS,
        max_draft: int = 4,
    ) -> None:
        self.config, self.slack_tokens = config, slack_tokens
        self.precision, self.exported_from = _read_note(graphs)
        self._table: NDArray[Any] = _read_table(graphs / "embeddings.npy", config.backbone)
        self._scale = np.float32(config.backbone.hidden_size**0.5)
        busy = threads or _threads(graphs / "backbone.data", None)
        self._backbone = _open(graphs / "backbone.onnx", busy)
        self._head, self._projector = (_open_beside(graphs / f"{name}.onnx", threads) for name in ("head", "projector"))
        self._vision, self._drafter = (
            _open_beside(path, threads) if path.is_file() else None for path in (graphs / "vision.onnx", graphs / "drafter.onnx")
        )
        graphs_run = {"backbone": self._backbone, "drafter": self._drafter}
        self._outputs = {name: [output.name for output in graph.get_outputs()] for name, graph in graphs_run.items() if graph is not None}
        self.spec = ModelSpec(name, config, max_draft=0 if self._drafter is None else max_draft, together=False, threads=busy)
        kinds = config.backbone.layer_types
        self._layers = {str(layer): (kind, kinds[:layer].count(kind)) for layer, kind in enumerate(kinds)}
        self._last = {kind: (kind, kinds.count(kind) - 1) for kind in dict.fromkeys(kinds)}  # what the drafter reads

    def new_cache(self) -> OnnxCache:
        text = self.config.backbone
        stores: dict[str, Store] = {}
        for kind in dict.fromkeys(text.layer_types):
            layer, count = text.last_layer_of(kind), text.layer_types.count(kind)
            shape = count, text.kv_heads(layer)
            empty = np.zeros((*shape, text.dim(layer), 0), np.float32), np.zeros((*shape, 0, text.dim(layer)), np.float32)
            stores[kind] = Store(new_ring(kind, text.sliding_window, self.slack_tokens), *empty)
        return OnnxCache(stores)

    def listen(self, work: Sequence[tuple[Cache, Floats]]) -> None:
        for _, frames in work:
            check_frames(frames, self.config.audio.frame_samples)
        heard = [(cache, frames) for cache, frames in work if len(frames)]
        if heard:
            embedded = self._embed_frames(np.concatenate([frames for _, frames in heard]))
            ends = np.cumsum([len(frames) for _, frames in heard])[:-1]
            self._append([(_mine(cache), x) for (cache, _), x in zip(heard, np.split(embedded, ends), strict=True)], [0] * len(heard))

    def look(self, work: Sequence[tuple[Cache, Floats]]) -> None:
        if self._vision is None or self.config.vision is None:
            raise TaskError("this model cannot see images: its config.json has no vision_config")
        for _, patches in work:
            check_patches(patches, self.config.vision)
        self._append([(_mine(cache), self._embed_patches(patches)) for cache, patches in work], [0] * len(work), both_ways=True)

    def step(self, work: Sequence[tuple[Cache, Ids]], *, wanted: Sequence[int] | None = None) -> list[Step]:
        embedded = [(_mine(cache), self.embed_ids(ids)) for cache, ids in work]
        return self._append(embedded, [len(ids) for _, ids in work] if wanted is None else wanted)

    def draft(self, work: Sequence[tuple[Cache, tuple[Hidden, int, int]]]) -> list[Ids]:
        return [self._draft(_mine(cache), _state(hidden), token, count) for cache, (hidden, token, count) in work]

    def embed_ids(self, ids: Ids) -> Floats:
        """[n ≥ 1] ids → [n, d], scaled; errors as in ``ids_to_embed``."""
        return self._table[ids_to_embed(ids, self.config)].astype(np.float32) * self._scale

    def _embed_frames(self, frames: Floats) -> Floats:
        return self._projector.run(["x"], {"frames": _floats(frames)})[0]

    def _embed_patches(self, patches: Floats) -> Floats:
        assert self._vision is not None, "look() has checked it"
        rows, columns = (np.ascontiguousarray(places.reshape(-1)) for places in np.indices(patches.shape[:2], dtype=np.int64))
        return self._vision.run(["x"], {"patches": _floats(patches).reshape(len(rows), -1), "rows": rows, "columns": columns})[0]

    def _append(self, work: Sequence[tuple[OnnxCache, Floats]], wanted: Sequence[int], *, both_ways: bool = False) -> list[Step]:
        """Append embeddings [n, d] to each cache; answers for the last ``wanted`` positions of each. A failure takes everything back
        that the slack still reaches."""
        check_apart([cache for cache, _ in work])
        if both_ways:
            for cache, x in work:
                cache.check_room(len(x))
        marks = [(cache, cache.length) for cache, _ in work]
        try:
            return [self._append_one(cache, x, count, both_ways) for (cache, x), count in zip(work, wanted, strict=True)]
        except BaseException:
            for cache, length in marks:
                with suppress(CacheError):
                    cache.truncate(length)
            raise

    def _append_one(self, cache: OnnxCache, x: Floats, wanted: int, both_ways: bool) -> Step:
        """Cut where a rolled cache has no more room, and where the head would have too many rows (exact: causal)."""
        answers: list[Step] = []
        silent = len(x) - min(wanted, len(x))
        while len(x):
            longest = _HEAD_ROWS if silent <= 0 else silent if len(x) - silent > _HEAD_ROWS else len(x)
            block = x[: min(longest, cache.room or len(x))]
            rows = np.arange(max(0, silent), len(block), dtype=np.int64)
            answers.append(self._forward(cache, block, rows, both_ways))
            x, silent = x[len(block) :], silent - len(block)
        if len(answers) == 1:
            return answers[0]
        hidden = [state for answer in answers for state in answer.hidden]
        return Step(np.concatenate([a.ids for a in answers]), np.concatenate([a.logprobs for a in answers]), hidden)

    def _forward(self, cache: OnnxCache, x: Floats, rows: Ids, both_ways: bool) -> Step:
        count, first = len(x), cache.length
        cache.reserve(first + count)
        inputs: dict[str, NDArray[Any]] = {"x": x, "positions": np.arange(first, first + count, dtype=np.int64), "rows": rows}
        for kind, store in cache.stores.items():
            mask = self._mask(kind, store, first, count, new=count, both_ways=both_ways and kind == SLIDING)
            inputs |= {f"mask.{kind}": mask, f"split.{kind}": np.array([store.slots, count], dtype=np.int64)}
        out = self._run("backbone", self._backbone, cache, self._layers, inputs)
        for kind, store in cache.stores.items():
            store.write(store.ring.append(count), out[f"new_keys.{kind}"], out[f"new_values.{kind}"])
        if len(rows) == 0:
            return Step(np.zeros(0, np.int64), np.zeros(0, np.float32), [])
        ids, logprobs = self._head.run(["ids", "logprobs"], {"hidden": out["hidden"]})
        return Step(ids[:, 0], logprobs[:, 0], list(out["hidden"]))

    def _draft(self, cache: OnnxCache, hidden: Floats, token: int, count: int) -> Ids:
        if self._drafter is None or count <= 0:
            return np.zeros(0, dtype=np.int64)
        cache.reserve(1)  # an empty cache has no arrays to bind
        # A sliding layer sees the whole last window: the token drafted from is not in the cache yet.
        masks = {f"mask.{kind}": self._mask(kind, store, cache.length - 1, 1) for kind, store in cache.stores.items()}
        fixed = {**masks, "positions": np.array([cache.length], dtype=np.int64)}
        guesses: list[int] = []
        state = hidden[None]
        while len(guesses) < count:
            inputs = {**fixed, "hidden": state, "embedded": self.embed_ids(np.array([token]))}
            out = self._run("drafter", self._drafter, cache, self._last, inputs)
            state, token = out["next_hidden"], int(out["ids"][0, 0])
            guesses.append(token)
        return np.array(guesses, dtype=np.int64)

    def _run(
        self,
        name: str,
        session: Any,
        cache: OnnxCache,
        arrays: dict[str, tuple[str, int]],
        inputs: dict[str, NDArray[Any]],
    ) -> dict[str, NDArray[Any]]:
        binding, names = cache.binding(name, session, arrays), self._outputs[name]
        for key, value in inputs.items():
            binding.bind_cpu_input(key, value)
        for output in names:  # anew each time: the runtime would write into the last run's arrays, whatever their length
            binding.bind_output(output, "cpu")
        try:
            session.run_with_iobinding(binding)
        except Exception as error:  # the library's own exceptions have no common base
            raise BackendError(f"ONNX Runtime could not run {name}.onnx: {error}") from error
        return dict(zip(names, binding.copy_outputs_to_cpu(), strict=True))

    def _mask(self, kind: str, store: Store, first: int, count: int, *, new: int = 0, both_ways: bool = False) -> Floats:
        """[g * count, S + new]: 0 where the query at first + i may look, LOWEST elsewhere; the new positions stand behind the slots."""
        text = self.config.backbone
        heads = text.num_attention_heads // text.kv_heads(text.last_layer_of(kind))
        mask = np.full((heads, count, store.slots + new), _LOWEST, dtype=np.float32)
        ring = store.ring
        old = 0 if ring.sees_all(first, count) else np.where(ring.visible(first, count), np.float32(0), _LOWEST)
        mask[:, :, : ring.slots_used] = old
        if new == 1:
            mask[:, :, -1] = 0
        elif new:
            behind = np.arange(count)[:, None] - np.arange(count)
            seen: Mask = (both_ways | (behind >= 0)) & (behind < (ring.window or sys.maxsize))
            mask[:, :, store.slots :] = np.where(seen, np.float32(0), _LOWEST)
        return mask.reshape(heads * count, -1)


def _open(path: Path, threads: int) -> Any:
    """``threads`` 0: the runtime decides."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library's own exceptions have no common base
        raise BackendError(f"ONNX Runtime {ort.__version__} cannot load {path}: {error}") from error


def _open_beside(path: Path, threads: int | None) -> Any:
    return _open(path, _threads(path.with_suffix(".data"), threads))


def _threads(data: Path, asked: int | None) -> int:
    """One thread for little work. Each session has threads of its own, which go on looking for work for a while when it is done: beside
    the backbone's they would take a core away from it (bench/NOTES.md)."""
    few = data.is_file() and data.stat().st_size < _LARGE_BYTES
    return 1 if few else asked or 0


def _read_note(graphs: Path) -> tuple[str, object]:
    """Precision, and what ``load.weights_digests`` said of the checkpoint (None: nobody wrote it down)."""
    try:
        note = json.loads((graphs / NOTE).read_text(encoding="utf-8"))
        if note["format"] != FORMAT:
            raise BackendError(f"{graphs / NOTE} has format {note['format']}, expected {FORMAT}; export the model again")
        return str(note["precision"]), note.get("weights")
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise BackendError(f"{graphs} is not a folder of exported graphs: {type(error).__name__}: {error}") from error


def _read_table(path: Path, config: BackboneConfig) -> NDArray[Any]:
    try:
        table = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise BackendError(f"{path} is not a table of embeddings: {error}") from error
    wanted = (config.vocab_size, config.hidden_size)
    if table.shape != wanted:
        raise BackendError(f"{path} is {list(table.shape)}, expected {list(wanted)}: it belongs to another config.json")
    return table


def _floats(values: Floats) -> Floats:
    return np.ascontiguousarray(values, dtype=np.float32)


def _mine(cache: Cache) -> OnnxCache:
    if not isinstance(cache, OnnxCache):
        raise BackendError(f"expected a cache of this runtime, got {type(cache).__name__}")
    return cache


def _state(hidden: Hidden) -> Floats:
    if not isinstance(hidden, np.ndarray):
        raise BackendError(f"expected a hidden state of this runtime, got {type(hidden).__name__}")
    return cast(Floats, hidden)
