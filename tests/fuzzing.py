"""What fuzzers call: each target takes any bytes, and raises only where the code has broken its word.

``tests/test_fuzzing.py`` gives them a few hundred inputs each, ``python -m tests.fuzz`` (with atheris, guided by coverage) as many as
there is time for. No model runs: what is hostile is read, checked and answered before a model hears of it.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import soundfile
from dragoman.clients.remote import Outbox
from dragoman.model.errors import AudioFormatError, ConfigError, DragomanError
from dragoman.stream.access import Keyring
from dragoman.stream.config import SessionOptions, parse_options
from dragoman.stream.container import ContainerDecoder
from dragoman.stream.deepgram_query import read_query
from dragoman.stream.events import Clocks, Ended
from dragoman.stream.files import error_response, read_form
from dragoman.stream.gatekeeper import Gatekeeper
from dragoman.stream.inbox import Audio, EventLog, Inbox, Lost
from dragoman.stream.openai_connection import error_event, text_of
from dragoman.stream.openai_session import Append, FlatUpdate, Setup, Update, read_event
from dragoman.stream.openai_translation_session import AppendSpeech, TranslationSetup, UpdateTranslation, read_translation_event
from dragoman.stream.opus import OpusDecoder
from dragoman.stream.pcm import PcmReader
from dragoman.stream.protocol import WireError, failure, mapping_of, read_client, read_server, write, write_event
from dragoman.stream.server import make_app
from dragoman.stream.sockets import PatientHttp, PatientWebSocket
from dragoman.stream.source import open_source
from starlette.requests import Request
from uvicorn.config import Config
from uvicorn.server import ServerState

from .fakes import speech
from .live import breath, make_engine, pcm
from .opus import packets

logging.getLogger("python_multipart").setLevel(logging.ERROR)  # as the command does
OPTIONS = SessionOptions()
KEY = "a-key-that-no-fuzzer-knows"
LONGEST_ANSWER = 4000  # characters of an error, whatever was sent
_LONGEST_AUDIO_S = 30
_BOUNDARY = b"edge"


def _told(error: Exception) -> None:
    """An error that a client is told of: in short, in text that can be encoded, and never as a fault of the server."""
    told = failure(error)
    assert told.code != "internal", f"{error!r} is nobody's fault"
    text = write(told)
    assert len(text.encode()) < LONGEST_ANSWER, f"{len(text)} characters of an error"


def _lines(data: bytes) -> list[str]:
    """What arrives as text is UTF-8; the rest of a line may be anything."""
    return [line.decode("utf-8", "replace") for line in data.split(b"\n")[:20]]


# Messages


def native_messages(data: bytes) -> None:
    """Text of clients, and of servers to our own client."""
    text = data.decode("utf-8", "replace")
    try:
        message = read_client(text)
    except WireError as error:
        _told(error)
    else:
        assert read_client(write(message)) == message
    try:
        answer = read_server(text)
    except WireError as error:
        _told(error)
    else:
        write_event(*answer) if isinstance(answer, tuple) else write(answer)


def openai_messages(data: bytes) -> None:
    """Events of one realtime session, a line each, base64 and all; every answer can be sent."""
    setup = Setup.of(OPTIONS)
    for line in _lines(data):
        raw: dict[str, Any] = {}
        try:
            raw = mapping_of(line)
            event = read_event(raw)
            if isinstance(event, Append):
                _is_int16(setup.input.format.decode(event.data()))
            elif isinstance(event, Update | FlatUpdate):
                after = setup.updated(event.input, OPTIONS)
                _options(after.asked)
                setup = after
                text_of({"type": "session.updated", "session": setup.shown("id", "model", flat=isinstance(event, FlatUpdate))}).encode()
        except WireError as error:
            _told(error)
            answer = text_of(error_event(failure(error), error, raw.get("event_id"))).encode()
            assert len(answer) < LONGEST_ANSWER


def openai_translation_messages(data: bytes) -> None:
    """The same of a translation session."""
    setup = TranslationSetup.of(OPTIONS)
    for line in _lines(data):
        raw: dict[str, Any] = {}
        try:
            raw = mapping_of(line)
            event = read_translation_event(raw)
            if isinstance(event, AppendSpeech):
                _is_int16(setup.audio.input.format.decode(event.data()))
            elif isinstance(event, UpdateTranslation):
                after = setup.updated(event.session.audio)
                _options(after.asked)
                setup = after
                text_of({"type": "session.updated", "session": setup.shown("id", "model")}).encode()
        except WireError as error:
            _told(error)
            assert len(text_of(error_event(failure(error), error, raw.get("event_id"))).encode()) < LONGEST_ANSWER


def _options(asked: Any) -> None:
    """As a connection does, which tells the client of what is wrong."""
    try:
        parse_options({"session": {**OPTIONS.model_dump(), **asked}}, where="session")
    except ConfigError as error:
        raise WireError("bad_message", str(error)) from error


def _is_int16(audio: bytes) -> None:
    """Half a sample is told by the stream; of G.711 there is none."""
    assert isinstance(audio, bytes)


def deepgram(data: bytes) -> None:
    """A query, then messages and audio, a line each."""
    query, *rest = data.split(b"\n")[:20]
    try:
        wish = read_query(parse_qsl(query.decode("latin-1"), keep_blank_values=True), OPTIONS)
        _options(wish.asked)
    except (WireError, ValueError) as error:
        _told(error if isinstance(error, WireError) else WireError("bad_message", "no query"))
        return
    for part in rest:
        _is_int16(wish.decode(part))
        try:
            mapping_of(part.decode("utf-8", "replace"))
        except WireError as error:
            _told(error)


# Audio


def pcm_audio(data: bytes) -> None:
    """Samples of any shape and value, in pieces; what is refused changes nothing, what is taken becomes finite numbers, as many as due."""
    if len(data) < 4:
        return
    rate, channels, float32 = 8_000 + struct.unpack("<H", data[:2])[0], 1 + data[2] % 32, bool(data[3] & 1)
    reader = PcmReader(rate, channels, "float32" if float32 else "int16")
    heard = 0
    for piece in _pieces(data[4:]):
        before = reader.received_samples
        try:
            samples = reader.push(piece)
        except AudioFormatError as error:
            _told(error)
            assert reader.received_samples == before
        else:
            assert np.isfinite(samples).all()
            heard += len(samples)
    heard += len(reader.flush())
    assert abs(heard - reader.received_samples * 16_000 / rate) <= 2


def _pieces(data: bytes) -> Iterator[bytes]:
    """Two bytes of length before each."""
    while len(data) >= 2:
        size = struct.unpack("<H", data[:2])[0] % 3000
        yield data[2 : 2 + size]
        data = data[2 + size :]


def opus(data: bytes) -> None:
    """Packets one after the other into one decoder. Of each comes an error or at most 120 ms."""
    if not data:
        return
    channels = 1 + data[0] % 2
    decoder = OpusDecoder(channels)
    for packet in _pieces(data[1:]):
        try:
            audio = decoder.decode(packet)
        except AudioFormatError as error:
            _told(error)
        else:
            assert len(audio) % (2 * channels) == 0 and len(audio) <= 2 * channels * 5760


def container(data: bytes) -> None:
    """Ogg or WebM in pieces, through FFmpeg's thread."""
    if not data:
        return
    channels = 1 + data[0] % 2
    decoder, heard = ContainerDecoder(channels), 0
    try:
        for piece in _pieces(data[1:]):
            heard = _heard(decoder.feed(piece), channels, heard)
        _heard(decoder.end(), channels, heard)
    except AudioFormatError as error:
        _told(error)
    except _EnoughError:
        pass
    finally:
        decoder.close()


class _EnoughError(Exception):
    pass


def _heard(pieces: Iterator[bytes | int], channels: int, heard: int) -> int:
    for piece in pieces:
        if isinstance(piece, bytes):
            assert len(piece) % (2 * channels) == 0
            heard += len(piece) // (2 * channels)
        else:
            assert piece > 0
        if heard > _LONGEST_AUDIO_S * 48_000:
            raise _EnoughError  # as a full inbox would
    return heard


def sound_file(data: bytes) -> None:
    """A file of any header, by libsndfile and by FFmpeg."""
    path = Path(_folder.name) / "sound"
    path.write_bytes(data)
    try:
        source = open_source(path)
    except AudioFormatError as error:
        _told(error)
        return
    try:
        samples, blocks = 0, source.blocks()
        assert source.channels > 0 and source.sample_rate > 0
        for block in blocks:
            assert block.dtype == np.float32 and block.ndim == 2 and block.shape[1] == source.channels and len(block)
            assert block.nbytes < 64 * 1024 * 1024, "a header must not decide how much memory a block takes"
            samples += len(block)
            if samples > _LONGEST_AUDIO_S * source.sample_rate:
                break
    except AudioFormatError as error:
        _told(error)
    finally:
        source.close()


_folder = tempfile.TemporaryDirectory(prefix="dragoman-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)


# Numbers


def numbers(data: bytes) -> None:
    """Sequence numbers and sample numbers: what waits, what is confirmed, what is sent again. Compared with plain lists."""
    inbox, log, outbox = Inbox(8_000, 1, "int16", high_ms=1000), EventLog(keep=20), Outbox(2, 50, 100)
    added, told, sent, most_sent, confirmed = 0, 0, 0, 0, 0
    for place in range(0, len(data) - 2, 3):
        action, number = data[place] % 9, struct.unpack("<H", data[place + 1 : place + 3])[0]
        try:
            if action == 0:
                inbox.put(bytes(number % 4001))
            elif action == 1:
                inbox.lose(1 + number % 3000)
            elif action == 2:
                inbox.commit()
            elif action == 3 and not inbox.empty:
                piece = inbox.take()
                assert not isinstance(piece, Audio) or 0 < len(piece.pcm) <= 2 * 8_000 * 240 // 1000
                assert not isinstance(piece, Lost) or 0 < piece.samples <= 40_000
            elif action == 4:
                log.add(_EVENT)
                told += 1
            elif action == 5:
                seq = number % 64
                if log.has(seq):
                    assert [each for each, _ in log.after(seq)] == list(range(seq + 1, told + 1))
                else:
                    assert seq > told or seq < told - 20
            elif action == 6:
                outbox.add(bytes(2 * (1 + number % 200)))
                added += 1 + number % 200
            elif action == 7:
                sent = confirmed = max(confirmed, number % (most_sent + 1))  # a server cannot have what was never sent
                outbox.go_back(confirmed)
                assert outbox.waiting_samples == added - confirmed and outbox.first <= confirmed
            elif (again := outbox.take()) is not None:
                assert isinstance(again, bytes) and 0 < len(again) <= 100
                sent += len(again) // 2
                most_sent = max(most_sent, sent)
            else:
                assert sent == added, "everything was taken, once"
        except (ValueError, DragomanError) as error:
            assert "audio" in str(error)
        assert inbox.waiting_ms >= 0 and len(log.after(0)) <= 20


_EVENT = Ended(Clocks(0, 0, 0), 0)


# HTTP


def gate(data: bytes) -> None:
    """Headers, a path and subprotocols: without the key nothing is let in."""
    lines = data.split(b"\n")[:12]
    path, kind = lines[0].decode("latin-1"), "websocket" if len(data) % 2 else "http"
    headers = [(name.lower(), value) for name, _, value in (line.partition(b":") for line in lines[1:])]
    if KEY.encode() in data:
        return
    scope: dict[str, Any] = {
        "type": kind,
        "path": path,
        "headers": [(b"host", b"localhost"), *headers],
        "method": "GET",
        "subprotocols": [name.strip() for value in lines[1:] for name in value.decode("latin-1").split(",")],
        "client": (path[:40], 1),
        "extensions": {"websocket.http.response": {}},
    }
    statuses: list[int] = []

    async def send(message: Any) -> None:
        statuses.extend([message["status"]] if "status" in message else [])

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http" and scope["path"] in ("/", "/healthz"), "let in without a key"
        statuses.append(200)

    _step(Gatekeeper(app, keys=_KEYS, free=("/", "/healthz"))(scope, receive, send))
    assert statuses[0] in (200, 401, 403)


_KEYS = Keyring([KEY])


def form(data: bytes) -> None:
    """The body of an upload: multipart of any shape."""

    async def receive() -> Any:
        return {"type": "http.request", "body": data, "more_body": False}

    async def read() -> None:
        scope = {"type": "http", "headers": [(b"content-type", b"multipart/form-data; boundary=" + _BOUNDARY)], "app": None}
        try:
            async with Request(scope, receive).form(max_files=1, max_fields=32) as fields:
                wish = read_form(fields, OPTIONS)
                _options({"language": wish.options.language})
        except Exception as error:
            answer = error_response(error)
            assert answer.status_code < 500, f"{error!r} is nobody's fault"
            assert len(bytes(answer.body)) < LONGEST_ANSWER

    _step(read())


def _step(work: Any) -> None:
    """A coroutine that waits for nothing, to its end. (Starlette may want a thread for a large file; those inputs need the loop.)"""
    try:
        work.send(None)
    except StopIteration:
        return
    except RuntimeError:  # it wants the loop
        pass
    work.close()


# Connections


class _Transport(asyncio.Transport):
    """Takes everything, and remembers how it ended."""

    def __init__(self) -> None:
        super().__init__()
        self.sent, self.ended = bytearray(), False

    def write(self, data: Any) -> None:
        self.sent += data

    def is_closing(self) -> bool:
        return self.ended

    def close(self) -> None:
        self.ended = True

    def abort(self) -> None:
        self.ended = True

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name in ("peername", "sockname") else default


class _Faults(logging.Handler):
    """What must not be logged while somebody talks nonsense: faults of the server."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(f"{record.name}: {record.getMessage()} {record.exc_info[1]!r}" if record.exc_info else record.getMessage())


class _Service:
    """The whole server but for its port: bytes go into uvicorn's protocol, what it answers is thrown away."""

    PATHS = (
        "/v1/stream",
        "/v1/realtime?intent=transcription",
        "/v1/realtime/translations",
        "/v1/listen?encoding=linear16&sample_rate=16000&interim_results=true",
    )

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.faults = _Faults()
        self.loop.set_exception_handler(lambda loop, context: self.faults.found.append(str(context)))
        for name in ("dragoman", "uvicorn"):
            logging.getLogger(name).addHandler(self.faults)
            logging.getLogger(name).propagate = False
        self.engine = make_engine(max_sessions=4, resume_s=0, idle_s=1000, queue_ms=1000, targets=[])
        self.loop.run_until_complete(self.engine.__aenter__())
        self.config = Config(
            make_app(self.engine), http=PatientHttp, ws=PatientWebSocket, lifespan="off", log_config=None, access_log=False,
            ws_max_size=1024 * 1024, ws_per_message_deflate=False, ws_ping_interval=None, proxy_headers=False,
        )  # fmt: skip
        self.config.load()

    def talk(self, path: str | None, parts: list[bytes]) -> bytes:
        """Connect (``path``: with an upgrade to a socket), send ``parts``, leave. What was answered."""
        return self.loop.run_until_complete(self._talk(path, parts))

    async def _talk(self, path: str | None, parts: list[bytes]) -> bytes:
        state, transport = ServerState(), _Transport()
        connection: Any = PatientHttp(self.config, state, {}, self.loop)
        transport.set_protocol = lambda protocol: setattr(transport, "protocol", protocol)  # type: ignore[method-assign]
        transport.set_protocol(connection)
        connection.connection_made(transport)
        if path is not None:
            parts = [_UPGRADE % path.encode(), *parts]
        for part in parts:
            if transport.ended:
                break
            transport.protocol.data_received(part)  # type: ignore[attr-defined]
            for _ in range(6):
                await breath()
        transport.protocol.connection_lost(None)  # type: ignore[attr-defined]
        for _ in range(200):
            if not state.tasks and not self.engine.streams:
                break
            self.engine.tick()
            await breath()
        assert not state.tasks, "a connection that was lost still runs"
        assert not self.engine.streams, "a session that nobody comes back to is kept"
        assert not self.faults.found, self.faults.found.pop()
        return bytes(transport.sent)


_UPGRADE = (
    b"GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
_services: list[_Service] = []


def _service() -> _Service:
    if not _services:
        _services.append(_Service())
    return _services[0]


def http(data: bytes) -> None:
    """Bytes on a fresh connection."""
    _service().talk(None, [data[start : start + 500] for start in range(0, min(len(data), 5000), 500)])


def frames(data: bytes) -> None:
    """Bytes on an open socket of any protocol."""
    if data:
        _service().talk(_Service.PATHS[data[0] % 4], [data[1:][start : start + 500] for start in range(0, min(len(data), 5000), 500)])


def conversation(data: bytes) -> None:
    """Whole frames on an open socket: text, audio, control frames, in pieces or whole."""
    if data:
        _service().talk(_Service.PATHS[data[0] % 4], [_frame(*each) for each in _frames(data[1:])])


def _frames(data: bytes) -> Iterator[tuple[int, bool, bytes]]:
    """(opcode, whether it is the last piece, what is in it): a byte for the kind, two of length."""
    for _ in range(20):
        if len(data) < 3:
            return
        kind, size = data[0], struct.unpack("<H", data[1:3])[0] % 4000
        yield (1, 2, 1, 2, 1, 2, 0, 8, 9, 10)[kind % 10], kind < 200, data[3 : 3 + size]
        data = data[3 + size :]


def _frame(opcode: int, last: bool, data: bytes) -> bytes:
    data = data[:125] if opcode >= 8 else data
    size = bytes([128 | len(data)]) if len(data) < 126 else bytes([128 | 126]) + struct.pack("!H", len(data))
    return bytes([128 * (last or opcode >= 8) | opcode]) + size + bytes(4) + data


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (
        native_messages,
        openai_messages,
        openai_translation_messages,
        deepgram,
        pcm_audio,
        opus,
        container,
        sound_file,
        numbers,
        gate,
        form,
        http,
        frames,
        conversation,
    )
}


def seeds(name: str) -> list[bytes]:
    """Good inputs of a target: fuzzers find more when they begin with what is nearly right."""
    made: list[bytes] = _SEEDS[name]() if name in _SEEDS else []
    return [*made, b"\x00" * 40, bytes(range(200))]


def _examples(*kinds: str) -> list[bytes]:
    """The messages of docs/protocol.md."""
    page = (Path(__file__).parents[1] / "docs" / "protocol.md").read_text(encoding="utf-8")
    found = [
        part.split("```json\n", 1)[1].split("```", 1)[0] for part in page.split("<!-- ")[1:] if part.startswith(kinds) and "```json" in part
    ]
    return [json.dumps(json.loads(text)).encode() for text in found]


def _packed(first: int, parts: list[bytes]) -> bytes:
    return bytes([first]) + b"".join(struct.pack("<H", len(part)) + part for part in parts)


def _sounds() -> list[bytes]:
    made: list[bytes] = []
    samples = speech("the", silence_s=0.1)[:4000]
    for kind, subtype in (
        ("WAV", "PCM_16"),
        ("WAV", "FLOAT"),
        ("FLAC", "PCM_16"),
        ("OGG", "VORBIS"),
        ("AIFF", "PCM_24"),
        ("W64", "PCM_16"),
        ("AU", "ULAW"),
    ):
        out = io.BytesIO()
        soundfile.write(out, samples, 16_000, format=kind, subtype=subtype)
        made.append(out.getvalue())
    return made


def _streams() -> list[bytes]:
    from .containers import LIVE_WEBM, SHORT_PAGES
    from .containers import container as contained

    samples = speech("the")[:8000]
    whole = [contained(samples, "webm", **LIVE_WEBM), contained(samples, "ogg", **SHORT_PAGES)]
    return [_packed(0, [each[start : start + 700] for start in range(0, len(each), 700)]) for each in whole]


def _talks() -> list[bytes]:
    def frame(kind: int, data: bytes) -> bytes:
        return bytes([kind]) + struct.pack("<H", len(data)) + data

    audio, start = pcm(speech("the"))[:3000], b'{"type": "start", "sample_rate": 16000}'
    append = json.dumps({"type": "input_audio_buffer.append", "audio": "AAAA" * 100}).encode()
    return [
        b"\x00" + frame(0, start) + frame(1, audio) + frame(0, b'{"type": "commit"}') + frame(0, b'{"type": "finish"}'),
        b"\x00" + frame(0, b'{"type": "resume", "session": "x", "after_seq": 0}'),
        b"\x00" + frame(0, start) + frame(0, b'{"type": "gap", "samples": 16000}') + frame(201, audio) + frame(6, audio) + frame(8, b""),
        b"\x01" + frame(0, append) + frame(0, b'{"type": "input_audio_buffer.commit"}') + frame(0, b'{"type": "input_audio_buffer.clear"}'),
        *(b"\x01" + frame(0, each) + frame(0, append) for each in _examples("openai: client")),
        *(b"\x02" + frame(0, each) for each in _examples("translation: client")),
        b"\x03" + frame(1, audio) + frame(0, b'{"type": "Finalize"}') + frame(0, b'{"type": "CloseStream"}'),
    ]


_MULTIPART = (
    b'--edge\r\nContent-Disposition: form-data; name="language"\r\n\r\nen\r\n'
    b'--edge\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\nRIFF\r\n--edge--\r\n'
)
_SEEDS: dict[str, Callable[[], list[bytes]]] = {
    "native_messages": lambda: _examples("example: client", "example: server", "example: event"),
    "openai_messages": lambda: _examples("openai: client") + [b"\n".join(_examples("openai: client"))],
    "openai_translation_messages": lambda: _examples("translation: client", "openai translation: client")
    + [b'{"type": "session.update", "session": {"audio": {"output": {"language": "de"}}}}'],
    "deepgram": lambda: [b"encoding=mulaw&sample_rate=8000&keyterm=Ann&endpointing=300\nabc\n" + b"\n".join(_examples("deepgram: client"))],
    "pcm_audio": lambda: [
        struct.pack("<HBB", rate, 0, kind) + _packed(0, [bytes(640), bytes(320)])[1:] for rate in (0, 8000) for kind in (0, 1)
    ],
    "opus": lambda: [_packed(0, packets(speech("the"))[:10])],
    "container": _streams,
    "sound_file": _sounds,
    "gate": lambda: [b"/v1/info\nauthorization: Bearer x", b"/v1/stream\nsec-websocket-protocol: bearer, x\norigin: http://localhost"],
    "form": lambda: [_MULTIPART],
    "http": lambda: [b"GET /v1/info HTTP/1.1\r\nHost: localhost\r\n\r\n", _UPGRADE % b"/v1/stream"],
    "frames": lambda: [each[:1] + b"".join(_frame(*part) for part in _frames(each[1:])) for each in _talks()],
    "conversation": _talks,
}  # fmt: skip
