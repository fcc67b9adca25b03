"""A listener as a plain model: hearing is carried over, text and audio leave each other alone, and each layer of the decoder is met."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra train")
pytest.importorskip("rapidfuzz", reason="needs the extra train")
pytest.importorskip("scipy", reason="needs the extra train")

import tokenizers  # noqa: E402
from dragoman.model.backbone import rotary_frequencies  # noqa: E402
from dragoman.model.checkpoint import load_model  # noqa: E402
from dragoman.model.config import read_model_config  # noqa: E402
from dragoman.model.errors import ConfigError  # noqa: E402
from dragoman.model.load import load  # noqa: E402
from dragoman.model.offline import transcribe_job  # noqa: E402
from dragoman.model.training import graft_layers, text  # noqa: E402
from dragoman.model.training.blockwise import decoder_states, errors, fit, lined_up  # noqa: E402
from dragoman.model.training.dictation import Dictations  # noqa: E402
from dragoman.model.training.graft import graft, grafted_sizes, main, measure, save  # noqa: E402
from dragoman.model.training.graft_layers import AUDIO, BEGIN, BEGIN_FLAG, CROSS, SELF, STOP, STOP_FLAG, TEXT, TEXT_FLAG, WIDE  # noqa: E402
from dragoman.model.training.listening import Listener, ListeningTrainer, RateOptions, frames_heard  # noqa: E402
from dragoman.model.training.moonshine import MLP_WIDTH, ROTARY_BASE, ROTARY_DIM  # noqa: E402
from dragoman.model.training.package import Taught  # noqa: E402
from dragoman.model.training.precision import autocast  # noqa: E402
from dragoman.model.training.rows import IGNORE  # noqa: E402
from dragoman.model.training.student import Student  # noqa: E402
from dragoman.model.training.teachers import WIDTH  # noqa: E402
from dragoman.model.work import run as run_job  # noqa: E402

from .training_listeners import VOCABULARY, make_dictations, make_listener, make_tokenizer  # noqa: E402

UNITS = MLP_WIDTH + 2  # room for all of the decoder's, so that what is measured is the way it is written


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("graft")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> tokenizers.Tokenizer:
    return make_tokenizer(folder)


@pytest.fixture(scope="module")
def dictations(folder: Path, tokenizer: tokenizers.Tokenizer) -> Dictations:
    return make_dictations(folder, tokenizer)


@pytest.fixture(scope="module")
def listener() -> Listener:
    return make_listener(decoder_layers=2, hidden_size=128).eval()


@pytest.fixture(scope="module")
def student(listener: Listener, dictations: Dictations) -> Student:
    return graft(listener, dictations[0], UNITS)


@pytest.fixture(scope="module")
def found(listener: Listener, student: Student, dictations: Dictations) -> dict[str, float]:
    """On other clips than it was calibrated on."""
    return errors(listener, student, dictations[1])


def test_hearing_is_carried_over(found: dict[str, float]) -> None:
    assert found["hearing"] < 3e-4, "of the variance of what the hearing layers say, rounding to bfloat16 among it"


def test_text_goes_through_the_hearing_layers_and_audio_through_those_above(found: dict[str, float]) -> None:
    assert found["text_below"] < 1e-4 and found["audio_above"] < 1e-4


def test_each_pair_says_nearly_what_the_layer_says(found: dict[str, float]) -> None:
    assert 0 < found["pair0"] < 0.08 and 0 < found["pair1"] < 0.08
    assert found["whole"] < 0.16 and found["same"] > 0.8


@pytest.mark.parametrize(("width", "heads", "shared"), [(64, 1, 1), (256, 4, 2)])
def test_hearing_layers_of_other_sizes_are_carried_over(dictations: Dictations, width: int, heads: int, shared: int) -> None:
    """With as many units as there are, one of which gives way."""
    listener = make_listener(hidden_size=width, num_attention_heads=heads, num_key_value_heads=shared, intermediate_size=512).eval()
    found = errors(listener, graft(listener, dictations[0], 512), dictations[1])
    assert found["hearing"] < 2e-3 and found["text_below"] < 1e-4 and found["audio_above"] < 1e-4
    assert found["pair0"] < 0.3, "though more than half of the decoder's units are missing"


def test_the_fit_brings_pairs_nearer_and_leaves_hearing_alone(dictations: Dictations) -> None:
    listener, steps = make_listener(decoder_layers=1, hidden_size=128).eval(), 10
    student = graft(listener, dictations[0], UNITS)
    before = errors(listener, student, dictations[1])
    given = {
        name: value.clone()
        for name, value in student.state_dict().items()
        if not name.startswith(("backbone.layers.2", "backbone.layers.3"))
    }
    figures = list(fit(listener, student, ((dictations[2 + step], step / steps) for step in range(steps)), muon_lr=1e-3))
    assert len(figures) == steps and set(figures[0]) == {"pair0", "words", "audio_above"}
    after = errors(listener, student, dictations[1])
    assert after["pair0"] < 0.6 * before["pair0"] and after["whole"] < 0.6 * before["whole"] and after["audio_above"] < 1e-4
    assert all(torch.equal(value, student.state_dict()[name]) for name, value in given.items())


def test_all_layers_together_come_nearer_to_what_the_decoder_writes(dictations: Dictations) -> None:
    """Measured by all positions going through all layers, as the model runs; the fit itself runs the upper ones for text alone."""
    listener, steps = make_listener(decoder_layers=2, hidden_size=128).eval(), 12
    student = graft(listener, dictations[0], UNITS)
    student.backbone.layers[2].self_attn.o_proj.weight.data[:WIDTH] *= torch.linspace(0.2, 1.8, WIDTH)[:, None]  # type: ignore[union-attr]
    before = errors(listener, student, dictations[1])
    figures = list(fit(listener, student, ((dictations[2 + step], step / steps) for step in range(steps)), muon_lr=1e-3, whole=True))
    after = errors(listener, student, dictations[1])
    assert set(figures[0]) == {"behind0", "behind1", "words", "same"}
    assert after["whole"] < 0.6 * before["whole"] and after["audio_above"] < 1e-4 and after["hearing"] == before["hearing"]


@torch.no_grad()
def test_the_fit_sees_what_the_model_would_say(listener: Listener, student: Student, dictations: Dictations) -> None:
    """With nothing learnt (a rate of 0), ``behind…`` of the first step is what all of the model misses."""
    found = errors(listener, student, dictations[1])
    with torch.enable_grad():
        (figures,) = fit(listener, copy.deepcopy(student), [(dictations[1], 0.0)], muon_lr=0.0, adam_lr=0.0, whole=True)
    assert figures["behind1"] == pytest.approx(found["whole"], rel=0.05) and figures["same"] == pytest.approx(found["same"], abs=0.02)


def test_marks_have_rows_of_their_own(listener: Listener, student: Student) -> None:
    table, scale = student.backbone.embed_tokens.weight, WIDE**0.5
    heard = listener.student.backbone
    for mark in (text.BOS, text.BEGIN_AUDIO):
        assert torch.allclose(table[mark, :128], heard.embed(torch.tensor(mark)), atol=1e-5)
        assert (table[mark, BEGIN] == BEGIN_FLAG).all() and not table[mark, 128:WIDTH].any()
    assert not table[text.PAD].any() and (table[[text.END, *range(5, VOCABULARY)]][:, TEXT] == TEXT_FLAG).all()
    assert (table[text.END_AUDIO, STOP] == STOP_FLAG).all() and int((table[text.END_AUDIO] != 0).sum()) == 2
    rows, tokens = listener.decoder.embed_tokens.weight, torch.tensor([text.TRANSCRIBE, text.END, VOCABULARY - 1])
    wanted = rows[tokens] - rows[tokens].mean(1, keepdim=True)
    assert torch.allclose(student.backbone.embed(tokens)[:, :WIDTH], wanted * scale, atol=1e-4)


def test_marks_stay_what_they_are(student: Student, listener: Listener, dictations: Dictations) -> None:
    """The marks in front of audio are heard as they were, and none of the three is changed by the layers above hearing."""
    lined = lined_up(dictations[1])
    with torch.no_grad(), autocast():
        states = [state.float() for state in student.hidden_states(lined.batch)]
        heard = listener.hear(dictations[1].batch).float() * WIDE**0.5
    rows, end = torch.arange(len(lined.places)), lined.places[:, 0] - 1
    stop = [state[rows, end] for state in (states[0], states[2], states[-1])]
    assert (lined.batch.ids[rows, end] == text.END_AUDIO).all()
    for later in stop[1:]:
        assert float((later - stop[0]).square().mean()) < 1e-3 * float(stop[0].square().mean())
    begin, last = states[2][:, :2], states[-1][:, :2]
    assert float((last - begin).square().mean()) < 1e-3 * float(begin.square().mean())
    assert float((begin[..., :128] - heard[:, :2]).square().mean()) < 1e-2 * float(heard[:, :2].square().mean())


@torch.no_grad()
def test_text_has_nothing_of_the_flag_of_audio(student: Student, dictations: Dictations) -> None:
    """A hundredth of it, as once leaked in, opened gates in float32 and was rounded away in int8: the model fell apart there."""
    lined = lined_up(dictations[1])
    with autocast():
        states = student.hidden_states(lined.batch)
    for state in states[2:]:
        text_, audio = lined.text(state.float())[lined.asked], state.float()[lined.audio]
        assert float(text_[:, AUDIO].abs().max()) < 1e-3 * float(audio[:, AUDIO].mean())
        assert float(text_[:, TEXT].min()) > 0


@torch.no_grad()
def test_layers_above_hearing_run_for_text_alone(student: Student, dictations: Dictations) -> None:
    """What the text becomes is the same when audio stays as the hearing layers leave it: what training runs is what the model does."""
    lined = lined_up(dictations[1])
    ran: list[int] = []
    run = student.run_last
    student.run_last = lambda layer, *rest: (ran.append(layer.index), run(layer, *rest))[1]
    try:
        with autocast():
            every, alone = (student.hidden_states(lined.batch, last=last) for last in (None, lined.places))
    finally:
        student.run_last = run
    assert ran == [2, 3, 4, 5], "two layers hear"
    for a, b in zip(every[3:-1], alone[3:-1], strict=True):
        assert torch.equal(alone[2][lined.audio], b[lined.audio])
        assert float((lined.text(a - b)[lined.asked]).square().mean()) < 1e-3 * float(lined.text(a)[lined.asked].square().mean())
    wanted, said = lined.text(every[-1])[lined.asked], alone[-1][lined.asked]
    assert float((said - wanted).square().mean()) < 1e-3 * float(wanted.square().mean())


def test_rows_are_lined_up_as_a_session_writes_them(dictations: Dictations) -> None:
    dictation = dictations[0]
    lined = lined_up(dictation)
    assert lined.batch.ids.shape[1] % 32 == 0 and torch.equal(lined.asked, dictation.labels != IGNORE)
    for row in range(len(lined.places)):
        n, tokens = int(dictation.batch.audio_frames[row]), dictation.ids[row][lined.asked[row]].tolist()
        ids = lined.batch.ids[row][lined.batch.is_text[row]].tolist()
        assert ids == [text.BOS, text.BEGIN_AUDIO, text.END_AUDIO, *tokens] and tokens[0] == text.TRANSCRIBE
        assert lined.audio[row].nonzero()[:, 0].tolist() == list(range(2, 2 + n)) and int(lined.places[row, 0]) == 3 + n
        assert (
            torch.equal(lined.batch.frames[row, : 2 + n], dictation.batch.frames[row, : 2 + n])
            and not lined.batch.frames[row, 2 + n :].any()
        )
    states = torch.arange(lined.batch.ids.numel()).view(*lined.batch.ids.shape, 1)
    assert torch.equal(lined.text(states)[..., 0] - states[:, :1, 0], lined.places)


def test_states_of_the_decoder_are_those_it_goes_through(listener: Listener, dictations: Dictations) -> None:
    dictation = dictations[0]
    given = dictation.ids, torch.randn(4, 96, WIDTH), frames_heard(dictation.batch)
    with torch.no_grad():
        states, run = decoder_states(listener.decoder, *given), listener.decoder.run_layer
        assert len(states) == 3 and torch.equal(states[0], listener.decoder.embed_tokens(dictation.ids))
        assert torch.equal(listener.decoder.norm(states[-1]), listener.decoder(*given))
    assert listener.decoder.run_layer is run and not listener.decoder.norm._forward_pre_hooks


def test_dimensions_of_a_head_have_one_use_each_and_turn_as_they_did(listener: Listener) -> None:
    for places in (SELF, CROSS):
        used = [*places.real.tolist(), *places.query_pads.tolist(), *places.key_pads.tolist(), places.gate, places.sink]
        assert len(places.real) == 36 and len(set(used)) == len(used) and max(used) < 64
    rates = rotary_frequencies(grafted_sizes(listener), "full_attention")
    assert torch.allclose(rates[:16], ROTARY_BASE ** -(torch.arange(0, ROTARY_DIM, 2) / ROTARY_DIM)) and not rates[16:].any()
    assert SELF.real[:ROTARY_DIM:2].tolist() == list(range(16)) and torch.equal(SELF.real[:ROTARY_DIM:2] + 32, SELF.real[1:ROTARY_DIM:2])
    assert float(rates[CROSS.real % 32].max()) < 6e-4 and float(rates[SELF.real[ROTARY_DIM:] % 32].max()) == 0


def test_sizes_are_measured_where_something_is_said(listener: Listener, dictations: Dictations) -> None:
    """What stands behind the end of audio and text does not count."""
    dictation = dictations[0]
    sizes, memory, flags = measure(listener, dictation)
    dictation.ids[dictation.labels == IGNORE] = 99
    dictation.batch.frames[:, 95] = 1.0
    again, other, same = measure(listener, dictation)
    assert int(dictation.batch.audio_frames.max()) < 93
    assert torch.allclose(sizes[1].other.k, again[1].other.k) and torch.allclose(sizes[1].own.q, again[1].own.q) and flags == same
    assert memory.rms == other.rms and sizes[0].mlp == again[0].mlp
    assert sorted(sizes[0].units.tolist()) == list(range(MLP_WIDTH)) and flags.audio == pytest.approx(graft_layers.AUDIO_FLAG / memory.rms)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"layers": "SF"}, "layer 1 of the hearing layers is a full one.*fit a sliding one first"),
        ({"hidden_size": 320}, "hidden_size of the hearing layers is 320, expected at most 288"),
        ({"num_attention_heads": 6}, "num_attention_heads of the hearing layers is 6, expected at most 5"),
        ({"intermediate_size": 1025}, "intermediate_size of the hearing layers is 1025, expected at most 1024"),
        ({"head_dim": 32}, "head_dim of the hearing layers is 32, expected 64"),
    ],
)
def test_what_does_not_fit_is_refused(sizes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        grafted_sizes(make_listener(**sizes))  # type: ignore[arg-type]


def test_the_folder_is_one_that_loads_and_writes(student: Student, folder: Path, tokenizer: tokenizers.Tokenizer, tmp_path: Path) -> None:
    Taught(delay_frames=4).write(folder)  # where the tokenizer lies too, as in a run's folder
    save(tmp_path / "half", student, folder)
    config = read_model_config(tmp_path / "half")
    assert config.backbone == student.config.backbone and config.special == student.config.special
    assert config.hearing_delay_ms == 4 * 40 + 160 and config.hearing_layers == 2
    assert config.backbone.layer_types == ("sliding_attention",) * 2 + ("full_attention",) * 4
    model = load_model(tmp_path / "half")
    for (name, a), b in zip(model.backbone.state_dict().items(), student.backbone.state_dict().values(), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-6), name
    loaded = load(tmp_path / "half", runtime="torch", threads=1)
    samples = np.random.default_rng(0).standard_normal(16_000, dtype=np.float32) * 0.1
    said = run_job(loaded.backend, transcribe_job(loaded, samples))
    assert all(0 <= i < VOCABULARY and i not in config.special.suppressed for i in said.ids)
    with torch.no_grad():
        student.backbone.norm.weight[0] = 1e5
    with pytest.raises(ConfigError, match=r"a weight is 100000, which torch.float16 does not hold"):
        save(tmp_path / "large", student, folder)
    save(tmp_path / "large", student, folder, torch.float32)
    assert float(load_model(tmp_path / "large").backbone.norm.weight[0]) == 1e5


@pytest.mark.train
def test_the_command_writes_a_model_from_a_run(
    folder: Path, tokenizer: tokenizers.Tokenizer, dictations: Dictations, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    trainer = ListeningTrainer(make_listener(), dictations, run, RateOptions())
    trainer.update(dictations[0])
    trainer.save()
    (run / "sizes.json").write_text(json.dumps({name: getattr(trainer.listener.student.config.backbone, name) for name in NAMES}))
    tokenizer.save(str(run / "tokenizer.json"))
    (tmp_path / "run.yaml").write_text(
        f"{{folder: {run}, stores: [{{folder: {folder / 'store'}}}], start_from: nowhere, "
        "batches: {lengths: [96], positions: 192}, train: {threads: 1, compile: false}}"
    )
    config = ["--config", str(tmp_path / "run.yaml"), "--float32"]
    main([str(run), str(tmp_path / "model"), *config, "--seconds", "2", "--whole", "2"])
    main([str(run), str(tmp_path / "further"), *config, "--seconds", "0", "--whole", "2", "--begun", str(tmp_path / "model")])
    begun, further = (load_model(tmp_path / name).backbone.state_dict() for name in ("model", "further"))
    assert {name.split(".")[1] for name in begun if not torch.equal(begun[name], further[name])} <= {"2", "3"}
    assert not torch.equal(begun["layers.3.mlp.up_proj.weight"], further["layers.3.mlp.up_proj.weight"])
    model = load_model(tmp_path / "model")
    assert model.config.backbone.num_layers == 4 and model.config.backbone.vocab_size == VOCABULARY
    assert (tmp_path / "model" / "tokenizer.json").read_bytes() == (run / "tokenizer.json").read_bytes()


NAMES = (
    "vocab_size hidden_size intermediate_size layer_types num_attention_heads num_key_value_heads num_global_key_value_heads head_dim "
    "global_head_dim sliding_window"
).split()
