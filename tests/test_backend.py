"""The seam's own checks, and that both runtimes in this repository fit its protocol."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from dragoman.model.backend import Backend, ModelSpec, check_frames
from dragoman.model.errors import AudioFormatError
from dragoman.model.torch_backend import TorchBackend

from .fakes import ScriptedBackend
from .tiny_models import tiny_config


@pytest.mark.parametrize("runtime", [TorchBackend, ScriptedBackend])
@pytest.mark.parametrize("verb", ["new_cache", "listen", "look", "step", "draft"])
def test_verbs_have_the_parameters_of_the_protocol(runtime: type, verb: str) -> None:
    wanted = [(p.name, p.kind) for p in inspect.signature(getattr(Backend, verb)).parameters.values()]
    assert [(p.name, p.kind) for p in inspect.signature(getattr(runtime, verb)).parameters.values()] == wanted


def test_whole_float_frames_pass() -> None:
    for dtype in (np.float32, np.float64):
        check_frames(np.zeros((3, 640), dtype), 640)
    check_frames(np.zeros((0, 640), np.float32), 640)


@pytest.mark.parametrize("frames", [np.zeros(640, np.float32), np.zeros((3, 639), np.float32), np.zeros((3, 640), np.int16)])
def test_other_frames_are_refused_with_both_shapes(frames: np.ndarray) -> None:
    with pytest.raises(AudioFormatError, match=r"expected float frames \[n, 640\] in \[-1, 1\], got \["):
        check_frames(frames, 640)


def test_the_spec_derives_the_frame_from_the_model() -> None:
    assert ModelSpec("any", tiny_config()).frame_samples == 640
