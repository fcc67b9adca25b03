"""Synthesis into a store: repeatable, resumable after a kill, and honest about what a voice cannot say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dragoman.model.config import SAMPLE_RATE
from dragoman.model.errors import AudioFormatError, BackendError, ConfigError
from dragoman.model.store import Store
from dragoman.model.training.curves import at
from dragoman.model.training.hibari import Hibari, stretched, uneven
from dragoman.model.training.synthesis import mend, read_sentences, synthesise, trimmed, voice_named
from dragoman.model.training.voices import Flite, Utterance

SENTENCES = ["one", "two", "", "unsayable", "far too long"]


class Hum:
    """One second of noise for each sentence, ten for a long one, with silence around it."""

    source, licence = "hum", "none"

    def say(self, text: str, chance: np.random.Generator) -> Utterance:
        if text == "unsayable":
            raise AudioFormatError("hum cannot say this")
        seconds = 10 if "long" in text else 1
        sound = chance.uniform(0.1, 0.5, seconds * SAMPLE_RATE)
        silence = np.zeros(SAMPLE_RATE)
        return Utterance(np.concatenate([silence, sound, silence]).astype(np.float32), "hummer")


def filled(folder: Path, *, seconds: float, seed: int = 0) -> Store:
    synthesise(Hum(), SENTENCES, folder, hours=seconds / 3600.0, longest_s=5.0, seed=seed)
    return Store(folder)


def test_only_what_was_said_and_fits_is_kept(tmp_path: Path) -> None:
    store = filled(tmp_path, seconds=5.0)
    assert {clip.text for clip in store.clips} == {"one", "two"}
    assert {(clip.split, clip.lang, clip.speaker, clip.source) for clip in store.clips} == {("train", "en", "hummer", "hum")}
    assert all(1.0 < clip.seconds < 1.4 for clip in store.clips)  # the second of silence at each end is cut to 0.15 s
    assert sum(clip.seconds for clip in store.clips) >= 5.0


def test_the_file_starts_again_as_another_take(tmp_path: Path) -> None:
    store = filled(tmp_path, seconds=5.0)
    ids = [clip.id for clip in store.clips]
    assert ids[:4] == ["hum-0-0000000", "hum-0-0000001", "hum-1-0000000", "hum-1-0000001"]
    assert len(set(ids)) == len(ids)
    first, again = store.samples(store.clips[0]), store.samples(store.clips[2])
    assert first.shape != again.shape or not np.allclose(first, again)


def test_two_runs_are_one_run(tmp_path: Path) -> None:
    whole = filled(tmp_path / "whole", seconds=20.0)
    filled(tmp_path / "parts", seconds=1.0)
    parts = filled(tmp_path / "parts", seconds=20.0)
    assert {clip.id for clip in parts.clips} == {clip.id for clip in whole.clips}
    by_id = {clip.id: clip for clip in whole.clips}
    assert all(np.array_equal(parts.samples(clip), whole.samples(by_id[clip.id])) for clip in parts.clips)


def test_another_seed_is_another_voice(tmp_path: Path) -> None:
    one, other = filled(tmp_path / "0", seconds=1.0), filled(tmp_path / "1", seconds=1.0, seed=1)
    assert not np.array_equal(one.samples(one.clips[0]), other.samples(other.clips[0]))


@pytest.mark.parametrize("lost_bytes", [1, 3, 40_001])
def test_a_torn_store_is_cut_to_its_last_whole_clip(tmp_path: Path, lost_bytes: int) -> None:
    """Killed while writing: a half row at the end, a row whose audio is not all there, half a sample."""
    before = filled(tmp_path, seconds=5.0)
    audio, table = tmp_path / "audio.i16", tmp_path / "clips.tsv"
    kept = [before.samples(clip).copy() for clip in before.clips[:-2]]
    size = audio.stat().st_size
    with audio.open("r+b") as file:
        file.truncate(size - lost_bytes)
    with table.open("a") as file:
        file.write("hum-9-0000000\ttrain")
    mend(tmp_path)
    after = Store(tmp_path)
    assert 0 < len(before.clips) - len(after.clips) <= 2
    assert audio.stat().st_size == 2 * (after.clips[-1].offset_samples + after.clips[-1].samples)
    assert all(np.array_equal(samples, after.samples(clip)) for samples, clip in zip(kept, after.clips, strict=False))
    assert filled(tmp_path, seconds=20.0).clips[: len(after.clips)] == after.clips


def test_audio_without_a_table_is_thrown_away(tmp_path: Path) -> None:
    (tmp_path / "audio.i16").write_bytes(b"\0" * 100)
    mend(tmp_path)
    assert not (tmp_path / "audio.i16").exists()


def test_a_voice_that_says_nothing_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(AudioFormatError, match="16 sentences in a row gave no clip"):
        synthesise(Hum(), ["unsayable"], tmp_path, hours=1.0)


def test_no_sentence_after_the_first_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="line 5 on; the file has 5 lines"):
        synthesise(Hum(), SENTENCES, tmp_path, hours=1.0, first_line=5)


def test_read_sentences_keeps_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("A  first\tone.\n\n" + "word " * 41 + "\nA fourth.\n", encoding="utf-8")
    assert read_sentences(path) == ["A first one.", "", "", "A fourth."]
    path.write_text("\n \n", encoding="utf-8")
    with pytest.raises(ConfigError, match="none was found"):
        read_sentences(path)
    with pytest.raises(ConfigError, match="none.txt does not exist; expected a text file, one sentence a line"):
        read_sentences(tmp_path / "none.txt")


def test_trimmed() -> None:
    silence, sound = np.zeros(SAMPLE_RATE, np.float32), np.ones(100, np.float32)
    assert len(trimmed(np.concatenate([silence, sound, silence]), keep_s=0.5)) == SAMPLE_RATE + 99
    assert len(trimmed(silence)) == 0


def test_a_missing_command_says_what_to_install() -> None:
    with pytest.raises(BackendError, match="apt-get install flite"):
        Flite("no-such-command-of-flite")


def test_a_voice_is_found_by_its_name() -> None:
    with pytest.raises(ConfigError, match="'flit', expected one of flite, hibari"):
        voice_named("flit")


def test_hibari_is_many_voices() -> None:
    """How it says a sentence depends on the chance alone."""
    pytest.importorskip("hibari")
    voice, text = Hibari(), "The boat will leave the harbour at noon."
    one, again, other = (voice.say(text, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one.samples, again.samples) and one.speaker == again.speaker
    assert other.speaker != one.speaker and len(other.samples) != len(one.samples)
    for said in (one, other):
        assert said.samples.dtype == np.float32 and np.isfinite(said.samples).all() and 0.05 < np.abs(said.samples).max() < 1.5
        assert 1.5 < len(said.samples) / SAMPLE_RATE < 5.0
    with pytest.raises(AudioFormatError, match="no sounds for '   '"):
        voice.say("   ", np.random.default_rng(0))


def test_formants_are_moved_and_time_is_not() -> None:
    spectra = np.zeros((601, 3), np.float32)
    spectra[100] = [1.0, 2.0, 3.0]  # a formant at 2 kHz
    for factor, bin_ in ((1.0, 100), (1.2, 120), (0.9, 90)):
        moved = stretched(spectra, factor)
        assert moved.shape == spectra.shape and list(moved.argmax(0)) == [bin_] * 3
    assert np.array_equal(stretched(spectra, 1.0), spectra)


def test_syllables_go_faster_and_slower_in_their_order() -> None:
    places = uneven(400, np.random.default_rng(0))
    assert places[0] == 0.0 and places[-1] <= 399 and (np.diff(places) > 0.3).all() and (np.diff(places) < 3.0).all()
    assert np.diff(places).std() > 0.1 and 250 < len(places) < 600
    frames = np.arange(400, dtype=np.float32)[None]
    assert np.allclose(at(frames, places)[0], places, atol=1e-3)
