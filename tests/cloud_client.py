"""An edge without a model, for tests of the cloud: speaks the protocol, drafts at random."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import torch
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode, aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ciar import wire
from ciar.types import (
    ImageRequest,
    Prefix,
    Resume,
    SamplingParams,
    TokenSpan,
    Verdict,
    VerifyBatch,
    no_features,
)
from ciar.v1 import collaboration_pb2 as pb
from ciar.v1 import collaboration_pb2_grpc as pb_grpc
from ciar_cloud.bundle import FrontModel
from ciar_cloud.config import ServeConfig
from ciar_cloud.engine import Engine
from ciar_cloud.server import CloudServer
from tests.rounding import round_features
from tests.tiny import PROMPT

T, V, F = 16, 24, 8
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def request(seed: int, *, num_prefix: int = 0, prompt: str = PROMPT) -> ImageRequest:
    return ImageRequest(
        prompt=prompt, num_prefix=num_prefix, sampling=SamplingParams(seed=seed, cfg_scale=2.0)
    )


class Client:
    """Speaks the protocol to one server."""

    def __init__(self, server: CloudServer, port: int, channel: aio.Channel) -> None:
        self.server = server
        self.port = port
        self.channel = channel
        self.stub = pb_grpc.CollaborationStub(channel)
        self.info = server._servicer.info

    async def inject(self, image: ImageRequest, *, timeout: float = 20) -> Prefix:
        answer = await self.stub.PrefixInject(wire.prefix_request_to_proto(image), timeout=timeout)
        return wire.prefix_from_proto(answer, info=self.info)

    async def attach(self, prefix: Prefix) -> "Link":
        first = pb.VerifyBatchRequest(attach=pb.Attach(session_id=prefix.session_id))
        return await self.open(first)

    async def resume(self, resume: Resume) -> "Link":
        return await self.open(
            pb.VerifyBatchRequest(resume=wire.resume_to_proto(resume, dtype="fp16"))
        )

    async def open(self, first: pb.VerifyBatchRequest) -> "Link":
        link = Link(self)
        await link.send(first)
        link.num_known = (await link.receive()).attached.num_known
        return link

    async def session(self, image: ImageRequest) -> "Link":
        link = await self.attach(await self.inject(image))
        return link

    async def health(self, service: str = wire.SERVICE_NAME) -> int:
        stub = health_pb2_grpc.HealthStub(self.channel)
        request = health_pb2.HealthCheckRequest(service=service)
        answer = await stub.Check(request, timeout=20)  # type: ignore[attr-defined]
        return int(answer.status)

    async def is_free(self) -> bool:
        """Whether every session and slot comes free within a few seconds."""
        for _ in range(2000):
            if not len(self.server.sessions) and not self.server.engine.num_slots_in_use:
                return True
            await asyncio.sleep(0.01)
        return False


class Link:
    """One VerifyBatch stream."""

    def __init__(self, client: Client) -> None:
        self.call = client.stub.VerifyBatch(timeout=30)
        self.info = client.info
        self.num_known = 0

    async def send(self, message: pb.VerifyBatchRequest) -> None:
        await self.call.write(message)

    async def receive(self) -> pb.VerifyBatchResponse:
        """Raises `CiarError` with the status of a stream that ended instead."""
        try:
            answer = await self.call.read()
        except aio.AioRpcError as error:
            raise wire.error_from_rpc(error) from error
        if answer is aio.EOF:
            raise StreamEnded(await self.call.code())
        assert isinstance(answer, pb.VerifyBatchResponse)
        return answer

    async def send_batch(self, batch: VerifyBatch) -> None:
        proto = wire.verify_batch_to_proto(batch, dtype="fp16")
        await self.send(pb.VerifyBatchRequest(batch=proto))

    async def verdict(self) -> Verdict:
        return wire.verdict_from_proto((await self.receive()).verdict, info=self.info)

    async def verify(self, batch: VerifyBatch) -> Verdict:
        await self.send_batch(batch)
        return await self.verdict()

    async def finish(self) -> None:
        counts = wire.ImageCounts(
            num_prefix=1,
            num_kept=2,
            num_agreed=3,
            num_drawn=T - 6,
            num_corrected=1,
            num_fallback=0,
            num_round_trips=4,
            num_resumes=0,
            num_forwards=6,
            image_seconds=0.5,
        )
        await self.send(pb.VerifyBatchRequest(finish=wire.finish_to_proto(counts)))
        assert (await self.receive()).HasField("finished")


class StreamEnded(Exception):
    pass


def thread_engine(client: Client) -> Engine:
    """Of a cloud in a single process."""
    engine = client.server.engine
    assert isinstance(engine, Engine)
    return engine


@asynccontextmanager
async def cloud(model: FrontModel, **settings: Any) -> AsyncIterator[Client]:
    config = ServeConfig(
        **{"port": 0, "metrics_port": 0, "slots": 8, "single_process": True} | settings
    )
    server = CloudServer(model, config)
    port = await server.start()
    try:
        async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Client(server, port, channel)
    finally:
        await server.stop()


def uncertain(position: int, tokens: list[int], epoch: int = 0) -> VerifyBatch:
    return VerifyBatch(
        position=position,
        tokens=tuple(tokens),
        uncertain=(True,) * len(tokens),
        features=no_features(F),
        epoch=epoch,
    )


class Sketch:
    """An edge without a model: drafts random tokens, keeps some, remembers what is known.

    run_on: tokens wanted behind a difference.
    """

    def __init__(
        self, seed: int, tokens: tuple[int, ...] = (), *, keep: float = 0.0, run_on: int = 0
    ) -> None:
        self.tokens = list(tokens)
        self.uncertain = [True] * len(tokens)
        self.rows: list[torch.Tensor] = []
        self.epoch = 0
        self._keep, self._run_on = keep, run_on
        self._seed = seed

    def batch(self) -> VerifyBatch:
        """The same from the same known tokens."""
        position = len(self.tokens)
        rng = random.Random(f"{self._seed} {position}")
        count = rng.randint(1, min(4, T - position))
        flags = tuple(rng.random() >= self._keep for _ in range(count))
        noise = torch.Generator().manual_seed(rng.randrange(2**32))
        rows = torch.randn(flags.count(False), F, generator=noise)
        return VerifyBatch(
            position=position,
            tokens=tuple(rng.randrange(V) for _ in range(count)),
            uncertain=flags,
            features=round_features(rows, dtype="fp16"),
            epoch=self.epoch,
            run_on=self._run_on,
        )

    def take(self, batch: VerifyBatch, verdict: Verdict) -> None:
        count = verdict.num_agreed
        self.tokens += batch.tokens[:count]
        self.uncertain += batch.uncertain[:count]
        self.rows += batch.features[: batch.uncertain[:count].count(False)]
        self.tokens += verdict.drawn
        self.uncertain += [True] * len(verdict.drawn)
        self.epoch += count < len(batch.tokens)

    async def go_on(self, link: Link, until: int = T) -> list[int]:
        while len(self.tokens) < until:
            batch = self.batch()
            self.take(batch, await link.verify(batch))
        return self.tokens

    def resume(self, image: ImageRequest) -> Resume:
        history = TokenSpan(
            position=0,
            tokens=tuple(self.tokens),
            uncertain=tuple(self.uncertain),
            features=torch.stack(self.rows) if self.rows else no_features(F),
        )
        return Resume(request=image, history=history, epoch=self.epoch)


async def draw(client: Client, seed: int, *, keep: float = 0.0, run_on: int = 0) -> list[int]:
    prefix = await client.inject(request(seed, num_prefix=2))
    link = await client.attach(prefix)
    tokens = await Sketch(seed, prefix.tokens, keep=keep, run_on=run_on).go_on(link)
    await link.finish()
    return tokens


async def status_of(call: Any) -> tuple[StatusCode, Any]:
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value


def retry_seconds(error: Any) -> float:
    details = Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    retry = RetryInfo()
    assert any(detail.Unpack(retry) for detail in details.details)
    return float(retry.retry_delay.ToNanoseconds()) / 1e9


def metric(client: Client, name: str, **labels: str) -> float | None:
    return client.server.metrics.registry.get_sample_value(name, labels)
