"""What the edge runs behind the centre head equals the definition; the bench measures just that."""

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from ciar.errors import InvalidInput
from ciar.head_output import MAX_REACH, HeadOutput, reach_of
from ciar.int8 import dequantize_rows, quantize_rows
from ciar.interval import Interval, interfuse
from ciar.models.inter_head import InterHead, InterHeadConfig
from ciar.uncertainty import interval_uncertainty, total_width
from ciar_bench import cli, head_scale, interleaved, machine
from ciar_bench.head_scale import (
    VARIANTS,
    HeadSet,
    ScalePlan,
    ScaleRow,
    Variant,
    against_plain,
    cold_copies,
    discrete,
    measure_scale,
    random_heads,
    tensors_of,
    variants_of,
)
from ciar_bench.head_scale_table import scale_markdown
from ciar_bench.interleaved import IN_A_ROW, peak_bytes, summarize, time_calls
from ciar_edge.heads import KernelOutput, PreparedHeads
from ciar_edge.matrix import Int8Matrix

D = 32


def new_head(vocab_size: int, *, radius_width: int = 8, scale: float = 1.0) -> InterHead:
    """Random weights; centre logits and raw radii of about `scale` and 2 standard deviations."""
    torch.manual_seed(vocab_size)
    head = InterHead(D, vocab_size, InterHeadConfig(radius_width=radius_width))
    torch.nn.init.normal_(head.centre.weight, std=scale / math.sqrt(D))
    for layer in head.radius_layers:
        torch.nn.init.normal_(layer.weight, std=2 / math.sqrt(layer.in_features))
    return head.requires_grad_(False)


def hidden() -> Tensor:
    return torch.randn(D, generator=torch.Generator().manual_seed(1))


def prepared_output(head: InterHead) -> HeadOutput:
    heads = PreparedHeads(head)
    return heads.outputs(*heads(hidden()[None]), [None])[0]


def assert_equal(output: HeadOutput, interval: Interval) -> None:
    """Bounds and both scores, relatively where they are not tiny.

    In torch 1 - p of a code above one half is right to roundings of 1, and its width a multiple of
    that; a kernel has it exactly.
    """
    for name in ("mid", "lower", "upper"):
        found, expected = getattr(output, name), getattr(interval, name)
        torch.testing.assert_close(found, expected, rtol=3e-4, atol=1e-7)
    is_over = output.mid > 0.5
    slack = float((is_over * output.radius.exp()).max()) * 2e-6  # 0 where there is none
    slack, least = (0.0, 1e-37) if isinstance(output, KernelOutput) else (slack, 0.0)
    found, expected = output.width, interval.width
    torch.testing.assert_close(found[~is_over], expected[~is_over], rtol=3e-4, atol=1e-7)
    torch.testing.assert_close(found[is_over], expected[is_over], rtol=3e-4, atol=1e-7 + slack)
    width = interval.width.double()
    total, spread = float(width.sum()), float(width.std(correction=0))
    assert float(total_width(output)) == pytest.approx(total, rel=1e-4, abs=slack)
    slack = slack * (spread + total / math.sqrt(len(width))) + least  # U may be below float32's
    assert float(interval_uncertainty(output)) == pytest.approx(total * spread, rel=1e-4, abs=slack)


@pytest.mark.parametrize("vocab_size", [64, 1024, 16384])
@pytest.mark.parametrize("radius_width", [0, 8])
@pytest.mark.parametrize("scale", [0.1, 3.0, 60.0])
@pytest.mark.parametrize("has_kernel", [True, False])
def test_prepared_heads_are_interfuse(
    vocab_size: int,
    radius_width: int,
    scale: float,
    has_kernel: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not has_kernel:
        monkeypatch.setattr("ciar_edge.heads.interval_kernel", lambda: None)
    head = new_head(vocab_size, radius_width=radius_width, scale=scale)
    assert_equal(prepared_output(head), interfuse(*head(hidden())))


@pytest.mark.parametrize("vocab_size", [64, 1024, 16384])
@pytest.mark.parametrize("gap", [0.0, 20.0, 60.0, 1000.0])
def test_one_logit_far_above_the_others(vocab_size: int, gap: float) -> None:
    """max p rounds to 1 from a gap of 17 on; what is left of it still counts."""
    centre = torch.zeros(vocab_size)
    centre[vocab_size // 2] = gap
    radius = torch.rand(vocab_size, generator=torch.Generator().manual_seed(2)) * 6
    assert_equal(HeadOutput(centre, reach_of(radius)), interfuse(centre, radius))


@pytest.mark.parametrize("vocab_size", [64, 16384])
def test_impossible_codes_and_two_of_the_same_chance(vocab_size: int) -> None:
    centre = torch.full((vocab_size,), -torch.inf)
    centre[:2] = 3.0
    radius = torch.full((vocab_size,), 2.0)
    output = HeadOutput(centre, reach_of(radius))
    assert_equal(output, interfuse(centre, radius))
    assert float(output.width[2:].sum()) == 0.0
    assert float(output.doubt) == pytest.approx(0.5)


@pytest.mark.parametrize("radius_width", [0, 32])
def test_int8_heads_are_right_to_bfloat16(radius_width: int) -> None:
    head = new_head(256, radius_width=radius_width)
    for layer in (head.centre, *head.radius_layers):
        layer.weight.copy_(dequantize_rows(*quantize_rows(layer.weight)))
    prepared = PreparedHeads(head)
    assert isinstance(prepared.first, Int8Matrix) and isinstance(prepared.radius, Int8Matrix)
    output, (centre, radius) = prepared_output(head), head(hidden())
    torch.testing.assert_close(output.centre, centre, rtol=0.0, atol=0.03)
    torch.testing.assert_close(output.radius, radius, rtol=0.0, atol=0.06)


def test_a_radius_without_bound_stays_below_a_reach_of_one() -> None:
    config = InterHeadConfig(radius_width=8, max_radius=60.0)
    head = InterHead(D, 64, config).requires_grad_(False)
    head.radius_up.bias.fill_(50.0)
    output = prepared_output(head)
    assert float(output.reach.min()) == float(output.reach.max()) == MAX_REACH
    assert math.isfinite(float(total_width(output)))


CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def caches_are_small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head_scale, "cache_bytes", lambda device: 2**15)
        yield


@pytest.fixture(scope="module")
def rows() -> list[ScaleRow]:
    return measure_scale(ScalePlan(vocab_sizes=(64, 256), dims=(32,), rounds=2))


def test_every_variant_is_measured_for_every_size(rows: list[ScaleRow]) -> None:
    assert [(r.dim, r.weights, r.vocab_size) for r in rows] == [
        (32, weights, size) for weights in ("float32", "int8") for size in (64, 256)
    ]
    for row in rows:
        codes = {f"discrete {k}" for k in (10, 30, 100) if k <= row.vocab_size}
        assert set(row.costs) == {*VARIANTS, *codes}
        for cost in row.costs.values():
            timing = cost.timing
            assert timing.seconds > 0 and timing.least <= timing.ratio <= timing.largest


def test_bytes_of_weights(rows: list[ScaleRow]) -> None:
    """V = 256, D = 32: a centre, a radius of rank 64 with bias, or one of one matrix with bias."""
    floats = rows[1].costs
    assert floats["plain"].weight_bytes == floats["entropy"].weight_bytes == 4 * 256 * 32
    assert floats["U, rank 64"].weight_bytes == 4 * (256 * (32 + 64 + 1) + 64 * 32)
    assert floats["U, full matrix"].weight_bytes == 4 * 256 * (2 * 32 + 1)
    assert rows[3].costs["plain"].weight_bytes == 256 * (32 + 2)  # int8 rows, bfloat16 scales


def test_a_materialised_set_needs_the_memory_of_its_square(rows: list[ScaleRow]) -> None:
    costs = rows[1].costs
    assert costs["plain"].peak_bytes < costs["interval, rank 64"].peak_bytes
    assert costs["discrete 100"].peak_bytes >= 4 * 100 * 101


def test_variants_compute_what_they_are_called() -> None:
    heads = random_heads(32, 256, "float32", CPU)
    for radius in ("rank 64", "full matrix"):
        width = heads.output(radius, hidden()).width.double()
        total, spread = float(width.sum()), float(width.std(correction=0))
        found = VARIANTS[f"interval, {radius}"].run(heads, hidden())
        assert found == pytest.approx(total, rel=1e-4)
        found = VARIANTS[f"U, {radius}"].run(heads, hidden())
        assert found == pytest.approx(total * spread, rel=1e-4)
    variants = variants_of(256)
    assert variants["discrete 100"].run(heads, hidden()) == discrete(100).run(heads, hidden())
    assert variants["discrete 100"].run(heads, hidden()) != discrete(30).run(heads, hidden())


@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_copies_are_not_in_a_cache_when_their_turn_comes_again(
    weights: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of centres alone twice the cache lies between two calls of the same copy."""
    monkeypatch.setattr(head_scale, "cache_bytes", lambda device: 2**20)
    copies = cold_copies(D, 256, weights, CPU)
    size = copies[0].num_bytes(None)
    assert (len(copies) - 3) * size < 2**21 <= (len(copies) - 2) * size
    addresses = {address for heads in copies for address in addresses_of(heads)}
    assert len(addresses) == len(copies) * len(addresses_of(copies[0]))
    assert all(copy.num_bytes("rank 64") == copies[0].num_bytes("rank 64") for copy in copies)
    found = [VARIANTS["U, rank 64"].run(heads, hidden()) for heads in copies]
    assert found == [found[0]] * len(copies)


def addresses_of(heads: HeadSet) -> set[int]:
    """Of all that its products read."""
    products = [p for one in heads.prepared.values() for p in (one.first, one.radius)]
    return {tensor.data_ptr() for product in products for tensor in tensors_of(product)}


def test_every_call_of_a_pair_has_other_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_scale, "cache_bytes", lambda device: 2**20)
    copies = cold_copies(D, 256, "float32", CPU)
    number = {id(heads): index for index, heads in enumerate(copies)}
    seen: dict[bool, list[int]] = {True: [], False: []}

    def run(variant: Variant, heads: HeadSet, hidden: Tensor) -> None:
        seen[variant.score is None].append(number[id(heads)])

    monkeypatch.setattr(Variant, "run", run)
    against_plain(VARIANTS["U, rank 64"], copies, hidden(), 5)
    for is_plain, first in ((True, 0), (False, 1)):
        own = list(range(first, len(copies), 2))
        assert seen[is_plain] == (own * IN_A_ROW * 6)[: IN_A_ROW * 6]  # the warm-up too


def test_the_largest_cache_of_a_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CACHES", tmp_path)
    assert machine.cache_bytes(CPU) == 64 * 2**20
    for index, size in enumerate(("48K", "2048K", "491520K")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(f"{size}\n")
    assert machine.cache_bytes(CPU) == 480 * 2**20


def test_ratios_are_of_the_same_round() -> None:
    reference = [1.0, 2.0, 4.0]
    timing = summarize([3.0, 6.0, 8.0], reference)
    assert (timing.seconds, timing.ratio, timing.least, timing.largest) == (6.0, 3.0, 2.0, 3.0)


def test_the_tenth_of_rounds_at_either_end_is_left_out() -> None:
    ratios = [100.0, *[float(i) for i in range(2, 10)], 0.01]
    timing = summarize(ratios, [1.0] * 10)
    assert (timing.least, timing.largest) == (2.0, 9.0)


def test_every_round_calls_all_in_an_order_of_its_own() -> None:
    called: list[str] = []
    names = "abcd"
    calls = {name: lambda name=name: called.append(name) for name in names}
    time_calls(calls, "a", rounds=5, device=CPU)
    assert len(called) == 6 * 4 * IN_A_ROW  # the warm-up too
    firsts = called[::IN_A_ROW]
    assert called == [name for name in firsts for _ in range(IN_A_ROW)]
    orders = ["".join(firsts[i : i + 4]) for i in range(0, len(firsts), 4)]
    assert {"".join(sorted(order)) for order in orders} == {names}
    assert len(set(orders)) > 1


def test_the_first_call_of_a_row_and_an_outlier_do_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken = [9.0, 2.0, 1.0, 8.0]
    assert len(taken) == IN_A_ROW
    turns = itertools.cycle(taken)
    monkeypatch.setattr(interleaved, "seconds_of", lambda call, device: next(turns))
    assert time_calls({"a": print}, "a", rounds=2, device=CPU)["a"].seconds == 2.0


def test_peak_bytes_are_those_held_at_once() -> None:
    def three_of_which_two_at_once() -> None:
        first = torch.ones(1000)
        second = first + 1
        del first
        second.exp()

    assert 2 * 4000 <= peak_bytes(three_of_which_two_at_once, CPU) < 3 * 4000


@pytest.mark.parametrize(
    ("change", "field"),
    [({"vocab_sizes": ()}, "vocab_sizes"), ({"dims": (1,)}, "dims"), ({"rounds": 0}, "rounds")],
)
def test_a_plan_that_cannot_be(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput, match=field):
        ScalePlan(**change)


def test_the_command_prints_and_writes_tables(tmp_path: Path) -> None:
    out = tmp_path / "new" / "scale.md"
    options = ["head-scale", "--vocab-size", "64", "--dim", "32", "--rounds", "1"]
    result = CliRunner().invoke(cli.app, [*options, "--out", str(out)])
    assert result.exit_code == 0, result.output
    text = out.read_text()
    for part in ("1 thread", "torch ", "D = 32, float32", "D = 32, int8", "| U, rank 64 | "):
        assert part in text and part in result.output
    result = CliRunner().invoke(cli.app, [*options, "--json"])
    assert len(json.loads(result.stdout)["rows"]) == 2


@pytest.mark.parametrize(
    ("kernel", "means"), [(None, "in torch"), (print, "by the compiled kernel")]
)
def test_the_heading_says_what_computed_the_intervals(
    rows: list[ScaleRow], kernel: Any, means: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ciar_bench.head_scale_table.interval_kernel", lambda: kernel)
    assert f"intervals {means};" in scale_markdown(rows, ScalePlan())


def test_a_k_that_a_codebook_lacks_is_an_empty_cell(rows: list[ScaleRow]) -> None:
    text = scale_markdown(rows, ScalePlan(rounds=2))
    line = next(x for x in text.splitlines() if x.startswith("| discrete 100 |"))
    assert line.split("|")[2].strip() == "" and line.split("|")[3].strip() != ""
