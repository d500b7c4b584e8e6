"""The compiled intervals equal their definition, and nobody needs them."""

import itertools
import logging
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ciar.head_output import MAX_REACH, HeadOutput
from ciar.models.inter_head import InterHead, InterHeadConfig
from ciar.uncertainty import TENSOR_SCORES, entropy, interval_uncertainty, total_width
from ciar_edge.heads import KernelOutput, PreparedHeads
from ciar_edge.kernel import SOURCE, IntervalKernel, interval_kernel

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


@pytest.fixture
def kernel() -> IntervalKernel:
    found = interval_kernel()
    assert found is not None
    return found


def random_rows(
    num_codes: int, *, num_tokens: int = 1, scale: float = 3.0
) -> tuple[Tensor, Tensor]:
    """Centre logits and raw reaches, [num_tokens, num_codes]."""
    torch.manual_seed(num_codes)
    centre, raw = torch.randn(2, num_tokens, num_codes)
    return centre * scale, raw * 3


def expected_parts(centre: Tensor, raw: Tensor, max_reach: float) -> tuple[Tensor, ...]:
    """t, p and widths in float64; 1 - p of a code above one half is the sum of the others."""
    t = raw.double().sigmoid().clamp(max=max_reach)
    p = centre.double().softmax(-1)
    others = p.masked_fill(p > 0.5, 0.0).sum(-1, keepdim=True)
    q = p * torch.where(p > 0.5, others, 1 - p)
    return t, p, 4 * t * q / (1 - t * t + 4 * t * t * q)


def assert_right(
    kernel: IntervalKernel, centre: Tensor, raw: Tensor, max_reach: float = 0.99
) -> None:
    t, p, width = expected_parts(centre, raw, max_reach)
    found = kernel(centre, raw.clone(), max_reach)
    mid_width = found.mid_width.double()
    torch.testing.assert_close(found.reach.double(), t, rtol=1e-6, atol=1e-37)
    torch.testing.assert_close(mid_width[0], p, rtol=1e-5, atol=1e-37)
    torch.testing.assert_close(mid_width[1], width, rtol=2e-5, atol=1e-35)
    total, spread = found.total_spread.double().unbind(1)
    torch.testing.assert_close(total, width.sum(-1), rtol=1e-5, atol=0.0)
    torch.testing.assert_close(spread, width.std(-1, correction=0), rtol=1e-5, atol=1e-19)


@needs_compiler
@pytest.mark.parametrize("num_codes", [2, 7, 64, 1000, 16384])
@pytest.mark.parametrize("scale", [0.0, 1.0, 8.0, 30.0])
def test_intervals_are_right(kernel: IntervalKernel, num_codes: int, scale: float) -> None:
    assert_right(kernel, *random_rows(num_codes, scale=scale))


@needs_compiler
@pytest.mark.parametrize("num_codes", [2, 64, 1000])
@pytest.mark.parametrize("gap", [5.0, 20.0, 60.0, 86.0])
def test_what_is_left_beside_a_sure_code_counts(
    kernel: IntervalKernel, num_codes: int, gap: float
) -> None:
    """Its p rounds to 1 from a gap of 17 on, and its width is exact all the same."""
    centre, raw = random_rows(num_codes, scale=0.0)
    centre[0, num_codes // 2] = gap
    assert_right(kernel, centre, raw)


@needs_compiler
def test_codes_that_cannot_be_have_no_width(kernel: IntervalKernel) -> None:
    centre, raw = random_rows(64)
    centre[0, 5:] = -torch.inf
    assert_right(kernel, centre, raw)
    assert not kernel(centre, raw.clone(), 0.99).mid_width[:, 0, 5:].any()
    centre[0] = -torch.inf
    centre[0, 3] = 7.0
    assert kernel(centre, raw.clone(), 0.99).total_spread.tolist() == [[0.0, 0.0]]


@needs_compiler
def test_two_codes_that_share_the_top(kernel: IntervalKernel) -> None:
    centre, raw = random_rows(64)
    centre[0, [3, 40]] = 50.0
    assert_right(kernel, centre, raw)


@needs_compiler
@pytest.mark.parametrize("size", [0.0, 20.0, 80.0, 100.0, torch.inf])
def test_any_radius(kernel: IntervalKernel, size: float) -> None:
    centre, raw = random_rows(64, scale=1.0)
    raw = raw.sign() * size
    found = kernel(centre, raw.clone(), MAX_REACH)
    t = raw.double().sigmoid().clamp(max=MAX_REACH)
    torch.testing.assert_close(found.reach.double(), t, rtol=1e-6, atol=2e-38)
    width = found.mid_width[1]
    assert bool(((width >= 0) & (width <= 1)).all())


@needs_compiler
def test_what_is_no_number_is_seen(kernel: IntervalKernel) -> None:
    for part in (0, 1):
        rows = random_rows(64)
        rows[part][0, 9] = torch.nan
        assert bool(kernel(*rows, 0.99).total_spread.isnan().all())


@needs_compiler
def test_tokens_do_not_see_each_other(kernel: IntervalKernel) -> None:
    """Rows may lie apart, as those of a product with more outputs."""
    centre, raw = random_rows(200, num_tokens=4)
    apart = torch.cat([centre, torch.full((4, 9), 1e9)], dim=1)[:, :200]
    found = kernel(apart, raw.clone(), 0.99)
    for row in range(4):
        alone = kernel(centre[row : row + 1], raw[row : row + 1].clone(), 0.99)
        assert torch.equal(found.reach[row], alone.reach[0])
        assert torch.equal(found.mid_width[:, row], alone.mid_width[:, 0])
        assert torch.equal(found.total_spread[row], alone.total_spread[0])
    assert torch.equal(apart, centre), "the logits stay"


Change = Callable[[Tensor], Tensor]


def same(rows: Tensor) -> Tensor:
    return rows


@needs_compiler
@pytest.mark.parametrize(
    ("of_centre", "of_raw"),
    [
        (Tensor.double, same),
        (same, Tensor.half),
        (lambda rows: rows[:, :8], same),
        (lambda rows: rows.t().contiguous().t(), same),
        (same, lambda rows: rows.t().contiguous().t()),
    ],
)
def test_other_memory_is_refused(kernel: IntervalKernel, of_centre: Change, of_raw: Change) -> None:
    centre, raw = random_rows(16, num_tokens=2)
    with pytest.raises(AssertionError):
        kernel(of_centre(centre), of_raw(raw), 0.99)


def new_heads(radius_width: int) -> PreparedHeads:
    torch.manual_seed(1)
    head = InterHead(32, 64, InterHeadConfig(radius_width=radius_width)).requires_grad_(False)
    torch.nn.init.normal_(head.centre.weight, std=0.5)
    for layer in head.radius_layers:
        torch.nn.init.normal_(layer.weight, std=0.5)
    return PreparedHeads(head)


@pytest.fixture(params=[0, 8])
def heads(request: pytest.FixtureRequest) -> PreparedHeads:
    return new_heads(request.param)


def outputs_of(heads: PreparedHeads, *, has_kernel: bool, count: int = 3) -> list[HeadOutput]:
    heads.kernel = interval_kernel() if has_kernel else None
    hidden = torch.randn(count, 32, generator=torch.Generator().manual_seed(2))
    return heads.outputs(*heads(hidden), tokens=[5, None, 7][:count])


NAMES = ("reach", "mid", "width", "total", "spread")


@needs_compiler
@pytest.mark.parametrize("first", NAMES)
def test_with_and_without_kernel_heads_are_the_same(heads: PreparedHeads, first: str) -> None:
    """Whichever part is asked for first."""
    pairs = zip(
        outputs_of(heads, has_kernel=True), outputs_of(heads, has_kernel=False), strict=True
    )
    for found, expected in pairs:
        assert isinstance(found, KernelOutput) and type(expected) is HeadOutput
        assert torch.equal(found.token, expected.token)
        for name in (first, *NAMES, "lower", "upper", "rest", "doubt", "radius"):
            parts = getattr(found, name), getattr(expected, name)
            torch.testing.assert_close(*parts, rtol=1e-4, atol=1e-7, msg=name)
        for name, score in TENSOR_SCORES.items():
            values = float(score(found)), float(score(expected))
            assert values[0] == pytest.approx(values[1], rel=1e-4), name


@needs_compiler
def test_a_run_is_made_once_and_only_if_need_be(
    heads: PreparedHeads, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    run = IntervalKernel.__call__

    def counted(*args):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        return run(*args)

    monkeypatch.setattr(IntervalKernel, "__call__", counted)
    outputs = outputs_of(heads, has_kernel=True)
    assert [entropy(head) for head in outputs] and calls == 0
    assert not any(head.has("reach") for head in outputs) and all(h.has("mid") for h in outputs)
    for score, head in itertools.product((total_width, interval_uncertainty), outputs):
        score(head)
    assert calls == 1 and all(head.has("reach") for head in outputs)


@needs_compiler
@pytest.mark.parametrize("is_scored", [True, False])
def test_heads_of_a_run_are_stacked(heads: PreparedHeads, is_scored: bool) -> None:
    outputs = outputs_of(heads, has_kernel=True)
    if is_scored:
        total_width(outputs[0])
    expected = outputs_of(heads, has_kernel=False)
    reach = torch.stack([head.reach for head in expected])

    def given() -> Tensor:
        assert not is_scored, "the run knows it"
        return reach

    stacked = HeadOutput.stack(outputs, given)
    for name in ("lower", "upper"):
        rows = torch.stack([getattr(head, name) for head in expected])
        torch.testing.assert_close(getattr(stacked, name), rows, rtol=1e-4, atol=1e-7)


# What is compiled, when, and what happens where it cannot be.


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("CIAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CIAR_KERNEL", raising=False)
    monkeypatch.delenv("CC", raising=False)
    interval_kernel.cache_clear()
    yield tmp_path / "cache" / "kernels"
    interval_kernel.cache_clear()


def counting_compiler(folder: Path) -> tuple[Path, Path]:
    """A `cc` that notes each call in a file."""
    script, log = folder / "my cc", folder / "calls"
    script.write_text(f'#!/bin/sh\necho "$@" >> "{log}"\nexec cc "$@"\n')
    script.chmod(0o755)
    return script, log


@needs_compiler
def test_it_is_compiled_once(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script, log = counting_compiler(tmp_path)
    monkeypatch.setenv("CC", f"'{script}' -g0")
    for _ in range(2):
        interval_kernel.cache_clear()  # as another process
        found = interval_kernel()
        assert found is not None
        assert_right(found, *random_rows(64))
    assert len(log.read_text().splitlines()) == 1 and log.read_text().startswith("-g0 ")
    assert [path.suffix for path in cache.iterdir()] == [".so"]


@needs_compiler
def test_another_processor_or_source_gets_its_own(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert interval_kernel()
    other = tmp_path / "cpuinfo"
    other.write_text("processor : 0\nflags : sse2\n")
    monkeypatch.setattr("ciar_edge.kernel.CPU_INFO", other)
    interval_kernel.cache_clear()
    assert interval_kernel()
    source = tmp_path / "intervals.c"
    source.write_text("/* changed */\n" + SOURCE.read_text())
    monkeypatch.setattr("ciar_edge.kernel.SOURCE", source)
    interval_kernel.cache_clear()
    assert interval_kernel()
    assert len(list(cache.iterdir())) == 3


@needs_compiler
def test_processes_that_compile_at_the_same_time(cache: Path) -> None:
    code = "from ciar_edge.kernel import interval_kernel; assert interval_kernel() is not None"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    assert [path.suffix for path in cache.iterdir()] == [".so"]


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("CIAR_KERNEL", "0", "CIAR_KERNEL is 0"),
        ("CC", "/nowhere/cc", "/nowhere/cc"),
        ("CC", "false", "false -std=gnu11"),
        ("CC", "'cc", "No closing quotation"),
    ],
)
def test_without_a_compiler_torch_does_it(
    cache: Path,
    name: str,
    value: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv(name, value)
    with caplog.at_level(logging.INFO, "ciar_edge.kernel"):
        heads = new_heads(8)
    assert heads.kernel is None and reason in caplog.text
    [output] = heads.outputs(*heads(torch.randn(1, 32)), [None])
    assert type(output) is HeadOutput and math.isfinite(float(total_width(output)))
    assert not cache.exists() or not list(cache.iterdir()), "nothing is left behind"


def test_without_a_place_to_keep_it_torch_does_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CIAR_CACHE", str(tmp_path / "file"))
    assert interval_kernel() is None


def test_a_compiler_without_end_is_stopped(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setenv("CC", str(slow))
    monkeypatch.setattr("ciar_edge.kernel.MAX_SECONDS", 0.2)
    with caplog.at_level(logging.INFO, "ciar_edge.kernel"):
        assert interval_kernel() is None
    assert "no end within" in caplog.text


@needs_compiler
def test_a_broken_file_in_the_cache_is_not_loaded(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert interval_kernel()
    [library] = cache.iterdir()
    other = tmp_path / "other" / "kernels" / library.name
    other.parent.mkdir(parents=True)
    other.write_text("nonsense")
    monkeypatch.setenv("CIAR_CACHE", str(tmp_path / "other"))
    interval_kernel.cache_clear()
    assert interval_kernel() is None
