"""The socket ``/v1/realtime/translations``: OpenAI's realtime translation on our sessions. Messages: ``openai_translation_session``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from starlette.websockets import WebSocket

from ..model.prompt import Task
from .engine import Engine
from .events import Event, Final, Partial, Translation
from .openai_connection import OpenAIConnection, ServerEvent
from .openai_session import EventError
from .openai_translation_session import NEVER_S, AppendSpeech, TranslationSetup, UpdateTranslation, read_translation_event
from .protocol import Failure, WireError

_STEP_MS = 200  # in which OpenAI's ``elapsed_ms`` advances
_UNSPACED = ("ja", "zh")  # languages whose sentences stand side by side without a space


class Deltas:
    """Our events → OpenAI's two texts, each of which only ever grows. No socket here.

    What is said grows word by word as it is committed, its translation segment by segment: a translation of less may have to be taken back.
    """

    def __init__(self, target: str | None = None) -> None:
        self.target = target
        self.transcribes = False  # whether what was said is told, besides its translation
        self.offset_ms = 0  # of audio that earlier streams of the same connection have heard
        self._said = self._translated = False
        self._segment = -1

    def tell(self, event: Event) -> Iterator[ServerEvent]:
        """What the client is told of an event."""
        if isinstance(event, Partial | Final) and event.delta and self.transcribes:
            delta = event.delta
            if event.segment != self._segment:
                delta, self._segment = (" " if self._said else "") + delta.lstrip(), event.segment
            self._said = True
            yield self._delta("input", delta, event)
        elif isinstance(event, Translation) and event.text.strip():
            space = " " if self._translated and self.target not in _UNSPACED else ""
            self._translated = True
            yield self._delta("output", space + event.text.strip(), event)

    def heard(self, heard_ms: int) -> None:
        """A stream has ended, and the next one begins with segment 0 again."""
        self.offset_ms += heard_ms
        self._segment = -1

    def _delta(self, side: str, delta: str, event: Event) -> ServerEvent:
        elapsed_ms = self.offset_ms + event.clocks.processed_ms
        return {"type": f"session.{side}_transcript.delta", "delta": delta, "elapsed_ms": elapsed_ms - elapsed_ms % _STEP_MS}


class TranslationConnection(OpenAIConnection):
    """One socket. A change of language ends its stream, and the next audio opens another."""

    def __init__(self, socket: WebSocket, engine: Engine) -> None:
        super().__init__(socket, engine)
        self._setup = TranslationSetup.of(engine.options.session)
        self._deltas = Deltas(self._setup.audio.output.language)
        longest_s = engine.options.server.session_s
        self._expires_at = NEVER_S if longest_s is None else int(time.time() + longest_s)

    async def _serve(self) -> None:
        await self._accept()
        self._engine.admit(self._visitor)  # a place is taken by the first audio, but a full server says so at once
        await self._show("session.created")
        await self._talk(self._read(), self._write())

    async def _obey(self, raw: dict[str, Any]) -> bool:
        event = read_translation_event(raw)
        if isinstance(event, AppendSpeech):
            if not self._setup.asked["targets"]:
                known = ", ".join(self._engine.loaded.prompts.targets) or "nothing, it only transcribes"
                says = f"no language to translate into, expected session.update with audio.output.language; this model knows {known}"
                raise EventError(says, param="session.audio.output.language")
            await self._push(event.data(), self._setup.audio.input.format, self._setup.asked)
        elif isinstance(event, UpdateTranslation):
            await self._update(event)
        elif self._stream is None:
            await self._send({"type": "session.closed"})
            return False
        else:
            self._stream.finish()  # the writer tells what is left, then ``_last``
        return True

    def _tell(self, event: Event) -> Iterator[ServerEvent]:
        return self._deltas.tell(event)

    def _last(self, told: Failure | None) -> Iterator[ServerEvent]:
        if told is None:
            yield {"type": "session.closed"}

    def _heard(self, heard_ms: int) -> None:
        self._deltas.heard(heard_ms)

    async def _update(self, event: UpdateTranslation) -> None:
        if self._stream is not None and self._stream.inbox.finished:
            raise WireError("bad_message", "session.update after session.close")
        setup = self._setup.updated(event.session.audio)
        options = self._options(setup.asked, where="session")
        self._engine.loaded.prompts.check(Task(options.language, options.targets, options.glossary))
        if not setup.hears_as(self._setup):
            await self._replace()
        self._setup = setup
        self._deltas.target, self._deltas.transcribes = setup.audio.output.language, setup.audio.input.transcription is not None
        await self._show("session.updated")

    async def _show(self, kind: str) -> None:
        await self._send({"type": kind, "session": self._setup.shown(self.id, self._model, expires_at=self._expires_at)})


async def translation_socket(socket: WebSocket) -> None:
    """Endpoint of ``/v1/realtime/translations``."""
    await TranslationConnection(socket, socket.app.state.engine).run()
