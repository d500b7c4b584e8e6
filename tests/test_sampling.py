"""Guidance, filters, and draws with common noise, distributed as the sampling view."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ciar.sampling import (
    Noise,
    coupled_agreement,
    coupled_draw,
    coupled_gap,
    filter_logits,
    guide,
    gumbel_noise,
    noise_rows,
)
from ciar.types import MAX_SEED, SamplingParams


def random_logits(vocab_size: int, *, seed: int = 0, scale: float = 1.5) -> Tensor:
    return torch.randn(vocab_size, generator=torch.Generator().manual_seed(seed)) * scale


def drawable(
    logits: Tensor, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> list[int]:
    view = filter_logits(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    found: list[int] = view.isfinite().nonzero().flatten().tolist()
    return found


def test_guidance() -> None:
    cond, uncond = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0])
    assert guide(cond, uncond, 3.0).tolist() == [3.0, -2.0]
    assert torch.equal(guide(cond, uncond, 1.0), cond)


def test_nothing_to_filter_changes_nothing() -> None:
    logits = random_logits(16)
    assert torch.equal(filter_logits(logits, temperature=1.0, top_k=0, top_p=1.0), logits)
    assert torch.equal(filter_logits(logits, temperature=1.0, top_k=16, top_p=1.0), logits)
    assert torch.equal(filter_logits(logits, temperature=2.0, top_k=0, top_p=1.0), logits / 2)


def test_top_k_keeps_ties_with_the_last() -> None:
    logits = torch.tensor([3.0, 1.0, 2.0, 2.0, 0.0])
    assert drawable(logits, top_k=1) == [0]
    assert drawable(logits, top_k=2) == [0, 2, 3]
    assert drawable(logits, top_k=3) == [0, 2, 3]


def test_top_p_keeps_the_token_that_crosses() -> None:
    logits = torch.tensor([0.1, 0.5, 0.4]).log()
    assert drawable(logits, top_p=0.45) == [1]
    assert drawable(logits, top_p=0.55) == [1, 2]
    assert drawable(logits, top_p=0.95) == [0, 1, 2]
    assert drawable(logits, top_p=1e-6) == [1]


def test_filters_come_after_temperature_and_one_after_the_other() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert drawable(logits, top_p=0.7) == [0, 1]
    assert drawable(logits, temperature=4.0, top_p=0.7) == [0, 1, 2]
    assert drawable(logits, top_k=2, top_p=0.6) == [0]  # of the two left, the first has 0.625


def test_noise_is_what_it_was() -> None:
    """Golden numbers: images of earlier releases can be drawn again."""
    expected = [-0.268963098526001, 2.0220110416412354, -1.0308738946914673, -0.08262766152620316]
    assert gumbel_noise(7, 3, 4).tolist() == pytest.approx(expected, rel=1e-6)
    assert gumbel_noise(7, 3, 8)[:4].tolist() == gumbel_noise(7, 3, 4).tolist()


def test_noise_differs_by_seed_and_position() -> None:
    keys = [(0, 0), (1, 0), (0, 1), (2**63, 0), (2**63 + 1, 0), (MAX_SEED - 1, 0), (MAX_SEED, 0)]
    rows = noise_rows([k[0] for k in keys], [k[1] for k in keys], 8)
    assert len({tuple(row.tolist()) for row in rows}) == len(keys)


def test_noise_is_gumbel() -> None:
    noise = torch.cat([gumbel_noise(1, position, 2**20) for position in range(4)]).double()
    assert float(noise.mean()) == pytest.approx(0.5772, abs=4e-3)
    assert float(noise.var()) == pytest.approx(math.pi**2 / 6, abs=1e-2)
    assert float((noise < 0).double().mean()) == pytest.approx(math.exp(-1), abs=2e-3)


def test_noise_reaches_beyond_float32() -> None:
    """Some of 2^26 draws pass 17, where a float32 u would end."""
    largest = [float(gumbel_noise(1, position, 2**20).max()) for position in range(64)]
    assert 17 < max(largest) < 37


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.5),
        SamplingParams(top_k=5),
        SamplingParams(temperature=1.5, top_p=0.8),
    ],
)
def test_draws_are_distributed_as_the_sampling_view(params: SamplingParams) -> None:
    """Chi-square over seeds; the bound is passed by chance once in 10^5."""
    logits, num_draws = random_logits(16), 20_000
    view = filter_logits(
        logits, temperature=params.temperature, top_k=params.top_k, top_p=params.top_p
    )
    draws = (view + noise_rows(range(num_draws), [5] * num_draws, 16)).argmax(-1)
    some = SamplingParams(**{**vars(params), "seed": 17})
    assert coupled_draw(logits, 5, some) == int(draws[17])
    counts = draws.bincount(minlength=16).double()
    expected = view.double().softmax(-1) * num_draws
    possible = expected > 0
    assert not counts[~possible].any()
    statistic = float(((counts - expected)[possible] ** 2 / expected[possible]).sum())
    freedom = int(possible.sum()) - 1
    assert statistic < freedom + 4.3 * math.sqrt(2 * freedom) + 12


def test_greedy_takes_the_largest() -> None:
    logits = random_logits(16)
    assert coupled_draw(logits, 0, SamplingParams(temperature=0.0, seed=9)) == int(logits.argmax())


@pytest.mark.parametrize("top_k", [0, 1, 5, 63, 64])
@pytest.mark.parametrize(("top_p", "is_tied"), [(1.0, False), (0.7, False), (1.0, True)])
def test_scores_are_the_filtered_logits_and_the_noise(
    top_k: int, top_p: float, is_tied: bool
) -> None:
    """Noise is made for the tokens alone that pass top-k. Ties with the k-th pass as well (which
    of them top-p then leaves is nobody's business).
    """
    for position in range(20):
        params = SamplingParams(seed=3, temperature=0.7, top_k=top_k, top_p=top_p)
        logits = random_logits(64, seed=position)
        if is_tied:
            logits = (logits * 2).round() / 2
        view = filter_logits(logits, temperature=0.7, top_k=top_k, top_p=top_p)
        scores = view + gumbel_noise(3, position, 64)
        noise = Noise(3, vocab_size=64)
        for token in range(64):
            own, gap = coupled_gap(logits, position, params, noise, token=token)
            assert own == int(scores.argmax())
            assert gap == float(scores.max() - scores[token])


def test_noise_of_a_few_tokens_is_theirs_in_the_row() -> None:
    noise = Noise(5, vocab_size=4096)
    for position in range(8):
        ids = np.random.default_rng(position).permutation(4096)[: 1 + 7 * position]
        assert noise.at(position, ids).tolist() == gumbel_noise(5, position, 4096)[ids].tolist()


def test_agreement_equals_what_coupled_draws_do() -> None:
    num_draws = 20_000
    noise = noise_rows(range(num_draws), [0] * num_draws, 12)
    for seed in range(4):
        a, b = random_logits(12, seed=seed), random_logits(12, seed=seed + 10)
        b = a + 0.4 * b
        agree = ((a + noise).argmax(-1) == (b + noise).argmax(-1)).double().mean()
        predicted = float(coupled_agreement(a.softmax(-1), b.softmax(-1)))
        assert float(agree) == pytest.approx(predicted, abs=5 * 0.5 / math.sqrt(num_draws))


def test_agreement_of_equal_and_of_disjoint_distributions() -> None:
    p = random_logits(8).softmax(-1)
    assert float(coupled_agreement(p, p)) == pytest.approx(1.0)
    left, right = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 0.4, 0.6])
    assert float(coupled_agreement(left, right)) == 0.0
    distance = 0.5 * (p - p.flip(-1)).abs().sum()
    bounds = (float((1 - distance) / (1 + distance)), float(1 - distance))
    assert bounds[0] <= float(coupled_agreement(p, p.flip(-1))) <= bounds[1] + 1e-6


def coupled_out(seed: int, epsilon: float, p: Tensor, q: Tensor, *, top_k: int = 0) -> int:
    """What is taken of a draft that was drawn from p, where the cloud draws from q."""
    params = SamplingParams(seed=seed, cfg_scale=1.0, top_k=top_k)
    noise = Noise(seed, vocab_size=len(q))
    drafted = coupled_draw(p, 0, params, noise)
    own, gap = coupled_gap(q, 0, params, noise, token=drafted)
    return drafted if gap <= epsilon else own


@pytest.mark.parametrize(("top_k", "most"), [(0, 24.3), (5, 18.5)])
def test_no_tolerance_leaves_the_distribution(top_k: int, most: float) -> None:
    """Chi-square of 100,000 draws over eight tokens or five of them; 0.1 % of all trials are above
    `most`.
    """
    p, q = torch.randn(2, 8, generator=torch.Generator().manual_seed(0)) * 1.5
    draws = [coupled_out(seed, 0.0, p, q, top_k=top_k) for seed in range(100_000)]
    found = torch.bincount(torch.tensor(draws), minlength=8)
    view = filter_logits(q, temperature=1.0, top_k=top_k, top_p=1.0)
    expected = view.softmax(-1) * len(draws)
    possible = expected > 0
    assert not found[~possible].any()
    assert float(((found - expected) ** 2 / expected)[possible].sum()) < most


@pytest.mark.parametrize("epsilon", [0.25, 1.0])
def test_a_tolerance_bounds_how_often_any_token_is_taken(epsilon: float) -> None:
    p, q = torch.randn(2, 8, generator=torch.Generator().manual_seed(1)) * 1.5
    count = 40_000
    draws = [coupled_out(seed, epsilon, p, q) for seed in range(count)]
    found = torch.bincount(torch.tensor(draws), minlength=8) / count
    most = q.softmax(-1) * math.exp(epsilon)
    noise = 4 * (most / count).sqrt()
    assert bool((found <= most + noise).all())
    exact = [coupled_out(seed, 0.0, p, q) for seed in range(count)]
    drafted = [
        coupled_draw(p, 0, SamplingParams(seed=seed, cfg_scale=1.0)) for seed in range(count)
    ]
    stands = [sum(a == b for a, b in zip(out, drafted, strict=True)) for out in (draws, exact)]
    assert stands[0] > 1.02 * stands[1], "more drafts stand"
