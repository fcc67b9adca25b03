"""The torch runtime at the seam: batching, growth of storage, suppressed ids, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dragoman.model.backbone import causal_attention
from dragoman.model.errors import AudioFormatError, BackendError, CacheError, TaskError
from dragoman.model.torch_backend import TorchBackend
from hypothesis import given, settings
from hypothesis import strategies as st

from .fakes import ScriptedBackend
from .tiny_models import SPECIAL, WINDOW, noise, some_ids, tiny_backend, tiny_config, tiny_drafter, tiny_model

BACKEND = tiny_backend(0, drafter=True)


def one_shot(backend: TorchBackend, seed: int, frames: int, ids: list[int]) -> torch.Tensor:
    """Hidden states [T, d] of prompt + audio + ids by the training path: no cache at all."""
    with torch.inference_mode():
        x = torch.cat(
            [
                backend.embed_ids(some_ids(seed, 5)),
                backend.projector(torch.from_numpy(noise(seed, frames))),
                backend.embed_ids(np.array(ids)),
            ]
        )
        attend = causal_attention(backend.config.backbone, len(x))
        return backend.backbone(x[None], torch.arange(len(x))[None], attend)[0]


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 99),
    cuts=st.lists(st.integers(1, 20), min_size=1, max_size=12),
    runs=st.lists(st.integers(0, 60), min_size=12, max_size=12),
)
def test_streaming_equals_the_training_path(seed: int, cuts: list[int], runs: list[int]) -> None:
    """Any cutting, with runs taken back in between, gives what one forward without a cache gives."""
    backend, frames = BACKEND, noise(seed, sum(cuts))
    cache = backend.new_cache()
    backend.step([(cache, some_ids(seed, 5))])
    at = 0
    for cut, run in zip(cuts, runs, strict=False):
        mark = cache.length
        if run:
            backend.step([(cache, some_ids(run, run))], wanted=[1])
            cache.truncate(mark)
        backend.listen([(cache, frames[at : at + cut])])
        at += cut
    (step,) = backend.step([(cache, np.array([86, 11, 12]))])
    hidden = one_shot(backend, seed, sum(cuts), [86, 11, 12])[-3:]
    wanted = backend.logits(hidden)
    assert step.ids.tolist() == wanted.argmax(-1).tolist()
    np.testing.assert_allclose(step.logprobs, wanted.log_softmax(-1).max(-1).values.numpy(), atol=1e-4)
    np.testing.assert_allclose(torch.stack(list(step.hidden)).numpy(), hidden.numpy(), atol=2e-4)  # type: ignore[arg-type]


def test_a_batch_equals_each_stream_alone() -> None:
    lengths = [3, 40, 17, 1]
    alone, caches = [], [BACKEND.new_cache() for _ in lengths]
    for seed, n in enumerate(lengths):
        cache = BACKEND.new_cache()
        BACKEND.listen([(cache, noise(seed, n))])
        alone.append(BACKEND.step([(cache, some_ids(seed, n + 1))])[0])
    BACKEND.listen([(cache, noise(seed, n)) for seed, (cache, n) in enumerate(zip(caches, lengths, strict=True))])
    together = BACKEND.step([(cache, some_ids(seed, n + 1)) for seed, (cache, n) in enumerate(zip(caches, lengths, strict=True))])
    for a, b in zip(alone, together, strict=True):
        assert a.ids.tolist() == b.ids.tolist()
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-4)


def test_a_batch_of_drafts_equals_each_alone() -> None:
    caches = [BACKEND.new_cache() for _ in range(3)]
    steps = BACKEND.step([(cache, some_ids(seed, 4 + 9 * seed)) for seed, cache in enumerate(caches)])
    asked = [(step.hidden[-1], int(step.ids[-1]), count) for step, count in zip(steps, (4, 0, 2), strict=True)]
    lengths = [cache.length for cache in caches]
    together = BACKEND.draft(list(zip(caches, asked, strict=True)))
    alone = [BACKEND.draft([pair])[0] for pair in zip(caches, asked, strict=True)]
    assert [ids.tolist() for ids in together] == [ids.tolist() for ids in alone]
    assert [len(ids) for ids in together] == [4, 0, 2]
    assert [cache.length for cache in caches] == lengths


def test_without_a_drafter_nothing_is_guessed() -> None:
    backend = tiny_backend(0)
    cache = backend.new_cache()
    (step,) = backend.step([(cache, np.array([5]))])
    assert backend.spec.max_draft == 0
    assert [len(ids) for ids in backend.draft([(cache, (step.hidden[0], 3, 4))])] == [0]


def test_only_wanted_rows_go_through_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    original = BACKEND.backbone.logits
    monkeypatch.setattr(BACKEND.backbone, "logits", lambda hidden: rows.append(len(hidden)) or original(hidden))
    cache = BACKEND.new_cache()
    BACKEND.listen([(cache, noise(0, 30))])
    assert rows == []
    (step,) = BACKEND.step([(cache, some_ids(0, 20))], wanted=[3])
    assert rows == [3]
    assert len(step.ids) == len(step.logprobs) == len(step.hidden) == 3


def test_suppressed_ids_never_win() -> None:
    model = tiny_model(3)
    with torch.no_grad():
        model.backbone.embed_tokens.weight[list(SPECIAL.suppressed)] *= 100  # as loud as the real ones are said to be
    backend = TorchBackend(model, tiny_drafter())
    cache = backend.new_cache()
    (step,) = backend.step([(cache, some_ids(1, 60))])
    raw = backend.backbone.logits(torch.stack(list(step.hidden))).argmax(-1)  # type: ignore[arg-type]
    assert set(raw.tolist()) & set(SPECIAL.suppressed), "the negative control: unsuppressed, they would win"
    assert not set(step.ids.tolist()) & set(SPECIAL.suppressed)
    assert np.isfinite(step.logprobs).all()


def test_storage_grows_with_the_stream_and_stops_at_the_ring() -> None:
    backend = tiny_backend(0, slack_tokens=500)
    cache = backend.new_cache()
    sliding, full = cache.stores["sliding_attention"], cache.stores["full_attention"]
    assert sliding.keys.numel() == full.keys.numel() == 0
    backend.listen([(cache, noise(0, 40))])
    assert sliding.keys.shape[2] == 64, "40 positions must not allocate the whole window and slack"
    for _ in range(12):
        backend.listen([(cache, noise(0, 100))])
    assert sliding.keys.shape[2] == WINDOW + 500 - 1
    assert cache.length == 1240 <= full.keys.shape[2] < 2 * 1240


def test_copies_part_ways_and_hold_only_what_is_used() -> None:
    cache, fresh = BACKEND.new_cache(), BACKEND.new_cache()
    BACKEND.step([(cache, some_ids(0, 10)), (fresh, some_ids(0, 10))])
    other = cache.copy()
    assert other.stores["full_attention"].keys.shape[2] == 10
    BACKEND.listen([(other, noise(1, 9))])
    BACKEND.step([(other, np.array([9]))])
    left, right = BACKEND.step([(cache, np.array([7])), (fresh, np.array([7]))])
    assert left.ids.tolist() == right.ids.tolist()
    assert (cache.length, other.length) == (11, 20)


def test_a_block_longer_than_the_ring_is_cut() -> None:
    backend = tiny_backend(2, slack_tokens=3)
    whole, parts = backend.new_cache(), backend.new_cache()
    backend.listen([(whole, noise(4, 90))])
    for at in range(90):
        backend.listen([(parts, noise(4, 90)[at : at + 1])])
    a, b = backend.step([(whole, np.array([5])), (parts, np.array([5]))])
    np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-4)
    assert a.ids.tolist() == b.ids.tolist()


def test_a_refused_truncate_changes_nothing() -> None:
    backend = tiny_backend(2, slack_tokens=3)
    cache = backend.new_cache()
    backend.listen([(cache, noise(4, 90))])
    with pytest.raises(CacheError, match="deeper than the slack"):
        cache.truncate(60)
    assert cache.length == 90
    assert {store.ring.length for store in cache.stores.values()} == {90}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_broken_samples_are_named(value: float) -> None:
    frames = noise(0, 5)
    frames[3, 17] = value
    cache = BACKEND.new_cache()
    with pytest.raises(AudioFormatError, match="1 of 5 frames hold NaN or infinite samples, the first is frame 3"):
        BACKEND.listen([(cache, frames)])
    assert cache.length == 0


@pytest.mark.parametrize("frames", [np.zeros(640, np.float32), np.zeros((2, 320), np.float32), np.zeros((2, 640), np.int16)])
def test_frames_of_another_kind_are_refused(frames: np.ndarray) -> None:
    with pytest.raises(AudioFormatError, match=r"expected float frames \[n, 640\]"):
        BACKEND.listen([(BACKEND.new_cache(), frames)])


def test_no_frames_are_no_work() -> None:
    cache = BACKEND.new_cache()
    BACKEND.listen([(cache, np.zeros((0, 640), np.float32))])
    BACKEND.listen([])
    assert BACKEND.step([]) == []
    assert cache.length == 0


@pytest.mark.parametrize("ids", [[], [-1], [96], [3, 1000]])
def test_ids_outside_the_vocabulary_are_refused(ids: list[int]) -> None:
    cache = BACKEND.new_cache()
    with pytest.raises(BackendError, match="expected at least one token id in 0 .. 95"):
        BACKEND.step([(cache, np.array(ids, dtype=np.int64))])
    assert cache.length == 0


def test_one_cache_twice_in_a_call_is_refused() -> None:
    cache = BACKEND.new_cache()
    with pytest.raises(BackendError, match="appears twice"):
        BACKEND.step([(cache, np.array([3])), (cache, np.array([4]))])
    assert cache.length == 0


def test_things_of_another_runtime_are_refused() -> None:
    with pytest.raises(BackendError, match="expected a cache of this runtime, got ScriptedCache"):
        BACKEND.step([(ScriptedBackend().new_cache(), np.array([3]))])
    with pytest.raises(BackendError, match="expected a hidden state of this runtime, got str"):
        BACKEND.draft([(BACKEND.new_cache(), ("state", 3, 2))])


def test_a_failed_forward_leaves_the_caches_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    caches = [BACKEND.new_cache(), BACKEND.new_cache()]
    BACKEND.step([(caches[0], some_ids(0, 4))])

    def broken(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(BACKEND.backbone.layers[1].mlp, "forward", broken)
        with pytest.raises(RuntimeError):
            BACKEND.step([(cache, some_ids(1, 3)) for cache in caches])
    assert [cache.length for cache in caches] == [4, 0]


def test_looking_without_eyes_is_refused() -> None:
    with pytest.raises(TaskError, match="cannot see images"):
        BACKEND.look([(BACKEND.new_cache(), np.zeros((1, 1, 6912), np.float32))])


def test_an_image_sees_itself_both_ways_and_the_past_sees_nothing_of_it() -> None:
    backend = tiny_backend(0, vision=True)
    rng = np.random.default_rng(0)
    patches = rng.random((2, 3, 6912), dtype=np.float32)
    changed = patches.copy()
    changed[1, 2] = rng.random(6912, dtype=np.float32)  # only the last patch differs

    def states(image: np.ndarray, *, both_ways: bool) -> torch.Tensor:
        assert backend.vision is not None
        with torch.inference_mode():
            return backend.hidden_states([(backend.new_cache(), backend.vision(torch.from_numpy(image)))], both_ways=both_ways)[0]

    assert not torch.equal(states(patches, both_ways=True)[0], states(changed, both_ways=True)[0])
    assert torch.equal(states(patches, both_ways=False)[:5], states(changed, both_ways=False)[:5])


@pytest.mark.parametrize("shape", [(6912,), (0, 3, 6912), (2, 3, 100), (33, 1, 6912)])
def test_patches_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    backend = tiny_backend(0, vision=True)
    with pytest.raises(BackendError, match=r"expected finite patches \[rows, columns, 6912\] with at most 32"):
        backend.look([(backend.new_cache(), np.zeros(shape, np.float32))])


def test_an_assistant_of_another_model_is_refused() -> None:
    other = tiny_config(global_head_dim=32).backbone
    with pytest.raises(BackendError, match="belongs to another model.*full_attention head dim"):
        TorchBackend(tiny_model(0), tiny_drafter(0, other))


def test_weights_are_never_written_to() -> None:
    before = {name: tensor.clone() for name, tensor in BACKEND.backbone.state_dict().items()}
    cache = BACKEND.new_cache()
    BACKEND.listen([(cache, noise(0, 30))])
    (step,) = BACKEND.step([(cache, some_ids(0, 3))])
    BACKEND.draft([(cache, (step.hidden[-1], 3, 4))])
    assert all(torch.equal(tensor, before[name]) for name, tensor in BACKEND.backbone.state_dict().items())


def test_bfloat16_runs() -> None:
    model = tiny_model(0)
    for module in (model.backbone, model.projector):
        module.to(torch.bfloat16)
    backend = TorchBackend(model)
    cache = backend.new_cache()
    backend.listen([(cache, noise(0, 30))])
    (step,) = backend.step([(cache, some_ids(0, 5))])
    assert cache.stores["full_attention"].keys.dtype == torch.bfloat16
    assert np.isfinite(step.logprobs).all()
