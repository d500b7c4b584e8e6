"""The commands of `ciar-bench` about quality."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ciar.checkpoint import DEFAULT_MODEL, find_model, fingerprint
from ciar.errors import InvalidInput
from ciar.picture import load_vq
from ciar_bench.quality.bootstrap import Estimate, mean_estimate
from ciar_bench.quality.clip import CLIP_MODEL, CLIP_WEIGHTS
from ciar_bench.quality.coco import NUM_CAPTIONS, coco_captions, write_captions
from ciar_bench.quality.features import EfficientNetFeatures
from ciar_bench.quality.fetch import EFFICIENTNET_LITE0, INCEPTION, fetch
from ciar_bench.quality.folder import PictureFolder
from ciar_bench.quality.instruments import EXTRACTORS, make_instruments
from ciar_bench.quality.reconstruction import of_all_pixels, peak_ratios
from ciar_bench.quality.report import CaptionedSet, compare, markdown, measure_folder, noise_floor
from ciar_bench.quality.scenes import DrawnScenes, Reconstructed
from ciar_bench.quality.scorer import SUFFIX, save_scorer
from ciar_bench.quality.train_scorer import TrainPlan, train_scorer
from ciar_cloud.bundle import check_device

console = Console(stderr=True)


def add_commands(app: typer.Typer) -> None:
    app.command(name="fetch-features")(fetch_features)
    app.command(name="coco-captions")(write_coco_captions)
    app.command(name="train-scorer")(train)
    app.command()(quality)
    app.command()(reconstruction)


def fetch_features() -> None:
    """Fetch the feature extractors that measure quality, once (about 100 MB)."""
    for wanted in (EFFICIENTNET_LITE0, INCEPTION):
        print(fetch(wanted))


def write_coco_captions(
    annotations: Annotated[Path, typer.Argument(help="COCO's captions_val2017.json.")],
    out: Annotated[Path, typer.Option(help="Where to write prompts and file names (JSONL).")],
    count: Annotated[int, typer.Option(min=1, help="Captions.")] = NUM_CAPTIONS,
    seed: Annotated[int, typer.Option(help="Of their order.")] = 0,
) -> None:
    """MS-COCO prompts: the longest caption of each picture, in a seeded order."""
    captions = coco_captions(annotations, count=count, seed=seed)
    write_captions(out, captions)
    print(f"{len(captions)} captions: {out}")


def train(
    scenes: Annotated[Path, typer.Option(help="Drawn scenes to train on.")],
    held_out: Annotated[Path, typer.Option(help="Drawn scenes to report on.")],
    out: Annotated[Path, typer.Option(help="The scorer's file, NAME.safetensors.")],
    model: Annotated[
        str, typer.Option(help="A model whose tokenizer and text encoder to take.")
    ] = DEFAULT_MODEL,
    count: Annotated[int, typer.Option(min=2, help="Pictures to train on.")] = 8192,
    epochs: Annotated[int, typer.Option(min=1, help="Times to see them.")] = TrainPlan().epochs,
    device: Annotated[str, typer.Option(help="Where features are computed.")] = "cpu",
) -> None:
    """Train a caption scorer with probes of things and places on drawn scenes."""
    if out.suffix != SUFFIX:
        raise InvalidInput("out", str(out), f"give a file name that ends in {SUFFIX}")
    check_device(device)
    heads, metadata = train_scorer(
        DrawnScenes(scenes, count=count),
        DrawnScenes(held_out),
        find_model(model),
        EfficientNetFeatures(has_maxima=True, device=device),
        TrainPlan(epochs=epochs),
        progress=show_progress,
    )
    save_scorer(out, heads, metadata)
    print(json.dumps(metadata["held_out"], indent=1))


def reconstruction(
    scenes: Annotated[Path, typer.Argument(help="Pictures: a folder of drawn scenes.")],
    model: Annotated[str, typer.Option(help="The model whose tokenizer it is.")] = DEFAULT_MODEL,
    count: Annotated[int, typer.Option(min=2, help="Pictures, the first ones.")] = 256,
    device: Annotated[str, typer.Option(help="Where they are coded: cpu or cuda.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """How much of real pictures a tokenizer keeps: PSNR, of each and of all pixels together."""
    check_device(device)
    folder, pictures = find_model(model) / "vq", DrawnScenes(scenes, count=count)
    vq = load_vq(folder, device=device)
    rebuilt = Reconstructed(pictures, vq, fingerprint=fingerprint(folder))
    ratios = peak_ratios(pictures, rebuilt)
    found, pooled = mean_estimate(ratios), of_all_pixels(ratios)
    if as_json:
        print(json.dumps({"pictures": count, "psnr": asdict(found), "pooled_psnr": pooled}))
    else:
        print(f"PSNR {found} dB, of all pixels together {pooled:.4g} dB; {count} pictures")


def quality(
    folder: Annotated[Path, typer.Argument(help="Pictures: a folder of images, or drawn scenes.")],
    reference: Annotated[Path, typer.Option(help="Real pictures to measure distances to.")],
    against: Annotated[
        Path | None, typer.Option(help="Pictures of the base at the same prompts and seeds.")
    ] = None,
    floor: Annotated[
        Path | None, typer.Option(help="With --against: more of the base's, of other seeds.")
    ] = None,
    extractor: Annotated[
        str, typer.Option(help=f"Features, separated by commas: {', '.join(EXTRACTORS)}.")
    ] = "efficientnet",
    scorer: Annotated[
        str, typer.Option(help="A caption scorer: its file, or a name such as mini.")
    ] = "",
    model: Annotated[
        str, typer.Option(help="The model whose text encoder the scorer was trained with.")
    ] = DEFAULT_MODEL,
    clip_model: Annotated[str, typer.Option(help="CLIP: an architecture.")] = CLIP_MODEL,
    clip_weights: Annotated[str, typer.Option(help="CLIP: a tag, or a path.")] = CLIP_WEIGHTS,
    hps_weights: Annotated[str, typer.Option(help="HPSv2: path of its weights.")] = "",
    size: Annotated[
        int | None, typer.Option(min=1, help="Bring all pictures to this size first (COCO: 256).")
    ] = None,
    device: Annotated[str, typer.Option(help="Where features are computed.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the tables here as Markdown.")] = None,
) -> None:
    """How good pictures are, against real ones and against the base, with intervals."""
    if floor and not against:
        raise InvalidInput("floor", str(floor), "give --against too")
    check_device(device)
    instruments = make_instruments(
        extractors=extractor,
        model=find_model(model),
        scorer=scorer,
        clip_model=clip_model,
        clip_weights=clip_weights,
        hps_weights=hps_weights,
        device=device,
        progress=show_progress,
    )
    pictures, real = open_pictures(folder, size=size), open_pictures(reference, size=size)
    tables = {
        f"{folder.name}, {len(pictures)} pictures": measure_folder(pictures, real, instruments)
    }
    if against:
        base = open_pictures(against, size=size)
        tables[f"against {against.name}"] = compare(pictures, base, real, instruments)
        if floor:
            again = open_pictures(floor, size=size)
            tables[f"noise floor, {floor.name}"] = noise_floor(base, again, real, instruments)
    show(tables, as_json=as_json, out=out)


def open_pictures(folder: Path, *, size: int | None = None) -> CaptionedSet:
    """Drawn scenes, or a folder of images."""
    if folder.is_dir() and any(folder.glob("images-*.npy")):
        return DrawnScenes(folder)
    return PictureFolder(folder, size=size)


def show(tables: dict[str, dict[str, Estimate]], *, as_json: bool, out: Path | None) -> None:
    text = "\n".join(markdown(found, title) for title, found in tables.items())
    if as_json:
        values = {t: {n: asdict(e) for n, e in found.items()} for t, found in tables.items()}
        print(json.dumps(values))
    else:
        print(text)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text)


def show_progress(done: int, total: int, what: str) -> None:
    """About ten lines each."""
    if done == total or done % max(1, total // 10) < 1:
        console.print(f"{what} {done}/{total}")
