"""Prometheus' text format."""

from __future__ import annotations

from dragoman.stream.metrics import CONTENT_TYPE, exposition
from prometheus_client.parser import text_string_to_metric_families

from .fakes import speech
from .live import make_engine, pcm, run
from .test_engine import settle


def numbers(text: str) -> dict[tuple[str, ...], float]:
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(sample.name, *sample.labels.values()): sample.value for sample in samples}


def test_every_family_is_there_and_counters_never_go_back() -> None:
    async def test() -> tuple[str, str]:
        async with make_engine() as engine:
            stream = await engine.open()
            await stream.push(pcm(speech("the quick brown fox", silence_s=1.0)))
            await settle()
            before = exposition(engine).decode()
            engine.discard(stream)
            return before, exposition(engine).decode()

    texts = run(test())
    before, after = numbers(texts[0]), numbers(texts[1])
    assert before.keys() == after.keys() and len(before) > 20
    counters = [key for key in before if key[0].endswith("_total")]
    assert all(before[key] == after[key] for key in counters), "a session that is gone stays counted"
    families = text_string_to_metric_families(texts[0])
    found = [sample.labels for family in families if family.name == "dragoman_draft_tokens" for sample in family.samples]
    places = {(labels["task"], labels["source"]) for labels in found}
    tasks, sources = ("transcript", "translation", "formatted"), ("hypothesis", "mtp")
    assert places == {(task, source) for task in tasks for source in sources}
    assert {labels["result"] for labels in found} == {"accepted", "rejected"}
    accepted = [count for key, count in before.items() if key[0] == "dragoman_draft_tokens_total" and "accepted" in key]
    assert sum(accepted) == before["dragoman_tokens_total", "agreed"] > 0
    assert before["dragoman_sessions", "connected"] == 1 and after["dragoman_sessions", "connected"] == 0
    assert all(family.documentation for family in text_string_to_metric_families(texts[0]))
    assert CONTENT_TYPE.startswith("text/plain")
