"""Settings in TOML files: those that come with the package by name, others by path."""

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

from ciar.checkpoint import from_dict
from ciar.errors import InvalidInput

T = TypeVar("T")
SUFFIX = ".toml"


def names_in(package: str) -> list[str]:
    names = (path.name for path in files(package).iterdir())
    return sorted(name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX))


def read_settings(kind: type[T], package: str, name: str | Path, *, field: str) -> T:
    """A dataclass from a file. Raises `InvalidInput` with the field, `CheckpointError`."""
    path, known = Path(name), names_in(package)
    text = path.read_text() if path.suffix == SUFFIX and path.exists() else None
    if text is None:
        if str(name) not in known:
            raise InvalidInput(
                field, str(name), f"give one of {', '.join(known)} or the path of a TOML file"
            )
        text = (files(package) / f"{name}{SUFFIX}").read_text()
    return from_dict(kind, tomllib.loads(text), where=str(name))
