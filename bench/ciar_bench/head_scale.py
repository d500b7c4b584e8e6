"""`ciar-bench head-scale`: what a score costs behind the centre head as codebook and k grow.

    plain               centre logits alone; their ratio says how far the measurement is off
    entropy             of the centre logits
    interval, U         the default score and the publication's, radius of rank 64 or a full matrix
    discrete k          U of the materialised solution set of k codes, radius of rank 64

All run as the edge runs them (`ciar_edge.heads`), down to one float, and a few times in a row, as
an edge does token after token. The plain head reads the weights that rank 64 does, less the radius.

Each is measured against the plain head alone, by turns, and every call of either reads a copy of
the weights that was read last before more than any cache holds. (Of copies that several variants
share, what fewer of them read would be colder.)

    D width   V codebook
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ciar.errors import InvalidInput
from ciar.head_output import HeadOutput
from ciar.int8 import dequantize_rows, quantize_rows
from ciar.models.inter_head import InterHead, InterHeadConfig
from ciar.uncertainty import discrete_uncertainty, entropy, interval_uncertainty, total_width
from ciar_bench.interleaved import Call, Timing, peak_bytes, time_calls
from ciar_bench.machine import cache_bytes
from ciar_edge.heads import PreparedHeads
from ciar_edge.matrix import FloatMatrix, Int8Matrix, Matrix

Weights = Literal["float32", "int8"]
Score = Callable[[HeadOutput], Tensor]
Radius = Literal["rank 64", "full matrix"]

RANKS: Mapping[Radius, int] = {"rank 64": 64, "full matrix": 0}
PLAIN = "plain"
CODE_COUNTS = (10, 30, 100, 300, 1000)


@dataclass(frozen=True, kw_only=True)
class ScalePlan:
    vocab_sizes: tuple[int, ...] = (1024, 4096, 16384, 65536)
    dims: tuple[int, ...] = (1280, 256)
    rounds: int = 30

    def __post_init__(self) -> None:
        for field in ("vocab_sizes", "dims"):
            values = getattr(self, field)
            if not values or min(values) < 2:
                raise InvalidInput(field, values, "give numbers of 2 or more")
        if self.rounds < 1:
            raise InvalidInput("rounds", self.rounds, "give 1 or more")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one variant. Bytes of the weights it reads, and of temporaries at once in a call."""

    timing: Timing
    weight_bytes: int
    peak_bytes: int


@dataclass(frozen=True, kw_only=True)
class ScaleRow:
    """Costs by variant: those of `VARIANTS`, and `discrete k` for every k of `CODE_COUNTS` that the
    codebook has.
    """

    dim: int
    vocab_size: int
    weights: Weights
    costs: dict[str, Cost]


class HeadSet:
    """The heads of a random draft: the centre alone, and with either radius."""

    def __init__(self, prepared: Mapping[Radius, PreparedHeads]) -> None:
        self.prepared = prepared
        centre = prepared["rank 64"]
        self.vocab_size = centre.vocab_size
        self.plain = first_outputs(centre.first, centre.vocab_size)

    def plain_output(self, hidden: Tensor) -> HeadOutput:
        """h [D] -> without radius."""
        return HeadOutput(self.plain(hidden[None])[0].float(), Tensor())

    def output(self, radius: Radius, hidden: Tensor) -> HeadOutput:
        """h [D] -> as the edge makes it."""
        heads = self.prepared[radius]
        centres, codes = heads(hidden[None])
        return heads.outputs(centres, codes, [None])[0]

    def num_bytes(self, radius: Radius | None) -> int:
        """Of weights."""
        if radius is None:
            return num_bytes(self.plain)
        return num_bytes(self.prepared[radius].first) + num_bytes(self.prepared[radius].radius)


def random_heads(dim: int, vocab_size: int, weights: Weights, device: torch.device) -> HeadSet:
    heads = {r: new_head(dim, vocab_size, rank, weights, device) for r, rank in RANKS.items()}
    return HeadSet({radius: PreparedHeads(head) for radius, head in heads.items()})


def new_head(
    dim: int, vocab_size: int, rank: int, weights: Weights, device: torch.device
) -> InterHead:
    """Random weights; for int8 such that int8 rows restore."""
    head = InterHead(dim, vocab_size, InterHeadConfig(radius_width=rank)).to(device)
    for layer in (head.centre, *head.radius_layers):
        weight = torch.randn_like(layer.weight) / math.sqrt(layer.in_features)
        layer.weight.data = dequantize_rows(*quantize_rows(weight)) if weights == "int8" else weight
    return head.requires_grad_(False)


def first_outputs(product: Matrix, count: int) -> Matrix:
    """A product without bias that stops early, of the same memory."""
    found = copy(product)
    if isinstance(found, FloatMatrix):
        found.transposed = found.transposed[:, :count]
    elif isinstance(found, Int8Matrix):
        found.levels, found.scale = found.levels[:count], found.scale[:count]
    return found


def copy_of(heads: HeadSet) -> HeadSet:
    """The same weights in other memory."""
    return HeadSet({radius: copy_of_heads(one) for radius, one in heads.prepared.items()})


def copy_of_heads(heads: PreparedHeads) -> PreparedHeads:
    found = copy(heads)
    found.first, found.radius = copy_of_product(heads.first), copy_of_product(heads.radius)
    return found


def copy_of_product(product: Matrix) -> Matrix:
    assert isinstance(product, FloatMatrix | Int8Matrix)
    bias = None if product.bias is None else product.bias.clone()
    if isinstance(product, FloatMatrix):
        return FloatMatrix(product.transposed.t().clone(), bias)
    return Int8Matrix(product.levels.clone(), product.scale.clone(), bias)


def num_bytes(product: Matrix) -> int:
    return sum(tensor.nbytes for tensor in tensors_of(product))


def tensors_of(product: Matrix) -> list[Tensor]:
    return [value for value in vars(product).values() if isinstance(value, Tensor)]


@dataclass(frozen=True)
class Variant:
    """A score of a head with a radius, or without where `radius` is None."""

    score: Score | None
    radius: Radius | None = None

    def run(self, heads: HeadSet, hidden: Tensor) -> object:
        """One token: h [D] -> the score as a float; without one, the logits."""
        radius = self.radius
        output = heads.output(radius, hidden) if radius else heads.plain_output(hidden)
        return float(self.score(output)) if self.score else output


def discrete(num_codes: int) -> Variant:
    return Variant(partial(discrete_uncertainty, num_codes=num_codes), "rank 64")


VARIANTS: Mapping[str, Variant] = {
    PLAIN: Variant(None),
    "entropy": Variant(entropy),
    "interval, rank 64": Variant(total_width, "rank 64"),
    "U, rank 64": Variant(interval_uncertainty, "rank 64"),
    "interval, full matrix": Variant(total_width, "full matrix"),
    "U, full matrix": Variant(interval_uncertainty, "full matrix"),
}


def variants_of(vocab_size: int) -> dict[str, Variant]:
    counts = [k for k in CODE_COUNTS if k <= vocab_size]
    return {**VARIANTS, **{f"discrete {k}": discrete(k) for k in counts}}


@torch.inference_mode()
def measure_scale(
    plan: ScalePlan, *, progress: Callable[[str], None] = lambda line: None
) -> list[ScaleRow]:
    """A row for every D, kind of weights and V; on the GPU where there is one, else on one core.

    There is no int8 product for a GPU: float32 alone there.
    """
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kinds: tuple[Weights, ...] = ("float32",) if device.type == "cuda" else ("float32", "int8")
    rows = []
    for dim in plan.dims:
        for weights in kinds:
            for vocab_size in plan.vocab_sizes:
                progress(f"D = {dim}, {weights}, V = {vocab_size}")
                copies = cold_copies(dim, vocab_size, weights, device)
                rows.append(measure_row(copies, dim, weights, plan.rounds, device))
                del copies  # before the next ones are made
    return rows


def cold_copies(dim: int, vocab_size: int, weights: Weights, device: torch.device) -> list[HeadSet]:
    """The same heads, so many that the centres of all but two take twice the largest cache."""
    first = random_heads(dim, vocab_size, weights, device)
    others = 1 + math.ceil(2 * cache_bytes(device) / first.num_bytes(None))
    return [first, *(copy_of(first) for _ in range(others))]


def measure_row(
    copies: Sequence[HeadSet], dim: int, weights: Weights, rounds: int, device: torch.device
) -> ScaleRow:
    hidden = torch.randn(dim, device=device)
    costs: dict[str, Cost] = {}
    for name, variant in variants_of(copies[0].vocab_size).items():
        costs[name] = Cost(
            timing=against_plain(variant, copies, hidden, rounds),
            weight_bytes=copies[0].num_bytes(variant.radius),
            peak_bytes=peak_bytes(on_copies(variant, copies, hidden), device),
        )
    return ScaleRow(dim=dim, vocab_size=copies[0].vocab_size, weights=weights, costs=costs)


def against_plain(
    variant: Variant, copies: Sequence[HeadSet], hidden: Tensor, rounds: int
) -> Timing:
    """Every other copy is the plain head's."""
    calls = {
        PLAIN: on_copies(VARIANTS[PLAIN], copies[::2], hidden),
        "variant": on_copies(variant, copies[1::2], hidden),
    }
    return time_calls(calls, PLAIN, rounds=rounds, device=hidden.device)["variant"]


def on_copies(variant: Variant, copies: Sequence[HeadSet], hidden: Tensor) -> Call:
    """Every call with other weights."""
    turns = itertools.cycle(copies)
    return lambda: variant.run(next(turns), hidden)
