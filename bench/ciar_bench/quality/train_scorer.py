"""Trains a caption scorer and its probes on drawn scenes.

    N pictures   B of a batch   W width of picture features   E width of the shared space

Each picture comes as it is or after its way through the tokenizer, at even odds, so that what a
target draws is nothing new.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ciar.checkpoint import fingerprint
from ciar_bench.quality.features import FeatureExtractor
from ciar_bench.quality.judge_scorer import judge
from ciar_bench.quality.scene_features import SceneFeatures, scene_features
from ciar_bench.quality.scenes import DrawnScenes
from ciar_bench.quality.scorer import Heads, HeadsConfig
from ciar_train.export import round_as_stored
from ciar_train.progress import Progress, say_nothing

NOUN_LOSS_WEIGHT = (
    20.0  # its cross-entropy is a mean over all nouns, of which nearly all are absent
)


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """How long and how fast. temperature: of InfoNCE at the start; it is learned."""

    epochs: int = 40
    batch_size: int = 512
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    temperature: float = 0.07
    seed: int = 0


def train_scorer(
    train: DrawnScenes,
    held_out: DrawnScenes,
    bundle: Path,
    extractor: FeatureExtractor,
    plan: TrainPlan,
    *,
    progress: Progress = say_nothing,
) -> tuple[Heads, dict[str, Any]]:
    """Heads, and the metadata to save with them."""
    seen = scene_features(train, bundle, extractor, progress=progress)
    unseen = scene_features(held_out, bundle, extractor, progress=progress)
    heads = train_heads(seen, plan, progress=progress)
    round_as_stored(heads)
    metadata = {
        "extractor": extractor.fingerprint,
        "text": fingerprint(bundle / "text"),
        "vq": fingerprint(bundle / "vq"),
        "training": {"pictures": len(train), **asdict(plan)},
        "held_out": {
            "real": judge(heads, unseen, unseen.real),
            "reconstructed": judge(heads, unseen, unseen.rebuilt),
        },
    }
    return heads, metadata


def train_heads(data: SceneFeatures, plan: TrainPlan, *, progress: Progress = say_nothing) -> Heads:
    """AdamW with one cycle of the learning rate; the same seed gives the same heads."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        heads = Heads(heads_config(data))
        heads.mean.copy_(data.real.mean(0))
        heads.deviation.copy_(data.real.std(0) + 1e-4)
        loss_of = SceneLoss(heads, data, temperature=plan.temperature)
        optimizer = torch.optim.AdamW(
            loss_of.parameters(), plan.learning_rate, weight_decay=plan.weight_decay
        )
        batches = max(1, len(data.real) // plan.batch_size)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, plan.learning_rate, total_steps=plan.epochs * batches
        )
        for epoch in range(plan.epochs):
            for picked in torch.randperm(len(data.real)).chunk(batches):
                optimizer.zero_grad()
                loss_of(picked).backward()
                optimizer.step()
                schedule.step()
            progress(epoch + 1, plan.epochs, "epochs")
    return heads.eval().requires_grad_(False)


def heads_config(data: SceneFeatures) -> HeadsConfig:
    """Sizes of the features, and every noun and place of the scenes."""
    return HeadsConfig(
        image_width=data.real.shape[1],
        text_width=data.sentences.shape[1],
        nouns=tuple(sorted({noun for line in data.scenes.lines for noun in line["nouns"]})),
        places=tuple(sorted({line["place"] for line in data.scenes.lines})),
    )


class SceneLoss(nn.Module):
    """InfoNCE of pictures and captions, both ways, and the losses of both probes.

    Many scenes share a caption: all of a batch with the same words are right, in equal parts.
    """

    def __init__(self, heads: Heads, data: SceneFeatures, *, temperature: float) -> None:
        super().__init__()
        self.heads = heads
        self.log_scale = nn.Parameter(torch.tensor(1 / temperature).log())
        self._data = data
        nouns, places = heads.config.nouns, heads.config.places
        self._places = torch.tensor([places.index(line["place"]) for line in data.scenes.lines])
        self._nouns = torch.tensor(
            [[float(noun in line["nouns"]) for noun in nouns] for line in data.scenes.lines]
        )  # [N, nouns]

    def forward(self, picked: Tensor) -> Tensor:
        """Of pictures int64 [B], with a caption and a side of the tokenizer at random."""
        data, heads = self._data, self.heads
        is_rebuilt = torch.rand(len(picked), 1) < 0.5
        features = torch.where(is_rebuilt, data.rebuilt[picked], data.real[picked])  # [B, W]
        standard = heads.standardize(features)
        columns = torch.randint(data.captions.shape[1], (len(picked),))
        captions = data.captions[picked, columns]  # [B]
        pictures = heads.embed_pictures(standard)  # [B, E]
        texts = heads.embed_captions(data.sentences[captions])  # [B, E]
        logits = self.log_scale.exp() * pictures @ texts.T
        is_same = (captions[:, None] == captions).float()
        shares = is_same / is_same.sum(1)  # [B, B], symmetric within a caption
        contrast = F.cross_entropy(logits, shares) + F.cross_entropy(logits.T, shares)
        nouns = F.binary_cross_entropy_with_logits(heads.nouns(standard), self._nouns[picked])
        places = F.cross_entropy(heads.places(standard), self._places[picked])
        return contrast / 2 + NOUN_LOSS_WEIGHT * nouns + places
