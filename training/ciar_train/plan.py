"""Lengths and learning rates of a training step, as the size files state them."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """How long and how fast a step trains.

    Learning rate: linear warm-up, constant, then linear cool-down to zero.
    """

    steps: int
    batch_size: int  # over all processes
    accumulate: int = 1  # parts of a batch that go through the models one after another
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
        counts = ("steps", "batch_size", "accumulate", "log_every", "eval_every", "save_every")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)}: give a positive count")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"accumulate: {self.accumulate}: batch_size ({self.batch_size}) must be a multiple"
            )

    @property
    def part_size(self) -> int:
        """Examples that go through the models at once, over all processes."""
        return self.batch_size // self.accumulate

    @property
    def num_parts(self) -> int:
        """Parts of batches in all steps: what step functions count."""
        return self.steps * self.accumulate

    def lr_at(self, step: int) -> float:
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        left = (self.steps - step) / max(1.0, self.cooldown * self.steps)
        return self.lr * min(warm, left, 1.0)
