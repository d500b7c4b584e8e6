"""A model bundle loaded once, for every method to draw with."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from torch import Tensor

from ciar.checkpoint import CONFIG_FILE, read_config, read_sampling
from ciar.errors import CheckpointError
from ciar.models.eagle import EagleModel
from ciar.models.packed import pack
from ciar.models.text_encoder import TextEncoder
from ciar.picture import load_vq
from ciar.sampling import filter_logits
from ciar.target import Feed, Output, Target, TargetModel
from ciar.types import ModelInfo, SamplingParams
from ciar_bench.methods.costs import Costs
from ciar_edge.models import EdgeModel, load_draft_model
from ciar_train.eagle import load_eagle

NUM_SPARE = 64  # rows of a draft tree, or of a wave
MAX_BATCH_TOKENS = 256


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
    text: TextEncoder
    sampling: SamplingParams

    @classmethod
    def load(cls, folder: Path, *, device: str = "cpu") -> "BenchModel":
        """The target laid out as a cloud serves it. Raises `CheckpointError`."""
        model = TargetModel.load(folder / "cloud", device=device)
        pack(model.transformer)
        return cls(
            folder,
            MeteredTarget(model, num_slots=1, num_spare=NUM_SPARE),
            load_draft_model(folder / "edge"),
            TextEncoder.load(folder / "text"),
            read_sampling(folder / "cloud"),
        )

    def with_edge(self, edge: EdgeModel) -> "BenchModel":
        return replace(self, edge=edge)

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
    def info(self) -> ModelInfo:
        config = self.target.config
        return ModelInfo(
            name=self.folder.name,
            family="llamagen",
            fingerprint=self.edge.target,
            grid_size=config.grid_size,
            vocab_size=config.vocab_size,
            condition_dim=config.dim,
            feature_dim=self.target.model.feature_dim,
            max_prompt_chars=1000,
            max_batch_tokens=MAX_BATCH_TOKENS,
            sampling=self.sampling,
        )

    @cached_property
    def eagle(self) -> EagleModel:
        """The drafter of EAGLE: `NAME/eagle`. Raises `CheckpointError`."""
        folder = self.folder / "eagle"
        if not (folder / CONFIG_FILE).exists():
            raise CheckpointError(
                f"{folder}: no drafter of EAGLE; train it: ciar-train draft --kind eagle"
            )
        model, made_for = load_eagle(folder)
        wanted = read_config(self.folder / "edge")["target"]
        if made_for != wanted:
            raise CheckpointError(f"{folder}: made for target {made_for}, this one is {wanted}")
        return model

    @cached_property
    def codebook(self) -> Tensor:
        """Codes [V, d] as the VQ decoder gets them."""
        return load_vq(self.folder / "vq").quantize.codes().detach()


def sampling_view(logits: Tensor, sampling: SamplingParams) -> Tensor:
    """Guided logits [..., V] to the distribution that tokens are drawn from, float32 [..., V].

    At temperature 0 its largest is taken.
    """
    return filter_logits(
        logits, temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p
    ).softmax(-1)
