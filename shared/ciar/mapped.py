"""A safetensors file as tensors in memory maps of their own.

Nothing is read before it is used, and a tensor that is dropped, because it was packed or brought to
another dtype, takes its pages along. The library's loader maps a file in one piece, so that all of
it stays resident for as long as any tensor does.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ciar.errors import CheckpointError

LENGTH_BYTES = 8  # of the header's length, little endian
METADATA = "__metadata__"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def mapped_tensors(path: Path) -> dict[str, Tensor]:
    """By name. Writing to one changes memory, never the file. Raises `CheckpointError`."""
    try:
        header, start = read_header(path)
        found = {}
        for name, values in header.items():
            dtype, shape = DTYPES[values["dtype"]], [int(n) for n in values["shape"]]
            first, end = values["data_offsets"]
            if end - first != math.prod(shape) * dtype.itemsize or first < 0:
                raise ValueError(f"{name} has the wrong length")
            found[name] = map_tensor(path, start + first, end - first).view(dtype).view(shape)
        return found
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: damaged or truncated ({error}); download or export it again"
        ) from error


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Entries by name, and where their data begin."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        start = LENGTH_BYTES + length
        if length < 2 or start > size:
            raise ValueError("no header")
        header: dict[str, Any] = json.loads(file.read(length))
    header.pop(METADATA, None)
    if max((values["data_offsets"][1] for values in header.values()), default=0) > size - start:
        raise ValueError("the end is missing")
    return header, start


def map_tensor(path: Path, offset: int, num_bytes: int) -> Tensor:
    """uint8 [num_bytes]"""
    if not num_bytes:
        return torch.empty(0, dtype=torch.uint8)
    # mode c: private pages, so that nothing can write to the file
    return torch.from_numpy(np.memmap(path, np.uint8, mode="c", offset=offset, shape=(num_bytes,)))
