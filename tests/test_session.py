"""One stream from samples to events, on the scripted backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
import pytest
from dragoman.model.backend import Floats, ModelSpec
from dragoman.model.cache import SLACK_TOKENS, Ring
from dragoman.model.errors import AudioFormatError, BackendError, DragomanError, TaskError
from dragoman.model.prompt import Prompts, Task
from dragoman.model.work import run_together
from dragoman.stream.config import SessionOptions
from dragoman.stream.events import Committed, Dropped, Ended, Event, Final, Partial, SpeechEnded, SpeechStarted, Translation
from dragoman.stream.opening import Openings
from dragoman.stream.pcm import PcmReader
from dragoman.stream.session import Session

from .fakes import ScriptedBackend, hear, speech
from .gemma_tokens import gemma_config, gemma_tokenizer
from .listeners import LoudnessVad, ScriptedVad, check_promises, finals, loaded, session, silence, transcribe

TEXT = "the quick brown fox jumps over a lazy dog. we met them again on monday,"


def test_words_become_committed_text_and_a_final() -> None:
    events = transcribe(session(), np.concatenate([silence(1.0), speech(TEXT, silence_s=1.0)]), cuts=range(0, 200_000, 1600))
    check_promises(events)
    assert finals(events) == [TEXT]
    kinds = [type(event) for event in events]
    assert kinds[0] is SpeechStarted and kinds[-3:] == [SpeechEnded, Final, Ended]
    partials = [event for event in events if isinstance(event, Partial)]
    assert any(event.delta for event in partials) and any(event.tail for event in partials)
    final = next(event for event in events if isinstance(event, Final))
    assert final.reason == "silence" and abs(final.words[0].start_ms - 1000) <= 240
    assert abs(final.words[-1].end_ms - (1000 + 400 * len(TEXT.split()))) <= 80


class CountingVad(LoudnessVad):
    """How many frames it was asked about at once."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def are_speech(self, frames: Sequence[Floats]) -> list[bool]:
        self.asked.append(len(frames))
        return [self.is_speech(frame) for frame in frames]


def test_the_detector_is_asked_about_a_block_at_once_and_nothing_comes_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frame by frame: each event comes with the same frame as where every frame is decided on when it comes."""
    samples = np.concatenate([silence(0.52), speech(TEXT, silence_s=1.0), speech("we met them", silence_s=1.0)])

    def told(vad: LoudnessVad) -> list[list[Any]]:
        stream = Session(loaded(ScriptedBackend()), SessionOptions(block_ms=320), vad=vad, clock=lambda: 0.0)
        return [stream.push(frame) for frame in samples.reshape(-1, 640)] + [stream.finish()]

    vad = CountingVad()
    together = told(vad)
    assert sum(vad.asked) == len(samples) // 640 and max(vad.asked) == 8
    assert len(vad.asked) < 0.5 * sum(vad.asked)
    monkeypatch.setattr(Session, "_sure_frames", lambda self: 0)
    assert told(LoudnessVad()) == together


def test_frames_that_wait_for_the_detector_are_heard_at_a_commit_and_at_the_end() -> None:
    stream = session()
    stream.push(speech("quick brown")[: 640 * 15])
    (committed,) = [event for event in stream.commit() if isinstance(event, Committed)]
    assert committed.at_ms == 600
    stream.push(speech("quick brown")[: 640 * 15])
    ended = stream.finish()[-1]
    assert isinstance(ended, Ended) and ended.clocks.processed_ms == 1200


def test_two_utterances_are_two_segments_with_true_times() -> None:
    """WhisperLiveKit #365, #195: times must not drift over silence."""
    pause_s = 30.0
    samples = np.concatenate([speech("the fox"[:3], silence_s=pause_s), speech("quick brown", silence_s=1.0)])
    events = transcribe(session(), samples)
    check_promises(events)
    assert finals(events) == ["the", "quick brown"]
    second = [event for event in events if isinstance(event, Final)][1]
    assert abs(second.words[0].start_ms - (400 + 30_000)) <= 240


def test_silence_is_never_decoded() -> None:
    """whisper_streaming #102, WhisperLive #185; and WhisperLiveKit #106: after 370 s of silence it hung, here the next words are heard."""
    backend = ScriptedBackend(lambda loudness: hear(loudness) or "the")  # would hallucinate at once
    stream = session(backend)
    assert [event for _ in range(400) for event in stream.push(silence(1.0))] == []
    assert backend.calls == []
    assert stream.stats.guards.silent_frames == 10_000
    events = transcribe(stream, speech("five trains left early.", silence_s=1.0))
    check_promises(events)
    assert finals(events) == ["five trains left early."]
    final = next(event for event in events if isinstance(event, Final))
    assert abs(final.words[0].start_ms - 400_000) <= 240
    assert events[-1].clocks.processed_ms == events[-1].clocks.received_ms == 402_600


def test_the_last_word_of_a_stream_that_breaks_off_is_told() -> None:
    """WhisperLiveKit #358, livekit/agents #2581: no trailing silence, and not even a whole frame at the end."""
    samples = speech("the quick brown")[:-100]
    events = transcribe(session(), samples)
    check_promises(events)
    assert finals(events) == ["the quick brown"]
    final = next(event for event in events if isinstance(event, Final))
    assert final.reason == "finish" and final.end_ms <= 1200


def test_a_stream_without_a_pause_is_cut_at_the_longest_segment_and_goes_on() -> None:
    text = " ".join(["the quick brown fox jumps over"] * 10)  # 24 s
    events = transcribe(session(endpoint={"longest_s": 6.0}), speech(text, silence_s=1.0))
    check_promises(events)
    reasons = [event.reason for event in events if isinstance(event, Final)]
    assert reasons[:3] == ["length"] * 3
    for event in events:
        if isinstance(event, Final):
            assert event.end_ms - event.start_ms <= 6000
    said = " ".join(finals(events)).split()
    assert len(said) >= 58, "at most a word at each cut may suffer"


def test_a_full_segment_is_cut_between_words_and_no_word_suffers() -> None:
    """Somebody talks without a pause that the detector would notice; only four quiet frames lie between the words."""
    words = ["the", "quick", "brown", "fox", "jumps", "over"] * 8
    samples = np.concatenate([np.concatenate([speech(word), silence(0.16)]) for word in words])
    for block_ms in (320, 640, 960):
        options = SessionOptions.model_validate({"block_ms": block_ms, "endpoint": {"longest_s": 5.0}})
        stream = Session(loaded(ScriptedBackend()), options, vad=ScriptedVad([True] * 10_000))
        events = transcribe(stream, samples, cuts=range(0, len(samples), 4000))
        check_promises(events)
        assert " ".join(finals(events)) == " ".join(words)
        ends = [event.end_ms for event in events if isinstance(event, Final)]
        starts = [event.start_ms for event in events if isinstance(event, Final)]
        assert len(ends) >= 5 and ends[:-1] == starts[1:], "every frame belongs to one segment"


def test_a_stream_that_ends_right_after_a_cut_keeps_the_rest() -> None:
    words = ["the", "quick", "brown", "fox"]
    samples = np.concatenate([np.concatenate([speech(word), silence(0.16)]) for word in words])
    for frames in range(44, 56):
        options = SessionOptions.model_validate({"endpoint": {"longest_s": 2.0}})
        stream = Session(loaded(ScriptedBackend()), options, vad=ScriptedVad([True] * 10_000))
        events = transcribe(stream, samples[: frames * 640])
        check_promises(events)
        ends = [event.end_ms for event in events if isinstance(event, Final)]
        assert ends[-1] == frames * 40
        assert finals(events)[:1] != [] and " ".join(finals(events)).startswith("the quick brown")


def test_a_finished_sentence_needs_a_shorter_pause() -> None:
    text = "over a lazy dog."
    samples = np.concatenate([speech(text), silence(0.52), speech("we met", silence_s=1.0)])
    options: dict[str, Any] = {"block_ms": 160}
    assert finals(transcribe(session(**options), samples)) == [text, "we met"]
    late: dict[str, Any] = {"block_ms": 160, "endpoint": {"sentence_hangover_ms": 600}}
    assert finals(transcribe(session(**late), samples)) == [f"{text} we met"]


def test_translations_follow_each_final() -> None:
    stream = session(targets=("de", "fr"))
    events = transcribe(stream, np.concatenate([speech("the fox jumps", silence_s=1.0), speech("we met", silence_s=1.0)]))
    check_promises(events)
    told = [(event.segment, event.language, event.text) for event in events if isinstance(event, Translation)]
    assert told == [
        (0, "de", "dethe defox dejumps"),
        (0, "fr", "frthe frfox frjumps"),
        (1, "de", "dewe demet"),  # WhisperLiveKit #306: the setting survives a silence
        (1, "fr", "frwe frmet"),
    ]


def test_the_prompt_is_computed_once_and_shared_by_sessions() -> None:
    backend = ScriptedBackend()
    model = loaded(backend)
    openings = Openings(model.backend, model.prompts)
    samples = np.concatenate([speech("the fox", silence_s=1.0)] * 3)
    for _ in range(2):
        stream = Session(model, vad=LoudnessVad(), openings=openings)
        assert len(finals(transcribe(stream, samples))) == 3
    prompt_steps = sum(verb == "step" for verb, _ in backend.calls) - 2 * stream.stats.forwards
    assert prompt_steps == 1


def test_each_frame_is_heard_once() -> None:
    """The trunk is append-only: the model gets each frame of a segment exactly once, before it the lead-in, and after it only the padding
    of the end."""
    backend = ScriptedBackend()
    heard = frames_heard(backend)
    events = transcribe(session(backend, endpoint={"lead_in_ms": 200}), speech(TEXT, silence_s=1.0))
    final = next(event for event in events if isinstance(event, Final))
    assert len(heard) == 5 + (final.end_ms - final.start_ms) // 40


def frames_heard(backend: ScriptedBackend) -> list[Floats]:
    """A list that fills with the frames that the model gets."""
    heard, inner = list[Floats](), backend.listen

    def listen(work: Any) -> None:
        heard.extend(frame for _, frames in work for frame in frames)
        inner(work)

    backend.listen = listen  # type: ignore[method-assign]
    return heard


def numbered(frames: int) -> Floats:
    """Silence whose frames can be told apart: frame n holds (n + 1) / 100,000."""
    return np.repeat(np.arange(1, frames + 1, dtype=np.float32) / 100_000, 640)


def numbers(frames: Sequence[Floats]) -> list[int]:
    """Which frames of ``numbered`` these are; 0 for faint noise."""
    for frame in frames:
        assert 0 < float(np.abs(frame).max()) < 0.01, "neither words nor zeros"
    return [0 if np.ptp(frame) else round(100_000 * float(frame[0])) for frame in frames]


@pytest.mark.parametrize(("silent_frames", "own_frames"), [(4, 0), (10, 4), (40, 9), (400, 9)])
def test_a_segment_is_heard_with_the_silence_before_it(silent_frames: int, own_frames: int) -> None:
    """Without it a small model hears the first words worse, and all that follows from them: 3 to 5 points of word error rate on short
    clips. What there is of the stream's own silence, faint noise before; no time or block of the segment changes."""
    samples = np.concatenate([numbered(silent_frames), speech("the quick brown fox jumps", silence_s=1.0)])
    told: list[list[Any]] = []
    for lead_in_ms in (0, 360):
        backend = ScriptedBackend()
        heard = frames_heard(backend)
        events = transcribe(session(backend, endpoint={"lead_in_ms": lead_in_ms}), samples, cuts=range(0, len(samples), 700))
        check_promises(events)
        told.append(events)
        pre_roll_frames = min(6, silent_frames)
        own = list(range(silent_frames - pre_roll_frames + 1, silent_frames + 1))
        if lead_in_ms:
            first = silent_frames - pre_roll_frames - own_frames
            own = [0] * (9 - own_frames) + list(range(first + 1, first + own_frames + 1)) + own
        assert numbers(heard[: pre_roll_frames + lead_in_ms // 40]) == own
    assert told[0] == told[1]
    assert finals(told[1]) == ["the quick brown fox jumps"]


@pytest.mark.parametrize("silent_frames", [16, 17, 18, 20, 24, 30, 60])
def test_the_silence_that_ended_a_segment_is_heard_before_the_next_but_none_of_its_words(silent_frames: int) -> None:
    backend = ScriptedBackend()
    heard = frames_heard(backend)
    samples = np.concatenate([speech("the fox"), numbered(silent_frames), speech("quick brown", silence_s=1.0)])
    events = transcribe(session(backend), samples, cuts=range(0, len(samples), 700))
    check_promises(events)
    assert finals(events) == ["the fox", "quick brown"]
    last = [event for event in events if isinstance(event, SpeechStarted)][1]
    second = heard[-(9 + (len(samples) // 640 * 40 - 400 - last.at_ms) // 40) :]  # of the second of silence, 600 ms belong to it
    pre_roll = min(6, silent_frames - 15)
    own = min(9, silent_frames - pre_roll - 3)  # what follows the last word at once may be its breath
    first = silent_frames - pre_roll - own
    assert numbers(second[: 9 + pre_roll]) == [0] * (9 - own) + list(range(first + 1, silent_frames + 1))


def test_after_a_cut_in_the_middle_of_speech_nothing_is_heard_twice() -> None:
    backend = ScriptedBackend()
    heard = frames_heard(backend)
    samples = np.arange(1, 150 * 640 + 1, dtype=np.float32) / 1_000_000
    options = SessionOptions.model_validate({"endpoint": {"longest_s": 2.0}})
    transcribe(Session(loaded(backend), options, vad=ScriptedVad([True] * 150)), samples)
    firsts = [float(frame[0]) for frame in heard if np.all(np.diff(frame) > 0)]  # the others are faint noise
    assert len(firsts) == 150 and firsts == sorted(set(firsts))


@pytest.mark.parametrize("drafter", ["none", "oracle", "bad", "empty"])
def test_drafting_changes_nothing_but_the_cost(drafter: str) -> None:
    samples = speech(TEXT, silence_s=1.0)
    stream = session(ScriptedBackend(drafter=drafter))
    assert transcribe(stream, samples) == transcribe(session(), samples)
    if drafter == "oracle":
        assert 0 < stream.stats.accepted_tokens <= stream.stats.drafted_tokens
    if drafter in ("none", "empty"):
        assert stream.stats.drafted_tokens == 0


def test_loops_are_stopped_and_not_carried_on() -> None:
    """amicalhq/amical #154, moonshine #83."""

    def looping(loudness: Any) -> str:
        return " ".join(["all five trains left"] * 40) if len(loudness) > 40 else hear(loudness)

    stream = session(ScriptedBackend(looping))
    events = transcribe(stream, speech(TEXT, silence_s=1.0))
    check_promises(events)
    assert stream.stats.guards.loops > 0
    assert finals(events)[0].count("all five trains left") <= 2
    assert stream._carried == ""  # pyright: ignore[reportPrivateUsage]


def test_a_flood_is_capped() -> None:
    flood = " ".join(f"{word}{place}" for place in range(40) for word in ("quick", "fox"))
    stream = session(ScriptedBackend(lambda loudness: flood), guards={"tokens_per_second": 5, "floor_tokens": 2})
    events = transcribe(stream, speech("the fox", silence_s=1.0))
    check_promises(events)
    assert stream.stats.guards.capped > 0
    assert stream.stats.committed_tokens <= 2 + 5 * 2


class Flooding(ScriptedBackend):
    """Never stops, in no turn, and says nothing twice in a row."""

    def _next(self, items: Any) -> int:
        return 20 + 7 * len(items) ** 2 % 199


def test_a_flood_is_translated_as_far_as_the_cache_goes() -> None:
    """A translation may be four times as long as its transcript: more than the small default's cache can take back."""
    stream = session(Flooding(ring=Ring(512, 512 + SLACK_TOKENS - 1)), targets=("de",))
    events = transcribe(stream, speech(" ".join(["the quick brown fox jumps"] * 8), silence_s=1.0))
    check_promises(events)
    told = [event for event in events if isinstance(event, Translation)]
    assert finals(events) and len(told) == len(finals(events)) and all(event.text for event in told)
    assert stream.stats.guards.capped == stream.stats.hypotheses


def test_bad_input_is_refused_and_nothing_heard_is_lost() -> None:
    samples, stream = speech("the quick brown fox"), session()
    events = stream.push(samples[:20_000])
    for bad in (b"\0", b"", np.full(10, np.nan, np.float32), np.zeros(10, np.float64), np.zeros((5, 2), np.int16)):
        with pytest.raises(AudioFormatError):
            stream.push(bad)  # type: ignore[arg-type]
    events += stream.push(samples[20_000:])
    events += stream.finish()
    assert events == transcribe(session(), samples)
    assert finals(events) == ["the quick brown fox"]


@pytest.mark.parametrize("verb", ["listen", "step"])
@pytest.mark.parametrize("at", [0, 8_000, 16_000, 24_000, 32_000])
def test_a_failing_model_loses_no_audio_and_no_text(verb: str, at: int) -> None:
    backend = ScriptedBackend()
    stream, samples, events, failures = session(backend), speech("the quick brown fox jumps over", silence_s=1.0), [], 0
    for start in range(0, len(samples), 1600):
        if start == at:
            backend.fail_next = verb
        try:
            events += stream.push(samples[start : start + 1600])
        except BackendError:
            failures += 1
    events += stream.finish()
    check_promises(events)
    assert failures == 1
    assert finals(events) == ["the quick brown fox jumps over"]


def test_a_model_that_fails_at_the_end_leaves_the_text_so_far() -> None:
    backend = ScriptedBackend()
    stream = session(backend)
    events = stream.push(speech("the quick brown fox jumps over"))
    backend.fail_next = "step"
    with pytest.raises(BackendError):
        stream.finish()
    events += stream.finish()
    check_promises(events)
    assert isinstance(events[-1], Ended)
    assert finals(events)[0].startswith("the quick brown")


def test_lost_audio_is_told_and_keeps_its_time() -> None:
    stream = session()
    events = stream.push(speech("the fox"[:3])) + stream.drop(16_000 * 5) + stream.push(speech("quick brown")) + stream.finish()
    check_promises(events)
    lost = next(event for event in events if isinstance(event, Dropped))
    assert (lost.at_ms, lost.duration_ms) == (400, 5000)
    last = [event for event in events if isinstance(event, Final)][-1]
    assert last.text == "quick brown" and abs(last.words[0].start_ms - 5400) <= 240
    assert stream.stats.dropped_ms == 5000 and stream.stats.audio_ms == 6200


def test_a_gap_in_which_the_model_fails_keeps_its_time_and_its_events() -> None:
    backend = ScriptedBackend()
    stream = session(backend)
    events = stream.push(speech("the quick"))
    backend.fail_next = "step"
    with pytest.raises(BackendError):
        stream.drop(16_000 * 5)
    events += stream.push(speech("brown fox")) + stream.finish()
    check_promises(events)
    assert [event.duration_ms for event in events if isinstance(event, Dropped)] == [5000]
    last = [event for event in events if isinstance(event, Final)][-1]
    assert last.text == "brown fox" and abs(last.words[0].start_ms - 5800) <= 240
    assert stream.drop(0) == []


class GemmaScripted(ScriptedBackend):
    """The scripted ear behind turns, instructions and a SentencePiece-like vocabulary: the 12B's format."""

    def __init__(self, longest_positions: int | None = None) -> None:
        super().__init__()
        self.tokenizer = gemma_tokenizer()
        self.config = replace(gemma_config(), longest_positions=longest_positions)  # here each letter of a prompt takes one
        self.spec = ModelSpec("gemma", self.config)
        self.prompts = Prompts(self.config, self.tokenizer)
        self.openings: list[str] = []

    def listen(self, work: Any) -> None:
        for cache, _ in work:
            if all(kind == "token" for kind, _ in cache.items):
                self.openings.append(self.tokenizer.decode([int(token) for _, token in cache.items]))
        super().listen(work)

    def _next(self, items: Any) -> int:
        tokens = [int(value) for kind, value in items if kind == "token"]
        turns, end_thought, stop = tokens.count(105) // 2, 101, 106
        if end_thought not in tokens:
            return stop
        said = tokens[len(tokens) - tokens[::-1].index(end_thought) :]
        text = hear([value for kind, value in items if kind == "frame"])
        wanted = self.tokenizer.encode(text if turns == 1 else text.upper())
        return wanted[len(said)] if len(said) < len(wanted) else stop


def test_the_format_with_instructions_carries_the_last_sentence_over() -> None:
    backend = GemmaScripted()
    samples = np.concatenate([speech("all left early.", silence_s=1.0), speech("nobody knew", silence_s=1.0)])
    stream = session(backend, targets=("de",), glossary=("Dragoman",), guards={"tokens_per_second": 100})
    events = transcribe(stream, samples, cuts=range(0, len(samples), 1600))
    check_promises(events)
    assert finals(events) == ["all left early.", "nobody knew"]
    assert [event.text for event in events if isinstance(event, Translation)] == ["ALL LEFT EARLY.", "NOBODY KNEW"]
    first, second = backend.openings
    assert "Dragoman" in first and "all left early." not in first
    assert second.endswith("The text before this segment was: all left early.")
    words = [word.text.strip() for event in events if isinstance(event, Partial) for word in event.words]
    assert words and set(words) <= {"all", "left", "early.", "nobody", "knew"}, "never half a word, though each letter is a token"

    backend = GemmaScripted()
    transcribe(session(backend, carry_over=False, guards={"tokens_per_second": 100}), samples)
    assert backend.openings[0] == backend.openings[1]


class Counting(GemmaScripted):
    """Notes how many positions a transcript has before it: prompt, audio and tail."""

    def __init__(self, longest_positions: int) -> None:
        super().__init__(longest_positions)
        self.before: list[int] = []

    def step(self, work: Any, *, wanted: Any = None) -> Any:
        tail = self.prompts.tail(Task())
        self.before += [cache.length + len(tail) for cache, ids in work if ids[: len(tail)].tolist() == tail]
        return super().step(work, wanted=wanted)


def positions(frames: int, glossary: tuple[str, ...] = ()) -> int:
    """So many that a plain segment may have ``frames`` frames, besides 9 of lead-in and 8 of padding."""
    prompts = GemmaScripted().prompts
    return len(prompts.prefix(Task(glossary=glossary))) + len(prompts.tail(Task())) + 9 + 8 + frames


@pytest.mark.parametrize(("frames", "carries", "glossary"), [(160, False, ()), (200, True, ("Dragoman", "Özdemir"))])
def test_no_segment_is_longer_than_the_positions_in_which_the_model_hears(frames: int, carries: bool, glossary: Any) -> None:
    """Whatever else is in the prompt takes its place from the audio; carried text is left out where it would take half of it."""
    backend = Counting(positions(frames, glossary))
    text = "we met them again on monday, and then all five trains left early. " * 3
    stream = session(backend, glossary=glossary, block_ms=1600, guards={"tokens_per_second": 100})
    events = transcribe(stream, speech(text, silence_s=1.0))
    check_promises(events)
    lengths = [(event.end_ms - event.start_ms) // 40 for event in events if isinstance(event, Final)]
    assert len(lengths) >= 3 and 3 * frames // 4 <= lengths[0] <= max(lengths) <= frames
    assert max(backend.before) <= positions(frames, glossary)
    assert any("The text before" in opening for opening in backend.openings) == carries


def test_a_glossary_that_leaves_no_place_to_hear_in_is_refused_at_once() -> None:
    terms = tuple(f"Dragoman {number}" for number in range(200))
    backend = GemmaScripted(positions(50))
    session(backend)
    with pytest.raises(TaskError, match="leaves 1.96 s for a segment, expected at least 2.00 s"):
        session(GemmaScripted(positions(49)))
    with pytest.raises(TaskError, match=r"leaves 0.00 s for a segment, expected at least 2.00 s: shorten the glossary \(200 terms\)"):
        session(backend, glossary=terms)
    with pytest.raises(TaskError, match=r"leaves 2.00 s for a segment, expected at least 2.20 s: shorten the glossary \(0 terms\)"):
        session(backend, endpoint={"pre_roll_ms": 2000})
    session(GemmaScripted(), glossary=terms)
    session(ScriptedBackend(), glossary=terms)


class Thinking(GemmaScripted):
    """Thinks before it says anything, in every turn, though an empty thought was primed."""

    def __init__(self, closes: bool = True) -> None:
        super().__init__()
        self._thought = [100, *self.tokenizer.encode("thought\nwhat was said?"), *([101] if closes else [106])]

    def _next(self, items: Any) -> int:
        tokens = [int(value) for kind, value in items if kind == "token"]
        turn = tokens[len(tokens) - tokens[::-1].index(105) :] if 105 in tokens else []
        said = turn[turn.index(101) + 1 :] if 101 in turn else self._thought
        return self._thought[len(said)] if said == self._thought[: len(said)] and len(said) < len(self._thought) else super()._next(items)


def test_the_words_behind_a_thought_are_not_lost() -> None:
    samples = np.concatenate([speech("the quick brown fox", silence_s=1.0), speech("nobody knew", silence_s=1.0)])
    wish: dict[str, Any] = {"targets": ("de",), "style": "plain", "guards": {"tokens_per_second": 100}}
    stream = session(Thinking(), **wish)
    events = transcribe(stream, samples)
    check_promises(events)
    assert finals(events) == ["the quick brown fox", "nobody knew"] and events == transcribe(session(GemmaScripted(), **wish), samples)
    guards = stream.stats.guards
    assert guards.thoughts >= 6 and (guards.special, guards.loops, guards.answers) == (0, 0, 0)


def test_a_thought_without_an_end_is_cut() -> None:
    stream = session(Thinking(closes=False), guards={"tokens_per_second": 100})
    assert finals(transcribe(stream, speech("the quick brown fox", silence_s=1.0))) == []
    assert stream.stats.guards.special == stream.stats.hypotheses and stream.stats.guards.thoughts == 0


def test_the_end_is_the_end() -> None:
    stream = session()
    assert [type(event) for event in stream.finish()] == [Ended]
    assert stream.finish() == []
    with pytest.raises(DragomanError, match="session is over"):
        stream.push(b"\0\0")


def test_tasks_that_the_model_lacks_are_refused_at_once() -> None:
    with pytest.raises(TaskError, match="it knows de, es, fr"):
        session(targets=("sv",))
    with pytest.raises(TaskError, match="'de'"):
        session(language="de")


def test_many_sessions_run_together_as_each_alone() -> None:
    """WhisperLiveKit #12: no stream leaks into another."""
    texts = ["the quick brown fox", "we met them again on monday,", "nobody knew why it was so cold here"]
    alone = [transcribe(session(), speech(text, silence_s=1.0)) for text in texts]
    backend = ScriptedBackend()
    streams = [session(backend) for _ in texts]
    pushed = run_together(backend, [stream.work(speech(text, silence_s=1.0)) for stream, text in zip(streams, texts, strict=True)])
    ended = run_together(backend, [stream.work(None) for stream in streams])
    assert [first + last for first, last in zip(pushed, ended, strict=True)] == alone
    assert max(size for _, size in backend.calls) == 3


def test_stats_count_the_work() -> None:
    backend = ScriptedBackend()
    stream = Session(loaded(backend), SessionOptions(), vad=LoudnessVad(), clock=lambda: float(len(backend.calls)))
    transcribe(stream, speech(TEXT, silence_s=1.0))
    stats = stream.stats
    assert stats.compute_s == len(backend.calls)  # a second for each
    assert stats.audio_ms == len(TEXT.split()) * 400 + 1000
    assert stats.segments == 1 and stats.forwards >= stats.hypotheses > 5
    assert 0 < stats.agreed_tokens <= stats.redrafted_tokens
    assert stats.first_text_ms is not None and stats.first_text_ms <= 640 + 160


def test_blocks_set_the_pace() -> None:
    counts: list[int] = []
    for block_ms in (320, 640, 960):
        stream = session(block_ms=block_ms)
        assert finals(transcribe(stream, speech(TEXT, silence_s=1.0))) == [TEXT]
        counts.append(stream.stats.hypotheses)
    assert counts[0] > 1.7 * counts[1] > 1.7 * counts[2]


@pytest.mark.parametrize("held", [1, 2, 5])
def test_words_that_are_held_back_change_nothing_but_the_tail(held: int) -> None:
    """The newest words are shown when others have followed, or when silence shows that they are over."""
    audio = np.concatenate([speech("the quick brown fox jumps over a lazy dog.", silence_s=1.5), speech("five trains", silence_s=1.5)])
    plain, calm = (transcribe(session(hold_back_words=words), audio) for words in (0, held))
    check_promises(calm)
    partials = {event.clocks.processed_ms: event for event in plain if isinstance(event, Partial)}
    assert [event for event in calm if not isinstance(event, Partial)] == [event for event in plain if not isinstance(event, Partial)]
    assert [word for event in calm if isinstance(event, Partial) for word in event.words] == [
        word for event in partials.values() for word in event.words
    ]
    spoken = [event for event in calm if isinstance(event, Partial)]
    for event in spoken:
        tail = partials[event.clocks.processed_ms].tail
        assert tail.startswith(event.tail)
        assert len(event.tail.split()) in (max(0, len(tail.split()) - held), len(tail.split()))
    assert any(event.tail != partials[event.clocks.processed_ms].tail for event in spoken)


def test_steady_captions_show_only_what_never_changes() -> None:
    audio = np.concatenate([speech("the quick brown fox jumps over a lazy dog.", silence_s=1.5), speech("five trains", silence_s=1.5)])
    plain, steady = (transcribe(session(steady=wanted, hold_back_words=0), audio) for wanted in (False, True))
    check_promises(steady)
    assert not any(event.tail for event in steady if isinstance(event, Partial))
    assert any(event.tail for event in plain if isinstance(event, Partial))
    told = [event for event in plain if not isinstance(event, Partial) or event.words]  # what is committed, and when, stays the same
    assert [replace(event, tail="") if isinstance(event, Partial) else event for event in told] == steady


@pytest.mark.parametrize("at_ms", [0, 30, 200, 1000, 1390, 1720, 2500, 4000])
def test_a_commit_ends_the_segment_and_loses_nothing(at_ms: int) -> None:
    samples = np.concatenate([speech("the quick brown fox", silence_s=1.0), speech("jumps over a", silence_s=1.0)])
    stream, cut = session(), at_ms * 16
    before = (stream.push(samples[:cut]) if cut else []) + stream.commit()
    events = before + stream.push(samples[cut:]) + stream.finish()
    check_promises(events)
    assert isinstance(before[-1], Committed) and before[-1].at_ms == at_ms // 40 * 40
    assert [event for event in events if isinstance(event, Committed)] == [before[-1]]
    opened = [event.segment for event in before if isinstance(event, SpeechStarted)]
    assert opened == [event.segment for event in before if isinstance(event, Final)], "the segment has its final before the answer"
    heard = [event for event in events if isinstance(event, Final) and event.text]
    assert all(event.end_ms <= before[-1].at_ms for event in heard if event in before)
    assert [event.reason for event in heard].count("commit") == (at_ms in (200, 1000, 1390, 1720, 4000))
    if at_ms % 400 == 0 or at_ms > 1600:  # between two words
        assert " ".join(event.text for event in heard) == "the quick brown fox jumps over a"


def test_commits_one_after_another_are_answered_one_by_one() -> None:
    stream = session()
    events = [*stream.commit(), *stream.push(speech("the quick")), *stream.commit(), *stream.commit(), *stream.finish()]
    check_promises(events)
    assert [event.at_ms for event in events if isinstance(event, Committed)] == [0, 800, 800]
    assert finals(events) == ["the quick"]


@pytest.mark.parametrize("rate", [8_000, 11_025, 24_000, 44_100, 48_000])
def test_a_commit_holds_all_that_was_pushed_at_any_rate(rate: int) -> None:
    """What the resampler still holds was said before it, and the next turn does not begin with a piece of this one."""
    samples = speech("the quick brown fox")  # 1600 ms, to the last sample
    there = PcmReader(16_000)
    assert len(there.push(samples)) == len(samples) == 25_600
    stream = Session(loaded(ScriptedBackend()), vad=LoudnessVad(), sample_rate=rate, encoding="float32")
    pushed = np.interp(np.arange(rate * 16 // 10) / rate, np.arange(25_600) / 16_000, samples).astype(np.float32)
    events = stream.push(pushed) + stream.commit()
    assert isinstance(events[-1], Committed) and events[-1].at_ms == 1600
    events += stream.push(np.zeros(rate, np.float32)) + stream.commit() + stream.finish()
    check_promises(events)
    assert len([event for event in events if isinstance(event, SpeechStarted)]) == 1
    assert [event.at_ms for event in events if isinstance(event, Committed)] == [1600, 2600]


def test_nothing_that_is_told_after_a_commit_lies_before_it() -> None:
    """Nor if nobody was speaking: the pre-roll of what comes next ends at the mark."""
    stream = session()
    before = stream.push(silence(2.0)) + stream.commit()
    assert isinstance(before[-1], Committed) and before[-1].at_ms == before[-1].clocks.committed_ms == 2000
    events = before + stream.push(speech("the quick brown fox", silence_s=1.0)) + stream.finish()
    check_promises(events)
    assert finals(events) == ["the quick brown fox"]
    assert min(event.start_ms for event in events if isinstance(event, Final)) == 2000
    assert min(event.at_ms for event in events if isinstance(event, SpeechStarted)) == 2000


def test_after_finish_nothing_is_taken() -> None:
    stream = Session(loaded(ScriptedBackend()), sample_rate=48_000)
    stream.push(np.zeros(48_000, np.int16))
    assert isinstance(stream.finish()[-1], Ended)
    with pytest.raises(DragomanError, match=r"audio after finish\(\): the session is over"):
        stream.push(np.zeros(48_000, np.int16))
    with pytest.raises(DragomanError, match=r"a gap after finish\(\): the session is over"):
        stream.drop(16_000)
    with pytest.raises(DragomanError, match=r"commit\(\) after finish\(\): the session is over"):
        stream.commit()
    assert stream.finish() == []


@pytest.mark.parametrize(("block_ms", "longest_s"), [(640, 2), (2000, 2), (4000, 2), (4000, 4)])
def test_a_block_longer_than_a_segment_loses_no_word(block_ms: int, longest_s: int) -> None:
    """The quiet beginning of a segment is no place to cut it. A word that is cut in two may be heard in both."""
    text = "the quick brown fox jumps over a lazy dog. we met them again"
    events = transcribe(
        session(block_ms=block_ms, endpoint={"longest_s": longest_s}), np.concatenate([silence(1.0), speech(text, silence_s=1)])
    )
    check_promises(events)
    assert [word for word, _ in groupby(" ".join(finals(events)).split())] == text.split()
    lengths = [event.end_ms - event.start_ms for event in events if isinstance(event, Final) and event.reason == "length"]
    assert lengths and min(lengths) >= 500 * longest_s


def test_what_is_said_after_a_repetition_is_kept() -> None:
    text = "the quick brown fox the quick brown fox the quick brown fox jumps over a lazy dog. we met them"
    events = transcribe(session(guards={"loop_tokens": 6}), speech(text, silence_s=1.0))
    check_promises(events)
    assert " ".join(finals(events)) == text


def test_a_caption_is_told_before_it_is_translated() -> None:
    """To whoever asks to be told at once; together that is what is returned otherwise."""
    audio = speech("the quick brown fox", silence_s=1.0)
    wanted, told, calls = transcribe(session(targets=["de", "fr"]), audio), list[Event](), list[list[Event]]()
    stream = session(targets=["de", "fr"])

    def tell(events: list[Event]) -> None:
        calls.append(events)
        told.extend(events)

    stream.tell = tell
    for piece in np.array_split(audio, 20):
        told += stream.push(piece)
    told += stream.finish()
    assert told == wanted and sum(isinstance(event, Translation) for event in told) == 2
    (final,) = [events for events in calls if any(isinstance(event, Final) for event in events)]
    assert not any(isinstance(event, Translation) for event in final)
