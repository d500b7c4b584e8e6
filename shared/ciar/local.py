"""LocalVerifier: the cloud without a network, one image at a time.

It is the oracle that the remote one must equal.
"""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from torch import Tensor

from ciar.session import PrefixWork, SessionState, VerifyWork
from ciar.target import Target
from ciar.types import ImageRequest, ModelInfo, Prefix, Timings, Verdict, VerifyBatch

EncodeText = Callable[[str], Tensor]
"""A prompt to its text features [L, condition_dim]."""


class LocalVerifier:
    """Serves slot 0 of a target in the calling thread."""

    def __init__(self, target: Target, encode_text: EncodeText, info: ModelInfo) -> None:
        self._target = target
        self._encode_text = encode_text
        self._info = info

    async def info(self) -> ModelInfo:
        return self._info

    @asynccontextmanager
    async def open(self, request: ImageRequest) -> AsyncIterator["LocalSession"]:
        self._info.check_features(request.features)
        yield LocalSession(self._target, self._encode_text(request.prompt), request)


class LocalSession:
    def __init__(self, target: Target, condition: Tensor, request: ImageRequest) -> None:
        config = target.config
        self._target = target
        self._state = SessionState(
            request,
            condition,
            num_tokens=config.num_tokens,
            vocab_size=config.vocab_size,
            feature_dim=target.model.feature_dim,
        )
        timings = self._run(PrefixWork(self._state, request.num_prefix))
        self.prefix = Prefix(
            session_id="local",
            tokens=tuple(self._state.tokens),
            condition=target.condition_rows(condition),
            lease_seconds=float("inf"),
            timings=timings,
        )

    async def verify(self, batch: VerifyBatch) -> Verdict:
        work = VerifyWork(self._state, batch)
        timings = self._run(work)
        return replace(work.verdict, timings=timings)

    def _run(self, work: PrefixWork | VerifyWork) -> Timings:
        started = time.perf_counter()
        num_forwards = num_positions = 0
        is_done = isinstance(work, PrefixWork) and work.is_done
        while not is_done:
            feed = work.feed(0)
            (logits,) = self._target.extend([feed])
            is_done = work.receive(logits)
            num_forwards += 1
            num_positions += feed.num_new_rows
        return Timings(
            compute_seconds=time.perf_counter() - started,
            num_forwards=num_forwards,
            num_positions=num_positions,
        )
