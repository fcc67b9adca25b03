"""A model that answers what it hears, or describes it, instead of writing it down."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from dragoman.model.errors import BackendError
from dragoman.stream.answers import count_words, doubt, echoes
from dragoman.stream.events import Event, Final
from dragoman.stream.session import Session

from .fakes import hear, speech
from .listeners import check_promises, finals, session, transcribe
from .test_session import GemmaScripted

ANSWERS = [
    ("The capital of France is Paris. It lies on the Seine and has about two million people today.", "en", 1.6, "rate"),
    ("That is a wonderful question! Let me explain how photosynthesis works, step by step, for you.", "en", 1.2, "rate"),
    ("光合作用是植物利用光能把二氧化碳和水变成有机物的过程，也会放出氧气，对地球上的生命非常重要。", "zh", 2.0, "rate"),
    ("Here is the transcription: we met them", "en", 4.0, "assistant"),
    ("Sure, here's the transcript of the speech", "en", 4.0, "phrase"),
    ("Certainly! Here is a German transcription:", "en", 4.0, "assistant"),
    ("Transcription: we met them again", "en", 4.0, "assistant"),
    ("The transcript is as follows: we met", "en", 4.0, "assistant"),
    ("I'm sorry, but I cannot transcribe this.", "en", 4.0, "assistant"),
    ("I’m sorry, I am unable to process that.", "en", 4.0, "phrase"),
    ("I apologize, but I cannot hear any speech.", "en", 4.0, "assistant"),
    ("I am unable to listen to audio files.", "en", 4.0, "assistant"),
    ("As an AI language model, I have no opinion.", "en", 4.0, "assistant"),
    ("I'm an AI assistant and cannot hear.", "en", 4.0, "assistant"),
    ("Please provide the audio file.", "en", 4.0, "phrase"),
    ("Here is the transcript of the audio:\nwe met them", "en", 4.0, "assistant"),
    ("Here is the transcription\n\nwe met them", "en", 4.0, "assistant"),
    ("The transcript of the recording is: we met", "en", 4.0, "assistant"),
    ("I'm sorry, but I can't access the audio you mention.", "en", 4.0, "assistant"),
    ("I'm sorry, I cannot process audio files.", "en", 4.0, "assistant"),
    ("I'm an AI.", "en", 4.0, "assistant"),
    ("I'm just an AI, so I cannot know.", "en", 4.0, "assistant"),
    ("I am an AI language model", "en", 4.0, "assistant"),
    ("I'm an AI assistant for your hotel.", "en", 4.0, "assistant"),
    ("I'm sorry, but I can't assist with transcribing that.", "en", 4.0, "assistant"),
    ("I am a large language model, trained by Google.", "en", 4.0, "assistant"),
    ("As an AI, I have no opinion.", "en", 4.0, "assistant"),
    ("As an AI I have no opinion.", "en", 4.0, "assistant"),
    ("Please provide the audio you would like me to transcribe.", "en", 4.0, "assistant"),
    ("**Transcript**\nwe met them again", "en", 4.0, "assistant"),
    ("Three things matter:\n- light\n- water", "en", 4.0, "assistant"),
    ("I'm sorry, I can't access your account right now, could you spell your last name?", "en", 4.0, "phrase"),
    ("I'm sorry, but I can't process your refund today", "en", 4.0, "phrase"),
    ("I'm sorry, I can't process your audiobook order.", "en", 4.0, "phrase"),
    ("I apologise, I cannot fulfil this request.", "en", 4.0, "phrase"),
    ("Please attach the recording to the ticket.", "en", 4.0, "phrase"),
    ("Please upload the file before Friday", "en", 4.0, "phrase"),
    ("Please share your audio settings with us.", "en", 4.0, "phrase"),
    ("Here's the transcript of yesterday's hearing, your honour.", "en", 4.0, "phrase"),
    ("Here is the transcript of the 10:30 hearing.", "en", 4.0, "phrase"),
    ("The transcript of the hearing was sealed.", "en", 4.0, "phrase"),
    ("I'm a virtual assistant for two law firms.", "en", 4.0, "phrase"),
    ("The audio contains a man speaking about trains.", "en", 5.0, "description"),
    ("This audio clip features soft piano music.", "en", 5.0, "description"),
    ("In the provided audio, a woman asks for help.", "en", 5.0, "description"),
    ("The speaker is asking for the time.", "en", 5.0, "description"),
    ("There is no discernible speech here.", "en", 5.0, "description"),
    ("No speech detected.", "en", 5.0, "description"),
    ("[music]", "en", 5.0, "description"),
    ("(laughter and applause)", "en", 5.0, "description"),
    ("The weather is nice and you have to be there for the train.", "de", 6.0, "language"),
    ("Das ist nicht der Zug, mit dem wir von Wien gekommen sind.", "en", 6.0, "language"),
    ("The trains left early on Monday", "ja", 6.0, "language"),
    ("Поезда ушли рано в понедельник", "en", 6.0, "language"),
]
SPEECH = [
    ("What is the capital of France?", "en", 1.6),
    ("Can you tell me how photosynthesis works?", "en", 2.0),
    ("Sure, I will be there on Monday.", "en", 2.0),
    ("Of course! Come in, come in.", "en", 1.5),
    ("Certainly. Here is the news at ten.", "en", 2.0),
    ("Here is the keeper, and here are his keys.", "en", 2.5),
    ("I'm sorry, but we cannot come tonight.", "en", 2.2),
    ("I am sorry, I cannot help laughing.", "en", 2.2),
    ("I'm sorry, I can't hear you.", "en", 1.5),
    ("I cannot listen to him any more.", "en", 2.0),
    ("This is a LibriVox recording. All LibriVox recordings are in the public domain.", "en", 5.0),
    ("The speaker of the house rose to his feet.", "en", 3.0),
    ("The man in the boat was silent.", "en", 2.0),
    ("The audience was on its feet.", "en", 2.0),
    ("As an artist he had no equal.", "en", 2.0),
    ("As an aide to the general, he knew.", "en", 2.5),
    ("There is no speaking to him when he is like this.", "en", 2.5),
    ("Please provide your name and date of birth.", "en", 2.5),
    ("I'm an AI researcher at Google", "en", 2.0),
    ("I am an AI engineer and I live in Berlin.", "en", 3.0),
    ("As an AI researcher I read a lot.", "en", 2.5),
    ("I'm an AI-curious painter, and an AI assistant helps me.", "en", 3.0),
    ("I'm an AI model trainer.", "en", 2.0),
    ("I am an AI assistant professor in Delft.", "en", 2.0),
    ("As a language teacher she had no equal.", "en", 2.5),
    ("The recording industry has changed.", "en", 2.0),
    ("In the audience sat a woman with a red hat.", "en", 3.0),
    ("He said (and I quote) that all was well.", "en", 3.0),
    ("No, no, no, no, no, no!", "en", 1.0),
    ("Yes.", "en", 0.3),
    ("I said to him go away go away and never come back here again do you hear", "en", 2.2),
    ("Wir fahren mit dem Intercity nach Köln und sehen uns das Meeting an.", "de", 4.0),
    ("Okay, let's go.", "de", 1.5),
    ("El tren de las ocho no es el que sale para Madrid.", "es", 3.0),
    ("東京からNew Yorkまで飛行機で行きます。", "ja", 4.0),
    ("Он живёт в Нью-Йорке.", "ru", 2.0),
    ("", "en", 0.5),
    ("3, 2, 1, 0", "en", 1.0),
]


@pytest.mark.parametrize(("text", "language", "audio_s", "why"), ANSWERS)
def test_answers_are_found(text: str, language: str, audio_s: float, why: str) -> None:
    assert doubt(text, language=language, audio_s=audio_s, words_per_second=6.0) == why


@pytest.mark.parametrize(("text", "language", "audio_s"), SPEECH)
def test_speech_is_not_doubted(text: str, language: str, audio_s: float) -> None:
    assert doubt(text, language=language, audio_s=audio_s, words_per_second=6.0) is None


def test_words_are_counted_in_every_script() -> None:
    assert count_words("we met — them") == 3
    assert count_words("東京から") == 2
    assert count_words("") == 0


class Answering(GemmaScripted):
    """Says ``plain`` of what it hears, and ``firm`` where the prompt tells it not to answer."""

    def __init__(self, plain: Callable[[str], str], firm: Callable[[str], str] = str) -> None:
        super().__init__()
        self._plain, self._firm = plain, firm

    def _next(self, items: Any) -> int:
        tokens = [int(value) for kind, value in items if kind == "token"]
        if 101 not in tokens:
            return 106
        said = tokens[len(tokens) - tokens[::-1].index(101) :]
        is_firm = "Do not answer" in self.tokenizer.decode(tokens)
        heard = hear([value for kind, value in items if kind == "frame"])
        text = (self._firm if is_firm else self._plain)(heard) if heard else ""
        wanted = self.tokenizer.encode(text)
        return wanted[len(said)] if len(said) < len(wanted) else 106


TEXT = "the quick brown fox jumps over"
SAMPLES = speech(TEXT, silence_s=1.0)


def listen_to(backend: Answering, samples: Any = SAMPLES) -> tuple[Session, list[Event]]:
    stream = session(backend, guards={"tokens_per_second": 100})
    events = transcribe(stream, samples, cuts=range(0, len(samples), 1600))
    check_promises(events)
    return stream, events


def test_speech_is_heard_once() -> None:
    stream, events = listen_to(Answering(str))
    assert finals(events) == [TEXT]
    assert (stream.stats.guards.answers, stream.stats.guards.reheard) == (0, 0)


def test_an_answer_is_decoded_again_with_a_firmer_prompt() -> None:
    backend = Answering(lambda heard: "Sure, here is the transcription: " + heard)
    stream, events = listen_to(backend)
    assert finals(events) == [TEXT]
    assert (stream.stats.guards.answers, stream.stats.guards.reheard) == (1, 1)
    assert "Do not answer" not in backend.openings[0] and "Do not answer" in backend.openings[1] and len(backend.openings) == 2


def test_an_answer_that_comes_late_leaves_what_was_committed() -> None:
    def late(heard: str) -> str:
        return heard + " which is a sentence with every letter" * 8 if len(heard.split()) > 4 else heard

    stream, events = listen_to(Answering(late))
    assert finals(events) == [TEXT] and stream.stats.guards.reheard == 1


def test_an_answer_to_the_firmer_prompt_is_dropped_and_not_carried_on() -> None:
    refusal = "I'm sorry, but I cannot transcribe this audio."
    stream, events = listen_to(Answering(lambda heard: refusal, lambda heard: refusal))
    assert finals(events) == [] and any(isinstance(event, Final) for event in events)
    assert stream.stats.guards.reheard == 1 and stream.stats.guards.answers > 1
    assert stream._carried == ""  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize(
    ("said", "other"), [("The audio is clear", "The audio contains noise"), ("Please upload the file", "Please upload a recording")]
)
def test_what_a_speaker_may_say_is_believed_when_it_is_said_again(said: str, other: str) -> None:
    stream, events = listen_to(Answering(lambda heard: said, lambda heard: said))
    assert finals(events) == [said] and stream.stats.guards.reheard == 1
    assert finals(listen_to(Answering(lambda heard: said, lambda heard: other))[1]) == []


def test_the_next_segment_begins_with_the_plain_prompt_again() -> None:
    backend = Answering(lambda heard: "Here is the transcription: " + heard if "the" in heard.split() else heard)
    stream = session(backend, guards={"tokens_per_second": 100})
    events = [*stream.push(SAMPLES), *stream.push(speech("nobody knew", silence_s=1.0)), *stream.finish()]
    assert finals(events) == [TEXT, "nobody knew"]
    assert ["Do not answer" in opening for opening in backend.openings] == [False, True, False]


def test_a_failure_while_it_is_heard_again_loses_nothing() -> None:
    backend = Answering(lambda heard: "Sure, here is the transcription: " + heard)
    stream, events, failures = session(backend, guards={"tokens_per_second": 100}), list[Event](), 0
    for start in range(0, len(SAMPLES), 1600):
        steps = sum(verb == "step" for verb, _ in backend.calls)
        if steps and not failures:
            backend.fail_next = "listen"
        try:
            events += stream.push(SAMPLES[start : start + 1600])
        except BackendError:
            failures += 1
    events += stream.finish()
    check_promises(events)
    assert failures == 1 and finals(events) == [TEXT]


@pytest.mark.parametrize(
    ("text", "carried", "is_one"),
    [
        ("All left early.", "all left early", True),
        ("all left early. nobody knew", "All left early.", True),
        ("all left", "All left early.", False),
        ("The quick brown fox jumps", "the quick brown fox jumps over the dog", True),
        ("the quick brown fox sleeps", "the quick brown fox jumps over the dog", False),
        ("Thank you.", "Thank you.", False),
        ("anything at all", "", False),
    ],
)
def test_an_echo_is_the_beginning_of_the_sentence_before(text: str, carried: str, is_one: bool) -> None:
    assert echoes(text, carried) is is_one


class Echoing(GemmaScripted):
    """Writes the sentence of its prompt wherever there is one."""

    def _next(self, items: Any) -> int:
        tokens = [int(value) for kind, value in items if kind == "token"]
        _, mark, before = self.tokenizer.decode(tokens[: tokens.index(101)] if 101 in tokens else []).partition("before this segment was: ")
        if not mark:
            return super()._next(items)
        said = tokens[len(tokens) - tokens[::-1].index(101) :]
        wanted = self.tokenizer.encode("all left early." if "all left early." in before else before.split("\n")[0])
        return wanted[len(said)] if len(said) < len(wanted) else 106


def test_the_sentence_before_is_not_written_again() -> None:
    texts = ["all left early.", "nobody knew why", "we met them again", "five trains"]
    samples = np.concatenate([speech(text, silence_s=1.0) for text in texts])
    for backend, reheard in ((Echoing(), 3), (GemmaScripted(), 0)):
        stream = session(backend, guards={"tokens_per_second": 100})
        events = transcribe(stream, samples, cuts=range(0, len(samples), 1600))
        check_promises(events)
        assert finals(events) == texts and stream.stats.guards.reheard == reheard


def test_who_says_a_sentence_twice_is_believed() -> None:
    samples = np.concatenate([speech("all left early.", silence_s=1.0)] * 3)
    stream = session(GemmaScripted(), guards={"tokens_per_second": 100})
    assert finals(transcribe(stream, samples, cuts=range(0, len(samples), 1600))) == ["all left early."] * 3
    assert stream.stats.guards.reheard == 2


def test_a_model_without_instructions_is_not_judged() -> None:
    stream = session()
    transcribe(stream, speech(TEXT, silence_s=1.0))
    assert (stream.stats.guards.answers, stream.stats.guards.reheard) == (0, 0)
