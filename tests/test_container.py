"""Limits of a container, as both versions of cgroups write them."""

import math
from pathlib import Path

import pytest

from ciar_cloud.container import CGROUP, NO_LIMIT, free_bytes, num_cores

LIMITED = {
    "v2": {"cpu.max": "150000 100000\n", "memory.max": "1000\n", "memory.current": "400\n"},
    "v1": {
        "cpu/cpu.cfs_quota_us": "150000\n",
        "cpu/cpu.cfs_period_us": "100000\n",
        "memory/memory.limit_in_bytes": "1000\n",
        "memory/memory.usage_in_bytes": "400\n",
    },
}
FREE = {
    "v2": {"cpu.max": "max 100000\n", "memory.max": "max\n", "memory.current": "400\n"},
    "v1": {
        "cpu/cpu.cfs_quota_us": "-1\n",
        "cpu/cpu.cfs_period_us": "100000\n",
        "memory/memory.limit_in_bytes": "9223372036854771712\n",
        "memory/memory.usage_in_bytes": "400\n",
    },
    "none": {},
}


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize("version", LIMITED)
def test_limits_are_read(version: str, tmp_path: Path) -> None:
    root = write(tmp_path, LIMITED[version])
    assert (num_cores(root), free_bytes(root)) == (1.5, 600)
    used = "memory.current" if version == "v2" else "memory/memory.usage_in_bytes"
    write(root, {used: "1001"})
    assert free_bytes(root) == 0


@pytest.mark.parametrize("version", FREE)
def test_without_limits_nothing_is_short(version: str, tmp_path: Path) -> None:
    root = write(tmp_path, FREE[version])
    assert num_cores(root) == math.inf
    assert free_bytes(root) > NO_LIMIT // 2


def test_this_machine_has_something_left() -> None:
    assert num_cores(CGROUP) > 0 and free_bytes(CGROUP) > 0
