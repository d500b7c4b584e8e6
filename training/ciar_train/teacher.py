"""The frozen, guided cloud as a draft's teacher.

B images   L condition rows   n tokens   D width   V codebook size
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ciar.sampling import guide, scale_at
from ciar.target import TargetModel
from ciar.types import SamplingParams
from ciar_train.codes import Conditions
from ciar_train.precision import mixed_precision


class Teacher:
    """Whole sequences at once: layers in mixed precision, logits in float32."""

    def __init__(self, target: TargetModel, sampling: SamplingParams) -> None:
        self.target = target
        self.sampling = sampling

    def rows(self, conditions: Conditions) -> Tensor:
        """Projected condition [B, L, D]."""
        model = self.target.transformer
        return model.condition_rows(conditions.features.to(model.output.weight.dtype))

    def logits(
        self, conditions: Conditions, tokens: Tensor, injected: Tensor | None = None
    ) -> Tensor:
        """Guided logits [B, n + 1, V] for tokens [B, n], float32 whatever the target's dtype.

        injected: [B, n, D], added to their inputs.

        The output head is linear, so hidden states are guided in place of logits: one product.
        """
        model = self.target.transformer
        x, followers = model.inputs(tokens)
        if injected is not None:
            x = x + injected.to(x.dtype)
        branches = (
            (self.rows(conditions), conditions.mask),
            model.uncond_rows(conditions.mask),
        )
        halves = []
        for rows, mask in branches:
            with mixed_precision(x.device):
                halves.append(model.embedded_hidden(rows, x, followers, mask))
        positions = torch.arange(halves[0].shape[1], device=x.device)
        scale = scale_at(positions, self.sampling.cfg_scale, self.sampling.cfg_interval)
        guided = guide(halves[0], halves[1], scale)
        return F.linear(guided, model.output.weight.float())
