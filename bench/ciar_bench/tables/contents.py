"""What each table compares: rows of methods, and the columns that tell something of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ciar.router import DEFAULT_BUDGET, usual_threshold
from ciar_edge.models import EdgeModel

BUDGETS = (0.30, 0.365, 0.50)
PLACED = 0.3  # of the image in one piece by the cloud, wherever it is sure
PREFIX_RATES = (0.0, 0.03, 0.06, 0.12, 0.2, 0.3)
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
WAVEFRONTS = (3, 4, 5, 6, 8)  # tokens
FLOOR = "base again"


@dataclass(frozen=True)
class Row:
    """label: in the table.  method: see `ciar_bench.methods.make_method`.

    variant: of `ciar_train.variants` that draws it; empty: the model itself.
    """

    label: str
    method: str
    variant: str = ""


# Patterns of names: what was measured depends on the extractors and scorers that are at hand.
QUALITY = (
    "FD-*",
    "FID",
    "F1-*",
    "CMMD*",
    "caption-score",
    "CLIP-*-score",
    "HPSv2",
    "place-top1",
    "object-top5",
    "disagreement",
)


@dataclass(frozen=True, kw_only=True)
class Contents:
    """quality: patterns of names, each with its difference to the base.  costs, routing: names of
    numbers (see `measuring` and `timing`). Those that were not measured are left out.
    sheets: labels of rows whose first 24 pictures are shown.
    """

    title: str
    rows: tuple[Row, ...]
    costs: tuple[str, ...]
    quality: tuple[str, ...] = QUALITY
    routing: tuple[str, ...] = ()
    sheets: tuple[str, ...] = ()


FIGURE_QUALITY = ("FD-*", "FID", "caption-score", "CLIP-*-score", "HPSv2", "object-top5")
FIGURE_LATENCY = "speedup, RTT 20 ms"
DEFAULT_LABEL = "CIAR, default"
MAPPED = (DEFAULT_LABEL, "CIAR, width (ours)", "CIAR, U")

ROUTING = ("AUROC, the draws differ", "AUROC, TV above its median", "risk at 30.0%")
CALLS = ("calls", "decided share")
COSTS = (*CALLS, "round_trips", "uplink_bytes", "downlink_bytes", "positions")
SPEEDUPS = ("speedup", "speedup, RTT 20 ms", "speedup, RTT 20 ms, 10 Mbit/s")
ROUTERS = (
    ("Random", "random"),
    ("evenly spaced", "spaced"),
    ("Entropy-Lens", "entropy"),
    ("SoftmaxCorr, 1 - max p", "softmax-corr"),
    ("SoftmaxCorr, window", "softmax-corr-window"),
    ("U of the publication", "interval-u"),
    ("interval width (ours)", "interval"),
)


def main_table(_: EdgeModel) -> Contents:
    rows = (
        Row("Base AR", "base"),
        Row("EAGLE-1, chain", "eagle-1"),
        Row("EAGLE-2", "eagle-2"),
        Row("LANTERN, delta 0.1", "lantern"),
        Row("LANTERN, delta 0.4", "lantern:delta=0.4"),
        Row("LANTERN++, lambda 5", "lantern++"),
        Row("CoDe, N = 0.3", "code"),
        Row("edge only", "code:share=0"),
        Row("Random", "random"),
        Row("Entropy-Lens", "entropy"),
        Row("SoftmaxCorr, 1 - max p", "softmax-corr"),
        Row("SoftmaxCorr, window", "softmax-corr-window"),
        Row("Discrete, k = 100", "discrete-100"),
        Row("Discrete, k = 300", "discrete-300"),
        Row("Nucleus, k = 100", "nucleus-100"),
        Row("CIAR, U", "interval-u"),
        Row("CIAR, width (ours)", "interval"),
        Row("CIAR, width, no features", 'interval:features="none"'),
        Row("CIAR, exact (ours)", "exact"),
        Row("wavefront, 5 behind", "wavefront:window=5"),
        Row("Jacobi, coupled", "jacobi"),
    )
    return Contents(
        title="All methods",
        rows=rows,
        costs=(*SPEEDUPS, *COSTS),
        sheets=("Base AR", "CIAR, width (ours)"),
    )


def card_table(edge: EdgeModel) -> Contents:
    """What a model's card shows: the base, the default way to draw, two others, and what to compare
    them with.
    """
    usual = at_usual_threshold(edge.router, edge)
    silent = f'{usual}{"," if ":" in usual else ":"}features="none"'
    rows = (
        Row("Base AR", "base"),
        Row(DEFAULT_LABEL, usual),
        Row(f"{DEFAULT_LABEL}, no features", silent),
        Row(f"CIAR, budget {DEFAULT_BUDGET:.0%}", edge.router),
        Row("CIAR, exact (ours)", "exact"),
        Row("Random", "random"),
        Row("CoDe, N = 0.3", "code"),
    )
    return Contents(
        title="The base and CIAR, by default, at a budget and exact",
        rows=rows,
        costs=COSTS,
        sheets=("Base AR", DEFAULT_LABEL),
    )


def uncertainty_table(edge: EdgeModel) -> Contents:
    """Each score at one fixed threshold, and at the same shares of calls; and where the cloud does
    not choose its tokens at all.
    """
    rows = []
    for label, router in ROUTERS:
        if router in edge.calibration:
            rows.append(Row(f"{label}, fixed threshold", at_usual_threshold(router, edge)))
        rows += [Row(f"{label}, {b:.1%}", at_budget(router, b)) for b in BUDGETS]
    rows += [Row(f"first {PLACED:.0%} of the image", f"code:share={PLACED}")]
    rows += [Row(f"last {PLACED:.0%} of the image", f"code:share={PLACED},is_last=true")]
    return Contents(
        title="Scores of uncertainty, at fixed thresholds and at matched calls",
        rows=(Row("Base AR", "base"), *rows),
        costs=CALLS,
    )


def at_usual_threshold(router: str, edge: EdgeModel) -> str:
    quantiles = edge.calibration.get(router)
    return f"{router}:threshold={usual_threshold(quantiles)!r}" if quantiles else router


def at_budget(router: str, budget: float) -> str:
    """The method, by the name that other tables have for it: they share its pictures."""
    return router if budget == DEFAULT_BUDGET else f"{router}:budget={budget}"


def discrete_table(_: EdgeModel) -> Contents:
    found = [("continuous, U", "interval-u"), ("continuous, width (ours)", "interval")]
    found += [(f"discrete, k = {k}", f"discrete-{k}") for k in (100, 300)]
    found += [(f"nucleus, k = {k}", f"nucleus-{k}") for k in (100, 300)]
    return Contents(
        title="Discrete solution sets against the continuous one",
        rows=(Row("Base AR", "base"), *(Row(*pair) for pair in found)),
        costs=(*SPEEDUPS, "edge_ms", *CALLS),
    )


def prefix_table(_: EdgeModel) -> Contents:
    rows = [Row(f"prefix {r:.0%}", f"interval:prefix_rate={r}") for r in PREFIX_RATES]
    return Contents(
        title="Share of the image that the cloud draws first, at the same budget",
        rows=(Row("Base AR", "base"), *rows),
        costs=(*SPEEDUPS, *COSTS),
    )


def threshold_table(_: EdgeModel) -> Contents:
    rows = [Row(f"width > {t}", f"interval:threshold={t}") for t in THRESHOLDS]
    return Contents(
        title="Static thresholds on the width of the intervals",
        rows=(Row("Base AR", "base"), *rows),
        costs=(*SPEEDUPS, *COSTS),
    )


def wavefront_table(_: EdgeModel) -> Contents:
    """By how many tokens a row is behind the row above."""
    rows = [Row(f"base, {c} behind", f"wavefront:window={c}") for c in WAVEFRONTS]
    ours = [Row(f"CIAR, {c} behind", f"interval:wavefront={c}") for c in WAVEFRONTS]
    raster = Row("CIAR, width (ours)", "interval")
    return Contents(
        title="Rows side by side, along a wavefront",
        rows=(Row("Base AR", "base"), *rows, raster, *ours),
        costs=(*SPEEDUPS, *COSTS),
    )


def losses_table(_: EdgeModel) -> Contents:
    """What each part of the loss is for, and of the score, and another layer."""
    trained = [
        ("where all start", "plain"),
        ("anchor", "anchor"),
        ("anchor + KL", "anchor-kl"),
        ("Inter-DRO (publication)", "inter-dro"),
        ("two stages, interval score (ours)", "two-stage"),
        ("two stages, two layers", "two-layers"),
    ]
    scores = [("U", "interval-u"), ("width", "interval")]
    rows = [
        Row(f"{label}; {score}", router, variant)
        for label, variant in trained
        for score, router in scores
    ]
    return Contents(
        title="Losses, scores and depth of the draft",
        rows=(Row("Base AR", "base"), *rows),
        costs=CALLS,
        routing=ROUTING,
    )


TABLES: Mapping[str, Callable[[EdgeModel], Contents]] = {
    "card": card_table,
    "main": main_table,
    "uncertainty": uncertainty_table,
    "discrete": discrete_table,
    "prefix": prefix_table,
    "threshold": threshold_table,
    "wavefront": wavefront_table,
    "losses": losses_table,
}
