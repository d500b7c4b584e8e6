"""Rollouts are the real protocol: what calibration and training see is what edge and cloud commit.

Equalities of tokens hold up to float rounding (many images in one step against one): a draw could
flip where two noisy logits are within about 1e-6 of each other, which none of these seeds hits.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ciar.checkpoint import fingerprint
from ciar.head_output import HeadOutput, reach_of
from ciar.local import LocalSession, LocalVerifier
from ciar.router import make_router
from ciar.session import PrefixWork, SessionState
from ciar.target import Target, TargetModel
from ciar.types import ImageRequest, ModelInfo, SamplingParams, Verdict, VerifyBatch
from ciar.uncertainty import TENSOR_SCORES
from ciar_edge.config import DecodeConfig
from ciar_edge.loop import generate
from ciar_edge.models import EdgeModel, load_draft_model
from ciar_edge.result import ImageResult, Origin
from ciar_train.calibrate import calibrate, score_rows
from ciar_train.model_images import batches, cloud_images
from ciar_train.rollouts import Choice, Keep, Rollout, roll_out
from tests.tiny import TEXT_DIM, write_bundle

GRID, FIRST_SEED = 6, 20
T = GRID * GRID
PROMPTS = ("a", "a dog", "a red cat", "the snow")  # of different lengths, see `encode_text`
SEEDS = [FIRST_SEED + i for i in range(len(PROMPTS))]
DEFAULTS = SamplingParams(cfg_scale=2.0)
FILTERED = SamplingParams(cfg_scale=1.5, temperature=0.8, top_k=12, top_p=0.9)


def encode_text(prompt: str) -> Tensor:
    """[L, TEXT_DIM]: as many rows as letters."""
    generator = torch.Generator().manual_seed(len(prompt))
    return torch.randn(min(len(prompt), 10), TEXT_DIM, generator=generator)


CONDITIONS = [encode_text(prompt) for prompt in PROMPTS]


@dataclass(frozen=True, eq=False)
class Pair:
    target: TargetModel
    edge: EdgeModel
    info: ModelInfo

    def roll_out(self, keep: Keep | None, sampling: SamplingParams, num_prefix: int) -> Rollout:
        return roll_out(
            self.target,
            self.edge.draft,
            CONDITIONS,
            seeds=SEEDS,
            sampling=sampling,
            num_prefix=num_prefix,
            keep=keep,
        )


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    bundle: Path = write_bundle(tmp_path_factory.mktemp("bundle"), grid_size=GRID, seed=3)
    target = TargetModel.load(bundle / "cloud")
    info = ModelInfo(
        name="tiny",
        family="llamagen",
        fingerprint=fingerprint(bundle / "cloud"),
        grid_size=GRID,
        vocab_size=target.config.vocab_size,
        condition_dim=target.config.dim,
        feature_dim=target.feature_dim,
        max_prompt_chars=1000,
        max_batch_tokens=T,
    )
    return Pair(target, load_draft_model(bundle / "edge"), info)


def own_image(target: TargetModel, condition: Tensor, sampling: SamplingParams) -> list[int]:
    """What the cloud draws alone, through the cloud's own bookkeeping."""
    session = SessionState(
        ImageRequest(prompt="", sampling=sampling),
        condition,
        num_tokens=T,
        vocab_size=target.config.vocab_size,
        feature_dim=target.feature_dim,
    )
    cloud, work = Target(target, num_slots=1), PrefixWork(session, T)
    while not work.receive(cloud.extend([work.feed(0)])[0]):
        pass
    return session.tokens


def own_images(target: TargetModel, sampling: SamplingParams) -> list[list[int]]:
    return [
        own_image(target, condition, replace(sampling, seed=seed))
        for condition, seed in zip(CONDITIONS, SEEDS, strict=True)
    ]


@pytest.mark.parametrize("sampling", [DEFAULTS, FILTERED])
def test_without_a_draft_every_image_is_the_clouds_own(
    pair: Pair, sampling: SamplingParams
) -> None:
    found = roll_out(pair.target, None, CONDITIONS, seeds=SEEDS, sampling=sampling)
    assert found.tokens.tolist() == own_images(pair.target, sampling)
    assert torch.equal(found.tokens, found.drawn)
    assert not found.kept.any() and not found.features.any()


def keep_none(choice: Choice) -> Tensor:
    return torch.zeros(len(choice.drafted), dtype=torch.bool)


def keep_all(choice: Choice) -> Tensor:
    return torch.ones(len(choice.drafted), dtype=torch.bool)


@pytest.mark.parametrize("keep", [None, keep_none])
def test_where_nothing_is_kept_every_image_is_the_clouds_own(pair: Pair, keep: Keep | None) -> None:
    found = pair.roll_out(keep, DEFAULTS, num_prefix=2)
    assert found.tokens.tolist() == own_images(pair.target, DEFAULTS)
    assert not found.kept.any() and not found.features.any()
    agreement = (found.drafted == found.drawn).float().mean()
    assert 0.1 < float(agreement) < 0.99  # the pair is neither equal nor unrelated


def test_the_edge_is_asked_from_the_prefix_on_about_every_position(pair: Pair) -> None:
    seen: list[Choice] = []

    def keep(choice: Choice) -> Tensor:
        seen.append(choice)
        return keep_all(choice)

    found = pair.roll_out(keep, DEFAULTS, num_prefix=5)
    assert [choice.position for choice in seen] == list(range(5, T))
    assert not found.kept[:, :5].any() and bool(found.kept[:, 5:].all())
    assert torch.equal(found.tokens[:, :5], found.drawn[:, :5])
    assert torch.equal(found.tokens[:, 5:], found.drafted[:, 5:])
    assert bool(found.features[:, 5:].any(dim=-1).all()) and not found.features[:, :5].any()
    for choice in seen:
        assert torch.equal(choice.drafted, found.drafted[:, choice.position])
        assert torch.equal(choice.drawn, found.drawn[:, choice.position])


class Recorder:
    """The local cloud; `features` [T, F] are those that it is sent."""

    def __init__(self, pair: Pair) -> None:
        self.cloud = LocalVerifier(Target(pair.target, num_slots=1), encode_text, pair.info)
        self.features = torch.zeros(T, pair.target.feature_dim)
        self.end = 0  # what the edge keeps after its last question is never sent

    async def info(self) -> ModelInfo:
        return await self.cloud.info()

    @asynccontextmanager
    async def open(self, request: ImageRequest) -> AsyncIterator["RecordedSession"]:
        async with self.cloud.open(request) as session:
            yield RecordedSession(self, session)


class RecordedSession:
    def __init__(self, recorder: Recorder, inner: LocalSession) -> None:
        self.recorder, self.inner = recorder, inner
        self.prefix = inner.prefix

    async def verify(self, batch: VerifyBatch) -> Verdict:
        kept = [batch.position + i for i, flag in enumerate(batch.uncertain) if not flag]
        self.recorder.features[batch.position :] = 0
        self.recorder.features[kept] = batch.features
        self.recorder.end = batch.end
        return await self.inner.verify(batch)


async def serve(
    pair: Pair, index: int, *, router: str, threshold: float | None, sampling: SamplingParams
) -> tuple[ImageResult, Recorder]:
    """One image by the edge's loop against the local cloud."""
    recorder = Recorder(pair)
    result = await generate(
        PROMPTS[index],
        model=pair.edge,
        router=make_router(router, threshold=threshold),
        verifier=recorder,
        config=DecodeConfig(mode="blocking", prefix_rate=0.06),
        sampling=replace(sampling, seed=SEEDS[index]),
    )
    return result, recorder


def check_served(
    pair: Pair,
    run: Any,
    found: Rollout,
    *,
    router: str,
    threshold: float | None,
    sampling: SamplingParams,
) -> None:
    """Every rolled-out image is what edge and cloud commit, features included."""
    for index in range(len(PROMPTS)):
        result, recorder = run(
            serve(pair, index, router=router, threshold=threshold, sampling=sampling)
        )
        assert result.tokens == tuple(found.tokens[index].tolist())
        kept = [origin is Origin.KEPT for origin in result.origins]
        assert kept == found.kept[index].tolist()
        end = recorder.end
        torch.testing.assert_close(recorder.features[:end], found.features[index, :end])


def halfway(scores: Tensor, *, share: float) -> float:
    """Between two neighbouring scores: at a score itself, rounding would decide."""
    ordered = scores.sort().values
    spot = int(share * len(ordered))
    return float(ordered[spot - 1 : spot + 1].mean())


@pytest.mark.parametrize("sampling", [DEFAULTS, FILTERED])
@pytest.mark.parametrize("router", ["interval", "interval-draw", "interval-u", "discrete-100"])
def test_a_static_threshold_commits_what_edge_and_cloud_commit(
    pair: Pair, run: Any, router: str, sampling: SamplingParams
) -> None:
    scores: list[Tensor] = []

    def record(choice: Choice) -> Tensor:
        scores.append(score_rows(router, choice))
        return keep_all(choice)

    pair.roll_out(record, sampling, num_prefix=2)
    threshold = halfway(torch.cat(scores), share=0.6)

    def keep(choice: Choice) -> Tensor:
        return score_rows(router, choice) <= threshold

    found = pair.roll_out(keep, sampling, num_prefix=2)
    share = float(found.kept.float().mean())
    assert 0.2 < share < 0.9  # both sides have their say
    assert bool((found.kept & (found.drafted != found.drawn)).any())  # so contexts drift
    check_served(pair, run, found, router=router, threshold=threshold, sampling=sampling)


def test_never_asking_commits_what_the_edge_alone_commits(pair: Pair, run: Any) -> None:
    found = pair.roll_out(keep_all, DEFAULTS, num_prefix=2)
    check_served(pair, run, found, router="never", threshold=None, sampling=DEFAULTS)


def test_cloud_images_are_the_clouds_own(pair: Pair) -> None:
    said: list[tuple[int, int]] = []
    drawn = cloud_images(
        pair.target,
        CONDITIONS,
        sampling=DEFAULTS,
        first_seed=FIRST_SEED,
        progress=lambda done, total, what: said.append((done, total)),
    )
    assert drawn.tokens.tolist() == own_images(pair.target, DEFAULTS)
    assert said == [(4, 4)]


def test_batches_cover_everything_once() -> None:
    spans = list(batches(70, 32))
    assert [len(span) for span in spans] == [32, 32, 6]
    assert [i for span in spans for i in span] == list(range(70))


def choice_of(centre: Tensor, radius: Tensor, drafted: Tensor) -> Choice:
    """With a cloud that no score may look at."""
    nothing = torch.empty(0)
    return Choice(
        position=0, centre=centre, radius=radius, drafted=drafted, cloud=nothing, drawn=nothing
    )


@pytest.mark.parametrize("name", TENSOR_SCORES)
def test_scores_of_rows_are_the_routers(name: str) -> None:
    generator = torch.Generator().manual_seed(4)
    centre = 2 * torch.randn(3, 24, generator=generator)
    radius = torch.rand(3, 24, generator=generator)
    drafted = torch.randint(24, (3,), generator=generator)
    together = score_rows(name, choice_of(centre, radius, drafted))
    assert together.shape == (3,)
    for row in range(3):
        head = HeadOutput(centre[row], reach_of(radius[row]), drafted[row])
        torch.testing.assert_close(together[row], TENSOR_SCORES[name](head))


def test_calibration_keeps_the_budget_on_its_own_rollouts(pair: Pair) -> None:
    budget, num_prefix = 0.3, 2
    conditions = CONDITIONS * 4
    quantiles, last = calibrate(
        pair.target,
        pair.edge.draft,
        conditions,
        sampling=DEFAULTS,
        budget=budget,
        num_prefix=num_prefix,
    )
    assert quantiles.keys() == TENSOR_SCORES.keys()
    for row in quantiles.values():
        assert len(row) == 101
        assert row == sorted(row)
    assert last.tokens.shape == (len(conditions), T)
    asked = 1 - float(last.kept[:, num_prefix:].float().mean())
    assert asked == pytest.approx(budget, abs=0.05)
