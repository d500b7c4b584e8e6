"""What the Inter-Head predicts for a token, as intervals cheap enough for every token.

InterFuse in its rational form: with p = softmax(c) and w = e^r - 1, the definition in
`ciar.interval` becomes

    lower = p / (1 + w (1 - p))     upper = p (1 + w) / (1 + w p)
    width = upper - lower = q w (w + 2) / (1 + w + q w^2),     q = p (1 - p)

without a subtraction of near-equal numbers: 1 - p of the most likely token is the sum of the
others.

A centre head of LlamaGen-XL streams 84 MB through the caches: what comes behind it finds neither
its data nor its code there. So few torch calls count more than little arithmetic.

    V codebook size; functions of tensors work on the last dimension
"""

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
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
    def mid(self) -> Tensor:
        """p, [..., V]."""
        return self.centre.float().softmax(dim=-1)

    @cached_property
    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """p up to one half, and above it, each [..., V] and 0 elsewhere; the sum of the former.

        At most one code is above one half: for it alone 1 - p would cancel, and is that sum.
        """
        over = F.hardshrink(self.mid, 0.5)
        under = self.mid - over
        return under, over, under.sum(dim=-1, keepdim=True)

    @property
    def rest(self) -> Tensor:
        """1 - p, [..., V]."""
        under, over, others = self._parts
        return torch.where(over > 0, others, 1 - under)

    @property
    def doubt(self) -> Tensor:
        """1 - max p, [...]: exact also where max p rounds to 1."""
        return self.rest.amin(dim=-1)

    @cached_property
    def width(self) -> Tensor:
        """upper - lower, [..., V]."""
        under, over, others = self._parts
        w = self.growth
        q = torch.addcmul(under, under, under, value=-1).addcmul_(over, others)
        once = q.mul_(w)  # q w
        twice = once * w  # q w^2
        above = torch.add(twice, once, alpha=2)
        return above.div_(twice.add_(w).add_(1))

    @classmethod
    def stack(cls, heads: Sequence["HeadOutput"], growth: Callable[[], Tensor]) -> "HeadOutput":
        """Heads of one token each as one of n; what all have computed is not computed again.

        growth: of all, [n, V], for the case that one has not computed its own.
        """
        head = cls(torch.stack([h.centre for h in heads]), growth)
        for name in ("growth", "mid"):
            if all(name in vars(h) for h in heads):
                setattr(head, name, torch.stack([getattr(h, name) for h in heads]))
        return head

    def of_token(self, values: Tensor) -> Tensor:
        """[..., V] -> [...]: the drawn token's."""
        return values.gather(-1, self.token[..., None]).squeeze(-1)

    @property
    def lower(self) -> Tensor:
        """p / (1 + w - w p), [..., V]: right to e^r roundings, since what cancels stands by a 1."""
        w = self.growth
        return self.mid / torch.addcmul(w, w, self.mid, value=-1).add_(1)

    @property
    def upper(self) -> Tensor:
        grown = self.mid * self.growth
        return (self.mid + grown).div_(grown.add_(1))
