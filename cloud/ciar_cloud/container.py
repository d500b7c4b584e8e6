"""What a container may use, where that is less than the machine has: its cgroup, version 2 or 1."""

import math
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
NO_LIMIT = 2**63


def num_cores(root: Path = CGROUP) -> float:
    """Cores by the limit on processor time; infinity without one."""
    if (root / "cpu.max").exists():
        numbers = (root / "cpu.max").read_text().split()
    else:
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        numbers = [read(root / "cpu" / name) or "max" for name in names]
    quota, period = (float(number) if number != "max" else math.inf for number in numbers)
    return quota / period if 0 < quota < math.inf else math.inf


def free_bytes(root: Path = CGROUP) -> int:
    """Memory up to the limit on it; more than any machine has without one."""
    limit = read(root / "memory.max") or read(root / "memory/memory.limit_in_bytes") or "max"
    used = read(root / "memory.current") or read(root / "memory/memory.usage_in_bytes") or "0"
    return NO_LIMIT if limit == "max" else max(0, int(limit) - int(used))


def read(path: Path) -> str:
    """Empty where there is no such file."""
    return path.read_text().strip() if path.exists() else ""
