"""Weights at one byte each: symmetric int8 with one float32 scale per row (the first axis).

For a row w with scale s = max|w| / 127, q = round(w / s) and the restored row is q * s, so that
|q * s - w| <= s / 2 = max|w| / 254: the error of an element is at most 0.4 % of the largest one of
its row (a little more after float32 rounding: `MAX_ROW_ERROR`). A row of zeros comes back as zeros.

In a file the two parts of a weight are named `<name>` (int8) and `<name>.scale` (float32 [rows]);
every other floating tensor is stored as float16 and comes back as float32.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ciar.errors import CheckpointError, InvalidInput

SCALE_SUFFIX = ".scale"
MAX_ROW_ERROR = 1 / 254 + 1e-6
"""Largest |restored - weight| of an element, as a share of the largest magnitude of its row."""

_LEVELS = 127
_MAX_FLOAT16 = 65504.0


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Split a floating weight [rows, ...] into int8 [rows, ...] and its float32 scale [rows].

    Raises `InvalidInput` for a weight with fewer than two axes, not floating or not finite.
    """
    if weight.dim() < 2 or not weight.is_floating_point():
        raise InvalidInput(
            "weight",
            f"{weight.dtype} {list(weight.shape)}",
            "quantize floating tensors with two or more axes; store the others as they are",
        )
    if not bool(torch.isfinite(weight).all()):
        raise InvalidInput(
            "weight", "inf or nan", "train or convert it again: int8 needs finite weights"
        )
    rows = weight.detach().float().flatten(1)  # [rows, columns]
    largest = rows.abs().amax(dim=1) if rows.shape[1] else rows.new_zeros(rows.shape[0])
    scale = largest / _LEVELS  # [rows]
    # A row of zeros, or of numbers too small for a float32 scale, is divided by 1: zeros.
    divisor = torch.where(scale > 0, scale, torch.ones_like(scale))[:, None]
    levels = (rows / divisor).round().clamp(-_LEVELS, _LEVELS).to(torch.int8)
    return levels.view(weight.shape), scale


def dequantize_rows(levels: Tensor, scale: Tensor) -> Tensor:
    """Restore a float32 weight [rows, ...] from int8 [rows, ...] and its scale [rows]."""
    if levels.dtype != torch.int8 or levels.dim() < 2 or scale.shape != levels.shape[:1]:
        raise CheckpointError(
            f"weight {levels.dtype} {list(levels.shape)} does not go with scale "
            f"{list(scale.shape)}: the file is damaged or of another kind; export it again"
        )
    return levels.float() * scale.float().view(-1, *[1] * (levels.dim() - 1))


def pack_state_dict(
    state: Mapping[str, Tensor], *, quantize: Callable[[str, Tensor], bool]
) -> dict[str, Tensor]:
    """The tensors to store for `state`: int8 and scale where `quantize(name, tensor)` says so,
    float16 for other floating tensors, integers and booleans unchanged. All on the CPU, contiguous.
    """
    packed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if quantize(name, tensor):
            if name + SCALE_SUFFIX in state:
                raise InvalidInput(
                    "state", name + SCALE_SUFFIX, f"rename it: {name} needs it for its scale"
                )
            packed[name], packed[name + SCALE_SUFFIX] = quantize_rows(tensor)
        elif tensor.dtype == torch.int8:
            raise InvalidInput(
                "state", name, "store an int8 tensor as int16: int8 stands for quantized weights"
            )
        else:
            packed[name] = _to_float16(name, tensor) if tensor.is_floating_point() else tensor
    return {name: tensor.detach().cpu().contiguous() for name, tensor in packed.items()}


def unpack_state_dict(
    tensors: Mapping[str, Tensor], *, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """The inverse of `pack_state_dict`: every floating tensor comes back in `dtype`.

    Raises `CheckpointError` when an int8 weight has no scale.
    """
    scales = {name + SCALE_SUFFIX for name, tensor in tensors.items() if tensor.dtype == torch.int8}
    state: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.dtype == torch.int8:
            scale = tensors.get(name + SCALE_SUFFIX)
            if scale is None:
                raise CheckpointError(
                    f"{name} is int8 but {name}{SCALE_SUFFIX} is missing: export it again"
                )
            state[name] = dequantize_rows(tensor, scale).to(dtype)
        elif name not in scales:
            state[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return state


def _to_float16(name: str, tensor: Tensor) -> Tensor:
    if tensor.numel() and not float(tensor.detach().abs().max()) <= _MAX_FLOAT16:
        raise InvalidInput(
            "state", name, f"its values must be finite and at most {_MAX_FLOAT16:g} for float16"
        )
    return tensor.half()
