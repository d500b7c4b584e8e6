"""The real protocol for many images in lock step: what the draft trains on and is judged by.

At each position the edge draws its own token and the cloud its own, from the same noise. A position
is *kept* (the edge's token, with its interval feature) or the cloud's. Kept tokens and features
enter both models exactly as in serving, so contexts carry the drift that local tokens cause.

    B images   T tokens   V codebook size   F feature width
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ciar.models.inter_head import DraftModel
from ciar.sampling import filter_logits, noise_rows
from ciar.target import TargetModel
from ciar.types import SamplingParams
from ciar_train.lock_step import BatchedDraft, BatchedTarget


@dataclass(frozen=True, kw_only=True, eq=False)
class Choice:
    """What both sides predict and drew at one position.

    A router may look at the edge's half only.
    """

    position: int
    centre: Tensor  # [B, V] the edge's logits
    radius: Tensor  # [B, V]
    drafted: Tensor  # [B] the edge's draw
    cloud: Tensor  # [B, V] the cloud's guided logits
    drawn: Tensor  # [B] the cloud's draw


Keep = Callable[[Choice], Tensor]
"""Which images keep the edge's token here: bool [B]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Rollout:
    """What happened, on the CPU."""

    tokens: Tensor  # [B, T] committed
    drafted: Tensor  # [B, T] the edge's own draws
    drawn: Tensor  # [B, T] the cloud's own draws
    kept: Tensor  # [B, T] bool: committed = drafted, without asking
    features: Tensor  # [B, T, F], zero where the cloud decided


@torch.inference_mode()
def roll_out(
    target: TargetModel,
    draft: DraftModel | None,
    conditions: list[Tensor],
    *,
    seeds: list[int],
    sampling: SamplingParams,
    num_prefix: int = 0,
    keep: Keep | None = None,
) -> Rollout:
    """Decode B images. Without a draft, or without `keep`, every token is the cloud's.

    conditions: text features [L_i, C] an image; sampling.seed is ignored for `seeds`.
    """
    device = target.injection.weight.device
    count, total, vocab = len(conditions), target.config.num_tokens, target.config.vocab_size
    conditions = [c.to(device) for c in conditions]
    tokens, drafted, drawn = (torch.zeros(count, total, dtype=torch.long) for _ in range(3))
    kept = torch.zeros(count, total, dtype=torch.bool)
    features = torch.zeros(count, total, target.feature_dim)
    cloud = BatchedTarget(target, conditions)
    dtype = target.transformer.output.weight.dtype
    rows = [target.transformer.condition_rows(c.to(dtype)) for c in conditions]
    edge = BatchedDraft(draft, rows) if draft else None

    def draw(logits: Tensor, noise: Tensor) -> Tensor:
        view = filter_logits(
            logits, temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p
        )
        return (view + noise).argmax(-1).cpu()

    for position in range(total):
        if position:
            known = tokens[:, :position].to(device)
            cloud.feed_kept(known, features[:, position - 1].to(device))
        logits = cloud.logits(position, sampling)
        noise = noise_rows(seeds, [position] * count, vocab).to(device)
        drawn[:, position] = tokens[:, position] = draw(logits, noise)
        if edge and draft:
            if position:
                edge.feed(known)
            hidden = edge.hidden[:, 0]
            centre, radius = draft.inter_head(hidden)
            drafted[:, position] = draw(centre, noise)
            if keep and position >= num_prefix:
                choice = Choice(
                    position=position,
                    centre=centre,
                    radius=radius,
                    drafted=drafted[:, position].to(device),
                    cloud=logits,
                    drawn=drawn[:, position].to(device),
                )
                mask = keep(choice).cpu()
                kept[:, position] = mask
                tokens[mask, position] = drafted[mask, position]
                codes = draft.features(hidden, centre, radius).cpu().float()
                features[:, position] = torch.where(mask[:, None], codes, 0.0)
    return Rollout(tokens=tokens, drafted=drafted, drawn=drawn, kept=kept, features=features)
