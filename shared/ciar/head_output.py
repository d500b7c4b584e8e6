"""What the Inter-Head predicts for a token, as intervals cheap enough for every token.

InterFuse without logits: with p = softmax(c) and t = tanh(r / 2), the definition in `ciar.interval`
becomes

    lower = p (1 - t) / (1 + t (1 - 2 p))     upper = p (1 + t) / (1 - t (1 - 2 p))
    width = upper - lower = 4 t q / (1 - t^2 + 4 t^2 q),     q = p (1 - p)

The width subtracts no near-equal numbers but 1 - p of the likeliest code, which is right to a
rounding of 1.

A centre head of LlamaGen-XL streams 84 MB through the caches: what comes behind it finds neither
its data nor its code there. So few torch calls count more than little arithmetic.

    V codebook size; functions of tensors work on the last dimension
"""

import math
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_REACH = 1 - 2**-20  # of a radius of 14.6, behind which any probability may lie


def reach_of(radius: Tensor) -> Tensor:
    """t = tanh(r / 2), float32."""
    return (radius.float() / 2).tanh().clamp(max=MAX_REACH)


class HeadOutput:
    """The Inter-Head's prediction, and what routers derive from it, computed when first asked for.

    centre: [..., V] logits.
    reach: t = tanh(r / 2) of the radii (`reach_of`), [..., V], from 0 to below 1, or how to get it,
        so that a score that does not look at it does not pay.
    token: [...] the edge's own draw; the likeliest code if there is none.
    """

    def __init__(
        self,
        centre: Tensor,
        reach: Tensor | Callable[[], Tensor],
        token: Tensor | int | None = None,
    ) -> None:
        self.centre = centre
        self._reach = reach
        self._token = token

    @cached_property
    def token(self) -> Tensor:
        if self._token is None:
            return self.centre.argmax(dim=-1)
        return torch.as_tensor(self._token, device=self.centre.device)

    @cached_property
    def reach(self) -> Tensor:
        return self._reach() if callable(self._reach) else self._reach

    @property
    def radius(self) -> Tensor:
        return 2 * self.reach.atanh()

    @cached_property
    def mid(self) -> Tensor:
        """p, [..., V]."""
        return self.centre.float().softmax(dim=-1)

    @property
    def rest(self) -> Tensor:
        """1 - p, [..., V].

        For a code above one half, of which there is one at most, it is the sum of the others.
        """
        over = F.hardshrink(self.mid, 0.5)
        under = self.mid - over
        return torch.where(over > 0, under.sum(dim=-1, keepdim=True), 1 - under)

    @property
    def doubt(self) -> Tensor:
        """1 - max p, [...]: exact also where max p rounds to 1."""
        return self.rest.amin(dim=-1)

    @cached_property
    def width(self) -> Tensor:
        """upper - lower, [..., V]."""
        p, t = self.mid, self.reach
        s = torch.addcmul(p, p, p, value=-1).mul_(t)  # t q
        return s.div_(torch.add(s, t, alpha=-0.25).mul_(t).add_(0.25))

    @cached_property
    def total(self) -> Tensor:
        """||width||_1, [...]."""
        return self.width.sum(dim=-1)

    @cached_property
    def spread(self) -> Tensor:
        """Population standard deviation of the widths over V, [...]."""
        num_codes = self.width.shape[-1]
        gaps = torch.add(self.width, self.total[..., None], alpha=-1 / num_codes)
        distance: Tensor = torch.linalg.vector_norm(gaps, dim=-1)
        return distance.mul_(1 / math.sqrt(num_codes))

    @classmethod
    def stack(cls, heads: Sequence["HeadOutput"], reach: Callable[[], Tensor]) -> "HeadOutput":
        """Heads of one token each as one of n; what all have computed is not computed again.

        reach: of all, [n, V], for the case that one has not computed its own.
        """
        head = cls(torch.stack([h.centre for h in heads]), reach)
        for name in ("reach", "mid"):
            if all(h.has(name) for h in heads):
                setattr(head, name, torch.stack([getattr(h, name) for h in heads]))
        return head

    def has(self, name: str) -> bool:
        """Whether the attribute has been computed."""
        return name in vars(self)

    def of_token(self, values: Tensor) -> Tensor:
        """[..., V] -> [...]: the drawn token's."""
        return values.gather(-1, self.token[..., None]).squeeze(-1)

    @property
    def lower(self) -> Tensor:
        """[..., V]"""
        p, t = self.mid, self.reach
        below = torch.addcmul(t, t, p, value=-2).add_(1)  # 1 + t (1 - 2 p)
        return torch.addcmul(p, p, t, value=-1).div_(below)

    @property
    def upper(self) -> Tensor:
        """[..., V]"""
        p, t = self.mid, self.reach
        below = torch.rsub(t, 1).addcmul_(t, p, value=2)  # 1 - t (1 - 2 p)
        return torch.addcmul(p, p, t).div_(below)
