"""What text alone expects: probabilities, and where rows are told of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra train")
pytest.importorskip("rapidfuzz", reason="needs the extra train")
pytest.importorskip("scipy", reason="needs the extra train")

import tokenizers  # noqa: E402
from dragoman.model.training import text  # noqa: E402
from dragoman.model.training.batches import Batches  # noqa: E402
from dragoman.model.training.ngrams import NGrams, count  # noqa: E402
from dragoman.model.training.precision import autocast  # noqa: E402
from dragoman.model.training.rows import IGNORE  # noqa: E402
from dragoman.model.training.student import LEAST_LOGIT, NEVER_SAID, LossWeights  # noqa: E402
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from .training_fakes import SENTENCES, make_batches, make_student  # noqa: E402

VOCABULARY = 5
TEXTS = st.lists(st.lists(st.integers(0, VOCABULARY - 1), max_size=8), max_size=6)


def expected_by_definition(texts: list[list[int]], context: list[int], order: int) -> np.ndarray:
    """Witten and Bell: P_n = (counts + kinds · P_(n-1)) / (total + kinds), from an even distribution up."""
    chances = np.full(VOCABULARY, 1 / VOCABULARY)
    for n in range(1, order + 1):
        if n - 1 > len(context):
            break
        before = context[len(context) - (n - 1) :]
        seen = Counter(t[i + n - 1] for t in texts for i in range(len(t) - n + 1) if t[i : i + n - 1] == before)
        if seen:
            counts = np.asarray([seen[token] for token in range(VOCABULARY)])
            chances = (counts + len(seen) * chances) / (counts.sum() + len(seen))
    return chances


@given(TEXTS, st.lists(st.integers(0, VOCABULARY - 1), max_size=8), st.integers(1, 4))
def test_chances_are_those_of_the_definition(texts: list[list[int]], asked: list[int], order: int):
    chances = NGrams(texts, VOCABULARY, order)(asked)
    assert chances.shape == (len(asked) + 1, VOCABULARY)
    for i, row in enumerate(chances):
        np.testing.assert_allclose(row, expected_by_definition(texts, asked[:i], order), atol=1e-6)


def test_n_grams_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="need 90 bits, expected at most 62"):
        NGrams([], 262_144, 5)


@pytest.fixture
def tokenizer(tmp_path: Path) -> tokenizers.Tokenizer:
    return text.train_tokenizer(iter(SENTENCES * 4), tmp_path / "tokenizer.json", vocab_size=320)


def told(batches: Batches, tokenizer: tokenizers.Tokenizer) -> Batches:
    batches.ngrams = count(SENTENCES, tokenizer)
    return batches


def test_words_are_told_what_else_was_likely_and_ends_are_not(tmp_path: Path, tokenizer: tokenizers.Tokenizer):
    batch = told(make_batches(tmp_path, tokenizer, labelled=1.0, wrong_tokens=0.5), tokenizer)[0]
    asked = batch.labels[batch.labels != IGNORE]
    assert batch.expected.shape == (len(asked), 320)
    sums = batch.expected.float().sum(-1)
    assert torch.equal(sums == 0, asked == text.END)
    assert torch.allclose(sums[asked != text.END], torch.tensor(1.0), atol=2e-2)
    likeliest = (batch.expected.argmax(-1) == asked)[asked != text.END].float().mean()
    assert float(likeliest) > 0.6, "the sentences are known, and wrong tokens that are shown change nothing of what could have been said"


@pytest.mark.parametrize("look", [{"written": 1.0}, {"labelled": 0.0, "silence": 0.0}])
def test_rows_that_transcribe_nothing_are_told_nothing(tmp_path: Path, tokenizer: tokenizers.Tokenizer, look: dict[str, float]):
    batch = told(make_batches(tmp_path, tokenizer, **look), tokenizer)[0]
    assert len(batch.expected) == int((batch.labels != IGNORE).sum()) and not batch.expected.any()


def test_the_loss_asks_for_a_share_of_what_is_expected(tmp_path: Path, tokenizer: tokenizers.Tokenizer):
    batch, student = told(make_batches(tmp_path, tokenizer, labelled=1.0), tokenizer)[0], make_student()
    batch = replace(batch, expected=batch.expected.roll(7, -1))  # of sentences that are known, what is expected is what is said
    with torch.no_grad():
        student.backbone.norm.weight.fill_(4.0)  # sure of something: a new model has the same loss whatever is asked for
    weights = LossWeights(features=0.0, characters=0.0)
    plain = student(batch, weights)[1]["words"]
    soft = student(batch, LossWeights(features=0.0, characters=0.0, expected=0.25))[1]["words"]
    asked = batch.labels != IGNORE
    with torch.no_grad(), autocast():
        logits = student.backbone.logits(student.backbone.norm(student.hidden_states(batch)[-1][asked])).float()
        logits = logits.index_fill(-1, torch.tensor(NEVER_SAID), LEAST_LOGIT).log_softmax(-1)  # marks of the prompt, as in decoding
    hard = -logits.gather(1, batch.labels[asked][:, None])[:, 0]
    known = batch.expected.sum(-1) > 0
    wanted = torch.where(known, 0.75 * hard - 0.25 * (batch.expected.float() * logits).sum(-1), hard).mean()
    assert plain == pytest.approx(float(hard.mean()), rel=2e-2) and soft == pytest.approx(float(wanted), rel=2e-2)
    assert soft - plain == pytest.approx(float(wanted - hard.mean()), abs=0.02) and abs(soft - plain) > 0.1
