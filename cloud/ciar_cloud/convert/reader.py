"""Checkpoint files as tensors by name, read when asked for.

A file is memory-mapped, so what is not asked for costs nothing. Nothing in a file is ever executed:
PyTorch files are read with `weights_only`, which knows tensors and plain containers, and refuses
the rest.
"""

import argparse
import ctypes
import hashlib
import mmap
import pickle
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ciar.checkpoint import shard_names
from ciar.errors import CheckpointError, InvalidInput
from ciar.mapped import mapped_tensors

TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
SAFETENSORS_SUFFIX = ".safetensors"
LAYOUTS = (
    "model",
    "module",
    "state_dict",
    "ema",
)  # top-level names of weights, first that is there
PREFIXES = ("_orig_mod.", "module.")  # of torch.compile and of DDP
LIBC = ctypes.CDLL(None)


@dataclass(frozen=True, eq=False)
class LazyTensor:
    """A tensor of a file. shape, dtype: known without reading it.

    mapped: itself, if it is a part of a file in memory that nobody writes to.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]
    mapped: Tensor | None = None


Tensors = Mapping[str, LazyTensor]


def read_files(paths: list[Path]) -> dict[str, LazyTensor]:
    """All tensors of some files, which must not share a name. Raises `CheckpointError`."""
    found: dict[str, LazyTensor] = {}
    for path in paths:
        tensors = read_file(path)
        if twice := sorted(found.keys() & tensors.keys()):
            raise CheckpointError(f"{path}: {twice[0]} is in another file too: give each file once")
        found |= tensors
    return found


def read_file(path: Path) -> dict[str, LazyTensor]:
    """By name, without the prefixes of wrappers. Raises `CheckpointError`."""
    if not path.is_file():
        raise InvalidInput("source", str(path), "give a checkpoint file, or a folder of them")
    if path.suffix == SAFETENSORS_SUFFIX:
        tensors = mapped_tensors(path)
        return {name: of_tensor(tensor, is_mapped=True) for name, tensor in tensors.items()}
    if path.suffix in TORCH_SUFFIXES:
        tensors = read_torch(path)
        return {name: of_tensor(tensor, is_mapped=is_zip(path)) for name, tensor in tensors.items()}
    known = ", ".join((SAFETENSORS_SUFFIX, *TORCH_SUFFIXES))
    raise InvalidInput("source", str(path), f"give a file that ends in one of {known}")


def of_tensor(tensor: Tensor, *, is_mapped: bool = False) -> LazyTensor:
    return LazyTensor(
        tuple(tensor.shape), tensor.dtype, lambda: tensor, tensor if is_mapped else None
    )


def forget(tensors: Tensors) -> None:
    """Give back the memory of what was read of mapped files; whoever reads it again reads the file.

    Otherwise all that was read would stay for as long as one tensor of the file does.
    """
    if not hasattr(mmap, "MADV_DONTNEED"):  # not on this system
        return
    for tensor in tensors.values():
        if tensor.mapped is not None:
            start = tensor.mapped.data_ptr()
            end = start + tensor.mapped.nbytes
            first, last = -(-start // mmap.PAGESIZE), end // mmap.PAGESIZE  # whole pages of it
            if first < last:
                length = (last - first) * mmap.PAGESIZE
                address = ctypes.c_void_p(first * mmap.PAGESIZE)
                LIBC.madvise(address, ctypes.c_size_t(length), mmap.MADV_DONTNEED)


def read_torch(path: Path) -> dict[str, Tensor]:
    """The weights of a file that `torch.save` wrote, in any layout of the upstream scripts.

    Those of DDP, DeepSpeed, Lightning and FSDP, of training (beside optimizers, steps, arguments)
    and of release; averaged weights (`ema`) only where there are no others.
    """
    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other pickle protocols: what cannot be read is refused
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip(path))
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"{path}: holds more than weights, which would run as code, so it is refused "
                f"({first_line(error)}); save its state dict alone, best as safetensors"
            ) from error
        except (RuntimeError, OSError, EOFError, KeyError) as error:
            raise CheckpointError(
                f"{path}: damaged or truncated ({first_line(error)}); download it again"
            ) from error
    return unwrapped(content, path)


def first_line(error: Exception) -> str:
    """PyTorch's messages go on for a page."""
    return (str(error) or type(error).__name__).split(". ")[0].splitlines()[0]


def unwrapped(content: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds {type(content).__name__}, expected weights by name")
    inner = next(
        (content[key] for key in LAYOUTS if isinstance(content.get(key), Mapping)), content
    )
    tensors = {strip(str(n)): t for n, t in inner.items() if isinstance(t, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path}: no weights in it, only {', '.join(map(str, content))}")
    return tensors


def strip(name: str) -> str:
    """Without the prefixes that wrappers of a model leave, in any order."""
    for prefix in PREFIXES * 2:
        name = name.removeprefix(prefix)
    return name


def is_zip(path: Path) -> bool:
    """Whether it can be memory-mapped: files of PyTorch before 1.6 cannot."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def stacked(*parts: LazyTensor) -> LazyTensor:
    rows = sum(part.shape[0] for part in parts)
    shape = (rows, *parts[0].shape[1:])
    return LazyTensor(shape, parts[0].dtype, lambda: torch.cat([part.read() for part in parts]))


def files_of(source: Path) -> list[Path]:
    """A file, or the weights of a folder: those its index names, else all safetensors, else
    `pytorch_model.bin`.

    Raises `CheckpointError` for a shard that is not there.
    """
    if not source.is_dir():
        return [source]
    for index in sorted(source.glob("*.index.json")):
        names = shard_names(index)
        missing = [name for name in names if not (source / name).is_file()]
        if missing:
            raise CheckpointError(
                f"{source}: {missing[0]} is missing, one of {len(names)} shards: download it too"
            )
        return [source / name for name in names]
    found = sorted(source.glob(f"*{SAFETENSORS_SUFFIX}"))
    found = found or sorted(source.glob("pytorch_model.bin"))
    if not found:
        raise InvalidInput("source", str(source), "give a folder with weights, or their file")
    return found


def sha256_of(path: Path) -> str:
    """64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
