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
from ciar.models.kv_cache import KVCache, Segment
from ciar.sampling import filter_logits, noise_rows
from ciar.target import Feed, Target, TargetModel
from ciar.types import SamplingParams


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


class BatchedDraft:
    """The draft model with one sequence an image."""

    def __init__(self, model: DraftModel, conditions: list[Tensor]) -> None:
        self.model = model
        self.lengths = [len(c) for c in conditions]
        weight = model.norm.weight
        self.cache = KVCache(
            model.config,
            num_slots=len(conditions),
            num_rows=1,
            device=weight.device,
            dtype=weight.dtype,
            is_padded=True,
        )
        self.ropes = [model.sequence_rope(n) for n in self.lengths]  # [L + T, d/2, 2] each
        rope = torch.cat([r[:n] for r, n in zip(self.ropes, self.lengths, strict=True)])
        segments = [Segment(slot, 0, n) for slot, n in enumerate(self.lengths)]
        rows = torch.cat(conditions).to(weight)
        hidden = model.hidden(rows, rope, self.cache.attend(segments))
        ends = torch.tensor(self.lengths, device=weight.device).cumsum(0) - 1
        self.hidden = hidden[ends]  # [B, D]

    def feed(self, tokens: Tensor) -> None:
        """The last of the known tokens [B, n]."""
        position = tokens.shape[1] - 1
        pairs = zip(self.ropes, self.lengths, strict=True)
        rope = torch.stack([rope[n + position] for rope, n in pairs])
        segments = [Segment(slot, n + position, 1) for slot, n in enumerate(self.lengths)]
        x, followers = self.model.inputs(tokens, position)
        hidden = self.model.hidden(x[:, 0], rope, self.cache.attend(segments))
        self.hidden = self.model.recall(hidden[:, None], followers)[:, 0]


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
    cloud = Target(target, num_slots=len(conditions), is_padded=True)
    device = target.injection.weight.device
    count, total, vocab = len(conditions), target.config.num_tokens, target.config.vocab_size
    conditions = [c.to(device) for c in conditions]
    tokens, drafted, drawn = (torch.zeros(count, total, dtype=torch.long) for _ in range(3))
    kept = torch.zeros(count, total, dtype=torch.bool)
    features = torch.zeros(count, total, target.feature_dim)
    dtype = target.transformer.output.weight.dtype
    rows = [target.transformer.condition_rows(c.to(dtype)) for c in conditions]
    edge = BatchedDraft(draft, rows) if draft else None

    def draw(logits: Tensor, noise: Tensor) -> Tensor:
        view = filter_logits(
            logits, temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p
        )
        return (view + noise).argmax(-1).cpu()

    for position in range(total):
        feeds = [
            Feed(
                slot=slot,
                num_condition=len(condition),
                position=max(position - 1, 0),
                tokens=tokens[slot, max(position - 1, 0) : position],
                before=tokens[slot, : max(position - 1, 0)],
                cfg_scale=sampling.cfg_scale,
                cfg_interval=sampling.cfg_interval,
                condition=None if position else condition,
                features=features[slot, position - 1 : position] if position else None,
            )
            for slot, condition in enumerate(conditions)
        ]
        noise = noise_rows(seeds, [position] * count, vocab).to(device)
        logits = torch.cat([found[-1:] for found in cloud.extend(feeds)])  # [B, V]
        drawn[:, position] = tokens[:, position] = draw(logits, noise)
        if edge and draft:
            if position:
                edge.feed(tokens[:, :position].to(device))
            centre, radius = draft.inter_head(edge.hidden)
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
                codes = draft.features(edge.hidden, centre, radius).cpu().float()
                features[:, position] = torch.where(mask[:, None], codes, 0.0)
    return Rollout(tokens=tokens, drafted=drafted, drawn=drawn, kept=kept, features=features)
