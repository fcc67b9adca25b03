"""The model under training: backbone and projector, which ship, and the heads that do not.

Three throw-away heads hang on the audio positions: log-mel after the front end (warm start only), the teacher's features at about
two thirds of the depth, characters a little above. The text is learnt by the plain model itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbone import Backbone, Layer, Rotary
from ..checkpoint import Model
from ..config import AUDIO, CROSS, TRANSLATION, ModelConfig, goes_through
from ..projector import AudioProjector
from . import text
from .letters import ctc_loss
from .precision import autocast, compute_dtype
from .rows import IGNORE, Batch
from .splices import FRAME
from .teachers import WIDTH

MEL_BANDS, MEL_PER_FRAME = 80, 4
ATTENTION_BLOCKS = 2  # of 4 the compiled gradient of the keys was NaN on an Emerald Rapids (torch 2.13)
FIRST_WORD = len(text.SPECIAL_TOKENS)  # tokens below it are marks of the prompt
NEVER_SAID = [i for i in range(FIRST_WORD) if i != text.END]
LEAST_LOGIT = -30.0  # not -inf: the smoothed share of the loss reads it
LAYER_KINDS = {"S": "sliding_attention", "F": "full_attention"}


@dataclass(frozen=True, slots=True)
class LossWeights:
    mel: float = 0.0
    features: float = 1.0
    late: float = 0.0  # the features once more in a higher layer, later (batches.late_frames): what was heard next is known by then
    characters: float = 1.0  # which character is said at each moment (align.py)
    ctc: float = 0.0  # the same without an alignment: slower, for speech that was not aligned
    words: float = 1.0
    pointer: float = 0.0  # one head of the last layers looks where the next word is heard
    expected: float = 0.0  # share of each word's probability that goes to what text alone would expect there (ngrams.py)
    smoothing: float = 0.0  # share of each word's probability that is spread over all tokens
    apart: bool = False  # text losses stop at the features: hearing and words are learnt at once, but apart


@dataclass(frozen=True, slots=True)
class Depths:
    """After how many layers each throw-away head listens."""

    mel: int = 2
    features: int = 6
    ctc: int = 8
    late: int = 0  # 0: nowhere


class Student(nn.Module):
    """``forward(batch, weights)`` → (loss, figures).

    ``dropout``: share of what the layers above the features add that is left out while ``training``. Those below are never
    short of things to learn from: they are told what to hear at every moment.
    """

    def __init__(self, config: ModelConfig, depths: Depths, dropout: float = 0.0) -> None:
        super().__init__()
        d = config.backbone.hidden_size
        self.config, self.depths, self.dropout = config, depths, dropout
        self.backbone = Backbone(config.backbone)
        self.projector = AudioProjector(config.audio, d)
        self.mel_head = nn.Linear(d, MEL_BANDS * MEL_PER_FRAME)
        self.feature_head = nn.Linear(d, WIDTH)
        self.late_head = nn.Linear(d, WIDTH)
        self.character_head = nn.Linear(d, len(text.CTC_CHARACTERS))
        self.run_layer: Callable[..., Tensor] = _run_layer
        self.run_last: Callable[..., Tensor] = _run_last
        self.run_cross: Callable[..., Tensor] = _run_cross
        initialise(self.backbone, self.projector)

    def take(self, model: Model) -> None:
        """Begin with the weights of a loaded model; the heads stay as they are."""
        self.backbone.load_state_dict(model.backbone.state_dict())
        self.projector.load_state_dict(model.projector.state_dict())

    def compile(self, *args: Any, **kwargs: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Compile one layer; all layers of a kind share the code, so this costs seconds for each batch shape."""
        torch._dynamo.config.allow_unspec_int_on_nn_module = True  # pyright: ignore
        torch._dynamo.config.cache_size_limit = 64  # pyright: ignore
        self.run_layer = torch.compile(_run_layer, dynamic=False)
        self.run_last = torch.compile(_run_last, dynamic=False)
        self.run_cross = torch.compile(_run_cross, dynamic=False)

    def embed(self, batch: Batch) -> Tensor:
        tokens = self.backbone.embed(batch.ids) * batch.is_text[..., None]
        return (self.projector(batch.frames) + tokens).float()  # as every layer's output is, so that the first is not compiled apart

    def hidden_states(self, batch: Batch, depth: int | None = None, *, apart: bool = False, last: Tensor | None = None) -> list[Tensor]:
        """Input and the output of the first ``depth`` layers (None: all), [B, T, d]; ``apart``: see LossWeights.

        ``last`` [B, Q]: the positions at which the model's last layer is wanted, whose output is then [B, Q, d]. Where layers have roles
        the states of text are [B, Q, d] from the first layer of text on.
        """
        if self.config.backbone.hearing_layers < self.config.backbone.num_layers:
            return self._by_roles(batch, depth, last)
        top, (rotary, mask) = self.config.backbone.num_layers, self.surroundings(batch.ids.shape[1])
        states = [self.embed(batch)]
        for layer in self.backbone.layers[:depth]:
            x = states[-1]
            if apart and len(states) == self.depths.features + 1:
                x = torch.where(batch.is_text[..., None], x, x.detach())
            dropout = self.dropout if self.training and len(states) > self.depths.features else 0.0
            if last is None or len(states) < top:
                states.append(self.run_layer(layer, x, rotary, mask, dropout))
            else:
                states.append(self.run_last(layer, x, rotary, mask, dropout, last))
        return states

    def _by_roles(self, batch: Batch, depth: int | None, last: Tensor | None) -> list[Tensor]:
        """:meth:`hidden_states` where layers have roles: audio goes through its own layers, text from there on through the others."""
        length, roles = batch.ids.shape[1], self.config.backbone.layer_roles
        rotary, mask = self.surroundings(length)
        at = torch.arange(length).expand(len(batch.ids), -1) if last is None else last
        heard = heard_positions(batch, self.config)
        before = mask[at]
        text_mask = before.gather(2, at[:, None].expand(-1, at.shape[1], -1)) + -1e4 * heard.gather(1, at)[:, None]
        audio_mask = before + -1e4 * ~heard[:, None]
        there: Rotary = {kind: (cos[0][at], sin[0][at]) for kind, (cos, sin) in rotary.items()}
        audio = self.embed(batch)
        states, text = [audio], audio.gather(1, at[..., None].expand(-1, -1, audio.shape[-1]))
        for layer, role in zip(self.backbone.layers[:depth], roles, strict=False):
            dropout = self.dropout if self.training and len(states) > self.depths.features else 0.0
            if role == TRANSLATION:  # what is learnt here is transcribed (:mod:`.translating` is for the rest)
                states.append(text)
                continue
            if goes_through(AUDIO, role):  # text stays as it is, and as it comes after audio nobody has seen it there
                audio = torch.where(heard[..., None], self.run_layer(layer, audio, rotary, mask, dropout), audio)
            else:
                beside, its, seen = (audio, rotary, audio_mask) if role == CROSS else (text, there, text_mask)
                text = self.run_cross(layer, text, there, beside, its, seen.to(text.dtype), dropout)
            states.append(audio if goes_through(AUDIO, role) else text)
        return states

    def surroundings(self, length: int) -> tuple[Rotary, Tensor]:
        """What a layer wants to know of ``length`` positions beside what stands there: rotary tables, and the causal mask [T, T]."""
        rotary = self.backbone.rotary(torch.arange(length)[None], compute_dtype())
        return rotary, torch.full((length, length), -1e4, dtype=compute_dtype()).triu(1)

    def forward(self, batch: Batch, weights: LossWeights) -> tuple[Tensor, dict[str, float]]:
        if bool((batch.labels == IGNORE).all()) and (weights.features or weights.late or weights.characters):
            weights = replace(weights, words=0.0, pointer=0.0)  # a batch that is only heard: the layers above rest
        with autocast():
            heads_below = max(self.depths.features, self.depths.ctc, self.depths.late) < self.config.backbone.num_layers
            last = answering(batch.labels) if weights.words and heads_below else None
            states = self.hidden_states(batch, self._depth(weights), apart=weights.apart, last=last)
            losses: dict[str, Tensor] = {}
            if weights.mel:
                losses["mel"] = self._mel_loss(states[self.depths.mel], batch)
            if weights.features and len(batch.features):
                losses["features"] = feature_loss(self.feature_head, states[self.depths.features], batch.feature_rows, batch.features)
            if weights.late and len(batch.late):
                losses["late"] = feature_loss(self.late_head, states[self.depths.late], batch.late_rows, batch.late)
            if weights.characters and bool((batch.characters != IGNORE).any()):
                losses["characters"] = self._character_loss(states[self.depths.ctc], batch)
            if weights.ctc and batch.ctc_lengths.any():
                losses["ctc"] = ctc_loss(self.character_head, states[self.depths.ctc], batch)
            figures: dict[str, float] = {}
            if weights.words and bool((batch.labels != IGNORE).any()):
                labels = batch.labels if last is None else batch.labels.gather(1, last)
                losses["words"], figures["words_right"] = self._words_loss(states[-1], labels, batch.expected, weights)
            if weights.pointer and bool((batch.windows >= 0).any()):
                losses["pointer"] = self._pointer_loss(states, batch)
        total = torch.stack([loss * getattr(weights, name) for name, loss in losses.items()]).sum()
        return total, figures | {name: float(loss.detach()) for name, loss in losses.items()}

    def _depth(self, weights: LossWeights) -> int:
        """No more layers than the wanted losses listen to: the first phases of a run cost less."""
        depths, top = self.depths, self.config.backbone.num_layers
        spelt, written = weights.characters + weights.ctc, weights.words + weights.pointer
        hearing = ((depths.mel, weights.mel), (depths.features, weights.features), (depths.late, weights.late))
        return max(depth for depth, weight in (*hearing, (depths.ctc, spelt), (top, written)) if weight)

    def _character_loss(self, x: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy in nats for each moment."""
        logits = self.character_head(x.flatten(0, 1)[batch.feature_rows]).float()
        return F.cross_entropy(logits, batch.characters, ignore_index=IGNORE)

    def _words_loss(self, x: Tensor, labels: Tensor, expected: Tensor, weights: LossWeights) -> tuple[Tensor, float]:
        """Cross-entropy in nats for each token, and the share of tokens guessed right."""
        logits = self._logits(x, labels)
        asked = labels[labels != IGNORE]
        right = (logits.argmax(-1) == asked).float().mean()
        loss = F.cross_entropy(logits, asked, label_smoothing=weights.smoothing, reduction="none")
        if weights.expected and len(expected):
            could = expected.float()
            soft = F.cross_entropy(logits, could, reduction="none")
            loss = torch.where(could.any(-1), torch.lerp(loss, soft, weights.expected), loss)
        return loss.mean(), float(right)

    def _logits(self, x: Tensor, labels: Tensor) -> Tensor:
        """What the output of the last layer says where something is asked for, [n, vocabulary]. Marks of the prompt are suppressed, as in
        decoding: what their rows of the tied table say as output is nothing that they should have to unlearn as input."""
        logits = self.backbone.logits(self.backbone.norm(x[labels != IGNORE])).float()
        return logits.index_fill(-1, torch.tensor(NEVER_SAID), LEAST_LOGIT)

    def sample(self, batch: Batch, share: float) -> Batch:
        """The batch with ``share`` of its words as the model itself would go on, drawn by its probabilities; what is asked for stays.

        Scheduled sampling (Bengio et al., arXiv 1506.03099), in one parallel pass that is given the true words. Gradients are kept
        on although nobody wants them: without them every layer would be compiled once more.
        """
        with autocast():
            last = answering(batch.labels)
            x = self.hidden_states(batch, last=last)[-1].detach()
            labels = batch.labels if last is None else batch.labels.gather(1, last)
            said = torch.multinomial(self._logits(x, labels).softmax(-1), 1)[:, 0]
        row, at = (batch.labels[:, :-1] != IGNORE).nonzero(as_tuple=True)
        words = (said >= FIRST_WORD) & (batch.ids[row, at + 1] >= FIRST_WORD) & (torch.rand(len(said)) < share)
        ids = batch.ids.clone()
        ids[row[words], at[words] + 1] = said[words]
        return replace(batch, ids=ids)

    def _pointer_loss(self, states: list[Tensor], batch: Batch) -> Tensor:
        """-log of the attention that falls where the next word is heard, for the first head of each layer above the characters.

        Where to look is what a decoder without cross-attention learns last; after guided attention (Tachibana et al., arXiv 1710.08969),
        with the true place instead of the diagonal.
        """
        t = batch.ids.shape[1]
        rotary = self.backbone.rotary(torch.arange(t)[None], compute_dtype())
        asked = (batch.windows[..., 0] >= 0).nonzero(as_tuple=True)
        places, (low, high) = torch.arange(t), batch.windows[asked].unbind(-1)
        inside = (places >= low[:, None]) & (places <= high[:, None])
        behind = places <= asked[1][:, None]
        total = torch.zeros(())
        layers = list(self.backbone.layers)[self.depths.ctc :]
        for layer, x in zip(layers, states[self.depths.ctc : -1], strict=True):
            assert isinstance(layer, Layer)
            q, k, _ = layer.self_attn.project(layer.input_layernorm(x), rotary)
            assert k is not None
            scores = (q[:, :, 0] @ k[:, :, 0].mT)[asked].float()
            seen = scores.masked_fill(~behind, -1e4).logsumexp(-1)
            total = total + (seen - scores.masked_fill(~inside, -1e4).logsumexp(-1)).mean()
        return total / len(layers)

    def _mel_loss(self, x: Tensor, batch: Batch) -> Tensor:
        target = log_mel(batch.frames, self.config.audio.rms_norm_eps)
        error = (self.mel_head(x).float() - target).square().mean(-1)
        heard = batch.frames.abs().amax(-1) > 0
        return error[heard].mean()


def feature_loss(head: nn.Linear, x: Tensor, rows: Tensor, features: Tensor) -> Tensor:
    """Mean squared error against standardised targets: the share of variance that is missed."""
    return F.mse_loss(head(at(x, rows)).float(), features.float())


def at(x: Tensor, places: Tensor) -> Tensor:
    """[B, T, d] at flat ``places`` [n] → [n, d]. The gradient of plain indexing sorts them first, which takes long."""
    return x.flatten(0, 1).index_select(0, places)


def _run_layer(layer: Layer, x: Tensor, rotary: Rotary, mask: Tensor, dropout: float) -> Tensor:
    q, k, v = layer.self_attn.project(layer.input_layernorm(x), rotary)
    assert k is not None and v is not None
    return layer.settle(x, plain_attention(q, k, v, mask), dropout)


def _run_cross(layer: Layer, x: Tensor, rotary: Rotary, beside: Tensor, its: Rotary, mask: Tensor, dropout: float) -> Tensor:
    """x [B, Q, d], which looks at ``beside`` [B, S, d] with ``its`` rotary tables under a mask [B, Q, S] → [B, Q, d]."""
    q = layer.self_attn.queries(layer.input_layernorm(x), rotary)
    k, v = layer.self_attn.keys_and_values(layer.input_layernorm(beside), its)
    seen = attended(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask[:, None, None]).transpose(1, 2)
    return layer.settle(x, seen, dropout)


def _run_last(layer: Layer, x: Tensor, rotary: Rotary, mask: Tensor, dropout: float, at: Tensor) -> Tensor:
    """:func:`_run_layer` for the positions ``at`` [B, Q] alone, which look at all of x [B, T, d]; → [B, Q, d]."""
    q, k, v = layer.self_attn.project(layer.input_layernorm(x), rotary)
    assert k is not None and v is not None
    q = q.gather(1, at[..., None, None].expand(-1, -1, *q.shape[2:]))
    seen = attended(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask[at][:, None, None]).transpose(1, 2)
    return layer.settle(x.gather(1, at[..., None].expand(-1, -1, x.shape[-1])), seen, dropout)


def heard_positions(batch: Batch, config: ModelConfig) -> Tensor:
    """[B, T]: what is audio where layers have roles, as in ``backend.heard_ids``."""
    heard = ~batch.is_text | (batch.ids == text.BOS) | (batch.ids == text.BEGIN_AUDIO)
    return heard if config.backbone.plain is None else heard | (batch.ids == text.END_AUDIO)


def answering(labels: Tensor) -> Tensor | None:
    """[B, T] labels → [B, Q] consecutive positions that hold every one that is asked for and the one before it (the end of the audio),
    Q = 3/8 T; None where that is too few.

    Nobody listens to the last layer elsewhere, and most positions are audio. One Q for each T: a new shape is compiled anew.
    """
    t = labels.shape[1]
    q, asked, places = 3 * t // 8, labels != IGNORE, torch.arange(t)
    first = (torch.where(asked, places, t - q).amin(1) - 1).clamp(min=0, max=t - q)
    end = torch.where(asked, places, 0).amax(1)
    return None if bool((end - first >= q).any()) else first[:, None] + places[:q]


def plain_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Causal softmax attention spelt out, in blocks of queries, each with the keys that it may see. q [B, T, H, D]; mask [T, T].

    At T ≤ 512 on a CPU forward and backward take less time than the whole square at once, and less than the fused kernel's.
    """
    t = q.shape[1]
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    blocks = ATTENTION_BLOCKS if t % ATTENTION_BLOCKS == 0 else 1
    seen: list[Tensor] = []
    for end in range(t // blocks, t + 1, t // blocks):
        rows = slice(end - t // blocks, end)
        seen.append(attended(q[:, :, rows], k[:, :, :end], v[:, :, :end], mask[rows, :end]))
    return torch.cat(seen, 2).transpose(1, 2)


def attended(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """q [B, H, Q, D] over k, v [B, Hkv, S, D] → [B, H, Q, D]; the mask is added to scores [B, Hkv, H / Hkv, Q, S]."""
    b, h, rows, d = q.shape
    kv, keys = k.shape[1], k.shape[2]
    scores = (q.reshape(b, kv, -1, d) @ k.mT).view(b, kv, h // kv, rows, keys) + mask
    weights = scores.float().softmax(-1).to(q.dtype).view(b, kv, -1, keys)
    return (weights @ v).view(b, h, rows, d)


def initialise(backbone: Backbone, projector: AudioProjector) -> None:
    """Unit-sized inputs, attention scores of unit size (the scale is 1.0, so q_norm and k_norm carry it), small residual steps."""
    config = backbone.config
    with torch.no_grad():
        backbone.embed_tokens.weight.normal_(0, config.hidden_size**-0.5)
        projector.embedding_projection.weight.normal_(0, 640**-0.5)
        for i, layer in enumerate(backbone.layers):
            for name, p in layer.named_parameters():
                if p.ndim == 2:
                    p.normal_(0, p.shape[1] ** -0.5)
                elif name.endswith(("q_norm.weight", "k_norm.weight")):
                    p.fill_(config.dim(i) ** -0.25)
                elif "post_" in name:
                    p.fill_(0.4)


def log_mel(frames: Tensor, eps: float) -> Tensor:
    """[B, T, 640] → [B, T, 4 · 80]: log-mel of the frame-normalised audio, 10 ms hops, roughly unit-sized."""
    b, t, _ = frames.shape
    wave = (frames * torch.rsqrt(frames.square().mean(-1, keepdim=True) + eps)).reshape(b, t * FRAME)
    spectrum = torch.stft(wave, 400, 160, window=torch.hann_window(400), return_complex=True)[..., : t * MEL_PER_FRAME].abs().square()
    bands = torch.einsum("fm,bfn->bnm", mel_filters(), spectrum)
    return ((bands + 1e-2).log() - 2.0).div(2.0).view(b, t, MEL_PER_FRAME * MEL_BANDS)


def mel_filters() -> Tensor:
    """[201, 80] triangular filters on the HTK mel scale, 20–8000 Hz."""
    mel = torch.linspace(_mel(20.0), _mel(8000.0), MEL_BANDS + 2)
    hz = 700 * (10 ** (mel / 2595) - 1)
    places = torch.linspace(0, 8000, 201)[:, None]
    up = (places - hz[:-2]) / (hz[1:-1] - hz[:-2])
    down = (hz[2:] - places) / (hz[2:] - hz[1:-1])
    return torch.minimum(up, down).clamp(min=0)


def _mel(hz: float) -> float:
    return float(2595 * torch.log10(torch.tensor(1 + hz / 700)))
