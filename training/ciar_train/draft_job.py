"""A draft to train: for which target, on what, how, and where. The stages on it, one by one.

Where the target comes from is another's business: it is that of a run of ours (`draft_step`), or
any model folder (`target_draft`).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ciar.errors import InvalidInput
from ciar.models.inter_head import InterHeadConfig
from ciar.output_file import replacing
from ciar.prefix import DEFAULT_PREFIX_RATE, prefix_length
from ciar.router import DEFAULT_BUDGET
from ciar.target import TargetModel
from ciar.types import SamplingParams
from ciar_train.calibrate import calibrate
from ciar_train.codes import CodeFolder
from ciar_train.contexts import Chain, Contexts, drawn, joined
from ciar_train.draft import DraftPlan, DraftTrainer
from ciar_train.export import round_as_stored
from ciar_train.loop import DAMAGED, World
from ciar_train.model_images import cloud_images, protocol_images
from ciar_train.ngrams import NgramSource
from ciar_train.progress import Progress

CLOUD_IMAGES, PROTOCOL_IMAGES = "cloud_images.pt", "protocol_images.pt"
CLOUD_SEED, PROTOCOL_SEED = 7_000_000, 8_000_000  # of the first image
NUM_HELD_OUT = 64
ROLLOUT_SHARE = 1 / 3


@dataclass(frozen=True, kw_only=True, eq=False)
class DraftJob:
    """folder: keeps the state of every stage, and the images that the models drew.

    start: weights of an earlier draft to begin from.  ngrams: what tables are filled from.
    is_sharded: share the target's layers out among the processes.
    """

    target: TargetModel
    train: CodeFolder
    held_out: CodeFolder
    plan: DraftPlan
    head: InterHeadConfig
    sampling: SamplingParams
    folder: Path
    world: World
    progress: Progress
    start: Mapping[str, Tensor] | None = None
    ngrams: NgramSource | None = None
    is_sharded: bool = False

    def __post_init__(self) -> None:
        """Raise `InvalidInput` for a plan that gives a stage, or the calibration, no images."""
        for name in ("num_rollouts", "num_drawn", "num_calibration"):
            if (value := getattr(self.plan, name)) < 1:
                raise InvalidInput(name, value, "give at least 1")

    @property
    def num_prefix(self) -> int:
        return prefix_length(DEFAULT_PREFIX_RATE, self.target.config.num_tokens)

    def run(self) -> DraftTrainer:
        """All stages, or what is left of them."""
        trainer = DraftTrainer(  # before any image: it is what puts the target on its devices
            self.target,
            self.head,
            self.plan,
            sampling=self.sampling,
            world=self.world,
            start=self.start,
            ngrams=self.ngrams,
            is_sharded=self.is_sharded,
        )
        contexts, held_out = self.contexts()
        trainer.train_tokens(contexts, held_out, self.folder)
        trainer.train_centre(contexts, held_out, self.folder)
        if self.plan.has_radius_stage:
            trainer.train_radius(self.protocol_contexts(trainer, contexts), held_out, self.folder)
        trainer.train_phi(contexts, self.folder)
        return trainer

    def contexts(self) -> tuple[Contexts, Contexts]:
        """Drawn pictures and images the cloud drew, these repeated to be at least ROLLOUT_SHARE.

        The held-out ones are the cloud's alone.
        """
        total = len(self.train)
        count = min(self.plan.num_rollouts, total // 2)
        num_drawn = min(self.plan.num_drawn, total - count)
        prompts = drawn(self.train, range(count)).conditions
        test_prompts = drawn(self.held_out, range(min(NUM_HELD_OUT, len(self.held_out)))).conditions

        def draw() -> Contexts:
            return cloud_images(
                self.target,
                Chain(prompts, test_prompts),
                sampling=self.sampling,
                first_seed=CLOUD_SEED,
                world=self.world,
                progress=self.progress,
            )

        tokens = self._drawn_once(
            CLOUD_IMAGES, draw, first_seed=CLOUD_SEED, counts=[count, len(test_prompts)]
        )
        own = Contexts(tokens=tokens[:count], conditions=prompts)
        real = drawn(self.train, range(count, count + num_drawn))
        repeats = math.ceil(ROLLOUT_SHARE / (1 - ROLLOUT_SHARE) * num_drawn / count)
        test = Contexts(tokens=tokens[count:], conditions=test_prompts)
        return joined(*[own] * repeats, real), test

    def protocol_contexts(self, trainer: DraftTrainer, others: Contexts) -> Contexts:
        """Images of the real protocol with the trained centre, beside as many of the cloud's."""
        count = max(1, min(self.plan.num_rollouts, len(others.tokens)) // 2)
        prompts = others.conditions[:count]

        def draw() -> Contexts:
            return protocol_images(
                self.target,
                trainer.draft,
                prompts,
                sampling=self.sampling,
                kept_share=1 - DEFAULT_BUDGET,
                num_prefix=self.num_prefix,
                first_seed=PROTOCOL_SEED,
                world=self.world,
                progress=self.progress,
            )

        tokens = self._drawn_once(PROTOCOL_IMAGES, draw, first_seed=PROTOCOL_SEED, counts=[count])
        rest = Contexts(tokens=others.tokens[:count], conditions=prompts)
        return joined(Contexts(tokens=tokens, conditions=prompts), rest)

    def calibration(self, trainer: DraftTrainer) -> dict[str, list[float]]:
        """Quantiles of the scores, of the draft as it is stored: its weights are rounded here.

        With a sharded target every process must ask for them.
        """
        round_as_stored(trainer.draft)
        picked = drawn(self.held_out, range(min(self.plan.num_calibration, len(self.held_out))))
        found, _ = calibrate(
            trainer.target,
            trainer.draft,
            [c.float() for c in picked.conditions],
            sampling=self.sampling,
            budget=DEFAULT_BUDGET,
            num_prefix=self.num_prefix,
            progress=self.progress,
        )
        return found

    def _drawn_once(
        self, name: str, draw: Callable[[], Contexts], *, first_seed: int, counts: list[int]
    ) -> Tensor:
        """Tokens [N, T] of images that the models drew, unless they drew the same before.

        counts: of images for each list of prompts, one after another: N together.
        """
        path, how = self.folder / name, {"first_seed": first_seed, "counts": counts}
        self.world.wait()
        found = images_in(path, how)
        if found is None:
            found = draw().tokens  # by all processes, so none is late to look for the file
            if self.world.is_main:
                path.parent.mkdir(parents=True, exist_ok=True)
                with replacing(path) as part:
                    torch.save({"tokens": found, **how}, part)
        self.world.wait()
        return found


def images_in(path: Path, how: Mapping[str, Any]) -> Tensor | None:
    """Tokens [N, T] of a file, if it is there and whole, and its images were drawn so.

    how: what it should say; a file of before, which says nothing, has to have as many images.
    """
    if not path.exists():
        return None
    try:
        found = torch.load(path, weights_only=True)
    except (*DAMAGED, EOFError):
        return None
    tokens: Tensor = found.pop("tokens")
    is_so = (found or how) == how and len(tokens) == sum(how["counts"])
    return tokens if is_so else None
