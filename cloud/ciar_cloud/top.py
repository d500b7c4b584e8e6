"""`ciar-cloud top`: a cloud at work, in a terminal, from its page of metrics.

Rates are between two looks at the page; a cloud that began anew meanwhile counts from zero.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ciar.metrics import Samples, by_label, read_page, total

P = "ciar_cloud_"
BAR_CHARS = 20
QUANTILES = (0.5, 0.95, 0.99)


@dataclass(frozen=True)
class Look:
    """A page, and the clock time it was read at."""

    samples: Samples
    at: float

    def now(self, name: str, **labels: str) -> float:
        return total(self.samples, P + name, **labels)


@dataclass(frozen=True)
class Window:
    """What happened from one look to another; rates in 1/s."""

    first: Look
    last: Look

    def count(self, name: str, **labels: str) -> float:
        before, after = (look.now(name, **labels) for look in (self.first, self.last))
        return after - before if after >= before else after

    def rate(self, name: str, **labels: str) -> float:
        seconds = self.last.at - self.first.at
        return self.count(name, **labels) / seconds if seconds > 0 else 0.0

    @property
    def call_rate(self) -> float | None:
        """Cloud calls a token, of the images that finished."""
        return share(self.count("image_calls_total"), self.count("image_tokens_total"))

    @property
    def agreement(self) -> float | None:
        accepted = self.count("verified_tokens_total", result="accepted")
        return share(accepted, self.count("verified_tokens_total"))

    def mean(self, name: str) -> float | None:
        return share(self.count(f"{name}_sum"), self.count(f"{name}_count"))

    def quantile(self, name: str, q: float, **labels: str) -> float | None:
        """Of a histogram, linear within a bucket, as Prometheus has it."""
        edges = sorted(
            {float(dict(having)["le"]) for found, having in self.last.samples
             if found == f"{P}{name}_bucket"}
        )  # fmt: skip
        counts = [self.count(f"{name}_bucket", le=label(edge), **labels) for edge in edges]
        if not counts or not counts[-1]:
            return None
        wanted, below, start = q * counts[-1], 0.0, 0.0
        for edge, count in zip(edges, counts, strict=True):
            if count >= wanted and count > below:
                if edge == float("inf"):
                    return start
                return start + (edge - start) * (wanted - below) / (count - below)
            below, start = count, edge
        return start


def share(part: float, whole: float) -> float | None:
    """None of nothing."""
    return part / whole if whole else None


def label(edge: float) -> str:
    """A bucket's edge as the page writes it."""
    return "+Inf" if edge == float("inf") else repr(edge)


def looks(url: str, seconds: float) -> Iterator[Look]:
    """The page, again and again. Raises `CloudUnavailable`."""
    while True:
        yield Look(read_page(url), time.monotonic())
        time.sleep(seconds)


def show(url: str, *, seconds: float, count: int, console: Console) -> None:
    """Until interrupted, or `count` times; 0: no end."""
    pages = looks(url, seconds)
    last, shown = next(pages), 0
    with Live(console=console, auto_refresh=False, transient=False) as live:
        for look in pages:
            live.update(view(url, Window(last, look)), refresh=True)
            last, shown = look, shown + 1
            if shown == count:
                return


def view(url: str, window: Window) -> Group:
    now = window.last.now
    facts = next(
        (dict(having) for name, having in window.last.samples if name == f"{P}build_info"), {}
    )
    is_ready = bool(now("ready"))
    head = Text.assemble(
        ("ready" if is_ready else "NOT READY", "green" if is_ready else "bold red"),
        f"  {facts.get('model', '?')} {facts.get('fingerprint', '')}  "
        f"ciar {facts.get('version', '?')}  {url}",
    )
    return Group(
        head, load_table(window), rates_table(window), seconds_table(window), errors(window)
    )


def load_table(window: Window) -> Table:
    now = window.last.now
    table = grid("now", "", "")
    for name, part, whole in (
        ("slots", now("slots_in_use"), now("slots")),
        ("queue", now("queued_works"), now("queue_limit")),
    ):
        table.add_row(name, f"{part:.0f} of {whole:.0f}", bar(part, whole))
    table.add_row("sessions", f"{now('sessions'):.0f}", "")
    return table


def rates_table(window: Window) -> Table:
    table = grid("images", "", "work", "", "network", "")
    table.add_row(
        *("images/s", number(window.rate("images_total"))),
        *("steps/s", number(window.rate("forwards_total"))),
        *("up, KiB/s", number(window.rate("uplink_bytes_total") / 1024)),
    )
    table.add_row(
        *("cloud calls a token", percent(window.call_rate)),
        *("sessions a step", number(window.mean("batch_size"))),
        *("down, KiB/s", number(window.rate("downlink_bytes_total") / 1024)),
    )
    table.add_row(
        *("agreement", percent(window.agreement)),
        *("positions/s", number(window.rate("positions_total"))),
        *("resumes", number(window.count("image_resumes_total"))),
    )
    table.add_row(
        *("since start", number(window.last.now("images_total"))),
        *("evictions", number(window.count("evictions_total"))),
        *("slow steps", number(window.count("slow_steps_total"))),
    )
    return table


def seconds_table(window: Window) -> Table:
    table = grid("milliseconds", *(f"p{100 * q:g}" for q in QUANTILES))
    rows = {
        "step": ("step_seconds", {}),
        "verify, waiting": ("queue_seconds", {"kind": "verify"}),
        "verify, computing": ("work_seconds", {"kind": "verify"}),
        "prefix, waiting": ("queue_seconds", {"kind": "prefix"}),
        "image at the edge": ("image_seconds", {}),
    }
    for text, (name, labels) in rows.items():
        found = [window.quantile(name, q, **labels) for q in QUANTILES]
        table.add_row(text, *(number(None if v is None else 1000 * v) for v in found))
    return table


def errors(window: Window) -> Text:
    found = by_label(window.last.samples, f"{P}errors_total", "reason")
    listed = ", ".join(f"{reason} {count:.0f}" for reason, count in sorted(found.items()) if count)
    deaths = window.last.now("engine_deaths_total")
    text = f"errors since start: {listed or 'none'}; engine deaths: {deaths:.0f}"
    return Text(text, style="red" if listed or deaths else "dim")


def grid(*heads: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for index, head in enumerate(heads):
        is_number = index > 0 and (head or len(heads) > 3)
        table.add_column(head, justify="right" if is_number else "left", min_width=10)
    return table


def bar(part: float, whole: float) -> Text:
    filled = round(BAR_CHARS * min(1.0, part / whole)) if whole else 0
    style = "red" if filled >= 0.9 * BAR_CHARS else "green"
    return Text.assemble(("█" * filled, style), ("·" * (BAR_CHARS - filled), "dim"))


def number(value: float | None) -> str:
    """Three digits, or all in front of the point."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
