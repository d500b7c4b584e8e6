"""Model folders: `config.json` beside `model.safetensors`, or shards of it, strict both ways.

A bundle of four makes a model:

    NAME/cloud/  target transformer, and `injection.weight` [D, F], the cloud's half of phi, which
                 may be in a file of its own
    NAME/edge/   draft model, the fingerprint of the cloud it was trained for, the calibration of
                 its scores
    NAME/vq/     tokenizer
    NAME/text/   text encoder (see `models.text_encoder`)

Matrices may be stored as int8 with a scale a row, other tensors as float16; they are loaded as
float32. The fingerprint of a folder is a SHA-256 over its configuration and tensor bytes, so it
changes when any weight does.
"""

import dataclasses
import errno
import hashlib
import json
import os
import types
import typing
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ciar.errors import CheckpointError
from ciar.int8 import unpack_state_dict
from ciar.mapped import mapped_tensors
from ciar.output_file import output_error, replace_file, replacing
from ciar.types import SamplingParams

T = TypeVar("T")

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"  # of the shards of large weights: which is in which
DEFAULT_MODEL = "ciar-mini"
Shapes = Mapping[str, tuple[int, ...]]
PHI_FILE = "phi.safetensors"  # the cloud's half of phi, where it came after the target's weights
WEIGHTS_IN = "weights_in"  # of a configuration: a folder inside that has them, of another library
PARTS = ("cloud", "edge", "vq", "text")


def from_dict(kind: type[T], values: Mapping[str, Any], *, where: str) -> T:
    """A dataclass from JSON or TOML values, nested ones included.

    Unknown or missing names raise `CheckpointError`, naming the place.
    """
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise CheckpointError(f"{where}: unknown {', '.join(unknown)}; known: {', '.join(fields)}")
    hints = typing.get_type_hints(kind)
    try:
        return kind(**{n: coerce(hints[n], v, where=f"{where}.{n}") for n, v in values.items()})
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: {error}") from error


def coerce(hint: Any, value: Any, *, where: str) -> Any:
    """JSON lists to the tuples, and JSON objects to the dataclasses, that a field declares."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        if dataclasses.is_dataclass(option) and isinstance(value, Mapping):
            return from_dict(typing.cast(type[Any], option), value, where=where)
    if isinstance(value, list) and any(typing.get_origin(o) is tuple for o in options):
        return tuple(value)
    return value


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a model folder."""
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: no {CONFIG_FILE}; is this a model folder?") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: holds {type(config).__name__}, expected an object")
    return config


def read_sampling(folder: Path) -> SamplingParams:
    """The sampling parameters a target folder was made for. Raises `CheckpointError`."""
    values = read_config(folder).get("sampling", {})
    return from_dict(SamplingParams, values, where=f"{folder}: sampling")


def weights_files(folder: Path) -> list[Path]:
    """Of a model folder: all shards, and what replaces tensors in them last.

    Raises `CheckpointError` for a damaged index.
    """
    last = [folder / PHI_FILE] if (folder / PHI_FILE).exists() else []
    folder = folder / read_config(folder).get(WEIGHTS_IN, "")
    index = folder / INDEX_FILE
    if not index.exists():
        return [folder / WEIGHTS_FILE, *last]
    return [folder / name for name in shard_names(index)] + last


def shard_names(index: Path) -> list[str]:
    """The files that an index names, as the Hugging Face libraries write it, each once."""
    try:
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index}: damaged ({error!r}); download or export it again"
        ) from error


def read_weights(
    folder: Path, *, dtype: torch.dtype = torch.float32, part: str = ""
) -> dict[str, Tensor]:
    """All tensors of a model folder, int8 rows unpacked, all floating ones in `dtype`.

    Those stored in it are memory-mapped. part: only those whose names begin so, and without it.
    Raises `CheckpointError`.
    """
    packed: dict[str, Tensor] = {}
    for path in weights_files(folder):
        try:
            packed |= mapped_tensors(path)
        except FileNotFoundError:
            raise CheckpointError(f"{folder}: no {path.name}") from None
    wanted = {n.removeprefix(part): t for n, t in packed.items() if n.startswith(part)}
    return unpack_state_dict(wanted, dtype=dtype)


def load_into(module: nn.Module, state: Mapping[str, Tensor], *, where: Path) -> None:
    """Strict load: every key and shape must match, with the differences named."""
    expected = {n: tuple(t.shape) for n, t in module.state_dict().items()}
    check_names(expected, {n: tuple(t.shape) for n, t in state.items()}, where=str(where))
    module.load_state_dict(dict(state), strict=True, assign=True)


def check_names(expected: Shapes, found: Shapes, *, where: str) -> None:
    """Raise `CheckpointError` unless names and shapes are equal, with the differences named."""
    wrong = [
        *(f"missing {n}" for n in sorted(expected.keys() - found.keys())),
        *(f"unexpected {n}" for n in sorted(found.keys() - expected.keys())),
        *(
            f"{n} is {found[n]}, expected {expected[n]}"
            for n in sorted(expected.keys() & found.keys())
            if found[n] != expected[n]
        ),
    ]
    if wrong:
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise CheckpointError(f"{where}: {'; '.join(wrong[:4])}{more}")


def save_folder(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a model folder. Tensors are stored as given (see `int8.pack_state_dict`).

    `config.json` comes last: where it is, the folder is whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / WEIGHTS_FILE) as part:
        write_tensors(part, tensors)
        forget_weights(folder)
    write_json(folder / CONFIG_FILE, config)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    replace_file(path, (json.dumps(values, indent=2) + "\n").encode())


def forget_weights(folder: Path) -> None:
    """Remove a model folder's configuration, and what would be read in place of weights to come."""
    for name in (CONFIG_FILE, PHI_FILE, INDEX_FILE):
        (folder / name).unlink(missing_ok=True)


def write_tensors(
    part: Path, tensors: Mapping[str, Tensor], *, metadata: dict[str, str] | None = None
) -> None:
    """Fill a file that is there (see `replacing`) in the format safetensors."""
    mode = part.stat().st_mode
    save_file({n: t.contiguous() for n, t in tensors.items()}, part, metadata=metadata)
    part.chmod(mode)  # save_file lets nobody else read it


def make_folder(folder: Path, *, field: str) -> None:
    """Make it before long work whose result goes there; `OutputError` where nothing could."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "")
    except OSError as error:
        raise output_error(folder, error, field=field) from error


def fingerprint(folder: Path) -> str:
    """First 16 hex digits of a SHA-256 over a folder's configuration and weights.

    The calibration is left out: it may be measured again for the same weights.
    """
    config = {k: v for k, v in read_config(folder).items() if k != "calibration"}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for path in weights_files(folder):
        try:
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from error
    return digest.hexdigest()[:16]


def find_model(model: str | Path) -> Path:
    """A bundle by folder, or by name among the embedded ones.

    Those are in the wheel, or in the source tree.
    """
    path = Path(model)
    package = Path(str(files("ciar")))
    for candidate in (path, package / "_models" / path, package.parents[1] / "models" / path):
        if any((candidate / part).is_dir() for part in PARTS):
            return candidate
    raise CheckpointError(
        f"model: {str(model)!r}: no such model folder; give a folder that holds "
        f"{', '.join(PARTS)}, or the embedded {DEFAULT_MODEL!r}"
    )


def to_device(module: nn.Module, *, device: str, dtype: torch.dtype) -> nn.Module:
    """Ready for inference: eval mode, no gradients, on the device."""
    return module.to(device=device, dtype=dtype).eval().requires_grad_(False)
