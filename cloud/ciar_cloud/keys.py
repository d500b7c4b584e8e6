"""API keys: who may use a cloud, and how much of it.

A key is 32 random bytes as text, shown once when it is made. The file holds its SHA-256: a slow
hash is for passwords, and a key cannot be guessed. One table a key:

    [keys.alice]
    sha256 = "9f86d0..."
    max_sessions = 8          # open at a time; left out or 0: no limit of its own
    images_per_minute = 60    # begun or resumed
    queue_share = 0.5         # of the works that may wait

The file is read again when it changes; keys that are gone open no session any more.
"""

import hashlib
import hmac
import os
import re
import secrets
import stat
import tomllib
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ciar.errors import InvalidInput
from ciar.file_lock import locked
from ciar.output_file import replacing
from ciar_cloud.followed import Followed

PREFIX = "ciar_"  # by which scanners for leaked secrets can know one
NUM_BYTES = 32
MAX_KEY_CHARS = 256
NAME = re.compile("[A-Za-z0-9_-]{1,64}")
DIGEST = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """0 sessions or images a minute: no limit of its own."""

    max_sessions: int = 0
    images_per_minute: int = 0
    queue_share: float = 1.0

    def __post_init__(self) -> None:
        for name in ("max_sessions", "images_per_minute"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise InvalidInput(name, value, "give a count, or 0 for no limit")
        share = self.queue_share
        if not isinstance(share, (int, float)) or not 0 < share <= 1:
            raise InvalidInput("queue_share", share, "give a share above 0, at most 1")


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who makes a call: the name of a key, or "" where a cloud asks for none."""

    name: str = ""
    limits: Limits = Limits()


ANYONE = Caller()


class KeyRing:
    """The keys of a file. Raises `InvalidInput` (field `keys`) if it cannot be read or is wrong."""

    def __init__(self, path: Path) -> None:
        self._callers = Followed([path], lambda: read_keys(path))

    def find(self, key: str) -> Caller | None:
        """Whose key it is. Takes as long for a wrong one."""
        self._callers.refresh()
        if len(key) > MAX_KEY_CHARS:
            return None
        digest, found = digest_of(key), None
        for known, caller in self._callers.value.items():
            if hmac.compare_digest(known, digest):
                found = caller
        return found


def read_keys(path: Path) -> dict[str, Caller]:
    """Callers by the SHA-256 of their keys. Raises `InvalidInput`."""
    try:
        tables = tomllib.loads(path.read_text())
    except OSError as error:
        raise InvalidInput("keys", str(path), f"cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InvalidInput("keys", str(path), f"is no TOML file: {error}") from None
    keys = tables.pop("keys", {})
    if tables or not isinstance(keys, dict):
        raise InvalidInput("keys", str(path), "give tables [keys.NAME] and nothing else")
    callers: dict[str, Caller] = {}
    for name, table in keys.items():
        try:
            digest, caller = read_key(name, table)
        except InvalidInput as error:
            raise InvalidInput("keys", str(path), f"[keys.{name}]: {error}") from None
        if digest in callers:
            raise InvalidInput("keys", str(path), f"[keys.{name}]: {callers[digest].name} has it")
        callers[digest] = caller
    return callers


def read_key(name: str, table: Any) -> tuple[str, Caller]:
    check_name(name)
    if not isinstance(table, dict):
        raise InvalidInput("key", table, "give a table")
    table = dict(table)
    digest = table.pop("sha256", None)
    if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
        raise InvalidInput("sha256", digest, "give 64 hexadecimal digits, in lower case")
    names = [field.name for field in fields(Limits)]
    if unknown := set(table) - set(names):
        raise InvalidInput(min(unknown), table[min(unknown)], f"give {', '.join(names)}")
    return digest, Caller(name=name, limits=Limits(**table))


def check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise InvalidInput("name", name, "give up to 64 letters, digits, - and _")


def digest_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def add_key(path: Path, name: str, limits: Limits) -> str:
    """Add a key to a file, which is made if missing; returns the key. Raises `InvalidInput`."""
    check_name(name)
    key = PREFIX + secrets.token_urlsafe(NUM_BYTES)
    default = asdict(Limits())
    lines = [f"[keys.{name}]", f'sha256 = "{digest_of(key)}"']
    lines += [
        f"{field} = {value}" for field, value in asdict(limits).items() if value != default[field]
    ]
    try:
        with locked(path):
            known = read_keys(path) if path.exists() else {}
            if name in {caller.name for caller in known.values()}:
                raise InvalidInput("name", name, f"has a key in {path}; remove it there first")
            before = path.read_text().rstrip() + "\n\n" if path.exists() else ""
            rewrite(path, before + "\n".join(lines) + "\n")
    except OSError as error:
        raise InvalidInput("keys", str(path), f"cannot be written: {error.strerror}") from None
    return key


def rewrite(path: Path, text: str) -> None:
    """For its owner alone if it is new, else for those who could read it before."""
    before = path.stat() if path.exists() else None
    with replacing(path, mode=0o600) as part:
        part.write_text(text)
        if before:
            for owner, group in ((-1, before.st_gid), (before.st_uid, -1)):
                with suppress(PermissionError):
                    os.chown(part, owner, group)
            part.chmod(stat.S_IMODE(before.st_mode) | stat.S_IWUSR)  # it is opened once more
    if before:
        path.chmod(stat.S_IMODE(before.st_mode))
