"""Layers of a published encoder in a model that looks back only: they compute what they did, and the layer below them makes their input."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import soundfile
import soxr

torch = pytest.importorskip("torch", reason="needs the extra train")
pytest.importorskip("rapidfuzz", reason="needs the extra train")
pytest.importorskip("scipy", reason="needs the extra train")

from dragoman.model.backbone import Layer, causal_attention, rms_norm  # noqa: E402
from dragoman.model.checkpoint import Model, build_model, load_model  # noqa: E402
from dragoman.model.config import SAMPLE_RATE, ModelConfig, read_model_config  # noqa: E402
from dragoman.model.errors import ConfigError  # noqa: E402
from dragoman.model.training import inherit  # noqa: E402
from dragoman.model.training.encoder import Encoder, EncoderLayer, at_frames, load_encoder  # noqa: E402
from dragoman.model.training.join import centred, join  # noqa: E402
from dragoman.model.training.listening import first_layers  # noqa: E402
from dragoman.model.training.moonshine import Decoder, rotary  # noqa: E402
from dragoman.model.training.package import delay_of, save_model  # noqa: E402
from dragoman.model.training.recognisers import LAYERS  # noqa: E402
from dragoman.model.training.teachers import CENTRE_SAMPLES, HOP_SAMPLES, WIDTH, MoonshineEncoder  # noqa: E402

from .training_fakes import make_store  # noqa: E402
from .training_listeners import VOCABULARY, make_listener, make_tokenizer  # noqa: E402

needs_weights = pytest.mark.skipif(importlib.util.find_spec("moonshine_voice") is None, reason="needs the extra train")


def joined() -> Model:
    return join(make_listener(decoder_layers=LAYERS, hidden_size=WIDTH))


def turned_as_the_encoder() -> ModelConfig:
    """One Gemma layer, the layer between, and one for the encoder's, whose positions turn as far as the encoder's do."""
    config = inherit.widened(joined().config, 1, 1)
    assert config.backbone.plain is not None
    return replace(config, backbone=replace(config.backbone, plain=replace(config.backbone.plain, audio_step=1.0)))


@pytest.fixture(scope="module")
def layers() -> list[Layer]:
    return cast("list[Layer]", list(build_model(turned_as_the_encoder(), device="cpu").backbone.layers))


def forward(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    backbone = build_model(turned_as_the_encoder(), device="cpu").backbone
    return layer(x[None], backbone.rotary(torch.arange(len(x))[None], x.dtype), causal_attention(backbone.config, len(x)))[0]


@needs_weights
def test_the_published_encoder_says_what_the_package_says(clips: Path) -> None:
    samples, rate = soundfile.read(clips / "lighthouse.ogg", dtype="float32", frames=80_000)
    wave, encoder = soxr.resample(samples, rate, SAMPLE_RATE), load_encoder()
    wanted = torch.from_numpy(MoonshineEncoder()(wave))
    states = encoder(torch.from_numpy(wave))
    assert len(states) == 1 + LAYERS
    missed = (encoder.layer_norm(states[-1])[: len(wanted)] - wanted).square().mean() / wanted.var()
    assert missed < 0.03, "the package rounds what comes into its products to 8 bits"


def test_rows_of_the_teacher_stand_where_our_frames_do() -> None:
    """A ramp in time is the same ramp, frame by frame."""
    rows = (torch.arange(60) * HOP_SAMPLES + CENTRE_SAMPLES).float()[:, None]
    torch.testing.assert_close(at_frames(rows, 30)[:, 0], (torch.arange(30) + 0.5) * 640)


def test_an_inherited_layer_computes_what_the_encoder_does(layers: list[Layer]) -> None:
    """Where the encoder looks back only; the last position does."""
    torch.manual_seed(0)
    old, new = EncoderLayer(), layers[2]
    with torch.no_grad():
        for norm in (old.input_layernorm, old.post_attention_layernorm):
            norm.weight.uniform_(0.5, 2.0)
        old.self_attn.q_proj.weight.mul_(4.0)  # as left at first, attention is to everything alike
        inherit.write_encoder(new, old)
        x = centred(torch.randn(20, WIDTH) * 3, 1)
        wanted = centred(old(x[None], *rotary(20, x.dtype))[0, -1:], 1)
        got = forward(new, x)[-1:]
    assert (wanted - x[-1:]).std() > 0.1, "the layer does something"
    assert (got - wanted).abs().max() < 0.05 * (wanted - x[-1:]).std(), "but for how GELU is approximated"


def test_the_layer_between_adds_a_line(layers: list[Layer]) -> None:
    torch.manual_seed(1)
    weight, bias, x = torch.randn(WIDTH, WIDTH), torch.randn(WIDTH), torch.randn(9, WIDTH)
    with torch.no_grad():
        inherit.write_line(layers[1], weight, bias)
        got = forward(layers[1], x)
    torch.testing.assert_close(got, x + rms_norm(x, None, 1e-6) @ weight.T + bias, atol=1e-3, rtol=1e-4)


def test_a_model_goes_on_in_the_encoders_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    run.mkdir()
    make_tokenizer(run)
    store = make_store(tmp_path / "store").folder
    save_model(tmp_path / "old", joined(), run)
    torch.manual_seed(2)
    monkeypatch.setattr(inherit, "load_encoder", lambda: Encoder().eval().requires_grad_(False))
    monkeypatch.setattr(inherit, "published_decoder", lambda tokenizer, layers: Decoder(VOCABULARY, len(layers)))
    given = [str(tmp_path / "old"), str(tmp_path / "new"), "--store", str(store), "--below", "1", "--above", "4", "--delay-frames", "3"]
    inherit.main(given)
    config = read_model_config(tmp_path / "new")
    assert config.backbone.layer_roles[:4] == ("audio", "plain_audio", "plain_audio", "plain_audio")
    assert config.backbone.hearing_layers == 4 and delay_of(config) == 3
    student, old, new = first_layers(tmp_path / "new", 4), load_model(tmp_path / "old"), load_model(tmp_path / "new")
    assert student.config.backbone.layer_roles == config.backbone.layer_roles[:4]
    for name, value in old.backbone.layers[0].state_dict().items():
        assert torch.equal(value, new.backbone.layers[0].state_dict()[name]), name
    for changed, message in ((["--above", "6"], "above is 6, expected 0 to 5"), (["--below", "3"], "below is 3, expected 1 to 2")):
        with pytest.raises(ConfigError, match=message):
            inherit.main([*given, *changed])
    with pytest.raises(ConfigError, match="below is 2, expected 1 to 1"):  # what it took over is no layer of its own
        inherit.main([str(tmp_path / "new"), *given[1:], "--below", "2"])


def test_the_line_is_fitted_to_what_was_said_so_much_earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To an encoder that says what we shall say two frames later there is nothing to add, two frames late."""
    run = tmp_path / "run"
    run.mkdir()
    make_tokenizer(run)
    save_model(tmp_path / "old", joined(), run)
    student, store = first_layers(tmp_path / "old", 1), make_store(tmp_path / "store")
    added = list[torch.Tensor]()
    monkeypatch.setattr(inherit, "at_frames", lambda rows, frames: rows[:frames])
    monkeypatch.setattr(inherit, "least_squares", lambda line, x, y: added.append(y) or 0.0)

    def ahead(wave: torch.Tensor) -> list[torch.Tensor]:
        frames = torch.nn.functional.pad(wave, (0, 4 * 640))[: (len(wave) // 640 + 3) * 640].view(-1, 640)
        return [student.projector(frames)[2:]]

    for delay in (0, 2):
        inherit.fit_line(student, 0, cast("Any", ahead), 0, store, delay, 8)
    wrong, right = (float((y - y.mean(1, keepdim=True)).square().mean()) for y in added)
    assert right < 1e-6 < 0.1 < wrong
