"""The commands `ciar-bench certify` and `ciar-bench risk-check`."""

import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from ciar.certificate import (
    CERTIFICATE_FILE,
    Certificate,
    Level,
    Mean,
    Measured,
    check_risk,
    read_certificate,
    sampling_of,
)
from ciar.checkpoint import DEFAULT_MODEL, find_model, read_sampling
from ciar.errors import InvalidInput
from ciar.prefix import DEFAULT_PREFIX_RATE
from ciar.types import SamplingParams
from ciar_bench.certify.losses import Subject, Tally, stacked
from ciar_bench.certify.risk_control import conformal_risk_control, learn_then_test
from ciar_bench.options import ModelOption, PromptSizeOption
from ciar_bench.quality.bootstrap import mean_estimate
from ciar_bench.workload import seeded_prompts
from ciar_cloud.text_features import read_prompts
from ciar_train.sizes import load_size

SHARES = (0.5, 0.4, 0.3, 0.25, 0.21, 0.16, 0.12, 0.08)
LEVELS = (0.02, 0.03, 0.05, 0.075, 0.1, 0.15)
CALIBRATION, CHECK = 3, 4  # seeds of the prompts, and millions of the images' seeds
console = Console(stderr=True)

PromptsOption = Annotated[
    Path | None, typer.Option(help="Prompts from a file, one a line, instead.")
]
ImagesOption = Annotated[int, typer.Option(min=2, help="Images, one a prompt.")]
DeviceOption = Annotated[str, typer.Option(help="cpu or cuda.")]


def certify(
    model: ModelOption = DEFAULT_MODEL,
    size: PromptSizeOption = "mini",
    prompts: PromptsOption = None,
    images: ImagesOption = 256,
    delta: Annotated[
        float, typer.Option(min=1e-6, max=0.5, help="Chance that a level is wrong.")
    ] = 0.05,
    levels: Annotated[
        list[float], typer.Option("--level", help="A risk to certify; several times for several.")
    ] = list(LEVELS),  # noqa: B006
    shares: Annotated[
        list[float],
        typer.Option(
            "--share",
            help="A threshold by the share of tokens above it; several times for several.",
        ),
    ] = list(SHARES),  # noqa: B006
    router: Annotated[str | None, typer.Option(help="The score. Default: the model's.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Default: the model's.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Default: the model's.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Default: the model's.")] = None,
    cfg_scale: Annotated[float | None, typer.Option(help="Default: the model's.")] = None,
    cfg_interval: Annotated[int | None, typer.Option(help="Default: the model's.")] = None,
    prefix_rate: Annotated[
        float, typer.Option(min=0, max=1, help="Share of tokens that the cloud draws first.")
    ] = DEFAULT_PREFIX_RATE,
    work: Annotated[
        Path, typer.Option(help="Folder of what was measured; an interrupted run goes on.")
    ] = Path("runs/certify"),
    device: DeviceOption = "cpu",
) -> None:
    """Measure thresholds, and write which risks they have beside the draft model's weights."""
    for level in levels:
        check_risk(level)
    if not all(0 <= share <= 1 for share in shares):
        raise InvalidInput("share", shares, "give shares from 0 to 1")
    folder = find_model(model)
    given = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "cfg_scale": cfg_scale,
        "cfg_interval": cfg_interval,
    }
    texts, words = choose_prompts(prompts, size, images, seed=CALIBRATION)
    subject = Subject.load(
        folder,
        texts,
        first_seed=CALIBRATION * 1_000_000,
        router=router,
        sampling=over(read_sampling(folder / "cloud"), given),
        prefix_rate=prefix_rate,
        device=device,
    )
    tallies = {
        threshold: subject.measure_once(threshold, work, progress=show_progress)
        for threshold in subject.thresholds(shares)
    }
    certificate = Certificate(
        date=str(datetime.now(UTC).date()),
        target=subject.target_print,
        draft=subject.draft_print,
        router=subject.router,
        sampling=sampling_of(subject.sampling),
        prefix_rate=prefix_rate,
        prompts=words,
        num_images=len(texts),
        delta=delta,
        measured=tuple(measured(threshold, tally) for threshold, tally in tallies.items()),
        levels=certified_levels(tallies, sorted(set(levels)), delta=delta),
    )
    certificate.write(folder / "edge")
    print(certificate_markdown(certificate), end="")
    console.print(f"written: {folder / 'edge' / CERTIFICATE_FILE}")


def risk_check(
    max_risk: Annotated[float, typer.Option(help="As given to ciar-edge generate.")],
    model: ModelOption = DEFAULT_MODEL,
    size: PromptSizeOption = "mini",
    prompts: PromptsOption = None,
    images: ImagesOption = 200,
    device: DeviceOption = "cpu",
) -> None:
    """Draw other images than the certificate's, and say how much of what is kept is wrong.

    The exit code is 1 if the whole interval is above the risk.
    """
    folder = find_model(model)
    certificate = read_certificate(folder / "edge", max_risk=max_risk)
    threshold = certificate.threshold(max_risk)
    texts, words = choose_prompts(prompts, size, images, seed=CHECK)
    subject = Subject.load(
        folder,
        texts,
        first_seed=CHECK * 1_000_000,
        router=certificate.router,
        sampling=SamplingParams(**certificate.sampling),
        prefix_rate=certificate.prefix_rate,
        device=device,
    )
    certificate.check_edge(
        draft=subject.draft_print, router=subject.router, prefix_rate=subject.prefix_rate
    )
    certificate.check_cloud(target=subject.target_print, sampling=subject.sampling)
    found = measured(threshold, subject.measure(threshold, progress=show_progress))
    print(
        f"risk {in_words(found.risk)}, at most {max_risk:g} certified; calls "
        f"{in_words(found.calls)}; threshold {threshold:g}, {words}"
    )
    if found.risk.low > max_risk:
        raise typer.Exit(1)


def choose_prompts(path: Path | None, size: str, count: int, *, seed: int) -> tuple[list[str], str]:
    """So many prompts, and which they are, in words."""
    if path is None:
        return (
            seeded_prompts(load_size(size), count, seed=seed),
            f"{count} seeded prompts of size {size}, seed {seed}",
        )
    found = read_prompts(path)[:count]
    if len(found) < count:
        raise InvalidInput("images", count, f"give at most {len(found)}, or more prompts")
    return found, f"the first {count} prompts of {path.name}"


def over(sampling: SamplingParams, given: dict[str, Any]) -> SamplingParams:
    """What is given, over the model's own."""
    chosen = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(sampling, **chosen)


def measured(threshold: float, tally: Tally) -> Measured:
    return Measured(
        threshold=threshold,
        risk=mean_of(tally.losses),
        calls=mean_of(tally.calls),
        sent=mean_of(tally.sent),
    )


def mean_of(values: Sequence[float]) -> Mean:
    found = mean_estimate(np.array(values))
    return Mean(mean=round(found.value, 6), low=round(found.low, 6), high=round(found.high, 6))


def certified_levels(
    tallies: dict[float, Tally], levels: Sequence[float], *, delta: float
) -> tuple[Level, ...]:
    """tallies: by ascending threshold."""
    losses, thresholds = stacked(list(tallies.values())), [None, *tallies]
    return tuple(
        Level(
            risk=level,
            threshold=thresholds[learn_then_test(losses, level=level, delta=delta)],
            conformal=thresholds[conformal_risk_control(losses, level=level)],
        )
        for level in levels
    )


def certificate_markdown(certificate: Certificate) -> str:
    lines = [
        f"{certificate.num_images} images, score {certificate.router}, delta {certificate.delta:g}",
        "",
        "| threshold | risk | calls | not kept |",
        "| --- | --- | --- | --- |",
        *(
            f"| {row.threshold:g} | {in_words(row.risk)} | {in_words(row.calls)} "
            f"| {in_words(row.sent)} |"
            for row in certificate.measured
        ),
        "",
        "| risk at most | threshold, Learn-then-Test | conformal risk control |",
        "| --- | --- | --- |",
        *(
            f"| {level.risk:g} | {or_none(level.threshold)} | {or_none(level.conformal)} |"
            for level in certificate.levels
        ),
    ]
    return "\n".join(lines) + "\n"


def in_words(share: Mean) -> str:
    return f"{share.mean:.4f} ({share.low:.4f} to {share.high:.4f})"


def or_none(threshold: float | None) -> str:
    return "none" if threshold is None else f"{threshold:g}"


def show_progress(done: int, total: int, what: str) -> None:
    console.print(f"{what} {done}/{total}")
