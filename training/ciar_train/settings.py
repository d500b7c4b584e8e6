"""Settings in TOML files: those that come with the package by name, others by path.

A file with `like = "NAME"` holds what differs from another one, table by table.
"""

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from ciar.checkpoint import from_dict
from ciar.errors import InvalidInput

T = TypeVar("T")
SUFFIX = ".toml"
LIKE = "like"


def names_in(package: str) -> list[str]:
    names = (path.name for path in files(package).iterdir())
    return sorted(name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX))


def read_settings(kind: type[T], package: str, name: str | Path, *, field: str) -> T:
    """A dataclass from a file. Raises `InvalidInput` with the field, `CheckpointError`."""
    return from_dict(kind, read_table(package, name, field=field), where=str(name))


def read_table(
    package: str, name: str | Path, *, field: str, above: tuple[str, ...] = ()
) -> dict[str, Any]:
    """A file, over the one that it is like, if it names one. above: files that are like this."""
    if str(name) in above:
        raise InvalidInput(field, str(name), f"give a file other than {', '.join(above)}")
    try:
        table = tomllib.loads(read_text(package, name, field=field))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInput(field, str(name), f"cannot be read as TOML ({error})") from None
    like = table.pop(LIKE, None)
    if like is None:
        return table
    return over(read_table(package, str(like), field=LIKE, above=(*above, str(name))), table)


def read_text(package: str, name: str | Path, *, field: str) -> str:
    path, known = Path(name), names_in(package)
    if path.suffix == SUFFIX and path.exists():
        return path.read_text(encoding="utf-8")
    if str(name) not in known:
        raise InvalidInput(
            field, str(name), f"give one of {', '.join(known)} or the path of a TOML file"
        )
    return (files(package) / f"{name}{SUFFIX}").read_text()


def over(base: dict[str, Any], table: dict[str, Any]) -> dict[str, Any]:
    """Tables merge, all else is replaced."""
    return base | {
        key: over(base[key], value) if isinstance(value, dict) and key in base else value
        for key, value in table.items()
    }
