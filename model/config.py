"""Sizes of a model, read from a Gemma 4 Unified folder's ``config.json``. A size is data: no class below knows "small" or "12B"."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from .errors import ConfigError

SAMPLE_RATE = 16_000
_MOST_SEGMENT_S = 30.0  # longer audio than this no model of the family is documented for (spec 2.1)
_GEMMA_POSITIONS = 450  # beyond so many the released 12B is reported to hear nothing (spec 0)
# Roles of a small model's layers (BackboneConfig.layer_roles). Audio and what begins it, <bos><|audio>, goes through layers of AUDIO and of
# PLAIN_AUDIO (which are Gemma's and plain ones), a transcript through those of TEXT and CROSS, and what is written behind the token of
# another language through those of TRANSLATION. In a CROSS layer text looks at audio, in the others a position looks at those before it
# that went through the same layers. A TEXT layer has no MLP: the CROSS layer above it has one.
AUDIO, PLAIN_AUDIO, TEXT, CROSS, TRANSLATION = "audio", "plain_audio", "text", "cross", "translation"
# Sides of a position, and the numbers that stand for them in arrays.
SIDES = (TEXT, AUDIO, TRANSLATION)


def goes_through(side: str, role: str) -> bool:
    """Whether positions of a side (AUDIO, TEXT or TRANSLATION) go through layers of a role."""
    return role == side or (role == CROSS and side == TEXT) or (role == PLAIN_AUDIO and side == AUDIO)


@dataclass(frozen=True, slots=True)
class PlainLayers:
    """Layers, of every role but AUDIO, that are not Gemma's but those of a plain pre-norm decoder (BackboneConfig.plain): a norm before
    each half and none behind it, none of queries, keys and values; biases behind attention and in the MLP, whose gate is SiLU; nothing
    turns in a CROSS layer. All their heads have keys of their own, of ``global_head_dim``.

    ``audio_step``: in PLAIN_AUDIO layers each position turns as far as so many do elsewhere. Layers that were learnt at another rate of
    frames keep their sense of time with it ("linear" scaling of positions, Chen et al., arXiv 2306.15595)."""

    num_attention_heads: int
    intermediate_size: int
    audio_step: float = 1.0


@dataclass(frozen=True, slots=True)
class BackboneConfig:
    """A Gemma 4 decoder stack (``gemma4_unified_text``); the drafter is one too."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layer_types: tuple[str, ...]  # "sliding_attention" | "full_attention", one for each layer
    num_attention_heads: int
    num_key_value_heads: int  # sliding layers
    num_global_key_value_heads: int  # full layers
    head_dim: int  # sliding layers
    global_head_dim: int  # full layers
    sliding_window: int  # the query itself + window - 1 earlier positions
    attention_k_eq_v: bool = True  # full layers take V from the K projection
    rope_theta: float = 10_000.0
    global_rope_theta: float = 1_000_000.0
    global_partial_rotary_factor: float = 0.25
    rms_norm_eps: float = 1e-6
    final_logit_softcapping: float | None = 30.0
    pad_token_id: int = 0
    layer_roles: tuple[str, ...] = ()  # one of the roles for each layer; none (Gemma 4): every position goes through every layer
    plain: PlainLayers | None = None  # what layers for text are; None: Gemma's

    @property
    def stores(self) -> tuple[str, ...]:
        """Where each layer's keys and values are kept: with those of its role, or of its kind if layers have no roles."""
        return self.layer_roles or self.layer_types

    @property
    def homes(self) -> tuple[tuple[str, int], ...]:
        """Of each layer: its store, and which one of that store's layers it is."""
        return tuple((name, self.stores[:layer].count(name)) for layer, name in enumerate(self.stores))

    def store_of(self, kind: str) -> str:
        """The store that the drafter reads for its layers of a kind: the last one of that kind that holds text, if there is one."""
        own = [store for store, k in zip(self.stores, self.layer_types, strict=True) if k == kind]
        return TEXT if TEXT in own else own[-1]

    @property
    def num_layers(self) -> int:
        return len(self.layer_types)

    def is_sliding(self, layer: int) -> bool:
        return self.layer_types[layer] == "sliding_attention"

    def plain_layer(self, layer: int) -> PlainLayers | None:
        return self.plain if self.layer_roles and self.layer_roles[layer] != AUDIO else None

    def turning(self, layer: int) -> str:
        """By which table of angles a layer turns: that of its kind, or PLAIN_AUDIO."""
        return PLAIN_AUDIO if self.layer_roles and self.layer_roles[layer] == PLAIN_AUDIO else self.layer_types[layer]

    @property
    def hearing_layers(self) -> int:
        """How many layers audio goes through before text looks at it."""
        return sum(goes_through(AUDIO, role) for role in self.layer_roles) if self.layer_roles else self.num_layers

    def heads(self, layer: int) -> int:
        """Of queries."""
        plain = self.plain_layer(layer)
        return self.num_attention_heads if plain is None else plain.num_attention_heads

    def kv_heads(self, layer: int) -> int:
        if (plain := self.plain_layer(layer)) is not None:
            return plain.num_attention_heads
        if self.is_sliding(layer) or not self.attention_k_eq_v:
            return self.num_key_value_heads
        return self.num_global_key_value_heads

    def dim(self, layer: int) -> int:
        """Head dimension of a layer."""
        return self.head_dim if self.is_sliding(layer) else self.global_head_dim

    def last_layer_of(self, kind: str) -> int:
        """Index of the last layer of a kind: the one whose keys and values the drafter reads."""
        return max(i for i, layer_type in enumerate(self.layer_types) if layer_type == kind)


@dataclass(frozen=True, slots=True)
class AudioConfig:
    """Encoder-free audio input: one frame of samples → one position."""

    frame_samples: int = 640  # 40 ms at 16 kHz
    rms_norm_eps: float = 1e-6

    @property
    def frame_ms(self) -> float:
        return 1000.0 * self.frame_samples / SAMPLE_RATE


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """Encoder-free image input: one 48 × 48 × 3 patch → one position."""

    patch_size: int = 16
    pooling_kernel_size: int = 3
    mm_embed_dim: int = 3840
    mm_posemb_size: int = 1120
    rms_norm_eps: float = 1e-6

    @property
    def patch_values(self) -> int:
        return 3 * (self.patch_size * self.pooling_kernel_size) ** 2


@dataclass(frozen=True, slots=True)
class SpecialIds:
    """Token ids that are not text."""

    pad: int = 0
    bos: int = 2
    stop: tuple[int, ...] = (1, 106, 50)
    image: int = 258880
    audio: int = 258881
    video: int = 258884
    begin_of_image: int = 255999
    end_of_image: int = 258882
    begin_of_audio: int = 256000
    end_of_audio: int = 258883
    languages: tuple[int, ...] = ()  # where layers have the role TRANSLATION: the tokens behind which text is of that side

    @property
    def suppressed(self) -> tuple[int, ...]:
        """Ids whose output logits are not text: the tied rows of the ends of audio and images hold projections (spec 1.4), and the small
        model's rows of what begins a prompt hold what its hearing layers look for there. Behind a language's token all is translation."""
        ends = self.end_of_image, self.end_of_audio
        return (self.image, self.audio, self.video, *ends, self.bos, self.begin_of_audio, *self.languages)


@dataclass(frozen=True, slots=True)
class DrafterConfig:
    """The MTP assistant: query-only layers over the backbone's cache (spec section 5)."""

    backbone_hidden_size: int
    text: BackboneConfig


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Everything that a checkpoint folder says about its architecture."""

    backbone: BackboneConfig
    audio: AudioConfig = field(default_factory=AudioConfig)
    vision: VisionConfig | None = None
    special: SpecialIds = field(default_factory=SpecialIds)
    prompt_format: str = "gemma4"  # "gemma4": turns and instructions; "tokens": one task token (the small default)
    longest_segment_s: float = 12.0  # beyond it a segment is ended and a new trunk begins
    longest_positions: int | None = None  # the same for prompt, audio and tail together, in positions; None: any number
    targets: tuple[str, ...] = ()  # languages that a model of format "tokens" was taught to translate into, ISO 639-1; "gemma4" knows all
    hearing_delay_ms: int = 0  # how long after a sound the model writes what it was; word times are earlier by this much


def read_model_config(folder: Path) -> ModelConfig:
    """``config.json`` of a Gemma 4 Unified folder → ModelConfig. Raises ConfigError."""
    raw = _read_json(folder / "config.json")
    try:
        return model_config_from_mapping(raw)
    except (AttributeError, TypeError, ValueError) as error:  # a value of another kind than expected
        raise ConfigError(f"{folder / 'config.json'} is no configuration of this architecture: {error}") from error


def read_drafter_config(folder: Path) -> DrafterConfig:
    """``config.json`` of a Gemma 4 Unified assistant folder → DrafterConfig. Raises ConfigError."""
    raw = _read_json(folder / "config.json")
    return DrafterConfig(int(_need(raw, "backbone_hidden_size")), _backbone(_need(raw, "text_config")))


_OWN_KEYS = {
    "prompt_format",
    "longest_segment_s",
    "longest_positions",
    "stop",
    "targets",
    "hearing_delay_ms",
    "layer_roles",
    "plain_layers",
    "language_ids",
}


def model_config_from_mapping(raw: Mapping[str, Any]) -> ModelConfig:
    """A parsed ``config.json`` (nested as transformers writes it, plus our optional ``dragoman`` section) → ModelConfig."""
    audio_raw, vision_raw = _section(raw, "audio_config"), raw.get("vision_config")
    own = dict(_section(raw, "dragoman"))
    _only_known(own, _OWN_KEYS, "dragoman")
    stop, delay_ms = own.pop("stop", None), own.get("hearing_delay_ms", 0)
    if not isinstance(delay_ms, int) or not 0 <= delay_ms <= 5000:
        raise ConfigError(f"hearing_delay_ms is {delay_ms!r} in section 'dragoman', expected whole ms from 0 to 5000")
    longest_s = own.get("longest_segment_s", 12.0)
    if not isinstance(longest_s, int | float) or not 0 < longest_s <= _MOST_SEGMENT_S:
        raise ConfigError(f"longest_segment_s is {longest_s!r} in section 'dragoman', expected seconds above 0, up to {_MOST_SEGMENT_S:g}")
    positions = own.setdefault("longest_positions", _GEMMA_POSITIONS if own.get("prompt_format", "gemma4") == "gemma4" else None)
    if positions is not None and (not isinstance(positions, int) or positions < 1):
        raise ConfigError(f"longest_positions is {positions!r} in section 'dragoman', expected whole positions above 0, or null")
    targets: Any = own.pop("targets", [])
    if not isinstance(targets, list) or not all(isinstance(code, str) for code in cast("list[Any]", targets)):
        raise ConfigError(f"targets is {targets!r} in section 'dragoman', expected a list of languages as in [\"de\"]")
    backbone = _with_roles(_backbone(_need(raw, "text_config")), own.pop("layer_roles", []), own.pop("plain_layers", None))
    special = _special(raw, stop, own.pop("language_ids", []))
    if special.languages and TRANSLATION not in backbone.layer_roles:
        raise ConfigError(f"language_ids is {list(special.languages)} in section 'dragoman', but no layer has the role {TRANSLATION}")
    return ModelConfig(
        backbone=backbone,
        audio=AudioConfig(
            frame_samples=int(audio_raw.get("audio_embed_dim", 640)),
            rms_norm_eps=float(audio_raw.get("rms_norm_eps", 1e-6)),
        ),
        vision=None if vision_raw is None else _vision(vision_raw),
        special=special,
        targets=tuple(cast("list[str]", targets)),
        **own,
    )


def _with_roles(backbone: BackboneConfig, given: Any, plain: Any) -> BackboneConfig:
    roles = _roles(given, backbone)
    if plain is None:
        return replace(backbone, layer_roles=roles)
    sizes = dict(cast("dict[str, Any]", plain)) if isinstance(plain, dict) else {}
    step = sizes.pop("audio_step", 1.0)
    whole = all(isinstance(size, int) and size > 0 for size in sizes.values())
    if set(sizes) != {"num_attention_heads", "intermediate_size"} or not whole or not isinstance(step, int | float) or not step > 0:
        wanted = "num_attention_heads and intermediate_size, whole numbers above 0, and if it is not 1 audio_step, above 0"
        raise ConfigError(f"plain_layers is {plain!r} in section 'dragoman', expected {wanted}")
    if not roles or backbone.attention_k_eq_v:
        raise ConfigError("plain_layers in section 'dragoman' needs layer_roles, and attention_k_eq_v to be false")
    return replace(backbone, layer_roles=roles, plain=PlainLayers(**sizes, audio_step=float(step)))


def _roles(given: Any, backbone: BackboneConfig) -> tuple[str, ...]:
    roles = tuple(cast("list[str]", given)) if isinstance(given, list) else (given,)
    if roles and (len(roles) != backbone.num_layers or not set(roles) <= {AUDIO, PLAIN_AUDIO, TEXT, CROSS, TRANSLATION}):
        known = f"{AUDIO}, {PLAIN_AUDIO}, {TEXT}, {CROSS} or {TRANSLATION}"
        raise ConfigError(f"layer_roles is {given!r} in section 'dragoman', expected {known} for each of {backbone.num_layers} layers")
    kinds = {(role, kind) for role, kind in zip(roles, backbone.layer_types, strict=False)}
    if len(kinds) != len(set(roles)) or (CROSS, "sliding_attention") in kinds:
        raise ConfigError(f"layers have the roles and kinds {sorted(kinds)}, expected one kind for each role, and full attention for cross")
    return roles


def _special(raw: Mapping[str, Any], stop: list[int] | None, languages: Any) -> SpecialIds:
    if not isinstance(languages, list) or not all(isinstance(token, int) for token in cast("list[Any]", languages)):
        raise ConfigError(f"language_ids is {languages!r} in section 'dragoman', expected a list of token ids")
    base, text = SpecialIds(), _section(raw, "text_config")
    names = {
        "image": "image_token_id",
        "audio": "audio_token_id",
        "video": "video_token_id",
        "begin_of_image": "boi_token_id",
        "end_of_image": "eoi_token_id",
        "begin_of_audio": "boa_token_id",
        "end_of_audio": "eoa_token_index",  # sic: the one key that ends in _index (spec 1.3)
    }
    ids = {ours: int(raw[theirs]) for ours, theirs in names.items() if raw.get(theirs) is not None}
    eos = raw.get("eos_token_id")
    if stop is None and isinstance(eos, list):
        stop = [int(token) for token in cast("list[Any]", eos)]
    return SpecialIds(
        pad=int(text.get("pad_token_id") or 0),
        bos=int(text.get("bos_token_id") or base.bos),
        stop=tuple(stop) if stop else base.stop,
        languages=tuple(cast("list[int]", languages)),
        **ids,
    )


def _vision(raw: Mapping[str, Any]) -> VisionConfig:
    known = {name: raw[name] for name in VisionConfig.__dataclass_fields__ if name in raw}
    return VisionConfig(**known)


def _backbone(raw: Mapping[str, Any]) -> BackboneConfig:
    rope = _section(raw, "rope_parameters")
    local, full = _section(rope, "sliding_attention"), _section(rope, "full_attention")
    layers = tuple(raw.get("layer_types") or _default_pattern(int(_need(raw, "num_hidden_layers"))))
    unknown = set(layers) - {"sliding_attention", "full_attention"}
    if unknown:
        raise ConfigError(f"layer_types holds {sorted(unknown)}, expected sliding_attention or full_attention")
    if (count := int(raw.get("num_hidden_layers") or len(layers))) != len(layers):
        raise ConfigError(f"layer_types names {len(layers)} layers, expected as many as num_hidden_layers says, {count}")
    for key, only in _ONLY.items():
        if raw.get(key, only) not in (only, None):
            raise ConfigError(f"{key} is {raw[key]!r} in text_config; only {only!r} is supported (Gemma 4 Unified)")
    full_dim, full_heads = _full_layers(raw, layers)
    return BackboneConfig(
        vocab_size=int(_need(raw, "vocab_size")),
        hidden_size=int(_need(raw, "hidden_size")),
        intermediate_size=int(_need(raw, "intermediate_size")),
        layer_types=layers,
        num_attention_heads=int(_need(raw, "num_attention_heads")),
        num_key_value_heads=int(_need(raw, "num_key_value_heads")),
        num_global_key_value_heads=full_heads,
        head_dim=int(_need(raw, "head_dim")),
        global_head_dim=full_dim,
        sliding_window=int(_need(raw, "sliding_window")),
        attention_k_eq_v=bool(raw.get("attention_k_eq_v", False)),
        rope_theta=float(local.get("rope_theta", 10_000.0)),
        global_rope_theta=float(full.get("rope_theta", 1_000_000.0)),
        global_partial_rotary_factor=float(full.get("partial_rotary_factor", 0.25)),
        rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        final_logit_softcapping=raw.get("final_logit_softcapping"),
        pad_token_id=int(raw.get("pad_token_id") or 0),
    )


# Switches of the wider family that this architecture does not have: read past, they would give wrong numbers without a word.
_ONLY: dict[str, Any] = {
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
    "use_double_wide_mlp": False,
    "enable_moe_block": False,
    "hidden_size_per_layer_input": 0,
}


def _full_layers(raw: Mapping[str, Any], layers: tuple[str, ...]) -> tuple[int, int]:
    """Head dimension and key heads of the full layers: flat keys (the released files), or ``per_layer_config`` (transformers ≥ 5.20
    writes what differs from the sliding layers, layer by layer)."""
    dim, heads = int(_need(raw, "head_dim")), int(_need(raw, "num_key_value_heads"))
    if not (overrides := _section(raw, "per_layer_config")):
        return int(raw.get("global_head_dim") or dim), int(raw.get("num_global_key_value_heads") or heads)
    own = [_section(overrides, str(i)) for i in range(len(layers))]
    found = {
        kind: {
            (int(o.get("head_dim", dim)), int(o.get("num_key_value_heads", heads))) for o, k in zip(own, layers, strict=True) if k == kind
        }
        for kind in set(layers)
    }
    if any(len(sizes) > 1 for sizes in found.values()) or found.get("sliding_attention", {(dim, heads)}) != {(dim, heads)}:
        raise ConfigError(f"per_layer_config gives head_dim and key heads {found}; expected one size for each kind of layer")
    return next(iter(found.get("full_attention", {(dim, heads)})))


def _default_pattern(layers: int) -> list[str]:
    """Five sliding layers, then a full one; the last is always full."""
    pattern = ["full_attention" if (i + 1) % 6 == 0 else "sliding_attention" for i in range(layers)]
    pattern[-1] = "full_attention"
    return pattern


def _section(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A nested object, empty if it is absent or null."""
    found = raw.get(key)
    return {} if found is None else found


def _need(raw: Mapping[str, Any], key: str) -> Any:
    if raw.get(key) is None:
        near = difflib.get_close_matches(key, list(raw), n=1)
        raise ConfigError(f"config.json lacks {key!r}" + (f"; the nearest key there is {near[0]!r}" if near else ""))
    return raw[key]


def _only_known(raw: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in raw:
        if key not in known:
            near = difflib.get_close_matches(key, sorted(known), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(sorted(known))}"
            raise ConfigError(f"unknown key {key!r} in section {where!r}{hint}")


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist; a checkpoint folder needs a config.json") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: not JSON (line {error.lineno}: {error.msg})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 (byte {error.start})") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected a JSON object, got {type(raw).__name__}")
    return cast("dict[str, Any]", raw)
