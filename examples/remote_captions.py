"""Captions of a file from a server: start one with ``dragoman serve``, then run ``python examples/remote_captions.py talk.flac``."""

import asyncio
import sys

import soundfile
from dragoman.clients.remote import Remote
from dragoman.stream import Final


async def main(path: str, url: str) -> None:
    pcm, sample_rate = soundfile.read(path, dtype="int16", always_2d=True)
    async with Remote(url, sample_rate=sample_rate, channels=pcm.shape[1]) as remote, asyncio.TaskGroup() as tasks:
        tasks.create_task(remote.send(pcm.tobytes(), last=True))  # text arrives while audio is still on its way
        async for event in remote:
            if isinstance(event, Final):
                print(event.text)


asyncio.run(main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "localhost:8000"))
