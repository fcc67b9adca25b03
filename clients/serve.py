"""The work behind ``dragoman serve``."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from ..stream import Loaded, Options
from ..stream.engine import Engine
from ..stream.server import listen_on, serve


def run_server(load: Callable[[], Loaded], options: Options) -> int:
    """Serve until SIGTERM or Ctrl-C, then drain. Returns 0. Raises ConfigError for a port in use, before the model is loaded."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING, stream=sys.stderr)
    taken = listen_on(options)
    try:
        host, port = taken.getsockname()[:2]
        loaded = load()
        sys.stderr.write("warming up …\n")
        asyncio.run(serve(Engine(loaded, options), taken, pages=_pages(), opened=lambda: _tell(host, port)))
    finally:
        taken.close()
    return 0


def _pages() -> Path | None:
    """The folder of the web page, if this installation has one on disk."""
    found = resources.files("dragoman.clients") / "web"
    return found if isinstance(found, Path) and found.is_dir() else None


def _tell(host: str, port: int) -> None:
    shown = "localhost" if host in ("127.0.0.1", "::1") else f"[{host}]" if ":" in host else host
    sys.stderr.write(f"ready: http://{shown}:{port}  (Ctrl-C ends)\n")
    if shown != "localhost":
        sys.stderr.write("every machine that reaches this address may use the server; there are no passwords\n")
    sys.stderr.flush()
