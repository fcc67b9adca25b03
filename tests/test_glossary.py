"""Spellings for a model that takes no instructions: whole words, before they are committed."""

from __future__ import annotations

import pytest
from dragoman.model.tokenizer import Tokenizer
from dragoman.stream.events import Final, Partial
from dragoman.stream.glossary import Spelling
from dragoman.stream.transcript import Transcript
from hypothesis import given
from hypothesis import strategies as st

from .fakes import ScriptedBackend, scripted_tokenizer, speech
from .listeners import check_promises, session, transcribe

TERMS = ("Kubernetes", "Fr. Özdemir", "New York", "New York Times", "pull request", "iOS")


def spell(text: str, terms: tuple[str, ...] = TERMS) -> str:
    return " ".join(Spelling(terms).spell(text.split()))


@pytest.mark.parametrize(
    ("heard", "written"),
    [
        ("we run kubernetes here", "we run Kubernetes here"),
        ("KUBERNETES, (kubernetes). kubernetes?", "Kubernetes, (Kubernetes). Kubernetes?"),
        ("in new york", "in New York"),
        ("the new york times", "the New York Times"),
        ("Pull request merged", "Pull request merged"),
        ("a Pull Request", "a Pull Request"),
        ("an ios phone", "an iOS phone"),
        ("new, york", "new, york"),
        ("a new yorker, kubernetesque", "a new yorker, kubernetesque"),
        ("new shoes", "new shoes"),
        ("", ""),
        ("... ,", "... ,"),
    ],
)
def test_spellings(heard: str, written: str) -> None:
    assert spell(heard) == written


def test_accents_are_put_back() -> None:
    assert spell("ask ozdemir", ("Özdemir",)) == "ask Özdemir"


def test_only_the_beginning_of_a_longer_term_waits() -> None:
    spelling = Spelling(TERMS)
    assert [spelling.open_words(text.split()) for text in ("in new", "new york", "new york times", "in new,", "pull", "a", "")] == [
        1,
        2,
        0,
        0,
        1,
        0,
        0,
    ]
    assert not Spelling(()) and not Spelling(("  ",)) and Spelling(("a",))


@given(st.lists(st.sampled_from(["new", "york", "times", "New", "kubernetes.", "(ios", "pull", "request", "—", "fox,"]), max_size=12))
def test_spelling_keeps_the_count_and_settles(words: list[str]) -> None:
    spelling = Spelling(TERMS)
    once = spelling.spell(words)
    assert len(once) == len(words) and spelling.spell(once) == once
    assert [word.casefold() for word in once] == [word.casefold() for word in words], "of terms without accents only the case changes"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return scripted_tokenizer()


def test_the_beginning_of_a_term_waits_for_its_end(tokenizer: Tokenizer) -> None:
    def update(text: str) -> None:
        ids = tokenizer.encode(text)[len(transcript.committed_ids) :]
        transcript.update(ids, [0.0] * len(ids), len(ids), heard_ms=1000, word_is_over=True)

    transcript = Transcript(tokenizer, 0, Spelling(("Brown Fox",)))
    update("the quick brown")
    assert (transcript.text, transcript.tail) == ("the quick", " brown")
    update("the quick brown fox")
    assert (transcript.text, transcript.tail) == ("the quick Brown Fox", "")
    update("the quick brown fox over brown")
    assert (transcript.text, transcript.tail) == ("the quick Brown Fox over", " brown")
    transcript.flush()
    assert transcript.text == "the quick Brown Fox over brown" == "".join(word.text for word in transcript.words)


@pytest.mark.parametrize("block_ms", [320, 640])
def test_committed_text_of_a_stream_is_spelt_and_never_changes(block_ms: int) -> None:
    samples = speech("the quick brown fox jumps over a lazy dog. we met them", silence_s=1.0)
    stream = session(ScriptedBackend(), glossary=("Brown Fox", "Döğ", "them again"), block_ms=block_ms)
    events = transcribe(stream, samples, cuts=range(0, len(samples), 1600))
    check_promises(events)
    final = next(event for event in events if isinstance(event, Final))
    assert final.text == "the quick Brown Fox jumps over a lazy Döğ. we met them"
    assert any(" Brown Fox" in event.tail or " Brown" in event.delta for event in events if isinstance(event, Partial))
    plain = next(event for event in transcribe(session(block_ms=block_ms), samples) if isinstance(event, Final))
    assert [word.start_ms for word in final.words] == [word.start_ms for word in plain.words]
