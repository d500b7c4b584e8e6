"""What the cloud owes to the process that started it: where it listens, and not to outlive it."""

import math
import os
import select
import signal
import stat
import threading
from pathlib import Path

import torch

from ciar.errors import InvalidInput, OutputError, shorten
from ciar.output_file import replace_file
from ciar_cloud import container

MAX_THREADS = 8  # more do not help the small steps of decoding


def write_ready_file(path: Path, address: str) -> None:
    """Write `address` in one piece: whoever sees the file can read all of it."""
    try:
        replace_file(path, f"{address}\n".encode())
    except OSError as error:
        raise OutputError(f"ready_file: {shorten(str(path))}: {error.strerror}") from error


def exit_with_parent() -> None:
    """From now on, SIGTERM to ourselves when standard input closes or the parent process ends.

    Standard input counts where it is a pipe or a socket; that of /dev/null is always closed.
    """
    waited = [fd for fd in (stdin_pipe(), parent_fd()) if fd is not None]
    thread = threading.Thread(target=_wait, args=(waited,), name="ciar-parent", daemon=True)
    thread.start()


def stdin_pipe() -> int | None:
    mode = os.fstat(0).st_mode
    return 0 if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) else None


def parent_fd() -> int | None:
    """A descriptor that becomes readable when the parent ends; None where there is none."""
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(os.getppid())
    except OSError:
        return None


def _wait(descriptors: list[int]) -> None:
    while descriptors:
        readable, _, _ = select.select(descriptors, [], [])
        if any(fd != 0 or not os.read(0, 4096) for fd in readable):
            os.kill(os.getpid(), signal.SIGTERM)
            return


def set_threads(threads: int) -> int:
    """Threads of one operation of the model: as asked, or for 0 what this process may use.

    Raises `InvalidInput`.
    """
    if threads < 0:
        raise InvalidInput("threads", threads, "give 0 (automatic) or a count")
    if not threads:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else MAX_THREADS
        threads = min(torch.get_num_threads(), cores, MAX_THREADS)
        # More threads than a container has processor time for wait for each other, stopped.
        threads = max(1, math.floor(min(threads, container.num_cores())))
    torch.set_num_threads(threads)
    return threads
