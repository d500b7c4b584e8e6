"""`ciar-bench full-size`: what a checkpoint of a published size costs to load and to draw with.

    resident    memory of the cloud's process beyond that of an interpreter with the same imports
    read        bytes it fetched from the disk until it served; its files are not in memory before
    C(k)        a cloud forward over k new positions
    B x C(k)    the same for B images at once, without the server
    limit       the weights' bytes over the memory's speed: no forward is faster on this machine

Two processes, a real socket, one image; then forwards alone. Counts are from /proc, so this runs on
Linux.
"""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ciar.checkpoint import weights_files
from ciar.event_loop import fast_loop
from ciar.picture import load_vq
from ciar.router import make_router
from ciar_bench.cloud_process import CloudProcess, cloud_process
from ciar_bench.latency import chunk_seconds
from ciar_bench.steps import read_seconds, step_seconds
from ciar_cloud.bundle import load_cloud_model
from ciar_edge.config import DecodeConfig
from ciar_edge.connection import RemoteConfig
from ciar_edge.loop import generate
from ciar_edge.models import EdgeModel, load_draft_model
from ciar_edge.remote import RemoteVerifier
from ciar_edge.result import ImageResult

IMPORTS = "import ciar_cloud.server, ciar_cloud.bundle, torch; torch.zeros(1)"
CHUNKS = (1, 4, 16, 32)
DEADLINE_SECONDS = 600.0


@dataclass(frozen=True, kw_only=True)
class FullSizeReport:
    """Bytes and seconds."""

    weights_bytes: int
    interpreter_bytes: int
    ready_seconds: float
    read_bytes: int
    resident_bytes: int  # when it serves
    drawn_resident_bytes: int  # after the image
    image_seconds: float
    image_pixels: tuple[int, int]
    num_tokens: int
    cloud_calls: float
    cloud_step: dict[int, float]  # C(k)
    batch_steps: dict[str, float]  # B x C(k)
    limit_seconds: float


def measure_full_size(
    bundle: Path,
    *,
    prompt: str,
    dtype: str,
    device: str,
    threads: int,
    share: float,
    batches: Sequence[int] = (),
    cuda_graphs: bool = False,
    progress: Callable[[str], None] = lambda line: None,
) -> FullSizeReport:
    files = weights_files(bundle / "cloud")
    forget(files)
    interpreter = int(subprocess.check_output([sys.executable, "-c", RESIDENT_SCRIPT]))
    edge = load_draft_model(bundle / "edge")
    progress("starting the cloud")
    started = time.perf_counter()
    options = ["--dtype", dtype, "--device", device, "--slots", "1"]
    options += ["--cuda-graphs"] if cuda_graphs else []
    with cloud_process(bundle, core=None, threads=threads, options=options) as cloud:
        ready_seconds = time.perf_counter() - started
        read_bytes = count(cloud, "io", "read_bytes")
        resident = 1024 * count(cloud, "status", "VmRSS")
        progress("drawing")
        image, steps = draw(cloud.address, edge, prompt, share)
        drawn_resident = 1024 * count(cloud, "status", "VmRSS")
    with torch.inference_mode():
        tokens = torch.tensor(image.tokens)
        side = round(len(tokens) ** 0.5)
        pixels = load_vq(bundle / "vq").decode(tokens.view(1, side, side))
    weights_bytes = sum(path.stat().st_size for path in files)
    batch_steps = {}
    torch.set_num_threads(threads or torch.get_num_threads())
    if batches:
        progress("forwards of several images")
        cloud_model = load_cloud_model(str(bundle), device=device, dtype=dtype)
        rows = len(cloud_model.encoder.encode([prompt])[0])
        steps_of = step_seconds(
            cloud_model.target,
            batches,
            CHUNKS,
            num_condition=rows,
            has_static_steps=cuda_graphs,
        )
        batch_steps = {f"{b} x C({k})": seconds for (b, k), seconds in steps_of.items()}
    return FullSizeReport(
        weights_bytes=weights_bytes,
        interpreter_bytes=interpreter,
        ready_seconds=ready_seconds,
        read_bytes=read_bytes,
        resident_bytes=resident - interpreter,
        drawn_resident_bytes=drawn_resident - interpreter,
        image_seconds=image.seconds,
        image_pixels=(pixels.shape[-1], pixels.shape[-2]),
        num_tokens=len(tokens),
        cloud_calls=image.cloud_calls,
        cloud_step=steps,
        batch_steps=batch_steps,
        limit_seconds=read_seconds(weights_bytes, device),
    )


def draw(
    address: str, edge: EdgeModel, prompt: str, share: float
) -> tuple[ImageResult, dict[int, float]]:
    """One image, a random share of its tokens asked for, and C(k)."""

    async def both() -> tuple[ImageResult, dict[int, float]]:
        config = RemoteConfig(deadline_seconds=DEADLINE_SECONDS)
        async with RemoteVerifier(address, config=config) as verifier:
            info = await verifier.info()
            image = await generate(
                prompt,
                model=edge,
                router=make_router("random", budget=share, seed=0),
                verifier=verifier,
                config=DecodeConfig(),
                sampling=info.sampling,
            )
            return image, await chunk_seconds(verifier, info.sampling, info, prompt=prompt)

    with asyncio.Runner(loop_factory=fast_loop()) as runner:
        return runner.run(both())


RESIDENT_SCRIPT = f"""{IMPORTS}
lines = open("/proc/self/status").read().splitlines()
print(1024 * next(int(x.split()[1]) for x in lines if x.startswith("VmRSS")))
"""


def count(cloud: CloudProcess, file: str, name: str) -> int:
    """A number of /proc/PID/file."""
    lines = Path(f"/proc/{cloud.pid}/{file}").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def forget(files: list[Path]) -> None:
    """Drop the files from the page cache, as if they had just been mounted."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
