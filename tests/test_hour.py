"""``bench/hour.py``: two sessions hear the same in turns, and the old one has heard what it is said to have."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("psutil", reason="needs the extra bench")
MINUTE = np.zeros(16_000, np.float32)


@pytest.fixture
def hour() -> Any:
    spec = importlib.util.spec_from_file_location("hour", Path(__file__).parents[1] / "bench" / "hour.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Counted:
    """A session that writes down each piece it is given, and the piece's length."""

    made: list[Counted] = []
    order: list[Counted] = []

    def __init__(self, *given: object) -> None:
        self.samples = 0
        Counted.made.append(self)

    def push(self, piece: Any) -> None:
        self.samples += len(piece)
        Counted.order.append(self)


def test_each_round_is_the_next_minute_of_one_session_and_the_second_of_another(hour: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hour, "Session", Counted)
    monkeypatch.setattr(Counted, "made", [])
    monkeypatch.setattr(Counted, "order", [])
    found = hour.rounds(None, MINUTE, None, 5, 3)
    assert len(found) == 3 and all(old >= 0 and fresh >= 0 for old, fresh in found)
    old, *fresh = Counted.made
    assert old.samples == (4 + 3) * len(MINUTE) and [session.samples for session in fresh] == [2 * len(MINUTE)] * 3
    last = Counted.order[-50:]  # 25 pieces each
    assert [one is old for one in last[:6]] == [True, False, False, True, True, False], "each goes first as often as the other"
