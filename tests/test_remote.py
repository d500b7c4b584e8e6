"""The remote verifier equals the local one token for token, whatever becomes of the cloud."""

import asyncio
import math
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from grpc import aio

from ciar.errors import (
    CloudUnavailable,
    DeadlineExceeded,
    InvalidInput,
    Overloaded,
    PairMismatch,
    SessionLost,
)
from ciar.local import LocalVerifier
from ciar.packing import PackedDtype
from ciar.router import Router, make_router
from ciar.target import Target
from ciar.types import ImageRequest, SamplingParams, Verdict, VerifyBatch, no_features
from ciar.v1 import collaboration_pb2 as pb
from ciar.v1.collaboration_pb2_grpc import (
    CollaborationServicer,
    CollaborationStub,
    add_CollaborationServicer_to_server,
)
from ciar.verifier import Session, Verifier
from ciar.wire import IMAGE_HEADER, verify_batch_to_proto
from ciar_cloud.bundle import CloudModel, load_cloud_model
from ciar_cloud.config import ServeConfig
from ciar_cloud.interceptor import caller_of
from ciar_cloud.server import CloudServer
from ciar_cloud.solo import draw_alone
from ciar_edge.config import DecodeConfig, Mode
from ciar_edge.connection import Patience, RemoteConfig, Traffic, check_address
from ciar_edge.history import History
from ciar_edge.image import warnings_of
from ciar_edge.loop import generate
from ciar_edge.models import EdgeModel, load_draft_model
from ciar_edge.remote import RemoteVerifier
from ciar_edge.remote_session import RemoteSession
from ciar_edge.result import ImageResult, Origin, Origins, Silent
from tests.rounding import round_features
from tests.tiny import PROMPT

Run = Callable[[Awaitable[Any]], Any]
T, V = 16, 24
QUICK = RemoteConfig(feature_dtype="fp16", deadline_seconds=20, resume_seconds=15)
PATIENT = replace(QUICK, deadline_seconds=150, resume_seconds=120, max_resumes=1000)


@pytest.fixture(scope="module")
def edge(bundle: Path) -> EdgeModel:
    return load_draft_model(bundle / "edge")


@asynccontextmanager
async def serving(model: CloudModel, **settings: Any) -> AsyncIterator[str]:
    """A real cloud in this process; gives its address."""
    defaults = {"port": 0, "metrics_port": 0, "slots": 2, "single_process": True}
    server = CloudServer(model, ServeConfig(**defaults | settings))
    port = await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop()


@asynccontextmanager
async def reaching(
    model: CloudModel, config: RemoteConfig = QUICK, **settings: Any
) -> AsyncIterator[RemoteVerifier]:
    """An edge's verifier and a cloud for it."""
    async with (
        serving(model, **settings) as address,
        RemoteVerifier(address, config=config) as verifier,
    ):
        yield verifier


def local(model: CloudModel) -> LocalVerifier:
    target = Target(model.target, num_slots=1, draft=model.draft)
    return LocalVerifier(target, lambda prompt: model.encoder.encode([prompt])[0], model.info)


def request(seed: int = 5, *, num_prefix: int = 2, fingerprint: str = "") -> ImageRequest:
    sampling = SamplingParams(seed=seed, cfg_scale=2.0)
    return ImageRequest(
        prompt=PROMPT, sampling=sampling, num_prefix=num_prefix, fingerprint=fingerprint
    )


# ------------------------------------------------------------------------------ a scripted edge


@dataclass(frozen=True, kw_only=True)
class Script:
    """An edge that drafts by dice keyed with the position: the same batches for every verifier."""

    seed: int = 0
    max_batch: int = 4
    kept_share: float = 0.6
    dtype: PackedDtype = "fp32"

    def batch(self, position: int, *, epoch: int) -> VerifyBatch:
        dice = random.Random(self.seed * 1000 + position)
        length = min(dice.randint(1, self.max_batch), T - position)
        uncertain = tuple(dice.random() >= self.kept_share for _ in range(length))
        generator = torch.Generator().manual_seed(position)
        features = torch.randn(uncertain.count(False), 8, generator=generator)
        return VerifyBatch(
            position=position,
            tokens=tuple(dice.randrange(V) for _ in range(length)),
            uncertain=uncertain,
            features=round_features(features, self.dtype),
            epoch=epoch,
        )


async def draw(
    session: Session,
    script: Script,
    *,
    before: Callable[[int], Awaitable[None]] | None = None,
) -> list[int]:
    """A whole image; `before` is awaited with the number of known tokens before each batch."""
    known, epoch = list(session.prefix.tokens), 0
    while len(known) < T:
        if before:
            await before(len(known))
        batch = script.batch(len(known), epoch=epoch)
        verdict = await session.verify(batch)
        known += batch.tokens[: verdict.num_agreed]
        if verdict.token is not None:
            known.append(verdict.token)
        if verdict.num_agreed < len(batch.tokens):
            epoch = verdict.epoch + 1
    return known


async def whole(verifier: Verifier, script: Script, seed: int = 5) -> list[int]:
    async with verifier.open(request(seed)) as session:
        return await draw(session, script)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("kept_share", [0.0, 0.6, 1.0])
def test_remote_is_local(
    run: Run, model: CloudModel, dtype: PackedDtype, kept_share: float
) -> None:
    """All verified, some kept, nothing asked: the same tokens, for features rounded once."""
    script = Script(kept_share=kept_share, dtype=dtype)

    async def both() -> tuple[list[int], list[int], Traffic]:
        async with serving(model) as address:
            config = replace(QUICK, feature_dtype=dtype)
            async with RemoteVerifier(address, config=config) as verifier:
                found = await whole(verifier, script)
                return found, await whole(local(model), script), verifier.traffic

    found, expected, traffic = run(both())
    assert found == expected
    assert traffic.num_round_trips > 0
    assert traffic.num_resumes == 0


def test_a_cloud_with_steps_of_fixed_shapes_draws_the_same(run: Run, model: CloudModel) -> None:
    script = Script(kept_share=0.5)

    async def both() -> tuple[list[int], list[int]]:
        async with reaching(model, cuda_graphs=True) as verifier:
            return await whole(verifier, script), await whole(local(model), script)

    found, expected = run(both())
    assert found == expected


def test_what_the_cloud_says_of_itself(run: Run, model: CloudModel) -> None:
    async def ask() -> None:
        async with reaching(model) as verifier:
            assert await verifier.info() == model.info
            before = replace(verifier.traffic)
            assert await verifier.info() == model.info
            assert verifier.traffic == before

    run(ask())


def test_the_prefix_is_the_local_one(run: Run, model: CloudModel) -> None:
    async def ask() -> None:
        async with (
            reaching(model) as verifier,
            verifier.open(request()) as remote,
            local(model).open(request()) as session,
        ):
            assert remote.prefix.tokens == session.prefix.tokens
            assert torch.equal(remote.prefix.condition, session.prefix.condition)

    run(ask())


def test_eight_edges_at_once_draw_as_if_alone(run: Run, model: CloudModel) -> None:
    async def compare() -> None:
        async with reaching(model, slots=3, min_idle_seconds=0.0) as verifier:
            seeds, script = range(8), Script(dtype="fp16")
            found = await asyncio.gather(*(whole(verifier, script, seed) for seed in seeds))
            for seed, tokens in zip(seeds, found, strict=True):
                assert tokens == await whole(local(model), script, seed)

    run(compare())


# ------------------------------------------------------------------------------ the edge's loop


def router(
    edge: EdgeModel, *, budget: float | None = 0.3, threshold: float | None = None, seed: int = 5
) -> Router:
    rule: Any = {"budget": budget, "threshold": threshold, "calibration": edge.calibration}
    return make_router(edge.router, **rule, seed=seed)


async def edge_image(
    verifier: Verifier,
    edge: EdgeModel,
    *,
    budget: float | None = 0.3,
    threshold: float | None = None,
    **more: Any,
) -> ImageResult:
    return await generate(
        PROMPT,
        model=edge,
        router=router(edge, budget=budget, threshold=threshold),
        verifier=verifier,
        sampling=SamplingParams(seed=5, cfg_scale=2.0),
        **more,
    )


@pytest.mark.parametrize("mode", ["blocking", "optimistic", "exact"])
@pytest.mark.parametrize("budget", [0.0, 0.3, 1.0])
def test_an_image_over_the_wire_is_the_local_one(
    run: Run, model: CloudModel, edge: EdgeModel, mode: Mode, budget: float
) -> None:
    """Tokens and who decided them; with everything verified, they are the cloud's alone."""
    config = DecodeConfig(mode=mode, prefix_rate=0.2)

    async def compare() -> None:
        async with reaching(model, replace(QUICK, feature_dtype="fp32")) as verifier:
            found = await edge_image(verifier, edge, budget=budget, config=config)
        expected = await edge_image(local(model), edge, budget=budget, config=config)
        assert (found.tokens, found.origins) == (expected.tokens, expected.origins)
        if mode == "blocking":  # what the others send together depends on times
            assert found.cloud_forwards == expected.cloud_forwards
        assert found.uplink_bytes > 0
        if mode == "exact" or budget == 1:
            features = model.encoder.encode([PROMPT])[0]
            alone = draw_alone(Target(model.target, num_slots=1), request(), features)
            assert found.tokens == alone.tokens
        if mode == "blocking" and budget == 0:
            assert found.cloud_forwards == found.prefix_tokens == 3

    run(compare())


def test_an_image_whose_cloud_dies_for_good_is_finished_by_the_edge(
    run: Run, bundle: Path, edge: EdgeModel, tmp_path: Path
) -> None:
    """It says so: in the result, and in words."""

    async def ask() -> None:
        cloud = CloudProcess(bundle, tmp_path)
        address = await cloud.address()

        class Killer(Silent):
            def on_call(self, *, batch: VerifyBatch, verdict: Verdict, seconds: float) -> None:
                cloud.kill()

        try:
            config = replace(QUICK, resume_seconds=0.5)
            async with RemoteVerifier(address, config=config) as verifier:
                result = await edge_image(verifier, edge, budget=1.0, observer=Killer())
        finally:
            cloud.kill()
        assert len(result.tokens) == T
        assert result.round_trips == 1
        assert result.fallbacks > 0
        assert result.resumes == 0
        said = "\n".join(warnings_of(result))
        assert f"no cloud at {address}" in said
        assert f"{result.fallbacks} uncertain tokens were decided by the edge" in said

    run(ask())


# ------------------------------------------------------------------------------ a cloud that dies


class CloudProcess:
    """`ciar-cloud serve` on a port, to be killed."""

    def __init__(self, bundle: Path, folder: Path, *, port: int = 0) -> None:
        self._ready = folder / f"ready-{time.monotonic_ns()}"
        command = [sys.executable, "-m", "ciar_cloud", "serve", "--model", str(bundle)]
        command += ["--port", str(port), "--metrics-port", "0", "--exit-with-parent"]
        command += ["--threads", "1", "--ready-file", str(self._ready)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    async def address(self) -> str:
        for _ in range(6000):
            if self._ready.exists():
                return self._ready.read_text().strip()
            assert self.process.poll() is None, "the cloud ended"
            await asyncio.sleep(0.01)
        raise AssertionError("the cloud is not ready after a minute")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.mark.parametrize("dtype", ["fp16", "int8"])
def test_a_killed_cloud_is_replaced_in_mid_image(
    run: Run, model: CloudModel, bundle: Path, tmp_path: Path, dtype: PackedDtype
) -> None:
    """SIGKILL, a second cloud on the same port: the same tokens, by resume."""
    script = Script(dtype=dtype)

    async def compare() -> None:
        clouds = [CloudProcess(bundle, tmp_path)]
        address = await clouds[0].address()

        async def kill_once(num_known: int) -> None:
            if num_known > 6 and len(clouds) == 1:
                clouds[0].kill()
                clouds.append(CloudProcess(bundle, tmp_path, port=int(address.split(":")[1])))

        try:
            config = replace(PATIENT, feature_dtype=dtype)
            async with (
                RemoteVerifier(address, config=config) as verifier,
                verifier.open(request()) as session,
            ):
                found = await draw(session, script, before=kill_once)
        finally:
            for cloud in clouds:
                cloud.kill()
        assert len(clouds) == 2
        assert found == await whole(local(model), script)
        assert verifier.traffic.num_resumes == 1

    run(compare())


SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"max_gap": 0.5},
    {"features": "none"},
    {"features": "recompute"},
    {"wavefront": 2},
    {"wavefront": 2, "max_gap": 0.5},
    {"mode": "exact"},
    {"mode": "exact", "wavefront": 2},
)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_killed_cloud_changes_nothing_of_an_image_that_goes_ahead(
    run: Run,
    bundle: Path,
    edge: EdgeModel,
    tmp_path: Path,
    settings: dict[str, Any],
) -> None:
    """SIGKILL with batches in flight: what was on its way is sent again, to another cloud.

    Without late verification the tokens are those of `blocking`, by a cloud that lives.
    """
    config = DecodeConfig(**{"mode": "optimistic", "prefix_rate": 0.2, **settings})
    rule: Any = {"budget": None, "threshold": edge.calibration["interval"][40]}

    async def compare() -> None:
        clouds = [CloudProcess(bundle, tmp_path)]
        address = await clouds[0].address()

        class Killer(Silent):
            def on_draft(self, *, position: int, seconds: float) -> None:
                if position >= T // 2 and len(clouds) == 1:
                    clouds[0].kill()
                    clouds.append(CloudProcess(bundle, tmp_path, port=int(address.split(":")[1])))

        try:
            patient = replace(PATIENT, feature_dtype="fp32")
            async with RemoteVerifier(address, config=patient) as verifier:
                found = await edge_image(verifier, edge, **rule, config=config, observer=Killer())
        finally:
            for cloud in clouds:
                cloud.kill()
        model = load_cloud_model(str(bundle), recompute_features=True)
        expected = await edge_image(local(model), edge, **rule, config=config)
        assert len(clouds) == 2 and found.resumes == 1 and found.fallbacks == 0
        assert (found.tokens, found.origins) == (expected.tokens, expected.origins)
        if config.mode == "optimistic" and config.max_gap == math.inf:
            waiting = replace(config, mode="blocking")
            oracle = await edge_image(local(model), edge, **rule, config=waiting)
            assert found.tokens == oracle.tokens

    run(compare())


def test_a_cloud_that_stays_away_is_given_up(run: Run, bundle: Path, tmp_path: Path) -> None:
    """The error names the address and the remedy, and comes again at once for the next batch."""

    async def ask() -> None:
        cloud = CloudProcess(bundle, tmp_path)
        address = await cloud.address()
        try:
            config = replace(QUICK, resume_seconds=0.6)
            async with (
                RemoteVerifier(address, config=config) as verifier,
                verifier.open(request()) as session,
            ):
                batch = Script().batch(2, epoch=0)
                await asyncio.sleep(0.1)  # the stream is up
                sent = session.traffic.uplink_bytes
                cloud.kill()
                started = time.monotonic()
                with pytest.raises(CloudUnavailable, match=f"{address}.*ciar-cloud serve"):
                    await session.verify(batch)
                assert time.monotonic() - started < 15
                batch_bytes = verify_batch_to_proto(batch, dtype=config.feature_dtype).ByteSize()
                assert session.traffic.uplink_bytes - sent <= batch_bytes + 8, "nobody was there"
                started = time.monotonic()
                with pytest.raises(CloudUnavailable):
                    await session.verify(batch)
                assert time.monotonic() - started < 0.5
        finally:
            cloud.kill()

    run(ask())


def test_a_cloud_that_hangs_misses_the_deadline_and_the_late_verdict_is_dropped(
    run: Run, model: CloudModel, bundle: Path, tmp_path: Path
) -> None:
    """SIGSTOP, a missed deadline, SIGCONT: the session goes on at a higher epoch."""
    script = Script(kept_share=0.0)

    async def compare() -> None:
        cloud = CloudProcess(bundle, tmp_path)
        address = await cloud.address()
        try:
            config = replace(QUICK, feature_dtype="fp32", deadline_seconds=0.5)
            async with (
                RemoteVerifier(address, config=config) as verifier,
                verifier.open(request()) as session,
            ):
                await session.verify(script.batch(2, epoch=0))
                os.kill(cloud.process.pid, signal.SIGSTOP)
                with pytest.raises(DeadlineExceeded, match="0.5 s.*--deadline"):
                    await session.verify(script.batch(3, epoch=1))
                os.kill(cloud.process.pid, signal.SIGCONT)
                assert session.traffic.num_round_trips == 1
                found = await finish_from(session, script, position=2, epoch=2)
                assert session.traffic.num_resumes == 0
        finally:
            cloud.kill()
        async with local(model).open(request()) as session:
            assert found == await finish_from(session, script, position=2, epoch=2)

    run(compare())


async def finish_from(session: Session, script: Script, *, position: int, epoch: int) -> list[int]:
    """Draw from a position that the cloud may be beyond of: it rolls back."""
    known = list(session.prefix.tokens[:position])
    while len(known) < T:
        batch = script.batch(len(known), epoch=epoch)
        verdict = await session.verify(batch)
        assert (verdict.epoch, verdict.position) == (epoch, batch.position)
        known += batch.tokens[: verdict.num_agreed]
        known += [] if verdict.token is None else [verdict.token]
        epoch += 1
    return known


# ------------------------------------------------------------------------------ resume


def test_a_resume_at_every_position_gives_the_same_tokens(run: Run, model: CloudModel) -> None:
    """The stream is broken before each batch in turn."""
    script = Script(dtype="fp16", max_batch=3)

    async def compare() -> None:
        expected = await whole(local(model), script)
        async with reaching(model) as verifier:
            for at in range(2, T):
                async with verifier.open(request()) as session:
                    is_broken = asyncio.Event()

                    async def break_once(num_known: int) -> None:
                        if num_known >= at and not is_broken.is_set():  # noqa: B023
                            is_broken.set()  # noqa: B023
                            await break_stream(session)

                    assert await draw(session, script, before=break_once) == expected
                    assert session.traffic.num_resumes == is_broken.is_set()

    run(compare())


def test_a_resume_behind_a_difference_leaves_out_what_is_void(run: Run, model: CloudModel) -> None:
    """Nobody has taken the batches behind it back yet."""

    async def ask() -> None:
        async with reaching(model) as verifier:
            right = await whole(local(model), Script(kept_share=0.0))
            async with verifier.open(request(num_prefix=2)) as session:
                assert isinstance(session, RemoteSession)
                parts: Any = {"features": no_features(8), "uncertain": (True,)}
                first = VerifyBatch(position=2, tokens=((right[2] + 1) % V,), run_on=2, **parts)
                behind = VerifyBatch(position=3, tokens=(right[3],), **parts)
                answer, void = (asyncio.create_task(session.verify(b)) for b in (first, behind))
                verdict = await answer
                message = session._resume_message().resume
                assert message.epoch == 1 and not void.done()
                assert [*message.history.tokens] == [*session.prefix.tokens, *right[2:5]]
                assert verdict.drawn == tuple(right[2:5])
                void.cancel()

    run(ask())


async def break_stream(session: RemoteSession) -> None:
    """Have the cloud close the stream, and wait until the session has noticed."""
    outbox = session._outbox
    assert outbox is not None
    outbox.put_nowait(pb.VerifyBatchRequest(cancel=pb.Cancel(reason="test")))
    while session._outbox is not None:
        await asyncio.sleep(0.001)


def test_a_lease_that_ran_out_is_mended_by_a_resume(run: Run, model: CloudModel) -> None:
    """The session is gone before the stream attaches: SESSION_LOST at once."""

    async def compare() -> None:
        async with reaching(model, lease_seconds=0) as verifier:
            found = await whole(verifier, Script(dtype="fp16"))
            assert found == await whole(local(model), Script(dtype="fp16"))
            assert verifier.traffic.num_resumes == 1

    run(compare())


# ------------------------------------------------------------------------------ errors


def test_a_mismatched_pair_is_refused(run: Run, model: CloudModel) -> None:
    async def ask() -> None:
        async with reaching(model) as verifier:
            with pytest.raises(PairMismatch, match=model.info.fingerprint):
                async with verifier.open(request(fingerprint="0" * 16)):
                    raise AssertionError("it was opened")

    run(ask())


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
def test_an_address_without_a_cloud_is_named(run: Run, host: str) -> None:
    address = f"{host}:{closed_port()}"

    async def ask() -> None:
        async with RemoteVerifier(address, config=RemoteConfig(connect_seconds=3)) as verifier:
            with pytest.raises(CloudUnavailable, match=address):
                await verifier.info()

    run(ask())


def test_a_server_of_another_protocol_is_told_from_a_cloud(run: Run) -> None:
    """gRPC, but not ours; and no gRPC at all."""

    async def ask() -> None:
        server = aio.server()
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with RemoteVerifier(f"127.0.0.1:{port}") as verifier:
                with pytest.raises(CloudUnavailable, match="does not speak the protocol"):
                    await verifier.info()
        finally:
            await server.stop(0)
        web = await asyncio.start_server(speak_http, "127.0.0.1", 0)
        port = web.sockets[0].getsockname()[1]
        config = RemoteConfig(connect_seconds=3)
        async with web, RemoteVerifier(f"127.0.0.1:{port}", config=config) as verifier:
            with pytest.raises(CloudUnavailable, match=f"127.0.0.1:{port}"):
                await verifier.info()

    run(ask())


def test_a_cloud_whose_verdicts_cannot_be_right_is_left(
    run: Run, model: CloudModel, edge: EdgeModel
) -> None:
    """Such a verdict is its fault, not the user's: the edge finishes the picture and says why."""

    class Wrong(CollaborationServicer):
        """A right cloud behind one that agrees to more than it was asked."""

        def __init__(self, stub: Any) -> None:
            self.stub = stub

        async def GetModel(self, message: Any, context: Any) -> Any:
            return await self.stub.GetModel(message)

        async def PrefixInject(self, message: Any, context: Any) -> Any:
            return await self.stub.PrefixInject(message)

        async def VerifyBatch(self, messages: Any, context: Any) -> Any:
            async for reply in self.stub.VerifyBatch(messages):
                if reply.HasField("verdict"):
                    reply.verdict.num_agreed += 9
                yield reply

    async def ask() -> None:
        async with serving(model) as right, aio.insecure_channel(right) as channel:
            server = aio.server()
            add_CollaborationServicer_to_server(Wrong(CollaborationStub(channel)), server)
            address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
            await server.start()
            try:
                config = replace(QUICK, resume_seconds=0.5)
                async with RemoteVerifier(address, config=config) as verifier:
                    result = await edge_image(verifier, edge, budget=1.0)
            finally:
                await server.stop(0)
        assert len(result.tokens) == T
        assert result.round_trips == 0
        assert result.fallbacks == T - result.prefix_tokens
        said = "\n".join(warnings_of(result))
        assert f"{address} sent a reply that cannot be right: num_agreed: " in said

    run(ask())


async def speak_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    writer.close()
    await writer.wait_closed()


def test_bad_prompts_come_back_as_invalid_input(run: Run, model: CloudModel) -> None:
    async def ask() -> None:
        async with reaching(model) as verifier:
            for prompt in ("", "x" * 10_000, "\ud800"):
                with pytest.raises(InvalidInput) as caught:
                    async with verifier.open(replace(request(), prompt=prompt)):
                        raise AssertionError("it was opened")
                assert caught.value.field == "prompt"

    run(ask())


def test_a_bad_batch_ends_the_session_with_the_clouds_reason(run: Run, model: CloudModel) -> None:
    """It is not repeated: another stream would be refused it, too."""

    async def ask() -> None:
        async with reaching(model) as verifier:
            async with verifier.open(request()) as session:
                skipping = replace(Script().batch(2, epoch=0), position=9)
                with pytest.raises(InvalidInput, match="position: 9: .*skips"):
                    await session.verify(skipping)
                assert session.traffic.num_resumes == 0
            assert await whole(verifier, Script(dtype="fp16"))

    run(ask())


def test_a_full_cloud_is_waited_for(run: Run, model: CloudModel) -> None:
    """It holds one session; the second edge comes back until the first is done."""

    async def ask() -> None:
        async with serving(model, max_sessions=1) as address:
            config = replace(QUICK, prefix_seconds=20)
            async with RemoteVerifier(address, config=config) as verifier:
                async with verifier.open(request(1)):
                    waiting = asyncio.create_task(whole(verifier, Script(dtype="fp16"), 2))
                    await asyncio.sleep(0.3)
                    assert not waiting.done()
                assert await waiting == await whole(local(model), Script(dtype="fp16"), 2)
            config = replace(QUICK, prefix_seconds=0.5)
            async with (
                RemoteVerifier(address, config=config) as verifier,
                verifier.open(request(1)),
            ):
                with pytest.raises(Overloaded):
                    await whole(verifier, Script(), 2)

    run(ask())


@pytest.mark.parametrize(
    "address",
    ["", "cloud", "cloud:", ":1", "cloud:0", "cloud:65536", "cloud:x", "http://a:1", "::1:5"],
)
def test_addresses_are_checked(address: str) -> None:
    with pytest.raises(InvalidInput, match="HOST:PORT"):
        check_address(address)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "cloud.example:65535", "[::1]:5", "unix:/a"])
def test_good_addresses_stay_as_they_are(address: str) -> None:
    assert check_address(address) == address


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("deadline_seconds", 0.0),
        ("deadline_seconds", float("nan")),
        ("resume_seconds", float("inf")),
        ("max_resumes", -1),
        ("feature_dtype", "fp8"),
    ],
)
def test_settings_are_checked(field: str, value: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        RemoteConfig(**{field: value})
    assert caught.value.field == field


def test_patience_ends_by_count_by_time_and_waits_as_asked(run: Run) -> None:
    async def ask() -> None:
        lost = SessionLost("x")
        few = RemoteConfig(max_resumes=2, first_backoff_seconds=0.001)
        patience = Patience(few, max_seconds=60)
        for _ in range(2):
            await patience.wait(lost)
        with pytest.raises(SessionLost):
            await patience.wait(lost)
        patience.reset()
        await patience.wait(lost)
        started = time.monotonic()
        await patience.wait(Overloaded("x", retry_seconds=0.2))
        assert time.monotonic() - started >= 0.2
        with pytest.raises(Overloaded):
            await Patience(few, max_seconds=1).wait(Overloaded("x", retry_seconds=2))

    run(ask())


# ------------------------------------------------------------------------------ in the end


def tokens_by_origin(server: CloudServer) -> dict[str, float]:
    """From the cloud's own metrics."""
    return {
        sample.labels["source"]: sample.value
        for metric in server.metrics.registry.collect()
        for sample in metric.samples
        if sample.name == "ciar_cloud_image_tokens_total"
    }


def test_the_cloud_hears_how_the_tokens_came_about(run: Run, model: CloudModel) -> None:
    """The counts of the finished image reach the cloud's metrics, and sum to T."""

    async def ask() -> None:
        server = CloudServer(
            model, ServeConfig(port=0, metrics_port=0, slots=2, single_process=True)
        )
        port = await server.start()
        try:
            async with RemoteVerifier(f"127.0.0.1:{port}", config=QUICK) as verifier:
                await whole(verifier, Script(dtype="fp16"))
                tokens = tokens_by_origin(server)
                assert sum(tokens.values()) == T
                assert tokens["prefix"] == 2
                with pytest.raises(RuntimeError, match="given up"):
                    async with verifier.open(request()) as session:
                        await session.verify(Script().batch(2, epoch=0))
                        raise RuntimeError("given up")
                await cancel_in_mid_image(verifier)
                assert tokens_by_origin(server) == tokens  # no report of an image given up
                assert len(server.sessions) == 0
        finally:
            await server.stop()

    run(ask())


@pytest.mark.parametrize(
    ("budget", "config"),
    [
        (0.0, DecodeConfig()),
        (0.4, DecodeConfig()),
        (0.4, DecodeConfig(wavefront=3)),
        (0.4, DecodeConfig(mode="optimistic")),
        (0.0, DecodeConfig(mode="exact")),
    ],
    ids=str,
)
def test_the_cloud_counts_what_the_image_says(
    run: Run, model: CloudModel, edge: EdgeModel, budget: float, config: DecodeConfig
) -> None:
    """Also where the edge kept its own over the cloud's bonus, and behind the last verdict; and
    with forward passes that are neither a token of the prefix nor a round trip.
    """

    async def ask() -> None:
        server = CloudServer(
            model, ServeConfig(port=0, metrics_port=0, slots=2, single_process=True)
        )
        port = await server.start()
        try:
            async with RemoteVerifier(f"127.0.0.1:{port}", config=QUICK) as verifier:
                result = await generate(
                    PROMPT,
                    model=edge,
                    router=router(edge, budget=budget),
                    verifier=verifier,
                    config=config,
                    sampling=SamplingParams(seed=5),
                )
            counted = tokens_by_origin(server)
            calls = server.metrics.registry.get_sample_value("ciar_cloud_image_calls_total")
            assert calls == result.cloud_forwards
            assert counted["prefix"] == result.prefix_tokens
            assert counted["kept"] == result.counts[Origin.KEPT]
            assert sum(counted.values()) == T
        finally:
            await server.stop()

    run(ask())


def test_an_image_cancelled_as_it_opens_leaves_nothing_behind(
    run: Run, model: CloudModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the session is there, before anybody has it."""

    class Hasty(RemoteSession):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            task = asyncio.current_task()
            assert task is not None
            asyncio.get_running_loop().call_soon(task.cancel)

    monkeypatch.setattr("ciar_edge.remote.RemoteSession", Hasty)

    async def ask() -> None:
        async with reaching(model, lease_seconds=60.0) as verifier:
            await verifier.info()
            before = asyncio.all_tasks()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.create_task(whole(verifier, Script()))
            left = asyncio.all_tasks() - before
            assert {task for task in left if "ciar_edge" in repr(task)} == set()

    run(ask())


async def cancel_in_mid_image(verifier: RemoteVerifier) -> None:
    is_open = asyncio.Event()

    async def hold() -> None:
        async with verifier.open(request()) as session:
            await session.verify(Script().batch(2, epoch=0))
            is_open.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(hold())
    await is_open.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_no_task_is_left_behind(run: Run, model: CloudModel) -> None:
    async def ask() -> None:
        async with serving(model) as address:
            before = asyncio.all_tasks()
            async with RemoteVerifier(address, config=QUICK) as verifier:
                await whole(verifier, Script())
                with pytest.raises(RuntimeError):
                    async with verifier.open(request()):
                        raise RuntimeError("given up")
            left = asyncio.all_tasks() - before
            assert {task for task in left if "ciar_edge" in repr(task)} == set()

    run(ask())


# ------------------------------------------------------------------------------ history


def batch_at(position: int, tokens: tuple[int, ...], kept: str) -> VerifyBatch:
    """kept: a letter a token, `k` kept or `u` uncertain."""
    uncertain = tuple(letter == "u" for letter in kept)
    features = torch.full((kept.count("k"), 2), float(position) + 1)
    return VerifyBatch(position=position, tokens=tokens, uncertain=uncertain, features=features)


def verdict(position: int, *, num_agreed: int, token: int | None = None) -> Verdict:
    return Verdict(epoch=0, position=position, num_agreed=num_agreed, token=token)


def test_the_history_is_what_the_verdicts_made_of_it() -> None:
    history = History((7, 8), num_tokens=10, feature_dim=2)
    history.take(batch_at(2, (1, 2, 3), "kku"), verdict(2, num_agreed=2, token=9))
    history.take(batch_at(5, (4, 5), "ku"), verdict(5, num_agreed=2, token=6))
    history.miss(batch_at(7, (1, 1), "ku"))  # over the cloud's token at 7
    span = history.span(len(history))
    assert span.tokens == (7, 8, 1, 2, 9, 4, 5, 6)
    assert span.uncertain == (True, True, False, False, True, False, True, True)
    assert span.features.tolist() == [[3, 3], [3, 3], [6, 6]]
    shorter = history.span(3)
    assert (shorter.tokens, shorter.num_kept) == ((7, 8, 1), 1)
    history.take(batch_at(7, (1, 1, 2), "kku"), verdict(7, num_agreed=3))
    origins = history.origins()
    assert origins == Origins(
        num_prefix=2, num_kept=4, num_agreed=2, num_drawn=1, num_corrected=1, num_fallback=1
    )


def test_what_follows_the_last_verdict_is_the_edges() -> None:
    history = History((7,), num_tokens=6, feature_dim=2)
    history.miss(batch_at(1, (1, 2), "ku"))
    origins = history.origins()
    assert (origins.num_prefix, origins.num_kept, origins.num_fallback) == (1, 4, 1)


def test_all_calls_of_an_image_carry_its_own_name_for_proxies(
    model: CloudModel, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []

    def recording(metadata: Any, keys: Any) -> Any:
        names.append(dict(metadata)[IMAGE_HEADER])
        return caller_of(metadata, keys)

    async def two_images() -> None:
        async with reaching(model) as verifier:
            for seed in (1, 2):
                await whole(verifier, Script(), seed)

    monkeypatch.setattr("ciar_cloud.servicer.caller_of", recording)
    run(two_images())
    first, second = names[: len(names) // 2], names[len(names) // 2 :]
    assert len(first) == len(second) == 2  # PrefixInject and one stream
    assert len(set(first)) == len(set(second)) == 1
    assert len({first[0], second[0]}) == 2 and len(first[0]) == 24


def test_a_cloud_lost_while_it_opens_an_image_is_asked_again_by_another_name(
    model: CloudModel, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy may send the second name to another replica; for a cloud gone for good it ends."""
    names: list[str] = []
    num_lost = 2

    def losing(metadata: Any, keys: Any) -> Any:
        names.append(dict(metadata)[IMAGE_HEADER])
        if len(names) <= num_lost:
            raise CloudUnavailable("a replica went away")
        return caller_of(metadata, keys)

    async def images() -> None:
        nonlocal num_lost
        async with reaching(model) as verifier:
            assert await whole(verifier, Script(dtype="fp16"), 3) == expected
        assert len(names) == 4 and names[2] == names[3]  # the third try, and its stream
        assert len(set(names)) == 3
        num_lost = 1000
        async with reaching(model, replace(QUICK, resume_seconds=0.3)) as verifier:
            with pytest.raises(CloudUnavailable, match="went away"):
                await whole(verifier, Script(), 3)

    expected = run(whole(local(model), Script(dtype="fp16"), 3))
    monkeypatch.setattr("ciar_cloud.servicer.caller_of", losing)
    run(images())
