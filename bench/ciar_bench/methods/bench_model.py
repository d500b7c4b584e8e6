"""A model bundle loaded once, for every method to draw with."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ciar.checkpoint import CONFIG_FILE
from ciar.errors import CheckpointError
from ciar.feed import Feed
from ciar.models.eagle import EagleModel
from ciar.picture import load_vq
from ciar.sampling import filter_logits
from ciar.target import Output, Target, TargetModel
from ciar.text import TextFeatures
from ciar.types import ModelInfo, SamplingParams
from ciar_bench.methods.costs import Costs
from ciar_cloud.bundle import load_cloud_model
from ciar_edge.models import EdgeModel, load_draft_model
from ciar_train.eagle import load_eagle

SLOT = 0  # the only one
NUM_SPARE = 64  # rows of a draft tree, or of a wave


class MeteredTarget(Target):
    """A target that counts its work into `costs`."""

    costs = Costs()

    def outputs(self, feeds: Sequence[Feed]) -> list[Output]:
        self.costs.forwards += 1
        self.costs.positions += self.ROWS * sum(feed.num_new_rows for feed in feeds)
        return super().outputs(feeds)


@dataclass(frozen=True, eq=False)
class BenchModel:
    """target: one slot, used by one image at a time."""

    folder: Path
    target: MeteredTarget
    edge: EdgeModel
    text: TextFeatures
    info: ModelInfo

    @classmethod
    def load(cls, folder: Path, *, device: str = "cpu") -> "BenchModel":
        """Both halves, laid out as they serve. Raises `CheckpointError`."""
        cloud = load_cloud_model(str(folder), device=device, recompute_features=None)
        return cls(
            folder,
            MeteredTarget(cloud.target, num_slots=1, num_spare=NUM_SPARE, draft=cloud.draft),
            load_draft_model(folder / "edge"),
            cloud.encoder,
            cloud.info,
        )

    @property
    def sampling(self) -> SamplingParams:
        return self.info.sampling

    @property
    def num_tokens(self) -> int:
        return self.target.config.num_tokens

    @property
    def vocab_size(self) -> int:
        return self.target.config.vocab_size

    @property
    def dim(self) -> int:
        return self.target.config.dim

    def meter(self) -> Costs:
        """Costs of the image that begins now."""
        self.target.costs = Costs()
        return self.target.costs

    def encode(self, prompt: str) -> Tensor:
        """Text features [L, C]."""
        return self.text.encode([prompt])[0]

    @cached_property
    def eagle(self) -> EagleModel:
        """The drafter of EAGLE: `NAME/eagle`. Raises `CheckpointError`."""
        folder = eagle_folder(self.folder)
        model = load_eagle(folder)
        head = TargetModel.load(self.folder / "cloud").transformer.output.weight
        if not is_same_head(model.output.weight.cpu(), head):
            raise CheckpointError(f"{folder}: its output head is another target's; train it again")
        return model

    @cached_property
    def codebook(self) -> Tensor:
        """Codes [V, d] as the VQ decoder gets them."""
        return load_vq(self.folder / "vq").quantize.codes().detach()


def eagle_folder(bundle: Path) -> Path:
    """Where a bundle has the drafter of EAGLE. Raises `CheckpointError` if it has none."""
    folder = bundle / "eagle"
    if not (folder / CONFIG_FILE).exists():
        raise CheckpointError(
            f"{folder}: no drafter of EAGLE; train it: ciar-train draft --kind eagle"
        )
    return folder


def prefill(condition: Tensor, sampling: SamplingParams) -> Feed:
    """The condition alone, text features [L, C]: it brings what follows it, token 0."""
    return Feed(
        slot=SLOT,
        num_condition=len(condition),
        position=0,
        tokens=torch.empty(0, dtype=torch.long),
        cfg_scale=sampling.cfg_scale,
        cfg_interval=sampling.cfg_interval,
        condition=condition,
    )


def is_same_head(found: Tensor, expected: Tensor) -> bool:
    """Whether weights [V, D] are equal but for a rounding to int8 rows."""
    if found.shape != expected.shape:
        return False
    step = expected.abs().amax(dim=1, keepdim=True) / 127
    return bool(((found - expected).abs() <= step).all())


def sampling_view(logits: Tensor, sampling: SamplingParams) -> Tensor:
    """Guided logits [..., V] to the distribution that tokens are drawn from, float32 [..., V].

    It is on the CPU, where the drafter of EAGLE is. At temperature 0 its largest is taken.
    """
    view = filter_logits(
        logits, temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p
    )
    return view.softmax(-1).cpu()
