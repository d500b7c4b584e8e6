"""Files written as a whole or not at all, and why one could not be."""

import errno
import os
import secrets
from pathlib import Path

from ciar.errors import OutputError, shorten

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)


def replace_file(path: Path, data: bytes) -> None:
    """Write a file beside `path` (resolved, so that a link stays one), then move it there."""
    path = path.resolve()
    part = path.parent / f".ciar-{secrets.token_hex(8)}.part"
    try:
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # some file systems find out here that they are full
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def output_error(path: Path, error: OSError, *, field: str) -> OutputError:
    """Why nothing could be written to the path that a field names, and what helps."""
    if error.errno in _DISK_FULL:
        remedy = "the disk is full; free some space, or choose another folder for it"
    elif error.errno in _NOT_ALLOWED:
        remedy = "no permission to write there; choose another folder for it"
    else:
        remedy = f"cannot be written: {error.strerror or error}"
    return OutputError(f"{field}: {shorten(str(path))}: {remedy}")
