"""Learning to hear through a decoder: what is heard and what is asked for, the rates, and that a run goes on where it stopped."""

from __future__ import annotations

import copy
import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra train")
pytest.importorskip("rapidfuzz", reason="needs the extra train")
pytest.importorskip("scipy", reason="needs the extra train")

import tokenizers  # noqa: E402
from dragoman.model.checkpoint import load_model, save_checkpoint  # noqa: E402
from dragoman.model.config import read_model_config  # noqa: E402
from dragoman.model.errors import ConfigError  # noqa: E402
from dragoman.model.training import dictation, listening, text  # noqa: E402
from dragoman.model.training import mean as mean_of_two  # noqa: E402
from dragoman.model.training.augment import AugmentOptions  # noqa: E402
from dragoman.model.training.dictation import ClipOptions, Dictation, Dictations, whole_clip  # noqa: E402
from dragoman.model.training.heads import FAR_STEP  # noqa: E402
from dragoman.model.training.join import join  # noqa: E402
from dragoman.model.training.letters import letters_of  # noqa: E402
from dragoman.model.training.listening import (  # noqa: E402
    Listener,
    ListeningOptions,
    ListeningTrainer,
    RateOptions,
    audio_heard,
    build_trainer,
    dev_errors,
    first_layers,
    load_listener,
    read_options,
)
from dragoman.model.training.moonshine import Decoder, load_decoder  # noqa: E402
from dragoman.model.training.package import Taught, save_model, small_config  # noqa: E402
from dragoman.model.training.precision import autocast  # noqa: E402
from dragoman.model.training.prepare import StoreOptions  # noqa: E402
from dragoman.model.training.rows import IGNORE  # noqa: E402
from dragoman.model.training.run import SizeOptions  # noqa: E402
from dragoman.model.training.speech import Speech  # noqa: E402
from dragoman.model.training.splices import FRAME  # noqa: E402
from dragoman.model.training.student import Depths, Student  # noqa: E402
from dragoman.model.training.teachers import WIDTH  # noqa: E402

from .training_fakes import SENTENCES, make_store  # noqa: E402
from .training_listeners import VOCABULARY, make_dictations, make_listener, make_tokenizer  # noqa: E402

needs_weights = pytest.mark.skipif(importlib.util.find_spec("moonshine_voice") is None, reason="needs the extra train")


@pytest.fixture
def tokenizer(tmp_path: Path) -> tokenizers.Tokenizer:
    return make_tokenizer(tmp_path)


@pytest.fixture
def small_start(tokenizer: tokenizers.Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs begin with the test's pieces and a random decoder of that size, and fit their heads on little."""
    monkeypatch.setattr(listening, "choose_pieces", lambda options, speech: tokenizer)
    monkeypatch.setattr(listening, "published_decoder", lambda tokenizer, layers: Decoder(VOCABULARY, len(layers)))
    monkeypatch.setattr(listening, "HEAD_BATCHES", 2)


def asked(given: Dictation) -> list[list[int]]:
    return [row[row != IGNORE].tolist() for row in given.labels]


def word_times(folder: Path, end: int, step: int = 0) -> None:
    """Words of each clip end in frame ``end``, ``end + step``, …"""
    if not folder.exists():
        make_store(folder)
    lines = (f"clip{i}\t" + " ".join(str(end + step * w) for w in range(len(SENTENCES[i % 4].split()))) + "\n" for i in range(12))
    (folder / "words.tsv").write_text("".join(lines))


def test_a_dictation_is_a_function_of_its_step(tmp_path: Path, tokenizer: tokenizers.Tokenizer) -> None:
    one, two = make_dictations(tmp_path, tokenizer)[3], make_dictations(tmp_path, tokenizer)[3]
    other = make_dictations(tmp_path, tokenizer)[4]
    assert torch.equal(one.batch.frames, two.batch.frames) and torch.equal(one.ids, two.ids) and torch.equal(one.batch.late, two.batch.late)
    assert not torch.equal(one.batch.frames, other.batch.frames)


def test_each_row_is_a_clip_and_each_of_its_words_is_asked_for(tmp_path: Path, tokenizer: tokenizers.Tokenizer) -> None:
    given = make_dictations(tmp_path, tokenizer, wrong_tokens=0.0)[0]
    batch = given.batch
    assert batch.ids[:, :2].tolist() == [[text.BOS, text.BEGIN_AUDIO]] * len(batch.ids) and int(batch.is_text.sum()) == 3 * len(batch.ids)
    for row, (labels, ids) in enumerate(zip(asked(given), given.ids.tolist(), strict=True)):
        assert tokenizer.decode(labels[:-1]).strip() in SENTENCES and labels[-1] == text.END
        assert ids[: len(labels)] == [text.TRANSCRIBE, *labels[:-1]] and set(ids[len(labels) :]) == {text.END}
        n = int(batch.audio_frames[row])
        assert 18 + 12_000 // FRAME // 1.2 < n <= 93 and not batch.frames[row, 2 + n :].any() and not batch.frames[row, :2].any()
        assert int(batch.ids[row, 2 + n]) == text.END_AUDIO and bool(batch.is_text[row, 2 + n])
        assert audio_heard(batch)[row].nonzero()[:, 0].tolist() == list(range(3 + n)), "and what begins and ends it"
    assert len(batch.late) == len(batch.late_rows) > 0


def test_cut_clips_ask_only_for_words_heard(tmp_path: Path, tokenizer: tokenizers.Tokenizer) -> None:
    word_times(tmp_path / "store", 1000)
    assert asked(make_dictations(tmp_path, tokenizer, truncate=1.0)[0]) == [[text.END]] * 4, "no word has been heard by frame 1000"
    word_times(tmp_path / "store", 2, 4)
    quiet = AugmentOptions(speed=0.0, noise=0.0, hiss=0.0, room=0.0, tilt=0.0, band=0.0)
    cut, lengths = make_dictations(tmp_path, tokenizer, truncate=1.0, wrong_tokens=0.0, augment=quiet), set[int]()
    for step in range(4):
        given = cut[step]
        for labels, n in zip(asked(given), given.batch.audio_frames.tolist(), strict=True):
            words = tokenizer.decode(labels[:-1]).split()
            assert any(sentence.split()[: len(words)] == words for sentence in SENTENCES)
            assert not words or 2 + 4 * (len(words) - 1) + 6 < n, "the last word ended six frames before the audio does"
            lengths.add(len(words))
    assert len(lengths) > 2
    assert all(len(labels) > 4 for labels in asked(make_dictations(tmp_path, tokenizer, truncate=0.0)[0]))


def test_where_nobody_speaks_nothing_is_written(tmp_path: Path, tokenizer: tokenizers.Tokenizer) -> None:
    dictations = make_dictations(tmp_path, tokenizer, nobody=1.0)
    loudest: list[float] = []
    for given in (dictations[step] for step in range(4)):
        assert asked(given) == [[text.END]] * 4 and len(given.batch.late) == 0 and not given.cut.any()
        assert all(8 <= n <= 93 for n in given.batch.audio_frames.tolist())
        loudest += given.batch.frames.abs().amax((1, 2)).tolist()
    assert 0 < sum(level == 0 for level in loudest) < len(loudest), "also where there is nothing at all"
    assert set(make_listener()(given)[1]) == {"words", "words_right"}


def test_rows_of_nobody_come_no_oftener_where_few_clips_fit(
    tmp_path: Path, tokenizer: tokenizers.Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = Dictations._row  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(Dictations, "_row", lambda self, *given: row(self, *given) if given[-1].random() < 0.1 else None)
    dictations = make_dictations(tmp_path, tokenizer, nobody=0.3)
    empty = [len(labels) == 1 for step in range(40) for labels in asked(dictations[step])]
    assert 0.15 < sum(empty) / len(empty) < 0.45, "a third of the rows, and not of what was tried"


def test_wrong_tokens_are_shown_and_right_ones_asked_for(tmp_path: Path, tokenizer: tokenizers.Tokenizer) -> None:
    right, spoilt = (make_dictations(tmp_path, tokenizer, wrong_tokens=share)[0] for share in (0.0, 0.5))
    assert torch.equal(right.labels, spoilt.labels)
    words = right.ids >= len(text.SPECIAL_TOKENS)
    assert torch.equal(right.ids[~words], spoilt.ids[~words])
    assert 0.2 < float((right.ids != spoilt.ids)[words].float().mean()) < 0.8
    assert set(spoilt.ids[words].tolist()) <= {i for sentence in SENTENCES for i in tokenizer.encode(sentence).ids}


def test_stores_without_what_is_wanted_are_refused(
    tmp_path: Path, tokenizer: tokenizers.Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dictation, "MISSES", 20)
    with pytest.raises(ConfigError, match="of 20 clips of the stores none fits into a row of 24 positions"):
        make_dictations(tmp_path, tokenizer, lengths=(24,))[0]
    speech = Speech([(tmp_path / "store", 1.0)], None)
    speech.labelled = []
    with pytest.raises(ConfigError, match="no clip with a transcript"):
        Dictations(speech, tokenizer, ClipOptions(), 1)


def test_a_row_has_the_length_that_its_clips_need(tmp_path: Path, tokenizer: tokenizers.Tokenizer) -> None:
    dictations = make_dictations(tmp_path, tokenizer, lengths=(64, 96), positions=192)
    for given in (dictations[step] for step in range(6)):
        rows, length = given.batch.ids.shape
        assert (rows, length) in {(3, 64), (2, 96)} and given.ids.shape == (rows, length // 4)
        assert length == 64 or int(given.batch.audio_frames.min()) >= int(0.8 * 64) - 8
    fuller = make_dictations(tmp_path / "fuller", tokenizer, lengths=(60, 96), positions=192)
    longer = [given for given in (fuller[step] for step in range(12)) if given.ids.shape[1] == 96 // 4]
    whole = torch.cat([given.batch.audio_frames[~given.cut] for given in longer])
    assert len(whole) and int(whole.min()) >= 60 - len(dictation.AROUND) - dictation.MOST_LEAD, "such a clip fits into the shorter row"
    assert len(whole_clip(np.zeros(10 * FRAME + 1, np.float32), dictations.options).frames) == 21


def test_what_hears_and_what_looks_at_audio_learns_and_english_stays(tmp_path: Path, tokenizer: tokenizers.Tokenizer) -> None:
    listener, given = make_listener(), make_dictations(tmp_path, tokenizer)[0]
    loss, figures = listener(given)
    loss.backward()
    assert set(figures) == {"words", "said", "late", "words_right", "same"}
    weights = listener.weights
    assert float(loss.detach()) == pytest.approx(
        sum(figures[name] * getattr(weights, name) for name in ("words", "said", "late")), rel=1e-5
    )
    parts = (listener.student.backbone.layers, listener.student.projector, listener.adapt)
    assert all(p.grad is not None and bool(p.grad.any()) for part in parts for p in part.parameters())
    learns = {name for name, p in listener.decoder.named_parameters() if p.grad is not None and bool(p.grad.any())}
    looks = {f"encoder_attn.{matrix}_proj" for matrix in "qkvo"} | {"post_attention_layernorm"}
    assert learns == {f"layers.0.{part}.weight" for part in looks}
    slowly = Listener(
        listener.student, copy.deepcopy(listener.decoder), (np.zeros(WIDTH), np.ones(WIDTH)), RateOptions(writing_lr=1e-5)
    ).decoder
    assert [name for name, p in slowly.named_parameters() if not p.requires_grad] == ["embed_tokens.weight"]
    given.ids[given.labels == IGNORE] = 77  # what is behind the end is not asked for
    with torch.no_grad():
        assert float(listener(given)[0]) == pytest.approx(float(loss.detach()), rel=1e-5)


def test_what_the_decoder_says_to_the_teachers_features_is_asked_for(tmp_path: Path, tokenizer: tokenizers.Tokenizer) -> None:
    """A listener that hears what the teacher hears, where it hears it, has nothing to learn from it."""
    listener, given = make_listener(), make_dictations(tmp_path, tokenizer)[0]
    shape, late = given.batch.ids.shape, given.batch.late
    states, there = torch.zeros(shape.numel(), late.shape[1]), torch.zeros(shape.numel(), dtype=torch.bool)
    states[given.batch.late_rows], there[given.batch.late_rows] = late.float(), True
    decode = listener.decoder.forward

    def hears_as_the_teacher(ids: torch.Tensor, *_: object) -> torch.Tensor:
        return decode(ids, states.view(*shape, -1), there.view(shape))

    listener.decoder.forward = hears_as_the_teacher  # type: ignore[method-assign]
    with torch.no_grad():
        figures = listener(given)[1]
    assert figures["said"] == pytest.approx(0.0, abs=1e-5) and figures["same"] == 1.0


def test_clips_without_features_teach_their_words(tmp_path: Path, tokenizer: tokenizers.Tokenizer) -> None:
    listener, given = make_listener(), make_dictations(tmp_path, tokenizer)[0]
    without = replace(given, batch=replace(given.batch, late=given.batch.late[:0], late_rows=given.batch.late_rows[:0]))
    assert set(listener(without)[1]) == {"words", "words_right"}


def test_letters_are_asked_of_clips_that_are_whole(tmp_path: Path, tokenizer: tokenizers.Tokenizer) -> None:
    word_times(tmp_path / "store", 2, 4)
    dictations = make_dictations(tmp_path, tokenizer, truncate=0.5, wrong_tokens=0.0)
    given = next(given for given in map(dictations.__getitem__, range(20)) if given.cut.any() and not given.cut.all())
    letters = given.batch.ctc.split(given.batch.ctc_lengths.tolist())
    for row, cut, labels in zip(letters, given.cut.tolist(), asked(given), strict=True):
        assert row.tolist() == ([] if cut else text.ctc_targets(tokenizer.decode(labels[:-1])))
    assert letters_of("It's 7 o'clock.") == [], "nobody says a digit"
    assert letters_of("It's seven!") == text.ctc_targets("it's seven")


def test_letters_add_their_loss_and_their_head_begins_fitted(tmp_path: Path, tokenizer: tokenizers.Tokenizer) -> None:
    plain, given = make_listener(), make_dictations(tmp_path, tokenizer)[0]
    rates = RateOptions(letters=0.3, letters_after=1)
    listener = Listener(plain.student, plain.decoder, (np.zeros(WIDTH), np.ones(WIDTH)), rates)
    listener.load_state_dict(plain.state_dict(), strict=False)
    listener._knows = plain._knows  # pyright: ignore[reportPrivateUsage]
    assert listener.letters is not None
    without, (loss, figures) = plain(given)[0], listener(given)
    assert float((loss - without).detach()) == pytest.approx(0.3 * figures["letters"], rel=1e-4)
    with torch.no_grad(), autocast():
        x, batch = listener.normed(listener.student.hidden_states(given.batch)[1]), given.batch
        said = listener.letters(x).float()
    total, at = 0.0, 0
    for row, (n, length) in enumerate(zip(batch.audio_frames.tolist(), batch.ctc_lengths.tolist(), strict=True)):
        moments = said[row, 2 : 2 + n].reshape(2 * n, 1, -1).log_softmax(-1)  # two of them for each frame, in their order
        wanted = batch.ctc[at : at + length][None]
        total += float(torch.nn.functional.ctc_loss(moments, wanted, [2 * n], [length], reduction="sum"))
        at += length
    assert figures["letters"] == pytest.approx(total / at, rel=1e-4)
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in listener.letters.parameters())
    listening.fit_letters(listener, [given.batch])
    assert listener(given)[1]["letters"] < 0.8 * figures["letters"]
    nobody = make_dictations(tmp_path, tokenizer, nobody=1.0)[0]
    assert set(listener(nobody)[1]) == {"words", "words_right"}


@pytest.mark.usefixtures("small_start")
def test_the_decoder_rests_while_features_alone_are_learnt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = run_options(tmp_path)
    trainer = build_trainer(replace(options, train=replace(options.train, words=0.0, said=0.0, late=1.0)))
    monkeypatch.setattr(trainer.listener.decoder, "forward", None)
    before = {name: value.clone() for name, value in trainer.listener.state_dict().items()}
    figures = trainer.update(trainer.dictations[0])
    assert "late" in figures and "words" not in figures
    changed = {name for name, value in trainer.listener.state_dict().items() if not torch.equal(value, before[name])}
    assert any(name.startswith("student.backbone.layers") for name in changed) and not any(name.startswith("decoder") for name in changed)
    with pytest.raises(ConfigError, match="are all 0"):
        build_trainer(replace(options, train=replace(options.train, words=0.0, said=0.0, late=0.0)))


@pytest.mark.usefixtures("small_start")
def test_a_run_with_letters_is_built_and_read_again(tmp_path: Path) -> None:
    options = run_options(tmp_path)
    with pytest.raises(ConfigError, match="letters_after is 6, expected 1 to"):
        build_trainer(replace(options, train=replace(options.train, letters=0.3)))
    trainer = build_trainer(replace(options, train=replace(options.train, letters=0.3, letters_after=1)))
    trainer.update(trainer.dictations[0])
    trainer.save()
    read = load_listener(tmp_path / "run", averaged=False)
    for (name, a), b in zip(trainer.listener.state_dict().items(), read.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert read.letters is not None


def test_what_the_decoder_says_where_a_clip_is_cut_is_not_asked_for(tmp_path: Path, tokenizer: tokenizers.Tokenizer) -> None:
    """There it says nonsense, even to the teacher's features."""
    word_times(tmp_path / "store", 2, 4)
    listener, dictations = make_listener(), make_dictations(tmp_path, tokenizer, truncate=0.5)
    given = next(given for given in map(dictations.__getitem__, range(20)) if given.cut.any() and not given.cut.all())
    asked = given.labels != IGNORE
    with autocast():
        wanted, known = listener._wanted(given, asked.flatten().nonzero()[:, 0])  # pyright: ignore[reportPrivateUsage]
    counts = asked.sum(1)
    of_rows = [int(part.sum()) for part in known.split(counts.tolist())]
    assert of_rows == torch.where(given.cut, (counts - 5).clamp(min=0), counts).tolist()
    assert len(wanted) == int(counts.sum())
    only_end = torch.where(given.labels == text.END, given.labels, IGNORE)
    nothing_known = replace(given, labels=only_end, cut=torch.ones_like(given.cut))
    assert set(listener(nothing_known)[1]) == {"words", "words_right", "late"}


def test_layers_that_were_compiled_are_left_alone_for_shapes_that_come_once() -> None:
    listener = make_listener()
    plain = listener.student.run_layer, listener.decoder.run_layer
    listener.student.run_layer = listener.decoder.run_layer = lambda *given: given[1]  # as if compiled
    with listener.uncompiled():
        assert (listener.student.run_layer, listener.decoder.run_layer) == plain
    assert listener.student.run_layer is listener.decoder.run_layer


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path, tokenizer: tokenizers.Tokenizer) -> None:
    rates, dictations = RateOptions(steps=4, warmup_steps=2, decay_from=2, threads=1), make_dictations(tmp_path, tokenizer)
    whole = ListeningTrainer(make_listener(), dictations, tmp_path / "whole", rates)
    for step in range(3):
        whole.update(dictations[step])
    first = ListeningTrainer(make_listener(), dictations, tmp_path / "run", rates)
    first.update(dictations[0])
    first.save()
    other = make_listener(seed=5)
    other._knows = first.listener._knows  # pyright: ignore[reportPrivateUsage]  # there is one published decoder
    second = ListeningTrainer(other, dictations, tmp_path / "run", rates)
    assert second.resume() and second.step == 1
    for step in range(1, 3):
        second.update(dictations[step])
    for (name, a), b in zip(whole.listener.state_dict().items(), second.listener.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert second.hours_heard == pytest.approx(whole.hours_heard) and second.rate() == whole.rate() < 1


def test_the_decoder_has_a_rate_of_its_own(tmp_path: Path, tokenizer: tokenizers.Tokenizer) -> None:
    dictations = make_dictations(tmp_path, tokenizer)
    trainer = ListeningTrainer(make_listener(), dictations, tmp_path / "run", RateOptions(decoder_lr=0.0, warmup_steps=1))
    before = {name: value.clone() for name, value in trainer.listener.state_dict().items()}
    trainer.update(dictations[0])
    moved = {name for name, value in trainer.listener.state_dict().items() if not torch.equal(value, before[name])}
    assert not any(name.startswith("decoder.") for name in moved)
    assert {"adapt.weight", "adapt.bias", "student.projector.embedding_projection.weight"} < moved
    assert {name for name in moved if "q_proj" in name} == {f"student.backbone.layers.{i}.self_attn.q_proj.weight" for i in (0, 1)}


def test_dev_clips_are_decoded(tmp_path: Path, tokenizer: tokenizers.Tokenizer) -> None:
    pytest.importorskip("whisper_normalizer")
    pytest.importorskip("jiwer")
    make_store(tmp_path / "store")
    speech, listener = Speech([(tmp_path / "store", 1.0)], None), make_listener()
    with torch.no_grad():
        listener.decoder.embed_tokens.weight[text.END] = 0.0
        listener.decoder.embed_tokens.weight[tokenizer.encode("cat").ids] *= 20
    found = dev_errors(listener, speech, tokenizer, ClipOptions(), 5)
    assert set(found) == {"dev_wer", "heard"} and found["dev_wer"] > 0 and isinstance(found["heard"], str)
    assert dev_errors(listener, speech, tokenizer, ClipOptions(), 0) == {"dev_wer": 0.0, "heard": ""}


# -- runs ------------------------------------------------------------------------------------------


def model_folder(folder: Path) -> Path:
    """A model of three layers, the last one full."""
    sizes = SizeOptions(64, 128, "SSF", 1, 1, head_dim=64, global_head_dim=64, vocab_size=VOCABULARY).backbone()
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(small_config(sizes, Taught())))
    torch.manual_seed(3)
    student = Student(read_model_config(folder), Depths())
    save_checkpoint(folder, student.backbone, student.projector)
    return folder


def run_options(tmp_path: Path, **changes: object) -> ListeningOptions:
    if not (tmp_path / "start").exists():
        make_store(tmp_path / "store")
        model_folder(tmp_path / "start")
    given: dict[str, object] = {
        "folder": str(tmp_path / "run"),
        "stores": (StoreOptions(str(tmp_path / "store")),),
        "start_from": str(tmp_path / "start"),
        "layers": 2,
        "decoder_layers": (0,),
        "vocabulary": VOCABULARY,
        "batches": ClipOptions(lengths=(96,), positions=192),
        "train": RateOptions(steps=3, warmup_steps=1, threads=1, compile=False),
    }
    return ListeningOptions(**(given | changes))  # pyright: ignore[reportArgumentType]


def test_hearing_begins_with_the_lower_layers_of_a_model(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "start")
    student, model = first_layers(folder, 2), load_model(folder)
    assert student.config.backbone.layer_types == ("sliding_attention",) * 2
    given = model.backbone.state_dict()
    assert all(torch.equal(value, given[name]) for name, value in student.backbone.state_dict().items())
    assert torch.equal(student.projector.embedding_projection.weight, model.projector.embedding_projection.weight)
    with pytest.raises(ConfigError, match="layers is 4, expected 1 to 3"):
        first_layers(folder, 4)


def test_hearing_goes_on_from_a_model_that_listening_made(tmp_path: Path, tokenizer: tokenizers.Tokenizer) -> None:
    listener, run = make_listener(hidden_size=WIDTH), tmp_path / "run"
    run.mkdir()
    tokenizer.save(str(run / "tokenizer.json"))
    save_model(tmp_path / "joined", join(listener), run)
    again = first_layers(tmp_path / "joined", 2)
    for (name, a), b in zip(
        again.backbone.layers.state_dict().items(), listener.student.backbone.layers.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    with pytest.raises(ConfigError, match="layers is 3, expected 1 to 2"):
        first_layers(tmp_path / "joined", 3)


@pytest.mark.usefixtures("small_start")
def test_a_run_is_built_saved_and_read_again(tmp_path: Path) -> None:
    options = run_options(tmp_path)
    trainer = build_trainer(options)
    with torch.no_grad(), autocast():
        figures = trainer.listener(trainer.dictations[FAR_STEP])[1]
    assert figures["late"] < 0.9, "it begins with what the teacher would say"
    assert torch.equal(trainer.averaged["adapt.weight"], trainer.listener.adapt.weight)
    trainer.update(trainer.dictations[0])
    trainer.save()
    assert json.loads((tmp_path / "run" / "taught.json").read_text()) == {"delay_frames": 6, "targets": []}
    again, read = build_trainer(options), load_listener(tmp_path / "run", averaged=False)
    assert again.step == 1
    for listener in (again.listener, read):
        for (name, a), b in zip(trainer.listener.state_dict().items(), listener.state_dict().values(), strict=True):
            assert torch.equal(a, b), name
    averaged = load_listener(tmp_path / "run")
    assert torch.equal(averaged.adapt.weight, trainer.averaged["adapt.weight"])
    with pytest.raises(ConfigError, match="holds no checkpoint.pt"):
        load_listener(tmp_path / "start")


@torch.no_grad()
def said_to(given: Dictation, listener: Listener) -> torch.Tensor:
    return listener.decoder(given.ids, listener.states(listener.hear(given.batch)), audio_heard(given.batch))


@pytest.mark.usefixtures("training_in_float32")
def test_a_run_goes_on_from_all_that_listening_made(
    tmp_path: Path, tokenizer: tokenizers.Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pieces, and what looks at audio: of the published decoder comes the rest."""
    listener, folder = make_listener(hidden_size=WIDTH).eval(), tmp_path / "joined"
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    save_model(folder, join(listener), tmp_path)
    published = copy.deepcopy(listener.decoder)
    for p in published.layers[0].encoder_attn.parameters():  # type: ignore[union-attr]
        torch.nn.init.normal_(p, std=0.1)
    monkeypatch.setattr(listening, "published_decoder", lambda tokenizer, layers: published)
    monkeypatch.setattr(listening, "HEAD_BATCHES", 8)
    trainer = build_trainer(run_options(tmp_path, start_from=str(folder)))
    assert (tmp_path / "run" / "tokenizer.json").read_text() == (folder / "tokenizer.json").read_text()
    given = trainer.dictations[0]
    found, wanted = (said_to(given, one) for one in (trainer.listener, listener))
    assert float((found - wanted).abs().max()) < 0.02 * float(wanted.std())
    assert torch.equal(trainer.averaged["decoder.layers.0.encoder_attn.k_proj.weight"], published.layers[0].encoder_attn.k_proj.weight)  # type: ignore[union-attr]


@pytest.mark.usefixtures("small_start")
def test_a_held_projector_looks_at_no_more_of_a_frame(tmp_path: Path) -> None:
    options = replace(run_options(tmp_path), strongest=8)
    trainer = build_trainer(options)
    weight, held = trainer.listener.student.projector.embedding_projection.weight, trainer.held
    assert held is not None and held.shape == (FRAME, FRAME)
    before = weight.detach().clone()
    for step in range(3):
        trainer.update(trainer.dictations[step])
    assert not torch.equal(before, weight)
    for looked in (before, weight, trainer.averaged["student.projector.embedding_projection.weight"]):
        assert torch.allclose(looked @ held, looked, atol=1e-4 * float(looked.detach().abs().max()))
    trainer.save()
    again = build_trainer(options)
    assert again.held is not None and torch.equal(again.held, held)


@pytest.mark.parametrize("strongest", [0, 8])
@pytest.mark.usefixtures("training_in_float32")
def test_the_mean_of_a_run_and_what_it_began_from(
    tmp_path: Path, tokenizer: tokenizers.Tokenizer, monkeypatch: pytest.MonkeyPatch, strongest: int
) -> None:
    listener, folder = make_listener(hidden_size=WIDTH).eval(), tmp_path / "joined"
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    save_model(folder, join(listener), tmp_path)
    for module in (listening, mean_of_two):
        monkeypatch.setattr(module, "published_decoder", lambda tokenizer, layers: copy.deepcopy(listener.decoder))
    monkeypatch.setattr(listening, "HEAD_BATCHES", 2)
    options = replace(run_options(tmp_path, start_from=str(folder)), strongest=strongest)
    trainer = build_trainer(options)
    first = {name: value.clone() for name, value in trainer.averaged.items()}
    for name, value in trainer.averaged.items():
        value.add_(0.0 if name in {"mean", "spread"} else 1.0)
    trainer.save()
    mean_of_two.mean(options, 0.25, tmp_path / "mean")
    mixed = load_listener(tmp_path / "mean").state_dict()
    kept = [name for name in mixed if "_head." not in name and not name.startswith(("features.", "mean", "spread"))]
    assert len(kept) > 20, "what is left out is thrown away in the end, or stays"
    for name in kept:
        if name != "adapt.bias":  # of so small a decoder many say the same, and which is found hangs on rounding: what it says is compared
            assert torch.allclose(mixed[name], first[name] + 0.25, atol=1e-5), name
    mean_of_two.mean(options, 0.5, tmp_path / "three", [(tmp_path / "mean", 0.2)])
    three = load_listener(tmp_path / "three").state_dict()
    assert all(torch.allclose(three[name], first[name] + 0.5 + 0.2 * 0.25, atol=1e-5) for name in kept if name != "adapt.bias")
    mean_of_two.mean(options, 0.0, tmp_path / "begun")
    found, wanted = (said_to(trainer.dictations[0], one) for one in (load_listener(tmp_path / "begun"), listener))
    assert strongest or float((found - wanted).abs().max()) < 0.02 * float(wanted.std())
    save_model(tmp_path / "model", join(load_listener(tmp_path / "mean")), tmp_path / "mean")
    with pytest.raises(ConfigError, match="--share is 1.5, expected a number from 0 to 1"):
        mean_of_two.mean(options, 1.5, tmp_path / "mean")
    with pytest.raises(ConfigError, match="the shares 0.8, 0.3 are 1.1 together, expected 1 at most"):
        mean_of_two.mean(options, 0.8, tmp_path / "four", [(tmp_path / "three", 0.3)])
    with pytest.raises(ConfigError, match="was not made by listening"):
        mean_of_two.mean(replace(options, start_from=str(model_folder(tmp_path / "other"))), 0.5, tmp_path / "mean")
    with pytest.raises(ConfigError, match="is the run's own folder"):
        mean_of_two.main(["--config", str(_written(options, tmp_path)), "--out", str(tmp_path / "run")])


def _written(options: ListeningOptions, folder: Path) -> Path:
    path = folder / "run.yaml"
    path.write_text(f"folder: {options.folder}\nstores: [{{folder: {folder / 'store'}}}]\nstart_from: {options.start_from}\n")
    return path


def test_an_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("folder: a\nstores: [{folder: b}]\nstart_from: c\ntrain: {decoder_rl: 0.1}\n")
    with pytest.raises(ConfigError, match=r"train\.decoder_rl: .*the nearest key is 'decoder_lr'"):
        read_options(path)
    path.write_text("folder: a\nstores: [{folder: b}]\n")
    with pytest.raises(ConfigError, match="start_from: Field required$"):
        read_options(path)
    path.write_text("folder: [")
    with pytest.raises(ConfigError, match="not YAML"):
        read_options(path)
    with pytest.raises(ConfigError, match="nowhere.yaml does not exist"):
        read_options(tmp_path / "nowhere.yaml")
    path.write_text("folder: a\nstores: [{folder: b, labels: 0.8}]\nstart_from: c\nbatches: {lengths: [96, 160]}\ndecoder_layers: [0, 5]\n")
    options = read_options(path)
    assert options.batches.lengths == (96, 160) and options.decoder_layers == (0, 5) and options.stores[0].labels == 0.8


@pytest.mark.train
@needs_weights
def test_the_command_trains_through_the_published_decoder_and_goes_on(tmp_path: Path) -> None:
    """Three steps, then one more: with the real pieces and one real layer."""
    run_options(tmp_path)
    (tmp_path / "texts.txt").write_text("We walked to the market.\n")
    lines = f"""
folder: {tmp_path / "run"}
stores: [{{folder: {tmp_path / "store"}}}]
start_from: {tmp_path / "start"}
layers: 2
decoder_layers: [5]
vocabulary: 600
texts: [{tmp_path / "texts.txt"}]
batches: {{lengths: [96], positions: 192}}
"""
    train = "train: {steps: %d, log_every: 1, evaluate_every: 2, threads: 1, compile: false}\n"
    for steps in (3, 4):
        (tmp_path / "run.yaml").write_text(lines + "probe_split: train\n" + train % steps)
        listening.main(["--config", str(tmp_path / "run.yaml")])
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "words" in record] == [1, 2, 3, 4]
    assert [record["step"] for record in records if "dev_wer" in record] == [2, 4]
    decoder = load_listener(tmp_path / "run", averaged=False).decoder
    tokenizer = listening.read_tokenizer(tmp_path / "run")
    assert decoder.embed_tokens.num_embeddings == 600 == tokenizer.get_vocab_size()
    rows, published = (one.embed_tokens.weight.detach() for one in (decoder, load_decoder((5,))))
    assert float(rows[text.BOS].abs().max()) < 2e-3, "a mark that the published one has no row for began as nothing"
    assert torch.allclose(rows[[text.TRANSCRIBE, text.END]], (published - published.mean(1, keepdim=True))[[1, 2]], atol=1e-6)
    for wrong, message in (("vocabulary: 100", "100 ids are asked for"), ("decoder_layers: [6]", r"layers \[6\] are asked for")):
        key = wrong.split(":")[0]
        changed = "\n".join(wrong if line.startswith(key) else line for line in lines.splitlines()).replace("/run\n", "/other\n")
        (tmp_path / "run.yaml").write_text(changed + "\n" + train % 3)
        with pytest.raises(ConfigError, match=message):
            listening.main(["--config", str(tmp_path / "run.yaml")])
