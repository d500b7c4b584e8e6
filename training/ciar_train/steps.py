"""The steps of a training run up to the target, and the end of it. Each is resumable."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from ciar.checkpoint import CONFIG_FILE, PARTS, find_model, fingerprint, make_folder
from ciar.errors import InvalidInput
from ciar.models.text_encoder import TextEncoder
from ciar.output_file import output_error, replace_file
from ciar.picture import load_vq
from ciar.target import TargetModel
from ciar_train.codes import CodeFolder, write_codes, write_tokens
from ciar_train.export import export_target, export_vq
from ciar_train.images import SceneFolder
from ciar_train.loop import STATE_FILE
from ciar_train.run_folder import MODEL_NAME, RunFolder
from ciar_train.scenes import Atlas, draw, unpack_atlas
from ciar_train.target import train_target
from ciar_train.tokenizer import channels_last, train_tokenizer

HELD_OUT_START = 10_000_000
COUNTED_START = 20_000_000
ENCODED_AT_ONCE = {"cpu": 64, "cuda": 512}  # pictures, or captions
ADOPTED_FILE = "adopted.json"  # fingerprints of the bundle that a run goes on from
EAGLE = "eagle"  # a drafter that a bundle may have, too


def draw_scenes(run: RunFolder, *, artwork: Path | None, num_workers: int) -> None:
    """Fetch and rasterise the artwork unless a pack is given, then draw both parts.

    Once it is unpacked, a pack need not be there any more. Raises `InvalidInput`.
    """
    atlas = run.root / "atlas"
    if not (atlas / "index.json").exists():
        if artwork and not artwork.is_file():
            raise InvalidInput("artwork", str(artwork), "no such file: give a pack of the artwork")
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

    What is there already is not copied again. Raises `InvalidInput` if the run goes on from
    something else, `CheckpointError` if the bundle is not whole.
    """
    prints = {part: fingerprint(bundle / part) for part in PARTS}
    adopted, stamp = {"frozen": is_frozen, **prints}, run.root / ADOPTED_FILE
    kept = {run.bundle / part: part for part in (PARTS if is_frozen else ("vq", "text"))}
    begun_from = {} if is_frozen else {run.adopted / part: part for part in ("vq", "cloud", "edge")}
    is_known = stamp.exists()
    if is_known and json.loads(stamp.read_text()) != adopted:
        remedy = "goes on from another model, or otherwise from this one: give another folder"
        raise InvalidInput("run", str(run.root), remedy)
    if not is_known and is_begun(run):  # perhaps from this bundle, before there were stamps
        is_known = all(has_print(at, prints[part]) for at, part in (begun_from or kept).items())
        if not is_known:
            remedy = "something has been trained in it already: give another folder"
            raise InvalidInput("run", str(run.root), remedy)
    copies = {at: bundle / part for at, part in (kept | begun_from).items()}
    copy_folders({at: source for at, source in copies.items() if not (is_known and is_model(at))})
    replace_file(stamp, json.dumps(adopted).encode())


def is_begun(run: RunFolder) -> bool:
    """Whether something was trained in a run, or its pictures were tokenized."""
    traces = [f"{step}/**/{STATE_FILE}" for step in ("tokenizer", "target", "draft", "eagle")]
    traces.append("scenes/*/codes/tokens.npy")
    return any(next(run.root.glob(trace), None) for trace in traces)


def is_model(folder: Path) -> bool:
    return (folder / CONFIG_FILE).exists()


def has_print(folder: Path, wanted: str) -> bool:
    return is_model(folder) and fingerprint(folder) == wanted


def copy_folders(copies: Mapping[Path, Path]) -> None:
    """Copy folders (values) in place of what is there (keys), all of them beside it first."""
    parts = {out: out.with_name(f"{out.name}.part") for out in copies}
    try:
        for out, source in copies.items():
            shutil.rmtree(parts[out], ignore_errors=True)
            shutil.copytree(source, parts[out])
        for out, part in parts.items():
            replace_folder(part, out)
    finally:
        for part in parts.values():
            shutil.rmtree(part, ignore_errors=True)


def replace_folder(part: Path, out: Path) -> None:
    """Move a whole folder to where another one, or a link, may be, which goes."""
    old = out.with_name(f"{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.is_symlink():
        out.unlink()
    elif out.exists():
        out.rename(old)
    part.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def check_trains_target(run: RunFolder) -> None:
    """Raise `InvalidInput` where the target is kept as it is: it would be written over."""
    if run.keeps_target:
        remedy = "it keeps its target (adopt --frozen): train drafts, or give another folder"
        raise InvalidInput("run", str(run.root), remedy)


def run_tokenizer(run: RunFolder) -> None:
    check_trains_target(run)
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
        copy_folders({own: find_model(MODEL_NAME) / "text"})
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
    check_trains_target(run)
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
    """Copy the finished bundle, each part in place of what is there; returns its bytes.

    Raises `InvalidInput`, `OutputError`.
    """
    missing = [p for p in PARTS if not is_model(run.bundle / p)]
    if missing:
        raise InvalidInput("run", str(run.root), f"train these parts first: {', '.join(missing)}")
    if not run.has_fitting_edge:
        raise InvalidInput(
            "run", str(run.root), "the draft belongs to another target: ciar-train draft"
        )
    parts = (p for p in (*PARTS, EAGLE) if is_model(run.bundle / p))
    make_folder(out, field="out")
    try:
        copy_folders({out / p: run.bundle / p for p in parts})
    except OSError as error:
        raise output_error(out, error, field="out") from error
    return sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
