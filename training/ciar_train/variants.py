"""`ciar-train variant`: drafts that differ in one thing, to see what each part of training is for.

`plain` is one layer as published, which sees no neighbours and has no tables; nothing of the run's
own draft fits it, so it begins without the cloud and takes all steps. The others start from the
finished `plain`, with new radii, and see the same contexts for as many steps: SHARE of its own. A
variant is a run folder of its own, RUN/variants/NAME, with a bundle of its own.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from ciar.checkpoint import CONFIG_FILE
from ciar.errors import InvalidInput
from ciar.models.neighbours import NeighbourConfig
from ciar_train.draft import DraftPlan
from ciar_train.draft_job import CLOUD_IMAGES, PROTOCOL_IMAGES
from ciar_train.draft_step import run_draft
from ciar_train.plan import TrainingPlan
from ciar_train.run_folder import BUNDLE, RunFolder
from ciar_train.sizes import Size
from ciar_train.steps import adopt, copy_folders, replace_folder


def published(plan: DraftPlan, *, kl: float, dro: float) -> DraftPlan:
    """The publication's loss in one stage, or parts of it."""
    return replace(plan, loss="inter-dro", weights=replace(plan.weights, kl=kl, dro=dro))


PLAIN = "plain"
SHARE = 1 / 4

# What each changes of the plan of `plain`; that one comes first, because the others start from it.
VARIANTS: Mapping[str, Callable[[DraftPlan], DraftPlan]] = {
    PLAIN: lambda plan: plan,
    "anchor": lambda plan: published(plan, kl=0.0, dro=0.0),
    "anchor-kl": lambda plan: published(plan, kl=1.0, dro=0.0),
    "inter-dro": lambda plan: published(plan, kl=1.0, dro=1.0),
    "two-stage": lambda plan: replace(plan, loss="interval-score"),
    "two-layers": lambda plan: replace(plan, shape=replace(plan.shape, num_layers=2)),
}


def shorter(plan: DraftPlan) -> DraftPlan:
    """For what has been trained before: nothing without the cloud, and SHARE of all the rest."""

    def cut(stage: TrainingPlan) -> TrainingPlan:
        steps, warmup = (round(SHARE * n) for n in (stage.steps, stage.warmup_steps))
        return replace(stage, steps=max(1, steps), warmup_steps=warmup)

    return replace(
        plan, tokens=None, centre=cut(plan.centre), radius=cut(plan.radius), phi=cut(plan.phi)
    )


def with_draft(size: Size, plan: DraftPlan) -> Size:
    """The size with another draft; pictures are counted only if somebody has tables to fill."""
    has_tables = size.transformer.neighbours.ngrams or plan.shape.neighbours.ngrams
    counted = size.data.counted if has_tables else 0
    return replace(size, draft=plan, data=replace(size.data, counted=counted))


def run_variant(run: RunFolder, name: str) -> RunFolder:
    """Train it, or go on with it; returns its run folder."""
    if name not in VARIANTS:
        raise InvalidInput("variant", name, f"give one of {', '.join(VARIANTS)}")
    own = run.size.draft
    plan = replace(own, shape=replace(own.shape, neighbours=NeighbourConfig()))
    start, before = run.bundle, "ciar-train draft"
    if name != PLAIN:
        plan = VARIANTS[name](shorter(plan))
        start, before = run.variant(PLAIN) / BUNDLE, f"ciar-train variant {PLAIN}"
    if not (start / "edge" / CONFIG_FILE).exists():
        raise InvalidInput("run", str(run.root), f"first run {before}")
    variant = replace(run, root=run.variant(name), size=with_draft(run.size, plan))
    if run.world.is_main and not variant.bundle.exists():
        part = replace(variant, root=variant.root.with_name(f"{name}.part"))
        shutil.rmtree(part.root, ignore_errors=True)
        adopt(part, start)
        share_contexts(run, part, images_of=run.root if name == PLAIN else run.variant(PLAIN))
        own_parts = (p for p in ("cloud", "eagle") if (run.bundle / p).exists())
        copy_folders({part.bundle / p: run.bundle / p for p in own_parts})
        replace_folder(part.root, variant.root)
    run.world.wait()
    run_draft(variant)
    run.world.wait()  # for its export, which the next one may start from
    return variant


def share_contexts(run: RunFolder, variant: RunFolder, *, images_of: Path) -> None:
    """The same pictures, and the images that the models have drawn already in another run."""
    scenes = (run.root / "scenes").resolve()
    (variant.root / "scenes").symlink_to(scenes, target_is_directory=True)
    (variant.root / "draft").mkdir()
    names = (CLOUD_IMAGES,) if images_of == run.root else (CLOUD_IMAGES, PROTOCOL_IMAGES)
    for name in names:  # the run's own draft is another, so its images of the protocol are too
        if (images_of / "draft" / name).exists():
            shutil.copy(images_of / "draft" / name, variant.root / "draft" / name)
