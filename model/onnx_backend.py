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

from .backend import (
    Cache,
    Floats,
    Hidden,
    Ids,
    ModelSpec,
    Sides,
    Step,
    check_apart,
    check_frames,
    check_patches,
    heard_ids,
    ids_to_embed,
    next_block,
    sides_of,
)
from .cache import SLACK_TOKENS, SLIDING, Mask, new_ring
from .config import AUDIO, SIDES, BackboneConfig, ModelConfig, goes_through
from .errors import BackendError, CacheError, TaskError
from .graph_weights import NOTE
from .onnx_cache import End, OnnxCache, Store

ort: Any = onnxruntime  # untyped
FORMAT = 1
_HEARD = SIDES.index(AUDIO)
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
        self._hears_end = bool(heard_ids(np.array([config.special.end_of_audio]), config)[0])
        self._end_of_audio = self.embed_ids(np.array([config.special.end_of_audio])) if self._hears_end else np.zeros(0, np.float32)
        roles = config.backbone.layer_roles
        self._backbones = {n: side if roles else "backbone" for n, side in enumerate(SIDES) if not roles or side in roles}  # by side
        busy = threads or max(_threads(graphs / f"{name}.data", None) for name in self._backbones.values())
        self._head, self._projector = (_open_beside(graphs / f"{name}.onnx", threads) for name in ("head", "projector"))
        self._vision, self._drafter = (
            _open_beside(path, threads) if path.is_file() else None for path in (graphs / "vision.onnx", graphs / "drafter.onnx")
        )
        self._graphs = {name: _open(graphs / f"{name}.onnx", busy) for name in dict.fromkeys(self._backbones.values())}
        if self._drafter is not None:
            self._graphs["drafter"] = self._drafter
        self._outputs = {name: [output.name for output in graph.get_outputs()] for name, graph in self._graphs.items()}
        self.spec = ModelSpec(name, config, max_draft=0 if self._drafter is None else max_draft, together=False, threads=busy)
        stores = config.backbone.stores
        homes = {str(layer): home for layer, home in enumerate(config.backbone.homes)}
        self._groups = {name: config.backbone.heads(i) // config.backbone.kv_heads(i) for i, name in enumerate(stores)}
        # The layers whose cache each graph looks at.
        self._layers = {
            name: {layer: home for layer, home in homes.items() if not roles or goes_through(name, home[0])}
            for name in self._backbones.values()
        }
        read = {kind: config.backbone.store_of(kind) for kind in dict.fromkeys(config.backbone.layer_types)}  # by the drafter
        self._last = {kind: (name, stores.count(name) - 1) for kind, name in read.items()}

    def new_cache(self) -> OnnxCache:
        text = self.config.backbone
        stores: dict[str, Store] = {}
        for name in dict.fromkeys(text.stores):
            layer, count = text.stores.index(name), text.stores.count(name)
            shape = count, text.kv_heads(layer)
            empty = np.zeros((*shape, text.dim(layer), 0), np.float32), np.zeros((*shape, 0, text.dim(layer)), np.float32)
            stores[name] = Store(new_ring(text.layer_types[layer], text.sliding_window, self.slack_tokens), *empty)
        return OnnxCache(stores, bytearray() if text.layer_roles else None)

    def listen(self, work: Sequence[tuple[Cache, Floats]]) -> None:
        for _, frames in work:
            check_frames(frames, self.config.audio.frame_samples)
        heard = [(cache, frames) for cache, frames in work if len(frames)]
        if heard:
            embedded = self._embed_frames(np.concatenate([frames for _, frames in heard]))
            ends = np.cumsum([len(frames) for _, frames in heard])[:-1]
            work = [(_mine(cache), x) for (cache, _), x in zip(heard, np.split(embedded, ends), strict=True)]
            self._append(work, [0] * len(work), [_heard(x) for _, x in work], may_end=self._hears_end)

    def look(self, work: Sequence[tuple[Cache, Floats]]) -> None:
        if self._vision is None or self.config.vision is None:
            raise TaskError("this model cannot see images: its config.json has no vision_config")
        for _, patches in work:
            check_patches(patches, self.config.vision)
        seen = [(_mine(cache), self._embed_patches(patches)) for cache, patches in work]
        self._append(seen, [0] * len(work), [_heard(x) for _, x in seen], both_ways=True)

    def step(self, work: Sequence[tuple[Cache, Ids]], *, wanted: Sequence[int] | None = None) -> list[Step]:
        embedded = [(_mine(cache), self.embed_ids(ids)) for cache, ids in work]
        sides = [sides_of(ids, self.config, _mine(cache).last_side) for cache, ids in work]
        counts = [len(ids) for _, ids in work] if wanted is None else wanted
        ends = [self._hears_end and int(ids[0]) == self.config.special.end_of_audio for _, ids in work]
        return self._append(embedded, counts, sides, ends=ends)

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

    def _append(
        self,
        work: Sequence[tuple[OnnxCache, Floats]],
        wanted: Sequence[int],
        sides: Sequence[Sides],
        *,
        both_ways: bool = False,
        may_end: bool = False,
        ends: Sequence[bool] | None = None,
    ) -> list[Step]:
        """Append embeddings [n, d], of the ``sides`` [n], to each cache; answers for the last ``wanted`` positions of each. A
        failure takes everything back that the slack still reaches. ``ends``: which of them begin with <audio|>; ``may_end``: nearly every
        block of audio is followed by a hypothesis, so its forward computes that token as well."""
        check_apart([cache for cache, _ in work])
        if both_ways:
            for cache, x in work:
                cache.check_room(len(x))
        marks = [(cache, cache.length) for cache, _ in work]
        try:
            given = zip(work, wanted, sides, ends or [False] * len(work), strict=True)
            return [self._append_one(cache, x, count, own, both_ways, may_end, end) for (cache, x), count, own, end in given]
        except BaseException:
            for cache, length in marks:
                with suppress(CacheError):
                    cache.truncate(length)
            raise

    def _append_one(self, cache: OnnxCache, x: Floats, wanted: int, sides: Sides, both_ways: bool, may_end: bool, ends: bool) -> Step:
        """Cut where a rolled cache has no more room, where the head would have too many rows (exact: causal), and where layers have roles
        between one side and another."""
        if ends and cache.ends and wanted < len(x):
            self._write_end(cache)
            x, sides = x[1:], sides[1:]
        answers: list[Step] = []
        silent = len(x) - min(wanted, len(x))
        while len(x):
            longest = _HEAD_ROWS if silent <= 0 else silent if len(x) - silent > _HEAD_ROWS else len(x)
            count = next_block(sides if self.config.backbone.layer_roles else None, min(longest, len(x)), cache.room)
            rows = np.arange(max(0, silent), count, dtype=np.int64)
            and_end = may_end and count == len(x) and (cache.room is None or cache.room > count)
            answers.append(self._forward(cache, x[:count], rows, int(sides[0]), both_ways, and_end=and_end))
            x, sides, silent = x[count:], sides[count:], silent - count
        if len(answers) == 1:
            return answers[0]
        hidden = [state for answer in answers for state in answer.hidden]
        return Step(np.concatenate([a.ids for a in answers]), np.concatenate([a.logprobs for a in answers]), hidden)

    def _write_end(self, cache: OnnxCache) -> None:
        """Append <audio|>, of which the last block of audio has left what it would leave."""
        assert cache.end is not None, "the cache ends"
        cache.reserve(1, _HEARD, ())
        for store, slots in cache.append(1, _HEARD).items():
            cache.stores[store].write(slots, *cache.end.kept[store])

    def _forward(self, cache: OnnxCache, x: Floats, rows: Ids, side: int, both_ways: bool, *, and_end: bool = False) -> Step:
        """``and_end``: <audio|> goes through behind x, and is not appended."""
        kept = len(x)
        x = np.concatenate([x, self._end_of_audio]) if and_end else x
        count, first, name = len(x), cache.length, self._backbones[side]
        looked_at = dict.fromkeys(store for store, _ in self._layers[name].values())
        cache.reserve(count, side, looked_at)
        inputs: dict[str, NDArray[Any]] = {"x": x, "positions": np.arange(first, first + count, dtype=np.int64), "rows": rows}
        taking = cache.taking(side)
        for store_name in looked_at:
            store = cache.stores[store_name]
            if store_name in taking:
                mask = self._mask(
                    store, self._groups[store_name], store.ring.length, count, new=count, both_ways=both_ways and store_name == SLIDING
                )
                inputs[f"split.{store_name}"] = np.array([store.slots, count], dtype=np.int64)
            else:  # text looks at all audio
                mask = np.where(np.arange(store.slots) < store.ring.slots_used, np.float32(0), _LOWEST)[None]
            inputs[f"mask.{store_name}"] = mask
        out = self._run(name, cache, self._layers[name], inputs)
        made = {name: (out[f"new_keys.{name}"], out[f"new_values.{name}"]) for name in taking}
        for store_name, slots in cache.append(kept, side).items():
            keys, values = made[store_name]
            cache.stores[store_name].write(slots, keys[..., :kept], values[:, :, :kept])
        if side == _HEARD:
            cache.end = None
        if and_end:
            ended = {name: (keys[..., kept:].copy(), values[:, :, kept:].copy()) for name, (keys, values) in made.items()}
            cache.end = End(cache.length, ended)
        if len(rows) == 0:
            return Step(np.zeros(0, np.int64), np.zeros(0, np.float32), [])
        ids, logprobs = self._head.run(["ids", "logprobs"], {"hidden": out["hidden"]})
        return Step(ids[:, 0], logprobs[:, 0], list(out["hidden"]))

    def _draft(self, cache: OnnxCache, hidden: Floats, token: int, count: int) -> Ids:
        if self._drafter is None or count <= 0:
            return np.zeros(0, dtype=np.int64)
        cache.reserve(0, _HEARD, {store for store, _ in self._last.values()})
        # A sliding layer sees the whole last window: the token drafted from is not in the cache yet.
        stores = {kind: cache.stores[name] for kind, (name, _) in self._last.items()}
        masks = {
            f"mask.{kind}": self._mask(store, self._groups[self._last[kind][0]], store.ring.length - 1, 1) for kind, store in stores.items()
        }
        fixed = {**masks, "positions": np.array([cache.length], dtype=np.int64)}
        guesses: list[int] = []
        state = hidden[None]
        while len(guesses) < count:
            inputs = {**fixed, "hidden": state, "embedded": self.embed_ids(np.array([token]))}
            out = self._run("drafter", cache, self._last, inputs)
            state, token = out["next_hidden"], int(out["ids"][0, 0])
            guesses.append(token)
        return np.array(guesses, dtype=np.int64)

    def _run(
        self,
        name: str,
        cache: OnnxCache,
        arrays: dict[str, tuple[str, int]],
        inputs: dict[str, NDArray[Any]],
    ) -> dict[str, NDArray[Any]]:
        session = self._graphs[name]
        binding, names = cache.binding(name, session, arrays), self._outputs[name]
        for key, value in inputs.items():
            binding.bind_cpu_input(key, value)
        for output in names:  # anew each time: the runtime would write into the last run's arrays, whatever their length
            binding.bind_output(output, "cpu")
        try:
            session.run_with_iobinding(binding)
        except Exception as error:  # the library's own exceptions have no common base
            raise BackendError(f"ONNX Runtime could not run {name}.onnx: {error}") from error
        outputs = dict(zip(names, binding.copy_outputs_to_cpu(), strict=True))
        binding.clear_binding_outputs()  # else each stream keeps those of its last run
        return outputs

    def _mask(self, store: Store, heads: int, first: int, count: int, *, new: int = 0, both_ways: bool = False) -> Floats:
        """[heads * count, S + new]: 0 where the query at first + i may look, LOWEST elsewhere; the new positions stand behind the slots.
        ``heads``: of queries for each key head."""
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


def _heard(x: Floats) -> Sides:
    return np.full(len(x), _HEARD, np.uint8)


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
