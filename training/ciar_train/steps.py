"""The steps of a training run up to the target, and the end of it. Each is resumable."""

import shutil
from pathlib import Path

from ciar.checkpoint import CONFIG_FILE, find_model
from ciar.errors import InvalidInput
from ciar.models.text_encoder import TextEncoder
from ciar.picture import load_vq
from ciar.target import TargetModel
from ciar_train.codes import CodeFolder, write_codes, write_tokens
from ciar_train.export import export_target, export_vq
from ciar_train.images import SceneFolder
from ciar_train.run_folder import MODEL_NAME, RunFolder
from ciar_train.scenes import Atlas, draw, unpack_atlas
from ciar_train.target import train_target
from ciar_train.tokenizer import channels_last, train_tokenizer

HELD_OUT_START = 10_000_000
COUNTED_START = 20_000_000
ENCODED_AT_ONCE = {"cpu": 64, "cuda": 512}  # pictures, or captions


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
    parts = [("train", 0, run.num_pictures), ("held_out", HELD_OUT_START, data.held_out)]
    if run.num_counted:
        parts.append(("counted", COUNTED_START, run.num_counted))
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


def adopt(run: RunFolder, bundle: Path, *, is_frozen: bool = False) -> None:
    """Go on from a finished bundle: keep its tokens and text encoder, train all the rest on.

    is_frozen: keep target and draft too, to train other drafts for that target.
    """
    kept = ("vq", "text", "cloud", "edge") if is_frozen else ("vq", "text")
    for part in kept:
        shutil.copytree(bundle / part, run.bundle / part, dirs_exist_ok=True)
    if is_frozen:
        return
    for part in ("vq", "cloud", "edge"):
        shutil.copytree(bundle / part, run.adopted / part, dirs_exist_ok=True)


def run_tokenizer(run: RunFolder) -> None:
    vq = train_tokenizer(
        run.size.vq,
        run.size.tokenizer,
        run.size.tokenizer_loss,
        data=SceneFolder(run.scenes("train")),
        held_out=SceneFolder(run.scenes("held_out")),
        run_folder=run.root / "tokenizer",
        world=run.world,
        start=load_vq(run.adopted / "vq") if run.adopted.exists() else None,
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
        at_once = ENCODED_AT_ONCE[run.world.device.type]
        for part in ("train", "held_out"):
            scenes = SceneFolder(run.scenes(part))
            write_codes(
                scenes, vq, text, run.codes(part), batch_size=at_once, progress=run.progress
            )
        if run.num_counted:
            write_tokens(
                SceneFolder(run.scenes("counted")),
                vq,
                run.codes("counted"),
                batch_size=at_once,
                progress=run.progress,
            )
    run.world.wait()
    return {part: CodeFolder(run.codes(part)) for part in ("train", "held_out")}


def run_target(run: RunFolder) -> None:
    if run.has_fitting_cloud and run.is_finished("target", run.size.target):
        return  # to export it again would undo the draft's half of it
    codes = encode_scenes(run)
    start = None
    if run.adopted.exists():
        start = TargetModel.load(run.adopted / "cloud").transformer.state_dict()
    transformer = train_target(
        run.size.transformer,
        run.size.target,
        data=codes["train"],
        held_out=codes["held_out"],
        run_folder=run.root / "target",
        world=run.world,
        start=start,
        ngrams=run.ngrams,
    )
    if run.world.is_main:
        model = TargetModel(run.size.transformer, feature_dim=run.size.head.feature_dim)
        model.transformer.load_state_dict(transformer.state_dict())
        export_target(model, run.bundle / "cloud", name=MODEL_NAME, sampling=run.size.sampling)


def export_bundle(run: RunFolder, out: Path) -> int:
    """Copy the finished bundle; returns its bytes."""
    parts = ("vq", "text", "cloud", "edge")
    missing = [p for p in parts if not (run.bundle / p / CONFIG_FILE).exists()]
    if missing:
        raise InvalidInput("run", str(run.root), f"train these parts first: {', '.join(missing)}")
    if not run.has_fitting_edge:
        raise InvalidInput(
            "run", str(run.root), "the draft belongs to another target: ciar-train draft"
        )
    shutil.copytree(run.bundle, out, dirs_exist_ok=True)
    return sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
