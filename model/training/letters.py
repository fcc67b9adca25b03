"""The letters of what is said, asked of a hearing layer while it is trained: they know nothing of the words before, so they must be heard.

A decoder guesses the next word from the last ones, and what was seen often it knows by heart. CTC (Graves et al., "Connectionist temporal
classification", 2006) spells from each moment alone; asked beside a decoder it made such models generalise (Kim et al., arXiv 1609.06773),
also in a layer below the last (Lee and Watanabe, arXiv 2102.03216). The head is thrown away.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import text
from .rows import Batch

PER_FRAME = 2  # outputs: people say up to twenty letters a second, and between two that are equal stands a blank
FIT_STEPS, FIT_RATE = 240, 3e-3


def ctc_loss(head: nn.Linear, x: Tensor, batch: Batch) -> Tensor:
    """States [B, T, d] of a layer → nats for each character of the rows of which it is known. ``head`` may have several outputs for each
    frame, one after the other."""
    have, classes = batch.ctc_lengths > 0, len(text.CTC_CHARACTERS)
    said = head(x[have, 2:]).float()  # behind <bos><|audio>
    said = said.view(len(said), -1, classes).log_softmax(-1).transpose(0, 1)
    outputs, lengths = head.out_features // classes * batch.audio_frames[have], batch.ctc_lengths[have]
    return F.ctc_loss(said, batch.ctc, outputs, lengths, reduction="sum", zero_infinity=True) / lengths.sum()


def letter_head(width: int) -> nn.Linear:
    """For states of that width, with random weights."""
    return nn.Linear(width, PER_FRAME * len(text.CTC_CHARACTERS))


def fit(head: nn.Linear, heard: Sequence[tuple[Tensor, Batch]], steps: int = FIT_STEPS) -> None:
    """Fit the head alone to states that are there already, so that its first gradient undoes nothing."""
    heard = [(x, batch) for x, batch in heard if batch.ctc_lengths.any()]
    optimiser = torch.optim.AdamW(head.parameters(), lr=FIT_RATE, weight_decay=0.0)
    for step in range(steps if heard else 0):
        optimiser.zero_grad()
        ctc_loss(head, *heard[step % len(heard)]).backward()
        optimiser.step()


def letters_of(words: str) -> list[int]:
    """CTC classes of a transcript; none where a number is written in digits, which nobody says."""
    return [] if any(c.isdigit() for c in words) else text.ctc_targets(words)
