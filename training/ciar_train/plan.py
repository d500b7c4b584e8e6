"""Lengths and learning rates of a training step, as the size files state them."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """How long and how fast a step trains.

    Learning rate: linear warm-up, constant, then linear cool-down to zero.
    """

    steps: int
    batch_size: int  # over all processes
    lr: float
    muon_lr: float = 0.0  # learning rate of Muon for the layers' matrices; 0: AdamW everywhere
    warmup_steps: int = 100
    cooldown: float = 0.3  # last share of the steps
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    grad_clip: float = 1.0
    ema: float = 0.0  # decay of the averaged weights; 0 keeps the last weights
    log_every: int = 20
    eval_every: int = 500
    save_every: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "eval_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)}: give a positive count")

    def lr_at(self, step: int) -> float:
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        left = (self.steps - step) / max(1.0, self.cooldown * self.steps)
        return self.lr * min(warm, left, 1.0)
