"""A checkpoint of a run → a model folder: ``config.json``, ``tokenizer.json``, ``model.safetensors``."""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import Model, build_model, load_model, save_checkpoint
from ..config import SAMPLE_RATE, TRANSLATION, BackboneConfig, ModelConfig, PlainLayers, model_config_from_mapping
from ..errors import ConfigError, as_command
from ..load import GRAPHS
from . import text
from .batches import BatchOptions
from .splices import FRAME

WRITTEN_LATE_MS = 160  # a word comes so much later than it was taught to: bench/word_times.py on the first weights, docs/bench.md


@dataclass(frozen=True, slots=True)
class Taught:
    """What a run teaches beside its weights, and ``config.json`` has to say."""

    delay_frames: int = BatchOptions().delay_frames
    targets: tuple[str, ...] = ()  # languages of translations

    @classmethod
    def read(cls, run: Path) -> Taught:
        """``taught.json`` of a run; a run from before there was one has taught what is usual."""
        path = run / "taught.json"
        if not path.exists():
            return cls()
        raw = json.loads(path.read_text())
        return cls(int(raw["delay_frames"]), tuple(raw["targets"]))

    def write(self, run: Path) -> None:
        (run / "taught.json").write_text(json.dumps(asdict(self)) + "\n")


def small_config(raw: dict[str, Any], taught: Taught) -> dict[str, Any]:
    """The ``config.json`` of a small model of the Gemma 4 Unified family, from the sizes in ``raw`` (keys of BackboneConfig)."""
    ids = {name: i for i, name in enumerate(text.SPECIAL_TOKENS)}
    roles, plain = raw.get("layer_roles", ()), raw.get("plain")
    values: dict[str, Any] = {**raw, "layer_types": tuple(raw["layer_types"]), "layer_roles": tuple(roles)}
    values["plain"] = None if plain is None else PlainLayers(**plain)
    base = BackboneConfig(**values)
    return {
        "architectures": ["Gemma4UnifiedForConditionalGeneration"],
        "model_type": "gemma4_unified",
        "text_config": text_section(base),
        "audio_config": {"model_type": "gemma4_unified_audio", "audio_embed_dim": 640, "rms_norm_eps": 1e-6},
        "vision_config": None,
        "image_token_id": ids["<|image|>"],
        "audio_token_id": ids["<|audio|>"],
        "video_token_id": ids["<|video|>"],
        "boi_token_id": ids["<|image>"],
        "eoi_token_id": ids["<image|>"],
        "boa_token_id": ids["<|audio>"],
        "eoa_token_index": ids["<audio|>"],
        "tie_word_embeddings": True,
        "dragoman": {
            "prompt_format": "tokens",
            "longest_segment_s": 12.0,
            "stop": [text.END],
            "targets": list(taught.targets),
            "hearing_delay_ms": taught.delay_frames * FRAME * 1000 // SAMPLE_RATE + WRITTEN_LATE_MS,
            **({"layer_roles": list(roles)} if roles else {}),
            **({"plain_layers": {name: size for name, size in plain.items() if (name, size) != ("audio_step", 1.0)}} if plain else {}),
            **({"language_ids": list(text.TRANSLATE.values())} if TRANSLATION in roles else {}),
        },
    }


def text_section(base: BackboneConfig) -> dict[str, Any]:
    """``text_config`` of a decoder stack, as Gemma 4 Unified writes it."""
    sizes = asdict(base)
    for own in ("layer_roles", "plain"):  # none of Gemma's; they stand in a section of our own
        del sizes[own]
    theta = {"sliding_attention": sizes.pop("rope_theta"), "full_attention": sizes.pop("global_rope_theta")}
    factor = sizes.pop("global_partial_rotary_factor")
    return {
        "model_type": "gemma4_unified_text",
        **sizes,
        "layer_types": list(base.layer_types),
        "num_hidden_layers": base.num_layers,
        "num_kv_shared_layers": 0,
        "hidden_activation": "gelu_pytorch_tanh",
        "use_bidirectional_attention": "vision",
        "tie_word_embeddings": True,
        "max_position_embeddings": 4096,
        "bos_token_id": text.BOS,
        "eos_token_id": text.END,
        "pad_token_id": text.PAD,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": theta["sliding_attention"]},
            "full_attention": {
                "rope_type": "proportional",
                "partial_rotary_factor": factor,
                "rope_theta": theta["full_attention"],
            },
        },
    }


def config_of(raw: dict[str, Any]) -> ModelConfig:
    return model_config_from_mapping(small_config(raw, Taught()))


def delay_of(config: ModelConfig) -> int:
    """The ``delay_frames`` with which a model was taught, from its ``hearing_delay_ms``."""
    return (config.hearing_delay_ms - WRITTEN_LATE_MS) * SAMPLE_RATE // (FRAME * 1000)


def save_model(folder: Path, model: Model, run: Path, taught: Taught | None = None) -> None:
    """Write a model folder in float32; its tokenizer is that of a run's folder (or a model's), and so is what it says beside the weights
    unless that is given."""
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(folder, model.backbone, model.projector, dtype=torch.float32).chmod(0o644)  # safetensors writes it for its owner alone
    config = small_config(asdict(model.config.backbone), taught or Taught.read(run))
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    shutil.copyfile(run / "tokenizer.json", folder / "tokenizer.json")


def package(run: Path, folder: Path, *, averaged: bool = True) -> None:
    """Write a model folder from a run's folder; the weights are stored as float16 (half the size, and the same figures). Exported graphs
    that the folder had are removed: they are of other weights."""
    state = torch.load(run / "checkpoint.pt", weights_only=True, mmap=True)
    sizes = json.loads((run / "sizes.json").read_text())
    weights = state["averaged" if averaged else "student"]
    model = build_model(config_of(sizes), device="cpu")
    for prefix, module in (("backbone.", model.backbone), ("projector.", model.projector)):
        module.load_state_dict({name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)})
    folder.mkdir(parents=True, exist_ok=True)
    _save(folder, model)
    (folder / "config.json").write_text(json.dumps(small_config(sizes, Taught.read(run)), indent=2) + "\n")
    shutil.copyfile(run / "tokenizer.json", folder / "tokenizer.json")


def mix(folder: Path, other: Path, share: float) -> None:
    """Move the weights of a model folder to ``share`` of their own and 1 − share of another folder's, in float32; exported
    graphs are removed.

    Two runs of which one began with the other's weights lie in one valley, and a point between them hears better than either
    (Wortsman et al., arXiv 2109.01903). Raises ConfigError where the folders are not of one architecture or one tokenizer.
    """
    for name in ("config.json", "tokenizer.json"):
        if (folder / name).read_bytes() != (other / name).read_bytes():
            raise ConfigError(f"{folder} and {other} have different {name}: weights of one architecture and one tokenizer are expected")
    model, second = load_model(folder), load_model(other)
    for one, two in ((model.backbone, second.backbone), (model.projector, second.projector)):
        with torch.no_grad():
            for p, q in zip(one.parameters(), two.parameters(), strict=True):
                p.lerp_(q, 1 - share)
    _save(folder, model)


def _save(folder: Path, model: Model) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as new:
        weights_file = save_checkpoint(Path(new), model.backbone, model.projector, dtype=torch.float16)
        weights_file.chmod(0o644)  # safetensors writes it for its owner alone
        weights_file.replace(folder / weights_file.name)
    if (folder / GRAPHS).exists():  # only now: they may have held the only copy of the old weights
        shutil.rmtree(folder / GRAPHS)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a run: checkpoint.pt and sizes.json")
    parser.add_argument("folder", type=Path, help="model folder to write")
    parser.add_argument("--last", action="store_true", help="the last weights instead of the averaged ones")
    parser.add_argument("--mix", type=Path, metavar="FOLDER", help="a model folder, as the one that the run began with, to mix in")
    parser.add_argument("--share", type=float, default=0.55, help="with --mix: share of the run's own weights")
    given = parser.parse_args(arguments)
    package(given.run, given.folder, averaged=not given.last)
    if given.mix is not None:
        mix(given.folder, given.mix, given.share)


if __name__ == "__main__":
    as_command(main)
