"""The small model's MTP drafter: a few query-only layers that learn to foretell what the frozen backbone will say.

    dragoman train drafter --config run.yaml

The targets are the backbone's own probabilities (knowledge distillation, Hinton et al., arXiv 1503.02531), on the rows that the model
was trained on: a draft is kept where the backbone would have said it, right or wrong. As in :meth:`.TorchBackend.draft`, one draft
starts from ONE position t, whose hidden state chose token t + 1: all its steps stand at rotary position t + 1 and see the backbone's
keys and values up to t; step s is given token t + s (the true one, in training) and foretells token t + s + 1.

Axes: B rows, T positions, S starts of a row, K steps, D hidden size, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from ..backbone import Attend, causal_attention
from ..checkpoint import Model, build_drafter, save_drafter
from ..config import AUDIO, CROSS, PLAIN_AUDIO, TEXT, BackboneConfig, DrafterConfig
from ..drafter import Drafter, check_fit
from ..errors import ConfigError
from ..load import Loaded
from ..offline import transcribe_job
from ..store import Clip, Store
from ..work import run
from .package import text_section
from .precision import autocast
from .rows import IGNORE, Batch
from .student import LAYER_KINDS, heard_positions


@dataclass(frozen=True, slots=True)
class DrafterOptions:
    """The drafter of a run. ``layers`` is a string of S (sliding) and F (full), each a kind that the backbone has too."""

    model: str | None = None  # folder of the frozen model; null: the run's averaged weights, packaged into its folder
    out: str | None = None  # assistant folder; null: "assistant" in the run's folder
    hidden_size: int = 128
    intermediate_size: int = 512
    layers: str = "SF"
    num_attention_heads: int = 4
    draft_tokens: int = 4  # steps of one draft, K
    steps: int = 2000
    lr: float = 2e-3
    warmup_steps: int = 100
    log_every: int = 50
    clips: int = 50  # dev clips on which the acceptance is measured
    seed: int = 1
    threads: int = 2


@dataclass(frozen=True, slots=True)
class Heard:
    """What a draft may see of one batch."""

    hidden: Tensor  # [B, T, D] after the backbone's final norm
    embedded: Tensor  # [B, T, D] the token at each position
    memory: dict[str, tuple[Tensor, Tensor]]  # kind of layer → keys, values of the backbone's layer that is read, [B, T, Hkv, Dh]
    there: dict[str, Tensor]  # kind of layer → [B, T] bool: positions of which that layer has any
    probabilities: Tensor  # [B, T, V] of the next token


def new_drafter(backbone: BackboneConfig, options: DrafterOptions) -> Drafter:
    """A drafter that fits a backbone, with random weights. Raises ConfigError for a kind of layer that the backbone lacks, and for heads
    that cannot share its keys."""
    kinds = tuple(LAYER_KINDS[kind] for kind in options.layers)
    lacking = sorted(set(kinds) - set(backbone.layer_types))
    if lacking or not kinds:
        raise ConfigError(
            f"drafter.layers is {options.layers!r}, expected layers of the backbone's kinds {sorted(set(backbone.layer_types))}"
        )
    sizes = {name: getattr(options, name) for name in ("hidden_size", "intermediate_size", "num_attention_heads")}
    text = replace(backbone, **sizes, layer_types=kinds, final_logit_softcapping=None, layer_roles=(), plain=None)
    if backbone.plain is not None:  # their keys are as many as their heads, and not those of the layers that hear
        text = replace(text, attention_k_eq_v=True, num_global_key_value_heads=backbone.plain.num_attention_heads)
    keys = sorted({text.kv_heads(i) for i in range(text.num_layers)})
    if any(options.num_attention_heads % count for count in keys):
        wanted = " and ".join(map(str, keys))
        raise ConfigError(f"drafter.num_attention_heads is {options.num_attention_heads}, expected a multiple of the key heads, {wanted}")
    torch.manual_seed(options.seed)
    drafter = build_drafter(DrafterConfig(backbone.hidden_size, text), device="cpu").train().requires_grad_(True)
    check_fit(backbone, drafter.config)
    with torch.no_grad():
        for name, p in drafter.named_parameters():
            if p.ndim == 2:
                p.normal_(0, p.shape[1] ** -0.5)
            elif "post_" in name and "layernorm" in name:
                p.fill_(0.4)  # small residual steps, as in the backbone
    return drafter


@torch.no_grad()
def hear(model: Model, batch: Batch) -> Heard:
    """The frozen model over a batch."""
    backbone = model.backbone
    embedded = backbone.embed(batch.ids)
    x = model.projector(batch.frames) * ~batch.is_text[..., None] + embedded * batch.is_text[..., None]
    if backbone.config.layer_roles:
        hidden, memory, there = _hear_by_roles(model, x, heard_positions(batch, model.config))
        return Heard(hidden, embedded, memory, there, backbone.logits(hidden).float().softmax(-1))
    b, t = batch.ids.shape
    inner, memory = causal_attention(backbone.config, t), dict[str, tuple[Tensor, Tensor]]()

    def attend(layer: int, q: Tensor, k: Tensor | None, v: Tensor | None) -> Tensor:
        assert k is not None and v is not None
        memory[backbone.config.layer_types[layer]] = (k, v)  # the last one of a kind stays
        return inner(layer, q, k, v)

    hidden = backbone(x, torch.arange(t)[None].expand(b, t), attend)
    everywhere = {kind: torch.ones(b, t, dtype=torch.bool) for kind in memory}
    return Heard(hidden, embedded, memory, everywhere, backbone.logits(hidden).float().softmax(-1))


def _hear_by_roles(model: Model, x: Tensor, heard: Tensor) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """Where layers have roles: x [B, T, D], ``heard`` [B, T] → hidden states of text, ``memory`` and ``there`` of ``Heard``. All positions
    go through the layers of both sides, and nobody looks at what comes of those of the other one."""
    backbone, config = model.backbone, model.config.backbone
    kept: dict[int, tuple[Tensor, Tensor]] = {}
    causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
    positions, turn = torch.arange(x.shape[1])[None], heard.cumsum(1)
    near = turn[:, :, None] - turn[:, None] < config.sliding_window  # a window counts only what is heard
    before = causal & heard[:, None]
    seen = {AUDIO: before & near, PLAIN_AUDIO: before, TEXT: causal & ~heard[:, None], CROSS: before}

    def attend(layer: int, q: Tensor, k: Tensor | None, v: Tensor | None) -> Tensor:
        if k is not None and v is not None:
            kept[layer] = k, v
        heads = (each.transpose(1, 2) for each in (q, *kept[layer]))
        mask = seen[config.layer_roles[layer]][:, None]
        out = F.scaled_dot_product_attention(*heads, attn_mask=mask, scale=1.0, enable_gqa=True).nan_to_num()
        return out.transpose(1, 2)

    backbone(x, positions, attend, AUDIO, lambda layer, k, v: kept.__setitem__(layer, (k, v)))
    hidden = backbone(x, positions, attend, TEXT)
    homes = {kind: config.store_of(kind) for kind in dict.fromkeys(config.layer_types)}
    last = {kind: max(i for i, role in enumerate(config.layer_roles) if role == home) for kind, home in homes.items()}
    return hidden, {kind: kept[i] for kind, i in last.items()}, {kind: ~heard if home == TEXT else heard for kind, home in homes.items()}


def starts(batch: Batch, steps: int) -> tuple[Tensor, Tensor]:
    """Positions from which a draft can start [B, S], and which of its steps have a target [B, S, K].

    A start chose a token after which more was said; a draft ends where the text does.
    """
    t = batch.labels.shape[1]
    asked = F.pad(batch.labels != IGNORE, (0, steps))
    run_on = torch.stack([asked[:, s : s + t] for s in range(steps + 1)], -1).cumprod(-1).bool()  # [B, T, K + 1]
    able = run_on[..., 1]
    most = int(able.sum(1).max())
    places = able.int().argsort(dim=1, descending=True, stable=True)[:, :most]
    rows = torch.arange(len(places))[:, None]
    return places, run_on[rows, places, 1:]


def draft_logits(drafter: Drafter, heard: Heard, places: Tensor, steps: int) -> Tensor:
    """Teacher-forced drafts from ``places`` [B, S] → logits [B, S, K, V]."""
    b, s = places.shape
    t = heard.hidden.shape[1]
    rows = torch.arange(b)[:, None]
    hidden, positions = heard.hidden[rows, places].flatten(0, 1), (places + 1).flatten()
    attend, out = _attend(drafter, heard, places), list[Tensor]()
    for step in range(1, steps + 1):
        given = heard.embedded[rows, (places + step).clamp(max=t - 1)].flatten(0, 1)
        logits, hidden = drafter(given, hidden, positions, attend)
        out.append(logits.view(b, s, -1))
    return torch.stack(out, 2)


def _attend(drafter: Drafter, heard: Heard, places: Tensor) -> Attend:
    """Each start sees the backbone's keys and values up to itself; sliding layers the last window of them."""
    config = drafter.config.text
    b, s = places.shape
    behind = torch.arange(heard.hidden.shape[1]) <= places[:, :, None]
    seen: dict[str, Tensor] = {}
    for kind, there in heard.there.items():
        turn = there.cumsum(1)  # a window counts what its layer has
        near = turn.gather(1, places)[:, :, None] - turn[:, None] < config.sliding_window
        seen[kind] = behind & there[:, None] & (near if kind == "sliding_attention" else True)

    def attend(layer: int, q: Tensor, k: Tensor | None, v: Tensor | None) -> Tensor:
        kind = config.layer_types[layer]
        keys, values = (each.transpose(1, 2).to(q.dtype) for each in heard.memory[kind])
        queries = q.view(b, s, *q.shape[1:]).transpose(1, 2)
        out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=seen[kind][:, None], scale=1.0, enable_gqa=True)
        return out.transpose(1, 2).reshape(q.shape)

    return attend


def drafting_loss(drafter: Drafter, heard: Heard, batch: Batch, steps: int) -> tuple[Tensor, dict[str, float]]:
    """Cross-entropy in nats with the backbone's probabilities, and ``kept``: steps of a draft before the first that is wrong."""
    places, valid = starts(batch, steps)
    logits = draft_logits(drafter, heard, places, steps).float()
    rows, t = torch.arange(len(places))[:, None, None], batch.labels.shape[1]
    target = heard.probabilities[rows, (places[..., None] + torch.arange(1, steps + 1)).clamp(max=t - 1)]
    loss = -(target * logits.log_softmax(-1)).sum(-1)[valid].mean()
    right = (logits.argmax(-1) == target.argmax(-1)) & valid
    return loss, {"loss": float(loss.detach()), "kept": float(right.cumprod(-1).sum() / valid[..., 0].sum())}


def train_drafter(model: Model, batches: Dataset[Batch], options: DrafterOptions, console: Console | None = None) -> Drafter:
    """``options.steps`` steps of AdamW on the rows of ``batches``; the rate rises, then falls linearly to nothing."""
    console, drafter = console or Console(), new_drafter(model.config.backbone, options)
    optimiser = torch.optim.AdamW(drafter.parameters(), lr=options.lr, betas=(0.9, 0.98), weight_decay=0.01)
    recent: list[dict[str, float]] = []
    for step in range(options.steps):
        rise, fall = (step + 1) / max(1, options.warmup_steps), (options.steps - step) / max(1, options.steps - options.warmup_steps)
        for group in optimiser.param_groups:
            group["lr"] = options.lr * min(1.0, rise, fall)
        batch = batches[step]
        if not bool((batch.labels != IGNORE).sum(1).max() > 1):
            continue  # silence: nothing is said, so nothing can be drafted
        with autocast():
            loss, figures = drafting_loss(drafter, hear(model, batch), batch, options.draft_tokens)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(drafter.parameters(), 1.0)
        optimiser.step()
        recent.append(figures)
        if (step + 1) % options.log_every == 0 or step + 1 == options.steps:
            means = {name: sum(each[name] for each in recent) / len(recent) for name in figures}
            console.print(f"drafter step {step + 1}: {means['loss']:.3f} nats, {means['kept']:.2f} tokens kept of a draft", highlight=False)
            recent = []
    return drafter.eval().requires_grad_(False)


def save_assistant(folder: Path, drafter: Drafter) -> None:
    """An assistant folder, as ``load(assistant=...)`` and the option ``model.assistant`` take it; float16, as the model's."""
    save_drafter(folder, drafter, dtype=torch.float16)
    section = text_section(drafter.config.text) | {"num_kv_shared_layers": drafter.config.text.num_layers}
    config: dict[str, Any] = {
        "architectures": ["Gemma4UnifiedAssistantForCausalLM"],
        "model_type": "gemma4_unified_assistant",
        "backbone_hidden_size": drafter.config.backbone_hidden_size,
        "use_ordered_embeddings": False,
        "tie_word_embeddings": True,
        "text_config": section,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Counts over whole clips."""

    tokens: int
    forwards: int
    drafted: int
    accepted: int

    def __str__(self) -> str:
        share, gain = 100 * self.accepted / max(self.drafted, 1), self.tokens / max(self.forwards, 1)
        return f"{self.accepted} of {self.drafted} drafted tokens accepted ({share:.1f} %), {gain:.2f} tokens for each forward"


def acceptance(loaded: Loaded, store: Store, clips: Sequence[Clip]) -> Acceptance:
    """Whole clips through the decoder with the backend's drafter; each hypothesis' stop counts as a token."""
    found = [run(loaded.backend, transcribe_job(loaded, store.samples(clip), max_draft=loaded.backend.spec.max_draft)) for clip in clips]
    tokens = sum(len(each.ids) + each.stopped for each in found)
    return Acceptance(tokens, *(sum(getattr(each, name) for each in found) for name in ("forwards", "drafted_tokens", "accepted_tokens")))
