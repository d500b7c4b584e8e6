"""The steps of a training run over one run folder.

    RUN/atlas.pak RUN/atlas        artwork, fetched and unpacked once
    RUN/scenes/{train,held_out}    drawn pictures with captions, and their codes
    RUN/{tokenizer,target,draft}   checkpoints and metrics.jsonl of each step
    RUN/bundle                     the model bundle as it grows: vq, text, cloud, edge

Each step is resumable, and leaves what the next one reads.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ciar.checkpoint import CONFIG_FILE, find_model, fingerprint, read_config
from ciar.errors import InvalidInput
from ciar.models.text_encoder import TextEncoder
from ciar.picture import load_vq
from ciar.target import TargetModel
from ciar.uncertainty import DEFAULT_BUDGET
from ciar_train.calibrate import calibrate, cloud_images, protocol_images
from ciar_train.codes import CodeFolder, write_codes
from ciar_train.draft import Contexts, DraftTrainer
from ciar_train.export import export_draft, export_target, export_vq, round_as_stored
from ciar_train.images import SceneFolder
from ciar_train.loop import Run, TrainingPlan, World
from ciar_train.scenes import Atlas, draw, unpack_atlas
from ciar_train.sizes import Size
from ciar_train.target import train_target
from ciar_train.tokenizer import channels_last, train_tokenizer

Progress = Callable[[int, int, str], None]
HELD_OUT_START = 10_000_000
NUM_CALIBRATION = 64
PREFIX_RATE = 0.06
NUM_HELD_OUT = 64
MODEL_NAME = "ciar-mini"


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """Paths of one training run, and how it reports."""

    root: Path
    size: Size
    world: World
    progress: Progress

    @property
    def bundle(self) -> Path:
        return self.root / "bundle"

    @property
    def adopted(self) -> Path:
        """The target of an earlier bundle that this run goes on from."""
        return self.root / "adopted"

    def scenes(self, part: str) -> Path:
        return self.root / "scenes" / part

    def codes(self, part: str) -> Path:
        return self.scenes(part) / "codes"


def draw_scenes(run: RunFolder, *, artwork: Path | None, num_workers: int) -> None:
    """Fetch and rasterise the artwork unless a pack is given, then draw both parts."""
    atlas = run.root / "atlas"
    if not (atlas / "index.json").exists():
        pack = artwork or run.root / "atlas.pak"
        if not pack.exists():
            from ciar_train.scenes.artwork import build_artwork  # needs resvg, unlike all else

            pack = build_artwork(run.root, progress=run.progress)
        unpack_atlas(pack, atlas)
    Atlas(atlas)  # a damaged atlas is reported before any worker starts
    data, recipe = run.size.data, run.size.data.scene_recipe()
    parts = (("train", 0, data.count), ("held_out", HELD_OUT_START, data.held_out))
    for part, start, count in parts:
        draw(
            recipe,
            atlas,
            run.scenes(part),
            start=start,
            count=count,
            num_captions=data.num_captions,
            num_workers=num_workers,
            split="train",
            progress=run.progress,
        )


def adopt(run: RunFolder, bundle: Path) -> None:
    """Go on from a finished bundle: keep its tokenizer and text encoder, train its target on."""
    for part in ("vq", "text"):
        shutil.copytree(bundle / part, run.bundle / part, dirs_exist_ok=True)
    shutil.copytree(bundle / "cloud", run.adopted, dirs_exist_ok=True)


def run_tokenizer(run: RunFolder) -> None:
    if run.adopted.exists():
        return  # the target's tokens are those of its own tokenizer
    vq = train_tokenizer(
        run.size.vq,
        run.size.tokenizer,
        run.size.tokenizer_loss,
        data=SceneFolder(run.scenes("train")),
        held_out=SceneFolder(run.scenes("held_out")),
        run_folder=run.root / "tokenizer",
        world=run.world,
    )
    if run.world.is_main:
        export_vq(vq, run.bundle / "vq")


def text_folder(run: RunFolder) -> Path:
    """The text encoder of the run; the embedded one unless the run has its own."""
    own = run.bundle / "text"
    if not own.exists() and run.world.is_main:
        shutil.copytree(find_model(MODEL_NAME) / "text", own)
    return own


def encode_scenes(run: RunFolder) -> dict[str, CodeFolder]:
    """Tokens and text features of both parts; written by the main process."""
    if run.world.is_main:
        text = TextEncoder.load(text_folder(run))
        text.to(run.world.device)
        vq = channels_last(load_vq(run.bundle / "vq"), run.world.device)
        for part in ("train", "held_out"):
            scenes = SceneFolder(run.scenes(part))
            write_codes(scenes, vq, text, run.codes(part), progress=run.progress)
    run.world.wait()
    return {part: CodeFolder(run.codes(part)) for part in ("train", "held_out")}


def is_finished(run: RunFolder, step: str, plan: TrainingPlan) -> bool:
    """Whether a step of this run has done all of its plan before."""
    state = Run(run.root / step, world=run.world).load()
    return state is not None and int(state["step"]) >= plan.steps


def run_target(run: RunFolder) -> None:
    has_cloud = (run.bundle / "cloud" / CONFIG_FILE).exists()
    if has_cloud and is_finished(run, "target", run.size.target):
        return  # to export it again would undo the draft's half of it
    codes = encode_scenes(run)
    start = None
    if run.adopted.exists():
        start = TargetModel.load(run.adopted).transformer.state_dict()
    transformer = train_target(
        run.size.transformer,
        run.size.target,
        data=codes["train"],
        held_out=codes["held_out"],
        run_folder=run.root / "target",
        world=run.world,
        start=start,
    )
    if run.world.is_main:
        model = TargetModel(run.size.transformer, feature_dim=run.size.head.feature_dim)
        model.transformer.load_state_dict(transformer.state_dict())
        export_target(model, run.bundle / "cloud", name=MODEL_NAME, sampling=run.size.sampling)


def contexts(folder: CodeFolder, indices: range) -> Contexts:
    """Drawn pictures with their first caption."""
    picks = torch.tensor(list(indices))
    rows = folder.condition_batch(picks, torch.zeros_like(picks))
    conditions = [f[m].half() for f, m in zip(rows.features, rows.mask, strict=True)]
    return Contexts(tokens=folder.token_batch(picks), conditions=conditions)


def joined(*parts: Contexts) -> Contexts:
    return Contexts(
        tokens=torch.cat([p.tokens for p in parts]),
        conditions=[c for p in parts for c in p.conditions],
    )


def run_draft(run: RunFolder, *, folder_name: str = "draft") -> None:
    """Train the edge for the bundle's cloud, put both halves of phi in place, calibrate."""
    size, plan, bundle = run.size, run.size.draft, run.bundle
    if not (bundle / "cloud" / "config.json").exists():
        raise InvalidInput("run", str(run.root), "train the target first: ciar-train target")
    target = TargetModel.load(bundle / "cloud", device=str(run.world.device))
    if is_finished(run, f"{folder_name}/phi", plan.phi) and has_fitting_edge(bundle):
        return
    codes = {part: CodeFolder(run.codes(part)) for part in ("train", "held_out")}
    folder = run.root / folder_name
    train_on, held_out = draft_contexts(run, target, codes, folder)
    trainer = DraftTrainer(
        target, size.head, plan, cfg_scale=size.sampling.cfg_scale, world=run.world
    )
    trainer.train_centre(train_on, held_out, folder)
    trainer.train_radius(protocol_contexts(run, trainer, train_on, folder), held_out, folder)
    trainer.train_phi(train_on, folder)
    if not run.world.is_main:
        return
    target = trainer.target
    name = MODEL_NAME
    target_print = export_target(target, bundle / "cloud", name=name, sampling=size.sampling)
    round_as_stored(target)
    round_as_stored(trainer.draft)
    picked = contexts(codes["held_out"], range(min(NUM_CALIBRATION, len(codes["held_out"]))))
    calibration, _ = calibrate(
        target,
        trainer.draft,
        [c.float() for c in picked.conditions],
        sampling=size.sampling,
        budget=DEFAULT_BUDGET,
        num_prefix=num_prefix(size),
        progress=run.progress,
    )
    export_draft(
        trainer.draft,
        bundle / "edge",
        name=name,
        target_fingerprint=target_print,
        calibration=calibration,
    )


def num_prefix(size: Size) -> int:
    return int(PREFIX_RATE * size.transformer.num_tokens)


def protocol_contexts(
    run: RunFolder, trainer: DraftTrainer, drawn: Contexts, folder: Path
) -> Contexts:
    """Images of the real protocol with the trained centre, beside twice as many of `drawn`."""
    count = max(1, len(drawn.tokens) // 4)
    prompts, path = drawn.conditions[:count], folder / "protocol_images.pt"
    if not path.exists() and run.world.is_main:
        images = protocol_images(
            trainer.target,
            trainer.draft,
            prompts,
            sampling=run.size.sampling,
            kept_share=1 - DEFAULT_BUDGET,
            num_prefix=num_prefix(run.size),
            first_seed=8_000_000,
            progress=run.progress,
        )
        torch.save({"tokens": images.tokens}, path)
    run.world.wait()
    own = Contexts(tokens=torch.load(path, weights_only=True)["tokens"], conditions=prompts)
    rest = Contexts(tokens=drawn.tokens[: 2 * count], conditions=drawn.conditions[: 2 * count])
    return joined(own, rest)


def draft_contexts(
    run: RunFolder, target: TargetModel, codes: dict[str, CodeFolder], folder: Path
) -> tuple[Contexts, Contexts]:
    """Drawn pictures and images the cloud drew, in equal parts.

    The held-out ones are the cloud's alone.
    """
    count = min(run.size.draft.num_rollouts, len(codes["train"]) // 2)
    test_count = min(NUM_HELD_OUT, len(codes["held_out"]))
    path = folder / "cloud_images.pt"
    prompts = contexts(codes["train"], range(count))
    test_prompts = contexts(codes["held_out"], range(test_count))
    both = joined(prompts, test_prompts)
    if not path.exists() and run.world.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        drawn = cloud_images(
            target,
            both.conditions,
            sampling=run.size.sampling,
            first_seed=7_000_000,
            progress=run.progress,
        )
        torch.save({"tokens": drawn.tokens}, path)
    run.world.wait()
    tokens = torch.load(path, weights_only=True)["tokens"]
    own = Contexts(tokens=tokens[:count], conditions=prompts.conditions)
    real = contexts(codes["train"], range(count, 2 * count))
    return joined(own, real), Contexts(tokens=tokens[count:], conditions=test_prompts.conditions)


def has_fitting_edge(bundle: Path) -> bool:
    """Whether there is a draft, made for the cloud that is there."""
    if not (bundle / "edge" / CONFIG_FILE).exists():
        return False
    return bool(read_config(bundle / "edge")["target"] == fingerprint(bundle / "cloud"))


def export_bundle(run: RunFolder, out: Path) -> int:
    """Copy the finished bundle; returns its bytes."""
    parts = ("vq", "text", "cloud", "edge")
    missing = [p for p in parts if not (run.bundle / p / "config.json").exists()]
    if missing:
        raise InvalidInput("run", str(run.root), f"train these parts first: {', '.join(missing)}")
    if not has_fitting_edge(run.bundle):
        raise InvalidInput(
            "run", str(run.root), "the draft belongs to another target: ciar-train draft"
        )
    shutil.copytree(run.bundle, out, dirs_exist_ok=True)
    return sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
