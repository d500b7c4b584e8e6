"""`ciar-train draft` over a run folder: contexts, the stages, calibration, export."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ciar.checkpoint import CONFIG_FILE, fingerprint, read_weights
from ciar.errors import InvalidInput
from ciar.prefix import DEFAULT_PREFIX_RATE, prefix_length
from ciar.router import DEFAULT_BUDGET
from ciar.target import TargetModel
from ciar_train.calibrate import calibrate
from ciar_train.codes import CodeFolder
from ciar_train.contexts import Contexts, cloud_images, drawn, joined, protocol_images
from ciar_train.draft import DraftTrainer
from ciar_train.eagle import export_eagle, train_eagle
from ciar_train.export import export_draft, export_target, round_as_stored
from ciar_train.run_folder import MODEL_NAME, RunFolder
from ciar_train.steps import encode_scenes

TARGET_FILE = "target.json"
CLOUD_IMAGES, PROTOCOL_IMAGES = "cloud_images.pt", "protocol_images.pt"
NUM_CALIBRATION = 64
NUM_HELD_OUT = 64
ROLLOUT_SHARE = 1 / 3


def run_draft(run: RunFolder, *, folder_name: str = "draft") -> None:
    """Train the edge for the bundle's cloud, put both halves of phi in place, calibrate."""
    size, plan, bundle = run.size, run.size.draft, run.bundle
    if not (bundle / "cloud" / CONFIG_FILE).exists():
        raise InvalidInput("run", str(run.root), "train the target first: ciar-train target")
    target = TargetModel.load(bundle / "cloud", device=str(run.world.device))
    if run.is_finished(f"{folder_name}/phi", plan.phi) and run.has_fitting_edge:
        return
    codes = encode_scenes(run)
    folder = run.root / folder_name
    trained_for = begin(run, folder)
    train_on, held_out = draft_contexts(run, target, codes, folder)
    trainer = DraftTrainer(
        target,
        size.head,
        plan,
        sampling=size.sampling,
        world=run.world,
        start=read_weights(run.adopted / "edge") if run.adopted.exists() else None,
        counted=run.counted_tokens,
    )
    trainer.train_tokens(train_on, held_out, folder)
    trainer.train_centre(train_on, held_out, folder)
    if plan.has_radius_stage:
        trainer.train_radius(protocol_contexts(run, trainer, train_on, folder), held_out, folder)
    trainer.train_phi(train_on, folder)
    if run.world.is_main:
        finish(run, trainer, codes["held_out"], folder, trained_for=trained_for)


def finish(
    run: RunFolder, trainer: DraftTrainer, held_out: CodeFolder, folder: Path, *, trained_for: str
) -> None:
    """Export both models as a pair, the draft calibrated with the weights that are stored.

    trained_for: fingerprint of the cloud before it got its half of phi.
    """
    size, bundle, target, draft = run.size, run.bundle, trainer.target, trainer.draft
    target_print = export_target(target, bundle / "cloud", name=MODEL_NAME, sampling=size.sampling)
    write_targets(folder, {trained_for, target_print})
    round_as_stored(target)
    round_as_stored(draft)
    picked = drawn(held_out, range(min(NUM_CALIBRATION, len(held_out))))
    calibration, _ = calibrate(
        target,
        draft,
        [c.float() for c in picked.conditions],
        sampling=size.sampling,
        budget=DEFAULT_BUDGET,
        num_prefix=prefix_length(DEFAULT_PREFIX_RATE, target.config.num_tokens),
        progress=run.progress,
    )
    export_draft(
        draft,
        bundle / "edge",
        name=MODEL_NAME,
        target_fingerprint=target_print,
        calibration=calibration,
    )


def run_eagle(run: RunFolder) -> None:
    """Train the drafter of EAGLE for the bundle's cloud, on the contexts of the draft."""
    plan, bundle = run.size.eagle, run.bundle
    if plan is None:
        raise InvalidInput("kind", "eagle", "give a size that has a table [eagle]")
    if not (bundle / "cloud" / CONFIG_FILE).exists():
        raise InvalidInput("run", str(run.root), "train the target first: ciar-train target")
    target = TargetModel.load(bundle / "cloud", device=str(run.world.device))
    codes = encode_scenes(run)
    begin(run, run.root / "draft")
    begin(run, run.root / "eagle")
    contexts, held_out = draft_contexts(run, target, codes, run.root / "draft")
    model = train_eagle(
        target,
        plan,
        run.size.draft.shape,
        contexts=contexts,
        held_out=held_out,
        run_folder=run.root / "eagle",
        world=run.world,
        counted=run.counted_tokens,
    )
    if run.world.is_main:
        export_eagle(model, bundle / "eagle")


def begin(run: RunFolder, folder: Path) -> str:
    """The fingerprint of the cloud to train for; what was trained for another one is removed.

    RUN/draft/target.json holds it, and that of the cloud with its half of phi in place: two names
    of one transformer.
    """
    current = fingerprint(run.bundle / "cloud")
    if run.world.is_main:
        stamp = folder / TARGET_FILE
        if stamp.exists() and not same_targets(run, current) & set(json.loads(stamp.read_text())):
            print(f"{folder.name}: the target has changed, so it begins anew")
            shutil.rmtree(folder)
        if not stamp.exists():
            write_targets(folder, {current})
    run.world.wait()
    return current


def same_targets(run: RunFolder, current: str) -> set[str]:
    """The fingerprints of clouds with the transformer of the current one."""
    stamp = run.root / "draft" / TARGET_FILE
    known = set(json.loads(stamp.read_text())) if stamp.exists() else set()
    return known if current in known else {current}


def write_targets(folder: Path, fingerprints: set[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TARGET_FILE).write_text(json.dumps(sorted(fingerprints)))


def drawn_once(run: RunFolder, path: Path, draw: Callable[[], Contexts]) -> Tensor:
    """Tokens [N, T] of images that the models drew: by the main process, unless they are there."""
    if not path.exists() and run.world.is_main:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"tokens": draw().tokens}, path)
    run.world.wait()
    tokens: Tensor = torch.load(path, weights_only=True)["tokens"]
    return tokens


def protocol_contexts(
    run: RunFolder, trainer: DraftTrainer, others: Contexts, folder: Path
) -> Contexts:
    """Images of the real protocol with the trained centre, beside as many of the cloud's."""
    count = max(1, min(run.size.draft.num_rollouts, len(others.tokens)) // 2)
    prompts = others.conditions[:count]

    def draw() -> Contexts:
        return protocol_images(
            trainer.target,
            trainer.draft,
            prompts,
            sampling=run.size.sampling,
            kept_share=1 - DEFAULT_BUDGET,
            num_prefix=prefix_length(DEFAULT_PREFIX_RATE, trainer.target.config.num_tokens),
            first_seed=8_000_000,
            progress=run.progress,
        )

    tokens = drawn_once(run, folder / PROTOCOL_IMAGES, draw)
    rest = Contexts(tokens=others.tokens[:count], conditions=prompts)
    return joined(Contexts(tokens=tokens, conditions=prompts), rest)


def draft_contexts(
    run: RunFolder, target: TargetModel, codes: dict[str, CodeFolder], folder: Path
) -> tuple[Contexts, Contexts]:
    """Drawn pictures and images the cloud drew, these repeated to be at least ROLLOUT_SHARE.

    The held-out ones are the cloud's alone.
    """
    plan, total = run.size.draft, len(codes["train"])
    count = min(plan.num_rollouts, total // 2)
    num_drawn = min(plan.num_drawn, total - count)
    test_count = min(NUM_HELD_OUT, len(codes["held_out"]))
    prompts = drawn(codes["train"], range(count)).conditions
    test_prompts = drawn(codes["held_out"], range(test_count)).conditions

    def draw() -> Contexts:
        return cloud_images(
            target,
            prompts + test_prompts,
            sampling=run.size.sampling,
            first_seed=7_000_000,
            progress=run.progress,
        )

    tokens = drawn_once(run, folder / CLOUD_IMAGES, draw)
    own = Contexts(tokens=tokens[:count], conditions=prompts)
    real = drawn(codes["train"], range(count, count + num_drawn))
    repeats = math.ceil(ROLLOUT_SHARE / (1 - ROLLOUT_SHARE) * num_drawn / count)
    return joined(*[own] * repeats, real), Contexts(tokens=tokens[count:], conditions=test_prompts)
