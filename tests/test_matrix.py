"""Int8 weights are multiplied as stored where that loses nothing of them; all others in float32."""

import pytest
import torch
from torch import Tensor

from ciar.int8 import dequantize_rows, quantize_rows
from ciar_edge.matrix import FloatMatrix, Int8Matrix, int8_rows, matrix

BFLOAT16_STEP = 2.0**-8


def weight(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def restored(*shape: int) -> Tensor:
    return dequantize_rows(*quantize_rows(weight(*shape)))


@pytest.mark.parametrize("num_rows", [1, 2, 17])
@pytest.mark.parametrize("shape", [(48, 32), (64, 96), (10, 288), (33, 2304)])
def test_an_int8_product_is_right_to_bfloat16(shape: tuple[int, int], num_rows: int) -> None:
    stored = restored(*shape)
    product = matrix(stored)
    assert isinstance(product, Int8Matrix)
    x = torch.randn(num_rows, shape[1], generator=torch.Generator().manual_seed(1))
    expected = x @ stored.t()
    found = product(x)
    assert found.dtype == torch.bfloat16 and found.shape == expected.shape
    largest = float(expected.abs().max())
    assert float((found - expected).abs().max()) <= 2 * BFLOAT16_STEP * largest


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    product = matrix(restored(64, 96))
    x = torch.randn(5, 96, generator=torch.Generator().manual_seed(1))
    together = product(x)
    for index in range(len(x)):
        torch.testing.assert_close(product(x[index : index + 1])[0], together[index])


@pytest.mark.parametrize(
    ("kept", "why"),
    [
        (weight(48, 32), "other values than int8 rows restore"),
        (restored(48, 24), "rows the kernel cannot read"),
        (restored(48, 17), "rows the kernel cannot read"),
        (torch.full((48, 32), torch.nan), "no numbers"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_weights_stay_as_they_are(kept: Tensor, why: str) -> None:
    assert int8_rows(kept) is None, why
    product = matrix(kept)
    assert isinstance(product, FloatMatrix)
    x = torch.ones(2, kept.shape[1])
    torch.testing.assert_close(product(x), x @ kept.t(), equal_nan=True)


def test_a_row_of_zeros_stays_zero() -> None:
    stored = restored(8, 32)
    stored[3] = 0.0
    assert int8_rows(stored) is not None
    assert float(matrix(stored)(torch.ones(1, 32))[0, 3]) == 0.0


@pytest.mark.parametrize(("out", "row"), [(2048, 2048 + 64), (2049, 2049), (96, 96)])
def test_rows_of_whole_pages_have_a_gap_behind_them(out: int, row: int) -> None:
    kept, x = weight(out, 48), torch.randn(3, 48, generator=torch.Generator().manual_seed(1))
    product = FloatMatrix(kept, torch.ones(out))
    assert product.transposed.shape == (48, out) and product.transposed.stride() == (row, 1)
    torch.testing.assert_close(product(x), x @ kept.t() + 1, rtol=1e-5, atol=1e-5)
