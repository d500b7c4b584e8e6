"""One training loop for every step: resumable, logged, distributed when torchrun started it.

The loop owns time (schedule, checkpoints, log); the step owns the mathematics: it gets the number
of a batch, or of a part of one where gradients are accumulated, and returns a loss and what to log.
Data order and random numbers must depend on that number alone (`batch_indices`, `random_at`), so
that a resumed run continues as if never stopped.
"""

import json
import os
import pickle
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ciar.errors import InvalidInput
from ciar.output_file import replacing
from ciar_train.export import round_as_stored
from ciar_train.optimizer import optimizer_for
from ciar_train.plan import TrainingPlan

Metrics = Mapping[str, float | Tensor]  # read when logged: reading one waits for the GPU
Step = Callable[[int], tuple[Tensor, Metrics]]
STATE_FILE = "state.pt"
BACKENDS = {"cpu": "gloo", "cuda": "nccl"}  # of the devices that training runs on
DAMAGED = (OSError, RuntimeError, pickle.UnpicklingError)  # what reading such a file raises
PATIENCE = timedelta(hours=12)  # of processes that wait while the first draws scenes or encodes


@dataclass(frozen=True)
class World:
    """This process among those of torchrun."""

    rank: int
    size: int
    device: torch.device

    @classmethod
    def start(cls, device: str = "") -> "World":
        """Join torchrun's process group when there is one.

        Device: cuda when present, unless named. Raises `InvalidInput` if it is not here.
        """
        size = int(os.environ.get("WORLD_SIZE", "1"))
        rank = int(os.environ.get("RANK", "0"))
        found = own_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if size > 1 and not dist.is_initialized():
            dist.init_process_group(BACKENDS[found.type], timeout=PATIENCE)
        return cls(rank, size, found)

    @staticmethod
    def leave() -> None:
        """Out of the process group, if there is one."""
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.barrier()

    def add_up(self, tensor: Tensor) -> None:
        """Replace a contiguous tensor by its sum over all processes."""
        if self.size > 1:
            dist.all_reduce(tensor)

    def take_over(self, tensor: Tensor) -> None:
        """Replace a contiguous tensor by that of the main process."""
        if self.size > 1:
            dist.broadcast(tensor, 0)

    def share(self, batch_size: int) -> int:
        if batch_size % self.size:
            raise ValueError(f"batch_size: {batch_size}: give a multiple of {self.size} processes")
        return batch_size // self.size


def own_device(name: str) -> torch.device:
    """Of this process: of several GPUs the one that torchrun numbered for it.

    Raises `InvalidInput` if it is not here.
    """
    kind = name.partition(":")[0]
    if kind not in BACKENDS:
        raise InvalidInput("device", name, f"give {' or '.join(BACKENDS)}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise InvalidInput("device", name, "there is no GPU that torch can use: give cpu")
    try:
        device = torch.device(name)
        if kind == "cuda":
            local = int(os.environ.get("LOCAL_RANK", "0"))
            torch.cuda.set_device(local if device.index is None else device.index)
            torch.backends.cudnn.benchmark = True  # shapes hardly change
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise InvalidInput("device", name, f"give one that is here ({reason})") from None
    return device


def random_at(number: int, *, world: World, seed: int) -> torch.Generator:
    """This process's random numbers of a batch or part, drawn on its device."""
    generator = torch.Generator(world.device)
    return generator.manual_seed(seed * 1_000_003 + number * world.size + world.rank)


def batch_indices(step: int, *, count: int, batch_size: int, world: World, seed: int) -> Tensor:
    """This process's example indices [batch_size / world.size] at `step`.

    They are epochs of seeded permutations of `count`.
    """
    first = step * batch_size
    wanted = torch.arange(first + world.rank, first + batch_size, world.size)
    out = torch.empty_like(wanted)
    epochs = wanted.div(count, rounding_mode="floor")
    for epoch in sorted(set(epochs.tolist())):
        here = epochs == epoch
        out[here] = epoch_order(count, seed * 100_003 + epoch)[wanted[here] % count]
    return out


@lru_cache(maxsize=2)
def epoch_order(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


class Run:
    """A folder that holds one step's state: `state.pt` (last checkpoint) and `metrics.jsonl`."""

    def __init__(self, folder: Path, *, world: World, show: Callable[[str], None] = print) -> None:
        self.folder = folder
        self.world = world
        self.show = show
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def state_path(self) -> Path:
        return self.folder / STATE_FILE

    def load(self) -> dict[str, Any] | None:
        """The last checkpoint, if any, as `snapshot` made it. Raises `InvalidInput` if damaged."""
        if not self.state_path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(
                self.state_path, map_location="cpu", weights_only=True, mmap=True
            )
        except DAMAGED as error:
            remedy = f"{STATE_FILE} is damaged: remove it, and this step begins anew"
            raise InvalidInput("run", str(self.folder), remedy) from error
        return state

    def save(self, state: dict[str, Any]) -> None:
        """As a whole or not at all: an interrupted save leaves the previous state."""
        if self.world.is_main:
            with replacing(self.state_path) as part:
                torch.save(state, part)

    def log(self, step: int, metrics: Metrics, *, steps: int, kind: str = "train") -> None:
        if not self.world.is_main:
            return
        row = {"step": step, "kind": kind, "time": round(time.time(), 1)}
        values = {name: float(value) for name, value in metrics.items()}
        row |= {name: round(value, 6) for name, value in values.items()}
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        words = " ".join(f"{name}={value:.4g}" for name, value in values.items())
        self.show(f"{self.folder.name} {kind} {step}/{steps} {words}")


class Ema:
    """Exponential moving average of a model's trainable parameters, corrected for its start."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        trainable = ((n, p) for n, p in model.named_parameters() if p.requires_grad)
        self.shadow = {name: p.detach().clone() for name, p in trainable}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        weight = 1 - min(self.decay, (step + 1) / (step + 10))
        live = {n: p for n, p in model.named_parameters() if n in self.shadow}
        torch._foreach_lerp_([self.shadow[n] for n in live], list(live.values()), weight)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            if name in self.shadow:
                parameter.copy_(self.shadow[name])


def average_gradients(parameters: Iterable[nn.Parameter], world: World) -> None:
    """Mean over processes of every gradient.

    It is what DDP does, without its wrapper around custom forwards.
    """
    if world.size == 1:
        return
    grads = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat)
    flat /= world.size
    for grad, part in zip(grads, torch.split(flat, [g.numel() for g in grads]), strict=True):
        grad.copy_(part.view_as(grad))


def train(
    model: nn.Module,
    step_fn: Step,
    *,
    plan: TrainingPlan,
    run: Run,
    evaluate: Callable[[], Metrics] | None = None,
    after_step: Callable[[int], None] | None = None,
) -> None:
    """Run or resume the plan.

    On return the model holds the averaged weights when the plan asks for an average.
    """
    world = run.world
    optimizer = optimizer_for(model, plan, device=world.device)
    ema = Ema(model, plan.ema) if plan.ema else None
    first = restore(run, model, optimizer, ema)
    parameters = [p for p in model.parameters() if p.requires_grad]
    started, seen = time.monotonic(), 0
    for step in range(first, plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = plan.lr_at(step) * group.get("lr_scale", 1.0)
        optimizer.zero_grad(set_to_none=True)
        losses = []
        for part in range(plan.accumulate):
            loss, metrics = step_fn(step * plan.accumulate + part)
            torch.autograd.backward(loss / plan.accumulate)
            losses.append(loss.detach())
        average_gradients(parameters, world)
        norm = torch.nn.utils.clip_grad_norm_(parameters, plan.grad_clip)
        optimizer.step()
        if after_step:
            after_step(step)
        if ema:
            ema.update(model, step)
        done, seen = step + 1, seen + plan.batch_size
        if done % plan.log_every == 0 or done == plan.steps:
            loss = torch.stack(losses).mean()
            found = {"loss": float(loss), "grad_norm": float(norm)}  # the GPU is done now
            found["examples_per_second"] = seen / (time.monotonic() - started)
            run.log(done, {**found, **metrics}, steps=plan.steps)
        if evaluate and (done % plan.eval_every == 0 or done == plan.steps):
            run.log(done, evaluate_averaged(model, ema, evaluate), steps=plan.steps, kind="eval")
            if done == plan.steps:
                stored = evaluate_averaged(model, ema, partial(evaluate_rounded, model, evaluate))
                run.log(done, stored, steps=plan.steps, kind="stored")
        if done % plan.save_every == 0 or done == plan.steps:
            run.save(snapshot(done, model, optimizer, ema))
    if ema:
        ema.copy_to(model)


def snapshot(
    step: int, model: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema | None
) -> dict[str, Any]:
    state = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    return state | ({"ema": ema.shadow} if ema else {})


def restore(run: Run, model: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema | None) -> int:
    """Load the last checkpoint, if any; returns the step to go on from.

    Raises `InvalidInput` for one of another model or another kind of plan.
    """
    state = run.load()
    if state is None:
        return 0
    averaged = state.get("ema", {}) if ema else {}
    fits = shapes(state["model"]) == shapes(model.state_dict())
    if not fits or (ema and shapes(averaged) != shapes(ema.shadow)):
        raise of_another_size(run)
    model.load_state_dict(state["model"])
    try:
        optimizer.load_state_dict(state["optimizer"])
    except (KeyError, ValueError) as error:  # other optimizers, or other parameters
        raise of_another_size(run) from error
    if ema:
        ema.shadow = {n: t.to(run.world.device) for n, t in averaged.items()}
    step: int = state["step"]
    run.show(f"{run.folder.name}: resuming at step {step}")
    return step


def shapes(state: Mapping[str, Any]) -> dict[str, Any]:
    """Of tensors by name; of what else a module keeps, that it is there."""
    return {name: getattr(value, "shape", None) for name, value in state.items()}


def of_another_size(run: Run) -> InvalidInput:
    remedy = "holds a checkpoint of another size or plan: give another folder, or the same size"
    return InvalidInput("run", str(run.folder), remedy)


@torch.no_grad()
def evaluate_averaged(
    model: nn.Module, ema: Ema | None, evaluate: Callable[[], Metrics]
) -> Metrics:
    """Evaluate with the averaged weights in place, then put the live ones back."""
    if ema is None:
        return evaluate()
    live = {n: p.detach().clone() for n, p in model.named_parameters() if n in ema.shadow}
    ema.copy_to(model)
    try:
        return evaluate()
    finally:
        for name, parameter in model.named_parameters():
            if name in live:
                parameter.copy_(live[name])


@torch.no_grad()
def evaluate_rounded(model: nn.Module, evaluate: Callable[[], Metrics]) -> Metrics:
    """Evaluate with the weights that the export will store, then put the live ones back."""
    live = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    round_as_stored(model)
    try:
        return evaluate()
    finally:
        model.load_state_dict(live)
