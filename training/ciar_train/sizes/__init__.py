"""Sizes of ciar-mini as data files: one TOML file holds all that a training run needs to know."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ciar.models.inter_head import InterHeadConfig
from ciar.models.transformer import TransformerConfig
from ciar.models.vq import VQConfig
from ciar.types import SamplingParams
from ciar_train.draft import DraftPlan
from ciar_train.eagle import EaglePlan
from ciar_train.plan import TrainingPlan
from ciar_train.scenes import Recipe
from ciar_train.settings import names_in, read_settings
from ciar_train.target import TargetPlan
from ciar_train.tokenizer import TokenizerLoss


@dataclass(frozen=True, kw_only=True)
class DataPlan:
    """Pictures to draw. `recipe` says what may be in them (see `ciar_train.scenes.Recipe`)."""

    count: int
    held_out: int
    num_captions: int
    counted: int = 0  # pictures, apart from those, whose n-grams are counted
    recipe: dict[str, Any] = field(default_factory=dict)

    def scene_recipe(self) -> Recipe:
        return Recipe.from_table(self.recipe)


@dataclass(frozen=True, kw_only=True)
class Size:
    """One size: data, shapes and plans."""

    data: DataPlan
    vq: VQConfig
    tokenizer: TrainingPlan
    transformer: TransformerConfig
    target: TargetPlan
    draft: DraftPlan
    tokenizer_loss: TokenizerLoss = TokenizerLoss()
    head: InterHeadConfig = InterHeadConfig()
    sampling: SamplingParams = SamplingParams()
    eagle: EaglePlan | None = None  # the drafter of EAGLE, for comparisons

    def __post_init__(self) -> None:
        side = self.data.scene_recipe().size // self.vq.downsample
        if side != self.transformer.grid_size:
            raise ValueError(
                f"grid_size: {self.transformer.grid_size}: "
                f"pictures of this size give {side} tokens a side"
            )
        has_tables = self.transformer.neighbours.ngrams or self.draft.shape.neighbours.ngrams
        if bool(has_tables) != bool(self.data.counted):
            raise ValueError(
                f"counted: {self.data.counted}: give the pictures whose n-grams are counted where "
                "target or draft has `ngrams`, and 0 where neither has"
            )
        if self.vq.codebook_size != self.transformer.vocab_size:
            raise ValueError(
                f"vocab_size: {self.transformer.vocab_size}: the codebook has another size"
            )


def size_names() -> list[str]:
    return names_in(__name__)


def load_size(name: str | Path) -> Size:
    """A size by name among those that come with the package, or by the path of a TOML file."""
    return read_settings(Size, __name__, name, field="size")
