"""`ciar-train target`: the cloud's transformer.

Next-token prediction on token grids, with dropped captions for guidance:

    loss = CE(next token) + foresight * CE(bag of all tokens to come)

Where most tokens are certain, a caption decides few of them, and next-token prediction is slow to
learn what it says. What is still to come depends on it at every position. The bag is predicted by
a linear head of its own, which only training has.

Contexts may be misread in places. A model that has only ever read right tokens does not know how to
go on after a wrong one, and in sampling one wrong token makes the next.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ciar.models.transformer import Transformer, TransformerConfig
from ciar_train.codes import CodeFolder, Conditions
from ciar_train.gpu import compile_layers, moved
from ciar_train.loop import Metrics, Run, World, batch_indices, train
from ciar_train.ngrams import RECALLED, NgramSource, recall_as
from ciar_train.plan import TrainingPlan
from ciar_train.precision import mixed_precision

HEAD = "foresight.weight"


@dataclass(frozen=True, kw_only=True)
class TargetPlan(TrainingPlan):
    drop_caption: float = 0.1  # share of captions replaced by the unconditional features
    foresight: float = 0.0  # weight of the bag of tokens to come
    replaced: float = 0.0  # largest share of a picture's tokens that are read wrongly


class ForesightedTransformer(Transformer):
    """A target in training, with a second output head for the bag of tokens to come."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.foresight = nn.Linear(config.dim, config.vocab_size, bias=False)

    def plain(self) -> Transformer:
        """Without the second head."""
        model = Transformer(self.config)
        model.load_state_dict({n: w for n, w in self.state_dict().items() if n != HEAD})
        return model.to(self.foresight.weight.device)


def foresight_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Cross-entropy to the bag of tokens n .. T-1: logits [B, T, V] at n, tokens [B, T].

    It is logsumexp minus the mean logit of the tokens to come; no bag [B, T, V] is ever made.
    """
    total = tokens.shape[1]
    columns = tokens[:, None, :].expand(-1, total, -1)
    of_tokens = logits.gather(-1, columns)  # [B, T, T], at n the logit of token m
    is_to_come = torch.ones(total, total, device=tokens.device).triu()
    shares = is_to_come / is_to_come.sum(-1, keepdim=True)
    return logits.logsumexp(-1).mean() - (of_tokens * shares).sum(-1).mean()


def init_weights(model: nn.Module, *, num_layers: int) -> None:
    """Normal weights of variance 1 / (2 fan-in), residual outputs scaled down by depth."""
    for name, module in model.named_modules():
        if name.startswith("neighbours"):
            continue  # as made: adding nothing yet
        if isinstance(module, nn.Linear):
            std = (0.5 / module.in_features) ** 0.5
            if name.endswith(("attention.wo", "feed_forward.w2")):
                std /= (2 * num_layers) ** 0.5
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.05)


def drop_captions(model: Transformer, conditions: Conditions, dropped: Tensor) -> Tensor:
    """Features [B, L, C] with the unconditional ones in the rows of `dropped` [B].

    The mask stays the prompt's.
    """
    features = conditions.features
    uncond = model.cls_embedding.uncond(features.shape[1]).expand_as(features)
    uncond = uncond * conditions.mask[..., None]
    return torch.where(dropped[:, None, None], uncond, features)


def misread(tokens: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """Contexts [B, n] with wrong tokens in them, as a sampled picture has.

    A share of each row, drawn from 0 to `most`, is replaced: half by what the next picture has in
    that place, half by what it has anywhere.
    """
    shape = tokens.shape
    share = torch.rand(shape[0], 1, generator=generator) * most
    picked = torch.rand(shape, generator=generator) < share
    is_in_place = torch.rand(shape, generator=generator) < 0.5
    columns = torch.where(
        is_in_place, torch.arange(shape[1]), torch.randint(shape[1], shape, generator=generator)
    )
    wrong = tokens.roll(1, 0).gather(1, moved(columns, tokens.device))
    return torch.where(moved(picked, tokens.device), wrong, tokens)


def train_target(
    config: TransformerConfig,
    plan: TargetPlan,
    *,
    data: CodeFolder,
    held_out: CodeFolder,
    run_folder: Path,
    world: World,
    start: Mapping[str, Tensor] | None = None,
    ngrams: NgramSource | None = None,
) -> Transformer:
    """Train or resume; returns the averaged model in eval mode.

    start: weights to begin from instead of random ones.  ngrams: for the tables of a model that has
    them, of other pictures.
    """
    torch.manual_seed(plan.seed)
    model = ForesightedTransformer(config)
    init_weights(model, num_layers=config.num_layers)
    if start:
        model.load_state_dict({**model.state_dict(), **start})  # it may lack what adds nothing yet
    if model.neighbours is not None and ngrams is not None:
        ngrams.fill(model.neighbours)
        if not start or RECALLED not in start:
            recall_as(model.neighbours, model.output)
    model.foresight.requires_grad_(plan.foresight > 0)
    model.to(world.device)
    compile_layers(model, world.device)

    def batch(
        folder: CodeFolder, indices: Tensor, generator: torch.Generator
    ) -> tuple[Conditions, Tensor]:
        picks = torch.randint(folder.num_captions, (len(indices),), generator=generator)
        rows = folder.condition_batch(indices, picks)
        conditions = Conditions(moved(rows.features, world.device), moved(rows.mask, world.device))
        return conditions, moved(folder.token_batch(indices), world.device)

    def step(number: int) -> tuple[Tensor, Metrics]:
        seed = plan.seed * 1_000_003 + number * world.size + world.rank
        generator = torch.Generator().manual_seed(seed)
        indices = batch_indices(
            number, count=len(data), batch_size=plan.part_size, world=world, seed=plan.seed
        )
        conditions, tokens = batch(data, indices, generator)
        dropped = torch.rand(len(indices), generator=generator) < plan.drop_caption
        features = drop_captions(model, conditions, dropped.to(world.device))
        context = misread(tokens[:, :-1], plan.replaced, generator)
        with mixed_precision(world.device):
            hidden = model.forced_hidden(features, conditions.mask, context)
            logits = model.output(hidden)
            to_come = model.foresight(hidden) if plan.foresight else None
        loss = F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten())
        if to_come is None:
            return loss, {}
        ahead = foresight_loss(to_come.float(), tokens)
        parts = {"next": loss.detach(), "foresight": ahead.detach()}
        return loss + plan.foresight * ahead, parts

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
    )
    return model.plain().eval()
