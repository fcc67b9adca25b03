"""Reading config.json: both ways of writing the sizes of full layers, our own section, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from dragoman.model.config import model_config_from_mapping, read_drafter_config, read_model_config
from dragoman.model.errors import ConfigError

TEXT: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "sliding_window": 16,
    "attention_k_eq_v": True,
}
PER_LAYER = {"2": {"head_dim": 16, "num_key_value_heads": 1}}


def read(text: dict[str, Any] | None = None, **over: Any):  # type: ignore[no-untyped-def]
    return model_config_from_mapping({"text_config": TEXT | (text or {})} | over)


@pytest.mark.parametrize("sizes", [{"global_head_dim": 16, "num_global_key_value_heads": 1}, {"per_layer_config": PER_LAYER}])
def test_sizes_of_full_layers_are_read_in_both_forms(sizes: dict[str, Any]) -> None:
    text = read(sizes).backbone
    assert [(text.kv_heads(i), text.dim(i)) for i in range(3)] == [(2, 8), (2, 8), (1, 16)]


def test_without_either_form_all_layers_are_alike() -> None:
    text = read().backbone
    assert {(text.kv_heads(i), text.dim(i)) for i in range(3)} == {(2, 8)}


@pytest.mark.parametrize("overrides", [{"0": {"head_dim": 4}, **PER_LAYER}, {"0": {"head_dim": 4}, "1": {"head_dim": 4}, **PER_LAYER}])
def test_layers_of_one_kind_must_be_alike(overrides: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected one size for each kind of layer"):
        read({"per_layer_config": overrides})


@pytest.mark.parametrize(
    ("key", "value"),
    [("hidden_activation", "silu"), ("attention_bias", True), ("use_double_wide_mlp", True), ("enable_moe_block", True)],
)
def test_switches_of_other_models_are_refused(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{key} is {value!r} in text_config"):
        read({key: value})


def test_the_released_pattern_is_the_default() -> None:
    text = read({"layer_types": None, "num_hidden_layers": 13}).backbone
    assert [i for i in range(13) if not text.is_sliding(i)] == [5, 11, 12], "every sixth, and the last"
    assert text.last_layer_of("sliding_attention") == 10


def test_an_unknown_kind_of_layer_is_refused() -> None:
    with pytest.raises(ConfigError, match="layer_types holds \\['chunked_attention'\\]"):
        read({"layer_types": ["chunked_attention", "full_attention"]})


def test_a_missing_key_is_named_with_the_nearest_one() -> None:
    text = {name: value for name, value in TEXT.items() if name != "hidden_size"} | {"hiden_size": 32}
    with pytest.raises(ConfigError, match="lacks 'hidden_size'; the nearest key there is 'hiden_size'"):
        model_config_from_mapping({"text_config": text})


def test_our_own_section_is_read_and_checked() -> None:
    own = read(dragoman={"prompt_format": "tokens", "longest_segment_s": 20.0, "stop": [7]})
    assert (own.prompt_format, own.longest_segment_s, own.special.stop) == ("tokens", 20.0, (7,))
    assert [read(dragoman={"longest_segment_s": most}).longest_segment_s for most in (0.5, 30)] == [0.5, 30]
    for wrong in (0, -1, 30.5, float("nan"), "12"):
        with pytest.raises(ConfigError, match=f"longest_segment_s is {wrong!r} .* expected seconds above 0, up to 30"):
            read(dragoman={"longest_segment_s": wrong})
    assert (own.hearing_delay_ms, read(dragoman={"hearing_delay_ms": 240}).hearing_delay_ms) == (0, 240)
    for wrong in (-1, 2.5, "240", 9000):
        with pytest.raises(ConfigError, match=f"hearing_delay_ms is {wrong!r} .* expected whole ms from 0 to 5000"):
            read(dragoman={"hearing_delay_ms": wrong})
    assert (own.targets, read(dragoman={"targets": ["de"]}).targets) == ((), ("de",))
    for odd in ("de", [1], {"de": 1}):
        with pytest.raises(ConfigError, match="targets is .* in section 'dragoman', expected a list of languages"):
            read(dragoman={"targets": odd})
    with pytest.raises(ConfigError, match="unknown key 'promt_format' in section 'dragoman'; did you mean 'prompt_format'"):
        read(dragoman={"promt_format": "tokens"})


def test_positions_to_hear_in_are_those_of_the_12b_unless_the_model_says_otherwise() -> None:
    assert (read().longest_positions, read(dragoman={"prompt_format": "gemma4"}).longest_positions) == (450, 450)
    assert read(dragoman={"prompt_format": "tokens"}).longest_positions is None, "none is known"
    assert [read(dragoman={"longest_positions": most}).longest_positions for most in (700, None)] == [700, None]
    assert read(dragoman={"prompt_format": "tokens", "longest_positions": 700}).longest_positions == 700
    for wrong in (0, -1, 450.0, "450"):
        with pytest.raises(ConfigError, match=f"longest_positions is {wrong!r} .* expected whole positions above 0, or null"):
            read(dragoman={"longest_positions": wrong})


def test_special_ids_are_read() -> None:
    special = read(boa_token_id=11, eoa_token_index=12, audio_token_id=13, eos_token_id=[1, 5], image_token_id=None).special
    assert (special.begin_of_audio, special.end_of_audio, special.audio, special.stop, special.image) == (11, 12, 13, (1, 5), 258880)


def test_a_folder_is_read_or_its_fault_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="config.json does not exist"):
        read_model_config(tmp_path)
    file = tmp_path / "config.json"
    file.write_text("{")
    with pytest.raises(ConfigError, match="not JSON \\(line 1"):
        read_model_config(tmp_path)
    file.write_text("[]")
    with pytest.raises(ConfigError, match="expected a JSON object, got list"):
        read_model_config(tmp_path)
    file.write_text(json.dumps({"text_config": TEXT, "vision_config": {"mm_embed_dim": 7, "model_type": "x"}, "backbone_hidden_size": 9}))
    vision = read_model_config(tmp_path).vision
    assert vision is not None and (vision.mm_embed_dim, vision.patch_values) == (7, 6912)
    assert read_drafter_config(tmp_path).backbone_hidden_size == 9


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b'{"text_config": []}', "is no configuration of this architecture"),
        (b'{"text_config": "small"}', "is no configuration of this architecture|lacks"),
        (json.dumps({"text_config": {**TEXT, "hidden_size": "big"}}).encode(), "is no configuration of this architecture"),
        (json.dumps({"text_config": TEXT, "dragoman": {"stop": 3}}).encode(), "is no configuration of this architecture"),
        (json.dumps({"text_config": TEXT, "dragoman": {"longest_segment_s": "12"}}).encode(), "expected seconds above 0"),
        (json.dumps({"text_config": TEXT, "dragoman": {"longest_segment_s": -1}}).encode(), "expected seconds above 0"),
        (b'{"text_config": "\xff"}', "not UTF-8"),
    ],
)
def test_a_configuration_that_is_none_is_told(tmp_path: Path, raw: bytes, says: str) -> None:
    (tmp_path / "config.json").write_bytes(raw)
    with pytest.raises(ConfigError, match=says):
        read_model_config(tmp_path)


@pytest.mark.parametrize("count", [5, 7])
def test_as_many_kinds_of_layers_as_layers(count: int) -> None:
    with pytest.raises(ConfigError, match=f"layer_types names {count} layers, expected as many as num_hidden_layers says, 6"):
        read({"layer_types": ["sliding_attention"] * (count - 1) + ["full_attention"], "num_hidden_layers": 6})
