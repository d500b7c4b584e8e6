"""Fixed weights as drafting applies them: `matrix(weight, bias)(x)` is `x W^T + b` for few rows x.

One row times a matrix is bound by reading the matrix, and between two drafts the cloud or anything
else on the machine may have taken the caches. Weights that came from an int8 file are therefore
multiplied as they were stored, a quarter of the bytes; all others in float32. Measured with a
layer of 288 on one core of an AMD EPYC beside a busy cloud: 0.93 ms a draft in float32, 0.57 ms
in int8.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ciar.errors import InvalidInput
from ciar.int8 import dequantize_rows, quantize_rows
from ciar_edge.huge_pages import in_huge_pages

Matrix = Callable[[Tensor], Tensor]
"""x [n, in] -> [n, out], float32 or the bfloat16 that the int8 kernel gives.

Added to something in float32 it becomes float32 in the same torch call; a call of its own for that
would cost as much as the sum.
"""

COLUMNS_STEP = 32  # the int8 kernel reads rows of a weight in blocks
PAGE_FLOATS, GAP_FLOATS = 1024, 64
SAME = 1e-6  # relative difference of float32 rounding


def matrix(weight: Tensor, bias: Tensor | None = None) -> Matrix:
    """The fastest product for a weight [out, in] that drops nothing stored of it.

    bias: [out] float32, added in float32.
    """
    rows = int8_rows(weight)
    return FloatMatrix(weight, bias) if rows is None else Int8Matrix(*rows, bias)


class FloatMatrix:
    """Transposed: a row times a matrix streams faster than a matrix times a column.

    Rows that are whole pages long would lie on the same lines of the caches. A gap behind each
    takes 8 to 10 % off a product with 80 MiB (one core of an Intel Xeon, huge pages).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        out = len(weight)
        rows = weight.t() if out % PAGE_FLOATS else F.pad(weight.t(), (0, GAP_FLOATS))
        self.transposed = in_huge_pages(rows)[:, :out]  # [in, out]
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        if self.bias is None:
            return x @ self.transposed
        return torch.addmm(self.bias, x, self.transposed)


class Int8Matrix:
    """Int8 rows [out, in] and their scales [out]; x, scales and product are bfloat16."""

    def __init__(self, levels: Tensor, scale: Tensor, bias: Tensor | None = None) -> None:
        self.levels, self.scale, self.bias = in_huge_pages(levels), scale.bfloat16(), bias

    def __call__(self, x: Tensor) -> Tensor:
        product = torch._weight_int8pack_mm(x.bfloat16(), self.levels, self.scale)
        return product if self.bias is None else product + self.bias


def int8_rows(weight: Tensor) -> tuple[Tensor, Tensor] | None:
    """The rows and scales that a weight was restored from.

    None if it was not, or is of a shape or in a place that the kernel does not take.
    """
    has_kernel = weight.device.type == "cpu" and hasattr(torch, "_weight_int8pack_mm")
    if not has_kernel or weight.shape[1] % COLUMNS_STEP:
        return None
    try:
        levels, scale = quantize_rows(weight)
    except InvalidInput:  # not finite: whoever loads it says so
        return None
    is_same = torch.allclose(dequantize_rows(levels, scale), weight, rtol=SAME, atol=0.0)
    return (levels, scale) if is_same else None
