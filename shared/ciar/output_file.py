"""Files written as a whole or not at all, and why one could not be."""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ciar.errors import OutputError, shorten

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def replacing(path: Path, *, mode: int = 0o666) -> Iterator[Path]:
    """A path beside `path` to write to; it is moved there if the block ends well, else removed.

    A link at `path` stays one. mode: permissions of the new file, less those of the umask.
    """
    path = path.resolve()
    part = path.parent / f".ciar-{secrets.token_hex(8)}.part"
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())  # some file systems find out here that they are full
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def replace_file(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Write a whole file, or leave what was there: see `replacing`."""
    with replacing(path, mode=mode) as part:
        part.write_bytes(data)


def output_error(path: Path, error: OSError, *, field: str) -> OutputError:
    """Why nothing could be written to the path that a field names, and what helps."""
    if error.errno in _DISK_FULL:
        remedy = "the disk is full; free some space, or choose another folder for it"
    elif error.errno in _NOT_ALLOWED:
        remedy = "no permission to write there; choose another folder for it"
    else:
        remedy = f"cannot be written: {error.strerror or error}"
    return OutputError(f"{field}: {shorten(str(path))}: {remedy}")
