"""Large weights lie in huge pages, and are the same weights."""

import mmap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ciar_edge.huge_pages import LEAST, PAGE, in_huge_pages
from ciar_edge.matrix import matrix

HAS_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage").exists()


def weight(dtype: torch.dtype = torch.float32) -> Tensor:
    """3 MiB of float32."""
    values = torch.randn(768, 1024, generator=torch.Generator().manual_seed(0)) * 40
    return values.to(dtype)


def flags_of(tensor: Tensor) -> list[str]:
    """Of the mapping that holds its memory, as in proc(5)."""
    is_mine = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *values = line.split()
        if not name.endswith(":"):
            first, last = (int(part, 16) for part in name.split("-"))
            is_mine = first <= tensor.data_ptr() < last
        elif is_mine and name == "VmFlags:":
            return values
    raise AssertionError("not mapped")


@pytest.mark.skipif(not HAS_HUGE_PAGES, reason="this kernel has no huge pages")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_a_large_weight_is_copied_to_huge_pages(dtype: torch.dtype) -> None:
    kept = weight(dtype).repeat(2, 1)
    found = in_huge_pages(kept)
    assert torch.equal(found, kept) and found.dtype == dtype
    assert found.data_ptr() % PAGE == 0 and "hg" in flags_of(found)
    kept.zero_()
    assert bool(found.any()), "a copy of its own"


def test_a_transposed_weight_becomes_contiguous() -> None:
    found = in_huge_pages(weight().t())
    assert found.is_contiguous() and torch.equal(found, weight().t())


def test_memory_lasts_as_long_as_what_lies_in_it() -> None:
    rows = [in_huge_pages(weight())[5] for _ in range(3)]
    assert all(torch.equal(row, weight()[5]) for row in rows)


def test_a_small_weight_stays_where_it_is() -> None:
    small = torch.ones(LEAST // 4 - 1)
    assert in_huge_pages(small) is small


class WithoutAdvice(mmap.mmap):
    def madvise(self, *args: int) -> None:
        raise OSError(22, "Invalid argument")


def without_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)


def without_support(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmap, "mmap", WithoutAdvice)


@pytest.mark.parametrize("change", [without_flag, without_support])
def test_a_system_without_huge_pages(change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    change(monkeypatch)
    kept = weight()
    assert in_huge_pages(kept) is kept
    assert torch.equal(in_huge_pages(kept.t()), kept.t())


def test_products_read_their_weights_from_there(monkeypatch: pytest.MonkeyPatch) -> None:
    placed: list[int] = []

    def noted(tensor: Tensor) -> Tensor:
        placed.append(tensor.nbytes)
        return in_huge_pages(tensor)

    monkeypatch.setattr("ciar_edge.matrix.in_huge_pages", noted)
    kept, x = weight(), torch.ones(1, 1024)
    torch.testing.assert_close(matrix(kept)(x), x @ kept.t(), rtol=1e-3, atol=0.1)
    rounded = kept.round().clamp(-127, 127)
    rounded[:, 0] = 127.0
    matrix(rounded)
    assert placed == [kept.nbytes, kept.nbytes // 4], "float32, then int8 rows"
