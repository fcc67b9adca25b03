"""Pages of other sites, and names that are not ours, are kept out."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from dragoman.stream.gatekeeper import Gatekeeper
from dragoman.stream.server import make_app
from starlette.types import Message, Receive, Scope, Send

from .live import make_engine, run, serving


async def _app(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"in"})


def ask(host: str | None, origin: str | None = None, kind: str = "http", **allowed: Any) -> tuple[int, dict[bytes, bytes], bytes]:
    headers = [(b"host", host.encode("latin-1"))] if host is not None else []
    headers += [(b"origin", origin.encode("latin-1"))] if origin is not None else []
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request"}

    scope = {"type": kind, "headers": headers, "method": "GET", "path": "/", "extensions": {"websocket.http.response": {}}}
    run(Gatekeeper(_app, **allowed)(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("localhost:8000", None, 200),
        ("127.0.0.1:8000", None, 200),
        ("[::1]:8000", "http://[::1]:8000", 200),
        ("192.168.1.20:8000", "http://192.168.1.20:8000", 200),
        ("localhost:8000", "http://localhost:8000", 200),
        ("evil.example:8000", None, 403),  # a name that was pointed at this machine
        ("localhost.evil.example", None, 403),
        ("", None, 403),
        (None, None, 403),
        ("[::1", None, 403),
        ("localhost:8000", "https://evil.example", 403),
        ("localhost:8000", "http://localhost:9000", 403),
        ("localhost:8000", "null", 403),
        ("localhost:8000", "http://[", 403),
        ("localhost:8000", "", 403),
    ],
)
def test_who_may_come(kind: str, host: str | None, origin: str | None, status: int) -> None:
    assert ask(host, origin, kind)[0] == status


def test_names_and_origins_can_be_allowed() -> None:
    allowed = {"hosts": ["Captions.example"], "origins": ["https://pages.example/"]}
    assert ask("captions.example", "https://pages.example", **allowed)[0] == 200
    assert ask("captions.example", "http://pages.example", **allowed)[0] == 403
    assert ask("other.example", None, **allowed)[0] == 403


def test_a_refusal_says_what_to_do() -> None:
    assert b"--allow-host" in ask("evil.example")[2]
    assert b"--allow-origin" in ask("localhost", "https://evil.example")[2]


def test_pages_are_served_with_a_content_security_policy() -> None:
    headers = ask("localhost")[1]
    assert b"default-src 'self'" in headers[b"content-security-policy"]
    assert headers[b"x-content-type-options"] == b"nosniff"


def test_a_foreign_page_gets_403_before_the_socket_opens() -> None:
    from websockets.asyncio.client import connect
    from websockets.exceptions import InvalidStatus

    async def test() -> int:
        async with serving(make_engine()) as live:
            with pytest.raises(InvalidStatus) as caught:
                async with connect(live.ws, origin="https://evil.example"):  # type: ignore[arg-type]
                    pass
            return caught.value.response.status_code

    assert run(test()) == 403


def test_pages_of_an_allowed_site_may_read_what_they_ask_for() -> None:
    """What a browser asks before it sends a key or a form to another site, and what it needs in the answer."""
    site = "https://pages.example"
    engine = make_engine(allow_origins=[site + "/"])
    app = make_app(engine)

    async def ask(method: str, path: str, origin: str, **more: str) -> tuple[int, dict[str, str]]:
        told: list[Message] = []
        named = {"host": "localhost", "origin": origin, **more}
        headers = [(name.replace("_", "-").encode(), value.encode()) for name, value in named.items()]
        scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": headers, "client": ("127.0.0.1", 1)}

        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            told.append(message)

        await app({**scope, "http_version": "1.1", "scheme": "http", "root_path": ""}, receive, send)
        return told[0]["status"], {name.decode(): value.decode() for name, value in told[0]["headers"]}

    before = {"access_control_request_method": "POST", "access_control_request_headers": "authorization,x-stainless-os"}
    status, headers = asyncio.run(ask("OPTIONS", "/v1/audio/transcriptions", site, **before))
    assert status == 200 and headers["access-control-allow-origin"] == site
    assert "POST" in headers["access-control-allow-methods"] and "x-stainless-os" in headers["access-control-allow-headers"]
    status, headers = asyncio.run(ask("GET", "/v1/info", site))
    assert status == 200 and headers["access-control-allow-origin"] == site
    status, headers = asyncio.run(ask("GET", "/v1/info", "https://evil.example"))
    assert status == 403 and "access-control-allow-origin" not in headers
    status, headers = asyncio.run(ask("OPTIONS", "/v1/audio/transcriptions", "https://evil.example", **before))
    assert status >= 400 and "access-control-allow-origin" not in headers
