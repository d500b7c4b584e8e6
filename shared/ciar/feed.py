"""What one session gives to a step of the target: tokens to extend its cache by.

L condition rows of this prompt   k tokens fed   T image tokens   F feature width
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ciar.sampling import scale_at


@dataclass(frozen=True, kw_only=True, eq=False)
class Scatter:
    """Fed tokens that are no sequence: a tree of drafts, or tokens of several rows of the picture.

    positions: [k] where in the picture each token stands.
    grids: [k, T] the tokens it follows, itself included; V where unknown.
    sees: [k, n + k] bool, which of the n image rows in the cache and of those fed it attends to.
    outputs: [m] those of the k whose logits are wanted, -1 for the last condition row; None: as
        `Feed.num_outputs` has it.
    """

    positions: Tensor
    grids: Tensor
    sees: Tensor
    outputs: Tensor | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Feed:
    """One session's share of a step.

    condition: [L, condition_dim] text features to prefill first; None when the slot holds them.
    num_condition: L, in both cases.
    position: of the first fed token: as many image rows are in the cache.
    tokens: [k] ids, may be empty only in a prefill; with `scatter` those of its grids.
    features: [k, F] codes, zero rows for tokens the edge did not decide; None when all are zero.
    kept: [k] bool, tokens the edge decided, whose codes are made here; None: none are made here.
    before: [position] ids of the tokens before them; models with `neighbours` look at these.
    num_outputs: logits wanted, for the last so many positions; None: for all.
    scatter: where the tokens stand, if they are no sequence.
    """

    slot: int
    num_condition: int
    position: int
    tokens: Tensor
    cfg_scale: float
    cfg_interval: int = -1
    condition: Tensor | None = None
    features: Tensor | None = None
    kept: Tensor | None = None
    before: Tensor | None = None
    num_outputs: int | None = None
    scatter: Scatter | None = None

    @property
    def num_new_rows(self) -> int:
        return len(self.tokens) + (self.num_condition if self.condition is not None else 0)

    @property
    def first_output(self) -> int:
        """The first of the new rows whose logits are wanted.

        All but one condition rows predict nothing.
        """
        if self.num_outputs is not None:
            return self.num_new_rows - self.num_outputs
        return self.num_condition - 1 if self.condition is not None else 0

    @property
    def outputs(self) -> slice | Tensor:
        """Those of the new rows whose logits are wanted."""
        if self.scatter is None or self.scatter.outputs is None:
            return slice(self.first_output, self.num_new_rows)
        return self.scatter.outputs + self.num_new_rows - len(self.tokens)

    @property
    def output_positions(self) -> Tensor:
        """Of the tokens that the wanted logits predict: [num outputs]."""
        if self.scatter is not None:
            before = F.pad(self.scatter.positions, (1, 0), value=-1)  # the condition's, first
            if self.scatter.outputs is not None:
                return before[self.scatter.outputs + 1] + 1
            return before[self.first_output + 1 :] + 1
        first = self.position + 1
        if self.condition is not None:
            first -= self.num_condition  # the last condition row predicts token 0
        return first + torch.arange(self.first_output, self.num_new_rows)

    def scale(self, device: torch.device) -> float | Tensor:
        """Of guidance, for the wanted logits."""
        if self.cfg_interval < 0:
            return self.cfg_scale
        return scale_at(self.output_positions.to(device), self.cfg_scale, self.cfg_interval)
