"""The training package: targets, batches, alignment, resuming."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import signal
import sysconfig
from dataclasses import asdict
from pathlib import Path
from typing import cast

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra train")
pytest.importorskip("rapidfuzz", reason="needs the extra train")
pytest.importorskip("scipy", reason="needs the extra train")

import scipy.signal  # noqa: E402
import soundfile  # noqa: E402
import tokenizers  # noqa: E402
from dragoman.model.checkpoint import Model, load_model  # noqa: E402
from dragoman.model.config import read_model_config  # noqa: E402
from dragoman.model.errors import AudioFormatError, BackendError, ConfigError  # noqa: E402
from dragoman.model.store import Store  # noqa: E402
from dragoman.model.training import text  # noqa: E402
from dragoman.model.training.align import spread_characters, viterbi, word_ends  # noqa: E402
from dragoman.model.training.augment import AugmentOptions, Change, Wave, draw_change, equalise, move_formants, mute  # noqa: E402
from dragoman.model.training.batches import Batches, BatchOptions  # noqa: E402
from dragoman.model.training.grow import grow  # noqa: E402
from dragoman.model.training.grow import main as grow_folder  # noqa: E402
from dragoman.model.training.heads import fit_heads  # noqa: E402
from dragoman.model.training.listening import hearing_student  # noqa: E402
from dragoman.model.training.optim import orthogonalise  # noqa: E402
from dragoman.model.training.package import mix, package  # noqa: E402
from dragoman.model.training.precision import autocast, compute_dtype  # noqa: E402
from dragoman.model.training.rows import IGNORE, Batch, Row  # noqa: E402
from dragoman.model.training.run import read_run  # noqa: E402
from dragoman.model.training.speech import Speech  # noqa: E402
from dragoman.model.training.splices import FRAME  # noqa: E402
from dragoman.model.training.store import StoreWriter, build_from_folder  # noqa: E402
from dragoman.model.training.student import Depths, LossWeights, Student, answering, plain_attention  # noqa: E402
from dragoman.model.training.teachers import WIDTH  # noqa: E402
from dragoman.model.training.trainer import MOST_SKIPPED, Trainer, TrainOptions  # noqa: E402
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from .training_fakes import SENTENCES, make_batches, make_store, make_student  # noqa: E402

SHIPPED = Path(__file__).resolve().parents[1] / "model" / "assets" / "small"
PYTHON_H = Path(sysconfig.get_path("include")) / "Python.h"


@pytest.fixture
def tokenizer(tmp_path: Path) -> tokenizers.Tokenizer:
    return text.train_tokenizer(iter(SENTENCES * 4), tmp_path / "tokenizer.json", vocab_size=320)


def test_upper_case_text_gets_case_from_sentences():
    case = text.TrueCaser(["we saw Berlin today", "you know Berlin well", "see Berlin now", "the house is red"] * 2)
    assert case("WHERE IS BERLIN") == "Where is Berlin?"
    assert case("I'M AT THE HOUSE") == "I'm at the house."
    assert case("Already cased") == "Already cased"


def test_tokenizer_is_lossless_and_names_its_special_tokens(tokenizer: tokenizers.Tokenizer):
    for sentence in ["Déjà vu – 12 €, naïve Füße!", "日本 ok"]:
        assert tokenizer.decode(tokenizer.encode(sentence).ids).strip() == sentence
    assert [tokenizer.token_to_id(name) for name in text.SPECIAL_TOKENS] == list(range(16))


def test_a_batch_is_a_function_of_its_step(tmp_path: Path, tokenizer: tokenizers.Tokenizer):
    one, two = make_batches(tmp_path, tokenizer)[3], make_batches(tmp_path, tokenizer)[3]
    other = make_batches(tmp_path, tokenizer)[4]
    assert torch.equal(one.frames, two.frames) and torch.equal(one.ids, two.ids) and torch.equal(one.features, two.features)
    assert not torch.equal(one.frames, other.frames)


def test_a_row_reads_prompt_audio_tail_text_end(tmp_path: Path, tokenizer: tokenizers.Tokenizer):
    batch = make_batches(tmp_path, tokenizer, labelled=1.0, silence=0.0, several=0.0)[0]
    for b in range(3):
        n = int(batch.audio_frames[b])
        ids = batch.ids[b][batch.is_text[b]].tolist()
        assert ids[:4] == [text.BOS, text.BEGIN_AUDIO, text.END_AUDIO, text.TRANSCRIBE] and ids[-1] == text.END
        said = tokenizer.decode(ids[4:-1])
        for sentence in SENTENCES:
            said = said.replace(sentence, "")
        assert not said.strip(), f"text that is in no transcript: {said!r}"
        asked = batch.labels[b][batch.labels[b] != IGNORE].tolist()
        assert asked == ids[4:], "the label of a position is the token after it, from the first word to <end>"
        assert batch.frames[b, :2].abs().max() == 0 and batch.frames[b, 2 + n :].abs().max() == 0


def test_silent_rows_ask_for_no_words(tmp_path: Path, tokenizer: tokenizers.Tokenizer):
    batch = make_batches(tmp_path, tokenizer, silence=1.0)[0]
    assert batch.labels[batch.labels != IGNORE].tolist() == [text.END] * 3


def test_cut_utterances_keep_only_the_words_heard(tmp_path: Path, tokenizer: tokenizers.Tokenizer):
    make_store(tmp_path / "store")
    ends = "".join(f"clip{i}\t" + " ".join(["1000"] * len(SENTENCES[i % 4].split())) + "\n" for i in range(12))
    (tmp_path / "store" / "words.tsv").write_text(ends)
    batch = make_batches(tmp_path, tokenizer, labelled=1.0, silence=0.0, truncate=1.0, cut_first=1.0)[0]
    assert batch.labels[batch.labels != IGNORE].tolist() == [text.END] * 3, "no word has been heard by frame 1000"


def test_full_rows_end_inside_an_utterance(tmp_path: Path, tokenizer: tokenizers.Tokenizer):
    """Cutting fills rows: with it a row holds more speech, and its text still ends with <end>."""
    make_store(tmp_path / "store")
    whole = make_batches(tmp_path, tokenizer, labelled=1.0, silence=0.0, several=1.0, truncate=0.0, shapes=((256, 6, 1.0),))
    ends = "".join(f"clip{i}\t" + " ".join(str(3 * w + 2) for w in range(len(SENTENCES[i % 4].split()))) + "\n" for i in range(12))
    (tmp_path / "store" / "words.tsv").write_text(ends)
    cut = make_batches(tmp_path, tokenizer, labelled=1.0, silence=0.0, several=1.0, truncate=1.0, cut_first=0.0, shapes=((256, 6, 1.0),))
    assert sum(cut[i].audio_seconds for i in range(4)) > sum(whole[i].audio_seconds for i in range(4))
    for b in range(3):
        assert cut[0].labels[b][cut[0].labels[b] != IGNORE][-1] == text.END
    shapes = ((96, 6, 0.0), (256, 6, 1.0))
    long = make_batches(tmp_path, tokenizer, labelled=1.0, silence=0.0, several=1.0, truncate=1.0, cut_first=1.0, shapes=shapes)
    assert int(long[0].audio_frames.min()) > 180, "only a row of the shortest shape holds nothing else"


def test_sources_are_drawn_by_their_share(tmp_path: Path):
    writer = StoreWriter(tmp_path / "store")
    for i in range(8):
        writer.add(np.zeros(16_000, np.float32), id=f"clip{i}", split="train", lang="en", text="A cat.", source="read" if i < 4 else "told")
    writer.close()
    speech = Speech([(tmp_path / "store", 1.0)], None, sources={"read": 3.0})
    rng = np.random.default_rng(0)
    drawn = [speech.draw(rng, True)[1].source for _ in range(2000)]
    assert drawn.count("read") / 2000 == pytest.approx(0.75, abs=0.04)


def test_wrong_tokens_are_shown_and_right_ones_asked_for(tmp_path: Path, tokenizer: tokenizers.Tokenizer):
    keywords = {"labelled": 1.0, "silence": 0.0, "truncate": 0.0}
    batch = make_batches(tmp_path, tokenizer, wrong_tokens=0.5, **keywords)[0]
    asked = batch.labels[:, :-1] != IGNORE
    labels, shown = batch.labels[:, :-1][asked], batch.ids[:, 1:][asked]
    words = labels != text.END
    assert (shown[~words] == text.END).all()
    assert 0.2 < (shown[words] != labels[words]).float().mean() < 0.8
    assert {label for label in labels.tolist() if label != text.END} <= {i for s in SENTENCES for i in tokenizer.encode(s).ids}


def test_written_rows_hold_sentences_alone_and_ask_for_every_word(tmp_path: Path, tokenizer: tokenizers.Tokenizer):
    batch = make_batches(tmp_path, tokenizer, written=1.0)[0]
    assert batch.is_text.all() and not batch.frames.any() and batch.audio_seconds == 0
    for ids, labels in zip(batch.ids.tolist(), batch.labels.tolist(), strict=True):
        assert ids[:2] == [text.BOS, text.TRANSCRIBE] and not {text.BEGIN_AUDIO, text.END_AUDIO} & set(ids)
        assert all(label == (IGNORE if after == text.TRANSCRIBE else after) for label, after in zip(labels, ids[1:], strict=False))
        sentences = tokenizer.decode(ids, skip_special_tokens=False).split("<|transcribe|>")[1:-1]  # the last is cut where the row ends
        assert sentences and {sentence.removesuffix("<eos>").strip() for sentence in sentences} <= set(SENTENCES)
    loss, _ = make_student()(batch, LossWeights())
    assert torch.isfinite(loss)
    with pytest.raises(ConfigError, match="batches.written is 0.5 and batches.compose 0.0, but there are no sentences"):
        Batches(make_batches(tmp_path, tokenizer).speech, tokenizer, BatchOptions(written=0.5), seed=7)


def test_heads_are_fitted_to_given_weights(tmp_path: Path, tokenizer: tokenizers.Tokenizer):
    student, batches = make_student(), make_batches(tmp_path, tokenizer, labelled=1.0, late_frames=12)
    before = [p.clone() for p in (*student.backbone.parameters(), *student.projector.parameters())]
    weights = LossWeights(words=0.0, late=1.0)
    with torch.no_grad():
        raw = student(batches[1], weights)[1]
        left = fit_heads(student, [batches[1]])
        fitted = student(batches[1], weights)[1]
    for name in ("features", "late", "characters"):
        assert fitted[name] == pytest.approx(left[name], rel=0.02) and left[name] < raw[name]
    assert all(torch.equal(a, b) for a, b in zip(before, (*student.backbone.parameters(), *student.projector.parameters()), strict=True))


def test_each_label_knows_where_its_word_is_heard(tmp_path: Path, tokenizer: tokenizers.Tokenizer):
    """Letter k of a clip is said in frame k // 2: windows follow that pace, delayed, from the clip's place in the row on."""
    make_store(tmp_path / "store")
    letters = [len([c for c in text.ctc_targets(sentence) if c != text.SPACE]) for sentence in SENTENCES]
    lines = (f"clip{i}\t0\t" + " ".join(str(k // 2) for k in range(letters[i % 4])) + "\n" for i in range(12))
    (tmp_path / "store" / "words.tsv").write_text("".join(lines))
    batch = make_batches(tmp_path, tokenizer, labelled=1.0, silence=0.0, several=0.0, truncate=0.0)[0]
    for b in range(3):
        asked = batch.labels[b] != IGNORE
        windows = batch.windows[b][asked]
        assert (windows[-1] == -1).all() and (windows[:-1] >= 2).all(), "every token but the end has a window"
        assert (windows[:-1, 0] <= windows[:-1, 1]).all() and windows.max() < 2 + batch.audio_frames[b]
        assert (batch.windows[b][~asked] == -1).all()
        starts = windows[:-1, 0]
        assert (starts.diff() >= 0).all() and starts[-1] > starts[0]


def test_words_with_more_letters_than_were_heard_have_no_place(tmp_path: Path, tokenizer: tokenizers.Tokenizer):
    """A sentence of the texts may spell a word otherwise than the clip that it is taken from."""
    batches = make_batches(tmp_path, tokenizer)
    for heard, known in ((8, True), (7, False)):
        row = Row()
        batches._write(row, "the quick", np.arange(heard).tolist(), 1.0)  # pyright: ignore[reportPrivateUsage]
        assert row.windows and all((low >= 0) is known for low, _ in row.windows)


def test_targets_are_delayed_and_follow_the_speed(tmp_path: Path, tokenizer: tokenizers.Tokenizer):
    """Row r of a ramp sits at sample 384 r + 192: frame t must read the value at (t - delay + ½) · 640 samples into the clip."""
    store = make_store(tmp_path / "store", features=False)
    rows = {clip.id: clip.samples // 384 for clip in store.clips if clip.split == "train"}
    ramp = np.concatenate([np.arange(n, dtype=np.float16)[:, None].repeat(WIDTH, 1) for n in rows.values()])
    ramp.tofile(tmp_path / "store" / "features-0.f16")
    (tmp_path / "store" / "features-0.tsv").write_text("".join(f"{name}\t{n}\n" for name, n in rows.items()))
    quiet = {"speed": 0.0, "noise": 0.0, "hiss": 0.0, "room": 0.0, "tilt": 0.0, "band": 0.0}
    batches = make_batches(tmp_path, tokenizer, augment=AugmentOptions(**quiet), labelled=1.0, silence=0.0, several=0.0, mask_frames=0)
    batch = batches[1]
    steps = np.diff(batch.features[:, 0].numpy()) * batches.speech.spread[1][0]
    inside = steps[(steps > 0) & (np.diff(batch.feature_rows.numpy()) == 1)]
    assert np.median(inside) == pytest.approx(FRAME / 384, abs=0.02)


def test_the_equaliser_raises_its_bands_and_leaves_the_rest():
    """White noise through it: at the middle of each band the decibels that were asked for, two octaves away and more hardly any."""
    wave = np.random.default_rng(0).standard_normal(160_000).astype(np.float32)
    before, after = (np.abs(np.fft.rfft(x)) ** 2 for x in (wave, equalise(wave, [(400.0, 9.0), (4000.0, -6.0)])))
    hertz = np.fft.rfftfreq(160_000, 1 / 16_000)
    for place, decibels in ((400, 9.0), (4000, -6.0), (60, 0.0), (1400, 0.0)):
        near = np.abs(hertz - place) < 10
        assert 10 * np.log10(after[near].sum() / before[near].sum()) == pytest.approx(decibels, abs=0.5), f"{place} Hz"
    rng = np.random.default_rng(1)
    drawn = [draw_change([], AugmentOptions(equalise=0.5), rng) for _ in range(200)]
    assert 70 < sum(bool(change.bands) for change in drawn) < 130
    assert all(abs(decibels) <= 9 for change in drawn for _, decibels in change.bands)
    assert not np.array_equal(Change(bands=((400.0, 9.0),)).of(wave), wave)
    without, asked = (draw_change([], AugmentOptions(equalise=share), np.random.default_rng(2)) for share in (0.0, 1.0))
    assert without.factor == asked.factor and not without.bands, "runs that do not ask for it draw what they drew before"


def test_formants_are_moved_and_pitch_and_time_are_not():
    pulses = np.zeros(16_000)
    pulses[::130] = 1.0  # 123 Hz
    vowel = pulses
    for hertz in (700.0, 1500.0, 2600.0):
        turn, radius = 2 * np.pi * hertz / 16_000, 0.97
        vowel = scipy.signal.lfilter([1.0], [1.0, -2 * radius * np.cos(turn), radius**2], vowel)
    vowel = (vowel / np.abs(vowel).max()).astype(np.float32)
    assert np.allclose(move_formants(vowel, 1.0), vowel, atol=1e-5)
    for factor in (0.87, 1.12):
        moved = move_formants(vowel, factor)
        assert moved.shape == vowel.shape and moved.dtype == np.float32
        for hertz in (700.0, 1500.0):
            assert abs(loudest(moved, hertz * factor * 0.8, hertz * factor * 1.2) / (hertz * factor) - 1) < 0.07
        echo = np.correlate(moved, moved, "full")[len(moved) :]
        assert int(np.argmax(echo[60:400])) + 61 == 130
    for short in (np.zeros(0, np.float32), np.ones(100, np.float32), np.zeros(1000, np.float32)):
        moved = move_formants(short, 1.1)
        assert moved.shape == short.shape and np.isfinite(moved).all()


def loudest(wave: Wave, low: float, high: float) -> float:
    """The frequency (hertz) between two at which the spectrum, smoothed over harmonics, is highest."""
    hertz, power = scipy.signal.welch(wave, 16_000, nperseg=256, nfft=4096)
    inside = (hertz >= low) & (hertz <= high)
    return float(hertz[inside][np.argmax(power[inside])])


def test_a_share_of_clips_has_other_formants():
    rng = np.random.default_rng(5)
    drawn = [draw_change([], AugmentOptions(formants=0.5), rng).formants for _ in range(200)]
    assert 70 < sum(factor != 1.0 for factor in drawn) < 130 and all(0.86 < factor < 1.17 for factor in drawn)
    wave = rng.standard_normal(4000).astype(np.float32)
    assert not np.array_equal(Change(formants=1.1).of(wave), wave)


def test_a_muted_band_is_gone_and_the_rest_is_there():
    wave = np.random.default_rng(0).standard_normal(160_000).astype(np.float32)
    before, after = (np.abs(np.fft.rfft(x)) ** 2 for x in (wave, mute(wave, 1000.0, 2000.0)))
    hertz = np.fft.rfftfreq(160_000, 1 / 16_000)
    for low, high, least, most in ((1200, 1700, -200.0, -20.0), (50, 600, -1.0, 0.2), (3500, 7900, -1.0, 0.2)):
        inside = (low < hertz) & (hertz < high)
        assert least < 10 * np.log10(after[inside].sum() / before[inside].sum()) < most, f"{low} to {high} Hz"
    rng = np.random.default_rng(1)
    muted = [change.muted for change in (draw_change([], AugmentOptions(mute=0.5), rng) for _ in range(200)) if change.muted]
    assert 70 < len(muted) < 130 and all(150 <= low < high < 8000 for low, high in muted)
    assert not np.array_equal(Change(muted=muted[0]).of(wave), wave)


@given(samples=st.integers(600, 5000), factor=st.floats(0.85, 1.15), tilt=st.booleans(), room=st.booleans())
def test_how_long_a_changed_clip_will_be_is_known_before(samples: int, factor: float, tilt: bool, room: bool):
    response = np.array([0.1, 1.0, 0.3], np.float32) if room else None
    change = Change(factor, 0.5 if tilt else None, response, bands=((300.0, 3.0),), muted=(500.0, 900.0), formants=1.1)
    assert len(change.of(np.ones(samples, np.float32))) == change.samples(samples)
    assert Change().samples(samples) == samples


def test_the_same_features_come_once_more_later(tmp_path: Path, tokenizer: tokenizers.Tokenizer):
    batch = make_batches(tmp_path, tokenizer, late_frames=9, labelled=1.0)[0]
    soon = dict(zip(batch.feature_rows.tolist(), batch.features, strict=True))
    later = dict(zip(batch.late_rows.tolist(), batch.late, strict=True))
    both = [place for place in soon if place + 3 in later]
    assert len(both) > 50 and all(torch.equal(soon[place], later[place + 3]) for place in both), "asked for 6 and 9 frames late"
    assert len(make_batches(tmp_path, tokenizer)[0].late) == 0


def test_a_batch_that_is_only_heard_has_no_text_and_runs_no_layer_above_hearing(tmp_path: Path, tokenizer: tokenizers.Tokenizer):
    batches = make_batches(tmp_path, tokenizer, heard=1.0, splice=0.0, silence=0.5)
    batch, student = batches[0], make_student()
    assert (batch.labels == IGNORE).all() and not batch.is_text[:, 2:].any() and len(batch.features)
    heard = {batches.speech.draw_heard(np.random.default_rng(i))[1].split for i in range(40)}
    assert heard == {"train", "unlabelled"}, "clips with a transcript and without"
    student.depths = Depths(1, 1, 2)
    loss, figures = student(batch, LossWeights(pointer=1.0))
    loss.backward()
    assert set(figures) == {"features", "characters"}
    ran = [any(p.grad is not None for p in layer.parameters()) for layer in student.backbone.layers]
    assert ran == [True, True, False]
    with pytest.raises(ConfigError, match="no store has the teacher's features"):
        make_store(tmp_path / "plain", features=False)
        Speech([(tmp_path / "plain", 1.0)], None).draw_heard(np.random.default_rng(0))


def test_viterbi_finds_planted_characters():
    targets = text.ctc_targets("Hello, a - cat")
    logprobs = np.full((40, len(text.CTC_CHARACTERS)), -5.0, np.float32)
    logprobs[:, 0] = -1.0
    for i, c in enumerate(targets):
        logprobs[3 + 2 * i, c] = 0.0
    last = viterbi(logprobs, targets)
    assert last.tolist() == [3 + 2 * i for i in range(len(targets))]
    assert word_ends(last, "Hello, a - cat".split()) == [11, 15, 15, 23]
    with pytest.raises(ValueError, match="do not fit"):
        viterbi(logprobs[:4], targets)
    classes = spread_characters(last, targets, 40)
    assert classes[last].tolist() == targets and classes[23 + 7 :].tolist() == [0] * 10


@pytest.mark.parametrize("shape", [(2, 24, 48), (2, 48, 24), (2, 32, 32)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_orthogonalise_gives_singular_values_near_one(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int], dtype: torch.dtype):
    monkeypatch.setattr("dragoman.model.training.optim.compute_dtype", lambda: dtype)
    g = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(g, full_matrices=False)
    found = orthogonalise(g).float()
    assert torch.linalg.svdvals(found)[:, :-1].min() > 0.5 and torch.linalg.svdvals(found).max() < 1.3
    assert ((found * (u @ v)).sum() / found.norm() / (u @ v).norm()) > 0.95


@pytest.mark.parametrize("length", [32, 31])
def test_attention_in_blocks_is_causal_attention(length: int):
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, length, heads, 8, generator=generator, requires_grad=True) for heads in (4, 2, 2))
    mask = torch.full((length, length), -1e4).triu(1)
    found = plain_attention(q, k, v, mask)
    reference = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, scale=1.0, enable_gqa=True
    ).transpose(1, 2)
    assert torch.allclose(found, reference, atol=1e-5)
    ours, theirs = (torch.autograd.grad(out.square().sum(), (q, k, v), retain_graph=True) for out in (found, reference))
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.train
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own
@pytest.mark.skipif(shutil.which("g++") is None or not PYTHON_H.exists(), reason="needs g++ and the headers of Python")
def test_a_compiled_layer_has_the_gradients_of_a_plain_one():
    """Of the shipped sizes: with other blocks of attention torch 2.13 made NaN of the keys' on a CPU with AVX-512 FP16 and AMX."""
    student = hearing_student(read_model_config(SHIPPED), 1)
    (layer,) = student.backbone.layers
    rotary, mask = student.surroundings(96)
    x = torch.randn(2, 96, 288, generator=torch.Generator().manual_seed(3)).to(compute_dtype())
    found: list[dict[str, torch.Tensor]] = []
    for run in (student.run_layer, torch.compile(student.run_layer, dynamic=False)):
        with autocast():
            run(layer, x, rotary, mask, 0.0).float().square().mean().backward()
        found.append({name: p.grad.clone() for name, p in layer.named_parameters() if p.grad is not None})
        layer.zero_grad(set_to_none=True)
    plain, compiled = found
    assert plain.keys() == compiled.keys() and "self_attn.k_proj.weight" in plain
    assert all(float((plain[name] - compiled[name]).norm() / plain[name].norm()) < 0.05 for name in plain)


def test_loss_is_finite_and_every_weight_gets_a_gradient(tmp_path: Path, tokenizer: tokenizers.Tokenizer):
    student = make_student()
    weights = LossWeights(mel=1.0, late=1.0, ctc=1.0, pointer=1.0)
    loss, figures = student(make_batches(tmp_path, tokenizer, late_frames=12)[0], weights)
    loss.backward()
    assert torch.isfinite(loss) and set(figures) == {"mel", "features", "late", "characters", "ctc", "words", "words_right"}
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in student.parameters())


@pytest.mark.parametrize("several", [0.0, 0.9])
def test_the_last_layer_is_run_only_where_words_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tokenizer: tokenizers.Tokenizer, several: float
):
    torch.manual_seed(0)
    batch, student = make_batches(tmp_path, tokenizer, several=several)[1], make_student()
    student.depths, weights = Depths(1, 1, 2), LossWeights(pointer=1.0)
    at = answering(batch.labels)
    assert at is not None and at.shape[1] < batch.labels.shape[1] // 2
    assert int((batch.labels.gather(1, at) != IGNORE).sum()) == int((batch.labels != IGNORE).sum()) > 0
    here, _ = student(batch, weights)
    here.backward()
    gradients = [p.grad.clone() for p in student.backbone.parameters() if p.grad is not None]
    student.zero_grad()
    monkeypatch.setattr("dragoman.model.training.student.answering", lambda labels: None)  # pyright: ignore
    everywhere, _ = student(batch, weights)
    everywhere.backward()
    near = 1e-4 if compute_dtype() is torch.float32 else 3e-2
    assert torch.allclose(here, everywhere, rtol=near)
    for one, p in zip(gradients, student.backbone.parameters(), strict=True):
        assert p.grad is not None and float((one - p.grad).norm()) <= near * float(p.grad.norm())


def test_dropout_leaves_the_hearing_and_a_finished_model_alone(tmp_path: Path, tokenizer: tokenizers.Tokenizer):
    batch, student = make_batches(tmp_path, tokenizer)[1], make_student(dropout=0.5)
    student.depths = Depths(1, 1, 2)
    with torch.no_grad(), autocast():
        one, two = student.hidden_states(batch), student.hidden_states(batch)
        assert torch.equal(one[1], two[1]) and not torch.equal(one[2], two[2])
        student.eval()
        assert torch.equal(student.hidden_states(batch)[-1], student.hidden_states(batch)[-1])


def without_marks(logits: torch.Tensor) -> torch.Tensor:
    """As decoding has them: no mark of the prompt is ever said."""
    return logits.index_fill(-1, torch.tensor([i for i in range(len(text.SPECIAL_TOKENS)) if i != text.END]), -30.0)


def test_marks_of_the_prompt_are_no_answers_to_learn_against(tmp_path: Path, tokenizer: tokenizers.Tokenizer):
    batch, student = make_batches(tmp_path, tokenizer)[1], make_student()
    weights = LossWeights(features=0.0, characters=0.0)
    before = student(batch, weights)[1]
    with torch.no_grad():  # in decoding they are suppressed, so a row as loud as this one says nothing
        student.backbone.embed_tokens.weight[text.SPECIAL_TOKENS.index("<|reserved|>")] = 5.0
    after = student(batch, weights)[1]
    assert not bool((batch.ids == text.SPECIAL_TOKENS.index("<|reserved|>")).any()) and after == before


def test_smoothing_asks_for_less_certainty(tmp_path: Path, tokenizer: tokenizers.Tokenizer):
    batch, student = make_batches(tmp_path, tokenizer)[1], make_student()
    plain, smooth = (student(batch, LossWeights(features=0.0, characters=0.0, smoothing=smoothing))[1]["words"] for smoothing in (0.0, 0.2))
    labels = batch.labels[batch.labels != IGNORE]
    with autocast():
        logits = student.backbone.logits(student.backbone.norm(student.hidden_states(batch)[-1][batch.labels != IGNORE])).float()
    spread = -without_marks(logits).log_softmax(-1).mean()
    assert len(labels) and smooth == pytest.approx(0.8 * plain + 0.2 * float(spread.detach()), rel=1e-3)


def test_sampled_words_are_the_models_own_and_the_right_ones_stay_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tokenizer: tokenizers.Tokenizer
):
    batch, student = make_batches(tmp_path, tokenizer, labelled=1.0, silence=0.0)[0], make_student()
    assert torch.equal(student.sample(batch, 0.0).ids, batch.ids)
    monkeypatch.setattr(torch, "multinomial", lambda chances, n: chances.argmax(-1, keepdim=True))  # pyright: ignore
    shown = student.sample(batch, 1.0)
    with torch.no_grad(), autocast():
        likeliest = without_marks(student.backbone.logits(student.backbone.norm(student.hidden_states(batch)[-1])).float()).argmax(-1)[
            :, :-1
        ]
    before, words = batch.ids[:, 1:], len(text.SPECIAL_TOKENS)
    asked = (batch.labels[:, :-1] != IGNORE) & (before >= words) & (likeliest >= words)
    assert int(asked.sum()) > 20 and torch.equal(shown.ids[:, 1:], torch.where(asked, likeliest, before))
    assert torch.equal(shown.labels, batch.labels) and not torch.equal(shown.ids, batch.ids)
    half = student.sample(batch, 0.5).ids[:, 1:]
    assert 0.2 < float((half == likeliest)[asked & (likeliest != before)].float().mean()) < 0.8


def test_text_losses_do_not_reach_the_hearing_while_they_are_learnt_apart(tmp_path: Path, tokenizer: tokenizers.Tokenizer):
    student, batch = make_student(), make_batches(tmp_path, tokenizer, labelled=1.0, silence=0.0)[0]
    for apart in (True, False):
        loss, _ = student(batch, LossWeights(features=0.0, characters=0.0, ctc=1.0, words=0.0, apart=apart))
        loss.backward()
        heard = student.projector.embedding_projection.weight.grad
        assert (heard is None or not heard.any()) == apart
        student.zero_grad()


@pytest.mark.train
def test_gradients_of_several_batches_make_one_step(tmp_path: Path, tokenizer: tokenizers.Tokenizer):
    options = TrainOptions(mel_steps=0, hearing_steps=0, join_step=0, threads=1, accumulate=2)
    trainer = Trainer(make_student(), make_batches(tmp_path, tokenizer), tmp_path / "run", options)
    before = trainer.student.backbone.embed_tokens.weight.clone()
    assert "norm" not in trainer.update(trainer.batches[0])
    assert torch.equal(before, trainer.student.backbone.embed_tokens.weight)
    assert trainer.update(trainer.batches[1])["norm"] > 0
    assert not torch.equal(before, trainer.student.backbone.embed_tokens.weight)
    assert all(p.grad is None for p in trainer.student.parameters())


@pytest.mark.train
def test_a_run_that_learns_nothing_ends(tmp_path: Path, tokenizer: tokenizers.Tokenizer):
    """One batch whose gradient is not finite is left out; ten in a row are no chance."""
    options = TrainOptions(mel_steps=0, hearing_steps=0, join_step=0, threads=1)
    trainer = Trainer(make_student(), make_batches(tmp_path, tokenizer), tmp_path / "run", options)
    weight, before = trainer.student.backbone.embed_tokens.weight, trainer.student.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    wrong = weight.register_hook(lambda grad: grad * float("nan"))
    for _ in range(MOST_SKIPPED - 1):
        assert trainer.update(trainer.batches[0])["skipped"] == 1.0
    assert all(torch.equal(value, before[name]) for name, value in trainer.student.state_dict().items())
    wrong.remove()
    assert trainer.update(trainer.batches[0])["skipped"] == 0.0
    weight.register_hook(lambda grad: grad * float("nan"))
    with pytest.raises(BackendError, match="10 batches in a row was not finite"):
        for _ in range(MOST_SKIPPED):
            trainer.update(trainer.batches[0])


@pytest.mark.train
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path, tokenizer: tokenizers.Tokenizer):
    options = TrainOptions(
        steps=6, warmup_steps=2, mel_steps=2, hearing_steps=3, decay_from=4, log_every=100, evaluate_every=100, threads=1, sampled=0.5
    )
    whole = Trainer(make_student(0.3), make_batches(tmp_path, tokenizer), tmp_path / "whole", options)
    for step in range(6):
        whole.update(whole.batches[step])
    first = Trainer(make_student(0.3), make_batches(tmp_path, tokenizer), tmp_path / "cut", options)
    for step in range(3):
        first.update(first.batches[step])
    first.save()
    second = Trainer(make_student(0.3), make_batches(tmp_path, tokenizer), tmp_path / "cut", options)
    assert second.resume() and second.step == 3
    for step in range(3, 6):
        second.update(second.batches[step])
    for (name, a), b in zip(whole.student.state_dict().items(), second.student.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert second.hours_heard == pytest.approx(whole.hours_heard)


@pytest.mark.train
def test_what_was_learnt_before_the_feeder_failed_is_saved(tmp_path: Path, tokenizer: tokenizers.Tokenizer):
    class Failing(Batches):
        def __getitem__(self, step: int) -> Batch:
            if step == 2:
                raise IndexError("this row cannot be made")
            return super().__getitem__(step)

    make_batches(tmp_path, tokenizer)
    failing = Failing(Speech([(tmp_path / "store", 1.0)], None), tokenizer, BatchOptions(shapes=((96, 3, 1.0),)), seed=7)
    options = TrainOptions(steps=6, mel_steps=6, log_every=100, threads=1)
    with pytest.raises(IndexError, match="this row cannot be made"):
        Trainer(make_student(), failing, tmp_path / "run", options).train()
    again = Trainer(make_student(), failing, tmp_path / "run", options)
    assert again.resume() and again.step == 2


@pytest.mark.train
def test_a_signal_to_all_processes_of_a_run_lets_it_save(tmp_path: Path, tokenizer: tokenizers.Tokenizer, monkeypatch: pytest.MonkeyPatch):
    """``pkill -TERM -f training``: here the feeder gets it first, and is asked for more than it had ready."""
    options = TrainOptions(steps=50, mel_steps=50, log_every=100, threads=1)
    trainer = Trainer(make_student(), make_batches(tmp_path, tokenizer), tmp_path / "run", options)
    update, others = trainer.update, multiprocessing.active_children()

    def killed(batch: Batch) -> dict[str, float]:
        if trainer.step == 2:
            (feeder,) = (child for child in multiprocessing.active_children() if child not in others)
            feeder.terminate()
        if trainer.step == 12:
            signal.raise_signal(signal.SIGTERM)
        return update(batch)

    monkeypatch.setattr(trainer, "update", killed)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    try:
        trainer.train()
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
            signal.signal(number, handler)
    assert trainer.resume() and trainer.step == 13


@pytest.mark.train
def test_a_tiny_student_learns_its_sentences(tmp_path: Path, tokenizer: tokenizers.Tokenizer):
    batches, options = (
        make_batches(tmp_path, tokenizer, labelled=1.0, several=0.0),
        TrainOptions(warmup_steps=5, mel_steps=0, hearing_steps=0, threads=1),
    )
    trainer = Trainer(make_student(), batches, tmp_path / "run", options)
    first = trainer.update(batches[0])["words"]
    for step in range(1, 60):
        last = trainer.update(batches[step])["words"]
    assert last < 0.6 * first


def test_weights_of_two_runs_are_mixed(tmp_path: Path, tokenizer: tokenizers.Tokenizer):
    students = []
    for seed, name in enumerate(("one", "two")):
        trainer = Trainer(make_student(), make_batches(tmp_path, tokenizer), tmp_path / f"run-{name}", TrainOptions())
        torch.manual_seed(seed)
        trainer.averaged = {key: torch.randn_like(value) for key, value in trainer.averaged.items()}
        trainer.save()
        run = tmp_path / f"run-{name}"
        (run / "sizes.json").write_text(json.dumps(asdict(trainer.student.config.backbone)))
        shutil.copyfile(tmp_path / "tokenizer.json", run / "tokenizer.json")
        package(run, tmp_path / name)
        students.append(trainer.averaged)
    graphs = [tmp_path / name / "onnx" for name in ("one", "two")]
    for folder in graphs:
        folder.mkdir()
        (folder / "export.json").write_text("{}")
    mix(tmp_path / "one", tmp_path / "two", 0.25)
    assert [folder.exists() for folder in graphs] == [False, True]  # the graphs of "one" are of weights that are gone
    package(tmp_path / "run-two", tmp_path / "two")
    assert not graphs[1].exists()
    mixed = load_model(tmp_path / "one").backbone.embed_tokens.weight
    one, two = (weights["backbone.embed_tokens.weight"] for weights in students)
    assert torch.allclose(mixed, 0.25 * one + 0.75 * two, atol=4e-3)  # stored as float16
    (tmp_path / "two" / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"different tokenizer\.json"):
        mix(tmp_path / "one", tmp_path / "two", 0.5)


@pytest.mark.parametrize("before", [[0], [1, 3], [2, 2]])
def test_a_grown_model_has_new_layers_and_says_nearly_the_same(tmp_path: Path, tokenizer: tokenizers.Tokenizer, before: list[int]):
    student, batch = make_student(), make_batches(tmp_path, tokenizer)[0]
    model = Model(student.config, student.backbone, student.projector, None)

    def said(model: Model) -> torch.Tensor:
        one = Student(model.config, Depths(1, 2, 3)).eval()
        one.take(model)
        with torch.no_grad(), autocast():
            return one.backbone.logits(one.backbone.norm(one.hidden_states(batch)[-1])).float().softmax(-1)

    grown = grow(model, before)
    kinds = list(student.config.backbone.layer_types)
    for place in sorted(before, reverse=True):
        kinds.insert(place, "sliding_attention")
    assert list(grown.config.backbone.layer_types) == kinds
    little, much = (float((said(model) - said(one)).abs().sum(-1).mean()) for one in (grown, grow(model, before, 1.0)))
    first = before == [0]  # where nothing comes in (silence, padding), the first layer says which way to go, however softly
    assert 1e-3 < little < (0.95 if first else 0.75) * much
    kept = [i for i in range(len(kinds)) if i not in {place + n for n, place in enumerate(sorted(before))}]
    for old, new in enumerate(kept):
        for p, q in zip(student.backbone.layers[old].parameters(), grown.backbone.layers[new].parameters(), strict=True):
            assert torch.equal(p, q)


def test_new_layers_are_copies_of_the_ones_below_in_their_order():
    student = make_student()
    given = student.backbone.layers
    layers = grow(Model(student.config, student.backbone, student.projector, None), [2, 2]).backbone.layers
    for old, new in ((0, 2), (1, 3)):
        copied = dict(layers[new].named_parameters())
        for name, p in given[old].named_parameters():
            assert torch.equal(copied[name], p * 0.5 if "post_" in name else p)


def test_a_layer_is_not_put_in_where_there_is_none():
    student = make_student()
    with pytest.raises(ConfigError, match="before layer 4, expected 0 to 3"):
        grow(Model(student.config, student.backbone, student.projector, None), [4])
    with pytest.raises(ConfigError, match="3 layers are wanted before layer 1, but only 2 with sliding attention"):
        grow(Model(student.config, student.backbone, student.projector, None), [1, 1, 1])


def test_a_grown_folder_is_loaded_like_any_other(tmp_path: Path):
    trainer = Trainer(make_student(), cast(Batches, None), tmp_path / "run", TrainOptions())
    trainer.save()
    (tmp_path / "run" / "sizes.json").write_text(json.dumps(asdict(trainer.student.config.backbone)))
    (tmp_path / "run" / "tokenizer.json").write_text("{}")
    package(tmp_path / "run", tmp_path / "small")
    grow_folder([str(tmp_path / "small"), str(tmp_path / "large"), "--before", "1"])
    assert load_model(tmp_path / "large").config.backbone.num_layers == 4
    small, large = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("small", "large"))
    changed = {key for key, value in large["text_config"].items() if small["text_config"][key] != value}
    assert changed == {"layer_types", "num_hidden_layers"} and small | {"text_config": None} == large | {"text_config": None}


def test_a_folder_of_audio_and_text_becomes_a_store(tmp_path: Path):
    (tmp_path / "talks").mkdir()
    soundfile.write(tmp_path / "talks" / "a.wav", np.zeros((8_000, 2), np.float32), 8_000)
    (tmp_path / "talks" / "a.txt").write_text("Hello  there.\n")
    assert build_from_folder(tmp_path / "talks", tmp_path / "store") == 1
    clip = Store(tmp_path / "store").clips[0]
    assert (clip.text, clip.samples) == ("Hello there.", 16_000)
    with pytest.raises(AudioFormatError, match="transcript"):
        build_from_folder(tmp_path / "store", tmp_path / "other")


def test_an_unknown_key_names_the_nearest(tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text("folder: x\nstores: []\ntrain: {step: 3}\n")
    with pytest.raises(ConfigError, match="train.step.*'steps'"):
        read_run(path)


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "configs").glob("train_*.yaml")), ids=lambda path: path.name)
def test_the_runs_that_come_with_it_can_be_read(path: Path):
    options = read_run(path)
    assert options.stores and options.train.steps > options.train.decay_from
