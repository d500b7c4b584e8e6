"""Muon whose products run in the precision that the device is fast at.

The library's runs them in bfloat16 always, which a CPU without instructions for it emulates: there
they took three quarters of a training step.
"""

import math
from typing import Any, cast

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
            alike: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault(parameter.shape, []).append(parameter)
            for parameters in alike.values():
                self._step_alike(parameters, group)

    def _step_alike(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Matrices of one shape together: a GPU would wait for the launches of one by one."""
        gradients = torch.stack([cast(Tensor, p.grad) for p in parameters])  # [n, rows, columns]
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        buffers = [self.state[p]["momentum_buffer"] for p in parameters]
        torch._foreach_lerp_(buffers, list(gradients), 1 - group["momentum"])
        averages = torch.stack(buffers)
        updates = orthogonal(
            gradients.lerp(averages, group["momentum"]) if group["nesterov"] else averages,
            coefficients=group["ns_coefficients"],
            steps=group["ns_steps"],
            eps=group["eps"],
        )
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        scale = LARGEST_STEP * math.sqrt(max(parameters[0].shape))
        torch._foreach_add_(parameters, list(updates.float()), alpha=-group["lr"] * scale)


def orthogonal(
    matrices: Tensor, *, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Tensor:
    """Roughly U V^T of each U S V^T, [n, rows, columns]: a repeated polynomial brings S near 1.

    Newton-Schulz iteration of the fifth degree: X <- a X + (b A + c A^2) X with A = X X^T.
    """
    a, b, c = coefficients
    dtype = torch.bfloat16 if has_fast_bfloat16(matrices.device.type) else torch.float32
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if is_tall else matrices).to(dtype)  # the smaller of X X^T and X^T X
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if is_tall else x
