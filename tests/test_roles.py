"""Layers with roles: audio and text go through layers of their own, on both runtimes, in training, and after any truncation."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dragoman.model.backbone import Layer
from dragoman.model.backend import Ids, heard_ids, next_block
from dragoman.model.checkpoint import load_model, save_checkpoint
from dragoman.model.config import AudioConfig, model_config_from_mapping
from dragoman.model.errors import CacheError, ConfigError
from dragoman.model.export import export
from dragoman.model.onnx_backend import OnnxBackend
from dragoman.model.torch_backend import TorchBackend
from dragoman.model.training import text
from dragoman.model.training.package import Taught, config_of, small_config
from dragoman.model.training.rows import IGNORE, Batch
from dragoman.model.training.student import Depths, Student, answering
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from .tiny_models import HEARING, PLAIN, ROLES, TRANSLATING, WINDOW, G, L, noise, randomise, tiny_config, tiny_drafter, tiny_model

BACKEND = TorchBackend(tiny_model(11, tiny_config(**ROLES)), tiny_drafter(12), slack_tokens=40)
PLAIN_BACKEND = TorchBackend(tiny_model(11, tiny_config(**PLAIN)), slack_tokens=40)
TRANSLATING_BACKEND = TorchBackend(tiny_model(11, tiny_config(**TRANSLATING)), slack_tokens=40)
HEARING_BACKEND = TorchBackend(tiny_model(11, tiny_config(**HEARING)), slack_tokens=40)
SIDE = {
    "text": "text",
    "cross": "text",
    "audio": "audio",
    "plain_audio": "audio",
    "translation": "translation",
}  # whose positions go through layers of a role
Block = int | list[int]  # so many frames, or tokens
ROUNDING = 2e-4


def reference(backend: TorchBackend, blocks: list[Block]) -> Tensor:
    """Hidden states [T, d] by whole layers over all positions: what a position may not look at is masked, and what it has no part in is put
    back. No cache, and nothing is left out."""
    x, sides = embedded(backend, blocks)
    n, backbone, heard = len(x), backend.backbone, of(sides, "audio")
    rotary = backbone.rotary(torch.arange(n), x.dtype)
    causal, turn = torch.ones(n, n).tril().bool(), heard.cumsum(0)  # how many were heard: a window counts only those
    near = causal & (turn[:, None] - turn < WINDOW) & heard
    for layer, role in zip(backbone.layers, backbone.config.layer_roles, strict=True):
        assert isinstance(layer, Layer)
        h = layer.input_layernorm(x)
        q, (k, v) = layer.self_attn.queries(h, rotary), layer.self_attn.keys_and_values(h, rotary)
        seen = near if role == "audio" else causal & (heard if role in ("cross", "plain_audio") else of(sides, role))
        heads = [part.transpose(0, 1)[None] for part in (q, k, v)]
        found = F.scaled_dot_product_attention(*heads, attn_mask=seen, scale=1.0, enable_gqa=True)[0].transpose(0, 1)
        found = torch.where(seen.any(-1)[:, None, None], found, 0.0)
        x = torch.where(of(sides, SIDE[role])[:, None], layer.settle(x, found), x)
    return backbone.norm(x)


def of(sides: list[str], side: str) -> Tensor:
    return torch.tensor([one == side for one in sides])


def embedded(backend: TorchBackend, blocks: list[Block]) -> tuple[Tensor, list[str]]:
    """Inputs [T, d], and the side of each: told one by one, as the page on prompts says it."""
    parts: list[Tensor] = []
    sides: list[str] = []
    for place, block in enumerate(blocks):
        if isinstance(block, int):
            parts.append(backend.projector(torch.from_numpy(noise(place, block))))
            sides += ["audio"] * block
        else:
            ids = np.array(block)
            parts.append(backend.embed_ids(ids))
            for token, heard in zip(block, heard_ids(ids, backend.config), strict=True):
                goes_on = bool(sides) and sides[-1] == "translation"
                translates = token in backend.config.special.languages or goes_on
                sides.append("audio" if heard else "translation" if translates else "text")
    return torch.cat(parts), sides


tokens = st.lists(st.sampled_from([2, 85, 86, *range(3, 40)]), min_size=1, max_size=24)
block_lists = st.lists(st.one_of(st.integers(1, 30), tokens), min_size=1, max_size=8)


@settings(deadline=None, max_examples=60)
@given(
    backend=st.sampled_from([BACKEND, PLAIN_BACKEND, TRANSLATING_BACKEND, HEARING_BACKEND]),
    blocks=block_lists,
    undone=st.lists(st.one_of(st.none(), tokens), min_size=8, max_size=8),
)
def test_streaming_equals_whole_layers_under_masks(backend: TorchBackend, blocks: list[Block], undone: list[list[int] | None]) -> None:
    """Audio and text in any order, more audio than the window, and runs of text that are taken back in between."""
    cache, last = backend.new_cache(), None
    for place, (block, run) in enumerate(zip(blocks, undone, strict=False)):
        if run is not None and cache.length:
            mark = cache.length
            backend.step([(cache, np.array(run))])
            cache.truncate(mark)
        if isinstance(block, int):
            backend.listen([(cache, noise(place, block))])
        else:
            (last,) = backend.step([(cache, np.array(block))])
    final = [*blocks, [86, 11, 12]]
    (last,) = backend.step([(cache, np.array([86, 11, 12]))])
    with torch.inference_mode():
        wanted = reference(backend, final)[-3:]
    np.testing.assert_allclose(np.stack([np.asarray(state) for state in last.hidden]), wanted.numpy(), atol=2e-4)
    sides = embedded(backend, final)[1]
    assert cache.length == len(sides)
    for name, store in cache.stores.items():
        assert store.ring.length == sides.count("audio" if name in ("cross", "plain_audio") else name)


def test_positions_turn_further_in_plain_layers_that_hear() -> None:
    rotary = HEARING_BACKEND.backbone.rotary
    (cos, sin), full = rotary(torch.arange(8), torch.float32)["plain_audio"], rotary(1.5 * torch.arange(8), torch.float32)["full_attention"]
    torch.testing.assert_close((cos, sin), full)
    assert not torch.equal(cos, rotary(torch.arange(8), torch.float32)["full_attention"][0])


def test_what_is_said_while_nothing_was_heard_looks_at_nothing() -> None:
    cache = BACKEND.new_cache()
    (step,) = BACKEND.step([(cache, np.array([5, 6]))])
    assert np.isfinite(step.logprobs).all()


def test_streams_of_both_sides_in_one_call() -> None:
    asked: list[Ids] = [np.array([2, 85, 5]), np.array([7, 8]), np.array([2]), np.array([9, 2, 9])]
    together, alone = [BACKEND.new_cache() for _ in asked], [BACKEND.new_cache() for _ in asked]
    for got, cache, ids in zip(BACKEND.step(list(zip(together, asked, strict=True))), alone, asked, strict=True):
        (wanted,) = BACKEND.step([(cache, ids)])
        np.testing.assert_allclose(got.logprobs, wanted.logprobs, atol=1e-4)
        assert got.ids.tolist() == wanted.ids.tolist()


def test_a_refused_truncate_changes_nothing() -> None:
    """The window of audio is deeper than its slack; text alone could go back as far as it likes."""
    cache = BACKEND.new_cache()
    BACKEND.listen([(cache, noise(0, 40))])
    BACKEND.listen([(cache, noise(1, 40))])
    BACKEND.step([(cache, np.array([5, 6, 7]))])
    for length in (-1, 84):
        with pytest.raises(CacheError, match="cannot truncate to .* the cache holds 83"):
            cache.truncate(length)
    with pytest.raises(CacheError, match="deeper than the slack"):
        cache.truncate(20)
    assert (cache.length, {name: store.ring.length for name, store in cache.stores.items()}) == (83, {"audio": 80, "text": 3, "cross": 80})
    cache.truncate(81)
    assert cache.stores["text"].ring.length == 1


def test_copies_part_ways() -> None:
    cache, fresh = BACKEND.new_cache(), BACKEND.new_cache()
    for each in (cache, fresh):
        BACKEND.listen([(each, noise(0, 9))])
    other = cache.copy()
    BACKEND.step([(other, np.array([86, 9]))])
    left, right = BACKEND.step([(cache, np.array([86, 7])), (fresh, np.array([86, 7]))])
    assert left.ids.tolist() == right.ids.tolist() and cache.length == other.length == 11


@pytest.mark.parametrize(
    ("heard", "room", "wanted"), [(None, None, 6), (None, 4, 4), ("110000", None, 2), ("111111", 3, 3), ("011111", 3, 1)]
)
def test_one_forward_takes_one_side(heard: str | None, room: int | None, wanted: int) -> None:
    assert next_block(None if heard is None else np.array([c == "1" for c in heard]), 6, room) == wanted


# -- training
GRAFT: dict[str, Any] = {"layer_types": (L, L, G, G, G, G)}


def student(kinds: dict[str, Any] = ROLES) -> Student:
    """A tiny one, with the token ids of training."""
    backbone = replace(tiny_config().backbone, **kinds, sliding_window=64)  # training looks at rows that are no longer than it
    made = Student(config_of(asdict(backbone)), Depths(mel=1, features=1, ctc=1, late=2))
    randomise(made, 3)
    return made.eval()


def batch_of(rows: list[tuple[int, list[int]]], length: int) -> Batch:
    """Rows of so many frames, and the tokens that follow <audio|><transcribe>, which are asked for one by one."""
    ids, is_text = np.zeros((len(rows), length), np.int64), np.zeros((len(rows), length), bool)
    frames, labels = np.zeros((len(rows), length, 640), np.float32), np.full((len(rows), length), IGNORE)
    for i, (n, said) in enumerate(rows):
        tail = [text.END_AUDIO, text.TRANSCRIBE, *said]
        end = 2 + n + len(tail)
        ids[i, :2], is_text[i, :2] = (text.BOS, text.BEGIN_AUDIO), True
        frames[i, 2 : 2 + n] = noise(i, n)
        ids[i, 2 + n : end], is_text[i, 2 + n : end] = tail, True
        labels[i, 3 + n : end] = [*said, text.END]
    empty: Any = torch.zeros(0)
    made: dict[str, Any] = {name: empty for name in Batch.__dataclass_fields__}
    made |= {name: torch.from_numpy(value) for name, value in {"ids": ids, "is_text": is_text, "frames": frames, "labels": labels}.items()}
    return Batch(**made)


@pytest.mark.usefixtures("training_in_float32")
@pytest.mark.parametrize("kinds", [ROLES, PLAIN, TRANSLATING, HEARING], ids=["roles", "plain", "translating", "hearing"])
@pytest.mark.parametrize("narrow", [True, False])
def test_training_computes_what_a_stream_does(narrow: bool, kinds: dict[str, Any]) -> None:
    """Only where something is asked, or everywhere: at each token the state is that of the runtime, after any frames and padding."""
    learner, rows = student(kinds), [(30, [20, 21, 22, 23]), (25, [30]), (3, [40, 41, 42, 43, 44])]
    batch = batch_of(rows, 48)
    last = answering(batch.labels) if narrow else None
    assert (last is None) != narrow
    with torch.inference_mode():
        states = learner.hidden_states(batch, last=last)
        said = learner.backbone.norm(states[-1].float())
    model = replace(tiny_model(), config=learner.config, backbone=learner.backbone, projector=learner.projector)
    backend = TorchBackend(model)
    for i, (n, words) in enumerate(rows):
        cache = backend.new_cache()
        backend.step([(cache, np.array([text.BOS, text.BEGIN_AUDIO]))])
        backend.listen([(cache, noise(i, n))])
        (step,) = backend.step([(cache, np.array([text.END_AUDIO, text.TRANSCRIBE, *words]))])
        places = torch.arange(48) if last is None else last[i]
        first = 0 if kinds is ROLES else 1  # there <audio|> is heard
        at = [int((places == place).nonzero()[0, 0]) for place in range(2 + n + first, 4 + n + len(words))]
        np.testing.assert_allclose(said[i, at].numpy(), torch.stack(list(step.hidden[first:])).numpy(), atol=ROUNDING)  # type: ignore[arg-type]
        heard = states[learner.config.backbone.hearing_layers][i, 2 : 2 + n].float()
        np.testing.assert_allclose(heard.numpy(), audio_states(backend, i, n), atol=ROUNDING)


def audio_states(backend: TorchBackend, seed: int, n: int) -> np.ndarray[Any, Any]:
    """Behind the layers of audio, before the last norm [n, d]."""
    kept: list[Tensor] = []
    handle = backend.backbone.norm.register_forward_pre_hook(lambda _, given: kept.append(given[0]))
    cache = backend.new_cache()
    backend.step([(cache, np.array([text.BOS, text.BEGIN_AUDIO]))])
    backend.listen([(cache, noise(seed, n))])
    handle.remove()
    return kept[-1].numpy()


@pytest.mark.usefixtures("training_in_float32")
@pytest.mark.parametrize("kinds", [ROLES, PLAIN, HEARING], ids=["roles", "plain", "hearing"])
def test_every_weight_of_a_role_learns(kinds: dict[str, Any]) -> None:
    """And what a role does not have is not there: a layer of text has no MLP."""
    learner = student(kinds).train()
    batch = batch_of([(30, [20, 21, 22, 23]), (25, [30, 31])], 48)
    x = learner.hidden_states(batch, last=answering(batch.labels))[-1]
    learner.backbone.norm(x.float()).square().mean().backward()
    names = {name for name, p in learner.backbone.named_parameters() if p.grad is None or not p.grad.any()}
    assert names == set()
    without = tuple(f"layers.{i}.mlp" for i, role in enumerate(kinds["layer_roles"]) if role == "text")
    assert len(without) == 2 and not any(name.startswith(without) for name, _ in learner.backbone.named_parameters())


# -- folders
def model_folder(folder: Path, kinds: dict[str, Any]) -> Path:
    learner = student(kinds)
    folder.mkdir()
    save_checkpoint(folder, learner.backbone, learner.projector)
    (folder / "config.json").write_text(json.dumps(small_config(asdict(learner.config.backbone), Taught())))
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.mark.parametrize("kinds", [ROLES, PLAIN, TRANSLATING, HEARING], ids=["roles", "plain", "translating", "hearing"])
@pytest.mark.parametrize("once", [False, True])
def test_graphs_of_roles_hold_each_matrix_once(tmp_path: Path, once: bool, kinds: dict[str, Any]) -> None:
    model_folder(tmp_path / "new", kinds)
    export(tmp_path / "new", tmp_path / "new", precision="fp32", once=once)
    sides = {"audio", "text", *({"translation"} if kinds is TRANSLATING else ())}
    assert {path.stem for path in (tmp_path / "new" / "onnx").glob("*.onnx")} == {*sides, "head", "projector"}
    model = load_model(tmp_path / "new")
    runtimes = [TorchBackend(model), OnnxBackend(tmp_path / "new" / "onnx", model.config)]
    steps = []
    for backend in runtimes:
        cache = backend.new_cache()
        backend.listen([(cache, noise(0, 20))])
        steps += backend.step([(cache, np.array([text.END_AUDIO, text.TRANSCRIBE, 20]))])
        cache.truncate(20)
        steps += backend.step([(cache, np.array([text.TRANSLATE["fr"], 20, 21, text.END]))])
        steps += backend.step([(cache, np.array([22]))])  # what follows is of that side too
        assert cache.length == 25
    for one, other in zip(steps[:3], steps[3:], strict=True):
        assert one.ids.tolist() == other.ids.tolist()
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)


def test_a_translation_leaves_the_transcript_as_it_is(tmp_path: Path) -> None:
    """To the last bit, in both runtimes, and it does not look at what was heard; who does not translate keeps no room for it."""
    model_folder(tmp_path / "new", TRANSLATING)
    export(tmp_path / "new", tmp_path / "new", precision="int8")
    model = load_model(tmp_path / "new")
    asked, tail = np.array([text.TRANSLATE["de"], 20, 21, text.END, 22]), np.array([text.END_AUDIO, text.TRANSCRIBE, 20])
    for backend in (TorchBackend(model), OnnxBackend(tmp_path / "new" / "onnx", model.config)):
        cache, plain = backend.new_cache(), backend.new_cache()
        backend.listen([(cache, noise(0, 20))])
        backend.listen([(plain, noise(0, 20))])
        (translated,) = backend.step([(cache, asked)])
        cache.truncate(20)
        (said,), (wanted,) = backend.step([(cache, tail)]), backend.step([(plain, tail)])
        assert said.logprobs.tolist() == wanted.logprobs.tolist()
        fresh = backend.new_cache()
        backend.listen([(fresh, noise(1, 20))])
        (other,) = backend.step([(fresh, asked)])
        assert other.logprobs.tolist() == translated.logprobs.tolist()
        assert 0 in plain.stores["translation"].keys.shape and 0 not in cache.stores["translation"].keys.shape


def test_no_transcript_turns_into_a_translation(tmp_path: Path) -> None:
    """Behind the token of a language all would be of that side; however loud its row, it is never said, by neither runtime."""
    model_folder(tmp_path / "new", TRANSLATING)
    model = load_model(tmp_path / "new")
    languages = list(model.config.special.languages)
    with torch.no_grad():
        model.backbone.embed_tokens.weight[languages] *= 100
    save_checkpoint(tmp_path / "new", model.backbone, model.projector)
    export(tmp_path / "new", tmp_path / "new", precision="fp32")
    for backend in (TorchBackend(model), OnnxBackend(tmp_path / "new" / "onnx", model.config)):
        (step,) = backend.step([(backend.new_cache(), np.arange(20, 90))])
        assert languages and not set(step.ids.tolist()) & set(languages)


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        (["audio"] * 5, "expected audio, plain_audio, text, cross or translation for each of 6 layers"),
        (["audio", "audio", "text", "cross", "text", "speech"], "expected audio, plain_audio, text, cross or translation"),
        ("audio", "layer_roles is 'audio'"),
        (["audio", "text", "text", "cross", "text", "cross"], "expected one kind for each role"),
        (["cross", "cross", "text", "text", "text", "text"], "full attention for cross"),
    ],
)
def test_wrong_roles_are_named(roles: object, message: str) -> None:
    raw = small_config(asdict(student(GRAFT).config.backbone), Taught())
    raw["dragoman"]["layer_roles"] = roles
    with pytest.raises(ConfigError, match=message):
        model_config_from_mapping(raw)


@pytest.mark.parametrize(
    ("kinds", "ids", "message"),
    [(PLAIN, [11], "language_ids is .11. in section 'dragoman', but no layer"), (TRANSLATING, ["de"], "expected a list of token ids")],
)
def test_languages_need_layers_that_translate(kinds: dict[str, Any], ids: list[object], message: str) -> None:
    raw = small_config(asdict(student(kinds).config.backbone), Taught())
    raw["dragoman"]["language_ids"] = ids
    with pytest.raises(ConfigError, match=message):
        model_config_from_mapping(raw)


@pytest.mark.parametrize("kinds", [ROLES, PLAIN, TRANSLATING, HEARING], ids=["roles", "plain", "translating", "hearing"])
def test_roles_go_through_config_json(kinds: dict[str, Any]) -> None:
    config = replace(tiny_config(**kinds), audio=AudioConfig())
    again = config_of(json.loads(json.dumps(asdict(config.backbone))))
    ours = small_config(asdict(config.backbone), Taught())["text_config"]
    assert again.backbone == config.backbone and not {"layer_roles", "plain"} & ours.keys()


@pytest.mark.parametrize(
    ("plain", "changed", "message"),
    [
        ({"num_attention_heads": 3}, {}, "expected num_attention_heads and intermediate_size"),
        ({"num_attention_heads": 3, "intermediate_size": 0}, {}, "plain_layers is .* expected"),
        ({"num_attention_heads": 3, "intermediate_size": 4, "audio_step": 0}, {}, "if it is not 1 audio_step, above 0"),
        (8, {}, "plain_layers is 8"),
        ({"num_attention_heads": 3, "intermediate_size": 4}, {"layer_roles": []}, "needs layer_roles"),
    ],
)
def test_wrong_plain_layers_are_named(plain: object, changed: dict[str, object], message: str) -> None:
    raw = small_config(asdict(student(PLAIN).config.backbone), Taught())
    raw["dragoman"] |= {"plain_layers": plain, **changed}
    with pytest.raises(ConfigError, match=message):
        model_config_from_mapping(raw)
