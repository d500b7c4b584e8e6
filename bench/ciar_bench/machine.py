"""Where a measurement was made."""

import os
import platform
from pathlib import Path

import torch


def describe_machine() -> str:
    """One line: processor, cores, system, torch."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        names = [x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")]
        cpu = names[0] if names else cpu
    return f"{cpu}, {os.cpu_count()} cores, {platform.system()}, torch {torch.__version__}"
