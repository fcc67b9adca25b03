"""Who may talk to the server: an ASGI layer in front of everything, for HTTP and sockets alike.

A page on the internet can make its reader's browser call a server on the reader's own machine. Two checks keep it out: the Origin must be
the server's own, and the Host must be localhost, a plain address or a name that was allowed (a name that an attacker has pointed at
127.0.0.1 is none of these). Where there are keys, everything but the page's own files and /healthz needs one.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .access import Keyring, Visitor, address_of, shown_key

# For the page: nothing but the server's own files and sockets; blobs are the page's own downloads and worklets.
_PAGE_HEADERS = {
    "content-security-policy": (
        "default-src 'self'; connect-src 'self'; img-src 'self' data:; media-src 'self' blob:; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


# One refusal for the clients of every protocol: each looks for what is wrong under a name of its own.
_NO_KEY = "no valid key; expected Authorization: Bearer KEY"
_UNAUTHORIZED = {
    "type": "error",
    "code": "unauthorized",
    "message": _NO_KEY,
    "error": {"message": _NO_KEY, "type": "invalid_request_error", "param": None, "code": "invalid_api_key"},
    "err_code": "INVALID_AUTH",
    "err_msg": _NO_KEY,
}


class Gatekeeper:
    """Refuses foreign hosts and origins with 403, visitors without a key with 401, and puts safe headers on what is served. What is let in
    finds its ``Visitor`` in the scope's state."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Collection[str] = (),
        origins: Collection[str] = (),
        keys: Keyring | None = None,
        free: Collection[str] = (),
    ) -> None:
        """``free``: paths that need no key (files that everybody has, the health that load balancers ask for)."""
        self._app = app
        self._hosts = frozenset(name.lower() for name in hosts)
        self._origins = frozenset(map(plain_origin, origins))
        self._keys = keys or Keyring()
        self._free = frozenset(free)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await refusal(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                named = {name for name, _ in message["headers"]}
                extra = [(name.encode(), value.encode()) for name, value in _PAGE_HEADERS.items() if name.encode() not in named]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        await self._app(scope, receive, guarded)

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        """What is answered instead; None: come in."""
        problem = self._problem(headers)
        if problem is not None:
            return PlainTextResponse(problem + "\n", status_code=403)
        name = self._keys.name_of(shown_key(headers.get("authorization"), scope.get("subprotocols", ()))) if self._keys else None
        if self._keys and name is None and (scope["type"] == "websocket" or scope["path"] not in self._free):
            return JSONResponse(_UNAUTHORIZED, 401, {"www-authenticate": "Bearer"})
        scope.setdefault("state", {})["visitor"] = Visitor(name or "", address_of(scope.get("client")))
        return None

    def _problem(self, headers: Headers) -> str | None:
        host = headers.get("host", "")
        if not self._host_is_ours(host):
            return f"host {host[:80]!r} is not known; start the server with --allow-host NAME to be reached under a name"
        origin = headers.get("origin")
        if origin is None or plain_origin(origin) in self._origins:
            return None
        if not _is_of(origin, host):
            return f"origin {origin[:80]!r} is not {host!r}; start the server with --allow-origin to let other pages use it"
        return None

    def _host_is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name == "localhost" or name.endswith(".localhost") or name in self._hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def plain_origin(origin: str) -> str:
    """As browsers write it, whoever has configured it."""
    return origin.lower().rstrip("/")


def _is_of(origin: str, host: str) -> bool:
    try:
        return urlsplit(origin).netloc.lower() == host.lower()
    except ValueError:  # a bracket that is not closed
        return False
