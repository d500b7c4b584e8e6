"""A training run's folder.

RUN/atlas.pak RUN/atlas        artwork, fetched and unpacked once
RUN/scenes/{train,held_out}    drawn pictures with captions, and their codes
RUN/scenes/counted             pictures whose n-grams are counted, and their tokens
RUN/{tokenizer,target,draft}   checkpoints and metrics.jsonl of each step
RUN/bundle                     the model bundle as it grows: vq, text, cloud, edge
RUN/adopted                    the bundle it goes on from, if any
RUN/adopted.json               its fingerprints, and whether its target is kept
RUN/variants/NAME              runs of their own for drafts of another kind (see `variants`)
"""

from dataclasses import dataclass
from pathlib import Path

from ciar.checkpoint import CONFIG_FILE, fingerprint, read_config, read_sampling, read_weights
from ciar_train.codes import read_tokens
from ciar_train.loop import STATE_FILE, Run, World
from ciar_train.ngrams import ENTRIES, NgramSource
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
    def keeps_target(self) -> bool:
        """Whether the target was made elsewhere, so that drafts alone are trained here."""
        has_cloud = (self.bundle / "cloud" / CONFIG_FILE).exists()
        return has_cloud and not (self.root / "target" / STATE_FILE).exists()

    @property
    def num_pictures(self) -> int:
        """How many to train on. Drafts need few."""
        if not self.keeps_target:
            return self.size.data.count
        draft = self.size.draft
        return min(self.size.data.count, draft.num_drawn + draft.num_rollouts)

    @property
    def num_counted(self) -> int:
        """Pictures whose n-grams are counted: none where no tables are to be filled from them."""
        to_train = [self.size.draft.shape.neighbours]
        if not self.keeps_target:
            to_train.append(self.size.transformer.neighbours)
        has_tables = any(model.ngrams for model in to_train)
        return self.size.data.counted if has_tables and not self.has_counted_draft else 0

    @property
    def has_counted_draft(self) -> bool:
        """Whether a draft came with the target, with tables of the contexts and size wanted."""
        edge, wanted = self.bundle / "edge", self.size.draft.shape.neighbours
        if not (wanted.ngrams and self.keeps_target and (edge / CONFIG_FILE).exists()):
            return False
        found = read_config(edge)["transformer"]["neighbours"]
        return (found["ngrams"], found["ngram_slots"]) == (list(wanted.ngrams), wanted.ngram_slots)

    @property
    def ngrams(self) -> NgramSource | None:
        """What tables are filled from, if there are any to fill."""
        if self.num_counted:
            return NgramSource(tokens=read_tokens(self.codes("counted")))
        if self.has_counted_draft:
            return NgramSource(entries=read_weights(self.bundle / "edge")[ENTRIES])
        return None

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
