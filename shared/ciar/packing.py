"""Float arrays as few bytes: float32, float16, or int8 with one float32 scale a row.

Invariant: what is read back survives a second trip unchanged, bit for bit:
`unpack(pack(unpack(pack(t)))) == unpack(pack(t))`. So whoever has read features can pass the same
ones on. For int8 this needs scales of at most 17 significant bits: then 127 * scale is exact in
float32, and the scale found in the rounded row (its largest magnitude / 127) is the one it was made
with.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ciar.errors import InvalidInput

PackedDtype = Literal["fp32", "fp16", "int8"]
PACKED_DTYPES: tuple[PackedDtype, ...] = get_args(PackedDtype)
Array = np.ndarray[Any, Any]
MAX_DIM = 2**20  # entries along one axis
MAX_MAGNITUDE = 65504.0  # largest finite float16; fp16 and int8 saturate there

_NUMPY: dict[PackedDtype, np.dtype[Any]] = {
    "fp32": np.dtype("<f4"),
    "fp16": np.dtype("<f2"),
    "int8": np.dtype("i1"),
}
_SPARE_SCALE_BITS = np.int32(0x7F)  # 24 - 17 low bits of a float32 significand
_MIN_SCALE = np.float32(2.0**-100)  # rows smaller than this are zero


@dataclass(frozen=True, kw_only=True)
class PackedTensor:
    """data: row-major, little-endian.

    scales: for int8 one a row (value = integer * scale), else empty.
    """

    dtype: PackedDtype
    shape: tuple[int, ...]
    data: bytes
    scales: tuple[float, ...] = ()


def pack(tensor: Tensor, dtype: PackedDtype) -> PackedTensor:
    """Pack a finite float tensor of one or two axes; fp16 and int8 saturate at +-65504."""
    assert 1 <= tensor.ndim <= 2, f"one or two axes, not {tensor.ndim}"
    values: Array = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
    assert np.isfinite(values).all(), "only finite numbers can be packed"
    shape, scales = values.shape, np.zeros((0, 1), np.float32)
    if dtype != "fp32":
        values = values.clip(-MAX_MAGNITUDE, MAX_MAGNITUDE)
    if dtype == "int8":
        values = values.reshape(_num_rows(shape), shape[-1])  # [rows, columns]
        scales = _row_scales(values)  # [rows, 1]
        steps = np.divide(values, scales, out=np.zeros_like(values), where=scales > 0)
        values = steps.round().clip(-127, 127)
    data = values.astype(_NUMPY[dtype]).tobytes()
    return PackedTensor(dtype=dtype, shape=shape, data=data, scales=tuple(scales[:, 0].tolist()))


def unpack(packed: PackedTensor, *, field: str = "tensor") -> Tensor:
    """The float32 tensor of `packed.shape`.

    Checks everything before it allocates. Raises `InvalidInput` that names `field`, or the
    part of it that is wrong.
    """
    _check_layout(packed, field)
    values = np.frombuffer(packed.data, _NUMPY[packed.dtype]).astype(np.float32)
    values = values.reshape(packed.shape)
    if packed.dtype == "int8":
        rows = values.reshape(_num_rows(packed.shape), packed.shape[-1])
        with np.errstate(over="ignore"):  # infinity is refused below
            values = (rows * np.array(packed.scales, np.float32)[:, None]).reshape(packed.shape)
    if not np.isfinite(values).all():
        raise InvalidInput(field, "NaN or infinity", "give finite numbers only")
    return torch.from_numpy(values)


def _row_scales(rows: Array) -> Array:
    """Largest magnitude / 127 of each row, rounded up to 17 significant bits. [rows, 1]"""
    if not rows.size:
        return np.zeros((len(rows), 1), np.float32)
    exact = np.abs(rows).max(axis=1, keepdims=True) / np.float32(127)
    bits = exact.view(np.int32)
    rounded = ((bits + _SPARE_SCALE_BITS) & ~_SPARE_SCALE_BITS).view(np.float32)
    return np.where(exact < _MIN_SCALE, np.float32(0), rounded)


def _num_rows(shape: tuple[int, ...]) -> int:
    return shape[0] if len(shape) == 2 else 1


def _check_layout(packed: PackedTensor, field: str) -> None:
    shape = packed.shape
    if packed.dtype not in PACKED_DTYPES:
        raise InvalidInput(
            f"{field}.dtype", packed.dtype, f"give one of {', '.join(PACKED_DTYPES)}"
        )
    if not 1 <= len(shape) <= 2:
        raise InvalidInput(f"{field}.shape", shape, "give one or two sizes")
    if any(not 0 <= size <= MAX_DIM for size in shape):
        raise InvalidInput(f"{field}.shape", shape, f"give sizes from 0 to {MAX_DIM}")
    num_bytes = math.prod(shape) * _NUMPY[packed.dtype].itemsize
    if len(packed.data) != num_bytes:
        raise InvalidInput(
            f"{field}.data",
            f"{len(packed.data)} bytes",
            f"give {num_bytes} bytes for {packed.dtype} {shape}",
        )
    num_scales = _num_rows(shape) if packed.dtype == "int8" else 0
    if len(packed.scales) != num_scales:
        raise InvalidInput(
            f"{field}.scales",
            f"{len(packed.scales)} scales",
            f"give {num_scales} for {packed.dtype} {shape}",
        )
    if any(not (math.isfinite(scale) and scale >= 0) for scale in packed.scales):
        raise InvalidInput(
            f"{field}.scales", "negative, NaN or infinite", "give finite scales from 0"
        )
