"""Torch models as exported graphs, for the tests of the ONNX runtime."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

pytest.importorskip("onnx")
from dragoman.model.checkpoint import Model  # noqa: E402
from dragoman.model.drafter import Drafter  # noqa: E402
from dragoman.model.export import write_graphs  # noqa: E402
from dragoman.model.onnx_backend import OnnxBackend  # noqa: E402
from dragoman.model.onnx_writer import Precision  # noqa: E402


def onnx_backend(
    model: Model, drafter: Drafter | None = None, *, precision: Precision = "fp32", slack_tokens: int = 64, folder: Path | None = None
) -> OnnxBackend:
    """The model through ONNX Runtime on one thread. Without a ``folder`` the graphs are gone once they are loaded."""
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            return onnx_backend(model, drafter, precision=precision, slack_tokens=slack_tokens, folder=Path(temporary))
    write_graphs(folder, model, drafter, precision)
    return OnnxBackend(folder, model.config, name="tiny", threads=1, slack_tokens=slack_tokens)
