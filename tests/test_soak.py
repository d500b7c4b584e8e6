"""The soak: what it counts, on a real cloud with an engine process."""

import subprocess
import sys
from pathlib import Path

from ciar_bench.cloud_process import cloud_process, free_port
from ciar_bench.soak import SoakReport, process_tree, resident_bytes, run_soak
from ciar_bench.soak_cli import text

CHILD = "import sys; data = bytearray(50_000_000); print('big', flush=True); sys.stdin.read()"


def test_images_are_drawn_and_given_up_and_all_comes_back(bundle: Path) -> None:
    port, lines = free_port(), list[str]()
    options = ["--engine-process", "--metrics-port", str(port), "--slots", "2"]
    with cloud_process(bundle, core=None, options=options) as cloud:
        assert len(list(process_tree(cloud.pid))) == 2
        report = run_soak(
            cloud.address,
            f"http://127.0.0.1:{port}/metrics",
            cloud.pid,
            num_images=40,
            num_edges=4,
            progress=lines.append,
        )
    assert (report.num_images, report.num_given_up, report.num_errors) == (36, 4, 0), lines
    assert report.left == {"sessions": 0, "slots_in_use": 0, "queued_works": 0}
    assert report.last_bytes > 50 * 2**20
    assert "36 images drawn, 4 given up, 0 errors" in text(report)


def test_memory_is_that_of_all_processes() -> None:
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}])"
    process = subprocess.Popen(
        [sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"big\n"
        assert resident_bytes(process.pid) > 50_000_000
    finally:
        process.communicate()


def test_what_grows_or_stays_is_not_flat() -> None:
    def report(last: float, **more: float) -> SoakReport:
        return SoakReport(
            num_images=9,
            num_given_up=1,
            num_errors=int(more.pop("errors", 0)),
            seconds=1.0,
            first_bytes=100.0,
            last_bytes=last,
            left={"sessions": 0.0} | more,
            resident_bytes=[100],
        )

    assert report(101.9).is_flat
    assert not report(102.1).is_flat
    assert not report(100.0, sessions=1.0).is_flat
    assert not report(100.0, errors=1).is_flat
