"""Every line of the traps checklist (spec, section 12) is a test here.

``reference`` is a second, naive reading of the decoder with a switch for each mistake: without a switch it equals our runtime, with one it
must differ, so that each line is seen to matter.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dragoman.model.backbone import rotary_frequencies
from dragoman.model.config import BackboneConfig, SpecialIds
from dragoman.model.projector import cut_frames, frame_count
from dragoman.model.prompt import Prompts, Task
from dragoman.model.torch_backend import TorchBackend, TorchCache
from torch import Tensor

from .gemma_tokens import gemma_config, gemma_tokenizer
from .tiny_models import SPECIAL, TEXT, WINDOW, noise, some_ids, tiny_backend, tiny_model

BACKEND = tiny_backend(7, drafter=True)
MISTAKES = (
    "scale is d^-0.5",
    "norm weight is 1 + w",
    "global V is taken after norm and rotation",
    "global V has no norm",
    "global V has the norm of K",
    "local V has no norm",
    "rotated dims are contiguous",
    "exponents run over the rotated part",
    "layer scalar before the second residual",
    "window does not count self",
    "window is one short",
    "no soft cap",
)


def rms(x: Tensor, weight: Tensor | None = None, plus: float = 0.0) -> Tensor:
    y = x * (x.pow(2).mean(-1, keepdim=True) + 1e-6) ** -0.5
    return y if weight is None else y * (weight + plus)


def rotated(x: Tensor, config: BackboneConfig, sliding: bool, mistake: str) -> Tensor:
    """x [T, H, D], positions 0 .. T-1, pair by pair."""
    dim, out = x.shape[-1], x.clone()
    part = 1.0 if sliding else config.global_partial_rotary_factor
    theta = config.rope_theta if sliding else config.global_rope_theta
    pairs = int(part * dim / 2)
    for i in range(pairs):
        over = 2 * pairs if mistake == "exponents run over the rotated part" and not sliding else dim
        j = i + pairs if mistake == "rotated dims are contiguous" and not sliding else i + dim // 2
        angle = torch.arange(len(x))[:, None] * theta ** (-2 * i / over)
        out[..., i] = x[..., i] * angle.cos() - x[..., j] * angle.sin()
        out[..., j] = x[..., j] * angle.cos() + x[..., i] * angle.sin()
    return out


def reference(x: Tensor, backend: TorchBackend, mistake: str = "") -> Tensor:
    """Embeddings [T, d] → logits [T, vocab], one query at a time."""
    config, w = backend.config.backbone, backend.backbone.state_dict()
    plus = 1.0 if mistake == "norm weight is 1 + w" else 0.0
    for layer in range(config.num_layers):
        p, sliding, dim = f"layers.{layer}.", config.is_sliding(layer), config.dim(layer)
        h = rms(x, w[p + "input_layernorm.weight"], plus)
        q, k = ((h @ w[p + f"self_attn.{name}_proj.weight"].T).view(len(x), -1, dim) for name in "qk")
        v = (h @ w[p + "self_attn.v_proj.weight"].T).view(len(x), -1, dim) if sliding else k
        knorm = w[p + "self_attn.k_norm.weight"]
        q = rotated(rms(q, w[p + "self_attn.q_norm.weight"], plus), config, sliding, mistake)
        k = rotated(rms(k, knorm, plus), config, sliding, mistake)
        if not sliding and mistake == "global V is taken after norm and rotation":
            v = k
        elif mistake == ("local V has no norm" if sliding else "global V has no norm"):
            pass
        else:
            v = rms(v, knorm if mistake == "global V has the norm of K" and not sliding else None)
        x = x + rms(
            attended(q, k, v, sliding, mistake) @ w[p + "self_attn.o_proj.weight"].T, w[p + "post_attention_layernorm.weight"], plus
        )
        early = mistake == "layer scalar before the second residual"
        x = x * w[p + "layer_scalar"] if early else x
        h = rms(x, w[p + "pre_feedforward_layernorm.weight"], plus)
        gate = torch.nn.functional.gelu(h @ w[p + "mlp.gate_proj.weight"].T, approximate="tanh")
        h = (gate * (h @ w[p + "mlp.up_proj.weight"].T)) @ w[p + "mlp.down_proj.weight"].T
        x = x + rms(h, w[p + "post_feedforward_layernorm.weight"], plus)
        x = x if early else x * w[p + "layer_scalar"]
    scores = rms(x, w["norm.weight"], plus) @ w["embed_tokens.weight"].T
    return scores if mistake == "no soft cap" else 30 * torch.tanh(scores / 30)


def attended(q: Tensor, k: Tensor, v: Tensor, sliding: bool, mistake: str) -> Tensor:
    group, rows = q.shape[1] // k.shape[1], list[Tensor]()
    scale = q.shape[-1] ** -0.5 if mistake == "scale is d^-0.5" else 1.0
    reach = WINDOW + {"window does not count self": 1, "window is one short": -1}.get(mistake, 0)
    for t in range(len(q)):
        low = max(0, t - reach + 1) if sliding else 0
        heads = [torch.softmax(scale * q[t, h] @ k[low : t + 1, h // group].T, -1) @ v[low : t + 1, h // group] for h in range(q.shape[1])]
        rows.append(torch.cat(heads))
    return torch.stack(rows)


def embeddings(backend: TorchBackend) -> Tensor:
    """Text and audio, longer than two windows."""
    with torch.inference_mode():
        sound = backend.projector(torch.from_numpy(noise(3, 30)))
        return torch.cat([backend.embed_ids(some_ids(1, 6)), sound, backend.embed_ids(some_ids(2, 6))])


@torch.inference_mode()
def ours(backend: TorchBackend, x: Tensor) -> Tensor:
    """One position at a time through the ring."""
    cache = backend.new_cache()
    return torch.cat([backend.backbone.logits(backend.hidden_states([(cache, row[None])])[0]) for row in x])


def test_the_decoder_is_the_reference() -> None:
    x = embeddings(BACKEND)
    torch.testing.assert_close(ours(BACKEND, x), reference(x, BACKEND), atol=1e-4, rtol=0)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_would_be_seen(mistake: str) -> None:
    x = embeddings(BACKEND)
    right = reference(x, BACKEND)
    assert float((reference(x, BACKEND, mistake) - right).abs().max()) > 1e-2


def test_proportional_rotation_at_full_size() -> None:
    """Dims 0..63 turn with 256..319; exponents over 512; the other 192 pairs stand still."""
    config = BackboneConfig(9, 8, 8, ("full_attention",), 1, 1, 1, 256, 512, 1024)
    frequencies = rotary_frequencies(config, "full_attention")
    assert len(frequencies) == 256
    assert torch.count_nonzero(frequencies) == 64
    torch.testing.assert_close(frequencies[63], torch.tensor(1e6 ** (-126 / 512)))
    assert torch.count_nonzero(rotary_frequencies(config, "sliding_attention")) == 128


def test_text_is_scaled_and_audio_is_not() -> None:
    table = BACKEND.backbone.embed_tokens.weight
    torch.testing.assert_close(BACKEND.embed_ids(np.array([5])), table[5:6] * 32**0.5)
    frames = torch.from_numpy(noise(0, 2))
    plain = rms(frames) @ BACKEND.projector.embedding_projection.weight.T
    torch.testing.assert_close(BACKEND.projector(frames), plain)


def test_the_scale_is_rounded_to_the_type_of_the_weights() -> None:
    """sqrt(3840) = 61.97 is 62 in bfloat16."""
    wide = BackboneConfig(4, 3840, 8, ("full_attention",), 1, 1, 1, 8, 8, 4)
    from dragoman.model.backbone import Backbone

    backbone = Backbone(wide).to(torch.bfloat16)
    with torch.no_grad():
        backbone.embed_tokens.weight.fill_(1.0)
    assert backbone.embed(torch.tensor([0]))[0, 0] == 62.0


def test_the_ends_of_audio_and_image_are_text_rows() -> None:
    ends = [SPECIAL.begin_of_audio, SPECIAL.end_of_audio, SPECIAL.begin_of_image, SPECIAL.end_of_image]
    torch.testing.assert_close(BACKEND.embed_ids(np.array(ends)), BACKEND.backbone.embed_tokens.weight[ends] * 32**0.5)


def test_a_rolling_cache_must_keep_window_minus_one() -> None:
    """One key fewer in the ring and the answer differs: the mask hides nothing by accident."""
    x = embeddings(BACKEND)
    right = ours(BACKEND, x)

    class Short(TorchBackend):
        def new_cache(self) -> TorchCache:
            cache = super().new_cache()
            ring = cache.stores["sliding_attention"].ring
            ring.window = WINDOW - 1
            return cache

    short = Short(tiny_model(7), slack_tokens=64)
    assert float((ours(short, x) - right).abs().max()) > 1e-2


def test_the_drafter_has_its_own_uncapped_head_and_order() -> None:
    """[embedding ; hidden], hidden after the final norm, no soft cap, the drafter's table: step by step against plain formulas."""
    drafter = BACKEND.drafter
    assert drafter is not None
    cache = BACKEND.new_cache()
    (step,) = BACKEND.step([(cache, some_ids(5, 9))])
    state, token = step.hidden[-1], np.array([11])
    assert isinstance(state, Tensor)
    logits, _ = BACKEND.draft_logits([cache], token, state[None])
    with torch.inference_mode():
        seen: dict[str, Tensor] = {}
        handle = drafter.model.norm.register_forward_hook(lambda _m, _i, out: seen.update(inner=out))
        BACKEND.draft_logits([cache], token, state[None])
        handle.remove()
        torch.testing.assert_close(logits, seen["inner"] @ drafter.model.embed_tokens.weight.T)
        swapped = torch.cat([state[None], BACKEND.embed_ids(token)], -1)
        right = torch.cat([BACKEND.embed_ids(token), state[None]], -1)
        entered: list[Tensor] = []
        handle = drafter.pre_projection.register_forward_hook(lambda _m, args, _o: entered.append(args[0]))
        BACKEND.draft_logits([cache], token, state[None])
        handle.remove()
    assert torch.equal(entered[0], right) and not torch.equal(right, swapped)


def test_the_drafter_stays_at_one_position(monkeypatch: pytest.MonkeyPatch) -> None:
    drafter = BACKEND.drafter
    assert drafter is not None
    places: list[list[int]] = []
    original = drafter.model.rotary
    monkeypatch.setattr(drafter.model, "rotary", lambda positions, dtype: places.append(positions.tolist()) or original(positions, dtype))
    cache = BACKEND.new_cache()
    (step,) = BACKEND.step([(cache, some_ids(5, 9))])
    BACKEND.draft([(cache, (step.hidden[-1], 11, 4))])
    assert places == [[9]] * 4, "the position of the token that was just chosen: the index after the cache"


def test_hidden_is_after_the_final_norm() -> None:
    cache = BACKEND.new_cache()
    (step,) = BACKEND.step([(cache, some_ids(5, 9))])
    again = BACKEND.backbone.logits(torch.stack(list(step.hidden)))  # type: ignore[arg-type]
    again[:, list(SPECIAL.suppressed)] = -torch.inf
    assert again.argmax(-1).tolist() == step.ids.tolist(), "the head takes it as it is"


def test_ids_that_are_not_text_are_suppressed() -> None:
    assert sorted(SpecialIds().suppressed) == [
        2,
        256000,
        258880,
        258881,
        258882,
        258883,
        258884,
    ]  # <bos> and <|audio>, then placeholders and ends
    scores = torch.zeros(1, TEXT.vocab_size)
    assert (BACKEND._suppress(scores)[0] == -torch.inf).nonzero().flatten().tolist() == sorted(SPECIAL.suppressed)


def test_the_thought_channel_is_primed_and_text_stands_before_audio() -> None:
    prompts, tokenizer = Prompts(gemma_config(), gemma_tokenizer()), gemma_tokenizer()
    assert prompts.tail(Task()) == [258883, 106, 107, 105, 4368, 107, 100, 45518, 107, 101]
    prefix = prompts.prefix(Task())
    assert prefix[-1] == 256000, "audio comes last in the turn"
    assert "Transcribe" in tokenizer.decode(prefix[:-1])


def test_stop_ids() -> None:
    assert Prompts(gemma_config(), gemma_tokenizer()).stop == (1, 106, 50)


def test_the_last_frame_is_padded_with_zeros_at_its_end() -> None:
    samples = torch.arange(1.0, 1301.0)
    frames = cut_frames(samples, 640)
    assert frames.shape == (frame_count(1300, 640), 640) == (3, 640)
    assert frames[2, :20].tolist() == samples[1280:].tolist()
    assert torch.count_nonzero(frames[2, 20:]) == 0
    assert frame_count(1280, 640) == 2 == len(cut_frames(samples[:1280], 640))


def test_another_frame_grid_is_another_input() -> None:
    """Phase matters: the same sound cut 320 samples later gives other embeddings."""
    samples = torch.from_numpy(noise(1, 3)).flatten()
    here, later = (BACKEND.projector(cut_frames(samples[at:], 640))[0] for at in (0, 320))
    assert float((here - later).detach().abs().max()) > 1e-2


def test_silence_is_the_zero_vector_and_loudness_is_not_heard() -> None:
    frames = torch.from_numpy(noise(1, 1))
    with torch.inference_mode():
        assert torch.count_nonzero(BACKEND.projector(torch.zeros(1, 640))) == 0
        torch.testing.assert_close(BACKEND.projector(frames * 0.5), BACKEND.projector(frames), atol=1e-3, rtol=1e-3)
