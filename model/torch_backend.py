"""The Backend over PyTorch: linear layers run on the new positions of all streams end to end, attention runs stream by stream.

Axes as in ``backbone.py``; N is the sum of the streams' new positions, S the slots of a cache. Everything that changes while a stream
runs lives in its TorchCache; the modules are never written to.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .backbone import Attend, Remember, cached_attention
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
    ids_to_embed,
    next_block,
    sides_of,
)
from .cache import SLACK_TOKENS, SLIDING, Ring, RingCache, new_ring
from .checkpoint import Model
from .config import AUDIO, SIDES
from .drafter import Drafter, check_fit
from .errors import BackendError, TaskError

_FIRST_SLOTS = 64
_HEARD = np.uint8(SIDES.index(AUDIO))
_HEAD_ROWS = 64  # positions that go through the head at once: 12B's logits are 1 MB for each


@dataclass(slots=True)
class _Store:
    """Keys and values of all layers of one kind or role, [layers, Hkv, S, D] each; S doubles up to the ring's capacity."""

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
class TorchCache(RingCache[_Store]):
    """The state of one stream."""

    def copy(self) -> TorchCache:
        return TorchCache({name: store.copy() for name, store in self.stores.items()}, None if self.sides is None else self.sides[:])


@dataclass(slots=True)
class _Part:
    """One stream's share of a forward."""

    cache: TorchCache
    rows: slice  # of the N new positions
    slots: dict[str, Tensor | slice]  # by store
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
        self._home = model.config.backbone.homes
        if drafter is not None:
            check_fit(model.config.backbone, drafter.config)

    def new_cache(self) -> TorchCache:
        text = self.config.backbone
        stores: dict[str, _Store] = {}
        for name in dict.fromkeys(text.stores):
            layer, count = text.stores.index(name), text.stores.count(name)
            empty = self._table.new_zeros(count, text.kv_heads(layer), 0, text.dim(layer))
            stores[name] = _Store(new_ring(text.layer_types[layer], text.sliding_window, self.slack_tokens), empty, empty)
        return TorchCache(stores, bytearray() if text.layer_roles else None)

    @torch.inference_mode()
    def listen(self, work: Sequence[tuple[Cache, Floats]]) -> None:
        for _, frames in work:
            check_frames(frames, self.config.audio.frame_samples)
        heard = [(_mine(cache), self.projector(self._floats(frames))) for cache, frames in work if len(frames)]
        self._append_in_blocks(heard, [np.full(len(x), _HEARD) for _, x in heard])

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
        embedded = [(_mine(cache), self.embed_ids(ids)) for cache, ids in work]
        sides = [sides_of(ids, self.config, _mine(cache).last_side) for cache, ids in work]
        hidden = self._append_in_blocks(embedded, sides)
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
    def hidden_states(self, work: Sequence[tuple[TorchCache, Tensor]], *, both_ways: bool = False, side: int = 0) -> list[Tensor]:
        """Append embeddings [n, d] to each cache in ONE forward → hidden states [n, d] after the final norm, for each.

        ``both_ways``: sliding layers let the new positions of a stream see each other's future (an image). ``side``: of all of them
        (``config.SIDES``), which matters where layers have roles. Raises CacheError, and changes nothing, if a block is longer than a
        cache's room.
        """
        if not work:
            return []
        check_apart([cache for cache, _ in work])
        for cache, x in work:
            cache.check_room(len(x))
        marks = [(cache, cache.length) for cache, _ in work]
        positions = torch.cat([torch.arange(length, length + len(x)) for (_, length), (_, x) in zip(marks, work, strict=True)])
        try:
            parts = self._reserve(work, both_ways, side)
            remember = self._remember(parts) if side == _HEARD and self.config.backbone.layer_roles else None
            given = torch.cat([x for _, x in work]), positions.to(self._table.device)
            states = self.backbone(*given, self._attend(parts), SIDES[side], remember)
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

    def _append_in_blocks(self, work: Sequence[tuple[TorchCache, Tensor]], given: Sequence[Sides]) -> list[Tensor]:
        """``hidden_states`` for causal input of any length, of the sides ``given`` [n]: cut where a rolled cache has no more room
        (exact: causal), and where layers have roles between one side and another."""
        done: list[list[Tensor]] = [[] for _ in work]
        rest, roles = [x for _, x in work], bool(self.config.backbone.layer_roles)
        while waiting := [place for place, x in enumerate(rest) if len(x)]:
            sides = {place: int(given[place][-len(rest[place])]) for place in waiting}
            turn = [place for place in waiting if not roles or sides[place] == sides[waiting[0]]]
            blocks: list[tuple[TorchCache, Tensor]] = []
            for place in turn:
                cache, x = work[place][0], rest[place]
                blocks.append((cache, x[: next_block(given[place][-len(x) :] if roles else None, len(x), cache.room)]))
            states = self.hidden_states(blocks, side=sides[waiting[0]])
            for place, (_, block), said in zip(turn, blocks, states, strict=True):
                done[place].append(said)
                rest[place] = rest[place][len(block) :]
        return [torch.cat(states) if len(states) > 1 else states[0] for states in done]

    def _reserve(self, work: Sequence[tuple[TorchCache, Tensor]], both_ways: bool, side: int) -> list[_Part]:
        parts: list[_Part] = []
        row = 0
        for cache, x in work:
            n, firsts = len(x), {name: store.ring.length for name, store in cache.stores.items()}
            part = _Part(cache, slice(row, row + n), {}, {})
            for name, slots in cache.append(n, side).items():
                store = cache.stores[name]
                part.slots[name] = self._index(slots)
                store.reserve(store.ring.slots_used)
                part.masks[name] = self._mask(store.ring, firsts[name], n, both_ways and name == SLIDING)
            parts, row = [*parts, part], row + n
        return parts

    def _index(self, slots: Ids) -> Tensor | slice:
        first, last = int(slots[0]), int(slots[-1])
        return slice(first, last + 1) if last - first == len(slots) - 1 else torch.as_tensor(slots, device=self._table.device)

    def _attend(self, parts: Sequence[_Part]) -> Attend:
        def attend(layer: int, q: Tensor, k: Tensor | None, v: Tensor | None) -> Tensor:
            name, place = self._home[layer]
            if k is not None and v is not None:
                self._write(parts, layer, k, v)
            seen: list[Tensor] = []
            for part in parts:
                store = part.cache.stores[name]
                used, mask = slice(store.ring.slots_used), part.masks.get(name)  # text sees all audio: there is no mask
                seen.append(cached_attention(q[part.rows], store.keys[place][:, used], store.values[place][:, used], mask))
            return torch.cat(seen)

        return attend

    def _remember(self, parts: Sequence[_Part]) -> Remember:
        return lambda layer, k, v: self._write(parts, layer, k, v)

    def _write(self, parts: Sequence[_Part], layer: int, k: Tensor, v: Tensor) -> None:
        name, place = self._home[layer]
        for part in parts:
            store, slots = part.cache.stores[name], part.slots[name]
            store.keys[place][:, slots] = k[part.rows].transpose(0, 1)  # [Hkv, S, D] views
            store.values[place][:, slots] = v[part.rows].transpose(0, 1)

    def _attend_shared(self, caches: Sequence[TorchCache]) -> Attend:
        """The drafter's attention: one query for each stream, over the backbone's LAST layer of the same kind (asst:211-252)."""
        kinds = self.drafter.config.text.layer_types if self.drafter is not None else ()
        # A sliding layer sees the whole last window: the token drafted from is not in the cache yet.
        homes = {kind: self.config.backbone.store_of(kind) for kind in set(kinds)}
        masks = [
            {name: self._mask(ring, ring.length - 1, 1) for name in homes.values() for ring in [cache.stores[name].ring]}
            for cache in caches
        ]

        def attend(layer: int, q: Tensor, k: Tensor | None, v: Tensor | None) -> Tensor:
            name = homes[kinds[layer]]
            seen: list[Tensor] = []
            for row, cache in enumerate(caches):
                store = cache.stores[name]
                used = store.ring.slots_used
                seen.append(cached_attention(q[row : row + 1], store.keys[-1, :, :used], store.values[-1, :, :used], masks[row][name]))
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
