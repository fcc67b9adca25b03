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


@pytest.mark.parametrize(
    ("terms", "heard", "written"),
    [
        (("C++",), "vitamin c and c plus plus", "vitamin c and c plus plus"),
        (("C++",), "in (c++), c++. or “c++”? c+", "in (C++), C++. or “C++”? c+"),
        (("C", "C++", "C#"), "c, c++, c#.", "C, C++, C#."),
        ((".NET",), "net profit of .net, “.net” or (.Net).", "net profit of .NET, “.NET” or (.NET)."),
        (("A*",), "a dog runs a* here", "a dog runs A* here"),
        (("Yahoo!",), "the yahoo! page, yahoo", "the Yahoo! page, yahoo"),
        (("Panic! at the Disco",), "panic! at the disco. panic at the disco", "Panic! at the Disco. panic at the disco"),
        (("Rock & Roll",), "rock & roll, rock — roll", "Rock & Roll, rock — roll"),
        (("Fr. Özdemir",), "fr özdemir, fr. ozdemir? (fr. Özdemir)", "Fr. Özdemir, Fr. Özdemir? (Fr. Özdemir)"),
        (("Fr. Özdemir",), "fr, özdemir fr.. özdemir “fr” özdemir", "fr, özdemir fr.. özdemir “fr” özdemir"),
        (("Fr. Özdemir", "St. Paul"), "see fr özdemir at st. paul.", "see Fr. Özdemir at St. Paul."),
        (("Acme Inc.",), "acme inc. acme inc, (acme inc) acme inc? acme inc", "Acme Inc. Acme Inc., (Acme Inc.) Acme Inc.? Acme Inc."),
        (("New York",), "new. york", "new. york"),
        (("Cafe\u0301",), "a cafe, a café.", "a Cafe\u0301, a Cafe\u0301."),
    ],
)
def test_marks_of_a_term(terms: tuple[str, ...], heard: str, written: str) -> None:
    assert spell(heard, terms) == written


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


def test_a_word_waits_for_the_marks_of_a_term() -> None:
    spelling = Spelling(("Fr. Özdemir", "C++ Builder", "Acme Inc."))
    heard = ("fr", "fr.", "(fr.", "fr,", "c++", "c", "c++,", "acme inc", "acme inc.", "acme inc,", "fr. özdemir")
    assert [spelling.open_words(text.split()) for text in heard] == [1, 1, 1, 0, 1, 0, 0, 2, 0, 0, 0]
    assert [Spelling(("Inc.",)).open_words([word]) for word in ("inc", "inc.", "inc,")] == [1, 0, 0]


@given(st.lists(st.sampled_from(["new", "york", "times", "New", "kubernetes.", "(ios", "pull", "request", "—", "fox,"]), max_size=12))
def test_spelling_keeps_the_count_and_settles(words: list[str]) -> None:
    spelling = Spelling(TERMS)
    once = spelling.spell(words)
    assert len(once) == len(words) and spelling.spell(once) == once
    assert [word.casefold() for word in once] == [word.casefold() for word in words], "of terms without accents only the case changes"


MARKED = ("C++", ".NET", "A*", "Fr. Özdemir", "Acme Inc.")


@given(st.sampled_from(MARKED), st.sampled_from(["", "(", "“", "¿", "[«"]), st.sampled_from(["", ",", "?", ")", "”,", "…", "):"]))
def test_punctuation_around_a_term_stays(term: str, before: str, behind: str) -> None:
    for heard in (term, term.replace(".", "") if term != ".NET" else term):
        assert spell(before + heard.lower() + behind, MARKED) == before + term + behind


@given(st.lists(st.sampled_from(["c++", "c", ".net", "net,", "(a*", "a", "fr", "fr.", "özdemir.", "acme", "inc", "inc."]), max_size=12))
def test_marks_are_never_lost_nor_doubled(words: list[str]) -> None:
    spelling = Spelling(MARKED)
    once = spelling.spell(words)
    assert spelling.spell(once) == once and not any(".." in word for word in once)
    for word, new in zip(words, once, strict=True):
        assert new.casefold() in (word, word + "."), "only the full stop of an abbreviation is new"


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


def test_a_full_stop_that_is_heard_late_is_not_doubled(tokenizer: Tokenizer) -> None:
    transcript = Transcript(tokenizer, 0, Spelling(("Fox Inc.",)))
    for text in ("fox inc", "fox inc", "fox inc.", "fox inc."):
        ids = tokenizer.encode(text)[len(transcript.committed_ids) :]
        transcript.update(ids, [0.0] * len(ids), len(ids), heard_ms=1000, word_is_over=True)
    transcript.flush()
    assert transcript.text == "Fox Inc."


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
