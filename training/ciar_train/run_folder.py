"""A training run's folder.

RUN/atlas.pak RUN/atlas        artwork, fetched and unpacked once
RUN/scenes/{train,held_out}    drawn pictures with captions, and their codes
RUN/scenes/counted             pictures whose n-grams are counted, and their tokens
RUN/{tokenizer,target,draft}   checkpoints and metrics.jsonl of each step
RUN/bundle                     the model bundle as it grows: vq, text, cloud, edge
RUN/adopted                    the bundle it goes on from, if any
RUN/variants/NAME              runs of their own for drafts of another kind (see `variants`)
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ciar.checkpoint import CONFIG_FILE, fingerprint, read_config, read_sampling
from ciar_train.codes import read_tokens
from ciar_train.loop import Run, World
from ciar_train.plan import TrainingPlan
from ciar_train.progress import Progress
from ciar_train.sizes import Size

MODEL_NAME = "ciar-mini"
BUNDLE, VARIANTS = "bundle", "variants"


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """Paths of one training run, and how it reports."""

    root: Path
    size: Size
    world: World
    progress: Progress

    @property
    def bundle(self) -> Path:
        return self.root / BUNDLE

    def variant(self, name: str) -> Path:
        """The run folder of a variant of the draft."""
        return self.root / VARIANTS / name

    @property
    def adopted(self) -> Path:
        """Tokenizer, cloud and edge of an earlier bundle that this run goes on from."""
        return self.root / "adopted"

    def scenes(self, part: str) -> Path:
        return self.root / "scenes" / part

    def codes(self, part: str) -> Path:
        return self.scenes(part) / "codes"

    @property
    def counted_tokens(self) -> np.ndarray | None:
        """Tokens [N, T] of the pictures whose n-grams are counted, if the size has any."""
        return read_tokens(self.codes("counted")) if self.size.data.counted else None

    def is_finished(self, step: str, plan: TrainingPlan) -> bool:
        """Whether a step of this run has done all of its plan before."""
        state = Run(self.root / step, world=self.world).load()
        return state is not None and int(state["step"]) >= plan.steps

    @property
    def has_fitting_cloud(self) -> bool:
        """Whether there is a target, which draws as the size says."""
        folder = self.bundle / "cloud"
        return (folder / CONFIG_FILE).exists() and read_sampling(folder) == self.size.sampling

    @property
    def has_fitting_edge(self) -> bool:
        """Whether there is a draft, made for the cloud that is there."""
        if not (self.bundle / "edge" / CONFIG_FILE).exists():
            return False
        wanted: str = read_config(self.bundle / "edge")["target"]
        return wanted == fingerprint(self.bundle / "cloud")
