"""Pipecat's OpenAI realtime STT service, unmodified, on our server: what a voice agent would hear of a file.

pip install "pipecat-ai[openai]" soundfile, start ``dragoman serve``, then python examples/pipecat_captions.py talk.flac
"""

import asyncio
import sys
import time

import soundfile
from pipecat.frames.frames import EndFrame, Frame, InputAudioRawFrame, InterimTranscriptionFrame, TranscriptionFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.openai.stt import OpenAIRealtimeSTTService
from pipecat.workers.runner import WorkerRunner

BLOCK_S = 0.05


class Printer(FrameProcessor):
    """Shows what was heard."""

    def __init__(self) -> None:
        super().__init__()
        self.newest_s = time.monotonic()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, TranscriptionFrame):
            print("final:", frame.text, flush=True)
        elif isinstance(frame, InterimTranscriptionFrame):
            print("    …", frame.text, flush=True)
        if isinstance(frame, TranscriptionFrame | InterimTranscriptionFrame):
            self.newest_s = time.monotonic()
        await self.push_frame(frame, direction)


async def main(path: str, url: str) -> None:
    pcm, sample_rate = soundfile.read(path, dtype="int16", always_2d=True)
    mono = pcm[:, 0].tobytes() + bytes(2 * 2 * sample_rate)  # two seconds of silence: the server's voice detector finds an end
    server_vad = {"type": "server_vad", "silence_duration_ms": 500}
    service = OpenAIRealtimeSTTService(api_key="none", base_url=url, turn_detection=server_vad)
    printer, started = Printer(), asyncio.Event()
    worker = PipelineWorker(Pipeline([service, printer]), params=PipelineParams(audio_in_sample_rate=sample_rate))

    @worker.event_handler("on_pipeline_started")
    async def ready(worker: PipelineWorker, frame: Frame) -> None:
        started.set()

    async def speak() -> None:
        """At the pace of a microphone; the end comes two seconds after the last text."""
        await started.wait()
        size = 2 * int(sample_rate * BLOCK_S)
        for start in range(0, len(mono), size):
            await worker.queue_frame(InputAudioRawFrame(audio=mono[start : start + size], sample_rate=sample_rate, num_channels=1))
            await asyncio.sleep(BLOCK_S)
        spoken_s = time.monotonic()
        while time.monotonic() - max(spoken_s, printer.newest_s) < 2.0:
            await asyncio.sleep(BLOCK_S)
        await worker.queue_frame(EndFrame())

    runner = WorkerRunner()
    await runner.add_workers(worker)
    await asyncio.gather(runner.run(), speak())


asyncio.run(main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "ws://127.0.0.1:8000/v1/realtime"))
