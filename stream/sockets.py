"""uvicorn's connections, made to hold against clients that send nothing, take nothing, or send what costs more than it is.

uvicorn answers whoever asks, for as long as it takes them to ask: a connection that never finishes its request, or never reads the answer,
stays for ever. Here a sweeper looks at all of them once in a while.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from .access import address_of
from .config import ServerOptions

_MOST_PIECES = 1000  # of one message, before they are joined
PING_S = 20.0  # between two pings
HEAD_S = 10.0  # for a whole request line and its headers


@dataclass(frozen=True, slots=True)
class Crowd:
    """How many connections there may be, busy or idle."""

    most: int
    most_per_address: int | None = None

    @classmethod
    def of(cls, server: ServerOptions) -> Crowd:
        """Room for each session to come back while its old connection is not yet found dead, and for pages, metrics and uploads."""
        each = server.sessions_per_address
        # What comes through a proxy all comes from one address; there only sessions are counted by theirs.
        return cls(8 * server.max_sessions + 128, None if each is None or server.proxies else 4 * each + 16)


class PatientHttp(H11Protocol):
    """HTTP. ``crowd`` is set by the server; beyond it a connection is closed without an answer, which costs nothing."""

    crowd = Crowd(1000)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if not self._has_room():
            transport.abort()

    def _has_room(self) -> bool:
        if len(self.connections) > self.crowd.most:
            return False
        most, address = self.crowd.most_per_address, address_of(self.client)
        others: set[Any] = {*self.connections}
        return most is None or sum(address_of(other.client) == address for other in others) <= most


class PatientWebSocket(WebSocketsSansIOProtocol):
    """A socket that stays small: pings are not answered to a client that takes nothing, and a message in many pieces is one piece here.

    It knows whether anybody is there: a client that has nothing to say still answers pings. ``state.silence_s`` of its ASGI scope tells
    for how many seconds nothing at all has come.
    """

    heard_s = 0.0  # of the loop's clock: when bytes came last

    def data_received(self, data: bytes) -> None:
        self.heard_s = self.loop.time()
        super().data_received(data)

    def handle_connect(self, event: Any) -> None:
        super().handle_connect(event)
        scope: Any = getattr(self, "scope", None)  # None: the request was refused
        if scope is not None:
            scope["state"]["silence_s"] = lambda: self.loop.time() - self.heard_s

    def handle_ping(self) -> None:
        output = self.conn.data_to_send()
        if self.writable.is_set():
            self.transport.write(b"".join(output))

    async def send(self, message: Any) -> None:
        """uvicorn takes an answer in place of a socket (401, 403, 503) for an app that forgot to answer, and writes that into the log."""
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            self.handshake_complete = True

    def handle_parser_exception(self) -> None:
        """Broken frames: what the app sends from now on goes to a client that has left, and is no fault of the app."""
        super().handle_parser_exception()
        self.disconnected = True

    def send_receive_event_to_app(self) -> None:
        """uvicorn writes a traceback into the log for every text that is none: a client must not fill it."""
        if self.curr_msg_data_type == "text" and not self.close_sent and not _is_utf8(b"".join(self.frames)):
            self.frames = []
            self.conn.send_close(1007)
            self.handle_parser_exception()
        else:
            super().send_receive_event_to_app()

    def handle_cont(self, event: Any) -> None:
        super().handle_cont(event)
        if len(self.frames) >= _MOST_PIECES:  # most may be empty: their number is not limited by the size of a message
            self.frames = [b"".join(self.frames)]


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


class Sweeper:
    """Cuts off connections that have made no progress: those without a whole request, those whose client does not read, and those that
    are closed and whose client does not take the rest. Pure but for ``abort``."""

    def __init__(self, *, head_s: float, stall_s: float) -> None:
        self._limits_s = {"head": head_s, "stall": stall_s, "close": stall_s}
        # What a connection was found waiting for, since when; a connection that answers many requests waits for each anew.
        self._waiting: WeakKeyDictionary[Any, tuple[str, object, float]] = WeakKeyDictionary()

    def sweep(self, connections: Iterable[Any], now_s: float) -> int:
        """Look at uvicorn's connections at ``now_s``. How many were cut off."""
        cut = 0
        for connection in list(connections):
            found = _waits_for(connection)
            known = self._waiting.get(connection)
            if found is None:
                self._waiting.pop(connection, None)
            elif known is None or known[:2] != found:
                self._waiting[connection] = (*found, now_s)
            elif now_s - known[2] >= self._limits_s[found[0]]:
                connection.transport.abort()
                cut += 1
        return cut


def _waits_for(connection: Any) -> tuple[str, object] | None:
    """What the client owes: "head", "stall" or "close", and for which request. None: nothing."""
    if connection.transport.is_closing():
        return "close", None
    if isinstance(connection, WebSocketsSansIOProtocol):
        return None if connection.writable.is_set() else ("stall", None)
    cycle = connection.cycle
    if cycle is None or cycle.response_complete:
        # Many clients read an answer only when they have sent everything, which is then thrown away.
        return "close" if str(connection.conn.their_state) == "SEND_BODY" else "head", id(cycle)
    return ("stall", None) if connection.flow.write_paused else None
