"""What people see."""

from __future__ import annotations

import io
import json
import re

import pytest
from dragoman.clients.render import CaptionRenderer, Form, JsonRenderer, LiveRenderer, RendererGroup, TextRenderer, make_renderer
from dragoman.stream.config import Options, parse_options
from dragoman.stream.events import (
    Clocks,
    Committed,
    Dropped,
    Ended,
    Event,
    Final,
    Formatted,
    Partial,
    SpeechEnded,
    SpeechStarted,
    Translation,
    TranslationDraft,
    Word,
)

CLOCKS = Clocks(2000, 1500, 1000)
WORDS = (Word("Good", 100, 400, -0.1), Word(" morning.", 400, 900, -0.1))
EVENTS: list[Event] = [
    SpeechStarted(CLOCKS, 0, 0),
    Partial(CLOCKS, 0, "", "Good moaning", ()),
    Partial(CLOCKS, 0, "Good", " morning", WORDS[:1]),
    SpeechEnded(CLOCKS, 0, 1000, "silence"),
    Final(CLOCKS, 0, " morning.", "Good morning.", WORDS, 0, 1000, "silence"),
    Translation(CLOCKS, 0, "de", "Guten Morgen.", 0, 1000),
    SpeechStarted(CLOCKS, 1, 1000),
    SpeechEnded(CLOCKS, 1, 1500, "silence"),
    Final(CLOCKS, 1, "", "", (), 1000, 1500, "silence"),
    Dropped(CLOCKS, 1500, 320),
    Ended(CLOCKS, 2000),
]


def shown(form: Form, **session: object) -> str:
    out = io.StringIO()
    renderer = make_renderer(form, out, Options.model_validate({"session": session}))
    for event in EVENTS:
        renderer.show(event)
    renderer.close()
    return out.getvalue()


def test_text_has_one_line_for_each_segment_with_text() -> None:
    assert shown("txt") == "Good morning.\n[de] Guten Morgen.\n"


def test_json_has_one_event_a_line() -> None:
    lines = [json.loads(line) for line in shown("json").splitlines()]
    assert [line["type"] for line in lines][:3] == ["speech_started", "partial", "partial"] and len(lines) == len(EVENTS)
    out = io.StringIO()
    JsonRenderer(out, "a.wav").show(EVENTS[0])
    assert json.loads(out.getvalue())["file"] == "a.wav"


def test_captions() -> None:
    assert shown("srt") == "1\n00:00:00,100 --> 00:00:01,100\nGood morning.\n\n"
    assert shown("vtt", targets=["de"]) == "WEBVTT\n\n00:00:00.100 --> 00:00:01.100\nGood morning.\nGuten Morgen.\n\n"


def test_captions_of_the_translation_alone_have_its_own_times() -> None:
    options = Options.model_validate({"session": {"targets": ["de"]}})
    out = io.StringIO()
    renderer = make_renderer("vtt", out, options, only_translation=True)
    for event in EVENTS:
        renderer.show(event)
    renderer.close()
    assert out.getvalue() == "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\nGuten Morgen.\n\n"


def test_captions_do_not_wait_for_a_translation_that_never_comes() -> None:
    """The model failed in the middle: what was said is in the file."""
    out = io.StringIO()
    renderer = make_renderer("srt", out, Options.model_validate({"session": {"targets": ["de", "fr"]}}))
    for event in EVENTS[:6]:
        renderer.show(event)
    renderer.close()
    assert out.getvalue().splitlines()[2:4] == ["Good morning.", "Guten Morgen."]


def test_translations_stand_in_the_order_asked_for() -> None:
    out = io.StringIO()
    renderer = make_renderer("srt", out, Options.model_validate({"session": {"targets": ["fr", "de"]}}))
    for event in (*EVENTS[:6], Translation(CLOCKS, 0, "fr", "Bonjour.", 0, 1000)):
        renderer.show(event)
    renderer.close()
    assert out.getvalue().splitlines()[2:5] == ["Good morning.", "Bonjour.", "Guten Morgen."]


def test_live_text_shows_the_tail_dim_and_keeps_finished_lines() -> None:
    out = io.StringIO()
    renderer = LiveRenderer(out, animate=True)
    for event in EVENTS:
        renderer.show(event)
    renderer.close()
    text = out.getvalue()
    assert "\x1b[2mGood moaning\x1b[0m" in text, "nothing committed yet: all dim"
    assert "Good\x1b[2m morning\x1b[0m" in text, "committed plain, tail dim"
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert "Good morning.\n" in plain and "[de] Guten Morgen." in plain
    assert "320 ms of audio lost" in plain


def drawn(events: list[Event]) -> list[str]:
    """What each event makes a live terminal show, colours and moves of the cursor included."""
    out, shown = io.StringIO(), list[str]()
    renderer = LiveRenderer(out, animate=True)
    for event in events:
        before = len(out.getvalue())
        renderer.show(event)
        shown.append(out.getvalue()[before:])
    renderer.close()
    return shown


def test_drafts_of_translations_are_dim_and_stay_until_the_translation_is_there() -> None:
    """Below the text, so that nothing committed moves; no blank between draft and translation (complaint: captions vanish)."""
    shown = drawn(
        [
            SpeechStarted(CLOCKS, 0, 0),
            Partial(CLOCKS, 0, "Good", " morning", WORDS[:1]),
            TranslationDraft(CLOCKS, 0, "de", "Gut"),
            TranslationDraft(CLOCKS, 0, "fr", "Bon"),
            TranslationDraft(CLOCKS, 0, "de", "Guten"),
            Partial(CLOCKS, 0, " morning", "", WORDS[1:]),
            Final(CLOCKS, 0, ".", "Good morning.", WORDS, 0, 1000, "silence"),
            Translation(CLOCKS, 0, "de", "Guten Morgen.", 0, 1000),
            Translation(CLOCKS, 0, "fr", "Bonjour.", 0, 1000),
            SpeechStarted(CLOCKS, 1, 1000),
        ]
    )
    de, fr = "\x1b[2m[de] Guten\x1b[0m", "\x1b[2m[fr] Bon\x1b[0m"
    assert "[de] Gut" in shown[2] and shown[2].index("Good") < shown[2].index("[de]"), "below what is being said"
    assert de in shown[4] and fr in shown[4] and "[de] Gut\x1b" not in shown[4], "the newer draft takes the place of the older one"
    assert "Good morning" in shown[5] and de in shown[5], "new words leave the drafts where they are"
    assert shown[6].index("Good morning.") < shown[6].rindex(de) < shown[6].rindex(fr), "the finished line stands above them"
    assert "Guten Morgen." in shown[7] and de not in shown[7][shown[7].index("Guten Morgen.") :] and fr in shown[7]
    assert "Bonjour." in shown[8] and "[fr] Bon\x1b" not in shown[8][shown[8].index("Bonjour.") :]


@pytest.fixture
def low_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five lines of twenty columns."""
    monkeypatch.setenv("LINES", "5")
    monkeypatch.setenv("COLUMNS", "20")


def lines_of(text: str) -> list[str]:
    return [line.strip() for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).split("\n")]


@pytest.mark.usefixtures("low_terminal")
def test_a_low_terminal_shows_the_newest_words() -> None:
    words = [f"word{number}" for number in range(42)]
    committed, tail = " ".join(words[:37]), " " + " ".join(words[37:])
    text, draft, finished = drawn(
        [
            Partial(CLOCKS, 0, committed, tail, ()),
            TranslationDraft(CLOCKS, 0, "de", "Wort " * 7),
            Final(CLOCKS, 0, tail, committed + tail, (), 0, 1000, "silence"),
        ]
    )
    assert lines_of(text) == [" ".join(words[at : at + 3]) for at in range(27, 42, 3)]
    assert "word36\x1b[2m word37 word38\x1b[0m\n\x1b[2mword39 word40 word41\x1b[0m" in text, "committed plain, tail dim"
    assert lines_of(draft) == [*lines_of(text)[2:], "[de] Wort Wort Wort", "Wort Wort Wort Wort"]
    assert "word0 word1" in finished, "the finished line is there as a whole"


@pytest.mark.usefixtures("low_terminal")
def test_a_low_terminal_counts_wide_characters_twice() -> None:
    said = "".join(chr(0x4E00 + place) for place in range(75))
    (text,) = drawn([Partial(CLOCKS, 0, "a" + said, "", ())])
    assert lines_of(text) == [said[at : at + 10] for at in range(29, 79, 10)], "nine in the first line, behind the letter, then ten in each"


def test_drafts_of_what_turned_out_to_be_nothing_go() -> None:
    shown = drawn([TranslationDraft(CLOCKS, 0, "de", "Gut"), Final(CLOCKS, 0, "", "", (), 0, 1000, "silence"), Dropped(CLOCKS, 1000, 320)])
    assert "Gut" in shown[0] and "Gut" not in shown[1] + shown[2]


@pytest.mark.parametrize("form", ["txt", "srt", "vtt"])
def test_drafts_are_in_no_file(form: Form) -> None:
    out = io.StringIO()
    renderer = make_renderer(form, out, Options.model_validate({"session": {"targets": ["de"]}}))
    for event in (TranslationDraft(CLOCKS, 0, "de", "Gut"), *EVENTS):
        renderer.show(event)
    renderer.close()
    assert "Gut" in out.getvalue() and "Gut\n" not in out.getvalue()


def test_live_text_is_never_read_as_markup() -> None:
    out = io.StringIO()
    renderer = LiveRenderer(out, animate=False)
    renderer.show(Final(CLOCKS, 0, "", "[red]no markup[/red] :smile:", (), 0, 1, "silence"))
    renderer.close()
    assert "[red]no markup[/red] :smile:" in out.getvalue()


@pytest.mark.parametrize("kind", [TextRenderer, lambda out: CaptionRenderer(out, "srt")])
def test_lines_are_flushed_when_they_are_final(kind: type[TextRenderer]) -> None:
    class Pipe(io.StringIO):
        flushed = ""

        def flush(self) -> None:
            self.flushed = self.getvalue()

    out = Pipe()
    renderer = kind(out)
    for event in [*EVENTS, *EVENTS[:5]]:
        renderer.show(event)
    assert "Good morning." in out.flushed


def test_formatted_text_stands_in_place_of_the_plain_text() -> None:
    out = io.StringIO()
    renderer = make_renderer("txt", out, parse_options({"session": {"style": "plain"}}))
    renderer.show(Final(CLOCKS, 0, " we met", " we met", (), 0, 900, "silence"))
    renderer.show(Formatted(CLOCKS, 0, "We met.", 0, 900))
    renderer.close()
    assert out.getvalue() == "We met.\n"


@pytest.mark.parametrize(
    "after",
    [
        [Formatted(CLOCKS, 0, "", 0, 900)],  # a guard cut it
        [Translation(CLOCKS, 0, "de", "hallo", 0, 900)],
        [SpeechStarted(CLOCKS, 1, 1000)],
        [Final(CLOCKS, 1, "", "", (), 1000, 1500, "silence")],
        [Committed(CLOCKS, 900)],
        [Ended(CLOCKS, 2000)],
        [],  # the model failed
    ],
)
def test_the_plain_text_stays_where_there_is_no_formatted_text(after: list[Event]) -> None:
    out = io.StringIO()
    renderer = TextRenderer(out, formatted=True)
    for event in (Final(CLOCKS, 0, "", " hello there", (), 0, 900, "silence"), *after):
        renderer.show(event)
    if after:
        assert out.getvalue().startswith("hello there\n"), "at once"
    renderer.close()
    assert out.getvalue().splitlines() == ["hello there", *(["[de] hallo"] if "hallo" in str(after) else [])]


def test_lost_audio_does_not_take_the_place_of_formatted_text() -> None:
    out = io.StringIO()
    renderer = TextRenderer(out, formatted=True)
    for event in (
        Final(CLOCKS, 0, "", " hello there", (), 0, 900, "silence"),
        Dropped(CLOCKS, 900, 320),
        Formatted(CLOCKS, 0, "Hello there.", 0, 900),
        Final(CLOCKS, 1, "", " and you", (), 1000, 1500, "silence"),
        Formatted(CLOCKS, 1, "And you?", 1000, 1500),
    ):
        renderer.show(event)
    renderer.close()
    assert out.getvalue() == "Hello there.\nAnd you?\n"


@pytest.mark.parametrize("formatted", [False, True])
def test_only_translations_means_no_other_text(formatted: bool) -> None:
    out = io.StringIO()
    renderer = TextRenderer(out, with_source=False, formatted=formatted)
    for event in (*EVENTS[:5], Formatted(CLOCKS, 0, "Good morning!", 0, 1000), *EVENTS[5:]):
        renderer.show(event)
    renderer.close()
    assert out.getvalue() == "[de] Guten Morgen.\n"


def test_a_group_closes_every_renderer_whatever_one_of_them_does() -> None:
    class Broken(CaptionRenderer):
        def close(self) -> None:
            raise OSError("the disk is full")

    outs = [io.StringIO() for _ in range(3)]
    group = RendererGroup([kind(out, "srt") for kind, out in zip((CaptionRenderer, Broken, CaptionRenderer), outs, strict=True)])
    for event in EVENTS:
        group.show(event)
    with pytest.raises(OSError, match="full"):
        group.close()
    assert "Good morning." in outs[0].getvalue() and outs[0].getvalue() == outs[2].getvalue()
