"""Gemma 4 12B on the meta device: our modules hold exactly the tensors of the published checkpoints, and nothing is allocated.

``data/*.tsv`` list every tensor on disk (name, shape); ``data/*config.json`` hold the published values.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from dragoman.model.cache import Ring
from dragoman.model.checkpoint import build_drafter, build_model, named_modules, tensors_on_disk
from dragoman.model.config import ModelConfig, model_config_from_mapping, read_drafter_config
from dragoman.model.drafter import check_fit
from dragoman.model.torch_backend import SLACK_TOKENS
from torch import nn

DATA = Path(__file__).parent / "data"


def config() -> ModelConfig:
    return model_config_from_mapping(json.loads((DATA / "gemma4_12b_config.json").read_text()))


def published(name: str) -> dict[str, list[int]]:
    with (DATA / name).open(newline="") as file:
        return {row["name_on_disk"]: [int(n) for n in row["shape"].split("x")] for row in csv.DictReader(file, delimiter="\t")}


def ours(modules: dict[str, nn.Module]) -> dict[str, list[int]]:
    tensors = tensors_on_disk(modules)
    assert {tensor.device.type for tensor in tensors.values()} == {"meta"}
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def test_the_backbone_projector_and_vision_have_the_published_tensors() -> None:
    got = ours(named_modules(build_model(config())))
    assert len(got) == 677
    assert got == published("gemma4_unified_tensors.tsv")


def test_the_assistant_has_the_published_tensors(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((DATA / "gemma4_12b_assistant_config.json").read_text())
    drafter = read_drafter_config(tmp_path)
    got = ours({"": build_drafter(drafter)})
    assert len(got) == 48
    assert got == published("gemma4_unified_assistant_tensors.tsv")
    check_fit(config().backbone, drafter)


def test_the_number_of_weights_is_the_published_one() -> None:
    sizes = [tensor.numel() for tensor in tensors_on_disk(named_modules(build_model(config()))).values()]
    assert sum(sizes) == 11_959_730_224


def test_the_published_values_are_read() -> None:
    read = config()
    text, special = read.backbone, read.special
    assert [i for i in range(48) if not text.is_sliding(i)] == [5, 11, 17, 23, 29, 35, 41, 47]
    assert (text.kv_heads(0), text.dim(0), text.kv_heads(5), text.dim(5)) == (8, 256, 1, 512)
    assert (text.last_layer_of("sliding_attention"), text.last_layer_of("full_attention")) == (46, 47)
    assert special.stop == (1, 106, 50)
    assert sorted(special.suppressed) == [2, 256000, 258880, 258881, 258882, 258883, 258884]
    assert (special.begin_of_audio, special.begin_of_image) == (256000, 255999)
    assert (read.audio.frame_ms, read.longest_segment_s, read.prompt_format) == (40.0, 12.0, "gemma4")
    assert read.longest_positions == 450


@pytest.mark.parametrize(("kind", "bytes_per_position"), [("sliding_attention", 327_680), ("full_attention", 16_384)])
def test_a_position_costs_what_the_arithmetic_says(kind: str, bytes_per_position: int) -> None:
    """bf16 keys and values over all layers of a kind."""
    text = config().backbone
    layers = [i for i in range(text.num_layers) if text.layer_types[i] == kind]
    assert sum(2 * 2 * text.kv_heads(i) * text.dim(i) for i in layers) == bytes_per_position


def test_a_segment_never_wraps_the_ring() -> None:
    """12 s of audio, a long prompt and a long hypothesis: the whole segment fits, so nothing is evicted and every rewind works."""
    text = config().backbone
    ring = Ring(text.sliding_window, text.sliding_window + SLACK_TOKENS - 1)
    ring.append(250)  # prompt
    for _ in range(300):  # 12 s of frames
        ring.append(1)
    for _ in range(400):  # committed text and hypothesis
        ring.append(1)
    assert ring.slots_used == 950
    ring.truncate(0)
    assert ring.length == 0
