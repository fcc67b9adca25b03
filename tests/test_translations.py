"""``/v1/audio/translations`` and ``transcriptions``, asked by OpenAI's own client."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from .fakes import ScriptedBackend, scripted_translation
from .live import breath, make_engine, run, serving
from .test_files import TEXT, audio

openai = pytest.importorskip("openai", reason="needs the extra dev")
# OpenAI has deprecated its endpoint, and its client says so.
pytestmark = pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
FILE = ("talk.flac", audio())
SAID = f"{scripted_translation(TEXT, 'de')} {scripted_translation('five trains', 'de')}"


def ask(asked: Callable[[Any], Awaitable[Any]], backend: ScriptedBackend | None = None, **parts: Any) -> Any:
    async def test() -> Any:
        async with serving(make_engine(backend, **parts)) as live:
            client = openai.AsyncOpenAI(base_url=live.http + "/v1", api_key="none is needed", max_retries=0)
            try:
                return await asked(client)
            finally:
                await client.close()
                while live.engine.streams:
                    await breath()

    return run(test())


def translate(**wish: Any) -> Any:
    """``to_language`` is ours and goes where the client library puts what it does not know."""
    return ask(lambda client: client.audio.translations.create(file=FILE, model="whisper-1", **wish))


def test_a_file_is_translated() -> None:
    assert translate(extra_body={"to_language": "de"}).text == SAID


def test_verbose_json_tells_what_was_done_and_invents_nothing() -> None:
    said = translate(response_format="verbose_json", extra_body={"to_language": "de"})
    assert (said.task, said.language, said.text) == ("translate", "de", SAID) and said.duration == pytest.approx(6.4)
    assert [segment.text for segment in said.segments] == [scripted_translation(text, "de") for text in (TEXT, "five trains")]
    assert said.segments[0].end <= said.segments[1].start
    assert all("avg_logprob" not in segment.to_dict() for segment in said.segments)


def test_srt_vtt_and_text() -> None:
    assert translate(response_format="text", extra_body={"to_language": "de"}) == SAID + "\n"
    srt = translate(response_format="srt", extra_body={"to_language": "de"})
    assert re.match(r"1\n00:00:00,\d{3} --> 00:00:0\d,\d{3}\ndethe dequick", srt) and "defive detrains" in srt
    vtt = translate(response_format="vtt", extra_body={"to_language": "de"})
    assert re.match(r"WEBVTT\n\n00:00:00\.\d{3} --> 00:00:0\d\.\d{3}\ndethe dequick", vtt) and "defive detrains" in vtt


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ({}, "cannot translate 'en' into itself"),
        ({"extra_body": {"to_language": "xx"}}, "this model does not translate into 'xx'; it knows de, es, fr"),
        ({"extra_body": {"to_language": "de", "language": "fr"}}, "this model does not transcribe 'fr'; it knows en"),
        ({"extra_body": {"to_language": "de", "stream": "true"}}, "a translation comes whole"),
        ({"response_format": "docx"}, "'docx', expected one of json"),
    ],
)
def test_what_the_model_lacks_is_said_in_a_sentence(wish: dict[str, Any], says: str) -> None:
    with pytest.raises(openai.BadRequestError, match=re.escape(says)):
        translate(**wish)


def test_a_model_without_translation() -> None:
    backend = ScriptedBackend()
    backend.prompts.targets = ()
    with pytest.raises(openai.BadRequestError, match="does not translate into 'de'; it knows no translation") as caught:
        ask(lambda client: client.audio.translations.create(file=FILE, model="x", extra_body={"to_language": "de"}), backend)
    assert caught.value.code == "bad_task"


def test_a_transcription_is_not_translated_for_nothing() -> None:
    backend = ScriptedBackend()
    before = ask(lambda client: client.audio.transcriptions.create(file=FILE, model="x"), backend)
    forwards = len(backend.calls)
    again = ScriptedBackend()
    assert ask(lambda client: client.audio.transcriptions.create(file=FILE, model="x"), again, targets=("de",)).text == before.text
    assert len(again.calls) == forwards and before.text == f"{TEXT} five trains"


def test_the_client_library_streams_a_transcription() -> None:
    async def asked(client: Any) -> list[Any]:
        return [event async for event in await client.audio.transcriptions.create(file=FILE, model="x", stream=True)]

    events = ask(asked)
    assert [event.type for event in events[:-1]] == ["transcript.text.delta"] * (len(events) - 1) and len(events) > 3
    assert "".join(event.delta for event in events[:-1]) == events[-1].text == f"{TEXT} five trains"


def transcribe(**wish: Any) -> Any:
    return ask(lambda client: client.audio.transcriptions.create(file=FILE, model="whisper-1", **wish))


def test_every_form_of_a_transcription() -> None:
    """``json`` is the default, see above."""
    assert transcribe(response_format="text") == f"{TEXT} five trains\n"
    assert re.match(r"1\n00:00:00,\d{3} --> 00:00:0\d,\d{3}\nthe quick brown fox", transcribe(response_format="srt"))
    assert re.match(r"WEBVTT\n\n00:00:00\.\d{3} --> 00:00:0\d\.\d{3}\nthe quick brown fox", transcribe(response_format="vtt"))
    said = transcribe(response_format="verbose_json", timestamp_granularities=["word", "segment"])
    assert (said.task, said.language, said.text) == ("transcribe", "en", f"{TEXT} five trains") and said.duration == pytest.approx(6.4)
    assert [segment.text.strip() for segment in said.segments] == [TEXT, "five trains"]
    assert [word.word for word in said.words] == f"{TEXT} five trains".split()
    assert all(word.start <= word.end for word in said.words)


def test_words_to_be_written_so_and_languages_as_newer_models_are_told() -> None:
    assert transcribe(keywords=["Quick", "Fox"], languages=["en"], prompt="foxes").text == f"{TEXT} five trains".replace(
        "quick", "Quick"
    ).replace("fox", "Fox")
    with pytest.raises(openai.BadRequestError, match="languages are en, de, expected one"):
        transcribe(languages=["en", "de"])
    with pytest.raises(openai.BadRequestError, match="does not transcribe 'xx'"):
        transcribe(languages=["xx"])
