"""Muon whose products run in the precision that the device is fast at.

The library's runs them in bfloat16 always, which a CPU without instructions for it emulates: there
they took three quarters of a training step.
"""

import math
from typing import Any

import torch
from torch import Tensor

from ciar_train.precision import has_fast_bfloat16

LARGEST_STEP = 0.2  # RMS of an update per unit of learning rate, about AdamW's


class Muon(torch.optim.Muon):
    """Its settings and state are the library's; updates match the RMS of AdamW's.

    After Jordan et al. (2024), scaled as in "Muon is scalable for LLM training" (Liu et al., 2025).
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_one(parameter, group)

    def _step_one(self, parameter: Tensor, group: dict[str, Any]) -> None:
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        average = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(average, group["momentum"]) if group["nesterov"] else average
        update = orthogonal(
            update,
            coefficients=group["ns_coefficients"],
            steps=group["ns_steps"],
            eps=group["eps"],
        )
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        scale = LARGEST_STEP * math.sqrt(max(parameter.shape))
        parameter.add_(update.to(parameter.dtype), alpha=-group["lr"] * scale)


def orthogonal(
    matrix: Tensor, *, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Tensor:
    """Roughly U V^T of matrix = U S V^T, [m, n]: an odd polynomial, repeated, brings S near 1.

    Newton-Schulz iteration of the fifth degree: X <- a X + (b A + c A^2) X with A = X X^T.
    """
    a, b, c = coefficients
    dtype = torch.bfloat16 if has_fast_bfloat16(matrix.device.type) else torch.float32
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.mT if is_tall else matrix).to(dtype)  # the smaller of the two products X X^T, X^T X
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.addmm(x, polynomial, x, beta=a)
    return x.mT if is_tall else x
