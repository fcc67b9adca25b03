"""The ONNX runtime = the torch runtime, at the seam; and what is true of it alone: nothing of a cache's size is copied."""

from __future__ import annotations

from functools import cache as once
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dragoman.model.backend import Step
from dragoman.model.errors import AudioFormatError, BackendError, CacheError, TaskError
from dragoman.model.onnx_cache import OnnxCache
from dragoman.model.torch_backend import TorchBackend
from hypothesis import given, settings
from hypothesis import strategies as st

from .fakes import ScriptedBackend
from .onnx_models import onnx_backend
from .tiny_models import PLAIN, ROLES, SPECIAL, WINDOW, G, L, noise, some_ids, tiny_config, tiny_drafter, tiny_model

SLACK = 64
TOLERANCE = 1e-4
PATTERNS: dict[str, dict[str, Any]] = {
    "two kinds": {},
    "twice": {"layer_types": (L, G, L, G)},
    "all full": {"layer_types": (G, G)},
    "all sliding": {"layer_types": (L, L)},
    "own v": {"attention_k_eq_v": False, "num_global_key_value_heads": 2},
    "one head": {"num_key_value_heads": 1, "final_logit_softcapping": None},
    "roles": ROLES,
    "roles, own v": {**ROLES, "attention_k_eq_v": False, "num_global_key_value_heads": 2},
    "plain": PLAIN,
}
BOTH = ("two kinds", "roles")


@once
def pair(pattern: str = "two kinds") -> tuple[TorchBackend, Any]:
    """One random model on both runtimes, with a drafter where the pattern is the drafter's."""
    model = tiny_model(5, tiny_config(**PATTERNS[pattern]))
    drafter = tiny_drafter(6) if pattern in BOTH else None
    return TorchBackend(model, drafter, slack_tokens=SLACK), onnx_backend(model, drafter, slack_tokens=SLACK)


def states(step: Step) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.asarray(state) for state in step.hidden]))


def assert_same(backend: TorchBackend, got: Step, wanted: Step) -> None:
    """Ids, log-probabilities, and the logits behind them."""
    assert got.ids.tolist() == wanted.ids.tolist()
    np.testing.assert_allclose(got.logprobs, wanted.logprobs, atol=TOLERANCE)
    np.testing.assert_allclose(backend.backbone.logits(states(got)), backend.backbone.logits(states(wanted)), atol=TOLERANCE)


@pytest.mark.parametrize("pattern", list(PATTERNS))
@pytest.mark.parametrize("cut", [1, 7, 1000])
def test_a_cutting_equals_torch(pattern: str, cut: int) -> None:
    """One shot, frame by frame, in blocks: audio that overflows the window, then tokens. torch hears it in one shot."""
    torch_runtime, runtime = pair(pattern)
    mine, theirs, frames, ids = runtime.new_cache(), torch_runtime.new_cache(), noise(1, 90), some_ids(2, 20)
    torch_runtime.listen([(theirs, frames)])
    (wanted,) = torch_runtime.step([(theirs, ids)])
    for at in range(0, len(frames), cut):
        runtime.listen([(mine, frames[at : at + cut])])
    steps = [runtime.step([(mine, ids[at : at + cut])])[0] for at in range(0, len(ids), cut)]
    got = Step(*(np.concatenate([getattr(s, name) for s in steps]) for name in ("ids", "logprobs")), [h for s in steps for h in s.hidden])
    assert_same(torch_runtime, got, wanted)
    assert mine.length == theirs.length == 110


@settings(deadline=None, max_examples=40)
@given(
    pattern=st.sampled_from([*BOTH, "plain"]),
    seed=st.integers(0, 99),
    cuts=st.lists(st.integers(1, 60), min_size=1, max_size=12),
    runs=st.lists(st.integers(0, 60), min_size=12, max_size=12),
    copies=st.sets(st.integers(0, 11)),
)
def test_any_blocks_with_runs_taken_back_equal_torch(pattern: str, seed: int, cuts: list[int], runs: list[int], copies: set[int]) -> None:
    torch_runtime, runtime = pair(pattern)
    mine, theirs, at, frames = runtime.new_cache(), torch_runtime.new_cache(), 0, noise(seed, sum(cuts))
    for place, (cut, run) in enumerate(zip(cuts, runs, strict=False)):
        mark = mine.length
        if run:
            said = some_ids(run, run)
            said[0] = 86 if run % 2 else said[0]
            runtime.step([(mine, said)], wanted=[1])
            mine.truncate(mark + run // 2)
            if run % 3 == 0:  # and what is heard there must not end as what was heard before did
                runtime.listen([(mine, noise(seed + 2, 2))])
            mine.truncate(mark)
        if place in copies:
            mine, old = mine.copy(), mine
            runtime.listen([(old, noise(seed + 1, 3))])  # what the other one hears is not ours
        runtime.listen([(mine, frames[at : at + cut])])
        torch_runtime.listen([(theirs, frames[at : at + cut])])
        at += cut
    ids = np.array([86, 11, 12])
    assert_same(torch_runtime, runtime.step([(mine, ids)])[0], torch_runtime.step([(theirs, ids)])[0])


def test_positions_far_out_equal_torch() -> None:
    """After 5000 positions: angles are the reference's fp32 products, and come from the position, never from a cache's length."""
    torch_runtime, runtime = pair("all sliding")
    caches = runtime.new_cache(), torch_runtime.new_cache()
    for cache, backend in zip(caches, (runtime, torch_runtime), strict=True):
        for seed in range(20):
            backend.listen([(cache, noise(seed, 250))])
    assert caches[0].stores[L].slots == WINDOW + SLACK - 1
    assert_same(torch_runtime, *(b.step([(c, some_ids(0, 9))])[0] for b, c in zip((runtime, torch_runtime), caches, strict=True)))


@pytest.mark.parametrize("pattern", BOTH)
def test_a_batch_of_streams_equals_torch(pattern: str) -> None:
    """Streams of different lengths in one call of every verb."""
    torch_runtime, runtime = pair(pattern)
    lengths, found = [3, 40, 17, 1], []
    for backend in (runtime, torch_runtime):
        caches = [backend.new_cache() for _ in lengths]
        backend.listen([(cache, noise(seed, n)) for seed, (cache, n) in enumerate(zip(caches, lengths, strict=True))])
        steps = backend.step([(cache, some_ids(seed, n + 1)) for seed, (cache, n) in enumerate(zip(caches, lengths, strict=True))])
        drafts = backend.draft([(c, (s.hidden[-1], int(s.ids[-1]), n)) for c, s, n in zip(caches, steps, (4, 0, 2, 9), strict=True)])
        found.append((steps, [ids.tolist() for ids in drafts], [cache.length for cache in caches]))
    for got, wanted in zip(found[0][0], found[1][0], strict=True):
        assert_same(torch_runtime, got, wanted)
    assert found[0][1:] == found[1][1:]
    assert [len(ids) for ids in found[0][1]] == [4, 0, 2, 9]


@pytest.mark.parametrize("pattern", BOTH)
@pytest.mark.parametrize("positions", [1, 5, 60])
def test_drafts_equal_torch(positions: int, pattern: str) -> None:
    """Before and after the window is overflowed; the state that goes from one guess to the next too."""
    torch_runtime, runtime = pair(pattern)
    mine, theirs = runtime.new_cache(), torch_runtime.new_cache()
    (got,), (wanted,) = (b.step([(c, some_ids(3, positions))]) for b, c in ((runtime, mine), (torch_runtime, theirs)))
    for token in range(3, 60):
        (guess,), (right,) = (
            runtime.draft([(mine, (got.hidden[-1], token, 3))]),
            torch_runtime.draft([(theirs, (wanted.hidden[-1], token, 3))]),
        )
        assert guess.tolist() == right.tolist()
    assert runtime.spec.max_draft == torch_runtime.spec.max_draft > 0


def test_without_a_drafter_nothing_is_guessed() -> None:
    _, runtime = pair("twice")
    cache = runtime.new_cache()
    (step,) = runtime.step([(cache, np.array([5]))])
    assert runtime.spec.max_draft == 0
    assert [len(ids) for ids in runtime.draft([(cache, (step.hidden[0], 3, 4))])] == [0]


@pytest.mark.parametrize("shape", [(2, 3), (2, 10), (1, 1)])
def test_an_image_equals_torch(shape: tuple[int, int]) -> None:
    """20 patches are more than the window: sliding layers look both ways, but no further back than it."""
    model = tiny_model(8, tiny_config(vision=True))
    torch_runtime, runtime = TorchBackend(model, slack_tokens=SLACK), onnx_backend(model)
    patches, steps = np.random.default_rng(0).random((*shape, 6912), dtype=np.float32), []
    for backend in (runtime, torch_runtime):
        cache = backend.new_cache()
        backend.step([(cache, some_ids(0, 9))])
        backend.look([(cache, patches)])
        steps += backend.step([(cache, some_ids(1, 4))])
    assert_same(torch_runtime, *steps)


def bound_addresses(cache: OnnxCache) -> list[int]:
    return [
        array[layer].ctypes.data for store in cache.stores.values() for array in (store.keys, store.values) for layer in range(len(array))
    ]


def test_a_step_reads_the_cache_where_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is bound are the addresses of our arrays; they stay for many steps, and are not bound again."""
    _, runtime = pair()
    cache = runtime.new_cache()
    runtime.listen([(cache, noise(0, 150))])
    before = bound_addresses(cache)
    session = runtime._graphs["backbone"]
    bindings: list[Any] = []
    monkeypatch.setitem(runtime._graphs, "backbone", _Watched(session, bindings))
    for seed in range(20):
        runtime.step([(cache, some_ids(seed, 2))])
        cache.truncate(150)
    assert bound_addresses(cache) == before
    assert len(bindings) == 0  # the binding of the first run served them all
    assert cache._bound.keys() == {"backbone"}
    (first,) = runtime.step([(cache, some_ids(0, 2))])
    cache.truncate(150)
    for store in cache.stores.values():
        store.values[:] = 0.0  # behind the runtime's back
    (second,) = runtime.step([(cache, some_ids(0, 2))])
    assert float((states(first) - states(second)).abs().max()) > 0.1


class _Watched:
    """A session that tells which new bindings were asked for."""

    def __init__(self, session: Any, bindings: list[Any]) -> None:
        self._session, self._bindings = session, bindings

    def io_binding(self) -> Any:
        self._bindings.append(self._session.io_binding())
        return self._bindings[-1]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


def test_what_comes_out_grows_with_the_block_and_not_with_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    _, runtime = pair()
    sizes: list[int] = []
    run = runtime._run

    def watched(*args: Any) -> Any:
        out = run(*args)
        sizes.append(sum(array.nbytes for array in out.values()))
        return out

    monkeypatch.setattr(runtime, "_run", watched)
    cache = runtime.new_cache()
    for _ in range(30):
        runtime.listen([(cache, noise(0, 4))])
    assert len(set(sizes)) == 1 and cache.length == 120


def test_arrays_grow_seldom() -> None:
    """2000 positions: the full layers' arrays are replaced 22 times, and are never much too large; the sliding ones' stop
    at the ring's capacity."""
    _, runtime = pair()
    cache, seen = runtime.new_cache(), {kind: set[int]() for kind in (L, G)}
    for first in range(0, 2000, 10):
        runtime.listen([(cache, noise(first, 10))])
        for kind, store in cache.stores.items():
            seen[kind].add(store.slots)
    assert len(seen[G]) < 25 and max(seen[G]) <= 1.125 * 2000 + 32
    assert seen[L] == {32, 64, WINDOW + SLACK - 1}


def test_what_came_out_is_not_kept_by_each_stream() -> None:
    _, runtime = pair()
    cache = runtime.new_cache()
    runtime.listen([(cache, noise(0, 10))])
    runtime.step([(cache, np.array([5, 6]))])
    assert cache._bound and all(len(binding.get_outputs()) == 0 for binding in cache._bound.values())


def test_only_wanted_rows_go_through_the_head() -> None:
    _, runtime = pair()
    cache = runtime.new_cache()
    run, rows = runtime._run, list[int]()

    def watched(*args: Any) -> Any:
        rows.append(len(args[-1]["rows"]))
        return run(*args)

    runtime._run = watched
    try:
        runtime.listen([(cache, noise(0, 30))])
        (step,) = runtime.step([(cache, some_ids(0, 20))], wanted=[3])
        assert rows == [0, 3]
        assert len(step.ids) == len(step.logprobs) == len(step.hidden) == 3
        (step,) = runtime.step([(runtime.new_cache(), some_ids(0, 200))])  # many rows: a part of them at a time
        assert len(step.ids) == 200 and max(rows) == 64
    finally:
        del runtime._run


def test_suppressed_ids_never_win() -> None:
    model = tiny_model(3)
    with torch.no_grad():
        model.backbone.embed_tokens.weight[list(SPECIAL.suppressed)] *= 100  # as loud as the real ones are said to be
    runtime, said = onnx_backend(model), set[int]()
    cache = runtime.new_cache()
    for seed in range(5):
        said |= set(runtime.step([(cache, some_ids(seed, 50))])[0].ids.tolist())
    assert not said & set(SPECIAL.suppressed)


@pytest.mark.parametrize(("precision", "far"), [("int8", 0.08), ("int4", 0.7)])
def test_quantised_graphs_stay_close_whatever_the_cutting(precision: Any, far: float) -> None:
    """Share of the states' size that is lost after 60 positions (random weights are the hardest to quantise); and the same again when
    the audio comes frame by frame: activations are rounded row by row."""
    model, found = tiny_model(5), []
    for backend, cut in ((onnx_backend(model), 50), (quantised := onnx_backend(model, precision=precision), 50), (quantised, 1)):
        cache = backend.new_cache()
        for at in range(0, 50, cut):
            backend.listen([(cache, noise(0, 50)[at : at + cut])])
        found.append(states(backend.step([(cache, some_ids(0, 10))])[0]))
    lost, moved = ((found[a] - found[b]).square().mean().sqrt() / found[0].square().mean().sqrt() for a, b in ((1, 0), (2, 1)))
    assert 1e-3 < lost < far
    assert moved < 0.01


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_bad_samples_are_named(value: float) -> None:
    _, runtime = pair()
    frames, cache = noise(0, 5), runtime.new_cache()
    frames[3, 17] = value
    with pytest.raises(AudioFormatError, match="1 of 5 frames hold NaN or infinite samples, the first is frame 3"):
        runtime.listen([(cache, frames)])
    assert cache.length == 0


def test_no_frames_are_no_work() -> None:
    _, runtime = pair()
    cache = runtime.new_cache()
    runtime.listen([(cache, np.zeros((0, 640), np.float32))])
    runtime.listen([])
    assert runtime.step([]) == [] and cache.length == 0


@pytest.mark.parametrize("ids", [[], [-1], [96], [3, 1000]])
def test_ids_outside_the_vocabulary_are_refused(ids: list[int]) -> None:
    _, runtime = pair()
    with pytest.raises(BackendError, match="expected at least one token id in 0 .. 95"):
        runtime.step([(runtime.new_cache(), np.array(ids, dtype=np.int64))])


def test_one_cache_twice_and_things_of_another_runtime_are_refused() -> None:
    _, runtime = pair()
    cache = runtime.new_cache()
    with pytest.raises(BackendError, match="appears twice"):
        runtime.step([(cache, np.array([3])), (cache, np.array([4]))])
    with pytest.raises(BackendError, match="expected a cache of this runtime, got ScriptedCache"):
        runtime.step([(ScriptedBackend().new_cache(), np.array([3]))])
    with pytest.raises(BackendError, match="expected a hidden state of this runtime, got str"):
        runtime.draft([(cache, ("state", 3, 2))])
    with pytest.raises(TaskError, match="cannot see images"):
        runtime.look([(cache, np.zeros((1, 1, 6912), np.float32))])
    assert cache.length == 0


def test_a_rewind_beyond_the_slack_is_refused() -> None:
    _, runtime = pair()
    cache = runtime.new_cache()
    runtime.listen([(cache, noise(0, 200))])
    with pytest.raises(CacheError, match="deeper than the slack"):
        cache.truncate(100)
    assert cache.length == 200


def test_a_failed_forward_leaves_the_caches_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two streams fails: the first is taken back too."""
    _, runtime = pair()
    caches = [runtime.new_cache(), runtime.new_cache()]
    runtime.step([(caches[0], some_ids(0, 4))])
    run, calls = runtime._run, list[int]()

    def broken(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise BackendError("out of memory")
        return run(*args)

    monkeypatch.setattr(runtime, "_run", broken)
    with pytest.raises(BackendError, match="out of memory"):
        runtime.step([(cache, some_ids(1, 3)) for cache in caches])
    assert [cache.length for cache in caches] == [4, 0] and len(calls) == 2


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    model = tiny_model(0)
    with pytest.raises(BackendError, match="is not a folder of exported graphs"):
        onnx_open(tmp_path, model.config)
    onnx_backend(model, folder=tmp_path)
    with pytest.raises(BackendError, match=r"is \[96, 32\], expected \[97, 32\]: it belongs to another config.json"):
        onnx_open(tmp_path, tiny_config(vocab_size=97))
    (tmp_path / "export.json").write_text('{"format": 0, "precision": "fp32"}')
    with pytest.raises(BackendError, match="has format 0, expected 1; export the model again"):
        onnx_open(tmp_path, model.config)


def onnx_open(folder: Path, config: Any) -> Any:
    from dragoman.model.onnx_backend import OnnxBackend

    return OnnxBackend(folder, config)
