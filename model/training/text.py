"""Text for training: case and punctuation for upper-case transcripts, character targets, and the small model's tokenizer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

# Ids 0…15 of the small model; the names are Gemma's where Gemma has the token.
SPECIAL_TOKENS = (
    "<pad>",
    "<eos>",
    "<bos>",
    "<|audio>",
    "<audio|>",
    "<|audio|>",
    "<|image>",
    "<image|>",
    "<|image|>",
    "<|video|>",
    "<|transcribe|>",
    "<|de|>",
    "<|fr|>",
    "<|es|>",
    "<|format|>",
    "<|reserved|>",
)
PAD, END, BOS, BEGIN_AUDIO, END_AUDIO = range(5)
TRANSCRIBE = SPECIAL_TOKENS.index("<|transcribe|>")
TRANSLATE = {code: SPECIAL_TOKENS.index(f"<|{code}|>") for code in ("de", "fr", "es")}

CTC_CHARACTERS = "_ abcdefghijklmnopqrstuvwxyz'0123456789"  # 0 is CTC's blank
SPACE = 1
_CTC_INDEX = {character: i for i, character in enumerate(CTC_CHARACTERS)}
_QUESTION = re.compile(r"^(who|what|when|where|why|how|is|are|was|were|do|does|did|can|could|will|would|shall|should|have|has|had)\b", re.I)


def ctc_targets(text: str) -> list[int]:
    """Lower-case letters, digits, apostrophes and single spaces of a transcript as CTC classes (blank 0)."""
    plain = " ".join(re.sub(r"[^a-z0-9' ]+", " ", text.lower().replace("’", "'")).split())
    return [_CTC_INDEX[character] for character in plain]


def word_key(word: str) -> str:
    """A word as it is compared: lower case, letters, digits and inner apostrophes."""
    return re.sub(r"[^a-z0-9']+", "", word.lower().replace("’", "'")).strip("'")


class TrueCaser:
    """Case and a closing mark for upper-case transcripts, from how often cased text capitalises a word inside a sentence."""

    def __init__(self, sentences: Iterable[str], *, least_count: int = 3) -> None:
        upper, lower = Counter[str](), Counter[str]()
        for sentence in sentences:
            for word in re.findall(r"[A-Za-z']+", sentence)[1:]:
                (upper if word[0].isupper() else lower)[word.lower()] += 1
        self._names = {word for word, n in upper.items() if n >= least_count and n > 2 * lower[word]}

    def __call__(self, text: str) -> str:
        """Returned unchanged if the text holds any lower-case letter."""
        if not text or text != text.upper():
            return text
        words = [word.capitalize() if word in self._names else word for word in text.lower().split()]
        words = ["I" + word[1:] if word == "i" or word.startswith("i'") else word for word in words]
        sentence = " ".join(words)
        mark = "?" if _QUESTION.match(sentence) and len(words) > 2 else "."
        return sentence[0].upper() + sentence[1:] + mark


def train_tokenizer(texts: Iterator[str], path: Path, *, vocab_size: int) -> tokenizers.Tokenizer:
    """Byte-level BPE (lossless for any text) with our special tokens first; writes ``tokenizer.json``."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=12,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return tokenizer
