"""What of a frame a narrow model looks at: the strongest directions apart from all others, and nothing learnt is lost by it."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra train")

from dragoman.model.errors import ConfigError  # noqa: E402
from dragoman.model.training.frames import Matrix, covariance, span  # noqa: E402
from torch import Tensor  # noqa: E402

SAMPLES, WIDTH, STRONGEST = 40, 16, 9


def speech_like(count: int = 4000) -> Matrix:
    """[count, SAMPLES]: most of the energy in few directions."""
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.standard_normal((SAMPLES, SAMPLES)))[0]
    return rng.standard_normal((count, SAMPLES)) * np.exp(-np.arange(SAMPLES) / 6) @ turn


def rows() -> Tensor:
    return torch.from_numpy(np.random.default_rng(1).standard_normal((WIDTH, SAMPLES)).astype(np.float32))


def missed(seen: Matrix, wanted: Matrix) -> float:
    """Share of the energy of ``wanted`` [n, e] that no linear map from ``seen`` [n, d] gives."""
    found = seen @ np.linalg.lstsq(seen, wanted, rcond=1e-10)[0]
    return float(((wanted - found) ** 2).sum() / (wanted**2).sum())


def test_the_strongest_directions_are_seen_apart() -> None:
    frames, weight = speech_like(), rows()
    energy = covariance([frames.astype(np.float32)])
    held = span(weight, energy, STRONGEST)
    strongest = frames @ np.linalg.eigh(energy)[1][:, ::-1][:, :STRONGEST]
    before, after = ((frames @ w.double().numpy().T) for w in (weight, weight @ held))
    assert missed(after, strongest) < 1e-6 < 0.005 < missed(before, strongest)
    assert float(((before - after) ** 2).sum() / (before**2).sum()) < 0.1, "and the rows answer nearly as they did"
    assert int(torch.linalg.matrix_rank(held.double(), rtol=1e-4)) == WIDTH


def test_to_hold_what_is_held_changes_nothing() -> None:
    weight, energy = rows(), covariance([speech_like().astype(np.float32)])
    held = span(weight, energy, STRONGEST)
    assert torch.allclose(weight @ held @ held, weight @ held, atol=1e-4)
    assert torch.allclose(span(weight @ held, energy, STRONGEST) @ held, held, atol=2e-3), "nor does a span that is made of it"
    elsewhere = torch.randn(WIDTH, SAMPLES, generator=torch.Generator().manual_seed(0)) @ held
    assert torch.allclose(elsewhere @ held, elsewhere, atol=1e-4)


def test_how_loud_a_frame_is_does_not_count_and_silence_is_left_out() -> None:
    frames = speech_like().astype(np.float32)
    louder = frames * np.random.default_rng(2).uniform(0.1, 9, (len(frames), 1)).astype(np.float32)
    once, again = covariance([frames]), covariance([louder, np.zeros((50, SAMPLES), np.float32)])
    assert np.allclose(once, again, atol=1e-5) and np.trace(once) == pytest.approx(SAMPLES)
    assert np.array_equal(covariance([frames, louder], most=100), once), "enough is enough"
    for nothing in ([], [np.zeros((3, SAMPLES), np.float32)]):
        with pytest.raises(ConfigError, match="no frame of the clips is loud enough"):
            covariance(nothing)


@pytest.mark.parametrize("strongest", [0, WIDTH + 1])
def test_no_more_can_be_held_than_the_model_is_wide(strongest: int) -> None:
    with pytest.raises(ConfigError, match=f"strongest is {strongest}, expected 1 to {WIDTH}"):
        span(rows(), covariance([speech_like().astype(np.float32)]), strongest)
