"""A table as Markdown for people and as CSV for programs."""

import csv
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from ciar_bench.quality.bootstrap import Estimate

PAIRED, RATIO = " - base", " / base"
PERCENT = ("calls", "decided share", "disagreement", "place-top1", "object-top5")
RISK = "risk at "
KIB = ("uplink_bytes", "downlink_bytes")
HEADS = {
    "speedup": "speed-up",
    "speedup, RTT 20 ms": "speed-up, RTT 20 ms",
    "speedup, RTT 20 ms, 10 Mbit/s": "speed-up, RTT 20 ms, 10 Mbit/s",
    "edge_ms": "edge, ms a token",
    "decided share": "decided by the cloud",
    "round_trips": "round trips",
    "uplink_bytes": "up, KiB",
    "downlink_bytes": "down, KiB",
    "positions": "cloud positions",
    "disagreement": "tokens unlike the base's",
}

Numbers = Mapping[str, Estimate]


def columns_of(rows: Sequence[tuple[str, Numbers]], wanted: Sequence[str]) -> list[str]:
    """Those of the wanted that some row has."""
    return [name for name in wanted if any(name in numbers for _, numbers in rows)]


def paired_name(name: str) -> str:
    """Of the comparison with the base: a ratio for Frechet distances, else a difference."""
    return f"{name}{RATIO if name == 'FID' or name.startswith('FD-') else PAIRED}"


def matching(rows: Sequence[tuple[str, Numbers]], patterns: Sequence[str]) -> list[str]:
    """Names that some row has, in the order of the patterns they match; no comparisons."""
    names = sorted({name for _, numbers in rows for name in numbers if " " not in name})
    return [name for pattern in patterns for name in names if fnmatchcase(name, pattern)]


def quality_columns(rows: Sequence[tuple[str, Numbers]], patterns: Sequence[str]) -> list[str]:
    """What matches, each followed by its comparison with the base where there is one."""
    wanted = [column for name in matching(rows, patterns) for column in (name, paired_name(name))]
    return columns_of(rows, wanted)


def markdown_table(rows: Sequence[tuple[str, Numbers]], wanted: Sequence[str]) -> str:
    """rows: label and numbers; those that have none of them are left out."""
    columns = columns_of(rows, wanted)
    lines = [
        "| " + " | ".join(["", *(HEADS.get(name, name) for name in columns)]) + " |",
        "|" + " --- |" * (len(columns) + 1),
    ]
    for label, numbers in rows:
        if not numbers.keys() & set(columns):
            continue
        cells = [shown(name, numbers.get(name)) for name in columns]
        lines.append("| " + " | ".join([label, *cells]) + " |")
    return "\n".join(lines) + "\n"


def shown(name: str, found: Estimate | None) -> str:
    if found is None:
        return ""
    is_share = name.removesuffix(PAIRED) in PERCENT or name.startswith(RISK)
    scale = 100 if is_share else 1 / 1024 if name in KIB else 1
    values = [scale * x for x in (found.value, found.low, found.high)]
    digits = digits_of(values[0])
    value, low, high = (f"{x:.{digits}f}" for x in values)
    unit = "" if not is_share else " points" if name.endswith(PAIRED) else " %"
    return f"{value}{unit}" if low == high else f"{value}{unit} ({low} to {high})"


def digits_of(value: float) -> int:
    """Behind the point, for about three that count."""
    size = abs(value)
    return 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3


def write_csv(path: Path, rows: Sequence[tuple[str, Numbers]], wanted: Sequence[str]) -> None:
    """Every number with the ends of its interval, unscaled: the wanted, then what else there is.

    Six digits, more than any of these intervals is sure of.
    """
    columns = columns_of(rows, wanted)
    columns += sorted({name for _, numbers in rows for name in numbers}.difference(columns))
    with path.open("w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(["method", *(f"{n}{end}" for n in columns for end in ("", " low", " high"))])
        for label, numbers in rows:
            values = [label]
            for name in columns:
                found = numbers.get(name)
                ends = (found.value, found.low, found.high) if found else ()
                values += [f"{end:.6g}" for end in ends] or [""] * 3
            out.writerow(values)
