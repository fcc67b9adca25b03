"""Talks: what is said in them and when is known exactly, and the same seed gives the same talk."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
from dragoman.model.backend import Floats
from dragoman.model.errors import AudioFormatError, ConfigError
from dragoman.stream.talk import LONGEST_PAUSE_S, SHORTEST_PAUSE_S, Clip, make_talks, read_clips, read_ctm, speech_span

from .fakes import speech
from .listeners import silence


def clip(text: str, *, before_s: float = 0.0, after_s: float = 0.0, ends_ms: tuple[float, ...] | None = None) -> Clip:
    samples = np.concatenate([silence(before_s), speech(text, silence_s=after_s)])

    def read() -> Floats:
        return samples

    return Clip(text, text, len(samples) / 16_000, read, ends_ms)


CLIPS = [clip("the quick", before_s=0.2, after_s=0.4), clip("brown"), clip("fox jumps over", after_s=0.1)]


def test_clips_pauses_and_times() -> None:
    (talk,) = make_talks(CLIPS, 120.0)
    assert talk.text == "the quick brown fox jumps over" and talk.word_ends_ms is None
    assert talk.duration_s == len(talk.samples) / 16_000
    ended = 0
    for utterance in talk.utterances:
        samples, start = utterance.clip.read(), round(utterance.start_ms * 16)
        assert np.array_equal(talk.samples[start : start + len(samples)], samples)
        assert SHORTEST_PAUSE_S <= (start - ended) / 16_000 <= LONGEST_PAUSE_S
        pause = talk.samples[ended:start]
        assert 0 < np.abs(pause).max() < 0.01
        ended = start + len(samples)
    assert SHORTEST_PAUSE_S <= (len(talk.samples) - ended) / 16_000 <= LONGEST_PAUSE_S
    first = talk.utterances[0]
    assert (first.onset_ms - first.start_ms, first.end_ms - first.start_ms) == (200.0, 1000.0)


def test_the_same_seed_gives_the_same_talk() -> None:
    one, same, other = (next(make_talks(CLIPS, 120.0, seed=seed)) for seed in (3, 3, 4))
    assert np.array_equal(one.samples, same.samples) and one.utterances == same.utterances
    assert [utterance.start_ms for utterance in one.utterances] != [utterance.start_ms for utterance in other.utterances]


def test_talks_are_as_long_as_asked_and_lose_no_clip() -> None:
    clips = [clip("the quick brown"), clip("fox"), clip("jumps over"), clip("a lazy dog. we met them again on")]
    talks = list(make_talks(clips, 5.0))
    assert [len(talk.utterances) for talk in talks] == [2, 1, 1]
    assert [utterance.clip for talk in talks for utterance in talk.utterances] == clips
    assert list(make_talks([], 5.0)) == []


def test_word_ends_are_in_time_of_the_talk() -> None:
    talk = next(make_talks([clip("the quick", ends_ms=(400.0, 800.0)), clip("fox", ends_ms=(390.0,))], 60.0))
    first, second = (utterance.start_ms for utterance in talk.utterances)
    assert talk.word_ends_ms == [first + 400, first + 800, second + 390]


def test_speech_is_what_is_near_the_loudest() -> None:
    faint = 0.005 * np.ones(3200, np.float32)  # 40 dB below
    loud = 0.5 * np.ones(1000, np.float32)
    assert speech_span(np.concatenate([faint, loud, faint]), "x") == (3200, 3200 + 1280)
    assert speech_span(loud, "x") == (0, 1000)
    with pytest.raises(AudioFormatError, match="hush.wav: nothing is to be heard in 1600 samples"):
        speech_span(silence(0.1), "hush.wav")


def write(folder: Path, name: str, samples: Floats, text: str | None, rate: int = 16_000) -> None:
    soundfile.write(folder / f"{name}.flac", samples, rate)
    if text is not None:
        (folder / f"{name}.txt").write_text(text)


def test_a_folder_of_clips(tmp_path: Path) -> None:
    write(tmp_path, "b", np.stack([speech("fox"), speech("fox")], axis=1), "fox")
    write(tmp_path, "a", np.repeat(speech("the quick"), 2), " the\nquick ", 32_000)
    write(tmp_path, "c", speech("fox"), None)
    (tmp_path / "b.ctm").write_text(";; by hand\nb 1 0.10 0.25 fox\n")
    one, other = read_clips(tmp_path)
    assert (one.name, one.text, one.duration_s, one.word_ends_ms) == ("a.flac", "the quick", 0.8, None)
    assert len(one.read()) == 12_800 and other.word_ends_ms == (350.0,)
    assert np.allclose(other.read(), speech("fox"), atol=1e-4)


def test_word_times_must_fit(tmp_path: Path) -> None:
    path = tmp_path / "a.ctm"
    path.write_text("a 1 0.1 0.2 the\na 1 0.3 quick")
    with pytest.raises(AudioFormatError, match=r"a.ctm:2: 'a 1 0.3 quick', expected 'clip channel start_s duration_s word'"):
        read_ctm(path, 2)
    path.write_text("a 1 0.1 0.2 the\n")
    with pytest.raises(AudioFormatError, match="1 words, expected the 2 of a.txt"):
        read_ctm(path, 2)


def test_a_store(tmp_path: Path) -> None:
    rows = ["id split lang speaker source licence text offset_samples samples".split()]
    rows += [["one", "dev", "en", "s", "", "", "the quick", "0", "12800"], ["two", "dev", "en", "s", "", "", "fox", "12800", "6400"]]
    rows += [["fan", "noise", "", "", "", "", "", "0", "10"]]
    (tmp_path / "clips.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    (np.concatenate([speech("the quick"), speech("fox")]) * 32767).astype(np.int16).tofile(tmp_path / "audio.i16")
    (tmp_path / "words.tsv").write_text("one\t9 19\t0 0\ntwo\t4 9\t0\n")  # the second does not fit
    one, two = read_clips(tmp_path, "dev")
    assert (one.name, one.duration_s, one.word_ends_ms, two.word_ends_ms) == ("one", 0.8, (380.0, 780.0), None)
    assert np.allclose(two.read(), speech("fox"), atol=1e-3)
    for split in ("dev-clean", None):
        with pytest.raises(ConfigError, match=f"split {split!r}, expected --split with one of dev"):
            read_clips(tmp_path, split)


@pytest.mark.parametrize(
    ("make", "split", "says"),
    [
        (lambda path: None, None, "does not exist; CLIPS is a folder of sound files with the words of each in a .txt"),
        (lambda path: path.write_text(""), None, "is a file; CLIPS is a folder"),
        (lambda path: path.mkdir(), None, r"no sound file \(.wav, .flac, .ogg, .opus, .mp3\) with a .txt beside it; CLIPS is"),
        (lambda path: path.mkdir(), "dev", "no clips.tsv, so it is no store and has no split 'dev'"),
    ],
)
def test_what_is_no_folder_of_clips(tmp_path: Path, make: partial[None], split: str | None, says: str) -> None:
    make(tmp_path / "clips")
    with pytest.raises(ConfigError, match=says):
        read_clips(tmp_path / "clips", split)


def test_a_store_that_is_not_whole(tmp_path: Path) -> None:
    (tmp_path / "clips.tsv").write_text("id\tsplit\none\tdev\n")
    with pytest.raises(ConfigError, match=r"not a whole store \('lang'\)"):
        read_clips(tmp_path, "dev")
    (tmp_path / "clips.tsv").write_text("id split lang speaker source licence text offset_samples samples\n".replace(" ", "\t"))
    with pytest.raises(ConfigError, match="not a whole store .*audio.i16"):
        read_clips(tmp_path, "dev")


def test_words_that_are_no_text(tmp_path: Path) -> None:
    write(tmp_path, "a", speech("fox"), "fox")
    (tmp_path / "a.txt").write_bytes(b"f\xffx")
    with pytest.raises(AudioFormatError, match="a.txt: not UTF-8 text"):
        read_clips(tmp_path)


def test_a_clip_without_words(tmp_path: Path) -> None:
    write(tmp_path, "a", speech("fox"), " \n")
    with pytest.raises(AudioFormatError, match="a.txt: holds no words, expected the transcript of a.flac"):
        read_clips(tmp_path)
