"""The page in a real Chromium, against the real server on a scripted model: what is said appears, stays, and can be saved."""

from __future__ import annotations

import io
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import soundfile
from dragoman.clients.render import CaptionRenderer, TextRenderer
from dragoman.clients.retelling import Retelling
from dragoman.model.backend import Floats
from dragoman.stream.captions import CueTimes, cut_cues, spread, srt, vtt
from dragoman.stream.events import Event, to_mapping
from dragoman.stream.protocol import read_client

from .fakes import scripted_translation, speech
from .flaky import hearing
from .listeners import finals, session, silence, transcribe

pytest.importorskip("selenium", reason="needs the [dev] extra")

from selenium.webdriver.common.keys import Keys  # noqa: E402
from websockets.sync.client import connect  # noqa: E402

from .web import PAGES, Page, Service, chromium, contrast, random_segments, running_page  # noqa: E402

pytestmark = [pytest.mark.browser, pytest.mark.skipif(chromium() is None, reason="needs Debian's chromium and chromium-driver")]

PROTOCOL = PAGES.parents[1] / "docs" / "protocol.md"
FIRST, SECOND = "the quick brown fox jumps over a lazy dog.", "nobody knew why it was so cold here"


def spoken() -> Floats:
    """Two segments."""
    return np.concatenate([silence(1.0), speech(FIRST, silence_s=1.2), speech(SECOND, silence_s=1.2)])


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "spoken.wav"
    soundfile.write(path, spoken(), 16_000, subtype="PCM_16")
    return path


@pytest.fixture(scope="module")
def page(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with running_page(clip, tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture
def service() -> Iterator[Service]:
    running = Service({"server": {"max_sessions": 1}})
    running.start()
    yield running
    running.stop()


def complaints(page: Page) -> list[str]:
    """What the browser has found wrong, a content security policy that is broken included."""
    return [entry["message"] for entry in page.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


# Every change of the captions: committed text and place of each segment, as a reader sees them; which one it is.
WATCH = """
window.seen = [];
const numbers = new Map();
const numberOf = (row) => numbers.get(row) ?? numbers.set(row, numbers.size).get(row);
const look = () => window.seen.push([...document.querySelectorAll('.segment')].map((row) => ({
  number: numberOf(row), committed: row.querySelector('.committed').textContent, tail: row.querySelector('.tail').textContent,
  top: row.offsetTop, height: row.offsetHeight, live: row.nextElementSibling === null,
})));
new MutationObserver(look).observe(document.getElementById('captions'), {childList: true, subtree: true, characterData: true});
"""


def test_words_from_the_microphone(page: Page, tmp_path: Path) -> None:
    service = Service({"server": {"max_sessions": 1, "record": "audio", "record_dir": tmp_path / "kept"}})
    service.start()
    try:
        page.open(service.port)
        page.ask_for("de")
        page.driver.execute_script(WATCH)
        page.press("#start")
        page.until_state("Listening")
        stream = next(iter(service.engine.streams.values()))
        true_rate = page.driver.execute_script("return new AudioContext().sampleRate")
        assert stream.inbox.sample_rate == true_rate
        page.until(lambda: len(page.texts(".translation")) == 2 and "…" not in page.texts(".translation"))
        committed, translations = page.texts(".committed"), page.texts(".translation")
        assert translations == [scripted_translation(text, "de") for text in committed]
        assert page.texts("#heads span") == ["English", "German"]
        page.press("#start")
        page.until_state("Finished")
        check_steadiness(page.driver.execute_script("return window.seen"))
        assert float(page.text("#lag b").removesuffix(" s")) == 0.0
        received, processed, said_until = page.texts("#clocks b")
        assert received == processed == said_until != "0.0 s"
        assert complaints(page) == []
    finally:
        service.stop()  # and the recording is whole
    assert committed == words_received(tmp_path / "kept")[:2]
    assert [without_holes(text) for text in committed] == [FIRST, SECOND]


def without_holes(text: str) -> str:
    """Where the machine is busy Chromium's fake microphone itself has holes, and a word with a hole in it is two."""
    return re.sub(r"\b(\w+) \1\b", r"\1", text)


def words_received(folder: Path) -> list[str]:
    """What a session hears, at one go, in the only recording there is: each segment."""
    (path,) = folder.glob("*.wav")
    samples, rate = soundfile.read(path, dtype="float32")
    return finals(transcribe(session(rate=rate), samples))


def check_steadiness(seen: list[list[dict[str, Any]]]) -> None:
    """No segment goes away; committed text only grows; a segment that is live keeps its place and gets no lower; tentative text occurred
    at all."""
    assert any(row["tail"] for rows in seen for row in rows)
    for before, after in zip(seen, seen[1:], strict=False):
        assert [row["number"] for row in after[: len(before)]] == [row["number"] for row in before]
        for old, new in zip(before, after, strict=False):  # new ones are at the end
            assert new["committed"].startswith(old["committed"])
            if old["live"] and new["live"]:
                assert new["top"] == old["top"] and new["height"] >= old["height"]


def test_a_segment_that_goes_away_is_seen() -> None:
    row = {"number": 0, "committed": "", "tail": "the", "top": 0, "height": 20, "live": True}
    check_steadiness([[row], [row, {**row, "number": 1}]])
    for after in ([], [{**row, "number": 1}]):
        with pytest.raises(AssertionError):
            check_steadiness([[row], after])


def test_captions_can_stand_still(page: Page, service: Service, clip: Path) -> None:
    """No tail: a word appears when it is committed, and stays."""
    page.open(service.port)
    page.press("summary")
    page.press("#block option[value=steady]")
    page.driver.execute_script(WATCH)
    page.choose_file(clip)
    page.until_state("Finished")
    seen = page.driver.execute_script("return window.seen")
    texts = [row["committed"] for rows in seen for row in rows]
    assert not any(row["tail"] for rows in seen for row in rows) and len(set(texts)) > 3
    assert page.texts(".committed") == [FIRST, SECOND]


SHOW = """
const [events, done] = arguments;
Promise.all([import('/view.js'), import('/transcript.js')]).then(([{CaptionView}, {Transcript}]) => {
  const view = new CaptionView(document), transcript = new Transcript();
  view.setLanguages('en', ['de']);
  done(events.map((event) => {
    view.show(transcript.apply(event));
    return [...document.querySelectorAll('.segment')].map((row) =>
      [...row.querySelectorAll('.committed, .tail, .translation')].map((part) => part.textContent));
  }));
});
"""


def test_a_segment_stays_while_it_is_live_and_a_draft_until_there_is_a_better_one(page: Page, service: Service) -> None:
    page.open(service.port)
    clocks = {"received_ms": 0, "processed_ms": 0, "committed_ms": 0}

    def event(kind: str, segment: int = 0, **parts: Any) -> dict[str, Any]:
        return {"type": kind, "clocks": clocks, "segment": segment, "words": [], "start_ms": 0, "end_ms": 0, **parts}

    told = [
        (event("speech_started", at_ms=0), []),
        (event("partial", delta="", tail=" the"), [["", " the"]]),
        (event("partial", delta="", tail=""), [["", ""]]),
        (event("partial", delta=" we", tail=" met"), [[" we", " met"]]),
        (event("translation_draft", language="de", text=""), [[" we", " met", "…"]]),
        (event("translation_draft", language="de", text="wir"), [[" we", " met", "wir"]]),
        (event("translation_draft", language="de", text=""), [[" we", " met", "wir"]]),
        (event("partial", 1, delta="", tail=" fox"), [[" we", " met", "wir"], ["", " fox"]]),
        (event("final", 1, text=""), [[" we", " met", "wir"]]),  # nothing was said
        (event("final", text=" we met"), [[" we met", "", "wir"]]),
        (event("translation", language="de", text="wir trafen"), [[" we met", "", "wir trafen"]]),
    ]
    assert page.driver.execute_async_script(SHOW, [one for one, _ in told]) == [rows for _, rows in told]


DRAFTS = """
window.drafts = [];
new MutationObserver(() => window.drafts.push([...document.querySelectorAll('.translation')].map((one) => {
  const draft = one.querySelector('.pending');
  return {language: one.lang, draft: draft?.textContent ?? null, text: draft ? '' : one.textContent,
          hidden: draft?.getAttribute('aria-hidden') === 'true', grey: draft && getComputedStyle(draft).color};
}))).observe(document.getElementById('captions'), {childList: true, subtree: true, characterData: true});
"""


@pytest.mark.parametrize("width", [1280, 640])
def test_drafts_of_translations_are_grey_and_give_way_to_the_translation(page: Page, service: Service, clip: Path, width: int) -> None:
    """Side by side, and on a narrow screen below the text."""
    page.resize(width, 800)
    try:
        page.open(service.port)
        page.ask_for("de", "fr")
        page.press("summary")
        page.press("#translation option[value=draft]")
        page.driver.execute_script(WATCH + DRAFTS)
        page.choose_file(clip)
        page.until_state("Finished")
        assert page.texts(".translation") == [scripted_translation(text, code) for text in (FIRST, SECOND) for code in ("de", "fr")]
        check_steadiness(page.driver.execute_script("return window.seen"))
        seen = page.driver.execute_script("return window.drafts")
        tentative = page.driver.execute_script("return getComputedStyle(document.querySelector('.tail')).color")
    finally:
        page.resize(1280, 800)
    drafts = {one["draft"] for rows in seen for one in rows if one["draft"] not in (None, "…")}
    assert len(drafts) >= 4
    whole = [scripted_translation(text, code) for text in (FIRST, SECOND) for code in ("de", "fr")]
    assert all(any(text.startswith(draft.rstrip(".")) for text in whole) for draft in drafts), "translations of committed words"
    assert all(one["hidden"] and one["grey"] == tentative for rows in seen for one in rows if one["draft"] is not None)
    for before, after in zip(seen, seen[1:], strict=False):
        assert len(after) >= len(before)
        for old, new in zip(before, after, strict=False):
            if old["text"]:
                assert new["text"] == old["text"], "a translation never changes"
            elif old["draft"] not in (None, "…"):
                assert new["text"] or new["draft"] != "…", "a draft stays until there is something better"


def test_only_committed_text_is_read_aloud(page: Page, service: Service, clip: Path) -> None:
    page.open(service.port)
    page.choose_file(clip)
    page.until_state("Finished")
    log = page.find("#captions")
    assert log is not None and log.get_attribute("role") == "log" and log.get_attribute("aria-live") == "polite"
    tree = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    read = "".join(node["name"]["value"] for node in tree if not node.get("ignored") and node["role"]["value"] == "StaticText")
    assert FIRST in read and SECOND in read
    assert {node.get_attribute("aria-hidden") for node in page.driver.find_elements("css selector", ".tail, .pending")} == {"true"}
    unnamed = [
        node["role"]["value"]
        for node in tree
        if not node.get("ignored")
        and node["role"]["value"] in ("button", "checkbox", "radio", "combobox", "textbox", "slider")
        and not node.get("name", {}).get("value")
    ]
    assert unnamed == []


def expected_events(samples: Floats, *targets: str) -> list[Event]:
    """What a session makes of the samples as the page sends them: 16-bit integers."""
    return transcribe(session(targets=targets), (np.round(samples * 32767) / 32768).astype(np.float32))


def rendered(events: list[Event], form: Literal["srt", "vtt"] | None, language: str | None = None) -> str:
    out = io.StringIO()
    renderer = TextRenderer(out) if form is None else CaptionRenderer(out, form, language)
    for event in events:
        renderer.show(event)
    renderer.close()
    return out.getvalue()


def test_downloads_equal_the_commands_files(page: Page, service: Service, clip: Path, tmp_path: Path) -> None:
    page.driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    page.open(service.port)
    page.ask_for("de")
    page.choose_file(clip)
    page.until_state("Finished")
    events = expected_events(spoken(), "de")
    assert page.texts(".committed") == [text.strip() for text in finals(events)] == [FIRST, SECOND]

    def saved(form: str, name: str) -> str:
        page.press(f'#downloads [data-form="{form}"]')
        page.until(lambda: (tmp_path / name).exists())
        return (tmp_path / name).read_bytes().decode()

    assert saved("srt", "captions.srt") == rendered(events, "srt")
    assert saved("vtt", "captions.vtt") == rendered(events, "vtt")
    assert saved("txt", "captions.txt") == rendered(events, None)
    known = json.loads(saved("json", "captions.json"))
    assert [segment["text"].strip() for segment in known["segments"]] == [FIRST, SECOND]
    assert known["segments"][0]["translations"] == {"de": scripted_translation(FIRST, "de")}
    page.press("#text-of option[value=de]")
    assert saved("srt", "captions.de.srt") == rendered(events, "srt", "de")


IN_PAGE = """
const [segments, done] = arguments;
import('/captions.js').then(({toSrt, toVtt, spread}) =>
  done([toSrt(segments), toVtt(segments), segments.map((one) => spread(one.text, 7, 9876))]));
"""


@pytest.mark.parametrize("seed", range(8))
def test_cues_are_cut_as_by_the_command(page: Page, service: Service, seed: int) -> None:
    page.open(service.port)
    segments = random_segments(seed, 12)
    sent = [
        {"words": [{"text": w.text, "start_ms": w.start_ms, "end_ms": w.end_ms} for w in words], "text": "".join(w.text for w in words)}
        for words in segments
    ]
    as_srt, as_vtt, shared = page.driver.execute_async_script(IN_PAGE, sent)
    times = CueTimes()
    cues = [cue for words in segments for cue in times.push(cut_cues(words))] + list(times.close())
    assert as_srt == "".join(srt(number, cue) for number, cue in enumerate(cues, 1))
    assert as_vtt == "WEBVTT\n\n" + "".join(vtt(cue) for cue in cues)
    wanted = [[(w.text, w.start_ms, w.end_ms) for w in spread("".join(word.text for word in words), 7, 9876)] for words in segments]
    assert [[(w["text"], w["start_ms"], w["end_ms"]) for w in words] for words in shared] == wanted


def test_what_media_recorder_makes_is_heard(page: Page, service: Service) -> None:
    """The example of docs/protocol.md, as it stands there, with Chromium's own recorder."""
    (example,) = re.findall(r"<!-- example: browser -->\n```js\n(.*?)```", PROTOCOL.read_text(encoding="utf-8"), re.DOTALL)
    as_it_is = "audio: { autoGainControl: false, echoCancellation: false, noiseSuppression: false }"
    for old, new in (
        ('"ws://localhost:8000/v1/stream"', "`ws://${location.host}/v1/stream`"),
        ("audio: true", as_it_is),
        ("console.log(data)", "told.push(data)"),
    ):
        assert old in example
        example = example.replace(old, new)
    page.open(service.port)
    script = f"const told = window.told = []; (async () => {{ {example}; window.recorder = recorder }})()"
    page.driver.execute_script(script)

    def told(kind: str) -> list[dict[str, Any]]:
        messages = [json.loads(text) for text in page.driver.execute_script("return window.told")]
        return [message for message in messages if message["type"] == kind]

    page.until(lambda: len([message for message in told("final") if message["text"]]) == 2)
    page.driver.execute_script("window.recorder.stop()")
    page.until(lambda: told("ended"))
    assert [message["text"].strip() for message in told("final") if message["text"]] == [FIRST, SECOND]
    assert told("progress")[-1]["received_bytes"] > 10_000 and not told("dropped")


def test_a_lost_connection_costs_no_word(page: Page, service: Service, clip: Path) -> None:
    service.cut_after_bytes = [60_000, 90_000]  # of 268 kB of audio
    page.open(service.cut_port)
    page.choose_file(clip)
    page.until_state("Finished")
    assert page.texts(".committed") == [FIRST, SECOND]
    assert service.cuts == 2 and service.engine.opened_count == 1
    assert page.find("#error") is None


# The first connection falls silent after a few messages, both ways and without a close; then the page's clock is put forward.
FALL_SILENT = """
const Real = WebSocket, now = performance.now.bind(performance);
let later_ms = 0;
performance.now = () => now() + later_ms;
window.opened = 0;
window.WebSocket = class extends Real {
  constructor(...given) { super(...given); this.number = ++window.opened; this.heard = 0; }
  get silent() { return this.number === 1 && this.heard > 4; }
  send(data) { if (!this.silent) super.send(data); }
  set onmessage(take) {
    super.onmessage = take && ((event) => {
      this.heard++;
      if (this.silent) later_ms = 25000; else take(event);
    });
  }
};
"""


def test_a_network_that_dies_without_a_word_costs_none(page: Page, service: Service, clip: Path) -> None:
    page.open(service.port)
    page.driver.execute_script(FALL_SILENT)
    page.choose_file(clip)
    page.until_state("Finished")
    assert page.texts(".committed") == [FIRST, SECOND]
    assert page.driver.execute_script("return window.opened") == 2 and service.engine.opened_count == 1
    assert page.find("#error") is None


LONG_GAP = """
const [samples, done] = arguments;
import('/connection.js').then(({Stream}) => {
  const told = [];
  window.WebSocket = class {
    static OPEN = 1;
    static CONNECTING = 0;
    readyState = 1;
    bufferedAmount = 0;
    send(data) { told.push(data); }
    close() {}
  };
  const stream = new Stream('ws://nobody', {sample_rate: 48000}, {});
  for (let sent = 0; sent < samples; sent += 480000) stream.send(new Int16Array(480000));
  stream.begin({session: 'one', targets: [], received_samples: 0, limits: {resume_s: 60}});
  stream.close(null);
  done(told.filter((data) => typeof data === 'string').map((data) => JSON.parse(data)).filter(({type}) => type === 'gap'));
});
"""


def test_audio_of_minutes_that_was_forgotten_is_told_in_messages_that_are_taken(page: Page, service: Service) -> None:
    page.open(service.port)
    gaps = page.driver.execute_async_script(LONG_GAP, 48_000 * 700)
    assert [read_client(json.dumps(gap)).samples for gap in gaps] == [11_520_000, 11_520_000, 48_000 * 580 - 2 * 11_520_000]  # type: ignore[union-attr]


@pytest.mark.parametrize("cuts", [[20_000], [60_000, 40_000], [150_000], [220_000, 60_000]])
def test_servers_that_are_started_again_cost_no_word(page: Page, service: Service, clip: Path, cuts: list[int]) -> None:
    """Behind the same address another server answers, which knows nothing of the session."""
    others = [Service({}) for _ in cuts]
    for other in others:
        other.start()
    try:
        # A connection that asks for the lost session comes before each that begins anew.
        service.cut_after_bytes = [after_bytes for cut in cuts for after_bytes in (cut, 1 << 30)]
        service.then_to = [other.port for other in others]
        page.open(service.cut_port)
        page.ask_for("de")
        page.driver.execute_script(WATCH)
        page.choose_file(clip)
        page.until_state("Finished")
        assert [one.engine.opened_count for one in (service, *others)] == [1] * (1 + len(cuts))
    finally:
        for other in others:
            other.stop()
    assert page.texts(".committed") == [FIRST, SECOND]
    assert page.texts(".translation") == [scripted_translation(text, "de") for text in (FIRST, SECOND)]
    check_steadiness(page.driver.execute_script("return window.seen"))
    assert page.find("#error") is None and page.texts(".note") == []


def test_the_microphone_outlasts_a_session_that_the_server_ends(page: Page, service: Service) -> None:
    page.open(service.port)
    page.driver.execute_script(WATCH)
    page.press("#start")
    page.until(lambda: FIRST in map(without_holes, page.texts(".committed")))
    service.end_sessions()
    page.until(lambda: without_holes(page.texts(".committed")[-1]).endswith("cold here"))
    page.until_state("Listening")
    assert without_holes(page.texts(".committed")[0]) == FIRST and page.texts(".note") == [] and page.find("#error") is None
    page.press("#start")
    page.until_state("Finished")
    check_steadiness(page.driver.execute_script("return window.seen"))
    assert service.engine.opened_count == 2


# A server that a script plays, and a clock that is put forward to whatever is waited for. 1000 samples are a second.
PLAYED = """
const [live, steps, done] = arguments;
import('/connection.js').then(async ({Stream}) => {
  const told = [], sockets = [];
  let ahead_ms = 0, status = 200;
  const {setTimeout, fetch, WebSocket} = window;
  const soon = setTimeout.bind(window), now = performance.now.bind(performance);
  performance.now = () => now() + ahead_ms;
  window.setTimeout = (call, wait_ms) => { told.push(['pause', wait_ms / 1000]); ahead_ms += wait_ms; return soon(call, 0); };
  window.fetch = () => Promise.resolve({status});
  window.WebSocket = class {
    static OPEN = 1;
    static CONNECTING = 0;
    readyState = 1;
    bufferedAmount = 0;
    constructor() { sockets.push(this); }
    send(data) { told.push(typeof data === 'string' ? JSON.parse(data) : ['audio', data.length / 1000]); }
    close() {}
  };
  const stream = new Stream('ws://nobody/v1/stream', {sample_rate: 1000}, {
    event: ({type, duration_ms}) => told.push([type, duration_ms]), closed: (failure) => told.push(['closed', failure?.code ?? null]),
  }, live);
  const play = {
    open: () => sockets.at(-1).onopen(),
    say: (message) => sockets.at(-1).onmessage({data: JSON.stringify(message)}),
    close: () => sockets.at(-1).onclose({code: 1006, reason: ''}),
    speak: (seconds) => { while (seconds-- > 0) stream.send(new Int16Array(1000)); },
    lose: (seconds) => stream.lose(1000 * seconds),
    lockOut: () => { status = 401; },
    finish: () => stream.finish(),
  };
  for (const [name, ...given] of steps) {
    play[name](...given);
    for (let turn = 0; turn < 3; turn++) await new Promise((resolve) => soon(resolve, 0));
  }
  stream.close(null);
  Object.assign(window, {setTimeout, fetch, WebSocket});
  delete performance.now;
  done(told);
});
"""
READY = {"type": "ready", "session": "one", "targets": [], "received_samples": 0, "limits": {"resume_s": 60}}
BEGUN = [["open"], ["say", READY], ["speak", 1]]
START = {"type": "start", "version": 1, "channels": 1, "encoding": "pcm_s16le", "sample_rate": 1000}
RESUME = {"type": "resume", "version": 1, "session": "one", "after_seq": 0}
LOST = {"type": "error", "code": "unknown_session", "message": ""}


def played(page: Page, live: bool, *steps: list[Any]) -> list[Any]:
    """What the stream said and told after it had begun."""
    told = page.driver.execute_async_script(PLAYED, live, [*BEGUN, *steps])
    assert told[:2] == [START, ["audio", 1]]
    return told[2:]


def ended(at_ms: int) -> dict[str, Any]:
    clocks = {"received_ms": at_ms, "processed_ms": at_ms, "committed_ms": at_ms}
    return {"type": "ended", "seq": 1, "clocks": clocks, "audio_ms": at_ms, "drafts": []}


def test_a_live_stream_outlasts_its_sessions_and_any_outage(page: Page, service: Service) -> None:
    page.open(service.port)
    away = [["close"]] * 40
    growing = [["pause", seconds] for seconds in (0.25, 0.5, 1, 2, 4, *[8] * 35)]
    # A server that stays away; the session is lost in the end, and of what was said two minutes are kept.
    back = [["open"], ["say", LOST], ["close"], ["open"], ["say", READY]]
    told = played(page, True, *away, ["speak", 300], *back)
    assert told == [*growing, RESUME, ["dropped", 181_000], START, *[["audio", 1]] * 120, ["closed", None]]
    assert played(page, False, *away, ["speak", 300])[-2:] == [["pause", 8], ["closed", "lost"]]
    # A session that the server ends: 0.6 s were heard. The server still says that it stops, then another one is there.
    stops = {"type": "error", "code": "draining", "message": "", "retry_after_s": 30}
    told = played(page, True, ["say", ended(600)], ["open"], ["say", stops], ["close"], ["open"], ["say", READY], ["speak", 1])
    assert told == [["pause", 0.25], START, ["pause", 0.5], START, ["audio", 0.4], ["audio", 1], ["closed", None]]
    assert played(page, False, ["say", ended(600)]) == [["ended", None], ["closed", None]]
    finish = {"type": "finish"}
    assert played(page, True, ["finish"], ["say", ended(1000)]) == [finish, ["ended", None], ["closed", None]]
    # Nobody speaks any more: a server that stays away is given up after its own time.
    assert played(page, True, ["finish"], *away)[-1] == ["closed", "lost"]


def test_audio_that_kills_three_servers_is_left_out_of_a_live_stream(page: Page, service: Service) -> None:
    page.open(service.port)
    again = [["close"], ["open"], ["say", LOST], ["close"], ["open"], ["say", READY]]
    told = played(page, True, *again * 4, ["speak", 2])
    tried = [["pause", 0.25], RESUME, START, ["audio", 1]]
    assert told == [*tried * 3, ["pause", 0.25], RESUME, ["dropped", 1000], START, ["audio", 1], ["audio", 1], ["closed", None]]
    assert played(page, False, *again * 3, *again[:4])[-1] == ["closed", "unknown_session"]


def test_what_no_patience_cures_ends_a_live_stream_at_once(page: Page, service: Service) -> None:
    page.open(service.port)
    for code in ("bad_task", "bad_message", "replaced", "internal"):
        failure = {"type": "error", "code": code, "message": ""}
        assert played(page, True, ["close"], ["open"], ["say", failure], ["close"]) == [["pause", 0.25], RESUME, ["closed", code]]
    # A handshake that is refused for want of a key looks to a page like a server that is not there.
    assert played(page, True, ["close"], ["lockOut"], ["close"])[-1] == ["closed", "unauthorized"]


def test_audio_that_was_lost_in_the_browser_is_told_in_its_place(page: Page, service: Service) -> None:
    page.open(service.port)
    gap = {"type": "gap", "samples": 5000}
    told = [gap, ["audio", 1]]
    assert played(page, True, ["lose", 5], ["speak", 1]) == [*told, ["closed", None]]
    again = [["close"], ["open"], ["say", {**READY, "received_samples": 1000}]]
    assert played(page, True, ["lose", 5], ["speak", 1], *again) == [*told, ["pause", 0.25], RESUME, *told, ["closed", None]]


# What the page has opened, and a browser that suspends its sound.
OPENED = """
window.tracks = [];
const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
navigator.mediaDevices.getUserMedia = async (wish) => {
  const stream = await ask(wish);
  window.tracks.push(...stream.getTracks());
  return stream;
};
const Real = AudioContext;
window.suspended = false;
window.AudioContext = class extends Real {
  constructor(...given) { super(...given); window.context = this; }
  resume() { return window.suspended ? Promise.reject(new DOMException('not now')) : super.resume(); }
};
"""
SUSPEND = "window.suspended = true; return window.context.suspend()"


def test_a_microphone_that_stops_delivering_is_told_and_so_is_what_was_lost(page: Page, service: Service) -> None:
    page.open(service.port)
    page.driver.execute_script(OPENED)
    page.press("#start")
    page.until_state("Listening")
    page.until(lambda: page.texts(".committed"))
    page.driver.execute_script(SUSPEND)
    page.until_state("No sound arrives from the microphone")
    page.driver.execute_script("window.suspended = false")
    page.until_state("Listening")
    page.until(lambda: page.texts(".note"))
    (note,) = page.texts(".note")
    assert 2.0 <= float(note.removesuffix(" s of audio were lost here")) < 60
    page.driver.execute_script(SUSPEND)
    assert page.driver.execute_script("return window.tracks.map((track) => track.readyState)") == ["live"]
    page.press("#start")
    assert page.driver.execute_script("return window.tracks.map((track) => track.readyState)") == ["ended"]
    page.until_state("Finished")
    page.until(lambda: page.driver.execute_script("return window.context.state") == "closed")


def test_a_microphone_is_let_go_if_it_cannot_be_listened_to(page: Page, service: Service) -> None:
    page.open(service.port)
    page.driver.execute_script(OPENED + "AudioWorklet.prototype.addModule = () => Promise.reject(new Error('no such module'))")
    page.press("#start")
    page.until(lambda: "no such module" in page.text("#error p"))
    assert page.driver.execute_script("return window.tracks.map((track) => track.readyState)") == ["ended"]


TELL = """
const [lives, done] = arguments;
import('/retelling.js').then(({Retelling}) => {
  const retelling = new Retelling(), told = [];
  retelling.targets = lives[0].targets;
  for (const {events, start_ms} of lives) {
    if (start_ms !== null) told.push(...retelling.restart(start_ms));
    for (const event of events) told.push(...retelling.tell(event));
    told.push({resume_ms: retelling.resume_ms, keep_ms: retelling.keep_ms});
  }
  done(told);
});
"""


def test_the_page_retells_as_the_client_does(page: Page, service: Service) -> None:
    """The same events, servers that die after any of them, audio that is still there or not: the same is told."""
    page.open(service.port)
    rng = random.Random(5)
    for _ in range(60):
        targets, translation = rng.choice([((), "stable"), (("de",), "stable"), (("de", "fr"), "draft")])
        retelling, told, lives = Retelling(), list[dict[str, Any]](), list[dict[str, Any]]()
        retelling.targets = targets
        for number in range(3):
            start_ms = retelling.resume_ms + rng.choice([0, 0, 0, 700]) if number else None
            if start_ms is not None:
                told += [to_mapping(event) for event in retelling.restart(start_ms)]
            heard = hearing(rng.randrange(4), start_ms or 0, targets, translation)
            heard = heard if number == 2 else heard[: rng.randrange(len(heard))]
            told += [to_mapping(each) for event in heard for each in retelling.tell(event)]
            told.append({"resume_ms": retelling.resume_ms, "keep_ms": retelling.keep_ms})
            lives.append({"targets": targets, "start_ms": start_ms, "events": [to_mapping(event) for event in heard]})
        assert page.driver.execute_async_script(TELL, lives) == json.loads(json.dumps(told))


def test_a_busy_server_is_asked_again(page: Page, service: Service, clip: Path) -> None:
    page.open(service.port)
    with connect(f"ws://127.0.0.1:{service.port}/v1/stream") as other:
        other.send(json.dumps({"type": "start", "version": 1, "sample_rate": 16_000}))
        assert json.loads(other.recv())["type"] == "ready"
        page.choose_file(clip)
        page.until_state("Server busy")
        assert "trying again in" in page.text("#state").replace("\n", " ")
        other.send(json.dumps({"type": "finish"}))
        for _ in other:
            pass
    page.until_state("Finished")
    assert page.texts(".committed") == [FIRST, SECOND]


@pytest.mark.parametrize(
    ("fault", "told"),
    [("NotAllowedError", "may not use the microphone"), ("NotFoundError", "No microphone"), ("NotReadableError", "another program")],
)
def test_a_missing_microphone_is_explained(page: Page, service: Service, fault: str, told: str) -> None:
    page.open(service.port)
    page.driver.execute_script(
        "navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('refused', arguments[0]))", fault
    )
    page.press("#start")
    page.until(lambda: told in page.text("#error p"))
    assert page.text("#state") == "Stopped" and page.text("#start") == "Start"
    page.press("#error button")
    assert page.find("#error") is None


def test_a_file_that_is_no_sound(page: Page, service: Service, tmp_path: Path) -> None:
    (tmp_path / "notes.wav").write_text("no sound at all")
    page.open(service.port)
    page.choose_file(tmp_path / "notes.wav")
    page.until(lambda: "cannot read “notes.wav” as sound" in page.text("#error p"))


def test_a_server_that_is_gone(page: Page, service: Service, clip: Path) -> None:
    page.open(service.port)
    service.stop()
    page.choose_file(clip)
    page.until(lambda: "cannot be reached" in page.text("#error p"))


def test_large_captions_show_the_newest_words(page: Page, service: Service, clip: Path) -> None:
    page.open(service.port)
    page.choose_file(clip)
    page.until_state("Finished")
    body = page.find("body")
    assert body is not None
    body.send_keys(Keys.ALT + "l" + Keys.ALT)
    page.until(lambda: page.find("#leave") is not None)
    assert page.find("header") is None and page.find("footer") is None
    box = page.driver.execute_script(
        "const box = [...document.querySelectorAll('.committed')].at(-1).getBoundingClientRect(); return [box.top, box.bottom, innerHeight]"
    )
    assert 0 <= box[0] < box[1] <= box[2]
    body.send_keys(Keys.ESCAPE)
    page.until(lambda: page.find("header") is not None)
    page.until(lambda: page.driver.switch_to.active_element.get_attribute("id") == "large")


def test_every_control_can_be_reached_by_the_keyboard(page: Page, service: Service) -> None:
    page.open(service.port)
    reached = list[str]()
    for _ in range(40):
        page.driver.switch_to.active_element.send_keys(Keys.TAB)
        active = page.driver.switch_to.active_element
        reached.append(active.get_attribute("id") or active.get_attribute("value") or active.tag_name)
        if active.tag_name == "body" or reached.count(reached[0]) > 1:
            break
    assert ["microphone", "start", "large", "theme", "summary", "stage"] == [
        name for name in reached if name in ("microphone", "start", "large", "theme", "summary", "stage")
    ][:6]


def test_theme_is_kept_and_colours_can_be_told_apart(page: Page, service: Service) -> None:
    page.open(service.port)
    for theme in ("dark", "light"):
        page.press("#theme")
        page.driver.refresh()
        page.until(lambda theme=theme: page.driver.execute_script("return document.documentElement.dataset.theme") == theme)
        for name in ("ink", "quiet", "tentative", "accent", "bad", "warn"):
            assert contrast(page, name) >= 4.0, (theme, name)


def test_the_page_needs_nothing_from_elsewhere() -> None:
    for path in PAGES.iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "").replace("http://localhost", "")
        assert "http://" not in text and "https://" not in text.replace("behind https", ""), path.name


KEY = "a-key-of-sixteen-letters"


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Service]:
    running = Service({"server": {"keys": [KEY], "record": "text", "record_dir": str(tmp_path), "record_days": 3}})
    running.start()
    yield running
    running.stop()


def test_a_key_is_asked_for_and_counts(page: Page, locked: Service, clip: Path) -> None:
    page.driver.get(f"http://127.0.0.1:{locked.port}/")
    page.driver.execute_script("localStorage.clear(); sessionStorage.clear()")
    page.driver.refresh()
    page.until(lambda: page.find("#key"))
    assert "asks for an access key" in page.text("#error")
    field = page.find("#key")
    assert field is not None and field.get_attribute("type") == "password"
    field.send_keys("short", Keys.TAB)
    page.until(lambda: "16 to 200" in page.text("#error"))
    field.clear()
    field.send_keys(KEY, Keys.TAB)
    page.until(lambda: page.find("#targets input[value=de]", visible=False) is not None)
    assert page.find("#key") is None and page.find("#error") is None
    assert "keeps the text of every session for 3 days" in page.text("#recorded")
    page.choose_file(clip)
    page.until_state("Finished")
    assert page.texts(".segment .committed") == [FIRST, SECOND]


def test_a_key_in_the_address_is_taken_out_of_it(page: Page, locked: Service) -> None:
    page.driver.get("about:blank")
    page.driver.get(f"http://127.0.0.1:{locked.port}/#key={KEY}")
    page.until(lambda: page.find("#targets input[value=de]", visible=False) is not None)
    assert page.driver.current_url == f"http://127.0.0.1:{locked.port}/"
    kept = page.driver.execute_script("return JSON.stringify([{...localStorage}, document.cookie])")
    assert KEY not in kept, "for this tab only"


def test_many_languages_stand_below_each_other(page: Page, service: Service, clip: Path) -> None:
    """Where four columns would have no room, and on the wall; two of them stay side by side."""
    page.open(service.port)
    page.resize(1000, 800)
    page.ask_for("de", "fr", "es")
    page.choose_file(clip)
    page.until_state("Finished")
    where = "return [...document.querySelectorAll('.segment:first-child p')].map((p) => Math.round(p.getBoundingClientRect().left))"
    left = page.driver.execute_script(where)
    assert len(left) == 4 and len(set(left)) == 1, left
    widths = "return [...document.querySelectorAll('.segment:first-child p')].map((p) => p.getBoundingClientRect().width)"
    assert min(page.driver.execute_script(widths)) > 700
    page.press("#large")
    assert len(set(page.driver.execute_script(where))) == 1
    page.press("#leave")
    page.resize(1600, 900)
    page.until(lambda: len(set(page.driver.execute_script(where))) == 4)


def test_only_languages_that_were_chosen_are_remembered(page: Page, service: Service) -> None:
    """Another setting does not: the server may be configured for others the next time."""
    kept = "return JSON.parse(Object.values(localStorage)[0]).targets"
    page.open(service.port)
    page.press("#large")
    page.driver.execute_script("document.getElementById('leave').click()")
    page.press("summary")
    page.press(".options #filter")
    assert page.driver.execute_script(kept) is None
    page.press("#targets input[value=fr]")
    assert page.driver.execute_script(kept) == ["fr"]
