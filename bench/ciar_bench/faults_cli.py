"""The command `ciar-bench faults`, and what it found as Markdown."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ciar.checkpoint import DEFAULT_MODEL, find_model
from ciar.errors import EngineError, InvalidInput
from ciar_bench.faults import FAULTS, STALL_SECONDS, FaultPlan, Outcome, median, run_faults
from ciar_bench.machine import describe_machine
from ciar_bench.options import ModelOption

DEFAULTS = FaultPlan()


def faults(
    model: ModelOption = DEFAULT_MODEL,
    envoy: Annotated[
        Path, typer.Option(help="The configuration whose addresses are replaced.")
    ] = Path("docker/envoy/envoy.yaml"),
    fault: Annotated[
        list[str], typer.Option(help=f"{', '.join(FAULTS)}; several times for several.")
    ] = list(FAULTS),  # noqa: B006
    edges: Annotated[int, typer.Option(min=1, help="Images at a time.")] = DEFAULTS.edges,
    kills: Annotated[
        int, typer.Option(min=1, help="Of engines, and of replicas.")
    ] = DEFAULTS.kills,
    clients: Annotated[int, typer.Option(min=1, help="Edges to kill.")] = DEFAULTS.clients,
    proxied: Annotated[
        int, typer.Option(min=1, help="Images through the bad proxy.")
    ] = DEFAULTS.proxied,
    out: Annotated[Path | None, typer.Option(help="Write the table here as Markdown.")] = None,
) -> None:
    """Kill, roll, starve and disturb clouds and edges while images are drawn: what is lost?"""
    if not envoy.is_file():
        raise InvalidInput("envoy", str(envoy), "give docker/envoy/envoy.yaml of the repository")
    for name in fault:
        if name not in FAULTS:
            raise InvalidInput("fault", name, f"give one of {', '.join(FAULTS)}")
    console = Console(stderr=True)
    plan = FaultPlan(
        faults=tuple(fault), edges=edges, kills=kills, clients=clients, proxied=proxied
    )
    found = run_faults(find_model(model), envoy.read_text(), plan, progress=console.print)
    text = faults_markdown(found, plan, model=Path(model).name)
    print(text)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text)
    if not all(outcome.is_harmless for outcome in found):
        raise EngineError("images were lost, or their tokens are not those of undisturbed ones")


def faults_markdown(found: Sequence[Outcome], plan: FaultPlan, *, model: str) -> str:
    return "\n".join(lines(found, plan, model)) + "\n"


def lines(found: Sequence[Outcome], plan: FaultPlan, model: str) -> Iterator[str]:
    yield "# Faults"
    yield ""
    yield (
        f"{model}; {describe_machine()}, all processes on it; {datetime.now(UTC).date()}. "
        f"{plan.edges} edges without a draft model draw one image after the other; their tokens "
        "are compared with those of the same seeds drawn undisturbed. Time to recover: the longest "
        f"wait for an answer, of images that waited more than {STALL_SECONDS:g} s for one; a "
        "replica that returns loads its model meanwhile, beside all others on the same cores."
    )
    yield ""
    yield (
        "| fault | injected | images | lost | with other tokens | sessions rebuilt | evictions "
        "| images that waited | time to recover, median | worst |"
    )
    yield "| --- " * 10 + "|"
    for one in found:
        numbers = [one.num_injected, one.num_images, len(one.errors), one.num_unlike]
        numbers += [one.num_resumes, one.num_evictions, len(one.stalls)]
        times = [median(one.stalls), max(one.stalls, default=0.0)]
        cells = [one.fault, *map(str, numbers), *(f"{seconds:.1f} s" for seconds in times)]
        yield "| " + " | ".join(cells) + " |"
    for one in found:
        if one.remark:
            yield ""
            yield f"{one.fault}: {one.remark}."
