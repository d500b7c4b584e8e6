"""`ciar-train variant`: drafts that differ in one thing, to see what each part of training is for.

All start from what fits of the run's finished draft, with new radii, and see the same contexts for
as many steps. Nothing fits in a layer without neighbours, so that one also begins without the
cloud, as the run's own draft did. A variant is a run folder of its own, RUN/variants/NAME, with a
bundle of its own.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace

from ciar.checkpoint import CONFIG_FILE
from ciar.errors import InvalidInput
from ciar.models.neighbours import NeighbourConfig
from ciar_train.draft import DraftPlan
from ciar_train.draft_step import CLOUD_IMAGES, run_draft
from ciar_train.run_folder import RunFolder
from ciar_train.steps import adopt


def published(plan: DraftPlan, *, kl: float, dro: float) -> DraftPlan:
    """The publication's loss in one stage, or parts of it."""
    return replace(plan, loss="inter-dro", weights=replace(plan.weights, kl=kl, dro=dro))


BEGIN_ANEW = {"plain"}

# `plain` is a layer as published, which sees no neighbours and has no tables.
VARIANTS: Mapping[str, Callable[[DraftPlan], DraftPlan]] = {
    "anchor": lambda plan: published(plan, kl=0.0, dro=0.0),
    "anchor-kl": lambda plan: published(plan, kl=1.0, dro=0.0),
    "inter-dro": lambda plan: published(plan, kl=1.0, dro=1.0),
    "two-stage": lambda plan: replace(plan, loss="interval-score"),
    "plain": lambda plan: replace(plan, shape=replace(plan.shape, neighbours=NeighbourConfig())),
    "two-layers": lambda plan: replace(plan, shape=replace(plan.shape, num_layers=2)),
}


def run_variant(run: RunFolder, name: str) -> RunFolder:
    """Train it, or go on with it; returns its run folder."""
    if name not in VARIANTS:
        raise InvalidInput("variant", name, f"give one of {', '.join(VARIANTS)}")
    if not (run.bundle / "edge" / CONFIG_FILE).exists():
        raise InvalidInput("run", str(run.root), "train its draft first: ciar-train draft")
    tokens = run.size.draft.tokens if name in BEGIN_ANEW else None
    plan = VARIANTS[name](replace(run.size.draft, tokens=tokens))
    variant = replace(run, root=run.root / "variants" / name, size=replace(run.size, draft=plan))
    if run.world.is_main and not variant.bundle.exists():
        share_contexts(run, variant)
        adopt(variant, run.bundle)
        for part in ("cloud", "eagle"):
            if (run.bundle / part).exists():
                shutil.copytree(run.bundle / part, variant.bundle / part)
    run.world.wait()
    run_draft(variant)
    return variant


def share_contexts(run: RunFolder, variant: RunFolder) -> None:
    """The same pictures, and the images that the cloud has drawn already."""
    variant.root.mkdir(parents=True, exist_ok=True)
    scenes = variant.root / "scenes"
    if not scenes.exists():
        scenes.symlink_to((run.root / "scenes").resolve(), target_is_directory=True)
    drawn = run.root / "draft" / CLOUD_IMAGES
    if drawn.exists():
        (variant.root / "draft").mkdir(exist_ok=True)
        shutil.copy(drawn, variant.root / "draft" / CLOUD_IMAGES)
