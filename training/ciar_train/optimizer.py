"""What a plan's gradients are stepped with."""

from typing import Any

import torch
from torch import nn

from ciar_train.muon import Muon
from ciar_train.plan import TrainingPlan


def optimizer_for(
    model: nn.Module, plan: TrainingPlan, *, device: torch.device
) -> torch.optim.Optimizer:
    """Muon with AdamW if the plan asks for it, else AdamW; weight decay on matrices only."""
    if plan.muon_lr:
        return MuonWithAdamW(model, plan)
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": plan.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    is_fused = device.type == "cuda" or None
    return torch.optim.AdamW(groups, lr=plan.lr, betas=plan.betas, fused=is_fused)


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for the matrices of transformer layers, AdamW for the rest, stepped as one."""

    def __init__(self, model: nn.Module, plan: TrainingPlan) -> None:
        matrices: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                is_hidden = parameter.ndim == 2 and name.startswith("layers.")
                (matrices if is_hidden else rest).append(parameter)
        self.muon = Muon(matrices, lr=plan.muon_lr, weight_decay=plan.weight_decay)
        self.adamw = torch.optim.AdamW(rest, lr=plan.lr, betas=plan.betas, weight_decay=0.0)
        self.parts: tuple[torch.optim.Optimizer, ...] = (self.muon, self.adamw)
        super().__init__([*matrices, *rest], {})
        self.param_groups = [g for part in self.parts for g in part.param_groups]
        for group in self.muon.param_groups:
            group["lr_scale"] = plan.muon_lr / plan.lr

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [g for part in self.parts for g in part.param_groups]
