"""`ciar-train draft --kind eagle`: the drafter of EAGLE, for comparisons.

It learns on the contexts of the Inter-Head's draft and with a layer of the same shape, so that a
comparison is one of methods. As published: teacher-forced hidden states with uniform noise,
SmoothL1 and a tenth of cross-entropy, a tenth of the captions dropped.

    B images   T tokens   D width
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ciar.checkpoint import load_into, read_config, read_weights, save_folder, to_device
from ciar.errors import CheckpointError
from ciar.families import make_eagle, read_sizes
from ciar.models.eagle import EagleModel, eagle_loss
from ciar.target import TargetModel
from ciar_train.contexts import Contexts
from ciar_train.draft import DraftShape
from ciar_train.export import as_int8
from ciar_train.loop import Metrics, Run, World, batch_indices, random_at, train
from ciar_train.ngrams import NgramSource, recall_as
from ciar_train.plan import TrainingPlan
from ciar_train.precision import mixed_precision
from ciar_train.target import init_weights

NOISE = 0.2  # published for 512 tokens, more for fewer
NOISE_TOKENS = 512


@dataclass(frozen=True, kw_only=True)
class EaglePlan(TrainingPlan):
    head_weight: float = 0.1  # of the cross-entropy
    drop_caption: float = 0.1


def eagle_from_target(
    target: TargetModel, shape: DraftShape, ngrams: NgramSource | None
) -> EagleModel:
    """Random weights, but the target's embedding and head, and what it knows of neighbours."""
    source = target.transformer
    model = make_eagle(replace(shape.layer(target.config), embedding_rank=0))
    init_weights(model, num_layers=1)
    if model.neighbours is not None:
        recall_as(model.neighbours, source.output)
        if ngrams is not None:
            ngrams.fill(model.neighbours)
    for part, origin in (
        (model.tok_embeddings, source.tok_embeddings),
        (model.output, source.output),
    ):
        part.load_state_dict(origin.state_dict())
        part.requires_grad_(False)
    return model


def train_eagle(
    target: TargetModel,
    plan: EaglePlan,
    shape: DraftShape,
    *,
    contexts: Contexts,
    held_out: Contexts,
    run_folder: Path,
    world: World,
    ngrams: NgramSource | None = None,
) -> EagleModel:
    """Train or resume."""
    torch.manual_seed(plan.seed)
    teacher = target.transformer.requires_grad_(False)
    model = eagle_from_target(target, shape, ngrams).to(world.device)

    noise = NOISE * NOISE_TOKENS / target.config.num_tokens

    def losses(
        of: Contexts, indices: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """generator: of dropped captions and noise; without one there are neither."""
        conditions, tokens = of.batch(indices, world.device)
        is_dropped = torch.zeros(len(indices), 1, dtype=torch.bool, device=world.device)
        if generator:
            uniform = torch.rand(is_dropped.shape, generator=generator, device=world.device)
            is_dropped = uniform < plan.drop_caption
        with torch.no_grad(), mixed_precision(world.device):
            own = teacher.condition_rows(conditions.features.to(teacher.output.weight.dtype))
            uncond, uncond_mask = teacher.uncond_rows(conditions.mask)
            rows = torch.where(is_dropped[..., None], uncond.to(own.dtype), own)
            mask = torch.where(is_dropped, uncond_mask, conditions.mask)
            hidden = teacher.masked_hidden(rows, tokens[:, :-1], mask).float()
        known, wanted = hidden[:, :-1], hidden[:, 1:]  # [B, T - 1, D]
        if generator:
            uniform = torch.rand(known.shape, generator=generator, device=world.device)
            known = known + (uniform - 0.5) * noise
        with mixed_precision(world.device):
            predicted = model.forced(rows.float(), tokens[:, :-1], known, mask)
        return eagle_loss(predicted.float(), wanted, model.output, head_weight=plan.head_weight)

    def step(number: int) -> tuple[Tensor, Metrics]:
        indices = batch_indices(
            number,
            count=len(contexts.tokens),
            batch_size=plan.part_size,
            world=world,
            seed=plan.seed,
        )
        generator = random_at(number, world=world, seed=plan.seed)
        loss, cross_entropy = losses(contexts, indices, generator)
        return loss, {"cross_entropy": cross_entropy}

    @torch.no_grad()
    def evaluate() -> Metrics:
        indices = torch.arange(min(32, len(held_out.tokens)))
        loss, cross_entropy = losses(held_out, indices, None)
        return {"held_out": float(loss), "held_out_cross_entropy": float(cross_entropy)}

    train(model, step, plan=plan, run=Run(run_folder, world=world), evaluate=evaluate)
    return model.eval()


def export_eagle(model: EagleModel, folder: Path) -> None:
    """It holds the target's own output head, which tells what target it was made for."""
    config = {
        "kind": "eagle",
        "family": model.config.family,
        "transformer": asdict(model.config),
    }
    save_folder(folder, config, as_int8(model))


def load_eagle(folder: Path, *, device: str = "cpu") -> EagleModel:
    """Raises `CheckpointError`."""
    config = read_config(folder)
    if config.get("kind") != "eagle":
        raise CheckpointError(f"{folder}: kind {config.get('kind')!r}, expected 'eagle'")
    sizes = read_sizes(config, where=folder)
    with torch.device("meta"):
        model = make_eagle(sizes)
    load_into(model, read_weights(folder), where=folder)
    model.rebuild_tables("cpu")
    to_device(model, device=device, dtype=torch.float32)
    model.rebuild_tables(device)
    return model
