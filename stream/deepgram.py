"""The socket ``/v1/listen``: Deepgram's live transcription on our sessions. What may be asked for is in ``deepgram_query``."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from starlette.responses import JSONResponse
from starlette.websockets import WebSocket, WebSocketDisconnect

from .connection import Connection
from .container import ContainerDecoder
from .deepgram_query import CONTAINER, Listening, read_query
from .engine import Engine
from .events import Committed, Event, Final, Partial, SpeechStarted, Word, whole_words
from .lag import LagSigns
from .live import Stream
from .protocol import CLOSE_CODES, LARGEST_TEXT_BYTES, Failure, Progress, WireError, mapping_of

_CHANNEL = [0, 1]  # number of the channel and how many there are: all are heard as one
_REFUSALS = {"overloaded": 503, "draining": 503, "internal": 500}  # HTTP status of what is refused before the socket opens; else 400
Message = dict[str, Any]


class Results:
    """Our events → Deepgram's messages. No socket here.

    A segment is one final result; before it come interim results of the whole segment so far. A confidence is the mean probability that the
    model gave to the tokens of a word (geometric), or the mean over the words of a transcript: the model's own number, not calibrated.
    """

    def __init__(self, wish: Listening, metadata: Message) -> None:
        """``metadata`` stands in every result."""
        self._wish, self._metadata = wish, metadata
        self._is_open = self._cut = False
        self._start_ms = 0
        self._text, self._tail, self._words = "", "", list[Word]()
        self._utterance_end_ms: int | None = None  # end of the last word, until it is told

    def tell(self, event: Event) -> Iterator[Message]:
        """What the client is told of an event."""
        if isinstance(event, SpeechStarted):
            self._is_open, self._start_ms = True, event.at_ms
            self._text, self._tail, self._words = "", "", []
            if self._wish.vad_events:
                yield {"type": "SpeechStarted", "channel": _CHANNEL, "timestamp": event.at_ms / 1000}
        elif isinstance(event, Partial):
            self._text, self._tail = self._text + event.delta, event.tail
            self._words += event.words
            if self._wish.interim_results:
                yield self.so_far(event.clocks.processed_ms)
        elif isinstance(event, Final):
            yield self._final(event)
        elif isinstance(event, Committed):
            if not self._cut:  # nothing was being said; Finalize is answered all the same
                yield self._result("", (), event.at_ms, event.at_ms, is_final=True, from_finalize=True)
            self._cut = False
        yield from self.pass_time(event.clocks.processed_ms)

    def pass_time(self, processed_ms: int) -> Iterator[Message]:
        """UtteranceEnd, when it is due: so long after the last word, with no segment open."""
        last_ms, gap_ms = self._utterance_end_ms, self._wish.utterance_end_ms
        if gap_ms is not None and last_ms is not None and not self._is_open and processed_ms - last_ms >= gap_ms:
            self._utterance_end_ms = None
            yield {"type": "UtteranceEnd", "channel": _CHANNEL, "last_word_end": last_ms / 1000}

    def so_far(self, processed_ms: int) -> Message:
        """The interim result that ends where the audio is heard so far. Empty if no segment is open, or such text was not asked for."""
        if self._is_open and self._wish.interim_results:
            return self._result(self._text + self._tail, self._words, self._start_ms, processed_ms)
        return self._result("", (), processed_ms, processed_ms)

    def _final(self, event: Final) -> Message:
        self._is_open, self._cut = False, event.reason == "commit"
        if event.words:
            self._utterance_end_ms = event.words[-1].end_ms
        at_pause = event.reason in ("silence", "sentence") and self._wish.endpointing
        return self._result(
            event.text, event.words, event.start_ms, event.end_ms, is_final=True, speech_final=at_pause, from_finalize=self._cut
        )

    def _result(self, text: str, words: Sequence[Word], start_ms: int, end_ms: int, **marks: bool) -> Message:
        said = [_word(word) for word in whole_words(words)]
        sure = sum(word["confidence"] for word in said) / len(said) if said else 0.0
        return {
            "type": "Results",
            "channel_index": _CHANNEL,
            "start": start_ms / 1000,
            "duration": max(0, end_ms - start_ms) / 1000,
            **{"is_final": False, "speech_final": False, "from_finalize": False, **marks},
            "channel": {"alternatives": [{"transcript": text.strip(), "confidence": sure, "words": said}]},
            "metadata": self._metadata,
        }


def _word(word: Word) -> Message:
    written = word.text.strip()
    bare = "".join(letter for letter in written if letter.isalnum() or letter in "'’-").lower()
    return {
        "word": bare or written,
        "start": word.start_ms / 1000,
        "end": word.end_ms / 1000,
        "confidence": min(1.0, math.exp(word.logprob)),
        "punctuated_word": written,
    }


class ListenConnection(Connection):
    """One socket. What is wrong with the query, or a server without room, is told by HTTP before the socket opens."""

    def __init__(self, socket: WebSocket, engine: Engine) -> None:
        super().__init__(socket, engine)
        self._id, self._created = str(uuid.uuid4()), datetime.now(UTC)
        self._is_open = False
        self._sha256 = hashlib.sha256()

    async def _serve(self) -> None:
        wish = read_query(self._socket.query_params.multi_items(), self._engine.options.session)
        options = self._options(wish.asked, where="the query")
        decoder = ContainerDecoder(wish.channels) if wish.encoding == CONTAINER else None  # first: without PyAV no place is taken
        stream = self._stream = await self._engine.open(
            options, sample_rate=wish.sample_rate, channels=wish.channels, visitor=self._visitor
        )
        stream.decoder, stream.reads_on = decoder, True
        stream.attach(self)
        # A browser cannot send headers: there the key comes as a second subprotocol, and a server must choose one of those offered.
        offered = self._socket.scope.get("subprotocols", ())
        await self._socket.accept(next((name for name in ("token", "bearer") if name in offered), None))
        self._is_open = True
        await self._talk(self._read(stream, wish), self._write(stream, wish))

    async def _tell_failure(self, told: Failure) -> None:
        if self._is_open:
            said = {"type": "Error", "variant": told.code, "description": told.message}
            await self._close(CLOSE_CODES[told.code], told.code, json.dumps(said, ensure_ascii=False))
            return
        headers = {} if told.retry_after_s is None else {"retry-after": str(max(1, round(told.retry_after_s)))}
        refusal = {"err_code": told.code, "err_msg": told.message, "request_id": self._id}
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # the client may have left already
            await self._socket.send_denial_response(JSONResponse(refusal, _REFUSALS.get(told.code, 400), headers))

    async def _read(self, stream: Stream, wish: Listening) -> None:
        while True:
            message = await self._receive(listening=not stream.inbox.finished)
            if isinstance(message, str):
                await self._obey(stream, message)
            elif message:
                self._sha256.update(message)
                await stream.hear(wish.decode(message))
            else:
                await stream.end()  # how older clients say CloseStream

    async def _obey(self, stream: Stream, text: str) -> None:
        if len(text) > LARGEST_TEXT_BYTES:
            raise WireError("too_large", f"a text message of {len(text)} characters, expected at most {LARGEST_TEXT_BYTES}")
        kind = mapping_of(text).get("type")
        if kind == "Finalize":
            await stream.commit()
        elif kind == "CloseStream":
            await stream.end()
        elif kind == "Configure":
            why = "options do not change within a stream; open another one"
            await self._send(
                {
                    "type": "ConfigureFailure",
                    "request_id": self._id,
                    "code": "CONFIGURE_KEYTERMS_NOT_SUPPORTED",
                    "description": why,
                }
            )
        elif kind != "KeepAlive":
            raise WireError("bad_message", f"message type {str(kind)[:40]!r}, expected KeepAlive, Finalize, CloseStream or audio as bytes")

    async def _write(self, stream: Stream, wish: Listening) -> None:
        name = self._engine.loaded.backend.spec.name
        model = {"name": name, "version": "", "arch": "encoder-free"}
        results, signs = Results(wish, {"request_id": self._id, "model_info": model, "model_uuid": ""}), LagSigns()
        async for item in stream.follow(self):
            if isinstance(item, tuple):
                told = results.tell(item[1])
            elif isinstance(item, Progress):
                processed_ms = item.clocks["processed_ms"]
                told = [*results.pass_time(processed_ms)]
                if signs.due(stream.behind_ms(self._engine.clock()), stream.lag_ms) is not None:
                    told.append(results.so_far(processed_ms))
            else:
                continue  # the server is stopping: the protocol has no word for it
            for message in told:
                await self._send(message)
        await self._send(
            {
                "type": "Metadata",
                "transaction_key": "deprecated",
                "request_id": self._id,
                "sha256": self._sha256.hexdigest(),
                "created": self._created.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                "duration": stream.inbox.received_ms / 1000,
                "channels": wish.channels,
            }
        )

    async def _send(self, message: Message) -> None:
        await self._socket.send_text(json.dumps(message, ensure_ascii=False))


async def listen_socket(socket: WebSocket) -> None:
    """Endpoint of ``/v1/listen``."""
    await ListenConnection(socket, socket.app.state.engine).run()
