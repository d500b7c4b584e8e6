"""`intervals.c`: what follows the heads' products in one call, where a C compiler is there.

Compiled for this very processor when it is first needed (0.1 to 0.4 s), and kept in the
cache folder (`ciar.cache`) under a hash of all it depends on. The compiler is `CC`, or `cc`.
Without one, without a place to keep the file, or with `CIAR_KERNEL=0`, `ciar.head_output` does the
same in torch.

    n tokens   V codebook
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ciar.cache import cache_folder

SOURCE = Path(__file__).with_name("intervals.c")
CPU_INFO = Path("/proc/cpuinfo")
FAST = ("-O3", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math")
SWITCH = "CIAR_KERNEL"
MAX_SECONDS = 60.0  # for a compiler; usual is less than one

log = logging.getLogger(__name__)


class KernelError(Exception):
    """There is no kernel here."""


class Intervals(NamedTuple):
    """Of n tokens, by the names that `HeadOutput` has."""

    reach: Tensor  # [n, V]
    mid_width: Tensor  # [2, n, V]
    total_spread: Tensor  # [n, 2]


class IntervalKernel:
    """The compiled function. Keeps Python's lock while it runs, which is for tens of us."""

    def __init__(self, library: Path) -> None:
        self._function = ctypes.PyDLL(str(library)).ciar_intervals
        pointer, size = ctypes.c_void_p, ctypes.c_ssize_t
        self._function.argtypes = [pointer, *[size] * 3, ctypes.c_float, *[pointer] * 4]
        self._function.restype = None

    def __call__(self, centre: Tensor, raw: Tensor, max_reach: float) -> Intervals:
        """centre, raw: [n, V] float32 on the CPU. t is sigmoid(raw), in the memory of raw."""
        n, num_codes = raw.shape
        assert centre.shape == raw.shape and centre.stride(1) == 1 and raw.is_contiguous()
        assert centre.dtype == raw.dtype == torch.float32
        mid_width, total_spread = torch.empty(2, n, num_codes), torch.empty(n, 2)
        mid = mid_width.data_ptr()
        width = mid + 4 * n * num_codes  # bytes
        self._function(
            *(centre.data_ptr(), centre.stride(0), n, num_codes, max_reach),
            *(raw.data_ptr(), mid, width, total_spread.data_ptr()),
        )
        return Intervals(raw, mid_width, total_spread)


@functools.cache
def interval_kernel() -> IntervalKernel | None:
    """None where there is none; the log says why."""
    try:
        return IntervalKernel(_compiled())
    except (KernelError, OSError, RuntimeError, ValueError) as error:
        log.info("intervals are computed in torch: %s", error)
        return None


def _compiled() -> Path:
    """The library, made if it is not there. Raises what `interval_kernel` catches."""
    if os.environ.get(SWITCH) == "0":
        raise KernelError(f"{SWITCH} is 0")
    command = _command()
    source = SOURCE.read_bytes()
    parts = [source, shlex.join(command).encode(), _processor().encode()]
    name = hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]
    library = cache_folder() / "kernels" / f"{name}.so"
    if not library.exists():
        library.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
            part = Path(scratch) / library.name
            _run([*command, str(SOURCE), "-o", str(part), "-lm"])
            os.replace(part, library)  # several processes may be at it
    return library


def _command() -> list[str]:
    is_arm = platform.machine().lower() in ("aarch64", "arm64")
    native = "-mcpu=native" if is_arm else "-march=native"
    compiler = shlex.split(os.environ.get("CC") or "cc")
    return [*compiler, "-std=gnu11", native, *FAST, "-shared", "-fPIC"]


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=MAX_SECONDS)
    except subprocess.CalledProcessError as error:
        raise KernelError(f"{shlex.join(command)}: {error.stderr.strip()}") from error
    except subprocess.TimeoutExpired as error:
        raise KernelError(f"{shlex.join(command)}: no end within {MAX_SECONDS:.0f} s") from error


def _processor() -> str:
    """What compiled code depends on: its instructions, and the C library."""
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.exists() else []
    wanted = ("flags", "features", "model name", "cpu part")
    about = {line for line in lines if line.lower().startswith(wanted)}
    return "\n".join([platform.machine(), *platform.libc_ver(), *sorted(about)])
