"""The promises, on random audio: any cutting gives the same events, and what was said is never taken back or repeated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from dragoman.model.backend import Floats
from dragoman.model.load import Loaded, load
from dragoman.stream.config import SessionOptions
from dragoman.stream.events import Final
from dragoman.stream.session import Session
from dragoman.stream.source import FileSource
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .fakes import FRAME, WORDS, ScriptedBackend, speech
from .listeners import LoudnessVad, check_promises, finals, loaded, session, silence, transcribe
from .memory import give_back_free_memory, resident_bytes
from .tiny import save_tiny_model

BACKEND = ScriptedBackend(drafter="oracle")
OPTIONS = {"endpoint": {"longest_s": 4.0}, "targets": ("de",)}
FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def audio(draw: st.DrawFn) -> Floats:
    """Words, pauses of any length (whole frames and not), clicks and hum."""
    parts: list[Floats] = []
    for kind in draw(st.lists(st.sampled_from(["words", "pause", "click", "hum"]), min_size=1, max_size=6)):
        if kind == "words":
            parts.append(speech(" ".join(draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=6)))))
        elif kind == "pause":
            parts.append(silence(draw(st.floats(0.01, 1.5))))
        elif kind == "click":
            parts.append(np.full(draw(st.integers(1, FRAME)), 0.5, np.float32))
        else:
            seed, length = draw(st.integers(0, 99)), draw(st.integers(1, 20_000))
            parts.append(np.random.default_rng(seed).uniform(-0.3, 0.3, length).astype(np.float32))
    return np.concatenate(parts)


@FEW
@given(samples=audio(), cuts=st.lists(st.integers(1, 100_000), max_size=30), block_ms=st.sampled_from([320, 640, 960]))
def test_any_cutting_gives_the_same_events(samples: Floats, cuts: list[int], block_ms: int) -> None:
    options = {**OPTIONS, "block_ms": block_ms}
    whole = transcribe(session(BACKEND, **options), samples)
    assert transcribe(session(BACKEND, **options), samples, cuts) == whole


@FEW
@given(samples=audio(), step=st.integers(37, 5000))
def test_the_promises_hold_on_any_audio(samples: Floats, step: int) -> None:
    check_promises(transcribe(session(BACKEND, **OPTIONS), samples, range(step, len(samples), step)))


@FEW
@given(data=st.data(), cuts=st.lists(st.integers(1, 60_000), max_size=20), rate=st.sampled_from([8_000, 24_000, 44_100, 48_000]))
def test_resampled_and_stereo_audio_too(data: st.DataObject, cuts: list[int], rate: int) -> None:
    """The script mishears resampled tones; the promises hold all the same."""
    samples = data.draw(audio())[:60_000]
    stereo = np.stack([samples, 0.5 * samples], axis=1)

    def stream() -> Session:
        options = SessionOptions.model_validate(OPTIONS)
        return Session(loaded(BACKEND), options, sample_rate=rate, channels=2, vad=LoudnessVad())

    whole = transcribe(stream(), stereo)
    check_promises(whole)
    assert transcribe(stream(), stereo, cuts) == whole


@FEW
@given(st.lists(st.tuples(st.lists(st.sampled_from(WORDS), min_size=1, max_size=8), st.integers(19, 40)), min_size=1, max_size=4))
def test_every_word_is_told_once(utterances: list[tuple[list[str], int]]) -> None:
    """Utterances with pauses longer than the hangover come back word for word, however often hypotheses changed their minds."""
    samples = np.concatenate([speech(" ".join(words), silence_s=frames * 0.04) for words, frames in utterances])
    events = transcribe(session(BACKEND), samples, range(1600, len(samples), 1600))
    check_promises(events)
    assert finals(events) == [" ".join(words) for words, _ in utterances]


@pytest.mark.parametrize("script", ["growing", "restless"])
def test_a_model_that_keeps_changing_its_mind_cannot_change_committed_text(script: str) -> None:
    def restless(loudness: object) -> str:
        frames = len(loudness)  # type: ignore[arg-type]
        words = WORDS[: 1 + frames // 8] if script == "growing" else [WORDS[(frames // 16 + place) % 20] for place in range(frames // 10)]
        return " ".join(words)

    samples = speech(" ".join(WORDS[:20]), silence_s=1.0)
    for block_ms in (80, 320, 640):
        check_promises(transcribe(session(ScriptedBackend(restless), block_ms=block_ms), samples, range(800, len(samples), 800)))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return load(save_tiny_model(tmp_path_factory.mktemp("tiny")), threads=1)


@pytest.mark.parametrize("seed", range(3))
def test_any_cutting_gives_the_same_events_from_a_real_model(tiny: Loaded, clips: Path, seed: int) -> None:
    """The whole way with the real detector and the torch runtime: random weights change their mind a lot."""
    source = FileSource(clips / "talk.ogg")  # stereo, 48 kHz
    samples = np.concatenate(list(source.blocks()))[: 3 * source.sample_rate]
    options = SessionOptions.model_validate({"endpoint": {"longest_s": 2.0}, "targets": ("de",), "block_ms": 320})

    def stream() -> Session:
        return Session(tiny, options, sample_rate=source.sample_rate, channels=source.channels)

    whole = transcribe(stream(), samples)
    check_promises(whole)
    cuts = np.random.default_rng(seed).integers(1, len(samples), 40).tolist()
    assert transcribe(stream(), samples, cuts) == whole
    assert any(isinstance(event, Final) for event in whole)


@pytest.mark.soak
def test_three_hours_are_as_light_as_the_first_minutes() -> None:
    """Three hours of stream time: memory, cost for a second of audio and lag stay where they were after ten minutes."""

    def script(loudness: Sequence[float]) -> str:
        return " ".join(WORDS[: len(loudness) // 12])

    backend = ScriptedBackend(script)
    stream = session(backend)
    minute = np.concatenate([np.concatenate([speech(" ".join(WORDS[:8])), silence(16.8)])] * 3)
    memory, forwards, lags = list[int](), list[int](), list[int]()
    segments = 0
    for _ in range(180):
        before = stream.stats.forwards
        events = stream.push(minute)
        backend.calls.clear()  # the fake's own history
        segments += sum(isinstance(event, Final) for event in events)
        forwards.append(stream.stats.forwards - before)
        lags.append(stream.clocks.lag_ms)
        give_back_free_memory()  # of tests before this one, too
        memory.append(resident_bytes())
    assert segments == 540 and stream.clocks.received_ms == 10_800_000
    assert set(forwards[10:]) == {forwards[10]} and max(lags) <= 640
    assert max(memory[10:]) - memory[10] < 4_000_000


@pytest.mark.soak
def test_two_hundred_segments_of_the_shipped_graphs_are_as_light_as_the_first_twenty(clips: Path) -> None:
    """Real hypotheses in real caches, a new one for each segment. Forwards are counted, not timed: what one of them costs is bounded by
    the length of its cache, which memory would show. The caches of three segments that were never let go would be more than is allowed."""
    said = np.concatenate(list(FileSource(clips / "market.flac").blocks()))[:, 0]  # mono, 16 kHz
    piece = np.concatenate([said, silence(6.0)])[: 6 * 16_000]  # whole frames, so that every minute is cut alike
    stream = Session(load("small", runtime="onnx", threads=1), encoding="float32", clock=lambda: 0.0)  # drafts cost the same each time
    memory, forwards, segments = list[int](), list[int](), list[int]()
    for _ in range(20):
        before = stream.stats.forwards
        events = [event for _ in range(10) for event in stream.push(piece)]
        segments.append(len(finals(events)))
        forwards.append(stream.stats.forwards - before)
        give_back_free_memory()
        memory.append(resident_bytes())
    print(f"\n{segments} segments, {forwards} forwards, {[round((each - memory[2]) / 1e6, 2) for each in memory]} MB")
    assert sum(segments) >= 200 and set(segments) == {segments[0]} and set(forwards[2:]) == {forwards[2]}
    assert max(memory[2:]) - memory[2] < 4_000_000


def test_cost_and_memory_stay_flat() -> None:
    """Nine issues of peers: delay or memory that grows with the stream. Here: the last part is no dearer than the second."""
    stream, part = session(BACKEND), np.concatenate([speech(" ".join(WORDS[:6]), silence_s=1.0)] * 4)
    forwards: list[int] = []
    for _ in range(5):
        before = stream.stats.forwards
        stream.push(part)
        forwards.append(stream.stats.forwards - before)
    assert max(forwards[1:]) - min(forwards[1:]) <= 2
    held = sum(len(value) for value in vars(stream).values() if hasattr(value, "__len__"))
    assert held < 100, "a session keeps no history"
