"""The loop against the real target model in this process: equalities, and calls that fail."""

import asyncio
import dataclasses
import math
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ciar.checkpoint import fingerprint
from ciar.errors import (
    CloudUnavailable,
    DeadlineExceeded,
    EngineError,
    InvalidInput,
    Overloaded,
    PairMismatch,
    SessionLost,
)
from ciar.local import LocalVerifier
from ciar.order import order_of
from ciar.router import Router, make_router
from ciar.target import Target, TargetModel
from ciar.types import ImageRequest, ModelInfo, Prefix, SamplingParams, Verdict, VerifyBatch
from ciar.verifier import Session, Verifier
from ciar_edge.agreement import Agreement
from ciar_edge.config import DecodeConfig
from ciar_edge.drafter import Drafter
from ciar_edge.loop import generate
from ciar_edge.models import EdgeModel, load_draft_model
from ciar_edge.pace import MAX_RUN_ON
from ciar_edge.result import ImageResult, Origin, Silent
from tests.tiny import TEXT_DIM, write_bundle

GRID, SEED = 6, 5
T = GRID * GRID
Run = Callable[[Any], Any]


def encode_text(prompt: str) -> Tensor:
    return torch.randn(5, TEXT_DIM, generator=torch.Generator().manual_seed(len(prompt)))


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    model: EdgeModel
    cloud: LocalVerifier
    info: ModelInfo

    def with_info(self, **changes: Any) -> "Pair":
        info = dataclasses.replace(self.info, **changes)
        target = self.cloud._target
        return Pair(self.model, LocalVerifier(target, encode_text, info), info)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    bundle: Path = write_bundle(tmp_path_factory.mktemp("bundle"), grid_size=GRID, seed=3)
    target = Target(TargetModel.load(bundle / "cloud"), num_slots=1)
    info = ModelInfo(
        name="tiny",
        family="llamagen",
        fingerprint=fingerprint(bundle / "cloud"),
        grid_size=GRID,
        vocab_size=target.config.vocab_size,
        condition_dim=target.config.dim,
        feature_dim=target.model.feature_dim,
        max_prompt_chars=1000,
        max_batch_tokens=T,
    )
    model = load_draft_model(bundle / "edge")
    return Pair(model, LocalVerifier(target, encode_text, info), info)


class Watched:
    """A verifier that passes everything on to a real one, and remembers it.

    errors: raised instead of the answer to the n-th batch.
    is_late: the cloud works on such a batch all the same.
    has_bonus: leave the next token in verdicts.
    seconds: that every answer takes.
    """

    def __init__(
        self,
        inner: Verifier,
        *,
        errors: Mapping[int, Exception] | None = None,
        is_late: bool = False,
        has_bonus: bool = True,
        seconds: float = 0.0,
    ) -> None:
        self.inner, self.errors = inner, errors or {}
        self.is_late, self.has_bonus, self.seconds = is_late, has_bonus, seconds
        self.batches: list[VerifyBatch] = []
        self.verdicts: list[Verdict | None] = []

    async def info(self) -> ModelInfo:
        return await self.inner.info()

    @asynccontextmanager
    async def open(self, request: ImageRequest) -> AsyncIterator["WatchedSession"]:
        async with self.inner.open(request) as session:
            yield WatchedSession(self, session)


class WatchedSession:
    def __init__(self, watch: Watched, inner: Session) -> None:
        self.watch, self.inner = watch, inner

    @property
    def prefix(self) -> Prefix:
        return self.inner.prefix

    async def verify(self, batch: VerifyBatch) -> Verdict:
        watch = self.watch
        error = watch.errors.get(len(watch.batches))
        watch.batches.append(batch)
        watch.verdicts.append(None)
        if watch.seconds:
            await asyncio.sleep(watch.seconds)
        if error is not None and not watch.is_late:
            raise error
        verdict = await self.inner.verify(batch)
        if error is not None:
            raise error
        watch.verdicts[-1] = verdict
        if not watch.has_bonus and verdict.num_agreed == len(batch.tokens):
            return dataclasses.replace(verdict, token=None)
        return verdict


def sampling(seed: int = SEED, *, top_k: int = 0) -> SamplingParams:
    return SamplingParams(seed=seed, cfg_scale=2.0, top_k=top_k)


def router_for(pair: Pair, name: str = "interval", **options: Any) -> Router:
    return make_router(name, calibration=pair.model.calibration, grid_size=GRID, **options)


async def decode(
    pair: Pair,
    verifier: Verifier | None = None,
    *,
    seed: int = SEED,
    top_k: int = 0,
    router: Router | None = None,
    observer: Any = None,
    **config: Any,
) -> ImageResult:
    result = await generate(
        "a cat",
        model=pair.model,
        router=router or router_for(pair),
        verifier=verifier or pair.cloud,
        config=DecodeConfig(**config),
        sampling=sampling(seed, top_k=top_k),
        observer=observer,
    )
    check_sums(result, draws_on=config.get("mode") in ("optimistic", "exact"))
    return result


def check_sums(result: ImageResult, *, draws_on: bool = False) -> None:
    assert len(result.tokens) == len(result.origins) == len(result.scores) == T
    assert sum(result.counts.values()) == T
    num_edge = result.counts[Origin.KEPT] + result.fallbacks
    assert result.cloud_decided == T - num_edge
    most = MAX_RUN_ON * result.counts[Origin.CORRECTED] if draws_on else 0
    assert result.cloud_forwards <= result.prefix_tokens + result.round_trips + most
    assert result.cloud_calls == result.cloud_forwards / T


async def base(pair: Pair, seed: int = SEED, wavefront: int = 0) -> tuple[int, ...]:
    """The cloud's own image."""
    request = ImageRequest(
        prompt="a cat", sampling=sampling(seed), num_prefix=T, wavefront=wavefront
    )
    async with pair.cloud.open(request) as session:
        return order_of(GRID, wavefront).to_raster(session.prefix.tokens)


# ------------------------------------------------------------------------------------- equalities


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("scores", ["interval", "random", "always", "never"])
@pytest.mark.parametrize("prefix_rate", [0.0, 0.06, 0.5, 1.0])
def test_exact_is_the_clouds_own_image(
    pair: Pair, run: Run, seed: int, scores: str, prefix_rate: float
) -> None:
    watched, router = Watched(pair.cloud), router_for(pair, scores)
    result = run(
        decode(pair, watched, seed=seed, mode="exact", router=router, prefix_rate=prefix_rate)
    )
    assert result.tokens == run(base(pair, seed))
    assert all(all(batch.uncertain) for batch in watched.batches)
    num_prefix = DecodeConfig(prefix_rate=prefix_rate).num_prefix(T)
    assert [math.isnan(score) for score in result.scores] == [i < num_prefix for i in range(T)]
    assert result.counts[Origin.KEPT] == result.fallbacks == 0


WAVEFRONTS = (1, 2, 4)


@pytest.mark.parametrize("wavefront", WAVEFRONTS)
@pytest.mark.parametrize("prefix_rate", [0.0, 0.2])
def test_along_a_wavefront_exact_is_the_clouds_own_image(
    pair: Pair, run: Run, wavefront: int, prefix_rate: float
) -> None:
    for seed in range(4):
        found = run(
            decode(pair, seed=seed, mode="exact", prefix_rate=prefix_rate, wavefront=wavefront)
        )
        assert found.tokens == run(base(pair, seed, wavefront)) != run(base(pair, seed))


@pytest.mark.parametrize("wavefront", WAVEFRONTS)
@pytest.mark.parametrize("options", [{"budget": 1.0}, {"threshold": -1.0}])
def test_along_a_wavefront_everything_uncertain_is_the_clouds_own_image(
    pair: Pair, run: Run, wavefront: int, options: dict[str, Any]
) -> None:
    for seed in range(4):
        router = router_for(pair, **options)
        found = run(decode(pair, seed=seed, router=router, wavefront=wavefront))
        assert found.tokens == run(base(pair, seed, wavefront))
        assert found.cloud_decided == T


def test_along_a_wavefront_a_wave_is_asked_about_at_once(pair: Pair, run: Run) -> None:
    """All uncertain tokens of a wave, up to the first that differs, and the kept ones between."""
    tau, several = pair.model.calibration["interval"][50], 0
    for seed in range(6):
        router, watched = router_for(pair, threshold=tau), Watched(pair.cloud)
        found = run(decode(pair, watched, seed=seed, router=router, wavefront=2, prefix_rate=0.0))
        order = order_of(GRID, 2)
        for batch in watched.batches:
            asked = [batch.position + i for i, flag in enumerate(batch.uncertain) if flag]
            assert set(asked) <= set(order.wave(asked[0]))
            several += len(asked) > 1
        num_asked = found.counts[Origin.AGREED] + found.counts[Origin.CORRECTED]
        assert len(watched.batches) < num_asked
    assert several > 5


def test_along_a_wavefront_the_edge_alone_is_what_it_is_without_answers(
    pair: Pair, run: Run
) -> None:
    offline = run(
        generate(
            "a cat",
            model=pair.model,
            router=router_for(pair, "never"),
            config=DecodeConfig(mode="offline", wavefront=2),
            sampling=sampling(),
            encode_text=encode_text,
        )
    )
    never = run(decode(pair, router=router_for(pair, "never"), prefix_rate=0.0, wavefront=2))
    assert offline.tokens == never.tokens
    tau = pair.model.calibration["interval"][50]
    late = Watched(pair.cloud, errors={i: DeadlineExceeded("late") for i in range(T)})
    alone = run(
        decode(pair, late, router=router_for(pair, threshold=tau), prefix_rate=0.0, wavefront=2)
    )
    assert alone.tokens == offline.tokens
    assert alone.fallbacks > 0 and alone.counts[Origin.KEPT] + alone.fallbacks == T


def test_scores_and_origins_stand_where_their_tokens_do(pair: Pair, run: Run) -> None:
    """An observer hears of every cell once; the result is in raster order."""
    heard: dict[int, tuple[int, Origin]] = {}

    class Listener(Silent):
        def on_token(self, *, position: int, token: int, origin: Origin, score: float) -> None:
            assert position not in heard
            heard[position] = token, origin

    router = router_for(pair, budget=0.5)
    found = run(decode(pair, router=router, observer=Listener(), wavefront=2))
    assert heard == dict(enumerate(zip(found.tokens, found.origins, strict=True)))
    prefix = [cell for cell, origin in enumerate(found.origins) if origin is Origin.PREFIX]
    assert sorted(prefix) == sorted(order_of(GRID, 2).cells[: len(prefix)])


def test_wavefronts_are_checked(pair: Pair, run: Run) -> None:
    with pytest.raises(InvalidInput, match="wavefront"):
        DecodeConfig(wavefront=-1)
    with pytest.raises(InvalidInput, match="wavefront: .*1 to 5"):
        run(decode(pair, wavefront=GRID + 1))
    with pytest.raises(InvalidInput, match="features.*send or none"):
        DecodeConfig(features="recompute", wavefront=2)


@pytest.mark.parametrize(("mode", "num_prefix"), [("blocking", 2), ("exact", 0)])
def test_positions_and_drafts_are_counted(pair: Pair, run: Run, mode: str, num_prefix: int) -> None:
    async def prefix_positions() -> int:
        request = ImageRequest(prompt="a cat", sampling=sampling(), num_prefix=num_prefix)
        async with pair.cloud.open(request) as session:
            return session.prefix.timings.num_positions

    watched = Watched(pair.cloud)
    result = run(decode(pair, watched, mode=mode))
    verdicts = [verdict for verdict in watched.verdicts if verdict]
    fed = sum(verdict.timings.num_positions for verdict in verdicts)
    assert result.cloud_positions == run(prefix_positions()) + fed
    assert result.drafts >= T - num_prefix
    if mode == "exact":
        assert result.cloud_positions > T


def test_exact_saves_forwards(pair: Pair, run: Run) -> None:
    result = run(decode(pair, mode="exact", prefix_rate=0.0))
    assert result.cloud_forwards < 0.6 * T


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("options", [{"budget": 1.0}, {"threshold": -1.0}])
def test_everything_uncertain_is_the_clouds_own_image(
    pair: Pair, run: Run, seed: int, options: dict[str, Any]
) -> None:
    result = run(decode(pair, seed=seed, router=router_for(pair, **options)))
    assert result.tokens == run(base(pair, seed))
    assert result.cloud_decided == T


@pytest.mark.parametrize("name", ["budget 0", "never"])
def test_nothing_uncertain_makes_no_call(pair: Pair, run: Run, name: str) -> None:
    router = router_for(pair, "never") if name == "never" else router_for(pair, budget=0.0)
    watched = Watched(pair.cloud)
    result = run(decode(pair, watched, router=router))
    assert not watched.batches
    assert result.counts[Origin.PREFIX] == 2 == result.cloud_forwards
    assert result.counts[Origin.KEPT] == T - 2


def test_offline_is_the_edge_alone(pair: Pair, run: Run) -> None:
    """As with a cloud that is never asked, whose condition rows are the same projection."""
    offline = run(
        generate(
            "a cat",
            model=pair.model,
            router=router_for(pair),
            config=DecodeConfig(mode="offline"),
            sampling=sampling(),
            encode_text=encode_text,
        )
    )
    check_sums(offline)
    online = run(decode(pair, router=router_for(pair, "never"), prefix_rate=0.0))
    assert offline.tokens == online.tokens
    assert set(offline.origins) == {Origin.KEPT}
    assert not any(map(math.isnan, offline.scores))


@pytest.mark.parametrize("seed", range(6))
def test_the_token_that_a_verdict_brings_along_only_saves_calls(
    pair: Pair, run: Run, seed: int
) -> None:
    results = []
    for has_bonus in (True, False):
        watched = Watched(pair.cloud, has_bonus=has_bonus)
        router = router_for(pair, threshold=pair.model.calibration["interval"][40])
        results.append(run(decode(pair, watched, seed=seed, router=router)))
    with_bonus, without = results
    assert with_bonus.tokens == without.tokens
    assert with_bonus.origins == without.origins
    assert str(with_bonus.scores) == str(without.scores)  # NaN is unequal to itself
    assert with_bonus.round_trips < without.round_trips
    asked = without.counts[Origin.AGREED] + without.counts[Origin.CORRECTED]
    assert without.round_trips == asked


@pytest.mark.parametrize("seed", range(3))
def test_without_hope_of_agreement_nothing_is_prepared_for_it(
    pair: Pair, run: Run, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    results = []
    for is_likely in (True, False):
        monkeypatch.setattr(Agreement, "is_likely", is_likely)
        watched = Watched(pair.cloud, seconds=0.005)
        router = router_for(pair, threshold=pair.model.calibration["interval"][40])
        results.append(run(decode(pair, watched, seed=seed, router=router)))
        assert {batch.wants_next for batch in watched.batches} == {is_likely}
        assert (results[-1].ahead_seconds > 0) == is_likely
    hopeful, hopeless = results
    assert hopeful.tokens == hopeless.tokens
    assert hopeful.origins == hopeless.origins
    assert hopeful.round_trips < hopeless.round_trips


def test_agreement_is_learned_from_answers() -> None:
    agreement = Agreement()
    assert agreement.is_likely
    for _ in range(30):
        agreement.learn(0, 1)
    assert not agreement.is_likely
    for _ in range(2):
        agreement.learn(1, 1)
    assert agreement.is_likely


@pytest.mark.parametrize("max_batch_tokens", [1, 2, 5])
@pytest.mark.parametrize("mode", ["blocking", "exact"])
def test_batches_keep_to_the_clouds_limit(
    pair: Pair, run: Run, mode: str, max_batch_tokens: int
) -> None:
    watched = Watched(pair.with_info(max_batch_tokens=max_batch_tokens).cloud)
    small = run(decode(pair, watched, mode=mode, router=router_for(pair, budget=0.3)))
    large = run(decode(pair, mode=mode, router=router_for(pair, budget=0.3)))
    assert max(len(batch.tokens) for batch in watched.batches) <= max_batch_tokens
    assert small.tokens == large.tokens


@pytest.mark.parametrize("max_batch_tokens", [1, 2, 3])
def test_a_wave_that_fits_no_batch_is_asked_for_in_parts(
    pair: Pair, run: Run, max_batch_tokens: int
) -> None:
    watched = Watched(pair.with_info(max_batch_tokens=max_batch_tokens).cloud)
    options: Any = {"wavefront": 1, "prefix_rate": 0.0, "router": router_for(pair, "always")}
    found = run(decode(pair, watched, **options))
    assert max(len(batch.tokens) for batch in watched.batches) == max_batch_tokens
    assert found.tokens == run(base(pair, wavefront=1))


# ---------------------------------------------------------------------------------------- batches


def test_a_batch_is_what_was_kept_since_the_last_and_one_uncertain_token(
    pair: Pair, run: Run
) -> None:
    """Consecutive, without gaps or repetition; features are the drafter's own."""
    watched = Watched(pair.cloud)
    result = run(decode(pair, watched, router=router_for(pair, budget=0.4)))
    known, num_known = list(result.tokens[:2]), 2
    for batch, verdict in zip(watched.batches, watched.verdicts, strict=True):
        assert verdict is not None
        assert batch.uncertain == (False,) * (len(batch.tokens) - 1) + (True,)
        taken = result.tokens[num_known : batch.position]  # tokens that came with a verdict
        assert all(o is not Origin.KEPT for o in result.origins[num_known : batch.position])
        assert len(taken) <= 1
        known += taken + batch.tokens[: verdict.num_agreed]
        if verdict.num_agreed < len(batch.tokens):
            assert verdict.token is not None
            known.append(verdict.token)
        num_known = len(known)
    assert tuple(known) == result.tokens[:num_known]
    tail = result.origins[num_known:]
    assert all(origin is Origin.KEPT for origin in tail[1:])
    check_features(pair, run, watched, result)


def check_features(pair: Pair, run: Run, watched: Watched, result: ImageResult) -> None:
    """Equal to those of a drafter that walks along the finished image."""

    async def rows() -> Tensor:
        request = ImageRequest(prompt="a cat", sampling=sampling())
        async with pair.cloud.open(request) as session:
            return session.prefix.condition

    drafter, drafts = Drafter(pair.model.prepared, run(rows()), sampling()), []
    for token in result.tokens:
        drafts.append(drafter.draft())
        drafter.commit(token)
    for batch in watched.batches:
        kept = drafts[batch.position : batch.end - 1]
        if kept:
            expected = drafter.features(kept)
            torch.testing.assert_close(batch.features, expected, atol=1e-5, rtol=1e-5)
            assert batch.features.dtype == torch.float32


def test_features_can_be_left_out(pair: Pair, run: Run) -> None:
    watched = Watched(pair.cloud)
    run(decode(pair, watched, features="none"))
    kept = [batch for batch in watched.batches if batch.num_kept]
    assert kept
    assert not any(len(batch.features) for batch in kept)


def test_epochs_grow_with_differences(pair: Pair, run: Run) -> None:
    watched = Watched(pair.cloud)
    result = run(decode(pair, watched, router=router_for(pair, budget=1.0)))
    epoch = 0
    for batch, verdict in zip(watched.batches, watched.verdicts, strict=True):
        assert verdict is not None and batch.epoch == epoch
        epoch += verdict.num_agreed < len(batch.tokens)
    assert (
        result.epochs
        == epoch
        == sum(
            v.num_agreed < len(b.tokens)
            for b, v in zip(watched.batches, watched.verdicts, strict=True)
            if v is not None
        )
    )
    assert epoch > 0


# --------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize("mode", ["blocking", "exact"])
def test_a_missed_deadline_is_decided_locally(pair: Pair, run: Run, mode: str) -> None:
    """Whether the cloud never saw the batch, or worked on it too late, changes nothing."""
    results, num_errors = [], 3
    for is_late in (False, True):
        errors = {n: DeadlineExceeded("late") for n in (1, 2, 4)}
        watched = Watched(pair.cloud, errors=errors, is_late=is_late)
        results.append(run(decode(pair, watched, mode=mode, router=router_for(pair, budget=0.5))))
        for n in errors:
            missed, following = watched.batches[n], watched.batches[n + 1]
            assert following.epoch > missed.epoch
            assert following.position == missed.position
            again = following.tokens[: len(missed.tokens)]
            assert again == missed.tokens
            assert not any(following.uncertain[: len(missed.tokens)])
        assert len(watched.batches) == results[-1].round_trips + num_errors
    lost, late = results
    assert lost.tokens == late.tokens
    assert lost.origins == late.origins
    assert lost.fallbacks >= num_errors
    assert not lost.lost
    if mode == "blocking":
        assert lost.fallbacks == num_errors


def test_no_answer_at_all_is_the_edge_alone(pair: Pair, run: Run) -> None:
    errors = {n: DeadlineExceeded("late") for n in range(T)}
    result = run(decode(pair, Watched(pair.cloud, errors=errors)))
    alone = run(decode(pair, router=router_for(pair, "never")))
    assert result.tokens == alone.tokens
    assert result.fallbacks > 0
    assert result.round_trips == 0


@pytest.mark.parametrize("mode", ["blocking", "exact"])
@pytest.mark.parametrize(
    "error", [SessionLost("evicted"), CloudUnavailable(), EngineError("nan"), Overloaded("full")]
)
def test_a_lost_cloud_does_not_lose_the_image(
    pair: Pair, run: Run, mode: str, error: Exception
) -> None:
    watched = Watched(pair.cloud, errors={2: error})
    result = run(decode(pair, watched, mode=mode))
    assert len(watched.batches) == 3
    assert result.lost == (str(error) or "CloudUnavailable")
    assert result.fallbacks > 0
    whole = run(decode(pair, mode=mode))
    num_same = watched.batches[2].position
    assert result.tokens[:num_same] == whole.tokens[:num_same]


def test_a_loss_before_the_first_token_is_an_error(pair: Pair, run: Run) -> None:
    class Away(Watched):
        @asynccontextmanager
        async def open(self, request: ImageRequest) -> AsyncIterator[WatchedSession]:
            raise CloudUnavailable("no cloud at 127.0.0.1:1")
            yield

    with pytest.raises(CloudUnavailable, match="no cloud"):
        run(decode(pair, Away(pair.cloud)))


def test_mistakes_of_ours_are_not_swallowed(pair: Pair, run: Run) -> None:
    watched = Watched(pair.cloud, errors={0: InvalidInput("tokens", 99, "give ids below 24")})
    with pytest.raises(InvalidInput, match="tokens"):
        run(decode(pair, watched))


# ------------------------------------------------------------------------------------------ input


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("fingerprint", "0" * 16),
        ("vocab_size", 25),
        ("grid_size", 7),
        ("condition_dim", 33),
        ("feature_dim", 9),
    ],
)
def test_another_clouds_model_is_refused(pair: Pair, run: Run, field: str, value: object) -> None:
    other = pair.with_info(**{field: value})
    with pytest.raises(PairMismatch, match=field):
        run(decode(other))


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"mode": "fast"}, "mode"),
        ({"prefix_rate": 1.1}, "prefix_rate"),
        ({"prefix_rate": math.nan}, "prefix_rate"),
        ({"epsilon": -1.0}, "epsilon"),
        ({"epsilon": math.inf}, "epsilon"),
        ({"mode": "exact", "epsilon": 0.1}, "epsilon"),
        ({"mode": "optimistic", "max_gap": -1.0}, "max_gap"),
        ({"mode": "optimistic", "max_gap": math.nan}, "max_gap"),
        ({"mode": "blocking", "max_gap": 2.0}, "max_gap"),
    ],
)
def test_bad_settings_name_the_field(values: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        DecodeConfig(**values)
    assert caught.value.field == field


def test_a_mode_without_what_it_needs(pair: Pair, run: Run) -> None:
    for mode in ("blocking", "optimistic", "exact", "offline"):
        with pytest.raises(InvalidInput, match="mode"):
            run(
                generate(
                    "a cat",
                    model=pair.model,
                    router=router_for(pair),
                    config=DecodeConfig(mode=mode),
                )
            )


@pytest.mark.parametrize(("num_tokens", "num_prefix"), [(256, 15), (1024, 61), (16, 0)])
def test_the_prefix_is_rounded_down(num_tokens: int, num_prefix: int) -> None:
    assert DecodeConfig().num_prefix(num_tokens) == num_prefix


# ------------------------------------------------------------------------------------------ around


class Diary:
    def __init__(self) -> None:
        self.events: list[str] = []
        self.tokens: list[int] = []
        self.origins: list[Origin] = []
        self.num_drafts = 0
        self.result: ImageResult | None = None

    def on_start(self, *, num_tokens: int, num_prefix: int) -> None:
        self.events.append(f"start {num_tokens} {num_prefix}")

    def on_draft(self, *, position: int, seconds: float) -> None:
        assert position >= len(self.tokens) and seconds >= 0
        self.num_drafts += 1

    def on_token(self, *, position: int, token: int, origin: Origin, score: float) -> None:
        assert position == len(self.tokens)
        self.tokens.append(token)
        self.origins.append(origin)

    def on_call(self, *, batch: VerifyBatch, verdict: Verdict, seconds: float) -> None:
        assert seconds > 0
        assert verdict.num_agreed <= len(batch.tokens)
        self.events.append("call")

    def on_finish(self, result: ImageResult) -> None:
        self.result = result
        self.events.append("finish")


def test_the_observer_is_told_everything(pair: Pair, run: Run) -> None:
    diary = Diary()
    result = run(decode(pair, observer=diary))
    assert diary.result == result
    assert diary.num_drafts == result.drafts >= T - result.prefix_tokens
    assert tuple(diary.tokens) == result.tokens
    assert tuple(diary.origins) == result.origins
    assert diary.events == [f"start {T} 2", *["call"] * result.round_trips, "finish"]
    assert [math.isnan(s) for s in result.scores] == [o is Origin.PREFIX for o in result.origins]


class Drafts(Silent):
    """Of which cells they were told, and how long they took."""

    def __init__(self) -> None:
        self.cells: list[int] = []
        self.seconds = 0.0

    def on_draft(self, *, position: int, seconds: float) -> None:
        self.cells.append(position)
        self.seconds += seconds


@pytest.mark.parametrize("wavefront", [0, 2])
@pytest.mark.parametrize("seconds", [0.0, 0.005])
def test_the_observer_is_told_of_every_draft_once(
    pair: Pair, run: Run, wavefront: int, seconds: float
) -> None:
    """Also of those that were made while the cloud answered."""
    ahead = 0.0
    for seed in range(3):
        watched, drafts = Watched(pair.cloud, seconds=seconds), Drafts()
        router = router_for(pair, budget=0.5)
        options: Any = {"seed": seed, "router": router, "wavefront": wavefront}
        result = run(decode(pair, watched, observer=drafts, **options))
        assert len(drafts.cells) == result.drafts
        assert set(drafts.cells) == set(order_of(GRID, wavefront).cells[result.prefix_tokens :])
        assert 0 < drafts.seconds <= result.draft_seconds + result.ahead_seconds
        ahead += result.ahead_seconds
    assert seconds == 0 or ahead > 0


def test_times_add_up(pair: Pair, run: Run) -> None:
    result = run(decode(pair))
    parts = (result.prefix_seconds, result.draft_seconds, result.wait_seconds)
    assert all(part > 0 for part in parts)
    assert sum(parts) <= result.seconds
    assert 0 < result.cloud_compute_seconds < result.seconds


@pytest.mark.parametrize("name", ["interval", "softmax-corr-window", "random"])
def test_drafting_while_the_cloud_answers_changes_no_token(pair: Pair, run: Run, name: str) -> None:
    errors = {2: DeadlineExceeded("late")}
    for seed in range(3):
        at_once, slow = (
            run(
                decode(
                    pair,
                    Watched(pair.cloud, errors=errors, seconds=seconds),
                    router=router_for(pair, name, budget=0.6, seed=seed),
                    seed=seed,
                )
            )
            for seconds in (0.0, 0.01)
        )
        assert (slow.tokens, slow.origins) == (at_once.tokens, at_once.origins)
        torch.testing.assert_close(slow.scores, at_once.scores, equal_nan=True)
        assert {origin for origin, n in slow.counts.items() if n} >= {
            Origin.KEPT,
            Origin.AGREED,
            Origin.CORRECTED,
            Origin.FALLBACK,
        }
        assert at_once.ahead_seconds == 0 < slow.ahead_seconds < slow.wait_seconds


def test_other_tasks_have_their_turn_while_drafting(pair: Pair, run: Run) -> None:
    async def both() -> int:
        num_turns = 0

        async def tick() -> None:
            nonlocal num_turns
            while True:
                num_turns += 1
                await asyncio.sleep(0)

        ticker = asyncio.create_task(tick())
        await decode(pair, router=router_for(pair, "never"))
        ticker.cancel()
        return num_turns

    assert run(both()) >= T // 5


@pytest.mark.parametrize("name", ["entropy", "softmax-corr", "random", "discrete-100"])
def test_any_router_routes(pair: Pair, run: Run, name: str) -> None:
    watched = Watched(pair.cloud)
    run(decode(pair, watched, router=router_for(pair, name, budget=0.5)))
    assert 3 < len(watched.batches) < T


def test_the_same_image_twice(pair: Pair, run: Run) -> None:
    first, second = (run(decode(pair)) for _ in range(2))
    assert first.tokens == second.tokens
    assert first.origins == second.origins
    assert first.tokens != run(decode(pair, seed=SEED + 1)).tokens
