"""Connections that send nothing, take nothing, or flood: on loopback against the real server, and the sweeper by itself."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
from typing import Any

import pytest
from dragoman.stream.config import ServerOptions
from dragoman.stream.server import Server
from dragoman.stream.sockets import Crowd, PatientWebSocket, Sweeper
from uvicorn.protocols.http.h11_impl import H11Protocol

from .live import Live, breath, make_engine, rest, run, serving, talking

UPGRADE = (
    "GET /v1/stream HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
).encode()
MASK = bytes(4)  # a mask of zeros leaves the data as it is


def frame(opcode: int, data: bytes, *, last: bool = True) -> bytes:
    """A frame as clients send it."""
    size = bytes([128 | len(data)]) if len(data) < 126 else bytes([128 | 126]) + struct.pack("!H", len(data))
    return bytes([128 * last | opcode]) + size + MASK + data


class _Transport:
    def __init__(self) -> None:
        self.closing = self.aborted = False

    def is_closing(self) -> bool:
        return self.closing

    def abort(self) -> None:
        self.aborted = True


class _Http(H11Protocol):
    """The state that the sweeper looks at, and nothing else of uvicorn's."""

    def __init__(self, *, complete: bool | None = None, paused: bool = False, theirs: str = "IDLE") -> None:
        self.transport: Any = _Transport()
        self.cycle: Any = None if complete is None else type("Cycle", (), {"response_complete": complete})()
        self.flow: Any = type("Flow", (), {"write_paused": paused})()
        self.conn: Any = type("Conn", (), {"their_state": theirs})()


class _Socket(PatientWebSocket):
    def __init__(self, *, writable: bool) -> None:
        self.transport: Any = _Transport()
        self.writable = asyncio.Event()
        if writable:
            self.writable.set()


def closing(connection: Any) -> Any:
    connection.transport.closing = True
    return connection


@pytest.mark.parametrize(
    ("connection", "limit_s"),
    [
        (_Http(), 10),  # no request yet
        (_Http(complete=True), 10),  # no next request
        (_Http(complete=True, theirs="SEND_BODY"), 60),  # still sends what nobody reads
        (_Http(complete=False, paused=True), 60),  # does not read the answer
        (_Http(complete=False), None),  # is waited for by us
        (_Socket(writable=False), 60),
        (_Socket(writable=True), None),
        (closing(_Socket(writable=True)), 60),  # does not take what was left when it was closed
    ],
)
def test_who_owes_something_is_cut_off_in_time(connection: Any, limit_s: int | None) -> None:
    sweeper = Sweeper(head_s=10, stall_s=60)
    for now_s in range(100):
        sweeper.sweep([connection], float(now_s))
        assert connection.transport.aborted == (limit_s is not None and now_s >= limit_s)


def test_who_goes_on_is_left_alone() -> None:
    sweeper, stalled, busy = Sweeper(head_s=10, stall_s=60), _Socket(writable=False), _Http(complete=True)
    cycles = [busy.cycle]
    for now_s in range(500):
        (stalled.writable.clear if now_s % 50 else stalled.writable.set)()
        if now_s % 9 == 0:  # asks again and again
            busy.cycle = type("Cycle", (), {"response_complete": True})()
            cycles.append(busy.cycle)
        assert sweeper.sweep([stalled, busy], float(now_s)) == 0


async def cut_off(live: Live, reader: asyncio.StreamReader) -> bytes:
    """Everything that still comes until the server ends the connection; the sweeper's time passes at once."""
    taken, reading = b"", asyncio.create_task(reader.read())
    for step in range(100_000):
        live.server._sweeper.sweep(live.server.server_state.connections, 1e12 * (step + 1))  # pyright: ignore[reportPrivateUsage]
        if reading.done():
            break
        await breath()
    try:
        taken = await reading
    except ConnectionResetError:
        pass
    return taken


@pytest.mark.parametrize("said", [b"", b"GET / HT", UPGRADE[:-2]])
def test_a_half_open_connection_is_cut_off(said: bytes) -> None:
    async def test() -> tuple[bytes, int]:
        async with serving(make_engine()) as live:
            reader, writer = await asyncio.open_connection("127.0.0.1", live.port)
            writer.write(said)
            while not live.server.server_state.connections:
                await breath()
            answer = await cut_off(live, reader)
            writer.close()
            return answer, len(live.server.server_state.connections)

    assert run(test()) == (b"", 0)


def test_uvicorn_sweeps_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> int:
        async with serving(make_engine()) as live:
            swept: list[int] = []
            live.server._sweeper.sweep = lambda connections, now_s: swept.append(len(connections)) or 0  # type: ignore[method-assign, assignment]
            for counter in range(21):
                await Server.on_tick(live.server, counter)
            return len(swept)

    assert run(test()) == 3


async def _deaf(live: Live, *said: bytes) -> socket.socket:
    """A client with a small window that has opened a socket, has said this, and reads nothing more."""
    loop = asyncio.get_running_loop()
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    await loop.sock_connect(client, ("127.0.0.1", live.port))
    await loop.sock_sendall(client, UPGRADE)
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += await loop.sock_recv(client, 1)
    assert b" 101 " in answer
    for connection in live.server.server_state.connections:  # or megabytes fit in between
        connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    for data in said:
        await loop.sock_sendall(client, data)
    return client


def _buffered(live: Live) -> int:
    return max((each.transport.get_write_buffer_size() for each in live.server.server_state.connections), default=0)


def test_a_client_that_only_pings_and_never_reads_costs_no_memory() -> None:
    """Pongs are not held back by back-pressure: without a limit they pile up as fast as the client can ping."""
    pings = frame(9, bytes(125)) * 4000  # half a megabyte

    async def test() -> int:
        async with serving(make_engine()) as live:
            client = await _deaf(live, *[pings] * 8)
            most = 0
            for _ in range(200):
                most = max(most, _buffered(live))
                await breath()
            client.close()
            return most

    assert run(test()) < 200_000


def test_a_message_of_many_empty_pieces_costs_no_memory() -> None:
    async def test() -> tuple[int, list[Any]]:
        async with serving(make_engine()) as live, talking(live) as (client, _):
            transport: Any = client.transport
            transport.write(frame(2, bytes(320), last=False))
            for _ in range(30):
                transport.write(frame(0, b"", last=False) * 1000)
                await breath()
            transport.write(frame(0, bytes(320), last=False))
            (connection,) = live.server.server_state.connections
            pieces = 0
            for _ in range(50):
                pieces = max(pieces, len(connection.frames))  # type: ignore[union-attr]
                await breath()
            transport.write(frame(0, b"", last=True))
            await client.send('{"type": "finish"}')
            return pieces, await rest(client)

    pieces, messages = run(test())
    assert pieces <= 1000 and messages[-1]["type"] == "ended" and messages[-1]["audio_ms"] == 20


def test_a_client_that_does_not_read_is_cut_off_and_may_come_back() -> None:
    """Keeps its session, costs a bounded amount of memory, and its place is free again when nobody comes."""
    start = frame(1, json.dumps({"type": "start", "sample_rate": 16000}).encode())
    audio = frame(2, bytes(64_000)) + frame(1, json.dumps({"type": "commit"}).encode()) * 20

    async def test() -> tuple[int, bool, int]:
        async with serving(make_engine(queue_ms=1000)) as live:
            client = await _deaf(live, start)
            while not live.engine.streams:
                await breath()
            sending = asyncio.create_task(_send_for_ever(client, audio))
            (connection,) = live.server.server_state.connections
            while connection.writable.is_set():  # type: ignore[union-attr]
                await breath()
            most = _buffered(live)
            for step in range(2):
                live.server._sweeper.sweep(live.server.server_state.connections, 1e12 * step)  # pyright: ignore[reportPrivateUsage]
            (stream,) = live.engine.streams.values()
            while stream.detached_s is None:
                await breath()
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            client.close()
            return most, not stream.over, len(live.server.server_state.connections)

    most, kept, left = run(test())
    assert most < 500_000 and kept and left == 0


async def _send_for_ever(client: socket.socket, data: bytes) -> None:
    while True:
        await asyncio.get_running_loop().sock_sendall(client, data)


def test_connections_beyond_the_crowd_are_closed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Crowd, "of", classmethod(lambda cls, server: Crowd(3)))

    async def test() -> tuple[list[bytes], bytes]:
        async with serving(make_engine()) as live:
            held = [await asyncio.open_connection("127.0.0.1", live.port) for _ in range(3)]
            while len(live.server.server_state.connections) < 3:
                await breath()
            reader, writer = await asyncio.open_connection("127.0.0.1", live.port)
            try:
                refused = await reader.read()
            except ConnectionResetError:
                refused = b""
            writer.close()
            held[0][1].write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            answer = await held[0][0].read()
            for _, each in held:
                each.close()
            return [refused], answer

    refused, answer = run(test())
    assert refused == [b""] and answer.startswith(b"HTTP/1.1 200")


def test_the_crowd_of_one_address() -> None:
    assert Crowd.of(ServerOptions()).most_per_address is None
    assert Crowd.of(ServerOptions(sessions_per_address=2)) == Crowd(8 * 8 + 128, 24)
    assert Crowd.of(ServerOptions(sessions_per_address=2, proxies=("127.0.0.1",))).most_per_address is None


def test_one_address_cannot_take_all_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Crowd, "of", classmethod(lambda cls, server: Crowd(100, 2)))

    async def test() -> int:
        async with serving(make_engine(sessions_per_address=1)) as live:
            held = [await asyncio.open_connection("127.0.0.1", live.port) for _ in range(5)]
            for reader, _ in held[2:]:
                try:
                    assert await reader.read() == b""
                except ConnectionResetError:
                    pass
            left = len(live.server.server_state.connections)
            for _, writer in held:
                writer.close()
            return left

    assert run(test()) == 2


def test_what_was_random_is_no_request() -> None:
    """Garbage gets an answer or an end, and is forgotten."""

    async def test() -> int:
        async with serving(make_engine()) as live:
            for _ in range(20):
                reader, writer = await asyncio.open_connection("127.0.0.1", live.port)
                writer.write(os.urandom(200) + b"\r\n\r\n")
                writer.write_eof()
                await cut_off(live, reader)
                writer.close()
            while live.server.server_state.connections:
                await breath()
            return len(live.server.server_state.tasks)

    assert run(test()) == 0
