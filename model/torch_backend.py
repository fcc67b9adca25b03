"""The Backend over PyTorch: linear layers run on the new positions of all streams end to end, attention runs stream by stream.

Axes as in ``backbone.py``; N is the sum of the streams' new positions, S the slots of a cache. Everything that changes while a stream
runs lives in its TorchCache; the modules are never written to.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .backbone import Attend, cached_attention
from .backend import Cache, Floats, Hidden, Ids, ModelSpec, Step, check_apart, check_frames, check_patches, ids_to_embed
from .cache import SLACK_TOKENS, SLIDING, Ring, RingCache, new_ring
from .checkpoint import Model
from .drafter import Drafter, check_fit
from .errors import BackendError, TaskError

_FIRST_SLOTS = 64
_HEAD_ROWS = 64  # positions that go through the head at once: 12B's logits are 1 MB for each


@dataclass(slots=True)
class _Store:
    """Keys and values of all layers of one kind, [layers, Hkv, S, D] each; S doubles up to the ring's capacity."""

    ring: Ring
    keys: Tensor
    values: Tensor

    def reserve(self, slots: int) -> None:
        held = self.keys.shape[2]
        if slots <= held:
            return
        wanted = min(max(slots, 2 * held, _FIRST_SLOTS), self.ring.capacity or sys.maxsize)
        self.keys, self.values = _longer(self.keys, wanted, held), _longer(self.values, wanted, held)

    def copy(self) -> _Store:
        used = slice(self.ring.slots_used)
        return _Store(self.ring.copy(), self.keys[:, :, used].clone(), self.values[:, :, used].clone())


def _longer(old: Tensor, slots: int, kept: int) -> Tensor:
    new = old.new_zeros(old.shape[0], old.shape[1], slots, old.shape[3])
    new[:, :, :kept] = old
    return new


@dataclass(slots=True)
class TorchCache(RingCache):
    """The state of one stream."""

    stores: dict[str, _Store]  # kind of layer → its keys and values

    def rings(self) -> Iterable[Ring]:
        return (store.ring for store in self.stores.values())

    def copy(self) -> TorchCache:
        return TorchCache({kind: store.copy() for kind, store in self.stores.items()})


@dataclass(slots=True)
class _Part:
    """One stream's share of a forward."""

    cache: TorchCache
    rows: slice  # of the N new positions
    slots: dict[str, Tensor | slice]  # by kind of layer
    masks: dict[str, Tensor | None]  # [n, S]; None: every slot is seen


class TorchBackend:
    """See ``Backend``. ``model`` and ``drafter`` are shared by all streams; one device, one dtype."""

    def __init__(
        self, model: Model, drafter: Drafter | None = None, *, name: str = "torch", slack_tokens: int = SLACK_TOKENS, max_draft: int = 4
    ) -> None:
        self.config, self.backbone, self.projector = model.config, model.backbone, model.projector
        self.vision, self.drafter, self.slack_tokens = model.vision, drafter, slack_tokens
        self._table = self.backbone.embed_tokens.weight
        threads = torch.get_num_threads() if self._table.device.type == "cpu" else 0
        self.spec = ModelSpec(name, model.config, max_draft=0 if drafter is None else max_draft, threads=threads)
        kinds = model.config.backbone.layer_types  # a layer's home: its kind, and which of its kind it is
        self._home = [(kind, kinds[:layer].count(kind)) for layer, kind in enumerate(kinds)]
        if drafter is not None:
            check_fit(model.config.backbone, drafter.config)

    def new_cache(self) -> TorchCache:
        text = self.config.backbone
        stores: dict[str, _Store] = {}
        for kind in dict.fromkeys(text.layer_types):
            layer, count = text.last_layer_of(kind), text.layer_types.count(kind)
            empty = self._table.new_zeros(count, text.kv_heads(layer), 0, text.dim(layer))
            stores[kind] = _Store(new_ring(kind, text.sliding_window, self.slack_tokens), empty, empty)
        return TorchCache(stores)

    @torch.inference_mode()
    def listen(self, work: Sequence[tuple[Cache, Floats]]) -> None:
        for _, frames in work:
            check_frames(frames, self.config.audio.frame_samples)
        self._append_in_blocks([(_mine(cache), self.projector(self._floats(frames))) for cache, frames in work if len(frames)])

    @torch.inference_mode()
    def look(self, work: Sequence[tuple[Cache, Floats]]) -> None:
        if self.vision is None or self.config.vision is None:
            raise TaskError("this model cannot see images: its config.json has no vision_config")
        for _, patches in work:
            check_patches(patches, self.config.vision)
        self.hidden_states([(_mine(cache), self.vision(self._floats(patches))) for cache, patches in work], both_ways=True)

    @torch.inference_mode()
    def step(self, work: Sequence[tuple[Cache, Ids]], *, wanted: Sequence[int] | None = None) -> list[Step]:
        wanted = [len(ids) for _, ids in work] if wanted is None else wanted
        hidden = self._append_in_blocks([(_mine(cache), self.embed_ids(ids)) for cache, ids in work])
        rows = [states[-count:] for states, count in zip(hidden, wanted, strict=True)]
        if not rows:
            return []
        ids, logprobs = self._answers(torch.cat(rows))
        ends = np.cumsum([len(states) for states in rows])
        cuts = [slice(end - len(states), end) for states, end in zip(rows, ends, strict=True)]
        return [Step(ids[cut], logprobs[cut], list(states.unbind(0))) for states, cut in zip(rows, cuts, strict=True)]

    @torch.inference_mode()
    def draft(self, work: Sequence[tuple[Cache, tuple[Hidden, int, int]]]) -> list[Ids]:
        if self.drafter is None or not work:
            return [np.zeros(0, dtype=np.int64) for _ in work]
        hidden = torch.stack([_state(state) for _, (state, _, _) in work])
        tokens, caches = np.array([token for _, (_, token, _) in work], dtype=np.int64), [_mine(cache) for cache, _ in work]
        guesses: list[Ids] = []
        for _ in range(max(count for _, (_, _, count) in work)):
            logits, hidden = self.draft_logits(caches, tokens, hidden)
            tokens = self._suppress(logits.float()).argmax(-1).cpu().numpy()
            guesses.append(tokens)
        drafts = np.array(guesses, dtype=np.int64).reshape(-1, len(work))
        return [drafts[:count, row] for row, (_, (_, _, count)) in enumerate(work)]

    @torch.inference_mode()
    def draft_logits(self, caches: Sequence[TorchCache], tokens: Ids, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """One step of the drafter: last tokens [N], hidden [N, D] → logits [N, vocab], hidden [N, D] for the next step."""
        assert self.drafter is not None, "no drafter was loaded"
        positions = torch.tensor([cache.length for cache in caches], device=self._table.device)
        return self.drafter(self.embed_ids(tokens), hidden, positions, self._attend_shared(caches))

    @torch.inference_mode()
    def hidden_states(self, work: Sequence[tuple[TorchCache, Tensor]], *, both_ways: bool = False) -> list[Tensor]:
        """Append embeddings [n, d] to each cache in ONE forward → hidden states [n, d] after the final norm, for each.

        ``both_ways``: sliding layers let the new positions of a stream see each other's future (an image).
        Raises CacheError, and changes nothing, if a block is longer than a cache's room.
        """
        if not work:
            return []
        check_apart([cache for cache, _ in work])
        for cache, x in work:
            cache.check_room(len(x))
        marks = [(cache, cache.length) for cache, _ in work]
        positions = torch.cat([torch.arange(length, length + len(x)) for (_, length), (_, x) in zip(marks, work, strict=True)])
        try:
            parts = self._reserve(work, both_ways)
            states = self.backbone(torch.cat([x for _, x in work]), positions.to(self._table.device), self._attend(parts))
        except BaseException:
            for cache, length in marks:
                cache.truncate(length)
            raise
        return [states[part.rows] for part in parts]

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """[n, d] → [n, vocab] fp32, soft-capped, suppressed ids at -inf."""
        return self._suppress(self.backbone.logits(hidden).float())

    @torch.inference_mode()
    def embed_ids(self, ids: Ids) -> Tensor:
        """[n ≥ 1] ids → [n, d], scaled; errors as in ``ids_to_embed``."""
        return self.backbone.embed(torch.as_tensor(ids_to_embed(ids, self.config), device=self._table.device))

    def _append_in_blocks(self, work: Sequence[tuple[TorchCache, Tensor]]) -> list[Tensor]:
        """``hidden_states`` for causal input of any length: cut where a rolled cache has no more room (exact: causal)."""
        done: list[list[Tensor]] = [[] for _ in work]
        rest = [x for _, x in work]
        while any(len(x) for x in rest):
            turn = [place for place, x in enumerate(rest) if len(x)]
            blocks = [(work[place][0], rest[place][: work[place][0].room]) for place in turn]
            for place, (_, block), states in zip(turn, blocks, self.hidden_states(blocks), strict=True):
                done[place].append(states)
                rest[place] = rest[place][len(block) :]
        return [torch.cat(states) if len(states) > 1 else states[0] for states in done]

    def _reserve(self, work: Sequence[tuple[TorchCache, Tensor]], both_ways: bool) -> list[_Part]:
        parts: list[_Part] = []
        row = 0
        for cache, x in work:
            n, first = len(x), cache.length
            part = _Part(cache, slice(row, row + n), {}, {})
            for kind, store in cache.stores.items():
                part.slots[kind] = self._index(store.ring.append(n))
                store.reserve(store.ring.slots_used)
                part.masks[kind] = self._mask(store.ring, first, n, both_ways and kind == SLIDING)
            parts, row = [*parts, part], row + n
        return parts

    def _index(self, slots: Ids) -> Tensor | slice:
        first, last = int(slots[0]), int(slots[-1])
        return slice(first, last + 1) if last - first == len(slots) - 1 else torch.as_tensor(slots, device=self._table.device)

    def _attend(self, parts: Sequence[_Part]) -> Attend:
        def attend(layer: int, q: Tensor, k: Tensor | None, v: Tensor | None) -> Tensor:
            assert k is not None and v is not None, "the backbone projects keys and values"
            kind, place = self._home[layer]
            seen: list[Tensor] = []
            for part in parts:
                store, slots = part.cache.stores[kind], part.slots[kind]
                keys, values = store.keys[place], store.values[place]  # [Hkv, S, D] views
                keys[:, slots] = k[part.rows].transpose(0, 1)
                values[:, slots] = v[part.rows].transpose(0, 1)
                used = slice(store.ring.slots_used)
                seen.append(cached_attention(q[part.rows], keys[:, used], values[:, used], part.masks[kind]))
            return torch.cat(seen)

        return attend

    def _attend_shared(self, caches: Sequence[TorchCache]) -> Attend:
        """The drafter's attention: one query for each stream, over the backbone's LAST layer of the same kind (asst:211-252)."""
        kinds = self.drafter.config.text.layer_types if self.drafter is not None else ()
        # A sliding layer sees the whole last window: the token drafted from is not in the cache yet.
        masks = [{kind: self._mask(store.ring, cache.length - 1, 1) for kind, store in cache.stores.items()} for cache in caches]

        def attend(layer: int, q: Tensor, k: Tensor | None, v: Tensor | None) -> Tensor:
            kind = kinds[layer]
            seen: list[Tensor] = []
            for row, cache in enumerate(caches):
                store = cache.stores[kind]
                used = store.ring.slots_used
                seen.append(cached_attention(q[row : row + 1], store.keys[-1, :, :used], store.values[-1, :, :used], masks[row][kind]))
            return torch.cat(seen)

        return attend

    def _mask(self, ring: Ring, first: int, count: int, both_ways: bool = False) -> Tensor | None:
        mask = ring.visible(first, count, both_ways=both_ways)
        return None if mask.all() else torch.as_tensor(mask, device=self._table.device)

    def _answers(self, hidden: Tensor) -> tuple[Ids, Floats]:
        """[n, d] → best ids [n], their log-probabilities [n]."""
        best: list[Tensor] = []
        logprobs: list[Tensor] = []
        for first in range(0, len(hidden), _HEAD_ROWS):
            scores = self.logits(hidden[first : first + _HEAD_ROWS])
            top, ids = scores.max(-1)
            best.append(ids)
            logprobs.append(top - scores.logsumexp(-1))  # log-softmax of the best
        return torch.cat(best).cpu().numpy(), torch.cat(logprobs).cpu().numpy()

    def _suppress(self, scores: Tensor) -> Tensor:
        ids = [token for token in self.config.special.suppressed if 0 <= token < scores.shape[-1]]
        scores[..., ids] = -torch.inf
        return scores

    def _floats(self, values: Floats) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(values, dtype=np.float32), device=self._table.device)


def _mine(cache: Cache) -> TorchCache:
    if not isinstance(cache, TorchCache):
        raise BackendError(f"expected a cache of this runtime, got {type(cache).__name__}")
    return cache


def _state(hidden: Hidden) -> Tensor:
    if not isinstance(hidden, Tensor):
        raise BackendError(f"expected a hidden state of this runtime, got {type(hidden).__name__}")
    return hidden
