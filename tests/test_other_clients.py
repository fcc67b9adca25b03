"""What frameworks that speak OpenAI's protocol say first, as it was recorded from them, and then text as they expect it.

The frameworks themselves are too large to be installed for each test: examples/livekit_captions.py and examples/pipecat_captions.py run
them unmodified, and docs/protocol.md says when that was done and with which versions.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dragoman.stream.lag import LagSigns

from .fakes import speech
from .live import make_engine, run, serving
from .test_openai_realtime import COMMIT, COMPLETED, appends, check_items, converse, told_of

PAGE = (Path(__file__).parents[1] / "docs" / "protocol.md").read_text(encoding="utf-8")
TALK = np.concatenate([speech("the quick brown fox", silence_s=1.0), speech("five trains left early.", silence_s=1.0)])
PCM = {"rate": 24000, "type": "audio/pcm"}
LIVEKIT_VAD = {"type": "server_vad", "prefix_padding_ms": 600, "silence_duration_ms": 350, "threshold": 0.5}
NEAR = {"type": "near_field"}

# livekit-plugins-openai 1.8.9, pipecat-ai 1.14.0: (path, session.audio.input of the first message)
LIVEKIT: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt-4o-transcribe": ("&model=gpt-4o-transcribe", {"transcription": {"language": "en", "model": "x"}, "turn_detection": LIVEKIT_VAD}),
    "gpt-live-transcribe": ("&model=gpt-live-transcribe", {"transcription": {"keywords": [], "languages": ["en"], "model": "x"}}),
    "detect_language": (
        "&model=x",
        {"noise_reduction": NEAR, "transcription": {"model": "x", "prompt": "foxes"}, "turn_detection": LIVEKIT_VAD},
    ),
}
PIPECAT: dict[str, tuple[str, dict[str, Any]]] = {
    "server_vad": ("", {"transcription": {"model": "x", "language": "en"}, "turn_detection": {"type": "server_vad"}}),
    "gpt-transcribe": (
        "",
        {"transcription": {"model": "x", "language": "en", "prompt": "foxes", "delay": "low"}, "noise_reduction": NEAR},
    ),
}


def update(changes: dict[str, Any]) -> dict[str, Any]:
    return {"type": "session.update", "session": {"type": "transcription", "audio": {"input": {"format": PCM, **changes}}}}


@pytest.mark.parametrize(("query", "changes"), [*LIVEKIT.values(), *PIPECAT.values()], ids=[*LIVEKIT, *PIPECAT])
def test_a_framework_gets_its_text(query: str, changes: dict[str, Any]) -> None:
    async def test() -> list[dict[str, Any]]:
        async with serving(make_engine()) as live:
            path = f"/v1/realtime?intent=transcription{query}"
            return (await converse(live, update(changes), *appends(TALK), until=COMPLETED, times=2, path=path))[0]

    events = run(test())
    assert told_of(events) == [] and events[1]["type"] == "session.updated"
    assert check_items(events) == ["the quick brown fox", "five trains left early."]


def test_turns_that_a_framework_ends_itself() -> None:
    """Pipecat's default: its own voice detector, and a commit when speech has stopped."""
    changes = {"transcription": {"model": "gpt-realtime-whisper", "language": "en"}, "turn_detection": None}
    halves = np.split(TALK, [int(2.3 * 16_000)])

    async def test() -> list[dict[str, Any]]:
        async with serving(make_engine()) as live:
            said = [message for half in halves for message in (*appends(half), COMMIT)]
            return (await converse(live, update(changes), *said, until=COMPLETED, times=2))[0]

    events = run(test())
    assert told_of(events) == [] and check_items(events) == ["the quick brown fox", "five trains left early."]


def test_turns_that_both_sides_end() -> None:
    """LiveKit with a model that it thinks cannot end turns: it names no turn detection, and commits at its own silences as well."""
    changes = {"transcription": {"language": "en", "model": "gpt-realtime-whisper"}}
    halves = np.split(TALK, [int(2.3 * 16_000)])

    async def test() -> list[dict[str, Any]]:
        async with serving(make_engine()) as live:
            said = [message for half in halves for message in (*appends(half), COMMIT)]
            return (await converse(live, update(changes), *said, until="input_audio_buffer.committed", times=4))[0]

    events = run(test())
    assert told_of(events) == []
    assert [text for text in check_items(events) if text] == ["the quick brown fox", "five trains left early."], (
        "nothing twice, nothing lost"
    )


SAID = (COMPLETED, "transcript", ["the quick brown fox", "five trains left early."])
TRANSLATED = ("session.output_transcript.delta", "delta", ["dethe dequick debrown defox", " defive detrains deleft deearly."])


@pytest.mark.parametrize(
    ("door", "last", "key", "texts"), [("transcription", *SAID), ("translation", *TRANSLATED)], ids=["transcription", "translation"]
)
def test_the_client_library_passes_over_our_own_event(
    door: str, last: str, key: str, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As LiveKit's and Pipecat's plugins do, which look for the types that they know. Here it comes as often as it can."""
    openai: Any = pytest.importorskip("openai", reason="needs the extra dev")
    (example,) = re.findall(r"<!-- ours on OpenAI's sockets: server -->\n```json\n(.*?)```", PAGE, re.DOTALL)
    shown = json.loads(example)
    monkeypatch.setattr(LagSigns, "due", lambda *_: shown["behind_ms"])

    async def test() -> list[Any]:
        async with serving(make_engine(targets=["de"])) as live:
            client, events = openai.AsyncOpenAI(base_url=live.http + "/v1", api_key="none is needed"), list[Any]()
            translates = door == "translation"
            sockets, query = client.realtime.translations if translates else client.realtime, {"intent": "transcription"}
            async with sockets.connect(model="any", extra_query={} if translates else query) as connection:
                for message in appends(TALK):
                    await (connection.session if translates else connection).input_audio_buffer.append(audio=message["audio"])
                while [event.type for event in events].count(last) < 2 or shown["type"] not in [event.type for event in events]:
                    events.append(await connection.recv())
            await client.close()
            return events

    events = run(test())
    signs = [event.to_dict() for event in events if event.type == shown["type"]]
    assert all({**sign, "event_id": shown["event_id"]} == shown for sign in signs)
    assert [getattr(event, key) for event in events if event.type == last] == texts
