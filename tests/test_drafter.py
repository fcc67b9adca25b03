"""The MTP assistant: its logits equal transformers' (marker ``parity``), and it reads only what it should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dragoman.model.checkpoint import load_drafter, load_model
from dragoman.model.decoder import hypothesis
from dragoman.model.errors import BackendError
from dragoman.model.torch_backend import TorchBackend, TorchCache
from dragoman.model.work import run

from .tiny_models import WINDOW, noise, some_ids, tiny_backend


@torch.inference_mode()
def test_it_sees_the_last_window_of_sliding_layers() -> None:
    """A frame that has left the last window changes a draft only through the full layer: blind that one, and nothing changes."""
    backend = tiny_backend(3, drafter=True)
    assert backend.drafter is not None
    cache = backend.new_cache()
    backend.listen([(cache, noise(0, 40))])
    (step,) = backend.step([(cache, some_ids(0, 3))])
    state = step.hidden[-1]
    assert isinstance(state, torch.Tensor)
    cache.stores["full_attention"].values.zero_()
    before, _ = backend.draft_logits([cache], np.array([7]), state[None])
    sliding = cache.stores["sliding_attention"]
    sliding.values[:, :, : cache.length - WINDOW] += 1.0
    unchanged, _ = backend.draft_logits([cache], np.array([7]), state[None])
    assert torch.equal(before, unchanged)
    sliding.values[:, :, cache.length - WINDOW] += 1.0
    changed, _ = backend.draft_logits([cache], np.array([7]), state[None])
    assert not torch.equal(before, changed)


@torch.inference_mode()
def test_it_reads_the_last_layer_of_each_kind_only() -> None:
    backend = tiny_backend(3, drafter=True)
    cache = backend.new_cache()
    (step,) = backend.step([(cache, some_ids(0, 9))])
    state = step.hidden[-1]
    assert isinstance(state, torch.Tensor)
    before, _ = backend.draft_logits([cache], np.array([7]), state[None])
    cache.stores["sliding_attention"].values[0] += 1.0  # the first of the two sliding layers
    unchanged, _ = backend.draft_logits([cache], np.array([7]), state[None])
    assert torch.equal(before, unchanged)
    cache.stores["sliding_attention"].values[-1] += 1.0
    changed, _ = backend.draft_logits([cache], np.array([7]), state[None])
    assert not torch.equal(before, changed)


def test_drafts_are_ids_of_the_vocabulary_and_never_suppressed() -> None:
    backend = tiny_backend(4, drafter=True)
    drafter = backend.drafter
    assert drafter is not None
    with torch.no_grad():
        drafter.model.embed_tokens.weight[list(backend.config.special.suppressed)] *= 100
    cache = backend.new_cache()
    (step,) = backend.step([(cache, some_ids(0, 9))])
    (ids,) = backend.draft([(cache, (step.hidden[-1], 5, 20))])
    assert len(ids) == 20
    assert not set(ids.tolist()) & set(backend.config.special.suppressed)


def test_a_token_outside_the_vocabulary_is_refused() -> None:
    backend = tiny_backend(4, drafter=True)
    cache = backend.new_cache()
    (step,) = backend.step([(cache, some_ids(0, 9))])
    with pytest.raises(BackendError, match="got \\[96\\]"):
        backend.draft([(cache, (step.hidden[-1], 96, 2))])


@pytest.fixture(scope="module", params=["one of each", "three and one", "two kinds twice"])
def trio(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, TorchBackend]:
    pytest.importorskip("transformers")
    from .hf_models import FIVE_ONE, G, L, open_assistant, open_target, save_assistant, save_target

    layers = {
        "one of each": ((L, L, G), (L, G)),
        "three and one": (FIVE_ONE, (L, L, L, G)),
        "two kinds twice": ((L, G, L, G), (L, G, L, G)),
    }[request.param]
    folder, seed = tmp_path_factory.mktemp("trio"), len(request.param)
    save_target(folder / "target", seed, layers[0])
    save_assistant(folder / "assistant", seed + 1, layers[1])
    backend = TorchBackend(load_model(folder / "target"), load_drafter(folder / "assistant"), slack_tokens=40)
    return open_target(folder / "target"), open_assistant(folder / "assistant"), backend


def shared_keys(cache: TorchCache) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """What the assistant of transformers is given: positions in order, the last window of the sliding layer."""
    shared: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for kind, store in cache.stores.items():
        reach = cache.length if kind == "full_attention" else min(cache.length, 16)
        slots = torch.as_tensor(store.ring.slots(cache.length - reach, reach))
        shared[kind] = (store.keys[-1][None, :, slots], store.values[-1][None, :, slots])
    return shared


@pytest.mark.parity
@pytest.mark.parametrize("frames", [4, 60])
def test_draft_logits_equal_transformers(trio: tuple[Any, Any, TorchBackend], frames: int) -> None:
    """Step after step of one draft, before and after the window is overflowed."""
    _, assistant, backend = trio
    cache = backend.new_cache()
    backend.step([(cache, some_ids(1, 6))])
    backend.listen([(cache, noise(2, frames))])
    (step,) = backend.step([(cache, some_ids(3, 4))])
    state, token = step.hidden[-1], step.ids[-1:]
    assert isinstance(state, torch.Tensor)
    hidden = theirs_hidden = state[None]
    with torch.inference_mode():
        for _ in range(4):
            logits, hidden = backend.draft_logits([cache], token, hidden)
            entered = torch.cat([backend.embed_ids(token), theirs_hidden], -1)[None]
            theirs = assistant(inputs_embeds=entered, position_ids=torch.tensor([[cache.length]]), shared_kv_states=shared_keys(cache))
            theirs_hidden = theirs.last_hidden_state[0]
            assert float((logits - theirs.logits[0]).abs().max()) < 1e-4
            assert float((hidden - theirs_hidden).abs().max()) < 1e-4
            token = logits.argmax(-1).numpy()


@pytest.mark.parity
def test_speculation_equals_transformers_greedy_and_assisted(trio: tuple[Any, Any, TorchBackend]) -> None:
    from .hf_models import BOA, BOS, EOA, Piece, random_frames, random_tokens, reference_inputs

    reference, assistant, backend = trio
    rng = np.random.default_rng(9)
    head, sound, tail = (BOS, *random_tokens(rng, 6).ids, BOA), random_frames(rng, 40), (EOA, *random_tokens(rng, 4).ids)
    inputs = reference_inputs([Piece(ids=head), sound, Piece(ids=tail)])
    silent = list(backend.config.special.suppressed)
    settings = dict(max_new_tokens=20, do_sample=False, eos_token_id=[9999], suppress_tokens=silent)
    greedy = reference.generate(**inputs, **settings)
    assistant.generation_config.num_assistant_tokens = 3
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    assisted = reference.generate(**inputs, **settings, assistant_model=assistant)
    wanted = greedy[0, inputs["input_ids"].shape[1] :].tolist()
    assert assisted[0, inputs["input_ids"].shape[1] :].tolist() == wanted
    cache = backend.new_cache()
    backend.step([(cache, np.array(head))])
    assert sound.frames is not None
    backend.listen([(cache, sound.frames)])
    for count in (0, 1, 4):
        found = run(backend, hypothesis(cache, tail, [], [], stop=(), limit_tokens=20, max_draft=count))
        assert list(found.ids) == wanted


@pytest.mark.parity
def test_the_folder_is_read_with_its_own_names(trio: tuple[Any, Any, TorchBackend], tmp_path: Path) -> None:
    _, assistant, backend = trio
    assistant.save_pretrained(tmp_path)
    assert backend.drafter is not None
    read = load_drafter(tmp_path).state_dict()
    assert all(torch.equal(tensor, read[name]) for name, tensor in backend.drafter.state_dict().items())
