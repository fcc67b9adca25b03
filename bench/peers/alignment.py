"""Where each word of a clip ends, by forced alignment with pocketsphinx: the same times for every system.

A word that its dictionary lacks is spelt by rough rules: enough for where it ends.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dragoman.stream.talk import Clip
from dragoman.stream.vad import pcm16

FRAME_MS = 10
_LETTERS = (
    ("ch", "CH"), ("sh", "SH"), ("th", "TH"), ("ph", "F"), ("ck", "K"), ("ng", "NG"), ("qu", "K W"), ("oo", "UW"), ("ee", "IY"),
    ("ou", "AW"), ("ai", "EY"), ("a", "AE"), ("b", "B"), ("c", "K"), ("d", "D"), ("e", "EH"), ("f", "F"), ("g", "G"), ("h", "HH"),
    ("i", "IH"), ("j", "JH"), ("k", "K"), ("l", "L"), ("m", "M"), ("n", "N"), ("o", "AA"), ("p", "P"), ("q", "K"), ("r", "R"),
    ("s", "S"), ("t", "T"), ("u", "AH"), ("v", "V"), ("w", "W"), ("x", "K S"), ("y", "IY"), ("z", "Z"),
)  # fmt: skip


def aligned(clips: Sequence[Clip]) -> list[Clip]:
    """The clips that can be aligned, with the ends of their words; those that are aligned already as they are."""
    from pocketsphinx import Decoder

    decoder: Any = Decoder(lm=None, samprate=16_000, loglevel="FATAL")
    found = [clip if clip.word_ends_ms is not None else _aligned(decoder, clip) for clip in clips]
    return [clip for clip in found if clip is not None]


def _aligned(decoder: Any, clip: Clip) -> Clip | None:
    words = [re.sub(r"[^a-z']", "", word.lower()) or "a" for word in clip.text.split()]
    for word in dict.fromkeys(words):
        if decoder.lookup_word(word) is None:
            decoder.add_word(word, spelt(word), True)
    decoder.set_align_text(" ".join(words))
    decoder.start_utt()
    decoder.process_raw(pcm16(clip.read()), full_utt=True)
    decoder.end_utt()
    ends = [
        (re.sub(r"\(\d+\)$", "", part.word), FRAME_MS * (part.end_frame + 1)) for part in decoder.seg() or () if part.word[0] not in "<["
    ]
    if [word for word, _ in ends] != words:
        return None
    return replace(clip, word_ends_ms=tuple(float(end_ms) for _, end_ms in ends))


def spelt(word: str) -> str:
    """Phones of a word, letter by letter."""
    phones: list[str] = []
    while word:
        letters, phone = next(((letters, phone) for letters, phone in _LETTERS if word.startswith(letters)), (word[0], ""))
        word = word[len(letters) :]
        phones += phone.split()
    return " ".join(phones) or "AH"
