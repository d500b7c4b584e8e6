"""`ciar-cloud serve` as a second process, pinned to cores of its own."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ciar.errors import CloudUnavailable

READY_SECONDS = 600.0


@dataclass(frozen=True)
class CloudProcess:
    """A cloud that serves: where, and as which process."""

    address: str
    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        return self.process.pid


def cores() -> list[int]:
    """Cores this process may use."""
    return sorted(os.sched_getaffinity(0))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def cloud_process(
    model: Path,
    *,
    core: int | None,
    threads: int = 1,
    options: Sequence[str] = (),
    inside: Sequence[str] = (),
) -> Iterator[CloudProcess]:
    """Serve a bundle on a free loopback port, in a single process. core: None leaves it unpinned.

    options: more of those of `ciar-cloud serve`, such as `--engine-process`.
    inside: in front of its command, where that becomes the cloud itself.
    """
    with tempfile.TemporaryDirectory(prefix="ciar-bench-") as folder:
        ready, log = Path(folder, "ready"), Path(folder, "log")
        command = [*inside, sys.executable, "-m", "ciar_cloud", "serve", "--model", str(model)]
        command += ["--port", "0", "--metrics-port", "0", "--threads", str(threads)]
        command += ["--ready-file", str(ready), "--drain-seconds", "0", "--exit-with-parent"]
        command += ["--single-process", *options]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT
            )
        if core is not None:
            os.sched_setaffinity(process.pid, {core})  # before it has started any thread
        try:
            deadline = time.monotonic() + READY_SECONDS
            while not ready.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise CloudUnavailable(f"the cloud did not start: {log.read_text()[-2000:]}")
                time.sleep(0.02)
            yield CloudProcess(ready.read_text().strip(), process)
        finally:
            assert process.stdin
            process.stdin.close()
            process.terminate()
            process.wait()
