"""A listener and the one model that is made of it say the same: in one forward, as a stream, on both runtimes."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra train")
pytest.importorskip("rapidfuzz", reason="needs the extra train")
pytest.importorskip("scipy", reason="needs the extra train")

from dragoman.model.checkpoint import Model, load_model  # noqa: E402
from dragoman.model.config import read_model_config  # noqa: E402
from dragoman.model.errors import ConfigError  # noqa: E402
from dragoman.model.load import load  # noqa: E402
from dragoman.model.offline import transcribe_job  # noqa: E402
from dragoman.model.torch_backend import TorchBackend  # noqa: E402
from dragoman.model.training import text  # noqa: E402
from dragoman.model.training.dictation import Dictation  # noqa: E402
from dragoman.model.training.join import join, main  # noqa: E402
from dragoman.model.training.listening import (  # noqa: E402
    Listener,
    ListeningTrainer,
    RateOptions,
    audio_heard,
)
from dragoman.model.training.package import Taught, save_model  # noqa: E402
from dragoman.model.training.teachers import WIDTH  # noqa: E402
from dragoman.model.training.translating import with_layers  # noqa: E402
from dragoman.model.training.unjoin import unjoin  # noqa: E402
from dragoman.model.work import run as run_job  # noqa: E402

from .onnx_models import onnx_backend  # noqa: E402
from .tiny_models import randomise  # noqa: E402
from .training_listeners import make_dictations, make_listener, make_tokenizer  # noqa: E402

TOKENS = 9
WORDS = slice(len(text.SPECIAL_TOKENS), None)  # marks are suppressed in decoding, and those that are heard have rows of hearing
TOLERANCE = 2e-3  # a decoder's norms add ten times as much to a variance as Gemma's


@pytest.fixture(scope="module")
def dictation(tmp_path_factory: pytest.TempPathFactory) -> Dictation:
    folder = tmp_path_factory.mktemp("join")
    return make_dictations(folder, make_tokenizer(folder))[0]


@pytest.fixture(scope="module")
def listener() -> Listener:
    made = make_listener(decoder_layers=2, hidden_size=WIDTH).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in made.named_parameters():  # nothing is one or zero that need not be
            if p.ndim == 1 and "student" not in name:
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
        made.mean.normal_(generator=generator)
        made.spread.uniform_(0.3, 3.0, generator=generator)
        made.decoder.embed_tokens.weight[[text.END_AUDIO, text.BOS, text.BEGIN_AUDIO]] = 0.0
        made.decoder.embed_tokens.weight.sub_(made.decoder.embed_tokens.weight.mean(1, keepdim=True))
    return made


@pytest.fixture(scope="module")
def model(listener: Listener) -> Model:
    return join(listener)


@torch.no_grad()
def said(listener: Listener, dictation: Dictation) -> list[np.ndarray]:
    """Of each row the logits of words [tokens, V]."""
    states = listener.states(listener.hear(dictation.batch)).float()
    found = listener.decoder.logits(listener.decoder(dictation.ids, states, audio_heard(dictation.batch)))
    return [row[:TOKENS, WORDS].numpy() for row in found]


@pytest.mark.usefixtures("training_in_float32")
def test_the_model_says_what_the_listener_says(listener: Listener, model: Model, dictation: Dictation) -> None:
    """Row by row as a stream: the audio in blocks, then text."""
    backend = TorchBackend(model)
    for i, wanted in enumerate(said(listener, dictation)):
        n, cache = int(dictation.batch.audio_frames[i]), backend.new_cache()
        frames = dictation.batch.frames[i, 2 : 2 + n].numpy()
        backend.step([(cache, np.array([text.BOS, text.BEGIN_AUDIO]))], wanted=[0])
        for first in range(0, n, 17):
            backend.listen([(cache, frames[first : first + 17])])
        (step,) = backend.step([(cache, np.array([text.END_AUDIO, *dictation.ids[i, :TOKENS].tolist()]))])
        logits = model.backbone.logits(torch.stack([torch.as_tensor(state) for state in step.hidden[1:]]))[:, WORDS].numpy()
        assert wanted.std() > 0.1, "there is something to be said"
        np.testing.assert_allclose(logits, wanted, atol=TOLERANCE * wanted.std())


def test_both_runtimes_say_it(model: Model, dictation: Dictation) -> None:
    steps = []
    for backend in (TorchBackend(model), onnx_backend(model, None)):
        cache = backend.new_cache()
        backend.step([(cache, np.array([text.BOS, text.BEGIN_AUDIO]))], wanted=[0])
        backend.listen([(cache, dictation.batch.frames[0, 2:40].numpy())])
        steps += backend.step([(cache, np.array([text.END_AUDIO, *dictation.ids[0, :TOKENS].tolist()]))])
    assert steps[0].ids.tolist() == steps[1].ids.tolist()
    np.testing.assert_allclose(steps[0].logprobs, steps[1].logprobs, atol=1e-4)


@pytest.mark.usefixtures("training_in_float32")
def test_a_listener_takes_back_what_was_joined(listener: Listener, model: Model, dictation: Dictation) -> None:
    """Also after ``smooth`` has moved gains about."""
    other = make_listener(decoder_layers=2, hidden_size=WIDTH, seed=9).eval()
    model = copy.deepcopy(model)
    with torch.no_grad():
        other.decoder.embed_tokens.load_state_dict(listener.decoder.embed_tokens.state_dict())
        for layer in other.decoder.layers:
            layer = cast("Any", layer)
            layer.post_attention_layernorm.weight.uniform_(0.5, 2.0)
        other.student.load_state_dict(listener.student.state_dict())
        other.adapt.weight.copy_(torch.linalg.qr(other.adapt.weight)[0])
        for layer in model.backbone.layers:
            if (layer := cast("Any", layer)).self_attn.plain and not layer.self_attn.turns:
                factor = torch.rand(WIDTH) + 0.5
                layer.input_layernorm.weight.mul_(factor)
                for matrix in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
                    matrix.weight.div_(factor)
    before = said(other, dictation)
    unjoin(model, other.decoder, other.adapt, other.mean, other.spread)
    for was, got, wanted in zip(before, said(other, dictation), said(listener, dictation), strict=True):
        np.testing.assert_allclose(got, wanted, atol=TOLERANCE * wanted.std())
        assert np.abs(was - wanted).max() > 0.1 * wanted.std()
    with pytest.raises(ConfigError, match="decoder_layers are 1, expected 2"):
        unjoin(model, make_listener(hidden_size=WIDTH).decoder, other.adapt, other.mean, other.spread)


def test_other_widths_are_refused() -> None:
    with pytest.raises(ConfigError, match=f"hidden_size of the hearing layers is 128, expected {WIDTH}"):
        join(make_listener(hidden_size=128))


def test_the_command_writes_a_folder_that_transcribes(tmp_path: Path) -> None:
    tokenizer, run = make_tokenizer(tmp_path), tmp_path / "run"
    dictations = make_dictations(tmp_path, tokenizer)
    listener = make_listener(hidden_size=WIDTH)
    trainer = ListeningTrainer(listener, dictations, run, RateOptions(threads=1))
    trainer.update(dictations[0])
    trainer.save()
    tokenizer.save(str(run / "tokenizer.json"))
    sizes = listener.student.config.backbone
    (run / "sizes.json").write_text(json.dumps(asdict(sizes)) + "\n")
    Taught(6).write(run)
    main([str(run), str(tmp_path / "model")])
    config = read_model_config(tmp_path / "model")
    old = with_layers(load_model(tmp_path / "model"), 1)
    randomise(old.backbone.layers[-1], 3)
    with torch.no_grad():
        old.backbone.embed_tokens.weight[text.BEGIN_AUDIO] += 1.0  # what hearing looks for there is no matter of translation
        old.backbone.embed_tokens.weight[text.TRANSLATE["fr"]] += 2.0  # which no run of hearing knows
    save_model(tmp_path / "old", old, run, Taught(8, ("de",)))
    main([str(run), str(tmp_path / "new"), "--translation", str(tmp_path / "old")])
    new, kept = load_model(tmp_path / "new"), old.backbone.state_dict()
    same = {name: value for name, value in new.backbone.state_dict().items() if name != "embed_tokens.weight"}
    assert all(torch.equal(value, kept[name]) for name, value in same.items())
    assert torch.equal(new.backbone.embed_tokens.weight[text.TRANSLATE["fr"]], kept["embed_tokens.weight"][text.TRANSLATE["fr"]])
    assert (new.config.targets, new.config.hearing_delay_ms) == (("de",), config.hearing_delay_ms)
    with pytest.raises(ConfigError, match="has no layers that translate"):
        main([str(run), str(tmp_path / "none"), "--translation", str(tmp_path / "model")])
    with torch.no_grad():
        old.backbone.norm.weight.mul_(1.1)
    save_model(tmp_path / "other", old, run, Taught(8, ("de",)))
    with pytest.raises(ConfigError, match="another table or last norm"):
        main([str(run), str(tmp_path / "none"), "--translation", str(tmp_path / "other")])
    assert config.backbone.layer_roles == ("audio",) * 2 + ("text", "cross")
    loaded = load(tmp_path / "model", runtime="torch")
    result = run_job(loaded.backend, transcribe_job(loaded, np.zeros(16_000, np.float32)))
    assert all(i not in config.special.suppressed for i in result.ids)
