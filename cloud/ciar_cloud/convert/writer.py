"""Model folders written tensor by tensor: memory never holds more than one of them.

The files are safetensors, in shards of at most `max_bytes` as the Hugging Face libraries name them
(`model-00001-of-00003.safetensors` beside an index), or one `model.safetensors`. The library itself
writes a file from tensors that are all in memory, so the few lines of the format are here.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ciar.checkpoint import (
    CONFIG_FILE,
    INDEX_FILE,
    WEIGHTS_FILE,
    check_names,
    forget_weights,
    write_json,
)
from ciar.errors import OutputError
from ciar.mapped import DTYPES, LENGTH_BYTES, METADATA
from ciar.output_file import output_error, replacing
from ciar_cloud.convert.reader import Tensors

MAX_SHARD_BYTES = 5 * 10**9
NAMES = {dtype: name for name, dtype in DTYPES.items()}
NOTHING: Mapping[str, Path] = {}


@dataclass(frozen=True, eq=False)
class Entry:
    """A tensor to write. make: gives it when its turn comes."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def entries_of(model: nn.Module, tensors: Tensors, dtype: torch.dtype | None) -> dict[str, Entry]:
    """Every tensor of the model and no other, in the model's order."""
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    check_names(expected, {name: t.shape for name, t in tensors.items()}, where="the checkpoint")
    return {
        name: Entry(shape, dtype or tensors[name].dtype, tensors[name].read)
        for name, shape in expected.items()
    }


def write_folder(
    folder: Path,
    config: Mapping[str, Any],
    entries: Mapping[str, Entry],
    *,
    max_bytes: int = MAX_SHARD_BYTES,
    on_tensor: Callable[[str], None] = lambda _: None,
    beside: Mapping[str, Path] = NOTHING,
) -> None:
    """Weights first and `config.json` last: where it is, the folder is whole.

    beside: files to copy, by their names there. Raises `OutputError`.
    """
    shards = split(entries, max_bytes)
    names = [shard_name(i, len(shards)) for i in range(len(shards))]
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        forget_weights(folder)
        for name, source in beside.items():
            with replacing(folder / name) as part:
                shutil.copyfile(source, part)
        for name, shard in zip(names, shards, strict=True):
            write_file(folder / name, shard, on_tensor)
        if len(shards) > 1:
            pairs = zip(names, shards, strict=True)
            total = sum(entry.num_bytes for entry in entries.values())
            index = {
                "metadata": {"total_size": total},
                "weight_map": {tensor: name for name, shard in pairs for tensor in shard},
            }
            write_json(folder / INDEX_FILE, index)
        write_json(folder / CONFIG_FILE, config)


@contextmanager
def writing_to(out: Path) -> Iterator[None]:
    """What the system refuses inside as `OutputError`, which names the option `out`."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise output_error(out, error, field="out") from error


def split(entries: Mapping[str, Entry], max_bytes: int) -> list[dict[str, Entry]]:
    """In order, each part as large as it may be; a larger tensor is a part of its own."""
    shards: list[dict[str, Entry]] = [{}]
    size = 0
    for name, entry in entries.items():
        if shards[-1] and size + entry.num_bytes > max_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = entry
        size += entry.num_bytes
    return shards


def shard_name(index: int, count: int) -> str:
    return WEIGHTS_FILE if count == 1 else f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def write_file(path: Path, entries: Mapping[str, Entry], on_tensor: Callable[[str], None]) -> None:
    """A safetensors file, whole or not at all."""
    header: dict[str, Any] = {METADATA: {"format": "pt"}}  # which transformers asks for
    end = 0
    for name, entry in entries.items():
        start, end = end, end + entry.num_bytes
        offsets = [start, end]
        header[name] = {
            "dtype": NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": offsets,
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data begins at a multiple of 8
    with replacing(path) as part, part.open("wb") as file:
        file.write(len(text).to_bytes(LENGTH_BYTES, "little") + text)
        for name, entry in entries.items():
            tensor = entry.make().to(entry.dtype).contiguous()
            assert tuple(tensor.shape) == entry.shape, name
            file.write(tensor.flatten().view(torch.uint8).numpy().data)
            on_tensor(name)
