"""`ciar-train target`: the cloud's transformer.

Next-token prediction on token grids, with dropped captions for guidance.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ciar.models.transformer import Transformer, TransformerConfig
from ciar_train.codes import CodeFolder, Conditions
from ciar_train.loop import Metrics, Run, TrainingPlan, World, batch_indices, train
from ciar_train.precision import mixed_precision


@dataclass(frozen=True, kw_only=True)
class TargetPlan(TrainingPlan):
    drop_caption: float = 0.1  # share of captions replaced by the unconditional features
    muon_lr: float = 0.0  # learning rate of Muon for hidden matrices; 0: AdamW everywhere


def init_weights(model: nn.Module, *, num_layers: int) -> None:
    """Normal weights of variance 1 / (2 fan-in), residual outputs scaled down by depth."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            std = (0.5 / module.in_features) ** 0.5
            if name.endswith(("attention.wo", "feed_forward.w2")):
                std /= (2 * num_layers) ** 0.5
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.05)


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for the hidden matrices, AdamW for the rest, stepped as one."""

    def __init__(self, model: nn.Module, plan: TargetPlan) -> None:
        matrices: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            is_hidden = parameter.ndim == 2 and name.startswith("layers.")
            (matrices if is_hidden else rest).append(parameter)
        self.muon = torch.optim.Muon(
            matrices,
            lr=plan.muon_lr,
            weight_decay=plan.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
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


def drop_captions(model: Transformer, conditions: Conditions, dropped: Tensor) -> Tensor:
    """Features [B, L, C] with the unconditional ones in the rows of `dropped` [B].

    The mask stays the prompt's.
    """
    features = conditions.features
    uncond = model.cls_embedding.uncond(features.shape[1]).expand_as(features)
    uncond = uncond * conditions.mask[..., None]
    return torch.where(dropped[:, None, None], uncond, features)


def train_target(
    config: TransformerConfig,
    plan: TargetPlan,
    *,
    data: CodeFolder,
    held_out: CodeFolder,
    run_folder: Path,
    world: World,
    start: Mapping[str, Tensor] | None = None,
) -> Transformer:
    """Train or resume; returns the averaged model in eval mode.

    start: weights to begin from instead of random ones.
    """
    torch.manual_seed(plan.seed)
    model = Transformer(config)
    init_weights(model, num_layers=config.num_layers)
    if start:
        model.load_state_dict(start)
    model.to(world.device)
    optimizer = MuonWithAdamW(model, plan) if plan.muon_lr else None

    def batch(
        folder: CodeFolder, indices: Tensor, generator: torch.Generator
    ) -> tuple[Conditions, Tensor]:
        picks = torch.randint(folder.num_captions, (len(indices),), generator=generator)
        rows = folder.condition_batch(indices, picks)
        conditions = Conditions(rows.features.to(world.device), rows.mask.to(world.device))
        return conditions, folder.token_batch(indices).to(world.device)

    def step(number: int) -> tuple[Tensor, Metrics]:
        seed = plan.seed * 1_000_003 + number * world.size + world.rank
        generator = torch.Generator().manual_seed(seed)
        indices = batch_indices(
            number, count=len(data), batch_size=plan.batch_size, world=world, seed=plan.seed
        )
        conditions, tokens = batch(data, indices, generator)
        dropped = torch.rand(len(indices), generator=generator) < plan.drop_caption
        features = drop_captions(model, conditions, dropped.to(world.device))
        with mixed_precision(world.device):
            logits = model(features, conditions.mask, tokens[:, :-1])
        return F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten()), {}

    def evaluate() -> Metrics:
        """Held-out loss with captions, and without: their difference is what the text is worth."""
        generator = torch.Generator().manual_seed(1)
        conditions, tokens = batch(held_out, torch.arange(min(64, len(held_out))), generator)
        losses = {}
        for name, share in (("loss_cond", 0.0), ("loss_uncond", 1.0)):
            dropped = torch.full((len(tokens),), bool(share), device=world.device)
            features = drop_captions(model, conditions, dropped)
            with torch.inference_mode(), mixed_precision(world.device):
                logits = model(features, conditions.mask, tokens[:, :-1])
            losses[name] = float(F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten()))
        return losses

    train(
        model,
        step,
        plan=plan,
        run=Run(run_folder, world=world),
        evaluate=evaluate,
        optimizer=optimizer,
    )
    return model.eval()
