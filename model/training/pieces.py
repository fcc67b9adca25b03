"""Moonshine's pieces as a tokenizer of the ``tokenizers`` library, and smaller vocabularies that keep the pieces a task uses.

The pieces are those of Llama 2: BPE over characters, ▁ for a space, bytes for characters that have no piece. There is one way of
writing a text, and decoding it gives the text back with a space in front: ``decode(encode(text)) == " " + text``, but for

- an empty text, which has no ids and stays empty;
- ▁ (U+2581) itself, which comes back as a space.

Several spaces in a row come back as they were, but they are pieces of their own: "a  b" is ▁a, ▁▁, b, and the b is not the ▁b of
other texts. Texts to learn from should have single spaces and none at the ends.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from .recognisers import BOS, EOS, read_pieces
from .teachers import moonshine_assets
from .text import END, SPECIAL_TOKENS, TRANSCRIBE

SPACE = "▁"
FIRST_BYTE = 3  # behind <unk>, <s> and </s>; 256 of them
FIRST_PIECE = FIRST_BYTE + 256
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]  # as the library's byte fallback names them
# Characters that every smaller vocabulary has, whatever was counted: ASCII, and what English, German, French and Spanish add to it.
CHARACTERS = SPACE + "".join(map(chr, range(33, 127))) + "äöüÄÖÜßéèêëàâçñíóúáôîûœ¿¡’“”–—…£€"
BATCH = 20_000  # texts encoded at a time

Merge = tuple[str, str]


def moonshine_tokenizer() -> Tokenizer:
    """All 32 768 pieces of Moonshine tiny, with its ids. Raises as :func:`.teachers.moonshine_assets`."""
    return from_pieces(read_pieces((moonshine_assets() / "tokenizer.bin").read_bytes()))


def from_pieces(pieces: Sequence[bytes]) -> Tokenizer:
    """Bytes of each token, in the order of :func:`.recognisers.read_pieces` → a tokenizer with the same ids.

    A pair is merged whose whole is a piece, the piece with the lowest id first: ids are ranks, as in the library's own conversion of
    such vocabularies. Names like <s> and <<ST_0>> are special tokens; a text that spells them is plain text, until the tokenizer is
    saved and read again (the library does not write that down; model/tokenizer.py sets it anew).
    """
    names = [piece.decode() if i < FIRST_BYTE or i >= FIRST_PIECE else BYTES[i - FIRST_BYTE] for i, piece in enumerate(pieces)]
    vocabulary = {name: i for i, name in enumerate(names)}
    if len(vocabulary) != len(names):
        raise ValueError(f"of {len(names)} pieces only {len(vocabulary)} differ")
    special = [name for i, name in enumerate(names) if i < FIRST_BYTE or name.startswith("<<ST_")]
    merges: list[Merge] = []
    for whole in sorted(set(names[FIRST_PIECE:]) - set(special), key=vocabulary.__getitem__):
        pairs = [(whole[:at], whole[at:]) for at in range(1, len(whole))]
        pairs = [pair for pair in pairs if pair[0] in vocabulary and pair[1] in vocabulary]
        merges += sorted(pairs, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    return _tokenizer(vocabulary, merges, special)


def count_pieces(tokenizer: Tokenizer, texts: Iterable[str]) -> Counter[int]:
    """How often each id is used in all texts together; ids that are never used are not among them."""
    counts, rest = Counter[int](), iter(texts)
    while batch := list(islice(rest, BATCH)):
        for encoded in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
            counts.update(encoded.ids)
    return counts


def smaller(tokenizer: Tokenizer, counts: Mapping[int, int], size: int) -> Tokenizer:
    """A tokenizer of exactly ``size`` ids; :func:`old_ids` names the row of the teacher's embedding that each of them takes.

    First our special tokens (text.py), of which <|transcribe|> takes the row of Moonshine's <s> and <eos> that of </s>. Then, in their
    old order: 256 bytes, CHARACTERS, and the pieces with the highest counts, each with the pieces that it is merged from, so that
    every piece can be reached; pieces without a count (in the order of their ids) when there is room for them.

    ``tokenizer`` is one of :func:`from_pieces`. Raises ValueError where ``size`` is too small for bytes and characters, or too large.
    """
    model: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    vocabulary: dict[str, int] = model["vocab"]
    merges: list[Merge] = [(left, right) for left, right in model["merges"]]
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    kept = dict.fromkeys([*BYTES, *(character for character in CHARACTERS if character in vocabulary)])
    room = size - len(SPECIAL_TOKENS)
    if room < len(kept):
        raise ValueError(f"{size} ids are asked for; special tokens, bytes and characters alone are {len(SPECIAL_TOKENS) + len(kept)}")
    for piece in sorted(vocabulary, key=lambda piece: (-counts.get(vocabulary[piece], 0), vocabulary[piece])):
        if len(kept) == room:
            break
        new = [part for part in _made_from(piece, ranks) if part in vocabulary and part not in kept]
        kept |= dict.fromkeys(new[: room - len(kept)])  # cut off anywhere, what is left is complete: parts come before their whole
    if len(kept) < room:
        raise ValueError(f"{size} ids are asked for; there are only {len(SPECIAL_TOKENS) + len(kept)}")
    body = sorted(kept, key=vocabulary.__getitem__)
    ids = {piece: i for i, piece in enumerate([*SPECIAL_TOKENS, *body])}
    left_over = [(left, right) for left, right in merges if left in kept and right in kept and left + right in kept]
    return _tokenizer(ids, left_over, SPECIAL_TOKENS)


def old_ids(small: Tokenizer, whole: Tokenizer) -> list[int]:
    """Of each id of a smaller tokenizer that of ``whole``, −1 for none: see :func:`smaller`."""
    theirs = whole.get_vocab()
    ours = sorted(small.get_vocab().items(), key=lambda item: item[1])
    old = [-1 if i < len(SPECIAL_TOKENS) else theirs[piece] for piece, i in ours]
    old[TRANSCRIBE], old[END] = BOS, EOS
    return old


def _made_from(piece: str, ranks: Mapping[Merge, int]) -> list[str]:
    """Every piece on the way from the characters to this one, it being the last; [] where merging does not lead there.

    Merges that are left out later change nothing about it: those taken here were the best of more.
    """
    parts = list(piece)
    made = dict.fromkeys(parts)
    while len(parts) > 1:
        pairs = [(rank, at) for at, pair in enumerate(zip(parts, parts[1:], strict=False)) if (rank := ranks.get(pair)) is not None]
        if not pairs:
            return []
        at = min(pairs)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
        made[parts[at]] = None
    return list(made)


def _tokenizer(vocabulary: dict[str, int], merges: list[Merge], special: Iterable[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])  # pyright: ignore
    # Nothing is stripped: the space in front of the first word stays.
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])  # pyright: ignore
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    tokenizer.encode_special_tokens = True
    return tokenizer
