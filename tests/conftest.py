"""What holds for every test: no network beyond this machine, and repeatable random examples."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# The machine's speed must not decide whether a property holds; in CI the examples are the same at every run.
settings.register_profile("local", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("local"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that reaches for another machine fails with the address it wanted."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        host = address[0] if isinstance(address, tuple) else ""
        if self.family in (socket.AF_INET, socket.AF_INET6) and host not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test wanted to connect to {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture
def training_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the CPU multiplies bfloat16 (training.precision): what is the same but for rounding can be told from what is not."""
    torch = pytest.importorskip("torch", reason="needs the extra train")
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)


@pytest.fixture(scope="session")
def clips() -> Path:
    """The folder of short test clips; ``<name>.txt`` beside each holds its words."""
    return Path(__file__).parent / "clips"
