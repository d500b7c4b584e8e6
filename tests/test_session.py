"""Verification equals the cloud's own image, whatever the batches.

Rollback, resume and repetition change nothing.
"""

import math
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ciar.errors import InvalidInput
from ciar.models.transformer import TransformerConfig
from ciar.session import PrefixWork, SessionState, VerifyWork
from ciar.target import Target, TargetModel
from ciar.types import ImageRequest, SamplingParams, TokenSpan, Verdict, VerifyBatch, no_features

CONFIG = TransformerConfig(
    vocab_size=24,
    grid_size=4,
    num_layers=2,
    dim=32,
    num_heads=2,
    ffn_multiple_of=8,
    num_condition=6,
    condition_dim=8,
)
T = CONFIG.num_tokens


@pytest.fixture(scope="module")
def target() -> Target:
    torch.manual_seed(0)
    model = TargetModel(CONFIG, feature_dim=4).eval()
    torch.nn.init.normal_(model.injection.weight, std=0.5)
    torch.nn.init.normal_(model.transformer.output.weight, std=0.5)
    return Target(model, num_slots=2)


def new_session(seed: int = 3, *, top_k: int = 0, **options: Any) -> SessionState:
    """options: of `ImageRequest`."""
    sampling = SamplingParams(seed=seed, cfg_scale=2.0, top_k=top_k)
    request = ImageRequest(prompt="x", sampling=sampling, **options)
    condition = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    return SessionState(request, condition, num_tokens=T, vocab_size=24, feature_dim=4)


def run(target: Target, work: PrefixWork | VerifyWork, slot: int = 0) -> int:
    """Returns the steps it took."""
    num_forwards = 1
    while not work.receive(target.extend([work.feed(slot)])[0]):
        num_forwards += 1
    return num_forwards


def image(target: Target, seed: int = 3, **options: Any) -> list[int]:
    session = new_session(seed, **options)
    run(target, PrefixWork(session, T))
    return session.tokens


def verify(target: Target, session: SessionState, batch: VerifyBatch, slot: int = 0) -> Verdict:
    work = VerifyWork(session, batch)
    run(target, work, slot)
    return work.verdict


def all_uncertain(
    session: SessionState,
    tokens: list[int],
    position: int,
    *,
    wants_next: bool = True,
    run_on: int = 0,
) -> VerifyBatch:
    return VerifyBatch(
        position=position,
        tokens=tuple(tokens),
        uncertain=(True,) * len(tokens),
        features=no_features(4),
        epoch=session.epoch,
        wants_next=wants_next,
        run_on=run_on,
    )


@pytest.mark.parametrize("wavefront", [0, 1, 2, 3])
@pytest.mark.parametrize("num_prefix", [0, 1, 5])
@pytest.mark.parametrize("seed", [3, 4])
def test_everything_verified_is_the_clouds_own_image(
    target: Target, num_prefix: int, seed: int, wavefront: int
) -> None:
    """Wrong drafts of random lengths, drawing on behind some: all tokens are the base's.

    Another process takes the verdicts as they come, and knows the same.
    """
    truth, rng = image(target, seed, wavefront=wavefront), random.Random(seed)
    session, other = (new_session(seed, wavefront=wavefront) for _ in range(2))
    num_drawn_on = 0
    if num_prefix:
        run(target, PrefixWork(session, num_prefix))
        other.tokens = session.tokens[:]
    while not session.is_complete:
        back = min(rng.choice([0, 0, 1, 2]), len(session.tokens))  # sometimes ask again
        position = len(session.tokens) - back
        length = rng.randint(1, min(5, T - position))
        right = truth[position : position + length]
        draft = [token if rng.random() < 0.6 else rng.randrange(24) for token in right]
        wants, run_on = rng.random() < 0.6, rng.choice([0, 1, 2, 3])
        batch = all_uncertain(session, draft, position, wants_next=wants, run_on=run_on)
        work = VerifyWork(session, batch)
        num_forwards = run(target, work)
        verdict = work.verdict
        assert draft[: verdict.num_agreed] == truth[position : position + verdict.num_agreed]
        end = position + verdict.num_agreed
        is_last = end == (T if batch.wants_next else batch.end)
        assert verdict.token == (None if is_last else truth[end])
        most = run_on if verdict.num_agreed < length else 0
        assert list(verdict.run_on) == truth[end + 1 : end + 1 + most]
        assert num_forwards == 1 + len(verdict.run_on)
        num_drawn_on += len(verdict.run_on)
        verdict.check_answers(batch, num_tokens=T)
        other.take(batch, verdict)
        assert (other.tokens, other.epoch) == (session.tokens, session.epoch)
    assert session.tokens == truth and num_drawn_on > 0


@pytest.mark.parametrize("num_kept", [0, 1, 3])
def test_what_follows_a_batch_costs_a_row(target: Target, num_kept: int) -> None:
    flags = (False,) * num_kept + (True,)
    sizes = []
    for wants_next in (True, False):
        session = new_session()
        run(target, PrefixWork(session, 4))
        batch = VerifyBatch(
            position=4,
            tokens=(7,) * len(flags),
            uncertain=flags,
            features=torch.ones(num_kept, 4),
            wants_next=wants_next,
        )
        work = VerifyWork(session, batch)
        sizes.append(work.feed(0).num_new_rows)
    assert sizes == [num_kept + 2, num_kept + 1]


def test_a_batch_of_kept_tokens_alone_needs_no_answer(target: Target) -> None:
    one, both = new_session(), new_session()
    for session in (one, both):
        run(target, PrefixWork(session, 3))
    kept = mixed_batch(3, 4, seed=5)
    kept = replace(kept, uncertain=(False,) * 4, features=torch.ones(4, 4), wants_next=False)
    verdict = verify(target, one, kept)
    assert (verdict.num_agreed, verdict.token) == (4, None)
    asked = replace(
        kept, position=7, tokens=(9,), uncertain=(True,), features=no_features(4), wants_next=True
    )
    apart = verify(target, one, asked)
    together = verify(
        target,
        both,
        replace(
            asked,
            position=3,
            tokens=kept.tokens + (9,),
            uncertain=(False,) * 4 + (True,),
            features=kept.features,
        ),
    )
    assert apart.token == together.token
    assert one.tokens == both.tokens


@pytest.mark.parametrize("position", [0, 3, T - 1])
def test_a_kept_token_behind_cached_ones_alone_is_fed_too(target: Target, position: int) -> None:
    """There is nothing new to compute: the row before it is, again."""
    kept = VerifyBatch(
        position=position,
        tokens=(9,),
        uncertain=(False,),
        features=torch.ones(1, 4),
        epoch=1,
        wants_next=False,
    )
    session, other = new_session(), new_session()
    for one in (session, other):
        run(target, PrefixWork(one, T))
    assert verify(target, session, kept) == Verdict(
        epoch=1, position=position, num_agreed=1, token=None
    )
    other.forget_cache()
    other.restore(history(session))
    if position < T - 1:
        then = all_uncertain(session, [7], position + 1)
        assert verify(target, session, then) == verify(target, other, then, slot=1)


def mixed_batch(position: int, length: int, seed: int) -> VerifyBatch:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(24, (length,), generator=generator).tolist()
    uncertain = tuple((torch.rand(length, generator=generator) < 0.4).tolist())
    features = torch.randn(uncertain.count(False), 4, generator=generator)
    return VerifyBatch(
        position=position, tokens=tuple(tokens), uncertain=uncertain, features=features, epoch=99
    )


def history(session: SessionState) -> TokenSpan:
    uncertain = tuple(not bool(row.any()) for row in session.features[: len(session.tokens)])
    kept = [i for i, flag in enumerate(uncertain) if not flag]
    return TokenSpan(
        position=0,
        tokens=tuple(session.tokens),
        uncertain=uncertain,
        features=session.features[kept].clone(),
    )


def test_a_rebuilt_session_goes_on_identically(target: Target) -> None:
    session = new_session()
    run(target, PrefixWork(session, 2))
    verify(target, session, mixed_batch(2, 5, seed=7))
    other = new_session()
    other.restore(history(session))
    position = len(session.tokens)
    batch = mixed_batch(position, 4, seed=8)
    assert verify(target, other, batch, slot=1) == verify(target, session, batch)
    assert other.tokens == session.tokens
    assert torch.equal(other.features, session.features)


def test_repeating_a_batch_repeats_the_verdict(target: Target) -> None:
    session = new_session()
    run(target, PrefixWork(session, 3))
    batch = mixed_batch(3, 6, seed=11)
    first = verify(target, session, batch)
    tokens = list(session.tokens)
    assert verify(target, session, batch) == first
    session.forget_cache()
    assert verify(target, session, batch) == first
    assert session.tokens == tokens


def test_features_change_what_the_cloud_draws(target: Target) -> None:
    def logits(scale: float) -> Tensor:
        session = new_session()
        batch = VerifyBatch(
            position=0, tokens=(1, 2, 3), uncertain=(False,) * 3, features=torch.ones(3, 4) * scale
        )
        return target.extend([VerifyWork(session, batch).feed(0)])[0]

    assert not torch.allclose(logits(0.0), logits(1.0), atol=1e-3)


def test_a_last_token_the_edge_kept_needs_no_logits(target: Target) -> None:
    session, truth = new_session(), image(target)
    run(target, PrefixWork(session, T - 1))
    kept = VerifyBatch(position=T - 1, tokens=(5,), uncertain=(False,), features=torch.ones(1, 4))
    verdict = verify(target, session, kept)
    assert (verdict.num_agreed, verdict.token) == (1, None)
    assert session.tokens == [*truth[:-1], 5]


def test_older_epochs_are_void(target: Target) -> None:
    session, truth = new_session(), image(target)
    wrong = all_uncertain(session, [(truth[0] + 1) % 24], 0)
    assert verify(target, session, wrong).num_agreed == 0
    assert session.is_void(wrong)
    assert not session.is_void(all_uncertain(session, [truth[1]], 1))


def a_batch(position: int, tokens: list[int], *, kept: Tensor | None = None) -> VerifyBatch:
    """All uncertain, or all kept with these features."""
    return VerifyBatch(
        position=position,
        tokens=tuple(tokens),
        uncertain=(kept is None,) * len(tokens),
        features=no_features(4) if kept is None else kept,
    )


@pytest.mark.parametrize(
    ("batch", "field"),
    [
        (a_batch(1, [1]), "position"),
        (a_batch(0, []), "tokens"),
        (a_batch(0, [24]), "tokens"),
        (a_batch(0, [1] * 17), "position"),
        (a_batch(0, [1], kept=torch.zeros(1, 3)), "features"),
        (a_batch(0, [1], kept=torch.full((1, 4), torch.nan)), "features"),
    ],
)
def test_bad_batches_name_the_field(batch: VerifyBatch, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        VerifyWork(new_session(), batch)
    assert field in caught.value.field


@pytest.mark.parametrize("max_rows", [1, 2, 7])
@pytest.mark.parametrize("position", [0, 1, 9])
def test_divided_feeds_give_what_whole_ones_give(
    target: Target, max_rows: int, position: int
) -> None:
    """A rebuilt session catches up in parts, and so does a batch of many kept tokens."""
    known, rng = image(target), random.Random(0)
    kept = torch.randn(5, 4, generator=torch.Generator().manual_seed(2))
    batch = VerifyBatch(
        position=position,
        tokens=tuple(rng.randrange(24) for _ in range(6)),
        uncertain=(False,) * 5 + (True,),
        features=kept,
    )
    found = []
    for most in (None, max_rows):
        session = new_session()
        session.adopt(known[:position], (), torch.zeros(0, 4), 0)
        work, sizes, is_done = VerifyWork(session, batch), [], False
        while not is_done:
            feed = work.feed(0, max_rows=most)
            sizes.append(feed.num_new_rows)
            is_done = work.receive(target.extend([feed])[0])
        own = (work.verdict, session.tokens, session.num_cached)
        next_one = replace(batch, position=len(session.tokens) - 1, tokens=(3,), uncertain=(True,))
        after = VerifyWork(session, replace(next_one, features=no_features(4), epoch=9))
        run(target, after)
        found.append((*own, after.verdict))
        if most is not None:
            assert len(sizes) > 1
            assert all(size <= max(most, 5) for size in sizes[:-1])  # 5: the condition
    assert found[0] == found[1]


def test_a_part_of_a_work_that_was_given_up_leaves_nothing(target: Target) -> None:
    """Rows of its batch are in the cache; the next batch is fed from its own beginning."""
    known = image(target)
    session, other = new_session(), [(t + 1) % 24 for t in known[:8]]
    features = torch.ones(8, 4)
    given_up = VerifyWork(
        session,
        VerifyBatch(
            position=0,
            tokens=(*other, 1),
            uncertain=(False,) * 8 + (True,),
            features=features,
        ),
    )
    for _ in range(3):
        assert not given_up.receive(target.extend([given_up.feed(0, max_rows=2)])[0])
    tokens = tuple(known[:4])
    batch = VerifyBatch(
        position=0, tokens=tokens, uncertain=(True,) * 4, features=no_features(4), epoch=1
    )
    verdict = verify(target, session, batch)
    assert (verdict.num_agreed, verdict.token) == (4, known[4])


@pytest.mark.parametrize("seed", range(6))
def test_kept_tokens_stand_as_far_as_their_gap_allows(target: Target, seed: int) -> None:
    """The same batch under growing tolerances: the first token beyond one ends it."""
    batch = mixed_batch(0, T, seed)
    session = new_session(seed, max_gap=1e9, epsilon=1e9)
    gaps = verify(target, session, batch).gaps
    assert len(gaps) == T and all(gap >= 0 for gap in gaps) and max(gaps) > 0
    for epsilon, max_gap in ((0.0, 0.0), (0.5, 2.0), (2.0, 0.5), (3.0, float("inf"))):
        session = new_session(seed, max_gap=max_gap, epsilon=epsilon)
        verdict = verify(target, session, batch)
        limits = [epsilon if flag else max_gap for flag in batch.uncertain]
        beyond = [i for i, (gap, most) in enumerate(zip(gaps, limits, strict=True)) if gap > most]
        assert verdict.num_agreed == (beyond[0] if beyond else T)
        expected = gaps[: verdict.num_agreed] if max_gap < float("inf") else ()
        assert verdict.gaps == pytest.approx(expected, abs=1e-4)
        if beyond:
            assert verdict.token != batch.tokens[beyond[0]] and verdict.token is not None
            assert session.tokens == [*batch.tokens[: beyond[0]], verdict.token]
            assert not session.features[beyond[0] :].any()


def test_a_tolerance_of_nothing_for_kept_tokens_is_the_clouds_own_image(target: Target) -> None:
    expected, session = image(target), new_session(max_gap=0.0)
    batch = replace(
        all_uncertain(session, expected, 0), uncertain=(False,) * T, features=torch.zeros(T, 4)
    )
    verdict = verify(target, session, batch)
    assert verdict.num_agreed == T and verdict.gaps == (0.0,) * T


@pytest.mark.parametrize("top_k", [0, 2])
def test_what_the_edge_has_decided_stands(target: Target, top_k: int) -> None:
    """Its gap is told, and infinite where top-k rules the token out."""
    batch = mixed_batch(0, T, 3)
    options: Any = {"max_gap": 0.0, "top_k": top_k}
    found = verify(target, new_session(**options), batch)
    assert found.num_agreed < T
    decided = found.num_agreed + 1
    verdict = verify(target, new_session(**options), replace(batch, num_decided=T))
    assert verdict.num_agreed == T and verdict.gaps[decided - 1] > 0
    assert (math.inf in verdict.gaps) == bool(top_k)


def test_a_tolerance_is_not_for_the_prefix(target: Target) -> None:
    batch = replace(mixed_batch(0, T, 3), uncertain=(True,) * T, features=no_features(4))
    free = verify(target, new_session(epsilon=1e9), batch)
    assert free.num_agreed == T
    exact = verify(target, new_session(), batch).num_agreed
    for num_exact in (exact, exact + 1):
        found = verify(target, new_session(epsilon=1e9, num_exact=num_exact), batch)
        assert found.num_agreed == (T if num_exact == exact else exact)
