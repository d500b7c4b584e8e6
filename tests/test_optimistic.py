"""Optimistic decoding: whatever is in flight, the image is that of blocking decisions."""

import asyncio
import math
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from ciar.errors import CloudUnavailable, DeadlineExceeded
from ciar.threshold import DynamicThreshold
from ciar.types import ImageRequest, ModelInfo, Prefix, Timings, Verdict, VerifyBatch
from ciar.verifier import Session, Verifier
from ciar_edge.doubt import Doubt
from ciar_edge.pace import MAX_RUN_ON, MAX_WINDOW, MIN_WINDOW, Pace
from ciar_edge.result import ImageResult, Origin
from tests.test_loop import Diary, Drafts, Pair, Run, T, base, decode, pair, router_for

__all__ = ["pair"]  # the fixture


class Distant:
    """A cloud whose answers take their time, by dice; batches are worked on in order.

    Those of an epoch that a difference has ended are never answered, as by a real cloud.
    errors: raised in place of the answer to the n-th batch that is worked on.
    """

    def __init__(
        self, inner: Verifier, *, seed: int = 0, seconds: float = 0.002, errors: Any = None
    ) -> None:
        self.inner, self.dice, self.seconds = inner, random.Random(seed), seconds
        self.errors: dict[int, Exception] = errors or {}
        self.batches: list[VerifyBatch] = []
        self.failed: list[VerifyBatch] = []
        self.most_in_flight = self.num_void = self.num_worked_on = 0

    async def info(self) -> ModelInfo:
        return await self.inner.info()

    @asynccontextmanager
    async def open(self, request: ImageRequest) -> AsyncIterator["DistantSession"]:
        async with self.inner.open(request) as session:
            yield DistantSession(self, session)


class DistantSession:
    def __init__(self, cloud: Distant, inner: Session) -> None:
        self.cloud, self.inner = cloud, inner
        self.turn = asyncio.Lock()
        self.epoch = self.num_in_flight = 0

    @property
    def prefix(self) -> Prefix:
        return self.inner.prefix

    async def verify(self, batch: VerifyBatch) -> Verdict:
        cloud = self.cloud
        cloud.batches.append(batch)
        self.num_in_flight += 1
        cloud.most_in_flight = max(cloud.most_in_flight, self.num_in_flight)
        try:
            async with self.turn:  # a stream keeps the order
                await asyncio.sleep(cloud.dice.uniform(0, cloud.seconds))  # the way up
                if batch.epoch < self.epoch:
                    cloud.num_void += 1
                    await asyncio.sleep(3600)
                error = cloud.errors.get(cloud.num_worked_on)
                cloud.num_worked_on += 1
                verdict = await self.inner.verify(batch)
                if verdict.num_agreed < len(batch.tokens):
                    self.epoch = batch.epoch + 1
            if error is not None:
                cloud.failed.append(batch)
                raise error
            await asyncio.sleep(cloud.dice.uniform(0, cloud.seconds))  # the way down
            return verdict
        finally:
            self.num_in_flight -= 1


def same(found: ImageResult, expected: ImageResult) -> None:
    """The prefix is drawn by the cloud, or drafted and verified."""
    assert found.tokens == expected.tokens
    pairs = list(zip(found.origins, expected.origins, strict=True))
    assert all(a is b for a, b in pairs if b is not Origin.PREFIX)
    assert {a for a, b in pairs if b is Origin.PREFIX} <= {Origin.AGREED, Origin.CORRECTED}
    assert found.scores == pytest.approx(expected.scores, rel=1e-4, nan_ok=True)


@pytest.mark.parametrize("wavefront", [0, 2])
def test_it_draws_what_blocking_draws(pair: Pair, run: Run, wavefront: int) -> None:
    """At fixed thresholds, over 102 seeds and random delays, with several batches in flight."""
    quantiles = pair.model.calibration["interval"]
    most = num_void = 0
    for seed in range(102):
        tau = quantiles[(10, 50, 90)[seed % 3]]
        rules = [router_for(pair, threshold=tau) for _ in range(2)]
        options: Any = {"seed": seed, "wavefront": wavefront}
        expected = run(decode(pair, router=rules[0], **options))
        cloud = Distant(pair.cloud, seed=seed)
        found = run(decode(pair, cloud, router=rules[1], mode="optimistic", **options))
        same(found, expected)
        most, num_void = max(most, cloud.most_in_flight), num_void + cloud.num_void
    assert most > 1 and num_void > 0


@pytest.mark.parametrize("wavefront", [0, 1])
def test_a_score_of_neighbours_forgets_what_is_taken_back(
    pair: Pair, run: Run, wavefront: int
) -> None:
    """Nor does it know the prefix, which another one decides in `blocking`."""
    name = "softmax-corr-window"
    options: Any = {"wavefront": wavefront}
    scores = run(decode(pair, router=router_for(pair, name), **options)).scores
    tau = sorted(s for s in scores if not math.isnan(s))[8]
    for seed in range(12):
        router = [router_for(pair, name, threshold=tau) for _ in range(2)]
        expected = run(decode(pair, seed=seed, router=router[0], **options))
        cloud = Distant(pair.cloud, seed=seed)
        found = run(decode(pair, cloud, seed=seed, router=router[1], mode="optimistic", **options))
        same(found, expected)


@pytest.mark.parametrize("wavefront", [0, 2])
def test_exact_is_the_clouds_own_image_whatever_is_in_flight(
    pair: Pair, run: Run, wavefront: int
) -> None:
    most = num_drawn_on = 0
    for seed in range(34):
        cloud = Distant(pair.cloud, seed=seed)
        found = run(decode(pair, cloud, seed=seed, mode="exact", wavefront=wavefront))
        assert found.tokens == run(base(pair, seed, wavefront))
        assert found.cloud_decided == T
        most = max(most, cloud.most_in_flight)
        num_drawn_on += sum(batch.run_on for batch in cloud.batches)
    assert most > 1 and num_drawn_on > 0


def test_exact_without_an_answer_goes_on_alone(pair: Pair, run: Run) -> None:
    """The cloud takes what was decided for want of one as it is, and draws the rest on that."""
    cloud = Distant(pair.cloud, errors={1: DeadlineExceeded("late")})
    found = run(decode(pair, cloud, mode="exact"))
    (late,) = cloud.failed
    assert found.fallbacks == len(late.tokens)
    assert found.tokens[: late.position] == run(base(pair))[: late.position]
    again = next(batch for batch in cloud.batches if batch.epoch > late.epoch)
    assert not len(again.features) and not any(again.uncertain[: len(late.tokens)])


def test_everything_uncertain_is_the_clouds_own_image(pair: Pair, run: Run) -> None:
    found = run(
        decode(pair, Distant(pair.cloud), router=router_for(pair, "always"), mode="optimistic")
    )
    assert found.tokens == run(base(pair))
    assert found.round_trips < T - found.prefix_tokens


def test_nothing_uncertain_makes_no_call(pair: Pair, run: Run) -> None:
    cloud = Distant(pair.cloud)
    options: Any = {"router": router_for(pair, "never"), "mode": "optimistic"}
    found = run(decode(pair, cloud, prefix_rate=0.0, **options))
    assert not cloud.batches and found.counts[Origin.KEPT] == T


LATE: Any = {"mode": "optimistic", "features": "none"}


@pytest.mark.parametrize("wavefront", [0, 2])
def test_kept_tokens_without_any_gap_are_the_clouds_own_image(
    pair: Pair, run: Run, wavefront: int
) -> None:
    for seed in range(8):
        router, cloud = router_for(pair, "never"), Distant(pair.cloud, seed=seed)
        options = {"max_gap": 0.0, "wavefront": wavefront, **LATE}
        found = run(decode(pair, cloud, seed=seed, router=router, **options))
        assert found.tokens == run(base(pair, seed, wavefront))
        assert found.late > 0 and not any(gap > 0 for gap in found.gaps)


@pytest.mark.parametrize(("max_gap", "top_k"), [(0.3, 0), (2.0, 0), (2.0, 3), (1e9, 3)])
def test_late_verification_is_that_of_one_token_at_a_time(
    pair: Pair, run: Run, max_gap: float, top_k: int
) -> None:
    """What top-k rules out goes back, however large the gap may be."""
    one, tau = pair.with_info(max_batch_tokens=1), pair.model.calibration["interval"][70]
    num_late = 0
    for seed in range(20):
        options: Any = {"seed": seed, "mode": "optimistic", "max_gap": max_gap, "top_k": top_k}
        router = [router_for(pair, threshold=tau) for _ in range(2)]
        expected = run(decode(one, one.cloud, router=router[0], **options))
        found = run(decode(pair, Distant(pair.cloud, seed=seed), router=router[1], **options))
        assert (found.tokens, found.origins) == (expected.tokens, expected.origins)
        kept = [g for g, o in zip(found.gaps, found.origins, strict=True) if o is Origin.KEPT]
        assert all(gap <= max_gap for gap in kept)
        num_late += found.late
    assert num_late > 0


@pytest.mark.parametrize("number", [0, 1, 2, 4])
def test_what_was_decided_for_want_of_a_verdict_is_not_taken_back(
    pair: Pair, run: Run, number: int
) -> None:
    """Kept tokens stand without a gap, and yet the edge's guesses at uncertain ones do."""
    for seed in range(6):
        cloud = Distant(pair.cloud, seed=seed, errors={number: DeadlineExceeded("late")})
        router = router_for(pair, threshold=pair.model.calibration["interval"][60])
        found = run(decode(pair, cloud, seed=seed, router=router, mode="optimistic", max_gap=0.0))
        if cloud.failed:
            (late,) = cloud.failed
            decided = slice(late.position, late.end)
            assert found.tokens[decided] == late.tokens
            assert Origin.FALLBACK in found.origins[decided]


def test_a_tolerance_changes_no_more_than_it_allows(pair: Pair, run: Run) -> None:
    """With epsilon blocking and optimistic agree too, for it is not for the prefix; a large one
    takes whatever was drafted behind it.
    """
    for seed in range(10):
        options: Any = {"seed": seed, "epsilon": 0.5}
        router = [router_for(pair, "always") for _ in range(3)]
        expected = run(decode(pair, router=router[0], prefix_rate=0.5, **options))
        cloud = Distant(pair.cloud, seed=seed)
        options |= {"mode": "optimistic", "prefix_rate": 0.5}
        found = run(decode(pair, cloud, router=router[1], **options))
        same(found, expected)
        free = run(decode(pair, cloud, router=router[2], **options | {"epsilon": 1e9}))
        assert free.tokens[: T // 2] == run(base(pair, seed))[: T // 2]
        assert set(free.origins[T // 2 :]) == {Origin.AGREED}


def test_the_prefix_is_the_clouds(pair: Pair, run: Run) -> None:
    options: Any = {"router": router_for(pair, "never"), "mode": "optimistic"}
    found = run(decode(pair, Distant(pair.cloud), prefix_rate=0.5, **options))
    assert found.tokens[: T // 2] == run(base(pair))[: T // 2]
    assert found.counts[Origin.KEPT] == T // 2 and found.prefix_tokens == 0


def test_batches_keep_to_the_clouds_limit(pair: Pair, run: Run) -> None:
    small = pair.with_info(max_batch_tokens=3)
    cloud = Distant(small.cloud)
    expected = run(decode(pair, router=router_for(pair, threshold=0.5)))
    found = run(decode(small, cloud, router=router_for(pair, threshold=0.5), mode="optimistic"))
    same(found, expected)
    assert max(len(batch.tokens) for batch in cloud.batches) <= 3


@pytest.mark.parametrize("number", [0, 1, 3])
def test_a_late_verdict_is_decided_by_the_edge(pair: Pair, run: Run, number: int) -> None:
    cloud = Distant(pair.cloud, errors={number: DeadlineExceeded("late")})
    found = run(decode(pair, cloud, router=router_for(pair, "always"), mode="optimistic"))
    (late,) = cloud.failed
    assert found.fallbacks == len(late.tokens)
    start = late.position
    assert set(found.origins[start : start + len(late.tokens)]) == {Origin.FALLBACK}
    again = next(batch for batch in cloud.batches if batch.epoch > late.epoch)
    assert again.position == start and again.tokens[: len(late.tokens)] == late.tokens
    assert not any(again.uncertain[: len(late.tokens)])


def test_a_lost_cloud_does_not_lose_the_image(pair: Pair, run: Run) -> None:
    cloud = Distant(pair.cloud, errors={2: CloudUnavailable("gone")})
    found = run(decode(pair, cloud, router=router_for(pair, "always"), mode="optimistic"))
    assert found.lost == "gone" and found.fallbacks > 0
    assert found.origins[-1] is Origin.FALLBACK


def test_the_observer_is_told_every_token_once_and_in_order(pair: Pair, run: Run) -> None:
    diary = Diary()
    found = run(decode(pair, Distant(pair.cloud), observer=diary, mode="optimistic"))
    assert diary.tokens == list(found.tokens) and len(diary.tokens) == T


@pytest.mark.parametrize("wavefront", [0, 2])
def test_the_observer_is_told_of_every_draft_once(pair: Pair, run: Run, wavefront: int) -> None:
    """Also of those of a wave that nobody came to: what stood before them was taken back."""
    num_late = 0
    for seed in range(8):
        drafts, cloud = Drafts(), Distant(pair.cloud, seed=seed)
        options: Any = {"mode": "optimistic", "max_gap": 1.0, "wavefront": wavefront}
        found = run(decode(pair, cloud, seed=seed, observer=drafts, **options))
        assert len(drafts.cells) == found.drafts
        assert set(drafts.cells) == set(range(T))
        num_late += found.late
    assert num_late > 0


def test_a_budget_is_kept_by_what_is_decided(pair: Pair, run: Run) -> None:
    """A rollback takes back what the threshold learned of tokens that never were."""
    found = run(
        decode(pair, Distant(pair.cloud), router=router_for(pair, budget=0.5), mode="optimistic")
    )
    blocking = run(
        decode(pair, Distant(pair.cloud), router=router_for(pair, budget=0.5), mode="blocking")
    )
    assert abs(found.counts[Origin.KEPT] - blocking.counts[Origin.KEPT]) <= 0.2 * T


def test_a_threshold_goes_back() -> None:
    for quantiles in (None, [i / 100 for i in range(101)]):
        once, twice = (DynamicThreshold(0.3, quantiles, num_scores=6) for _ in range(2))
        scores = [0.1, 0.9, 0.4, 0.4, 0.7, 0.2]
        first = [once.exceeded(score) for score in scores]
        [twice.exceeded(score) for score in scores[:3]]
        mark = twice.mark()
        [twice.exceeded(score) for score in (0.95, 0.4, 0.99)]
        twice.restore(mark)
        assert [twice.exceeded(score) for score in scores[3:]] == first[3:]
        assert once.tau == twice.tau


def test_what_is_doubted_is_asked_before_more_is_drafted() -> None:
    pace = Pace()
    pace.drafted(0.001)
    pace.answered(0.030, Verdict(epoch=0, position=0, num_agreed=1, token=None))
    assert pace.may_draft(5, hope=0.5) and not pace.may_draft(5, hope=0.05)
    assert pace.is_due(0, doubt=0.6, can_draft=True)
    assert not pace.is_due(0, doubt=0.1, can_draft=True), "it goes with what follows"
    assert pace.is_due(0, doubt=0.1, can_draft=False), "there is nothing else to do"
    assert not pace.is_due(1, doubt=0.9, can_draft=True), "how busy it is nobody knows yet"
    pace.answered(0.030, Verdict(epoch=0, position=0, num_agreed=1, token=None, timings=STEP))
    assert pace.is_due(1, doubt=0.9, can_draft=True)
    assert not pace.is_due(1, doubt=0.1, can_draft=True)
    assert not pace.is_due(pace.most_flights, doubt=0.9, can_draft=False)


def test_the_cloud_draws_on_while_a_round_trip_lasts() -> None:
    def verdict(num_forwards: int) -> Verdict:
        timings = Timings(compute_seconds=0.010 * num_forwards, num_forwards=num_forwards)
        return Verdict(epoch=0, position=0, num_agreed=0, token=1, timings=timings)

    pace = Pace()
    assert pace.run_on == 0, "nothing is known"
    pace.answered(0.036, verdict(1))
    assert pace.run_on == 2
    pace.answered(0.056, verdict(3))
    assert pace.run_on == 2, "what it drew on is not the trip's"
    for _ in range(50):
        pace.answered(0.015, verdict(1))
    assert pace.run_on == 0
    for _ in range(50):
        pace.answered(1.0, verdict(1))
    assert pace.run_on == MAX_RUN_ON


@pytest.mark.parametrize("queue", [0.0, 0.5, 1e9])
@pytest.mark.parametrize("compute", [0.0, 5e-324, 0.01, 1e9])
def test_times_that_cannot_be_make_no_nonsense(compute: float, queue: float) -> None:
    """A clock that stood still while a batch waited, a cloud that lies."""
    timings = Timings(queue_seconds=queue, compute_seconds=compute, num_forwards=1)
    pace = Pace()
    pace.answered(0.1, Verdict(epoch=0, position=0, num_agreed=0, token=1, timings=timings))
    pace.drafted(0.001)
    assert 0 <= pace.run_on <= MAX_RUN_ON and 1 <= pace.most_flights <= MAX_WINDOW
    assert MIN_WINDOW <= pace.window <= MAX_WINDOW


STEP = Timings(compute_seconds=0.010)


def test_a_doubt_is_a_guess_until_answers_teach_it() -> None:
    doubt = Doubt([i / 100 for i in range(101)])
    assert doubt.rank(0.95) == pytest.approx(0.95)
    assert doubt.of(0.3) == 0.0 < doubt.of(0.8) < doubt.of(0.99)
    for _ in range(300):
        doubt.learn(0.99, differs=False)
        doubt.learn(0.3, differs=True)
    assert doubt.of(0.99) < 0.1 and doubt.of(0.3) > 0.9
    assert 0.2 < doubt.of(0.8) < 0.5, "as it was"


def test_scores_without_quantiles_are_ranked_by_those_seen() -> None:
    dice, doubt = random.Random(0), Doubt()
    for _ in range(3000):
        doubt.rank(dice.random() ** 3)
    assert [doubt.rank(x**3) for x in (0.1, 0.5, 0.9)] == pytest.approx([0.1, 0.5, 0.9], abs=0.05)


def test_the_window_follows_what_is_measured() -> None:
    def verdict(seconds: float) -> Verdict:
        timings = Timings(compute_seconds=seconds)
        return Verdict(epoch=0, position=0, num_agreed=1, token=None, timings=timings)

    pace = Pace()
    assert pace.window == MIN_WINDOW
    pace.drafted(0.001)
    pace.answered(0.020, verdict(0.010))
    assert pace.window == 50  # 2 (r + 1.5 C) / e with r + C = 20 ms
    for _ in range(50):
        pace.answered(1.0, verdict(0.010))
    assert pace.window == MAX_WINDOW
