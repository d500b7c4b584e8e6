"""Edges without a draft model, for measurements of a cloud: they keep tokens by dice.

What they send does not depend on who answers: the same seed gives the same batches from the same
position, so an image can be drawn again undisturbed and compared token by token.
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from ciar.prefix import DEFAULT_PREFIX_RATE, prefix_length
from ciar.router import DEFAULT_BUDGET
from ciar.types import ImageRequest, ModelInfo, Verdict, VerifyBatch
from ciar.verifier import Session, Verifier

PROMPTS = ("a dog on a beach", "a cat in the snow", "two trees by a river", "a red house")

OnVerdict = Callable[[Verdict, float], None]
"""Told each verdict, and the seconds that it was waited for."""


@dataclass(frozen=True, kw_only=True)
class ScriptedEdge:
    """calls: cloud calls a token of the image, the prefix among them.
    token_seconds: what drafting a token would take.
    """

    calls: float = DEFAULT_BUDGET
    prefix_rate: float = DEFAULT_PREFIX_RATE
    token_seconds: float = 0.0

    def request(self, seed: int, info: ModelInfo) -> ImageRequest:
        return ImageRequest(
            prompt=PROMPTS[seed % len(PROMPTS)],
            sampling=replace(info.sampling, seed=seed),
            num_prefix=self.num_prefix(info),
        )

    def num_prefix(self, info: ModelInfo) -> int:
        return prefix_length(self.prefix_rate, info.num_tokens)

    async def draw(
        self,
        verifier: Verifier,
        info: ModelInfo,
        seed: int,
        *,
        on_verdict: OnVerdict = lambda verdict, seconds: None,
    ) -> list[int]:
        """The tokens of an image."""
        async with verifier.open(self.request(seed, info)) as session:
            return await self.fill(session, info, seed, on_verdict)

    async def fill(
        self, session: Session, info: ModelInfo, seed: int, on_verdict: OnVerdict
    ) -> list[int]:
        clock = asyncio.get_running_loop().time
        known, epoch = list(session.prefix.tokens), 0
        while len(known) < info.num_tokens:
            batch = self.batch(seed, len(known), epoch, info)
            if self.token_seconds:
                await asyncio.sleep(self.token_seconds * len(batch.tokens))
            started = clock()
            verdict = await session.verify(batch)
            on_verdict(verdict, clock() - started)
            known += batch.tokens[: verdict.num_agreed]
            if verdict.token is not None:
                known.append(verdict.token)
            epoch = verdict.epoch + (verdict.num_agreed < len(batch.tokens))
        return known

    def batch(self, seed: int, position: int, epoch: int, info: ModelInfo) -> VerifyBatch:
        """Tokens that are kept, and one that is not: on average as many as `calls` leaves."""
        dice = random.Random(f"{seed} {position}")
        prefix = self.num_prefix(info)
        asked = (self.calls * info.num_tokens - prefix) / (info.num_tokens - prefix)
        count = 1
        while dice.random() >= asked and position + count < info.num_tokens:
            count += 1
        generator = torch.Generator().manual_seed(position)
        features = torch.randn(count - 1, info.feature_dim, generator=generator)
        return VerifyBatch(
            position=position,
            tokens=tuple(dice.randrange(info.vocab_size) for _ in range(count)),
            uncertain=(False,) * (count - 1) + (True,),
            features=features.half().float(),  # as they travel
            epoch=epoch,
        )
