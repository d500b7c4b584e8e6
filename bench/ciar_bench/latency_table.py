"""What `ciar-bench latency` found, on a terminal or as Markdown."""

from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.table import Column, Table

from ciar_bench.latency import LatencyPlan
from ciar_bench.latency_report import FAR, CellReport, Spread
from ciar_bench.machine import describe_machine


def number(digits: int, *, unit: str = "", scale: float = 1.0) -> Callable[[Spread], str]:
    return lambda value: f"{value.median * scale:.{digits}f}{unit}"


def ranged(value: Spread) -> str:
    return f"{value.median:#.3g} ({value.least:#.3g} to {value.largest:#.3g})"


PERCENT = number(1, unit=" %", scale=100)
MILLISECONDS = number(2, unit=" ms", scale=1e3)
KIB = number(1, unit=" KiB", scale=1 / 1024)
ROWS: tuple[tuple[str, str, Callable[[Spread], str]], ...] = (  # of the names in `measures`
    ("an image", "seconds", number(3, unit=" s")),
    ("the model's", "model_seconds", number(3, unit=" s")),
    ("model / measured", "model_ratio", ranged),
    ("base / this", "base_ratio", ranged),
    ("blocking / this", "blocking_ratio", ranged),
    ("optimistic / this", "optimistic_ratio", ranged),
    ("forwards a token", "cloud_forwards", number(3)),
    ("positions a token", "cloud_positions", number(2)),
    ("round trips", "round_trips", number(0)),
    ("r", "protocol_seconds", MILLISECONDS),
    ("u", "uncertain", PERCENT),
    ("a", "agreed", PERCENT),
    ("taken back", "late", PERCENT),
    ("drafts", "drafts", number(0)),
    ("edge", "edge_seconds", number(3, unit=" s")),
    ("edge / blocking's", "edge_blocking_ratio", ranged),
    ("e", "draft_seconds", MILLISECONDS),
    ("e / C(1)", "draft_step_ratio", ranged),
    ("uplink", "uplink_bytes", KIB),
    ("downlink", "downlink_bytes", KIB),
)
LEGEND = (
    "Forwards and positions are the cloud's. r: a round trip without the cloud's queue and "
    "compute. u: tokens behind the prefix that are uncertain; a: those of them, if the edge had "
    "drafted them, that the cloud agrees with; taken back: kept tokens. Edge: draft model, router "
    "and features, in vain or not; e: these a draft. C(k): a cloud forward over k new positions. "
    "The model: the same tokens in a discrete-event model, from e, C(k) and r alone."
)


def rows(cell: CellReport) -> Iterator[list[str]]:
    """A name, and a value for each method."""
    for name, key, write in ROWS:
        values = [found.get(key) for found in cell.methods.values()]
        if any(values):
            yield [name, *(write(value) if value else "" for value in values)]


def about(cell: CellReport) -> str:
    """What does not belong to one method."""
    parts = []
    for k, seconds in cell.cloud_step.items():
        ratio = cell.step_ratios.get(k)
        more = f" ({ratio.median:.2f} C(1))" if ratio else ""
        parts.append(f"C({k}) {1e3 * seconds.median:.2f} ms{more}")
    text = ", ".join(parts) + "."
    if cell.equal_images is not None:
        text += (
            " Exact has the tokens of the base, and optimistic those of blocking, in "
            f"{cell.equal_images:.0%} of the pairs."
        )
    if cell.late is not None:
        text += (
            f" Late: {cell.late.taken_back:.2f} kept tokens an image are taken back; "
            f"{cell.late.far:.2f} are left that fall short by more than {FAR:g} nats."
        )
    return text


def show(cells: Sequence[CellReport], title: str) -> None:
    screen = Console()
    for cell in cells:
        name = Column(no_wrap=True)
        table = Table(name, *cell.methods, title=f"{title}, {cell.link} ({cell.carrier})")
        for row in rows(cell):
            table.add_row(*row)
        screen.print(table)
        screen.print(about(cell))


def markdown(cells: Sequence[CellReport], title: str, plan: LatencyPlan) -> str:
    return "\n".join(lines(cells, title, plan)) + "\n"


def lines(cells: Sequence[CellReport], title: str, plan: LatencyPlan) -> Iterator[str]:
    yield f"# {title}"
    yield ""
    yield (
        f"{describe_machine()}; cloud in float32, edge in int8 where its file is; {plan.rounds} "
        f"images of seeded prompts, {routing(plan)}. Medians, in brackets the 10th and 90th "
        f"percentile of ratios within a round. {LEGEND}"
    )
    if len(cells) > 1:
        yield ""
        yield from over_links(cells)
    for cell in cells:
        yield ""
        yield f"## {cell.link} ({cell.carrier})"
        yield ""
        yield about(cell)
        yield ""
        yield f"| | {' | '.join(cell.methods)} |"
        yield "| --- " * (1 + len(cell.methods)) + "|"
        for row in rows(cell):
            yield f"| {' | '.join(row)} |"


def over_links(cells: Sequence[CellReport]) -> Iterator[str]:
    """An image by every method, link by link."""
    yield f"| seconds (base / this) | {' | '.join(cells[0].methods)} |"
    yield "| --- " * (1 + len(cells[0].methods)) + "|"
    for cell in cells:
        values = []
        for found in cell.methods.values():
            ratio = found.get("base_ratio")
            more = f" ({ratio.median:.2f})" if ratio else ""
            values.append(f"{found['seconds'].median:.3f}{more}")
        yield f"| {cell.link} | {' | '.join(values)} |"


def routing(plan: LatencyPlan) -> str:
    waves = f"; wavefronts of {plan.wavefront}" if any(map(plan.wavefront_of, plan.methods)) else ""
    return asking(plan) + waves


def asking(plan: LatencyPlan) -> str:
    if plan.share is not None:
        return f"{plan.share:.0%} of the tokens routed at random"
    if plan.threshold is not None:
        return f"the model's router at a static threshold of {plan.threshold:g}"
    if plan.budget is not None:
        return f"the model's router at a budget of {plan.budget:g}"
    return "the model's router at its usual threshold"
