"""Text ↔ token ids, over the ``tokenizers`` library's ``tokenizer.json``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import CheckpointError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Inner

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # how the library shows an unfinished UTF-8 sequence


class Tokenizer:
    """A loaded ``tokenizer.json``. Immutable; shared by all sessions."""

    def __init__(self, inner: Inner) -> None:
        # Names of special tokens inside a text (a glossary, a caption) are plain text, never control tokens.
        inner.encode_special_tokens = True
        self._inner = inner

    @classmethod
    def from_file(cls, path: Path) -> Tokenizer:
        """Read a ``tokenizer.json``. Raises CheckpointError."""
        from tokenizers import Tokenizer as Inner

        if not path.is_file():
            raise CheckpointError(f"{path} does not exist; a checkpoint folder needs a tokenizer.json")
        try:
            return cls(Inner.from_file(str(path)))
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(f"{path} is not a tokenizer.json: {error}") from error

    @property
    def size(self) -> int:
        """Ids, added tokens included."""
        return self._inner.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Text → ids, with no begin or end token added."""
        return list(self._inner.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Ids → text, special tokens left out. A leading space stays, where the first word's token has one."""
        return self._inner.decode([int(token) for token in ids], skip_special_tokens=True)

    def id_of(self, name: str) -> int | None:
        """Id of one piece by its exact name, or None."""
        return self._inner.token_to_id(name)

    def name_of(self, token: int) -> str | None:
        """Exact name of one piece, or None."""
        return self._inner.id_to_token(token)


class TextStream:
    """Incremental decode: push ids, get text. A character is never split: an unfinished UTF-8 sequence is held back.

    The pieces joined, plus ``flush()``, equal ``Tokenizer.decode`` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []  # the last whole token and everything after it
        self._shown = ""  # text of these ids that was given out

    def push(self, ids: Iterable[int]) -> str:
        """Ids → the text that is now certain (may be empty)."""
        self._ids += [int(token) for token in ids]
        text = self._tokenizer.decode(self._ids)
        certain = text.rstrip(_REPLACEMENT)
        new = certain[len(self._shown) :]
        self._shown += new
        if certain == text:
            self._forget()
        return new

    def _forget(self) -> None:
        # One token stays, because some decoders treat the first token of a text differently (they strip its space).
        last = self._tokenizer.decode(self._ids[-1:])
        if last and _REPLACEMENT not in last:
            self._ids, self._shown = self._ids[-1:], last

    def flush(self) -> str:
        """The text that was held back (an unfinished character shows as U+FFFD); the stream starts anew."""
        rest = self._tokenizer.decode(self._ids)[len(self._shown) :]
        self._ids, self._shown = [], ""
        return rest
