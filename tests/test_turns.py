"""Further turns of a session with instructions: formatted text, translations of unfinished segments."""

from __future__ import annotations

import numpy as np
import pytest
from dragoman.model.errors import TaskError
from dragoman.stream.events import Event, Final, Formatted, Partial, Translation, TranslationDraft

from .fakes import scripted_translation, speech
from .listeners import check_promises, session, transcribe
from .test_session import GemmaScripted

TALK = np.concatenate([speech("the quick brown fox jumps over", silence_s=1.0), speech("nobody knew", silence_s=1.0)])


def without_drafts(events: list[Event]) -> list[Event]:
    return [event for event in events if not isinstance(event, TranslationDraft)]


def test_formatted_text_follows_its_final() -> None:
    backend = GemmaScripted()
    events = transcribe(session(backend, style="plain", targets=("de",), guards={"tokens_per_second": 100}), TALK)
    check_promises(events)
    kinds = [type(event) for event in events if isinstance(event, Final | Formatted | Translation)]
    assert kinds == [Final, Formatted, Translation] * 2
    assert [event.text for event in events if isinstance(event, Formatted)] == ["THE QUICK BROWN FOX JUMPS OVER", "NOBODY KNEW"]


def test_a_model_without_instructions_refuses_style_and_terms_and_says_what_it_does() -> None:
    for wish in ({"style": "plain"}, {"terms": ("de:fox=Fuchs",)}):
        with pytest.raises(TaskError, match="it transcribes en and translates into de, es, fr"):
            session(**wish)


@pytest.mark.parametrize("block_ms", [320, 640])
def test_drafts_of_translations_change_nothing_else(block_ms: int) -> None:
    wish = {"targets": ("de", "fr"), "block_ms": block_ms}
    stream = session(translation="draft", **wish)
    events = transcribe(stream, TALK, cuts=range(0, len(TALK), 1600))
    check_promises(without_drafts(events))
    assert without_drafts(events) == transcribe(session(**wish), TALK)
    assert events == transcribe(session(translation="draft", **wish), TALK), "drafts do not depend on the cutting"


def test_a_draft_is_the_translation_of_what_is_committed() -> None:
    stream = session(translation="draft", targets=("de",))
    said, drafts = "", 0
    for event in transcribe(stream, TALK):
        if isinstance(event, Partial):
            said += event.delta
        elif isinstance(event, Final):
            said = ""
        elif isinstance(event, TranslationDraft):
            assert event.text == scripted_translation(said, "de")
            drafts += 1
    assert drafts >= 3
    counts = stream.stats.drafts["translation", "hypothesis"]
    assert 0 < counts.accepted_tokens <= counts.offered_tokens, "the last draft is offered to the next"
