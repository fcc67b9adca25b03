"""The work behind ``dragoman serve``."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from ..stream import Loaded, Options
from ..stream.config import ServerOptions
from ..stream.engine import Engine
from ..stream.server import listen_on, serve

_RECORDED = {"text": "the text of all sessions", "audio": "the audio of all sessions", "both": "audio and text of all sessions"}


def run_server(load: Callable[[], Loaded], options: Options) -> int:
    """Serve until SIGTERM or Ctrl-C, then drain. Returns 0. Raises ConfigError for a port in use, before the model is loaded."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING, stream=sys.stderr)
    for name in ("uvicorn.error", "python_multipart"):  # what clients do wrong is told to them, and must not fill the log
        logging.getLogger(name).setLevel(logging.ERROR)
    taken = listen_on(options)
    try:
        host, port = taken.getsockname()[:2]
        server = options.server
        loaded = load()
        sys.stderr.write("warming up …\n")
        asyncio.run(serve(Engine(loaded, options), taken, pages=_pages(), opened=lambda: _tell(server, host, port)))
    finally:
        taken.close()
    return 0


def _pages() -> Path | None:
    """The folder of the web page, if this installation has one on disk."""
    found = resources.files("dragoman.clients") / "web"
    return found if isinstance(found, Path) and found.is_dir() else None


def _tell(server: ServerOptions, host: str, port: int) -> None:
    shown = "localhost" if host in ("127.0.0.1", "::1") else f"[{host}]" if ":" in host else host
    scheme = "http" if server.tls_cert is None else "https"
    sys.stderr.write(f"ready: {scheme}://{shown}:{port}  (Ctrl-C ends)\n")
    has_keys = bool(server.keys or server.keys_file)
    if has_keys:
        sys.stderr.write("clients need a key\n")
    if shown != "localhost" and not has_keys:
        sys.stderr.write("every machine that reaches this address may use the server; there is no key\n")
    if shown != "localhost" and server.tls_cert is None:
        sys.stderr.write("audio, text and keys cross the network in the clear; see --tls-cert, or put a proxy with TLS in front\n")
    if server.record != "nothing":
        sys.stderr.write(f"recording {_RECORDED[server.record]} in {server.record_dir}, kept for {server.record_days:g} days\n")
    sys.stderr.flush()
