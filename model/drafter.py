"""The MTP assistant: a few layers with queries only, which read the backbone's cache (spec section 5).

It drafts one token after another from ONE position: rotary positions stay at the last chosen token, and its own words are known to it
only through the token embedding and the hidden state that go in. Draft errors cost time, never correctness.
"""

from __future__ import annotations

from torch import Tensor, cat, nn
from torch.nn import functional as F

from .backbone import Attend, Backbone
from .config import BackboneConfig, DrafterConfig
from .errors import BackendError


class Drafter(nn.Module):
    """One step: (embedding of the last token, hidden state) → (draft logits, next hidden state). Names are those on disk."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        wide, narrow = config.backbone_hidden_size, config.text.hidden_size
        self.config = config
        self.model = Backbone(config.text, queries_only=True)
        self.pre_projection = nn.Linear(2 * wide, narrow, bias=False)
        self.post_projection = nn.Linear(narrow, wide, bias=False)

    def forward(self, embedded: Tensor, hidden: Tensor, positions: Tensor, attend: Attend) -> tuple[Tensor, Tensor]:
        """embedded, hidden [N, D] of the BACKBONE (token scaled by sqrt(D); hidden after its final norm); positions [N] of the last
        chosen tokens, the same in every step of one draft → logits [N, vocab_size], hidden [N, D] for the next step."""
        inner = self.model(self.pre_projection(cat([embedded, hidden], -1)), positions, attend)
        # The head is the drafter's own table (the backbone's embeds the input); no soft cap here.
        return F.linear(inner, self.model.embed_tokens.weight), self.post_projection(inner)


def check_fit(backbone: BackboneConfig, drafter: DrafterConfig) -> None:
    """Raises BackendError if a drafter cannot read this backbone's cache: it belongs to another model."""
    wanted, got = _shape(backbone, backbone.hidden_size), _shape(drafter.text, drafter.backbone_hidden_size)
    differing = {name: got[name] for name in got if wanted.get(name) != got[name]}
    if differing:
        raise BackendError(f"the assistant belongs to another model: it needs {differing}, the backbone has {wanted}")


def _shape(config: BackboneConfig, hidden_size: int) -> dict[str, int]:
    shape = {"hidden_size": hidden_size, "vocab_size": config.vocab_size}
    for kind in sorted(set(config.layer_types)):
        layer = config.last_layer_of(kind)
        shape |= {f"{kind} key heads": config.kv_heads(layer), f"{kind} head dim": config.dim(layer)}
    return shape
