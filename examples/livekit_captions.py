"""LiveKit agents' OpenAI STT plugin, unmodified, on our server: what an agent would hear of a file, over both of the plugin's ways.

pip install livekit-plugins-openai soundfile, start ``dragoman serve``, then python examples/livekit_captions.py talk.flac
"""

import asyncio
import sys

import soundfile
from livekit import rtc
from livekit.agents import stt, utils
from livekit.plugins import openai

BLOCK_S = 0.05


def frames(path: str) -> list[rtc.AudioFrame]:
    """The file, and two seconds of silence after it, so that the server's voice detector finds an end."""
    pcm, sample_rate = soundfile.read(path, dtype="int16", always_2d=True)
    mono = pcm[:, 0].tobytes() + bytes(2 * 2 * sample_rate)
    size = 2 * int(sample_rate * BLOCK_S)
    parts = [mono[start : start + size] for start in range(0, len(mono), size)]
    return [rtc.AudioFrame(part, sample_rate, 1, len(part) // 2) for part in parts]


async def live(recogniser: openai.STT, heard: list[rtc.AudioFrame]) -> None:
    """The realtime socket, at the pace of a microphone."""
    async with recogniser.stream() as stream:
        listening = asyncio.create_task(show(stream))
        for frame in heard:
            stream.push_frame(frame)
            await asyncio.sleep(BLOCK_S)
        await asyncio.wait((listening,), timeout=2.0)  # the last text
        listening.cancel()


async def show(stream: stt.SpeechStream) -> None:
    async for event in stream:
        if event.type == stt.SpeechEventType.FINAL_TRANSCRIPT:
            print("live:", event.alternatives[0].text, flush=True)
        elif event.type == stt.SpeechEventType.INTERIM_TRANSCRIPT:
            print("   …", event.alternatives[0].text, flush=True)


async def main(path: str, url: str, model: str) -> None:
    heard = frames(path)
    async with utils.http_context.open():
        realtime = openai.STT(base_url=url, api_key="none", use_realtime=True, model=model)
        await live(realtime, heard)
        await realtime.aclose()
        whole = openai.STT(base_url=url, api_key="none", use_realtime=False, model=model)
        print("file:", (await whole.recognize(heard)).alternatives[0].text)


asyncio.run(main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "http://127.0.0.1:8000/v1", (sys.argv[3:] or ["gpt-4o-transcribe"])[0]))
