"""What the Inter-Head predicts for a token, as intervals cheap enough for every token.

InterFuse in its rational form: with p = softmax(c) and w = e^r - 1, the definition in
`ciar.interval` becomes

    lower = p / (1 + w (1 - p))     upper = p (1 + w) / (1 + w p)
    width = upper - lower = q w (w + 2) / (1 + w + q w^2),     q = p (1 - p)

without a subtraction of near-equal numbers: 1 - p of the most likely token is the sum of the
others.

    V codebook size; functions of tensors work on the last dimension
"""

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor


class HeadOutput:
    """The Inter-Head's prediction, and what routers derive from it, computed when first asked for.

    centre: [..., V] logits.
    growth: w = e^r - 1 of the radii, [..., V], or how to get it, so that a score that does not look
        at it does not pay.
    token: [...] the edge's own draw; the likeliest code if there is none.
    """

    def __init__(
        self,
        centre: Tensor,
        growth: Tensor | Callable[[], Tensor],
        token: Tensor | int | None = None,
    ) -> None:
        self.centre = centre
        self._growth = growth
        self._token = token

    @cached_property
    def token(self) -> Tensor:
        if self._token is None:
            return self.centre.argmax(dim=-1)
        return torch.as_tensor(self._token, device=self.centre.device)

    @cached_property
    def growth(self) -> Tensor:
        return self._growth() if callable(self._growth) else self._growth

    @property
    def radius(self) -> Tensor:
        return self.growth.log1p()

    @cached_property
    def _odds(self) -> tuple[Tensor, Tensor, Tensor]:
        """p and 1 - p [..., V], and 1 - max p [..., 1]."""
        logits = self.centre.float()
        largest, top = logits.max(dim=-1, keepdim=True)
        p = (logits - largest).exp_().scatter_(-1, top, 0.0)
        others = p.sum(dim=-1, keepdim=True)
        total = others + 1
        least_rest = others / total
        p = p.div_(total).scatter_(-1, top, 1 / total)
        return p, (1 - p).scatter_(-1, top, least_rest), least_rest

    @property
    def mid(self) -> Tensor:
        return self._odds[0]

    @property
    def rest(self) -> Tensor:
        """1 - p, [..., V]."""
        return self._odds[1]

    @property
    def doubt(self) -> Tensor:
        """1 - max p, [...]: exact also where max p rounds to 1."""
        return self._odds[2].squeeze(-1)

    @cached_property
    def width(self) -> Tensor:
        """upper - lower, [..., V]."""
        p, rest, _ = self._odds
        w, q = self.growth, p * rest
        below = torch.addcmul(w + 1, q, w * w)
        return q.mul_(w).mul_(w + 2).div_(below)

    @classmethod
    def stack(cls, heads: Sequence["HeadOutput"], growth: Callable[[], Tensor]) -> "HeadOutput":
        """Heads of one token each as one of n; what all have computed is not computed again.

        growth: of all, [n, V], for the case that one has not computed its own.
        """
        head = cls(torch.stack([h.centre for h in heads]), growth)
        if all("growth" in vars(h) for h in heads):
            head.growth = torch.stack([h.growth for h in heads])
        if all("_odds" in vars(h) for h in heads):
            mid, rest, doubt = map(torch.stack, zip(*(h._odds for h in heads), strict=True))
            head._odds = mid, rest, doubt
        return head

    def of_token(self, values: Tensor) -> Tensor:
        """[..., V] -> [...]: the drawn token's."""
        return values.gather(-1, self.token[..., None]).squeeze(-1)

    @property
    def lower(self) -> Tensor:
        p, rest, _ = self._odds
        return p / (self.growth * rest).add_(1)

    @property
    def upper(self) -> Tensor:
        p, _, _ = self._odds
        grown = p * self.growth
        return (p + grown).div_(grown.add_(1))
