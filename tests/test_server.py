"""The service as a whole: what it serves, how it starts, how it stops."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from dragoman.model.errors import ConfigError, TaskError
from dragoman.stream.config import Options
from dragoman.stream.server import Patience, listen_on, serve
from websockets.asyncio.client import connect

from .fakes import ScriptedBackend, speech
from .live import Live, breath, make_engine, pcm, rest, run, serving, talking, text_of


def fetch(live: Live, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(live.http + path, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def get(live: Live, path: str) -> tuple[int, str]:
    return await asyncio.to_thread(fetch, live, path)


def test_health_tells_whether_new_sessions_are_taken() -> None:
    async def test() -> list[tuple[int, Any]]:
        async with serving(make_engine(max_sessions=1)) as live:
            answers = [await get(live, "/healthz")]
            stream = await live.engine.open()
            answers.append(await get(live, "/healthz"))
            live.engine.discard(stream)
            live.engine.drain()
            answers.append(await get(live, "/healthz"))
            return [(status, json.loads(text)) for status, text in answers]

    ok, full, draining = run(test())
    assert ok == (200, {"status": "ok", "sessions": 0, "max_sessions": 1, "level": 0, "behind_ms": 0})
    assert (full[0], full[1]["status"], full[1]["sessions"]) == (503, "full", 1)
    assert (draining[0], draining[1]["status"]) == (503, "draining")


def test_info_fills_the_menus_of_a_page() -> None:
    async def test() -> Any:
        async with serving(make_engine(targets=["de"])) as live:
            return json.loads((await get(live, "/v1/info"))[1])

    page = (Path(__file__).parents[1] / "docs" / "protocol.md").read_text(encoding="utf-8")
    example = json.loads(page.split("<!-- example: info -->\n```json\n")[1].split("```")[0])
    told = run(test())
    assert set(told) == set(example)
    assert told["known_targets"] == ["de", "es", "fr"] and told["targets"] == ["de"] and told["version"] == 1


def test_metrics() -> None:
    async def test() -> str:
        async with serving(make_engine()) as live:
            async with talking(live) as (client, _):
                await client.send(pcm(speech("the quick brown fox", silence_s=1.0)))
                await client.send('{"type": "gap", "samples": 16000}')
                await client.send('{"type": "finish"}')
                await rest(client)
            status, text = await get(live, "/metrics")
            assert status == 200
            return text

    lines = dict(line.rsplit(" ", 1) for line in run(test()).splitlines() if not line.startswith("#"))
    numbers = {name: float(value) for name, value in lines.items()}
    assert numbers["dragoman_audio_seconds_total"] == pytest.approx(3.6)
    assert numbers["dragoman_dropped_seconds_total"] == 1.0
    assert numbers["dragoman_segments_total"] == 1 and numbers["dragoman_sessions_opened_total"] == 1
    assert numbers['dragoman_sessions{state="connected"}'] == 0
    assert numbers['dragoman_guard_hits_total{guard="silent_frames"}'] > 10
    assert numbers["dragoman_tokens_per_forward"] > 1, "drafts are accepted"
    assert numbers["dragoman_lag_seconds"] == numbers["dragoman_economy_level"] == 0
    assert numbers["dragoman_compute_seconds_total"] > 0 and numbers["dragoman_real_time_factor"] > 0


def test_the_page_is_served(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<h1>captions</h1>")
    (tmp_path / "app.js").write_text("export {}")

    async def test() -> list[tuple[int, str]]:
        async with serving(make_engine(), tmp_path) as live:
            return [await get(live, path) for path in ("/", "/app.js", "/../secret", "/nothing")]

    answers = run(test())
    assert answers[0] == (200, "<h1>captions</h1>") and answers[1] == (200, "export {}")
    assert [status for status, _ in answers[2:]] == [404, 404]


def test_a_port_in_use_is_told_before_anything_is_loaded() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            listen_on(Options.model_validate({"server": {"port": port}}))


def test_the_port_opens_after_the_warm_up() -> None:
    async def test() -> list[int]:
        backend = ScriptedBackend()
        engine = make_engine(backend)
        taken = listen_on(engine.options)
        calls: list[int] = []
        opened = asyncio.Event()

        def tell() -> None:
            calls.append(len(backend.calls))
            opened.set()

        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", taken.getsockname()[1])
        serving = asyncio.create_task(serve(engine, taken, opened=tell))
        await opened.wait()
        async with connect(f"ws://127.0.0.1:{taken.getsockname()[1]}/v1/stream"):
            pass
        signal.raise_signal(signal.SIGTERM)
        await serving
        return calls

    assert run(test())[0] > 5


def test_a_language_that_the_model_lacks_stops_the_start() -> None:
    async def test() -> None:
        engine = make_engine(targets=["xx"])
        with pytest.raises(TaskError, match="'xx'"):
            await serve(engine, listen_on(engine.options))

    run(test())


def test_sigterm_lets_a_session_finish() -> None:
    async def test() -> tuple[list[dict[str, Any]], int | None, bool]:
        async with serving(make_engine(drain_s=20)) as live, talking(live) as (client, _):
            await client.send(pcm(speech("the quick brown")))
            signal.raise_signal(signal.SIGTERM)
            while live.engine.draining_until_s is None:
                await breath()
            async with connect(live.ws) as late:
                await late.send('{"type": "start", "sample_rate": 16000}')
                refused = json.loads(await late.recv())
            await client.send(pcm(speech("fox", silence_s=1.0)))
            await client.send('{"type": "finish"}')
            return await rest(client), client.close_code, refused["code"] == "draining"

    messages, code, refused = run(test())
    assert text_of(messages) == ["the quick brown fox"] and code == 1001 and refused
    assert [message["within_s"] for message in messages if message["type"] == "notice"] == [20]


def test_after_the_time_is_up_the_server_finishes_sessions_itself() -> None:
    async def test() -> tuple[list[dict[str, Any]], int | None]:
        async with serving(make_engine(drain_s=0)) as live, talking(live) as (client, _):
            await client.send(pcm(speech("the quick brown fox")))
            while not live.engine.stats().audio_ms:
                await breath()
            live.server.stop()
            return await rest(client), client.close_code

    messages, code = run(test())
    assert text_of(messages) == ["the quick brown fox"] and messages[-1]["type"] == "ended" and code == 1001


def test_a_client_that_goes_on_talking_still_gets_its_text() -> None:
    async def test() -> tuple[list[dict[str, Any]], int | None]:
        async with serving(make_engine(drain_s=0)) as live, talking(live) as (client, _):
            await client.send(pcm(speech("the quick brown fox")))
            while not live.engine.stats().audio_ms:
                await breath()
            live.server.stop()
            live.engine.tick()  # from here on nothing more is heard
            for _ in range(20):
                await client.send(bytes(3200))
            return await rest(client), client.close_code

    messages, code = run(test())
    assert text_of(messages) == ["the quick brown fox"] and messages[-1]["type"] == "ended" and code == 1001
    assert messages[-1]["audio_ms"] == 1600


def test_a_second_signal_stops_at_once() -> None:
    async def test() -> bool:
        async with serving(make_engine(drain_s=600)) as live:
            await live.engine.open()
            live.server.stop()
            assert not live.server.should_exit
            live.server.stop()
            return live.server.should_exit

    assert run(test())


def test_a_server_that_gets_on_is_waited_for_and_one_that_does_not_is_not() -> None:
    patience = Patience(100.0)
    assert patience.lasts(90.0, 7) and patience.lasts(104.9, 7) and not patience.lasts(105.0, 7)
    told = 7
    for now_s in range(104, 219, 4):
        told += 1
        assert patience.lasts(float(now_s), told)
    assert not patience.lasts(220.0, told + 1), "two minutes, whatever it still says"


def test_what_is_told_and_heard_counts_as_getting_on() -> None:
    async def test() -> list[int]:
        async with make_engine() as engine:
            stream = await engine.open()
            numbers = [engine.told]
            await stream.push(pcm(speech("the quick")))
            while stream.clocks.processed_ms < 640:
                await breath()
            numbers.append(engine.told)
            stream.finish()
            stream.attach(None)
            numbers += [engine.told async for _ in stream.follow(None)]
            return numbers

    numbers = run(test())
    assert numbers == sorted(numbers) and len(set(numbers)) > 5
