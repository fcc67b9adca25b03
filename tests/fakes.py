"""Stand-ins for the model: a scripted backend whose transcript is a pure function of the audio it has heard.

``ScriptedBackend`` hears words as loudness: ``speech("hello world")`` gives samples in which each word is ten frames (400 ms) of a tone
with its own amplitude; the backend turns runs of like loudness back into words. A run that has just begun is heard as the WRONG word
(as a real model changes its mind), so unstable text occurs. The prompt format is "tokens"; every answer depends only on the cache's
content, so drafts, truncation, copies and batching must not change anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from dragoman.model.backend import Floats, Hidden, Ids, ModelSpec, Step, check_frames
from dragoman.model.cache import Ring
from dragoman.model.config import AudioConfig, BackboneConfig, ModelConfig, SpecialIds
from dragoman.model.errors import BackendError
from dragoman.model.prompt import Prompts
from dragoman.model.tokenizer import Tokenizer
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Inner

WORDS = (
    "the quick brown fox jumps over a lazy dog. we met them again on monday, and then all five trains left early. "
    "nobody knew why it was so cold here"
).split()
FRAME = 640
WORD_FRAMES = 10  # 400 ms
SURE_FRAMES = 8  # a run shorter than this that is still the last one is heard as another word
NOISE_FRAMES = 3  # shorter runs are edges between words
_LOUDEST = 0.9
SPECIALS = ("<pad>", "<eos>", "<bos>", "<|audio>", "<audio|>", "<|transcribe|>", "<|de|>", "<|fr|>", "<|es|>", "<|audio|>")


def speech(text: str, *, silence_s: float = 0.0) -> Floats:
    """Samples (16 kHz) that a ScriptedBackend hears as ``text`` (words of WORDS), then silence."""
    parts = [np.zeros(0, dtype=np.float32)]
    for place, word in enumerate(text.split()):
        n = WORD_FRAMES * FRAME
        tone = np.sin(2 * np.pi * 250 * np.arange(n) / 16_000 + place)
        parts.append((_amplitude(WORDS.index(word)) * tone).astype(np.float32))
    parts.append(np.zeros(int(silence_s * 16_000), dtype=np.float32))
    return np.concatenate(parts)


def hear(loudness: Sequence[float]) -> str:
    """Loudness of each frame (RMS) → the words so far. Pure."""
    runs: list[tuple[int, int]] = []  # (word or -1, frames)
    for level in loudness:
        word = _nearest_word(level)
        if runs and runs[-1][0] == word:
            runs[-1] = (word, runs[-1][1] + 1)
        else:
            runs.append((word, 1))
    heard: list[str] = []
    for place, (word, frames) in enumerate(runs):
        if word < 0 or frames < NOISE_FRAMES:
            continue
        whole, rest = divmod(frames, WORD_FRAMES)
        heard += [WORDS[word]] * whole
        last = place == len(runs) - 1
        if rest >= SURE_FRAMES or (not last and rest > WORD_FRAMES // 2) or (not last and whole == 0):
            heard.append(WORDS[word])
        elif last and rest >= NOISE_FRAMES:
            heard.append(WORDS[(word + 1) % len(WORDS)])  # not sure yet: a guess that will be taken back
    return " ".join(heard)


def scripted_translation(text: str, target: str) -> str:
    """What a ScriptedBackend says for a transcript: each word marked with the language. Pure, word by word."""
    return " ".join(f"{target}{word}" for word in text.split())


def scripted_tokenizer() -> Tokenizer:
    """A byte-level BPE in which each word of WORDS is one or two tokens; words begin with a space."""
    inner = Inner(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[AddedToken(name, special=True) for name in SPECIALS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    return Tokenizer(inner)


def scripted_config() -> ModelConfig:
    """A configuration that fits ``scripted_tokenizer``; the backbone's sizes are never used."""
    place = {name: index for index, name in enumerate(SPECIALS)}
    special = SpecialIds(
        pad=place["<pad>"],
        bos=place["<bos>"],
        stop=(place["<eos>"],),
        image=-1,
        audio=place["<|audio|>"],
        video=-1,
        begin_of_image=-1,
        end_of_image=-1,
        begin_of_audio=place["<|audio>"],
        end_of_audio=place["<audio|>"],
    )
    backbone = BackboneConfig(600, 8, 16, ("full_attention",), 1, 1, 1, 8, 8, 64)
    return ModelConfig(backbone=backbone, audio=AudioConfig(), special=special, prompt_format="tokens", targets=("de", "fr", "es"))


@dataclass
class ScriptedCache:
    """The content itself: ("frame", loudness) and ("token", id). ``ring`` refuses what a runtime's would."""

    items: list[tuple[str, float]] = field(default_factory=list[tuple[str, float]])
    ring: Ring = field(default_factory=Ring)

    @property
    def length(self) -> int:
        return len(self.items)

    @property
    def room(self) -> int | None:
        return self.ring.room

    def truncate(self, length: int) -> None:
        self.ring.truncate(length)
        del self.items[length:]

    def copy(self) -> ScriptedCache:
        return ScriptedCache(list(self.items), self.ring.copy())


@dataclass(frozen=True)
class _State:
    """The hidden state: what was in the cache there, so that a drafter fed with a stale one is caught."""

    length: int
    last: tuple[str, float]


class ScriptedBackend:
    """A Backend that says ``script(loudness)`` and stops.

    ``script`` maps the loudness (RMS) of all frames heard to text: replace it to script loops, answers or floods. ``drafter`` is "none",
    "oracle" (right guesses), "bad" (wrong ones) or "empty" (asked, but silent). ``calls`` counts (verb, batch size). ``fail_next``, when
    set to a verb's name, makes its next call raise BackendError once. ``ring`` is that of new caches.
    """

    def __init__(
        self,
        script: Callable[[Sequence[float]], str] = hear,
        *,
        drafter: str = "none",
        max_draft: int = 4,
        tokenizer: Tokenizer | None = None,
        ring: Ring | None = None,
    ) -> None:
        self.tokenizer = tokenizer or scripted_tokenizer()
        self.config = scripted_config()
        self.spec = ModelSpec("scripted", self.config, max_draft=0 if drafter == "none" else max_draft)
        self.prompts = Prompts(self.config, self.tokenizer)
        self.calls: list[tuple[str, int]] = []
        self.fail_next = ""
        self._script, self._drafter, self._ring = script, drafter, ring or Ring()
        self._known: dict[tuple[float, ...], list[int]] = {}

    def new_cache(self) -> ScriptedCache:
        return ScriptedCache(ring=self._ring.copy())

    def listen(self, work: Sequence[tuple[ScriptedCache, Floats]]) -> None:
        self._called("listen", work)
        for cache, frames in work:
            check_frames(frames, FRAME)
            cache.ring.append(len(frames))
            loudness = np.sqrt(np.mean(np.square(frames, dtype=np.float64), axis=1))
            cache.items += [("frame", float(level)) for level in loudness]

    def look(self, work: Sequence[tuple[ScriptedCache, Floats]]) -> None:
        self._called("look", work)
        for cache, patches in work:
            cache.ring.append(patches.shape[0] * patches.shape[1])
            cache.items += [("patch", 0.0)] * (patches.shape[0] * patches.shape[1])

    def step(self, work: Sequence[tuple[ScriptedCache, Ids]], *, wanted: Sequence[int] | None = None) -> list[Step]:
        self._called("step", work)
        wanted = wanted or [len(ids) for _, ids in work]
        return [self._step(cache, ids, rows) for (cache, ids), rows in zip(work, wanted, strict=True)]

    def draft(self, work: Sequence[tuple[ScriptedCache, tuple[Hidden, int, int]]]) -> list[Ids]:
        self._called("draft", work)
        return [np.array(self._guess(cache, *asked), dtype=np.int64) for cache, asked in work]

    def _step(self, cache: ScriptedCache, ids: Ids, rows: int) -> Step:
        if len(ids) == 0:
            raise BackendError("step needs at least one token")
        cache.ring.append(len(ids))
        best: list[int] = []
        hidden: list[Hidden] = []
        for token in ids:
            cache.items.append(("token", int(token)))
            best.append(self._next(cache.items))
            hidden.append(_State(cache.length, cache.items[-1]))
        return Step(np.array(best[-rows:], dtype=np.int64), np.full(rows, -0.1, dtype=np.float32), hidden[-rows:])

    def _guess(self, cache: ScriptedCache, hidden: Hidden, token: int, count: int) -> list[int]:
        assert hidden == _State(cache.length, cache.items[-1]), "the hidden state must belong to the cache's last position"
        if self._drafter == "empty":
            return []
        items, guesses = [*cache.items, ("token", float(token))], list[int]()
        for _ in range(count):
            right = self._next(items)
            items.append(("token", right))
            guesses.append(right if self._drafter == "oracle" else (right + 7) % self.tokenizer.size)
        return guesses

    def _next(self, items: Sequence[tuple[str, float]]) -> int:
        """The best next token after these items."""
        loudness = [value for kind, value in items if kind == "frame"]
        tokens = [int(value) for kind, value in items if kind == "token"]
        stop = self.prompts.stop[0]
        begin = self.tokenizer.id_of("<|transcribe|>")
        if begin not in tokens:
            return stop
        after = tokens[len(tokens) - tokens[::-1].index(begin) :]
        wanted = self._wanted(tuple(loudness))
        if stop in after:  # a further turn: the translation
            source, after = after[: after.index(stop)], after[after.index(stop) + 1 :]
            if not after:
                return stop
            target = (self.tokenizer.name_of(after[0]) or "").strip("<|>")
            said = scripted_translation(self.tokenizer.decode(source), target)
            wanted, after = (self.tokenizer.encode(said) if said else []), after[1:]
        return wanted[len(after)] if len(after) < len(wanted) else stop

    def _wanted(self, loudness: tuple[float, ...]) -> list[int]:
        """Ids of the script for what was heard; remembered, since every token of a text asks for it."""
        if loudness not in self._known:
            if len(self._known) > 1000:
                self._known.clear()
            text = self._script(loudness)
            self._known[loudness] = self.tokenizer.encode(text) if text else []
        return self._known[loudness]

    def _called(self, verb: str, work: Sequence[tuple[ScriptedCache, object]]) -> None:
        assert len({id(cache) for cache, _ in work}) == len(work), "a cache may appear only once in one call"
        self.calls.append((verb, len(work)))
        if self.fail_next == verb:
            self.fail_next = ""
            raise BackendError(f"scripted failure of {verb}")


def _amplitude(word: int) -> float:
    """Peak of the word's tone: equal steps of RMS, from 0.1 to 0.9 of full scale."""
    return 0.1 + (_LOUDEST - 0.1) * word / (len(set(WORDS)) - 1)


def _nearest_word(level: float) -> int:
    """RMS of a frame → index into WORDS, or -1 for silence."""
    peak = level * np.sqrt(2.0)
    if peak < 0.05:
        return -1
    return int(np.clip(round((peak - 0.1) / (_LOUDEST - 0.1) * (len(set(WORDS)) - 1)), 0, len(WORDS) - 1))
