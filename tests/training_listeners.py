"""Tiny listeners with random weights for the tests of listening and grafting."""

from __future__ import annotations

from pathlib import Path

import tokenizers
import torch
from dragoman.model.training import text
from dragoman.model.training.dictation import ClipOptions, Dictations
from dragoman.model.training.listening import Listener, hearing_student
from dragoman.model.training.moonshine import Decoder, Layer
from dragoman.model.training.package import config_of
from dragoman.model.training.run import SizeOptions
from dragoman.model.training.speech import Speech
from dragoman.model.training.teachers import WIDTH

from .training_fakes import SENTENCES, make_store

VOCABULARY = 320


def make_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    return text.train_tokenizer(iter(SENTENCES * 4), folder / "tokenizer.json", vocab_size=VOCABULARY)


def make_dictations(folder: Path, tokenizer: tokenizers.Tokenizer, **options: object) -> Dictations:
    if not (folder / "store").exists():
        make_store(folder / "store")
    given = {"lengths": (96,), "positions": 384, "nobody": 0.0, **options}
    return Dictations(Speech([(folder / "store", 1.0)], None), tokenizer, ClipOptions(**given), seed=7)  # type: ignore[arg-type]


def make_listener(hearing: int = 2, decoder_layers: int = 1, *, seed: int = 0, **sizes: object) -> Listener:
    """``sizes``: of SizeOptions, for the hearing layers."""
    torch.manual_seed(seed)
    usual = {"hidden_size": 64, "intermediate_size": 128, "layers": "S" * hearing, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = config_of(SizeOptions(**{**usual, "head_dim": 64, "vocab_size": VOCABULARY, **sizes}).backbone())  # type: ignore[arg-type]
    decoder = Decoder(VOCABULARY, decoder_layers)
    with torch.no_grad():
        decoder.embed_tokens.weight.mul_(0.2)  # as large as the published ones
        for layer in decoder.layers:
            assert isinstance(layer, Layer)
            for attention in (layer.self_attn, layer.encoder_attn):
                attention.q_proj.weight.mul_(3.0)  # as left at first, attention is to everything alike
    student = hearing_student(config, config.backbone.num_layers)
    return Listener(student, decoder, (torch.zeros(WIDTH).numpy(), torch.ones(WIDTH).numpy()))
