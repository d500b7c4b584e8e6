"""The data files of this package: nouns.txt and the TOML tables, read once."""

import json
import tomllib
from functools import cache
from importlib.resources import files
from typing import Any


def read_text(name: str) -> str:
    """A data file of this package as text."""
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


@cache
def read_toml(name: str) -> dict[str, Any]:
    """A TOML table of this package. Shared by all readers: not to be changed."""
    return tomllib.loads(read_text(name))


@cache
def read_json(name: str) -> dict[str, Any]:
    """A JSON table of this package. Shared by all readers: not to be changed."""
    table: dict[str, Any] = json.loads(read_text(name))
    return table
