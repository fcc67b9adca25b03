"""Sentences joined from runs of words: what is said, what is asked for and what is heard stay in step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs the extra train")
pytest.importorskip("rapidfuzz", reason="needs the extra train")
pytest.importorskip("scipy", reason="needs the extra train")

import tokenizers  # noqa: E402
from dragoman.model.errors import ConfigError  # noqa: E402
from dragoman.model.training import augment, text  # noqa: E402
from dragoman.model.training.align import align  # noqa: E402
from dragoman.model.training.augment import AugmentOptions  # noqa: E402
from dragoman.model.training.batches import Batches, BatchOptions  # noqa: E402
from dragoman.model.training.dictation import ClipOptions, Dictations  # noqa: E402
from dragoman.model.training.probe import PLAIN  # noqa: E402
from dragoman.model.training.rows import IGNORE, Row  # noqa: E402
from dragoman.model.training.speech import LEAST_CLIPS, Speech  # noqa: E402
from dragoman.model.training.splices import (  # noqa: E402
    FRAME,  # noqa: E402
    Run,
    agreed_runs,
    cut_run,
    written_after,
)
from dragoman.model.training.teachers import HOP_SAMPLES  # noqa: E402
from scipy import signal  # noqa: E402

from .spoken import WORDS, heard, letters_near, make_speech, spoken_letters  # noqa: E402


@given(st.lists(st.sampled_from(WORDS), min_size=2, max_size=8), st.data())
def test_neighbouring_runs_share_one_joint(words: list[str], data: st.DataObject):
    letters = spoken_letters(words)
    wave = np.random.default_rng(data.draw(st.integers(0, 99))).standard_normal((letters[-1] + 6) * FRAME).astype(np.float32)
    at = data.draw(st.integers(1, len(words) - 1))
    one, two = (cut_run(wave, " ".join(words), letters, first, count) for first, count in ((0, at), (at, 99)))
    assert one is not None and two is not None
    assert (one.start, two.end) == (0, len(wave)) and one.end == two.start, "nothing is lost and nothing is said twice"
    assert f"{one.words} {two.words}".split() == words and one.opens and not two.opens
    before, after = letters[len(one.letters) - 1], letters[len(one.letters)]
    assert (before + 0.5) * FRAME <= one.end <= (after + 0.5) * FRAME
    assert [letter + two.start / FRAME for letter in two.letters] == pytest.approx(letters[len(one.letters) :])


def test_a_joint_lies_where_it_is_quiet():
    words = ["red", "house"]
    letters = spoken_letters(words)
    wave = np.ones((letters[-1] + 6) * FRAME, np.float32)
    wave[letters[2] * FRAME + 2_000 : letters[2] * FRAME + 2_400] = 0
    run = cut_run(wave, "red house", letters, 0, 1)
    assert run is not None and letters[2] * FRAME + 2_000 <= run.end <= letters[2] * FRAME + 2_400


def test_no_run_where_the_letters_are_not_those_of_the_words():
    wave = np.ones(40 * FRAME, np.float32)
    assert cut_run(wave, "red house", [1, 2, 3], 0, 1) is None
    assert cut_run(wave, "red house", spoken_letters(["red", "house"]), 2, 1) is None
    assert cut_run(wave, "red —", [1, 2, 3], 1, 1) is None, "a dash alone is not heard"


@pytest.mark.parametrize(
    ("words", "opens", "before", "written"),
    [
        ("the river", False, "", "The river"),
        ("the river", False, "Tom saw it.", "The river"),
        ("the river", False, "Tom saw", "the river"),
        ("The river", True, "Tom saw", "the river"),
        ("Tom saw", False, "and then", "Tom saw"),
        ("I saw", True, "and then", "I saw"),
        ("I'm Tom", True, "and then", "I'm Tom"),
        ("BBC news", True, "and then", "BBC news"),
    ],
)
def test_capitals_stand_where_sentences_begin(words: str, opens: bool, before: str, written: str):
    assert written_after(Run(0, FRAME, words, [], opens), before) == written


def test_of_two_readings_only_what_both_heard_is_used():
    assert agreed_runs("Tom saw a red house.", "tom saw a red house") == [(0, 5)]
    one, other = "Tom saw a red house by the river today.", "Tom saw a bed house by the river today."
    assert [one.split()[a:b] for a, b in agreed_runs(one, other)] == [["Tom", "saw"], ["by", "the", "river", "today."]]
    assert agreed_runs("yes", "no") == [] and agreed_runs("", "a") == []


@given(st.lists(st.sampled_from(WORDS), max_size=9), st.lists(st.sampled_from(WORDS), max_size=9))
def test_agreed_words_are_in_both_readings(one: list[str], other: list[str]):
    for first, end in agreed_runs(" ".join(one), " ".join(other)):
        said = one[first:end]
        assert any(other[i : i + len(said)] == said for i in range(len(other)))


@pytest.fixture
def tokenizer(tmp_path: Path) -> tokenizers.Tokenizer:
    return text.train_tokenizer(iter([" ".join(WORDS)] * 4), tmp_path / "tokenizer.json", vocab_size=320)


def test_joined_words_are_heard_where_the_windows_say(tmp_path: Path, tokenizer: tokenizers.Tokenizer):
    speech = make_speech(tmp_path / "store")
    options = BatchOptions(shapes=((256, 6, 1.0),), splice=1.0, silence=0.0, mask_frames=0, augment=PLAIN)
    batch = Batches(speech, tokenizer, options, seed=3)[0]
    said, runs = heard(batch, speech), 0
    for b in range(6):
        asked = (batch.labels[b] != IGNORE).nonzero()[:, 0].tolist()
        ids, places = [int(batch.labels[b, t]) for t in asked], [batch.windows[b, t].tolist() for t in asked]
        assert ids[-1] == text.END and set("".join(tokenizer.decode(ids[:-1]).lower().split())) <= set("".join(WORDS))
        clips = list[int]()
        for token, (low, high) in zip(ids[:-1], places[:-1], strict=True):
            clip, moment = round(said[b * 256 + (low + high) // 2][0]), said[b * 256 + (low + high) // 2][1]
            spelt = tokenizer.decode([token]).strip().lower()
            near = letters_near(speech, clip, moment, 2 * len(spelt) + 1)
            assert spelt in near, f"{spelt!r} is said in clip {clip} at frame {moment:.1f}, where {near!r} is"
            clips.append(clip)
        runs += sum(a != b for a, b in zip(clips, clips[1:], strict=False))
    assert runs >= 12, "rows are made of runs of several clips"


def test_a_batch_of_runs_is_a_function_of_its_step(tmp_path: Path, tokenizer: tokenizers.Tokenizer):
    speech = make_speech(tmp_path / "store")
    options = BatchOptions(shapes=((128, 3, 1.0),), splice=0.5)
    one, two = (Batches(speech, tokenizer, options, seed=3) for _ in range(2))
    _ = two[4]
    assert torch.equal(one[7].frames, two[7].frames) and torch.equal(one[7].ids, two[7].ids)


def test_speech_that_was_not_aligned_cannot_be_cut(tmp_path: Path, tokenizer: tokenizers.Tokenizer):
    batches = Batches(make_speech(tmp_path / "store", aligned=False), tokenizer, BatchOptions(splice=1.0, silence=0.0), seed=3)
    with pytest.raises(ConfigError, match="no speaker of the stores is known and has 20 transcribed clips that are aligned"):
        _ = batches[0]


def test_only_the_words_of_one_known_speaker_are_joined(tmp_path: Path):
    """Thousands of clips of which nobody told who speaks are not one speaker's."""
    speech = make_speech(tmp_path / "store", clips=4 * LEAST_CLIPS, speakers=("", "anna", "?", "ben"))
    drawn = [{clip.speaker for _, clip, *_ in speech.draw_speaker(np.random.default_rng(seed))[1]} for seed in range(40)]
    assert {frozenset(speakers) for speakers in drawn} == {frozenset({"anna"}), frozenset({"ben"})}


def test_the_voice_stays_through_a_row_of_runs(tmp_path: Path, tokenizer: tokenizers.Tokenizer, monkeypatch: pytest.MonkeyPatch):
    drawn, changed = list[augment.Change](), list[augment.Change]()
    draw, change = augment.draw_change, augment.Change.of
    monkeypatch.setattr(augment, "draw_change", lambda *given: drawn.append(draw(*given)) or drawn[-1])
    monkeypatch.setattr(augment.Change, "of", lambda self, wave: changed.append(self) or change(self, wave))
    options = BatchOptions(shapes=((256, 6, 1.0),), splice=1.0, silence=0.0, augment=AugmentOptions(noise=0.0, hiss=0.0))
    _ = Batches(make_speech(tmp_path / "store"), tokenizer, options, seed=3)[0]
    assert len(drawn) == 6 and len(changed) > 12 and {id(each) for each in changed} == {id(each) for each in drawn}


LONGEST_PAUSE = 14_000  # samples; in front of a row there is less


@pytest.mark.parametrize("speed", [0.0, 0.2])
def test_a_dictation_of_runs_asks_for_the_words_that_are_heard(
    tmp_path: Path, tokenizer: tokenizers.Tokenizer, monkeypatch: pytest.MonkeyPatch, speed: float
):
    """In their order, as what was cut out of the clips is heard; and nothing of the teacher, whose features tell of another place."""
    drawn = list[list[tuple[str, np.ndarray]]]()
    change, cut = augment.draw_change, cut_run

    def noted(wave: np.ndarray, *where: Any) -> Run | None:
        run = cut(wave, *where)
        if run is not None:
            drawn[-1].append((run.words, wave[run.start : run.end]))
        return run

    monkeypatch.setattr(augment, "draw_change", lambda *given: drawn.append([]) or change(*given))
    monkeypatch.setattr("dragoman.model.training.speech.cut_run", noted)
    quiet = AugmentOptions(speed=speed, noise=0.0, hiss=0.0, room=0.0, tilt=0.0, band=0.0)
    options = ClipOptions(lengths=(448,), positions=2688, nobody=0.0, splice=1.0, mask_frames=0, wrong_tokens=0.0, augment=quiet)
    given = Dictations(make_speech(tmp_path / "store"), tokenizer, options, seed=3)[0]
    assert len(given.batch.late) == 0 and not given.cut.any() and set(given.batch.audio_frames.tolist()) <= set(range(300, 446))
    rows = [runs for runs in drawn if runs]
    assert len(rows) == len(given.labels) == 6
    for labels, frames, runs in zip(given.labels, given.batch.frames, rows, strict=True):
        asked = tokenizer.decode([i for i in labels.tolist() if i not in (IGNORE, text.END)]).lower().split()
        heard, at = frames.flatten().numpy(), 0
        for said, wave in runs:
            words = said.lower().split()
            if asked[at : at + len(words)] != words:
                continue  # no room was left for it
            at += len(words)
            if speed == 0.0:
                place = int(signal.correlate(heard[: len(wave) + LONGEST_PAUSE], wave, "valid").argmax())
                there = heard[place : place + len(wave)]
                assert there @ wave > 0.99 * np.linalg.norm(there) * np.linalg.norm(wave), f"{said!r} is not heard next"
                heard = heard[place + len(wave) :]
        assert at == len(asked) > 12 and len(runs) > 1


def test_a_word_is_asked_for_only_when_its_last_letter_is_due(tmp_path: Path, tokenizer: tokenizers.Tokenizer):
    """A clip that is cut in the middle: the model is told of a letter ``delay_frames`` after it was said, so that frame must be there."""
    speech = make_speech(tmp_path / "store")
    batches = Batches(speech, tokenizer, BatchOptions(delay_frames=6, augment=PLAIN), seed=3)
    (which, clip, words), ends = speech.labelled[0], speech.word_ends[0]["clip0"]
    for cut_frames in range(1, clip.samples // FRAME + 1):
        row = Row()
        row.labelled = True
        batches._add(row, which, clip, words, np.random.default_rng(0), cut_frames)
        due = [word for word, end in zip(words.split(), ends, strict=True) if end + 6 in range(cut_frames)]
        assert row.samples == cut_frames * FRAME and tokenizer.decode(row.tokens).split() == due


def test_a_wrong_word_is_one_that_occurs(tmp_path: Path, tokenizer: tokenizers.Tokenizer):
    speech = make_speech(tmp_path / "store")
    usual = {i for _, _, words in speech.labelled for i in tokenizer.encode(words).ids}
    options = BatchOptions(shapes=((256, 6, 1.0),), labelled=1.0, silence=0.0, wrong_tokens=1.0, augment=PLAIN)
    batch = Batches(speech, tokenizer, options, seed=3)[0]
    given = set(batch.ids[batch.is_text].tolist()) - set(range(len(text.SPECIAL_TOKENS)))
    assert given <= usual and len(usual) < tokenizer.get_vocab_size() / 2 and len(given) > 5


def test_every_transcribed_clip_and_what_two_teachers_agree_on_is_aligned(tmp_path: Path):
    """A probe that knows the letters finds them where they are said, also in clips of which only some words are believed."""
    speech = make_speech(tmp_path / "store", aligned=False, clips=3)
    words = speech.labelled[2][2]
    speech.partly = [(*speech.labelled.pop()[:2], words, ((0, 2),))]
    letters = {i: spoken_letters(words.split()) for i, words in enumerate(words for _, _, words, *_ in (*speech.labelled, *speech.partly))}

    def probe(features: torch.Tensor) -> torch.Tensor:
        heard = torch.full((*features.shape[:2], len(text.CTC_CHARACTERS)), -20.0)
        heard[..., 0] = -0.1
        for b, rows in enumerate(features * torch.from_numpy(speech.spread[1]) + torch.from_numpy(speech.spread[0])):
            clip = round(float(rows[0, 0]))
            targets = text.ctc_targets((speech.labelled + speech.partly)[clip][2])
            moments, at = iter(letters[clip]), 0.0
            for target in targets:
                at = at + 2 if target == text.SPACE else float(next(moments))
                heard[b, int((at * FRAME + FRAME // 2) // HOP_SAMPLES), target] = 0.0
        return heard

    assert align(probe, speech, [tmp_path / "store"], workers=2) == 3  # type: ignore[arg-type]
    found = Speech([(tmp_path / "store", 1.0)], None).letters[0]
    for clip, expected in letters.items():
        assert found[f"clip{clip}"] == pytest.approx(expected, abs=1)
