"""Recordings: what was asked for, for its owner alone, for as long as was said, and never in the way of a session."""

from __future__ import annotations

import json
import logging
import os
import stat
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from dragoman.stream import recorder as recording
from dragoman.stream.recorder import Recorder

from .fakes import speech
from .live import Inline, make_engine, pcm, run

DAY_S = 24 * 3600.0


class Later(Executor):
    """A disk that has not got to it yet."""

    def __init__(self) -> None:
        self.todo: list[Any] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.todo.append(lambda: fn(*args, **kwargs))
        return Future()

    def catch_up(self) -> None:
        for work in self.todo:
            work()
        self.todo.clear()


def files(folder: Path, ending: str) -> list[Path]:
    return sorted(folder.glob(f"*.{ending}"))


def test_a_session_is_on_disk_as_it_was_heard(tmp_path: Path) -> None:
    samples = speech("the quick brown fox", silence_s=1.0)

    async def test() -> None:
        async with make_engine(record="both", record_dir=tmp_path) as engine:
            stream = await engine.open()
            owner = object()
            stream.attach(owner)
            await stream.push(pcm(samples[:10_000]))
            await stream.lose(8_000)
            await stream.push(pcm(samples[10_000:]))
            stream.finish()
            assert [item async for item in stream.follow(owner)]

    run(test())
    (wav,), (jsonl,) = files(tmp_path, "wav"), files(tmp_path, "jsonl")
    heard, rate = soundfile.read(wav, dtype="int16")
    whole = np.concatenate([samples[:10_000], np.zeros(8_000, np.float32), samples[10_000:]])
    assert rate == 16_000 and heard.tobytes() == pcm(whole)
    events = [json.loads(line) for line in jsonl.read_text().splitlines()]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1)) and events[-1]["type"] == "ended"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (wav, jsonl)] == [0o600, 0o600]


def test_nothing_is_stored_unless_asked(tmp_path: Path) -> None:
    async def test() -> None:
        async with make_engine(record_dir=tmp_path) as engine:
            stream = await engine.open()
            await stream.push(pcm(speech("the quick", silence_s=1.0)))
            engine.discard(stream)

    run(test())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("what", "kept"), [("text", ["jsonl"]), ("audio", ["wav"])])
def test_only_what_was_asked_for(tmp_path: Path, what: Any, kept: list[str]) -> None:
    one = Recorder(tmp_path, what, 1, executor=Inline()).open(16_000, 1, "int16")
    one.audio(bytes(320))
    one.event("{}")
    one.close()
    assert [path.suffix[1:] for path in tmp_path.iterdir()] == kept


@pytest.mark.parametrize(("encoding", "subtype"), [("int16", "PCM_16"), ("float32", "FLOAT")])
def test_wav_of_every_encoding(tmp_path: Path, encoding: Any, subtype: str) -> None:
    samples = np.linspace(-0.5, 0.5, 600, dtype=np.float32).reshape(-1, 2)
    one = Recorder(tmp_path, "audio", 1, executor=Inline()).open(44_100, 2, encoding)
    one.audio((samples * 32768).astype("<i2").tobytes() if encoding == "int16" else samples.astype("<f4").tobytes())
    one.silence(400)
    one.close()
    (path,) = files(tmp_path, "wav")
    info = soundfile.info(path)
    assert (info.samplerate, info.channels, info.subtype) == (44_100, 2, subtype)
    assert info.frames == 300 + 400 // (4 if encoding == "int16" else 8)
    assert np.allclose(soundfile.read(path, dtype="float32")[0][:300], samples, atol=1e-4)


def test_old_recordings_go_and_nothing_else_does(tmp_path: Path) -> None:
    now_s = 1_800_000_000.0
    ours = "dragoman-20260101T000000Z-0123456789ab"
    for name, age_days in ((f"{ours}.wav", 8), (f"{ours}.jsonl", 6), ("thesis.wav", 800), (f"{ours}.wav.bak", 800)):
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (now_s - age_days * DAY_S,) * 2)
    later = tmp_path / ours.replace("ab", "cd")
    later.with_suffix(".wav").symlink_to(tmp_path / "thesis.wav")
    recorder = Recorder(tmp_path, "both", 7, clock=lambda: now_s, executor=Inline())
    recorder.sweep()
    assert {path.name for path in tmp_path.iterdir()} >= {"thesis.wav", f"{ours}.wav.bak", f"{ours}.jsonl"}
    assert not (tmp_path / f"{ours}.wav").exists()


def test_the_engine_sweeps_again_and_again(tmp_path: Path) -> None:
    looked: list[float] = []
    now_s = [0.0]
    recorder = Recorder(tmp_path, "text", 1, clock=lambda: now_s[0], executor=Inline())
    recorder._delete = looked.append  # type: ignore[method-assign]

    async def test() -> None:
        async with make_engine(recorder=recorder) as engine:
            for now_s[0] in (0.0, 1.0, 3599.0, 3600.0, 3601.0, 7200.0):
                engine.tick()

    run(test())
    assert looked == [time_s - DAY_S for time_s in (0.0, 3600.0, 7200.0)]


def test_a_disk_that_does_not_keep_up_costs_the_recording_and_not_the_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(recording, "_MOST_WAITING_BYTES", 1000)
    later = Later()
    one = Recorder(tmp_path, "audio", 1, executor=later).open(16_000, 1, "int16")
    for _ in range(100):
        one.audio(bytes(400))
    later.catch_up()
    (path,) = files(tmp_path, "wav")
    assert soundfile.info(path).frames == 400, "what fitted is there, and whole"
    assert "the disk does not keep up" in caplog.text and len(caplog.records) == 1


def test_a_full_disk_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def full(path: Path) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(recording, "_new", full)
    one = Recorder(tmp_path, "both", 1, executor=Inline()).open(16_000, 1, "int16")
    for _ in range(3):
        one.audio(bytes(2))
        one.event("{}")
    assert [record.levelno for record in caplog.records] == [logging.ERROR] and "No space left" in caplog.text


def test_a_recording_is_never_written_over_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "x.wav").symlink_to(tmp_path / "target")
    with pytest.raises(FileExistsError):
        recording._new(tmp_path / "x.wav")  # pyright: ignore[reportPrivateUsage]
    assert not (tmp_path / "target").exists()
