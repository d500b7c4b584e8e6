"""`ciar-train draft`: the one-layer edge model of a target, in stages on the same contexts.

    tokens    next-token prediction, without the cloud, if the plan has it
    centre    trunk, embeddings and centre head by KL and anchor to the guided cloud
    radius    interval score on a frozen trunk and centre (default), or the published Inter-DRO,
              which trains everything at once
    phi       features of kept tokens, through the frozen cloud: the cloud with features on a
              context that holds the tokens the edge is sure of should predict what it predicts on
              the clean context

Contexts are token grids. Centre and phi learn on drawn pictures and images the guided cloud drew, a
share of whose tokens is replaced by the edge's own draws: for the centre any of them, for phi those
with the narrowest intervals, drawn as at run time. The radius learns on images of the real
protocol, most of whose tokens the edge drew itself (see `rollouts`), and on the cloud's.

    B images   n positions   V codebook size   D width
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ciar.families import make_draft
from ciar.head_output import HeadOutput, reach_of
from ciar.interval import interfuse
from ciar.models.embedding import LowRankEmbedding
from ciar.models.inter_head import DraftModel, InterHeadConfig
from ciar.models.neighbours import NeighbourConfig
from ciar.models.transformer import TransformerConfig
from ciar.sampling import coupled_agreement, filter_logits
from ciar.target import TargetModel
from ciar.types import SamplingParams
from ciar.uncertainty import TENSOR_SCORES
from ciar_train.codes import Conditions
from ciar_train.contexts import Contexts
from ciar_train.loop import Metrics, Run, Step, World, batch_indices, random_at, train
from ciar_train.losses import (
    InterDroWeights,
    auroc,
    centre_loss,
    inter_dro_loss,
    interval_score,
    total_variation,
)
from ciar_train.ngrams import NgramSource, recall_as
from ciar_train.plan import TrainingPlan
from ciar_train.precision import mixed_precision
from ciar_train.sharded import shard_layers
from ciar_train.target import init_weights
from ciar_train.teacher import Teacher

KEPT_SHARES = 0.5, 1.0  # of an image's tokens, when phi learns
SURE = 1e-3  # interval scores far below this count alike

# Scores in the log, by the names they have there.
MONITORED = {
    "interval": "interval",
    "interval_u": "interval-u",
    "entropy": "entropy",
    "max_prob": "softmax-corr",
}


@dataclass(frozen=True, kw_only=True)
class DraftShape:
    """Where a draft model differs from one layer of its target."""

    num_layers: int = 1
    num_heads: int = 0  # 0: as many as the target
    ffn_multiple_of: int = 0  # 0: the target's
    embedding_rank: int = 0  # of the tokens' embedding; 0: a full table
    neighbours: NeighbourConfig = NeighbourConfig()

    def layer(self, target: TransformerConfig) -> TransformerConfig:
        return replace(
            target,
            num_layers=self.num_layers,
            num_heads=self.num_heads or target.num_heads,
            ffn_multiple_of=self.ffn_multiple_of or target.ffn_multiple_of,
            embedding_rank=self.embedding_rank,
            neighbours=self.neighbours,
        )


@dataclass(frozen=True, kw_only=True)
class DraftPlan:
    """Stages and their lengths.

    loss: "interval-score" (two stages) or "inter-dro" (as published, one stage).
    tokens: a stage before them, without the cloud; none by default.
    """

    centre: TrainingPlan
    radius: TrainingPlan
    phi: TrainingPlan
    tokens: TrainingPlan | None = None
    loss: str = "interval-score"
    miss_rate: float = 0.2  # of the interval score
    replaced: float = 0.5  # largest share of context tokens replaced by the edge's own
    num_drawn: int = 512  # drawn pictures
    num_rollouts: int = 512  # images the cloud draws; half as many more are drawn by both
    num_calibration: int = 64  # images whose scores are the calibration
    shape: DraftShape = DraftShape()
    weights: InterDroWeights = InterDroWeights()

    @property
    def has_radius_stage(self) -> bool:
        """Inter-DRO trains the radius with all the rest."""
        return self.loss != "inter-dro"

    def __post_init__(self) -> None:
        if self.loss not in ("interval-score", "inter-dro"):
            raise ValueError(f"loss: {self.loss!r}: give 'interval-score' or 'inter-dro'")


def new_draft(config: TransformerConfig, head: InterHeadConfig, shape: DraftShape) -> DraftModel:
    """A draft model for targets of this configuration, with random weights."""
    draft = make_draft(shape.layer(config), head)
    init_weights(draft.layers, num_layers=shape.num_layers)
    return draft


def draft_from_target(
    target: TargetModel,
    head: InterHeadConfig,
    shape: DraftShape,
    start: Mapping[str, Tensor] | None = None,
) -> DraftModel:
    """A draft model that starts from the target's embeddings, first layer, norm and output head.

    What has another shape there starts at random, and layers after the first begin by adding
    nothing. start: weights of an earlier draft, for its trunk and centre instead.
    """
    draft, source = new_draft(target.config, head, shape), target.transformer
    for layer in draft.layers[1:]:
        for adds in ("attention.wo.weight", "feed_forward.w2.weight"):
            nn.init.zeros_(layer.get_parameter(adds))
    if draft.neighbours is not None:
        recall_as(draft.neighbours, source.output)
    around = [("neighbours", source.neighbours)] if source.neighbours is not None else []
    pairs: list[tuple[str, nn.Module]] = [
        ("tok_embeddings", source.tok_embeddings),
        ("layers.0", source.layers[0]),
        ("norm", source.norm),
        ("inter_head.centre", source.output),
        ("cap_proj", source.projection),
        *around,
    ]
    kept = ("tok_embeddings.", "neighbours.", "layers.", "norm.", "inter_head.centre.")
    sources = (
        {f"{at}.{n}": w for at, module in pairs for n, w in module.state_dict().items()},
        {n: w for n, w in (start or {}).items() if n.startswith(kept)},
    )
    own = draft.state_dict()
    for state in sources:
        fitting = {n: w for n, w in state.items() if n in own and own[n].shape == w.shape}
        draft.load_state_dict(fitting, strict=False)
    if isinstance(draft.tok_embeddings, LowRankEmbedding) and not start:
        draft.tok_embeddings.approximate(source.tok_embeddings.weight)
    draft.cap_proj.requires_grad_(False)
    return draft


class DraftTrainer:
    """The stages over shared contexts."""

    def __init__(
        self,
        target: TargetModel,
        head: InterHeadConfig,
        plan: DraftPlan,
        *,
        sampling: SamplingParams,
        world: World,
        start: Mapping[str, Tensor] | None = None,
        ngrams: NgramSource | None = None,
        is_sharded: bool = False,
    ) -> None:
        torch.manual_seed(0)
        self.draft = draft_from_target(target, head, plan.shape, start).to(world.device)
        self.target = target.with_own_injection().requires_grad_(False)
        if is_sharded:
            shard_layers(self.target.transformer, world)
        self.target.to(world.device)
        self.teacher = Teacher(self.target, sampling)
        self.sampling = sampling
        if self.draft.neighbours is not None and ngrams is not None:
            ngrams.fill(self.draft.neighbours)
        self.plan = plan
        self.world = world

    def hidden(self, conditions: Conditions, tokens: Tensor) -> Tensor:
        """The edge's hidden states [B, T, D] for every position of tokens [B, T]."""
        rows = self.teacher.rows(conditions).float()
        with mixed_precision(self.world.device):
            hidden = self.draft.masked_hidden(rows, tokens[:, :-1], conditions.mask)
        return hidden.float()

    @torch.no_grad()
    def corrupt(
        self, conditions: Conditions, tokens: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Replace a random share of tokens by the edge's own draws.

        Returns the tokens and which were replaced. generator: of the tokens' device.
        """
        centre = self.draft.inter_head.centre(self.hidden(conditions, tokens))
        own = drawn_from(centre.softmax(-1), generator)
        uniform = partial(torch.rand, generator=generator, device=tokens.device)
        share = uniform(len(tokens), 1) * self.plan.replaced
        picked = uniform(tokens.shape) < share
        return torch.where(picked, own, tokens), picked

    @torch.no_grad()
    def keep_sure(
        self, conditions: Conditions, tokens: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Replace the tokens with the narrowest intervals by the edge's draws, as routing does.

        Their share is random, from KEPT_SHARES. Returns the tokens and which were replaced.
        generator: of the tokens' device.
        """
        interval = interfuse(*self.draft.inter_head(self.hidden(conditions, tokens)))
        view = filter_logits(
            interval.log_mid,
            temperature=self.sampling.temperature,
            top_k=self.sampling.top_k,
            top_p=self.sampling.top_p,
        )
        own = drawn_from(view.softmax(-1), generator)
        least, most = KEPT_SHARES
        uniform = torch.rand(len(tokens), 1, generator=generator, device=tokens.device)
        share = least + (most - least) * uniform
        rank = interval.width.sum(-1).argsort(-1).argsort(-1)  # [B, T], 0: the narrowest
        kept = rank < share * tokens.shape[1]
        return torch.where(kept, own, tokens), kept

    def batches(
        self, contexts: Contexts, plan: TrainingPlan, number: int
    ) -> tuple[Conditions, Tensor, torch.Generator]:
        indices = batch_indices(
            number,
            count=len(contexts.tokens),
            batch_size=plan.part_size,
            world=self.world,
            seed=plan.seed,
        )
        generator = random_at(number, world=self.world, seed=plan.seed)
        conditions, tokens = contexts.batch(indices, self.world.device)
        return conditions, tokens, generator

    def train_tokens(self, contexts: Contexts, held_out: Contexts, folder: Path) -> None:
        """Next-token prediction on the contexts themselves, if the plan asks for it.

        Without the cloud a step takes a fraction of the time, and images it drew stand for it.
        """
        plan = self.plan.tokens
        if plan is None:
            return

        def step(number: int) -> tuple[Tensor, Metrics]:
            conditions, tokens, _ = self.batches(contexts, plan, number)
            logits = self.draft.inter_head.centre(self.hidden(conditions, tokens))
            return F.cross_entropy(logits.flatten(0, 1), tokens.flatten()), {}

        self._thaw_centre()
        self._train(self.draft, step, plan, folder / "tokens", held_out)

    def train_centre(self, contexts: Contexts, held_out: Contexts, folder: Path) -> None:
        plan = self.plan.centre

        def step(number: int) -> tuple[Tensor, Metrics]:
            conditions, tokens, generator = self.batches(contexts, plan, number)
            tokens, _ = self.corrupt(conditions, tokens, generator)
            p = self.cloud(conditions, tokens)
            hidden = self.hidden(conditions, tokens)
            if self.plan.loss == "inter-dro":
                interval = interfuse(*self.draft.inter_head(hidden))
                log_mid = interval.log_mid
                loss, share = inter_dro_loss(p, interval, self.plan.weights)
                extra = {
                    "effective_share": share,
                    "mean_width": interval.width.detach().sum(-1).mean(),
                }
            else:
                log_mid = self.draft.inter_head.centre(hidden).log_softmax(-1)
                loss, extra = centre_loss(p, log_mid, self.plan.weights), {}
            tv = total_variation(p, log_mid.detach().exp()).mean()
            return loss, {"tv": tv} | extra

        self._thaw_centre()
        for layer in self.draft.inter_head.radius_layers:
            layer.requires_grad_(self.plan.loss == "inter-dro")
        self._train(self.draft, step, plan, folder / "centre", held_out)

    def train_radius(self, contexts: Contexts, held_out: Contexts, folder: Path) -> None:
        """The logarithm of the interval score, on a frozen trunk and centre.

        Without the logarithm few tokens have nearly all of the loss, and the router compares all.
        """
        plan = self.plan.radius

        def step(number: int) -> tuple[Tensor, Metrics]:
            conditions, tokens, _ = self.batches(contexts, plan, number)
            p = self.cloud(conditions, tokens)
            with torch.no_grad():
                hidden = self.hidden(conditions, tokens)
            interval = interfuse(*self.draft.inter_head(hidden))
            score = interval_score(p, interval, miss_rate=self.plan.miss_rate)  # [B, T]
            loss = (score + SURE).log().mean()
            return loss, {"mean_width": interval.width.detach().sum(-1).mean()}

        self.draft.requires_grad_(False)
        for layer in self.draft.inter_head.radius_layers:
            layer.requires_grad_(True)
        self._train(self.draft, step, plan, folder / "radius", held_out)

    def train_phi(self, contexts: Contexts, folder: Path) -> None:
        """Both halves of phi: clean contexts against the same ones with tokens the edge keeps."""
        plan = self.plan.phi
        halves = nn.ModuleDict({"phi": self.draft.phi, "injection": self.target.injection})

        def step(number: int) -> tuple[Tensor, Metrics]:
            conditions, clean, generator = self.batches(contexts, plan, number)
            with torch.no_grad():
                mixed, kept = self.keep_sure(conditions, clean, generator)
                wanted = self.teacher.logits(conditions, clean[:, :-1]).log_softmax(-1)
                plain = self.teacher.logits(conditions, mixed[:, :-1]).log_softmax(-1)
                hidden = self.hidden(conditions, mixed)
                interval = interfuse(*self.draft.inter_head(hidden))
            codes = self.draft.phi(hidden, interval) * kept[..., None]  # [B, T, F]
            injected = self.target.injection(codes)[:, :-1]
            found = self.teacher.logits(conditions, mixed[:, :-1], injected).log_softmax(-1)
            loss, without = (mean_kl(wanted, log_q) for log_q in (found, plain))
            return loss, {"kl_without": without}

        self.draft.requires_grad_(False)
        halves.requires_grad_(True)
        nn.init.zeros_(self.target.injection.weight)  # features begin by changing nothing
        train(halves, step, plan=plan, run=Run(folder / "phi", world=self.world))
        halves.requires_grad_(False)

    @torch.no_grad()
    def cloud(self, conditions: Conditions, tokens: Tensor) -> Tensor:
        """p_C [B, T, V] on the given context."""
        return self.teacher.logits(conditions, tokens[:, :-1]).softmax(-1)

    @torch.no_grad()
    def monitor(self, held_out: Contexts, *, count: int = 32) -> Metrics:
        """What to watch: agreement, widths, covered mass, and the AUROC of every score."""
        generator = torch.Generator(self.world.device).manual_seed(5)
        found: dict[str, list[Tensor]] = {}
        for indices in torch.split(torch.arange(min(count, len(held_out.tokens))), 8):
            conditions, tokens = held_out.batch(indices, self.world.device)
            tokens, _ = self.corrupt(conditions, tokens, generator)
            p = self.cloud(conditions, tokens)
            centre, radius = self.draft.inter_head(self.hidden(conditions, tokens))
            for name, value in describe(p, centre, radius).items():
                found.setdefault(name, []).append(value.cpu())
        values = {name: torch.cat(parts).flatten() for name, parts in found.items()}
        is_hard = values["tv"] > values["tv"].median()
        metrics = {f"mean_{name}": float(value.mean()) for name, value in values.items()}
        for score in MONITORED:
            metrics[f"auroc_{score}"] = auroc(values[score], is_hard)
        return metrics

    def _thaw_centre(self) -> None:
        self.draft.requires_grad_(True).cap_proj.requires_grad_(False)
        self.draft.phi.requires_grad_(False)
        for layer in self.draft.inter_head.radius_layers:
            layer.requires_grad_(False)

    def _train(
        self, model: nn.Module, step: Step, plan: TrainingPlan, folder: Path, held_out: Contexts
    ) -> None:
        train(
            model,
            step,
            plan=plan,
            run=Run(folder, world=self.world),
            evaluate=lambda: self.monitor(held_out),
        )


def drawn_from(p: Tensor, generator: torch.Generator) -> Tensor:
    """One id [B, T] of each distribution [B, T, V]."""
    return torch.multinomial(p.flatten(0, 1), 1, generator=generator).view(p.shape[:2])


def mean_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of log-probabilities [..., V], the mean over positions."""
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1).mean()


def describe(p: Tensor, centre: Tensor, radius: Tensor) -> dict[str, Tensor]:
    """Per position [B, T]: distance to the cloud, scores, and the mass of p_C in the interval."""
    interval, head = interfuse(centre, radius), HeadOutput(centre, reach_of(radius))
    inside = (p >= interval.lower) & (p <= interval.upper)
    return {
        "tv": total_variation(p, interval.mid),
        "agreement": coupled_agreement(p, interval.mid).float(),
        "radius": radius.mean(-1),
        "covered": (p * inside).sum(-1),
    } | {name: TENSOR_SCORES[score](head) for name, score in MONITORED.items()}
