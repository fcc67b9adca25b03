"""The service: an ASGI app on an engine, and a uvicorn that warms up before it opens its port and drains before it stops."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles

from ..model.errors import ConfigError
from .access import check_server, keyring
from .config import Options, ServerOptions
from .deepgram import listen_socket
from .engine import Engine
from .files import transcriptions, translations
from .gatekeeper import Gatekeeper, plain_origin
from .lag import REFUSING
from .metrics import CONTENT_TYPE, exposition
from .native import native_socket
from .openai_realtime import realtime_socket
from .openai_translation import translation_socket
from .protocol import LARGEST_AUDIO_BYTES, VERSION
from .sockets import HEAD_S, PING_S, Crowd, PatientHttp, PatientWebSocket, Sweeper

_LOG = logging.getLogger(__name__)
_TICK_S = 1.0
_DRAIN_TICK_S = 0.1
_LAST_WORDS_S = 5  # for connections to close after every stream has ended, and for anything to get on after the draining
_MOST_LAST_WORDS_S = 120  # after the draining, even if it gets on


def make_app(engine: Engine, *, pages: Path | None = None) -> Starlette:
    """All endpoints. ``pages``: folder of the web page, served at /."""
    routes: list[BaseRoute] = [
        WebSocketRoute("/v1/stream", native_socket),
        WebSocketRoute("/v1/realtime", realtime_socket),
        WebSocketRoute("/v1/realtime/translations", translation_socket),
        WebSocketRoute("/v1/listen", listen_socket),
        Route("/v1/audio/transcriptions", transcriptions, methods=["POST"]),
        Route("/v1/audio/translations", translations, methods=["POST"]),
        Route("/v1/info", _info),
        Route("/healthz", _health),
        Route("/metrics", _metrics),
    ]
    if pages is not None:
        routes.append(Mount("/", StaticFiles(directory=pages, html=True)))
    server = engine.options.server
    keys = keyring(server)
    free = ("/healthz", *_paths(pages))
    gate = Middleware(Gatekeeper, hosts=server.allow_hosts, origins=server.allow_origins, keys=keys, free=free)
    origins = [plain_origin(origin) for origin in server.allow_origins]
    # Outermost: what a browser asks beforehand has no key, and a refusal has to be readable too.
    shared = Middleware(
        CORSMiddleware, allow_origins=origins, allow_methods=("GET", "POST"), allow_headers=("*",), expose_headers=("retry-after",)
    )
    app = Starlette(routes=routes, middleware=[shared, gate] if origins else [gate])
    app.state.engine, app.state.keys = engine, keys
    return app


def _paths(pages: Path | None) -> list[str]:
    """Where the files of the page are found."""
    found = [] if pages is None else [path.relative_to(pages).as_posix() for path in pages.rglob("*") if path.is_file()]
    return ["/", *(f"/{name}" for name in found)]


async def _tick(engine: Engine) -> None:
    while True:
        await asyncio.sleep(_TICK_S)
        engine.tick()


async def _info(request: Request) -> Response:
    """What the server can do, for a page that fills its menus."""
    engine: Engine = request.app.state.engine
    options, prompts, server = engine.options.session, engine.loaded.prompts, engine.options.server
    return JSONResponse(
        {
            "version": VERSION,
            "model": engine.loaded.backend.spec.name,
            "language": options.language,
            "targets": options.targets,
            "languages": prompts.languages,
            "known_targets": [code for code in prompts.targets if code != options.language],
            "block_ms": options.block_ms,
            "recorded": server.record,
            "record_days": server.record_days,
        }
    )


async def _health(request: Request) -> Response:
    """200 while new sessions are taken, else 503, for load balancers. Where there are keys, how busy it is needs one."""
    engine: Engine = request.app.state.engine
    active, most = len(engine.active), engine.options.server.max_sessions
    full = active >= most or engine.gauge.level >= REFUSING
    status = "draining" if engine.draining_until_s is not None else "full" if full else "ok"
    state = {
        "status": status,
        "sessions": active,
        "max_sessions": most,
        "level": engine.gauge.level,
        "behind_ms": round(engine.behind_ms()),
    }
    may_see = not request.app.state.keys or request.state.visitor.key
    return JSONResponse(state if may_see else {"status": status}, 200 if status == "ok" else 503)


async def _metrics(request: Request) -> Response:
    return Response(exposition(request.app.state.engine), media_type=CONTENT_TYPE)


def _http(server: ServerOptions) -> type[PatientHttp]:
    """uvicorn makes its connections itself, from a class: what they have to know stands in it."""

    class Http(PatientHttp):
        crowd = Crowd.of(server)

    return Http


class Server(uvicorn.Server):
    """The first SIGTERM or SIGINT drains, a second one stops at once. The signal is not raised again: it was obeyed."""

    def __init__(self, app: Starlette, taken: socket.socket, opened: Callable[[], None]) -> None:
        engine: Engine = app.state.engine
        server = engine.options.server
        config = uvicorn.Config(
            app,
            http=_http(server),
            ws=PatientWebSocket,
            # A little above our own limit, so that a client that is slightly wrong gets a sentence and not only a code.
            ws_max_size=LARGEST_AUDIO_BYTES + 64 * 1024,
            ws_per_message_deflate=False,  # audio does not shrink
            # A client that is held up by back-pressure answers no pings; what is dead is found by idle_s, in which several are sent.
            ws_ping_interval=min(PING_S, server.idle_s / 3),
            ws_ping_timeout=None,
            limit_concurrency=4 * server.max_sessions + 64,  # beyond it requests are answered with 503
            # Whoever is no proxy may say what he likes about where he comes from.
            proxy_headers=bool(server.proxies),
            forwarded_allow_ips=list(server.proxies),
            ssl_certfile=server.tls_cert,
            ssl_keyfile=server.tls_key,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=_LAST_WORDS_S,
            log_config=None,
            access_log=False,
        )
        super().__init__(config)
        self._engine = engine
        self._sweeper = Sweeper(head_s=HEAD_S, stall_s=server.stall_s)
        self._socket, self._opened = taken, opened
        self._loop: asyncio.AbstractEventLoop | None = None
        self._drainer: asyncio.Task[None] | None = None

    async def run_until_stopped(self) -> None:
        """Serve on the socket given until the draining is over."""
        self._loop = asyncio.get_running_loop()
        await self.serve([self._socket])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Opens the port."""
        await super().startup(sockets)
        self._opened()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        if counter % 10 == 0 and self._sweeper.sweep(self.server_state.connections, self._engine.clock()):
            _LOG.info("connections that made no progress were cut off")
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """In the main thread, between any two instructions: only hands over to the loop."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.stop, sig)

    def stop(self, sig: int = signal.SIGTERM) -> None:
        """Drain; at the second call, stop."""
        if self._drainer is not None:
            self.should_exit = True
            self.force_exit = self.force_exit or sig == signal.SIGINT
            return
        _LOG.warning("stopping: %d sessions have up to %g s", len(self._engine.active), self._engine.options.server.drain_s)
        self._engine.drain()
        self._drainer = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        now_s = asyncio.get_running_loop().time
        patience = Patience(now_s() + self._engine.options.server.drain_s)
        while not self._engine.drained and patience.lasts(now_s(), self._engine.told):
            self._engine.tick()
            await asyncio.sleep(_DRAIN_TICK_S)
        self.should_exit = True


class Patience:
    """How long a server that stops waits for its streams. An overloaded one needs longer to say what it has heard, and as long as it gets
    on with that, no word shall be lost."""

    def __init__(self, drained_s: float) -> None:
        """``drained_s``: when the streams' own time is over."""
        self._until_s, self._last_s = drained_s + _LAST_WORDS_S, drained_s + _MOST_LAST_WORDS_S
        self._told = -1

    def lasts(self, now_s: float, told: int) -> bool:
        """``told``: a number that changes when anything is heard or sent."""
        if told != self._told:
            self._told, self._until_s = told, max(self._until_s, now_s + _LAST_WORDS_S)
        return now_s < min(self._until_s, self._last_s)


def listen_on(options: Options) -> socket.socket:
    """The port, taken but not yet open: nobody can connect before the model is warm. Raises ConfigError if it is in use, or if the options
    would let in whom nobody meant to."""
    server = options.server
    check_server(server)
    family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
    taken = socket.socket(family, socket.SOCK_STREAM)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((server.host, server.port))
    except OSError as error:
        taken.close()
        raise ConfigError(f"cannot listen on {server.host}:{server.port}: {error.strerror or error}") from error
    return taken


async def serve(engine: Engine, taken: socket.socket, *, pages: Path | None = None, opened: Callable[[], None] = lambda: None) -> None:
    """Warm up, open the port, serve until SIGTERM or SIGINT, drain. ``opened`` is called when clients may connect.

    Raises what a first session would raise: a language that the model lacks is found here and not by the first client.
    """
    try:
        async with engine:
            await engine.warm_up()
            ticker = asyncio.create_task(_tick(engine))
            try:
                await Server(make_app(engine, pages=pages), taken, opened).run_until_stopped()
            finally:
                ticker.cancel()
    finally:
        taken.close()
