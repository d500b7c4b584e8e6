"""Features made in the cloud: the edge's own codes, and so the same tokens, whatever happens."""

import asyncio
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ciar import wire
from ciar.errors import CheckpointError, InvalidInput, PairMismatch
from ciar.feed import Feed
from ciar.local import LocalVerifier
from ciar.redraft import Redraft
from ciar.router import make_router
from ciar.session import PrefixWork, SessionState, VerifyWork
from ciar.target import Target
from ciar.types import ImageRequest, SamplingParams, Verdict, VerifyBatch, no_features
from ciar_cloud.bundle import CloudModel, load_cloud_model, load_front_model
from ciar_cloud.fleet import Fleet
from ciar_cloud.kv_budget import slot_bytes
from ciar_edge.config import DecodeConfig
from ciar_edge.connection import RemoteConfig
from ciar_edge.drafter import Drafter
from ciar_edge.loop import generate
from ciar_edge.models import EdgeModel, load_draft_model
from ciar_edge.remote import RemoteVerifier
from ciar_edge.result import ImageResult, Observer, Silent
from tests.cloud_client import F, T, V, cloud, metric
from tests.tiny import PROMPT, write_bundle

SAMPLING = SamplingParams(seed=5, cfg_scale=2.0)
FRAMING = 16  # bytes of a batch beside its tokens
SAME = 1e-5  # float32, matrix products of other shapes
SAME_AS_INT8 = 0.02  # of ciar-mini: an edge multiplies int8 weights in bfloat16


@pytest.fixture(scope="module")
def model(bundle: Path) -> CloudModel:
    return load_cloud_model(str(bundle), recompute_features=True)


@pytest.fixture(scope="module")
def edge(bundle: Path) -> EdgeModel:
    return load_draft_model(bundle / "edge")


def edge_codes(edge: EdgeModel, condition: Tensor, tokens: Sequence[int]) -> Tensor:
    """Of every token [n, F], by the edge's own drafter."""
    drafter, found = Drafter(edge.prepared, condition, SAMPLING), []
    for token in tokens:
        found.append(drafter.features([drafter.draft()]))
        drafter.commit(token)
    return torch.cat(found)


def feed(
    slot: int, tokens: Tensor, kept: Tensor, start: int, end: int, condition: Tensor | None
) -> Feed:
    """The tokens `start .. end-1` of an image, behind its condition [L, C] if that is new."""
    return Feed(
        slot=slot,
        num_condition=8,
        position=start,
        tokens=tokens[start:end],
        before=tokens[:start],
        cfg_scale=2.0,
        condition=condition,
        kept=kept[start:end],
    )


@pytest.mark.parametrize("is_padded", [False, True])
@torch.inference_mode()
def test_codes_are_the_edges_own(model: CloudModel, edge: EdgeModel, is_padded: bool) -> None:
    """Two images in one pass, in pieces of any length, with rollbacks, one behind the other."""
    target, dice = Target(model.target, num_slots=1), random.Random(0)
    redraft = Redraft(edge.draft, target.condition_rows, num_slots=2, is_padded=is_padded)
    images = []
    for _ in range(2):
        condition = torch.randn(8, target.config.condition_dim)
        tokens = torch.randint(V, (T,))
        expected = edge_codes(edge, target.condition_rows(condition), tokens.tolist())
        images.append((condition, tokens, torch.rand(T) < 0.6, expected))
    ends, num_compared = [0, 0], 0
    for step in range(60):
        feeds = []
        for slot, (condition, tokens, kept, _) in enumerate(images):
            is_new = not step or dice.random() < 0.1
            start = 0 if is_new else dice.randint(max(1, ends[slot] - 4), max(1, ends[slot]))
            start = min(start, T - 2)
            ends[slot] = dice.randint(start + 1, min(T - 1, start + 5))
            rows = condition if is_new else None
            feeds.append(feed(slot, tokens, kept, start, ends[slot], rows))
        for one, codes in zip(feeds, redraft.codes(feeds), strict=True):
            _, _, kept, expected = images[one.slot]
            span = slice(one.position, one.position + len(one.tokens))
            torch.testing.assert_close(
                codes, expected[span] * kept[span, None], atol=SAME, rtol=SAME
            )
            num_compared += int(kept[span].sum())
    assert num_compared > 50


@torch.inference_mode()
def test_codes_of_an_edge_that_drafts_in_int8() -> None:
    """Of the embedded model, over what its own edge drafts."""
    cloud_model = load_cloud_model("ciar-mini", recompute_features=True)
    assert cloud_model.draft_folder
    edge = load_draft_model(cloud_model.draft_folder)
    (features,) = cloud_model.encoder.encode(["a dog on a beach"])
    rows = cloud_model.target.transformer.condition_rows(features)
    drafter, codes = Drafter(edge.prepared, rows, SamplingParams(seed=1)), []
    for _ in range(64):
        draft = drafter.draft()
        codes.append(drafter.features([draft]))
        drafter.commit(draft.token)
    tokens = torch.tensor(drafter._tokens)
    target = Target(cloud_model.target, num_slots=1, draft=cloud_model.draft)
    whole = Feed(
        slot=0,
        num_condition=len(features),
        position=0,
        tokens=tokens,
        before=tokens[:0],
        cfg_scale=2.0,
        condition=features,
        kept=torch.ones(64, dtype=torch.bool),
    )
    (made,) = target._codes([whole])
    assert made is not None
    expected = torch.cat(codes)
    assert float((made - expected).norm() / expected.norm()) < SAME_AS_INT8


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_target_in_half_precision_gets_codes_too(bundle: Path, dtype: str) -> None:
    """The draft model stays in float32, as edges have it."""
    half = load_cloud_model(str(bundle), dtype=dtype, recompute_features=True)
    state = session("recompute")
    batch = VerifyBatch(
        position=0, tokens=(3, 4, 5), uncertain=(False, False, True), features=no_features(F)
    )
    run_work(Target(half.target, num_slots=1, draft=half.draft), VerifyWork(state, batch))
    assert len(state.tokens) >= 3


def test_nothing_before_the_first_token_is_fed_without_it(model: CloudModel) -> None:
    """A kept first token takes the place of the cloud's: its code needs the prompt again."""
    state = session("recompute")
    target = Target(model.target, num_slots=1, draft=model.draft)
    run_work(target, PrefixWork(state, 1))
    batch = VerifyBatch(position=0, tokens=(3, 4), uncertain=(False, True), features=no_features(F))
    work = VerifyWork(state, batch)
    assert work.feed(0).condition is not None
    run_work(target, work)
    assert state.kept >= {0}


@pytest.mark.parametrize("max_rows", [1, 3, 6, 9])
def test_long_feeds_are_divided(model: CloudModel, max_rows: int) -> None:
    """A session that is rebuilt, its first token kept, in parts smaller than its prompt."""
    dice, position = random.Random(0), 9
    known = [dice.randrange(V) for _ in range(position)]
    batch = VerifyBatch(
        position=position,
        tokens=tuple(dice.randrange(V) for _ in range(4)),
        uncertain=(False, False, True, True),
        features=no_features(F),
    )
    found = []
    for most in (None, max_rows):
        state, is_done, num_parts = session("recompute"), False, 0
        state.adopt(known, {0, 1, 4, 7}, no_features(F), 0)
        target, work = (
            Target(model.target, num_slots=1, draft=model.draft),
            VerifyWork(state, batch),
        )
        while not is_done:
            (logits,) = target.extend([work.feed(0, max_rows=most)])
            is_done, num_parts = work.receive(logits), num_parts + 1
            assert num_parts < T
        found.append((work.verdict, state.tokens, state.kept))
    assert found[0] == found[1] and num_parts > 1


def session(features: Any) -> SessionState:
    request = ImageRequest(prompt=PROMPT, sampling=SAMPLING, features=features)
    condition = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    return SessionState(request, condition, num_tokens=T, vocab_size=V, feature_dim=F)


def run_work(target: Target, work: PrefixWork | VerifyWork) -> None:
    while not work.receive(target.extend([work.feed(0)])[0]):
        pass


def test_features_come_with_no_batch_of_such_a_session(model: CloudModel) -> None:
    state = session("none")
    batch = VerifyBatch(position=0, tokens=(3,), uncertain=(False,), features=torch.zeros(1, F))
    with pytest.raises(InvalidInput, match="batch.features: .*leave them out: .*'none'"):
        state.check_batch(batch)
    with pytest.raises(InvalidInput, match=r"batch.features: \(0, 8\): give 1 rows"):
        session("send").check_batch(
            VerifyBatch(position=0, tokens=(3,), uncertain=(False,), features=no_features(F))
        )


# ------------------------------------------------------------------------------ images


def local(model: CloudModel) -> LocalVerifier:
    target = Target(model.target, num_slots=1, draft=model.draft)
    return LocalVerifier(target, lambda prompt: model.encoder.encode([prompt])[0], model.info)


async def image(
    verifier: Any,
    edge: EdgeModel,
    *,
    seed: int = 5,
    budget: float = 0.3,
    observer: Observer | None = None,
    **settings: Any,
) -> ImageResult:
    router = make_router("interval", budget=budget, calibration=edge.calibration, grid_size=4)
    return await generate(
        PROMPT,
        model=edge,
        router=router,
        verifier=verifier,
        config=DecodeConfig(**settings),
        sampling=SamplingParams(seed=seed, cfg_scale=2.0),
        observer=observer,
    )


@pytest.mark.parametrize("mode", ["blocking", "optimistic"])
@pytest.mark.parametrize("prefix_rate", [0.0, 0.2])
def test_images_are_those_of_features_that_are_sent(
    model: CloudModel, edge: EdgeModel, mode: str, prefix_rate: float, run: Any
) -> None:
    """And not those without features, or nothing would have been tested."""
    shared: Any = {"mode": mode, "prefix_rate": prefix_rate}
    num_other = 0
    for seed in range(12):
        sent, made, plain = (
            run(image(local(model), edge, seed=seed, features=features, **shared))
            for features in ("send", "recompute", "none")
        )
        assert (made.tokens, made.origins) == (sent.tokens, sent.origins)
        num_other += plain.tokens != sent.tokens
    assert num_other


def test_a_bundle_without_its_edge_recomputes_nothing(bundle: Path, tmp_path: Path) -> None:
    """Nor one with an edge for another target; who insists is told why."""
    folder = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    assert load_front_model(str(folder), recompute_features=None).info.can_recompute
    assert not load_front_model(str(folder), recompute_features=False).info.can_recompute
    other = write_bundle(tmp_path / "other", seed=1)
    shutil.rmtree(folder / "edge")
    for reason in ("no config.json", "a draft for target"):
        assert not load_front_model(str(folder), recompute_features=None).info.can_recompute
        for load in (load_front_model, load_cloud_model):
            with pytest.raises(CheckpointError, match=reason):
                load(str(folder), recompute_features=True)
        shutil.copytree(other / "edge", folder / "edge", dirs_exist_ok=True)


def test_a_cloud_without_the_draft_model_refuses(bundle: Path, edge: EdgeModel, run: Any) -> None:
    with pytest.raises(PairMismatch, match=r"features: recompute: .* give send or none"):
        run(image(local(load_cloud_model(str(bundle))), edge, features="recompute"))


class Saboteur(Silent):
    """Does something once, in mid-image."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act, self._is_done = act, False

    def on_draft(self, *, position: int, seconds: float) -> None:
        if position >= T // 2 and not self._is_done:
            self._is_done = True
            self._act()


def test_the_death_of_an_engine_changes_nothing(
    model: CloudModel, bundle: Path, edge: EdgeModel, run: Any
) -> None:
    """An engine process makes the codes, and its successor those of all known tokens again."""
    front = load_front_model(str(bundle), recompute_features=True)
    patient = RemoteConfig(deadline_seconds=120, resume_seconds=120)  # a process begins meanwhile

    async def scenario() -> None:
        async with (
            cloud(front, single_process=False, slots=1) as client,
            RemoteVerifier(f"127.0.0.1:{client.port}", config=patient) as verifier,
        ):
            fleet = client.server.engine
            assert isinstance(fleet, Fleet)
            found = await image(
                verifier, edge, features="recompute", observer=Saboteur(fleet.links[0].kill)
            )
            expected = await image(local(model), edge, features="recompute")
            assert (found.tokens, found.origins) == (expected.tokens, expected.origins)
            assert metric(client, "ciar_cloud_engine_deaths_total") == 1

    run(scenario())


def test_sessions_that_take_turns_in_a_slot_lose_nothing(
    model: CloudModel, edge: EdgeModel, run: Any
) -> None:
    """Evicted and rebuilt, draft model and target alike."""

    async def scenario() -> None:
        async with (
            cloud(model, slots=1, min_idle_seconds=0.0) as client,
            RemoteVerifier(f"127.0.0.1:{client.port}") as verifier,
        ):
            seeds = range(4)
            found = await asyncio.gather(
                *(image(verifier, edge, seed=seed, features="recompute") for seed in seeds)
            )
            for seed, one in zip(seeds, found, strict=True):
                expected = await image(local(model), edge, seed=seed, features="recompute")
                assert one.tokens == expected.tokens
            assert (metric(client, "ciar_cloud_evictions_total") or 0) > 0

    run(scenario())


@pytest.mark.parametrize("features", ["none", "recompute"])
def test_tokens_alone_go_up(model: CloudModel, edge: EdgeModel, features: Any, run: Any) -> None:
    """Over a socket: the tokens of the local cloud, and under four bytes each beside framing."""

    async def scenario() -> None:
        async with (
            cloud(model) as client,
            RemoteVerifier(f"127.0.0.1:{client.port}") as verifier,
        ):
            watch = Watch()
            found = await image(verifier, edge, features=features, observer=watch)
            expected = await image(local(model), edge, features=features)
            assert (found.tokens, found.origins) == (expected.tokens, expected.origins)
            for batch in watch.batches:
                size = wire.verify_batch_to_proto(batch, dtype="fp16").ByteSize()
                assert size < 4 * len(batch.tokens) + FRAMING

    run(scenario())


class Watch(Silent):
    def __init__(self) -> None:
        self.batches: list[VerifyBatch] = []

    def on_call(self, *, batch: VerifyBatch, verdict: Verdict, seconds: float) -> None:
        self.batches.append(batch)


def test_the_budget_counts_the_draft_models_memory(model: CloudModel) -> None:
    both, alone = slot_bytes(model.target, model.draft), slot_bytes(model.target)
    assert both - alone == alone / 4  # one layer of one sequence, not two layers of two
