"""The EAGLE drafter (Li et al. 2024): one layer that continues the target's own hidden states.

    f_t      the target's hidden state that predicts token t, as its output head sees it
    f^_t+1 = layer(W concat(E(x_t), f_t)),      logits = head(f^_t+1)

Behind the last token that the target has seen, f^ stands in for f. Token embedding and head are the
target's, frozen; both branches of guidance are run. Condition rows carry no hidden state: theirs is
zero. There is no norm at the end, since f is normed already.

    B batch   L condition rows   n tokens   D width   V codebook size
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ciar.models.transformer import Attend, TransformerConfig, Trunk


class EagleModel(Trunk):
    """config: one layer of the target's."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        del self.norm
        self.fuse = nn.Linear(2 * config.dim, config.dim)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)

    def hidden(self, x: Tensor, rope: Tensor, attend: Attend) -> Tensor:
        """As `Trunk.hidden`, without a norm."""
        for block in self.layers:
            x = block(x, rope, attend)
        return x

    def fused(self, x: Tensor, features: Tensor) -> Tensor:
        """Input rows [..., D] and the hidden states [..., D] that predicted them -> [..., D]."""
        y: Tensor = self.fuse(torch.cat([x, features], dim=-1))
        return y.to(self.fuse.weight.dtype)  # a residual stream, whatever products are made in

    def fused_condition(self, rows: Tensor) -> Tensor:
        """Condition rows [..., D] -> [..., D]."""
        return self.fused(rows, torch.zeros_like(rows))

    def forced(self, rows: Tensor, tokens: Tensor, features: Tensor, mask: Tensor) -> Tensor:
        """f^ [B, n, D] behind each of n tokens, in one pass, for training.

        rows [B, L, D] left-padded projected condition, mask [B, L] true where valid, tokens [B, n],
        features [B, n, D] the target's f.
        """
        x, followers = self.inputs(tokens)
        rows, x = self.fused_condition(rows), self.fused(x, features)
        return self.embedded_hidden(rows, x, followers, mask)[:, 1:]


def eagle_loss(
    predicted: Tensor, features: Tensor, head: nn.Linear, *, head_weight: float
) -> tuple[Tensor, Tensor]:
    """SmoothL1 between f^ and f plus `head_weight` times the cross-entropy of their predictions.

    predicted, features: [..., D]. Also returns the cross-entropy alone, without gradient.
    """
    distance = F.smooth_l1_loss(predicted, features)
    with torch.no_grad():
        wanted = head(features).float().softmax(-1)
    cross_entropy = -(wanted * head(predicted).float().log_softmax(-1)).sum(-1).mean()
    return distance + head_weight * cross_entropy, cross_entropy.detach()
