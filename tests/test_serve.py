"""``dragoman serve`` as a process: a port that opens when the model is warm, a page, words, and an end on SIGTERM."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from pathlib import Path

import pytest
import soundfile
from dragoman.clients.cli import main
from dragoman.clients.remote import Remote
from dragoman.stream.events import Ended, Event

from .live import run
from .tiny import save_tiny_model


async def _session(url: str, clip: Path) -> list[Event]:
    pcm, sample_rate = soundfile.read(clip, dtype="int16", always_2d=True)
    async with Remote(url, sample_rate=sample_rate, channels=pcm.shape[1], targets=["de"], hold_back_words=0) as remote:
        await remote.send(pcm.tobytes(), last=True)
        return [event async for event in remote]


def test_serve_from_start_to_sigterm(tmp_path: Path, clips: Path) -> None:
    """A random model, a real voice detector, the torch runtime on its thread."""
    arguments = ["serve", "--port", "0", "--model", str(save_tiny_model(tmp_path / "tiny")), "--threads", "1", "--vad", "webrtc"]

    async def test() -> tuple[list[Event], int, str]:
        server = await asyncio.create_subprocess_exec(sys.executable, "-m", "dragoman.clients", *arguments, stderr=asyncio.subprocess.PIPE)
        try:
            assert server.stderr is not None
            said = ""
            while not (found := re.search(r"ready: (http://localhost:\d+)", said)):
                line = (await server.stderr.readline()).decode()
                assert line, said
                said += line
            events = await _session(found[1].replace("localhost", "127.0.0.1"), clips / "market.flac")
            server.send_signal(signal.SIGTERM)
            return events, await server.wait(), said + (await server.stderr.read()).decode()
        finally:
            if server.returncode is None:
                server.kill()
                await server.wait()

    events, code, said = run(test())
    assert isinstance(events[-1], Ended) and len(events) > 5
    assert code == 0 and "Traceback" not in said and "stopping" in said


def test_wrong_flags_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--port", "70000"]) == 1
    assert "server.port: Input should be less than or equal to 65535, got 70000" in capsys.readouterr().err
    assert main(["serve", "--host", "192.0.2.1", "--port", "0", "--open-to-all"]) == 1
    assert "cannot listen on 192.0.2.1:0" in capsys.readouterr().err
    assert main(["connect", "127.0.0.1:1", "nothing.wav"]) == 1
    assert "nothing.wav: does not exist" in capsys.readouterr().err
