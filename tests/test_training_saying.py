"""The loss of what a decoder says, made a few rows at a time, is the one that is written out."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from dragoman.model.training.saying import ROWS, Asked, saying_loss  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn import functional as F  # noqa: E402

WIDTH, VOCABULARY = 8, 50


def spelt_out(hidden: Tensor, asked: Asked) -> tuple[Tensor, dict[str, float]]:
    ours = F.linear(hidden, asked.table).log_softmax(-1)
    words = F.nll_loss(ours, asked.labels)
    total, figures = asked.words * words, {"words": float(words.detach())}
    figures["words_right"] = float((ours.argmax(-1) == asked.labels).float().mean())
    if asked.wanted is not None and asked.known is not None and asked.known.any():
        theirs = F.linear(asked.wanted, asked.table).log_softmax(-1)
        said = F.kl_div(ours[asked.known], theirs[asked.known], log_target=True, reduction="batchmean")
        total = total + asked.said * said
        figures |= {"said": float(said.detach()), "same": float((ours.argmax(-1) == theirs.argmax(-1))[asked.known].float().mean())}
    return total, figures


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 2 * ROWS + 3), seed=st.integers(0, 1000), known=st.sampled_from([None, 0.0, 0.5, 1.0]), outer=st.floats(0.1, 3.0))
def test_value_figures_and_gradient_are_those_of_the_loss_spelt_out(n: int, seed: int, known: float | None, outer: float) -> None:
    chance = torch.Generator().manual_seed(seed)
    hidden, wanted = (3 * torch.randn(n, WIDTH, generator=chance) for _ in range(2))
    table, labels = torch.randn(VOCABULARY, WIDTH, generator=chance), torch.randint(VOCABULARY, (n,), generator=chance)
    worth = None if known is None else torch.rand(n, generator=chance) < known
    asked = Asked(table, labels, None if known is None else wanted, worth, words=0.5, said=1.5)
    found: list[tuple[Tensor, dict[str, float], Tensor]] = []
    for loss in (saying_loss, spelt_out):
        x = hidden.clone().requires_grad_()
        total, figures = loss(x, asked)
        (total * outer).backward()
        assert x.grad is not None
        found.append((total.detach(), figures, x.grad))
    (mine, my_figures, my_gradient), (plain, figures, gradient) = found
    assert float(mine) == pytest.approx(float(plain), rel=1e-5)
    assert my_figures == pytest.approx(figures, rel=1e-4, abs=1e-6)
    torch.testing.assert_close(my_gradient, gradient, rtol=1e-4, atol=1e-6)


def test_half_precision_stays_near() -> None:
    """Products in bfloat16, sums in float32, as autocast has them."""
    chance = torch.Generator().manual_seed(0)
    hidden, wanted, table = (torch.randn(n, WIDTH, generator=chance) for n in (100, 100, VOCABULARY))
    labels, known = torch.randint(VOCABULARY, (100,), generator=chance), torch.arange(100) < 70
    exact = hidden.clone().requires_grad_()
    half = hidden.bfloat16().requires_grad_()
    for x, target in ((exact, wanted), (half, wanted.bfloat16())):
        saying_loss(x, Asked(table, labels, target, known))[0].backward()
    assert exact.grad is not None and half.grad is not None and half.grad.dtype is torch.bfloat16
    assert float((half.grad.float() - exact.grad).norm() / exact.grad.norm()) < 0.02
