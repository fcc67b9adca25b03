"""How a layer that hears and a layer of Moonshine's decoder are written as plain layers of Gemma 4. Only weights; see :mod:`.graft`.

The residual stream has 320 dimensions, for two kinds of positions:

    0 … 287    REAL: of text what the decoder has there, its mean taken off (nobody misses it: a layer norm takes it off, and so does
               what is added here); of audio what the hearing layers have, in the first ones
    288 … 299  flags, that say what a position is: TEXT and AUDIO (four dimensions each, as they carry biases, which Gemma has none of),
               BEGIN (<bos><|audio>) and STOP (<audio|>); never zero, as every norm divides by the size of the whole
    300        BALLAST: nobody reads it. Gemma puts a norm behind attention and one behind the MLP, and what stands in this dimension
               counts in them. A little makes such a norm nearly linear, as the decoder has none there; very much of it (SILENCE)
               leaves nothing of the rest, and the position goes on as it came
    301 … 319  free, to be learnt

So all positions go through all layers, and each layer is silent where it has nothing to say: a head or a unit of the MLP that only a
flag opens pours ballast. Between 0.2 and 0.4 % of a position's own size leaks in nevertheless (the tests measure it).

The stream is √320 times what the decoder and the hearing layers have in theirs. Gemma multiplies a row of its table by that on the way
in, and reads the same row as it is on the way out; the decoder does neither. So rows are the decoder's own, and a step of training
moves them as far as it would have moved the decoder's; every norm takes the factor off.

Norms of queries and keys, that the decoder has none of either: dimensions that only queries use and such that only keys use hold random
projections (pads), so that the norm is about the same at each position; heads with small queries or keys get more of them, since all
heads of a layer share one gain. The same with values. Heads of ours that find nothing hold pads too: a norm of nothing makes as much
of a rounding error as of anything, and its gradient is a thousandfold.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..backbone import MLP, Backbone, Layer
from ..projector import AudioProjector
from . import moonshine, text
from .recognisers import HEAD_DIM as REAL_DIM
from .recognisers import HEADS
from .student import Student
from .teachers import WIDTH

WIDE, DIM = 320, 64  # of the model that ships, and of each of its heads
TEXT, AUDIO, BEGIN, STOP = slice(288, 292), slice(292, 296), slice(296, 298), slice(298, 300)
FLAGS, BALLAST = slice(288, 300), 300
SILENCE = 1000.0  # how much more ballast there is than anything else, where a layer is to be silent
SCALE = WIDE**0.5  # of the stream
# What each dimension of a flag is in the stream, before it is scaled.
TEXT_FLAG, AUDIO_FLAG, BEGIN_FLAG, STOP_FLAG = 0.335, 0.8, 4.0, 10.0
# Heads of the hearing layers: the last three are ours. One for text, which finds ballast; two that look at the beginning, and to which
# the audio is drawn in opposite ways, so that one of them finds the flag whatever the audio is.
SILENT_HEAD, FLAG_HEADS = 5, (6, 7)
HEARING_HEADS = HEADS - 3
SLOW = torch.tensor([*range(26, 32), *range(58, 64)])  # dimensions of a sliding layer's head that turn by less than 0.3 over 500 positions
OUR_PADS = {"q": [*range(0, 12), *range(32, 44)], "k": [*range(12, 24), *range(44, 56)], "v": [*range(1, DIM)]}
LINEAR = 0.8  # ballast behind an MLP, beside its mean output: what it says then grows with what it has to say
GATE_GAIN = 4.0  # gains of the dimensions that flags are compared in
SILU = 1.702  # silu(x) ≈ 1.702 · gelu(x / 1.702)
IDLE = 0.002  # of an MLP that has nothing to say yet: small, and may grow


@dataclass(frozen=True, slots=True)
class Places:
    """Which dimensions of a head hold what. Pads of queries are zero in keys, and the other way round."""

    real: Tensor  # of the decoder's 36, in its order
    query_pads: Tensor
    key_pads: Tensor
    gate: int  # text does not look at what is forbidden here
    sink: int  # everything else looks at the beginning here


def _places(*parts: list[int], gate: int, sink: int) -> Places:
    real, query_pads, key_pads = (torch.tensor(part) for part in parts)
    return Places(real, query_pads, key_pads, gate, sink)


# Moonshine turns 16 pairs (2i, 2i + 1) of its 36 dimensions, at 10000^(−2i / 32). A full layer of Gemma turns pairs (i, i + 32), the first
# half of the 32 where the partial factor is 0.5, at θ^(−2i / 64): the same angles where θ = 10⁸. Nothing turns in the other four and in
# cross-attention: these get pairs that stand, and the three slowest ones (at most 0.3 over 500 positions), as 36 are needed.
ROTARY_THETA, ROTARY_FACTOR = 1e8, 0.5
SELF = _places(
    [at for i in range(16) for at in (i, i + 32)] + [16, 48, 17, 49],
    [*range(19, 25), *range(51, 57)],
    [*range(25, 31), *range(57, 63)],
    gate=18,
    sink=50,
)
CROSS = _places(
    [*range(16, 31), *range(48, 63), 13, 14, 15, 45, 46, 47],
    [*range(0, 6), *range(32, 38)],
    [*range(6, 12), *range(38, 44)],
    gate=31,
    sink=63,
)
VALUE_PADS, VALUE_FLAG = slice(36, 63), 63  # values do not turn, so the decoder's 36 are the first ones


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of one attention of the decoder, over speech: mean norms [8] for each head, and the rms of what is added to the stream."""

    q: Tensor
    k: Tensor
    v: Tensor
    out: float


@dataclass(frozen=True, slots=True)
class LayerSizes:
    own: Sizes  # self-attention
    other: Sizes  # cross-attention
    mlp: float  # median rms of what the MLP adds
    units: Tensor  # of the MLP, those that say most first


@dataclass(frozen=True, slots=True)
class Memory:
    """How audio becomes what the decoder looks at: weight · h + bias; ``rms`` of h with its flags, over all 320 dimensions."""

    weight: Tensor  # [288, d]
    bias: Tensor  # [288]
    rms: float


@dataclass(frozen=True, slots=True)
class Flags:
    """What each dimension of a flag is behind a norm, on average."""

    text: float
    audio: float
    begin: float


def real_gain(flag: float) -> float:
    """The gain that gives REAL of a text the rms 1 behind a norm, where each dimension of its flag is ``flag`` there."""
    return (WIDTH / max(WIDE - 4 * flag**2, 1.0)) ** 0.5


def opened(flag: float) -> float:
    """What a unit says that text opens: gate and up are both ``flag``."""
    return flag * float(F.gelu(torch.tensor(flag), approximate="tanh"))


def _centred(weight: Tensor) -> Tensor:
    return weight - weight.mean(0, keepdim=True)


def _heads(weight: Tensor) -> Tensor:
    """[8 · 64, …] → [8, 64, …], or the decoder's [8 · 36, …] → [8, 36, …]."""
    return weight.view(HEADS, -1, *weight.shape[1:])


def write_table(backbone: Backbone, projector: AudioProjector, student: Student, decoder: moonshine.Decoder) -> None:
    """Rows of tokens, and what audio comes in by. Padding is nothing; every other mark that is not named here is text, as a word is."""
    table, rows = backbone.embed_tokens.weight, decoder.embed_tokens.weight
    table[:, :WIDTH] = rows - rows.mean(1, keepdim=True)
    table[:, TEXT] = TEXT_FLAG
    table[text.PAD] = 0
    old, width = student.backbone.embed_tokens.weight, student.config.backbone.hidden_size
    for mark in (text.BOS, text.BEGIN_AUDIO):
        table[mark] = 0
        table[mark, :width] = old[mark] * width**0.5
        table[mark, BEGIN] = BEGIN_FLAG
    table[text.END_AUDIO] = 0
    table[text.END_AUDIO, STOP] = STOP_FLAG
    projector.embedding_projection.weight[:width] = student.projector.embedding_projection.weight * SCALE


def write_hearing(new: Layer, old: Layer, *, first: bool) -> None:
    """A layer that does with audio what it did, and nothing with text. The first one also gives audio its flag."""
    own, given, width = new.self_attn, old.self_attn, len(old.input_layernorm.weight)
    for name in ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"):
        gains, adds = getattr(new, name).weight, name.startswith("post_")
        gains[:width] = getattr(old, name).weight * (width / WIDE) ** 0.5 * (SCALE if adds else 1.0)
        gains[width:WIDTH] = gains[:width].mean()
        gains[FLAGS] = 0.0 if adds else 1.0
    heads, shared = given.q_proj.weight.shape[0] // DIM, given.q_proj.weight.shape[0] // given.k_proj.weight.shape[0]
    q, k, v = (_heads(matrix.weight) for matrix in (own.q_proj, own.k_proj, own.v_proj))
    out = own.o_proj.weight.view(WIDE, HEADS, DIM)
    q[:heads, :, :width] = given.q_proj.weight.view(heads, DIM, width)
    for wide, matrix in ((k, given.k_proj), (v, given.v_proj)):
        wide[:heads, :, :width] = matrix.weight.view(-1, DIM, width).repeat_interleave(shared, 0)
    out[:width, :heads] = given.o_proj.weight.view(width, heads, DIM)
    own.q_norm.weight.copy_(given.q_norm.weight)
    own.k_norm.weight.copy_(given.k_norm.weight)
    usual = float(given.o_proj.weight.std()) * given.o_proj.weight.shape[1] ** 0.5  # rms of what attention says
    contrast = own.q_norm.weight * own.k_norm.weight
    slow = int(SLOW[contrast[SLOW].abs().argmax()])  # a head of ours compares in one dimension, the one whose gains are largest
    generator = torch.Generator().manual_seed(0)
    for head in (SILENT_HEAD, *FLAG_HEADS) if first else (SILENT_HEAD,):
        for wide, pads in ((q, OUR_PADS["q"]), (k, OUR_PADS["k"]), (v, OUR_PADS["v"])):
            wide[head, pads, :width] = torch.randn(len(pads), width, generator=generator) / (len(pads) * width) ** 0.5
    for flag in (TEXT, STOP):
        q[SILENT_HEAD, slow, flag] = 1.0
        k[SILENT_HEAD, slow, flag] = contrast[slow].sign()
        v[SILENT_HEAD, 0, flag] = 1.0
    out[BALLAST, SILENT_HEAD, 0] = SILENCE * usual * 2
    if first:
        direction = torch.randn(width, generator=generator) * 32 / width**0.5  # far above the pads
        for head, sign in zip(FLAG_HEADS, (1, -1), strict=True):
            q[head, slow, :width] = direction * sign
            k[head, slow, BEGIN] = 1.0
            v[head, 0, BEGIN] = 1.0
            out[AUDIO, head, 0] = usual / 64  # small, as it counts in the norm; the gain makes it what it should be (calibrated)
        new.post_attention_layernorm.weight[AUDIO] = 8 * AUDIO_FLAG * SCALE
    _write_hearing_mlp(new.mlp, old.mlp, width)


def _write_hearing_mlp(new: MLP, old: MLP, width: int) -> None:
    """All units, but for the one that says least if there is no room for ours, the last one, which pours ballast over text."""
    size = old.down_proj.weight.norm(dim=0) * old.up_proj.weight.norm(dim=1) * old.gate_proj.weight.norm(dim=1)
    kept = size.topk(min(len(size), new.down_proj.weight.shape[1] - 1)).indices
    n = len(kept)
    new.gate_proj.weight[:n, :width], new.up_proj.weight[:n, :width] = old.gate_proj.weight[kept], old.up_proj.weight[kept]
    new.down_proj.weight[:width, :n] = old.down_proj.weight[:, kept]
    for flag in (TEXT, STOP):
        new.gate_proj.weight[-1, flag] = new.up_proj.weight[-1, flag] = 1.0
    new.down_proj.weight[BALLAST, -1] = SILENCE * old.down_proj.weight.std() * 8


def write_attention(
    new: Layer,
    old: moonshine.Attention,
    gains: Tensor,
    sizes: Sizes,
    flag: float,
    generator: torch.Generator,
    memory: Memory | None = None,
) -> None:
    """Self-attention of the decoder, or with ``memory`` its cross-attention. ``gains`` [288]: of the norm in front of it; ``flag``: of
    text, behind ours."""
    own, gain = new.self_attn, real_gain(flag)
    places, width = (SELF, WIDTH) if memory is None else (CROSS, memory.weight.shape[1])
    q, k, v = (_heads(matrix.weight) for matrix in (own.q_proj, own.k_proj, own.v_proj))
    new.input_layernorm.weight[:WIDTH], new.input_layernorm.weight[FLAGS] = gain, 1.0
    q[:, places.real, :WIDTH] = _heads(old.q_proj.weight * gains)
    for wide, matrix, at in ((k, old.k_proj.weight, places.real), (v, old.v_proj.weight, torch.arange(REAL_DIM))):
        if memory is None:
            wide[:, at, :WIDTH] = _heads(matrix * gains)
        else:  # a flag is AUDIO_FLAG / rms behind the norm, and REAL is gain · h / rms: keys and values come out divided by the rms
            wide[:, at, :width] = _heads(matrix @ memory.weight) / gain
            wide[:, at, AUDIO] = (_heads(matrix @ memory.bias) / (4 * AUDIO_FLAG))[..., None]
    unit = 1.0 if memory is None else 1 / memory.rms
    nq, nk, nv = sizes.q, sizes.k * unit, sizes.v * unit
    level = 1.0 if memory is None else gain * (WIDE / width) ** 0.5  # rms of what the pads project
    product = float((nq * nk).max()) * 1.15  # of a query's and a key's norm with their pads, the same for all heads
    more = (product / (nq * nk)).sqrt()
    pads = (more.square() - 1).clamp(min=0).sqrt()
    q[:, places.query_pads, :WIDTH] = _random((12, WIDTH), pads * nq, generator)
    k[:, places.key_pads, :width] = _random((12, width), pads * nk / level, generator)
    v[:, VALUE_PADS, :width] = _random((27, width), nv / level, generator)
    # The scale of the scores is 1 here and 36^-½ there; norms bring a query to √64, which the gain divides by its own norm.
    for norm in (own.q_norm, own.k_norm):
        norm.weight.fill_((product / unit / (DIM * REAL_DIM**0.5)) ** 0.5)
        norm.weight[[places.gate, places.sink]] = GATE_GAIN
    q[:, places.gate, TEXT] = 0.03 * nq.mean()
    for forbidden in (AUDIO if memory is None else TEXT, BEGIN, STOP):
        k[:, places.gate, forbidden] = -0.7 * nk.mean()
    for silent in (AUDIO, BEGIN, STOP):
        q[0, places.sink, silent] = 2 * nq.mean()
    k[0, places.sink, BEGIN], v[0, VALUE_FLAG, BEGIN] = 2 * nk.mean(), 20 * nv.mean()
    out, after = own.o_proj.weight.view(WIDE, HEADS, DIM), new.post_attention_layernorm.weight
    out[:WIDTH, :, :REAL_DIM] = _centred(old.o_proj.weight).view(WIDTH, HEADS, REAL_DIM) * (sizes.v * 2**0.5 / DIM**0.5)[:, None]
    out[BALLAST, 0, VALUE_FLAG] = SILENCE * sizes.out
    after[:WIDTH] = sizes.out * SCALE * (WIDTH / WIDE) ** 0.5
    v[1, VALUE_FLAG, TEXT], out[TEXT, 1, VALUE_FLAG] = 0.5 * nv[1], 0.5 * sizes.out  # the flag grows with the stream
    after[TEXT] = sizes.out * SCALE


def _random(shape: tuple[int, int], norms: Tensor, generator: torch.Generator) -> Tensor:
    """A projection for each head [8, n, width] whose output has these norms [8], the input being of rms 1."""
    matrices = torch.randn(len(norms), *shape, generator=generator)
    return matrices / matrices.norm(dim=(1, 2), keepdim=True) * norms[:, None, None]


def write_mlp(new: Layer, old: moonshine.Mlp, gains: Tensor, sizes: LayerSizes, flags: Flags) -> None:
    """The decoder's MLP, as many of its units as there is room for; biases come with the flag of text."""
    mlp, kept, flag = new.mlp, sizes.units[: new.mlp.down_proj.weight.shape[1] - 2], flags.text
    n = len(kept)
    (up, gate), (up_bias, gate_bias) = old.fc1.weight.chunk(2), old.fc1.bias.chunk(2)
    for matrix, weight, bias, scale in ((mlp.gate_proj, gate, gate_bias, 1 / SILU), (mlp.up_proj, up, up_bias, SILU)):
        matrix.weight[:n, :WIDTH] = (weight * gains)[kept] * scale
        matrix.weight[:n, TEXT] = (bias[kept] * scale / (4 * flag))[:, None]
    mlp.down_proj.weight[:WIDTH, :n] = _centred(old.fc2.weight)[:, kept]
    mlp.down_proj.weight[:WIDTH, -2] = (old.fc2.bias - old.fc2.bias.mean()) / opened(flag)
    _write_ballast(new, flags, LINEAR * sizes.mlp * WIDE**0.5 / opened(flag), SILENCE * sizes.mlp)
    new.post_feedforward_layernorm.weight[:WIDTH] = sizes.mlp * SCALE * (WIDTH / WIDE + LINEAR**2) ** 0.5


def write_idle_mlp(new: Layer, sizes: Sizes, flags: Flags, generator: torch.Generator) -> None:
    """An MLP where the decoder has none: next to nothing but ballast, so that training may make something of it."""
    mlp = new.mlp
    n = mlp.down_proj.weight.shape[1] - 2
    for matrix in (mlp.gate_proj, mlp.up_proj):
        matrix.weight[:n, :WIDTH] = torch.randn(n, WIDTH, generator=generator) / WIDTH**0.5
    mlp.down_proj.weight[:WIDTH, :n] = torch.randn(WIDTH, n, generator=generator) * IDLE
    _write_ballast(new, flags, 16.0, SILENCE)
    new.post_feedforward_layernorm.weight[:WIDTH] = sizes.out * SCALE * (WIDTH / WIDE) ** 0.5 / 2


def _write_ballast(new: Layer, flags: Flags, for_text: float, for_others: float) -> None:
    """The last two units: one that the flag of text opens, and one for all other flags, which silences. What this one says grows with the
    square of the flag, so it is opened by their mean size, and wide: audio is nothing that this MLP ever met, and it has much to say."""
    mlp, before = new.mlp, new.pre_feedforward_layernorm.weight
    before[:WIDTH], before[FLAGS] = real_gain(flags.text), 1.0
    for matrix in (mlp.gate_proj, mlp.up_proj):
        matrix.weight[-2, TEXT] = 0.25
        matrix.weight[-1, AUDIO], matrix.weight[-1, BEGIN], matrix.weight[-1, STOP] = 2 / flags.audio, 4 / flags.begin, 0.5
    mlp.down_proj.weight[BALLAST, -2], mlp.down_proj.weight[BALLAST, -1] = for_text, for_others
