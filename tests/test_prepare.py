"""What a run needs before its first step: made once, by several processes, and never half."""

from __future__ import annotations

import lzma
import stat
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.importorskip("torch", reason="needs the extra train")
pytest.importorskip("rapidfuzz", reason="needs the extra train")
pytest.importorskip("scipy", reason="needs the extra train")

from dragoman.model.errors import ConfigError  # noqa: E402
from dragoman.model.store import Store  # noqa: E402
from dragoman.model.training import prepare, run  # noqa: E402
from dragoman.model.training.prepare import StoreOptions, make_store, make_stores  # noqa: E402
from dragoman.model.training.store import build_from_shards  # noqa: E402


def talks(folder: Path, count: int = 2) -> Path:
    folder.mkdir()
    for i in range(count):
        soundfile.write(folder / f"{i}.wav", np.full(8_000, 0.1 * i, np.float32), 16_000)
        (folder / f"{i}.txt").write_text("Hello there.\n")
    return folder


def test_stores_are_made_by_other_processes_and_only_once(tmp_path: Path) -> None:
    stores = [StoreOptions(str(tmp_path / name), audio=str(talks(tmp_path / f"{name}-talks")), features=False) for name in ("a", "b")]
    make_stores(stores, 2)
    before = [(tmp_path / name / "clips.tsv").stat().st_mtime_ns for name in ("a", "b")]
    assert [len(Store(tmp_path / name).clips) for name in ("a", "b")] == [2, 2]
    make_stores(stores, 2)
    assert before == [(tmp_path / name / "clips.tsv").stat().st_mtime_ns for name in ("a", "b")]


def test_a_store_of_shards_is_the_same_whoever_decodes_them(tmp_path: Path) -> None:
    rows, audio = ["id\tshard\tsplit\tlang\tspeaker\tsource\tlicence\ttext"], dict[str, np.ndarray]()
    for shard in range(3):
        with tarfile.open(tmp_path / f"shard-{shard}.tar", "w") as tar:
            for i in range(2):
                name, path = f"{shard}{i}.wav", tmp_path / "one.wav"
                audio[name] = np.full(1_000 + 100 * shard + i, 0.1 * shard, np.float32)
                soundfile.write(path, audio[name], 16_000)
                tar.add(path, name)
                rows.append(f'{name}\tshard-{shard}.tar\ttrain\ten\t\tmine\t\tHe said "{name}')
    (tmp_path / "manifest.tsv").write_text("\n".join(rows) + "\n")
    for workers in (1, 2, 5):
        folder = tmp_path / f"store{workers}"
        build_from_shards(tmp_path, folder, workers)
        store = Store(folder)
        assert sorted(path.name for path in folder.iterdir()) == ["audio.i16", "clips.tsv"]
        assert [clip.id for clip in store.clips] == list(audio) and store.clips[3].text == 'He said "11.wav'
        for clip in store.clips:
            np.testing.assert_allclose(store.samples(clip), audio[clip.id], atol=1e-4)


def test_a_killed_decoding_leaves_no_half_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = StoreOptions(str(tmp_path / "store"), audio=str(talks(tmp_path / "talks")), features=False)
    whole = prepare.build_from_folder

    def killed(source: Path, folder: Path) -> int:
        whole(source, folder)
        (folder / "clips.tsv").write_text("id\n")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(prepare, "build_from_folder", killed)
        make_store(store)
    assert not (tmp_path / "store").exists()
    make_store(store)
    assert len(Store(tmp_path / "store").clips) == 2


def test_a_store_made_of_nothing_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none of 'shards', 'audio' and 'reads'"):
        make_store(StoreOptions(str(tmp_path / "store")))
    with pytest.raises(ConfigError, match="none of 'shards', 'audio' and 'reads'"):  # from the other process, too
        make_stores([StoreOptions(str(tmp_path / "store"))], 1)


def test_a_store_is_read_by_a_voice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command in flite's place that writes a second of tone."""
    soundfile.write(tmp_path / "tone.wav", np.sin(np.arange(16_000) / 8).astype(np.float32) * 0.3, 16_000)
    fake = tmp_path / "flite"
    fake.write_text(f"#!/bin/sh\ncat {tmp_path / 'tone.wav'}\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (tmp_path / "sentences.txt").write_text("One.\nTwo.\n")
    make_store(StoreOptions(str(tmp_path / "store"), reads=str(tmp_path / "sentences.txt"), hours=5 / 3600))
    clips = Store(tmp_path / "store").clips
    assert {clip.text for clip in clips} == {"One.", "Two."} and sum(clip.seconds for clip in clips) >= 4.5


def test_sentences_are_written_where_they_are_missing(tmp_path: Path) -> None:
    texts, shards = tmp_path / "text", tmp_path / "shards"
    texts.mkdir()
    shards.mkdir()
    (texts / "sentences-en.txt.xz").write_bytes(lzma.compress(b"The house is red today.\nWe never learn what is measured.\n"))
    (shards / "manifest.tsv").write_text("id\tsplit\ttext\nx\tdev-clean\tWE NEVER LEARN WHAT IS MEASURED\n")
    store = StoreOptions(str(tmp_path / "store"), shards=str(shards))
    prepare.write_sentences([store], [str(tmp_path / "out" / "sentences.txt")], str(texts))
    assert (tmp_path / "out" / "sentences.txt").read_text() == "The house is red today.\n"
    with pytest.raises(ConfigError, match="'text' needs a store with 'shards'"):
        prepare.write_sentences([], ["missing"], str(texts))


def test_a_corpus_that_is_not_there_is_told(tmp_path: Path) -> None:
    """As in a checkout: the corpora of the shipped configurations are not part of the repository."""
    options = run.RunOptions(
        folder=str(tmp_path / "run"), stores=(StoreOptions(folder=str(tmp_path / "store"), shards=str(tmp_path / "corpus")),)
    )
    with pytest.raises(ConfigError, match=r"manifest.tsv does not exist; the corpus is not part of the repository: name audio of your own"):
        run.prepare(options)
