"""Where a measurement was made."""

import os
import platform
from pathlib import Path

import torch

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")  # Linux: sizes as in 2048K
UNKNOWN_CACHE = 64 * 2**20


def describe_machine() -> str:
    """One line: processor, cores, system, torch."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        names = [x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")]
        cpu = names[0] if names else cpu
    return f"{cpu}, {os.cpu_count()} cores, {platform.system()}, torch {torch.__version__}"


def cache_bytes(device: torch.device) -> int:
    """Of the largest cache of a GPU or of the first core; 64 MiB where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    sizes = [path.read_text().strip() for path in CACHES.glob("index*/size")]
    return max((2**10 * int(size.rstrip("K")) for size in sizes), default=UNKNOWN_CACHE)
