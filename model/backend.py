"""The seam between the model's runtimes and everything above them.

Arrays are NumPy; a hidden state is opaque. Every verb takes a batch: a list of (cache, input) pairs, one for each stream, because
many live sessions share one model. A runtime may run the pairs together or one by one; the results are the same. A cache may
appear only once in one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .config import SIDES, TRANSLATION, ModelConfig, VisionConfig
from .errors import AudioFormatError, BackendError

Ids = NDArray[np.int64]  # [n] token ids
Floats = NDArray[np.float32]
Sides = NDArray[np.uint8]  # [n] places in config.SIDES
Hidden = object  # the hidden state at one position, as the runtime keeps it
_TRANSLATED = SIDES.index(TRANSLATION)


class Cache(Protocol):
    """Everything that changes while a model listens to one stream."""

    @property
    def length(self) -> int:
        """Positions appended so far, audio frames and tokens alike."""
        ...

    @property
    def room(self) -> int | None:
        """How many positions may be appended now, in one block, or one after another to be taken back as a whole; None: any number."""
        ...

    def truncate(self, length: int) -> None:
        """Forget every position from ``length`` on; O(1). Raises CacheError if that is deeper than the slack."""
        ...

    def copy(self) -> Cache:
        """An independent cache with the same content: a prompt is computed once and copied into each new segment."""
        ...


@dataclass(frozen=True, slots=True)
class Step:
    """What a model says after each of n appended tokens."""

    ids: Ids  # [n] best next token (suppressed ids never win)
    logprobs: Floats  # [n] its log-probability
    hidden: Sequence[Hidden]  # [n] for draft()


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What the layers above need to know of a loaded model."""

    name: str
    config: ModelConfig
    max_draft: int = 0  # 0: no drafter
    together: bool = True  # one call for several streams costs less than a call for each
    threads: int = 0  # that one forward keeps busy, 0: all of the machine's. Calls from several threads at once are allowed

    @property
    def frame_samples(self) -> int:
        return self.config.audio.frame_samples


class Backend(Protocol):
    """One loaded model: immutable after load, shared by all sessions."""

    spec: ModelSpec

    def new_cache(self) -> Cache: ...

    def listen(self, work: Sequence[tuple[Cache, Floats]]) -> None:
        """Append audio: each input is float32 [n, frame_samples] in [-1, 1]."""
        ...

    def look(self, work: Sequence[tuple[Cache, Floats]]) -> None:
        """Append an image: each input is float32 [patches_y, patches_x, 6912] in [0, 1] (48 × 48 × 3 patches).

        Raises TaskError on a model without vision.
        """
        ...

    def step(self, work: Sequence[tuple[Cache, Ids]], *, wanted: Sequence[int] | None = None) -> list[Step]:
        """Append tokens: each input is [n ≥ 1] ids. Returns one Step for each pair.

        ``wanted``: for each pair, how many of the LAST positions to answer for (≥ 1); None: all. The head is a large part of the work,
        and nobody asks what follows the words of a prompt. A Step then holds only these; a runtime may also answer for more.
        """
        ...

    def draft(self, work: Sequence[tuple[Cache, tuple[Hidden, int, int]]]) -> list[Ids]:
        """Guess the tokens that follow; each input is (hidden, token, count): ``token`` was just chosen (not yet appended) at the
        position whose state is ``hidden``. Returns [≤ count] ids each, empty without a drafter. The caches do not change."""
        ...


def check_frames(frames: Floats, frame_samples: int) -> None:
    """Raises AudioFormatError unless frames are finite float [n, frame_samples]."""
    if frames.ndim != 2 or frames.shape[1] != frame_samples or frames.dtype.kind != "f":
        raise AudioFormatError(f"expected float frames [n, {frame_samples}] in [-1, 1], got {list(frames.shape)} of {frames.dtype}")
    finite = np.isfinite(frames).all(axis=1)
    if not finite.all():
        bad = np.flatnonzero(~finite)
        raise AudioFormatError(f"{len(bad)} of {len(frames)} frames hold NaN or infinite samples, the first is frame {bad[0]}")


def check_patches(patches: Floats, config: VisionConfig) -> None:
    """Raises BackendError unless patches are finite [1 .. places, 1 .. places, patch_values]."""
    places, values = config.mm_posemb_size, config.patch_values
    fits = patches.ndim == 3 and patches.shape[2] == values and all(0 < side <= places for side in patches.shape[:2])
    if not fits or not np.isfinite(patches).all():
        raise BackendError(
            f"expected finite patches [rows, columns, {values}] with at most {places} rows and columns, got {list(patches.shape)}"
        )


def ids_to_embed(ids: Ids, config: ModelConfig) -> Ids:
    """[n ≥ 1] ids → the rows of the table to look up. Placeholders of audio and images count as padding, as the reference does
    (spec 1.4). Raises BackendError for ids outside the vocabulary."""
    special, size = config.special, config.backbone.vocab_size
    if len(ids) == 0 or ids.min() < 0 or ids.max() >= size:
        wrong = [int(token) for token in ids if not 0 <= token < size]
        raise BackendError(f"expected at least one token id in 0 .. {size - 1}, got {wrong or 'none'}")
    placeholder = (ids == special.image) | (ids == special.audio) | (ids == special.video)
    return np.where(placeholder, special.pad, ids).astype(np.int64)


def heard_ids(ids: Ids, config: ModelConfig) -> NDArray[np.bool_]:
    """[n]: which of the tokens count as audio where layers have roles (``config.AUDIO``): those that begin it, and where text's are plain
    the one that ends it, because these look at audio without regard to place: that it ends must be heard."""
    special = config.special
    begins = (ids == special.bos) | (ids == special.begin_of_audio)
    return begins | (ids == special.end_of_audio) if config.backbone.plain is not None else begins


def sides_of(ids: Ids, config: ModelConfig, before: int | None) -> Sides:
    """[n]: the side of each token, a number of ``config.SIDES``; ``before``: of the position in front of them, None: there is none. What is
    heard is audio, and from the token of a language on to what is heard next all is translation."""
    heard = heard_ids(ids, config)
    sides, begins = heard.astype(np.uint8), np.zeros(len(ids), np.bool_)
    for language in config.special.languages:  # isin takes longer than the few comparisons
        begins |= ids == language
    goes_on = before == _TRANSLATED
    if goes_on or begins.any():
        changes = np.where(heard | begins, np.arange(len(ids)), -1)
        last = np.maximum.accumulate(changes)  # the place that decides about each
        sides[~heard & np.where(last < 0, goes_on, begins[last])] = _TRANSLATED
    return sides


def next_block(sides: NDArray[Any] | None, length: int, room: int | None) -> int:
    """How many of the next ``length`` positions one forward takes: what a rolled cache has room for, and where layers have roles
    (``sides`` [length] is given) no more than are of one side."""
    longest = length if room is None else min(length, room)
    if sides is None or bool((same := sides[:longest] == sides[0]).all()):
        return longest
    return int(same.argmin())


def check_apart(caches: Sequence[Cache]) -> None:
    """Raises BackendError if a cache appears twice in one call."""
    if len({id(cache) for cache in caches}) != len(caches):
        raise BackendError(f"a cache appears twice among the {len(caches)} of one call")
