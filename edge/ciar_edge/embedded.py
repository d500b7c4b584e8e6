"""The embedded cloud: `ciar-cloud serve` of the same model, as a second process on a loopback port.

It starts before the edge loads its own model, so that the two load at the same time, and it is
stopped whatever ends the block it was started for. Its output goes to a file of its own: the last
lines of it explain a cloud that does not come up.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from ciar.errors import CheckpointError, CloudUnavailable

POLL_SECONDS = 0.02
STOP_SECONDS = 3.0  # from the polite signal to the other one
MAX_LINES = 8  # of the cloud's output in an error
MAX_THREADS = 8  # more do not help one small model


class EmbeddedCloud:
    """A context manager: started on entry, stopped on exit.

    model: the bundle to serve, by folder or name.  ready_seconds: how long loading may take.
    recomputes_features: load its draft model, too.
    """

    def __init__(
        self, model: str, *, ready_seconds: float = 120.0, recomputes_features: bool = False
    ) -> None:
        self._model = model
        self._recomputes_features = recomputes_features
        self._ready_seconds = ready_seconds

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="ciar-")
        self._ready = Path(self._folder.name, "ready")
        self._log = Path(self._folder.name, "log")
        try:
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    self._command(),
                    stdin=subprocess.PIPE,  # closes with this process, however it ends
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=os.environ | {"NO_COLOR": "1"},
                    start_new_session=True,  # Ctrl-C is for the edge, which then stops the cloud
                )
        except BaseException:
            self._folder.cleanup()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._stop()
        finally:
            self._folder.cleanup()

    @property
    def pid(self) -> int:
        return self._process.pid

    async def address(self) -> str:
        """Wait until the cloud serves, and where. Raises `CloudUnavailable` with its last words."""
        deadline = time.monotonic() + self._ready_seconds
        while not self._ready.exists():
            status = self._process.poll()
            if status is not None:
                is_checkpoint = status == CheckpointError.exit_code
                kind = CheckpointError if is_checkpoint else CloudUnavailable
                raise kind(f"the embedded cloud ended ({status}): {self._last_words()}")
            if time.monotonic() > deadline:
                raise CloudUnavailable(
                    f"the embedded cloud is not ready after {self._ready_seconds:g} s: "
                    f"{self._last_words()}"
                )
            await asyncio.sleep(POLL_SECONDS)
        return self._ready.read_text().strip()

    def _command(self) -> list[str]:
        options = {
            "--model": self._model,
            "--host": "127.0.0.1",
            "--port": "0",
            "--metrics-port": "0",
            "--threads": str(cloud_threads()),
            "--drain-seconds": "0",
            "--log-level": "warning",
            "--ready-file": str(self._ready),
        }
        flat = [part for option in options.items() for part in option]
        serve = [sys.executable, "-m", "ciar_cloud", "serve"]
        recompute = f"--{'' if self._recomputes_features else 'no-'}recompute-features"
        return [*serve, *flat, recompute, "--single-process", "--exit-with-parent"]

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return "\n".join(lines[-MAX_LINES:]) or "it said nothing"

    def _stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cloud_threads() -> int:
    """One core is the edge's: a single layer has no use for more."""
    return max(1, min(num_cores() - 1, MAX_THREADS))
