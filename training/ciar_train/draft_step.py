"""`ciar-train draft` over a run folder: the draft of its own target, and the pair exported."""

import json
import shutil
from pathlib import Path

from ciar.checkpoint import CONFIG_FILE, fingerprint, read_weights
from ciar.errors import InvalidInput
from ciar.output_file import replace_file
from ciar.target import TargetModel
from ciar_train.draft import DraftTrainer
from ciar_train.draft_job import DraftJob
from ciar_train.eagle import export_eagle, train_eagle
from ciar_train.export import export_draft, export_target, round_as_stored
from ciar_train.run_folder import MODEL_NAME, RunFolder
from ciar_train.steps import encode_scenes, replace_folder

TARGET_FILE = "target.json"


def run_draft(run: RunFolder, *, folder_name: str = "draft") -> None:
    """Train the edge for the bundle's cloud, put both halves of phi in place, calibrate."""
    target = load_target(run)
    if run.is_finished(f"{folder_name}/phi", run.size.draft.phi) and run.has_fitting_edge:
        return
    job = draft_job(run, target, run.root / folder_name)
    trained_for = begin(run, job.folder)
    trainer = job.run()
    if run.world.is_main:
        finish(run, job, trainer, trained_for=trained_for)


def load_target(run: RunFolder) -> TargetModel:
    if not (run.bundle / "cloud" / CONFIG_FILE).exists():
        raise InvalidInput("run", str(run.root), "train the target first: ciar-train target")
    return TargetModel.load(run.bundle / "cloud", device=str(run.world.device))


def draft_job(run: RunFolder, target: TargetModel, folder: Path) -> DraftJob:
    codes = encode_scenes(run)
    return DraftJob(
        target=target,
        train=codes["train"],
        held_out=codes["held_out"],
        plan=run.size.draft,
        head=run.size.head,
        sampling=run.size.sampling,
        folder=folder,
        world=run.world,
        progress=run.progress,
        start=read_weights(run.adopted / "edge") if run.adopted.exists() else None,
        ngrams=run.ngrams,
    )


def finish(run: RunFolder, job: DraftJob, trainer: DraftTrainer, *, trained_for: str) -> None:
    """Export both models as a pair, the draft calibrated with the weights that are stored.

    trained_for: fingerprint of the cloud before it got its half of phi. The one it gets is written
    down before the cloud is in place: an interruption leaves a cloud that the draft is known for.
    """
    cloud = run.bundle / "cloud"
    part = cloud.with_name(f"{cloud.name}.part")
    target_print = export_target(trainer.target, part, name=MODEL_NAME, sampling=job.sampling)
    write_targets(job.folder, {trained_for, target_print})
    replace_folder(part, cloud)
    round_as_stored(trainer.target)
    calibration = job.calibration(trainer)
    export_draft(
        trainer.draft,
        run.bundle / "edge",
        name=MODEL_NAME,
        target_fingerprint=target_print,
        calibration=calibration,
    )


def run_eagle(run: RunFolder) -> None:
    """Train the drafter of EAGLE for the bundle's cloud, on the contexts of the draft."""
    plan = run.size.eagle
    if plan is None:
        raise InvalidInput("kind", "eagle", "give a size that has a table [eagle]")
    job = draft_job(run, load_target(run), run.root / "draft")
    begin(run, job.folder)
    begin(run, run.root / "eagle")
    contexts, held_out = job.contexts()
    model = train_eagle(
        job.target,
        plan,
        run.size.draft.shape,
        contexts=contexts,
        held_out=held_out,
        run_folder=run.root / "eagle",
        world=run.world,
        ngrams=job.ngrams,
    )
    if run.world.is_main:
        export_eagle(model, run.bundle / "eagle")


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
            old = folder.with_name(f"{folder.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)  # at once: what is left without its stamp would pass for new
            shutil.rmtree(old)
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
    replace_file(folder / TARGET_FILE, json.dumps(sorted(fingerprints)).encode())
