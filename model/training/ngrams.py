"""What text alone says about the next token: counts of n-grams in sentences of which most are never read aloud.

Hours of transcribed speech hold few words, and a model that is told only which word was said learns their order by heart. Soft targets
tell it what else could have been written there (Bai et al., "Learn spelling from teachers", Interspeech 2019, arXiv 1907.06017, with a
recurrent language model as the teacher), so that where it does not hear a word it errs like a writer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers
from numpy.typing import NDArray

ORDER = 5
_AT_ONCE = 10_000  # sentences that are encoded together


class NGrams:
    """Probabilities of the next token by Witten and Bell's interpolation of all orders, down to an even one.

    ``order``: tokens of an n-gram, the next one among them. Raises ValueError if an n-gram does not fit into 62 bits.
    """

    def __init__(self, texts: Iterable[Sequence[int]], vocabulary: int, order: int = ORDER) -> None:
        self._bits, self.vocabulary = max(vocabulary - 1, 1).bit_length(), vocabulary
        if self._bits * order > 62:
            raise ValueError(f"n-grams of {order} tokens out of {vocabulary} need {self._bits * order} bits, expected at most 62")
        encoded = list(texts)
        flat = np.asarray([token for text in encoded for token in text], np.int64)
        place = np.concatenate([np.zeros(0, np.int64), *(np.arange(len(text)) for text in encoded)])
        self._orders = [self._count(flat, place, n) for n in range(1, order + 1)]

    def _count(self, flat: NDArray[np.int64], place: NDArray[np.int64], n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Sorted n-grams, each packed into one number with its last token in the lowest bits, and how often each occurs.

        ``place``: of each token within its text; no n-gram lies across two.
        """
        packed = np.zeros(max(len(flat) - n + 1, 0), np.int64)
        for k in range(n):
            packed = (packed << self._bits) | flat[k : k + len(packed)]
        return np.unique(packed[place[n - 1 :] >= n - 1], return_counts=True)

    def __call__(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """What may follow after the first 0, 1 … len(tokens) tokens of a text: float32 [len(tokens) + 1, vocabulary], rows sum to 1."""
        out = np.full((len(tokens) + 1, self.vocabulary), 1 / self.vocabulary, np.float32)
        for i, row in enumerate(out):
            for n, (grams, counts) in enumerate(self._orders):
                if n > i:
                    break
                before = sum(int(token) << (self._bits * k) for k, token in enumerate(reversed(tokens[i - n : i])))
                low, high = np.searchsorted(grams, (before << self._bits, (before + 1) << self._bits))
                if low == high:
                    break  # longer ones cannot have been seen either
                kinds, seen = high - low, counts[low:high]
                row *= kinds / (kinds + seen.sum())
                row[grams[low:high] & ((1 << self._bits) - 1)] += seen / (kinds + seen.sum())
        return out


def count(sentences: Sequence[str], tokenizer: tokenizers.Tokenizer) -> NGrams:
    """The n-grams of some sentences, none across two of them."""
    parts = (tokenizer.encode_batch(list(sentences[i : i + _AT_ONCE])) for i in range(0, len(sentences), _AT_ONCE))
    return NGrams([encoding.ids for part in parts for encoding in part], tokenizer.get_vocab_size())
