"""Our runtime = transformers: logits of tiny random checkpoints within 1e-4 (fp32), whatever the cutting and whatever is taken back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
from dragoman.model.backend import heard_ids  # noqa: E402
from dragoman.model.checkpoint import load_model, save_checkpoint  # noqa: E402
from dragoman.model.config import model_config_from_mapping  # noqa: E402
from dragoman.model.torch_backend import TorchBackend, TorchCache  # noqa: E402

from .hf_models import (  # noqa: E402
    AUDIO,
    BOA,
    BOI,
    BOS,
    EOA,
    EOI,
    FIVE_ONE,
    FRAME,
    G,
    L,
    Piece,
    open_target,
    random_frames,
    random_image,
    random_tokens,
    reference_inputs,
    reference_logits,
    save_target,
    text_settings,
)
from .tiny_models import tiny_model  # noqa: E402

pytestmark = pytest.mark.parity
TOLERANCE = 1e-4
PATTERNS = {
    "five-one": (FIVE_ONE, {}),
    "twice": ((L, L, G, L, L, G), {}),
    "all-full": ((G, G), {}),
    "own-v": ((L, G, L, G), {"attention_k_eq_v": False, "num_global_key_value_heads": 2}),
    "wide-window": ((L, L, G), {"sliding_window": 512}),
}


@pytest.fixture(scope="module", params=list(PATTERNS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, TorchBackend]:
    """transformers' model and ours, from one folder. The slack is small, so that the ring wraps and slack matters."""
    layers, over = PATTERNS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    save_target(folder, seed=list(PATTERNS).index(request.param) + 1, layers=layers, shard="300KB", **over)
    return open_target(folder), TorchBackend(load_model(folder), slack_tokens=24)


def prompt(kind: str, seed: int) -> list[Piece]:
    """Longer than the window of 16."""
    rng = np.random.default_rng(seed)
    head = Piece(ids=(BOS, *random_tokens(rng, 7).ids))
    audio = [Piece(ids=(BOA,)), random_frames(rng, 45), Piece(ids=(EOA,)), random_tokens(rng, 9)]
    image = [Piece(ids=(BOI,)), random_image(rng, 3, 4), Piece(ids=(EOI,))]
    wide = [Piece(ids=(BOI,)), random_image(rng, 2, 10), Piece(ids=(EOI,))]  # 20 patches: longer than the window
    return {
        "text": [head, random_tokens(rng, 50)],
        "audio": [head, *audio],
        "image": [head, *image, *wide, random_tokens(rng, 12)],
        "image and audio": [head, *wide, random_tokens(rng, 5), *audio],
    }[kind]


@torch.inference_mode()
def feed(backend: TorchBackend, cache: TorchCache, piece: Piece) -> torch.Tensor:
    """Append one piece; logits [n, vocab] of all its positions, by the level below the seam."""
    if piece.frames is not None:
        heard = np.ones(len(piece.frames), np.bool_)
        states = backend._append_in_blocks([(cache, backend.projector(backend._floats(piece.frames)))], [heard])
    elif piece.patches is not None:
        assert backend.vision is not None
        states = backend.hidden_states([(cache, backend.vision(backend._floats(piece.patches)))], both_ways=True)
    else:
        ids = np.array(piece.ids)
        states = backend._append_in_blocks([(cache, backend.embed_ids(ids))], [heard_ids(ids, backend.config)])
    return backend.backbone.logits(states[0])


def cut(piece: Piece, sizes: Sequence[int]) -> list[Piece]:
    """Pieces of these sizes; an image is never cut."""
    if piece.patches is not None:
        return [piece]
    parts, at = [], 0
    for size in sizes:
        if piece.frames is not None:
            parts.append(Piece(frames=piece.frames[at : at + size]))
        else:
            parts.append(Piece(ids=piece.ids[at : at + size]))
        at += size
        if at >= len(piece):
            break
    return [part for part in parts if len(part)]


def cut_all(pieces: Sequence[Piece], rng: np.random.Generator, longest: int) -> list[Piece]:
    return [part for piece in pieces for part in cut(piece, [int(n) for n in rng.integers(1, longest + 1, 100)])]


def difference(got: torch.Tensor, wanted: torch.Tensor) -> float:
    assert got.shape == wanted.shape
    return float((got - wanted).abs().max())


@pytest.mark.parametrize("kind", ["text", "audio", "image", "image and audio"])
@pytest.mark.parametrize("seed", [0, 1])
def test_any_cutting_equals_transformers_in_one_shot(pair: tuple[Any, TorchBackend], kind: str, seed: int) -> None:
    reference, backend = pair
    pieces, rng = prompt(kind, seed), np.random.default_rng(seed)
    wanted = reference_logits(reference, pieces)
    cuttings = {"one shot": pieces, "one by one": cut_all(pieces, rng, 1), "random": cut_all(pieces, rng, 14)}
    for name, parts in cuttings.items():
        cache = backend.new_cache()
        got = torch.cat([feed(backend, cache, part) for part in parts])
        assert difference(got, wanted) < TOLERANCE, name


@pytest.mark.parametrize("kind", ["text", "audio", "image and audio"])
def test_runs_taken_back_leave_no_trace(pair: tuple[Any, TorchBackend], kind: str) -> None:
    """Random hypotheses of up to the slack's length are appended and truncated between the blocks."""
    reference, backend = pair
    pieces, rng = prompt(kind, 3), np.random.default_rng(3)
    wanted = reference_logits(reference, pieces)
    cache, got = backend.new_cache(), []
    for part in cut_all(pieces, rng, 9):
        mark = cache.length
        feed(backend, cache, random_tokens(rng, int(rng.integers(1, 25))))
        cache.truncate(mark + min(2, cache.length - mark))
        cache.truncate(mark)
        got.append(feed(backend, cache, part))
    assert difference(torch.cat(got), wanted) < TOLERANCE


def test_streams_in_one_batch_do_not_touch_each_other(pair: tuple[Any, TorchBackend]) -> None:
    reference, backend = pair
    prompts = [prompt("audio", 5), prompt("text", 6), prompt("audio", 7)]
    caches = [backend.new_cache() for _ in prompts]
    for cache, pieces in zip(caches, prompts, strict=True):
        feed(backend, cache, Piece(ids=pieces[0].ids))
    with torch.inference_mode():
        sound = [pieces[2].frames if len(pieces) > 2 else None for pieces in prompts]
        for cache, pieces in zip(caches, prompts, strict=True):
            if len(pieces) > 2:
                feed(backend, cache, pieces[1])
        backend.listen([(cache, frames) for cache, frames in zip(caches, sound, strict=True) if frames is not None])
        ends = [
            [token for piece in pieces[1 if frames is None else 3 :] for token in piece.ids]
            for pieces, frames in zip(prompts, sound, strict=True)
        ]
        steps = backend.step([(cache, np.array(end)) for cache, end in zip(caches, ends, strict=True)])
    for step, pieces, end in zip(steps, prompts, ends, strict=True):
        wanted = reference_logits(reference, pieces)[-len(end) :]
        wanted[:, list(backend.config.special.suppressed)] = -torch.inf
        assert step.ids.tolist() == wanted.argmax(-1).tolist()
        np.testing.assert_allclose(step.logprobs, wanted.log_softmax(-1).max(-1).values.numpy(), atol=TOLERANCE)


def test_the_seam_says_what_generate_says(pair: tuple[Any, TorchBackend]) -> None:
    """Greedy over listen and step = transformers' generate, suppressed ids included."""
    reference, backend = pair
    pieces = prompt("audio", 11)
    inputs, silent = reference_inputs(pieces), list(backend.config.special.suppressed)
    said = reference.generate(**inputs, max_new_tokens=20, do_sample=False, eos_token_id=[9999], suppress_tokens=silent)
    cache, got = backend.new_cache(), [0]
    for piece in pieces:
        if piece.frames is not None:
            backend.listen([(cache, piece.frames)])
        else:
            got = [int(backend.step([(cache, np.array(piece.ids))])[0].ids[-1])]
    while len(got) < 20:
        got.append(int(backend.step([(cache, np.array(got[-1:]))])[0].ids[-1]))
    assert got == said[0, inputs["input_ids"].shape[1] :].tolist()


def test_look_is_the_image_path(pair: tuple[Any, TorchBackend]) -> None:
    """The seam's ``look``: the answer after an image is the reference's."""
    reference, backend = pair
    pieces = prompt("image", 4)
    wanted = reference_logits(reference, pieces)[-1]
    wanted[list(backend.config.special.suppressed)] = -torch.inf
    cache = backend.new_cache()
    for piece in pieces[:-1]:
        if piece.patches is not None:
            backend.look([(cache, piece.patches)])
        else:
            backend.step([(cache, np.array(piece.ids))])
    (step,) = backend.step([(cache, np.array(pieces[-1].ids))], wanted=[1])
    assert step.ids.tolist() == [int(wanted.argmax())]
    assert abs(float(step.logprobs[0]) - float(wanted.log_softmax(-1).max())) < TOLERANCE


def test_placeholders_as_input_count_as_padding(pair: tuple[Any, TorchBackend]) -> None:
    _, backend = pair
    assert torch.equal(backend.embed_ids(np.array([AUDIO])), backend.embed_ids(np.array([0])))


def test_half_precision_stays_close(pair: tuple[Any, TorchBackend], tmp_path: Path) -> None:
    """bfloat16: our rounding is as far from fp32 as transformers' own, not further (within a factor of two)."""
    reference, _ = pair
    reference.save_pretrained(tmp_path)
    pieces = prompt("audio", 2)
    exact = reference_logits(reference, pieces)
    half = open_target(tmp_path).to(torch.bfloat16)
    theirs = difference(reference_logits(half, pieces).float(), exact)
    backend = TorchBackend(load_model(tmp_path, dtype=torch.bfloat16))
    cache = backend.new_cache()
    ours = difference(torch.cat([feed(backend, cache, piece) for piece in pieces]).float(), exact)
    assert ours < 2 * theirs + 1e-3


@pytest.mark.parametrize("seed", [0, 1])
def test_transformers_reads_what_we_write(tmp_path: Path, seed: int) -> None:
    """The other direction: our random weights, saved by us in the form of the released files, without vision."""
    sizes = text_settings((L, L, G))  # as the released config.json has them: flat keys
    raw = {
        "architectures": ["Gemma4UnifiedForConditionalGeneration"],
        "model_type": "gemma4_unified",
        "text_config": sizes,
        "audio_config": {"model_type": "gemma4_unified_audio", "audio_embed_dim": FRAME, "output_proj_dims": FRAME, "rms_norm_eps": 1e-6},
        "vision_config": None,
        "audio_token_id": AUDIO,
        "boa_token_id": BOA,
        "eoa_token_index": EOA,
        "tie_word_embeddings": True,
    }
    config = model_config_from_mapping(raw)
    model = tiny_model(seed, config)
    save_checkpoint(tmp_path, model.backbone, model.projector)
    (tmp_path / "config.json").write_text(json.dumps(raw))
    reference, backend = open_target(tmp_path), TorchBackend(model)
    pieces = prompt("audio", seed)
    cache = backend.new_cache()
    got = torch.cat([feed(backend, cache, piece) for piece in pieces])
    assert difference(got, reference_logits(reference, pieces)) < TOLERANCE
