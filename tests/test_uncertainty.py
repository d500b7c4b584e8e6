"""Scores equal their definitions."""

import math

import pytest
import torch
from torch import Tensor

from ciar.head_output import HeadOutput, reach_of
from ciar.interval import interfuse
from ciar.router import make_router
from ciar.uncertainty import (
    TENSOR_SCORES,
    discrete_uncertainty,
    draw_doubt,
    entropy,
    interval_uncertainty,
    nucleus_size,
    scaled_uncertainty,
    softmax_corr,
    total_width,
    window_corr,
)
from tests.tiny import random_head


def no_reach() -> Tensor:
    raise AssertionError("this score does not look at the radius")


@pytest.mark.parametrize("vocab_size", [2, 64, 16384])
@pytest.mark.parametrize("scale", [0.0, 0.5, 4.0, 60.0])
def test_the_rational_form_is_interfuse(vocab_size: int, scale: float) -> None:
    head = random_head(vocab_size, scale=scale)
    interval = interfuse(head.centre, head.radius)
    for found, expected in (
        (head.mid, interval.mid),
        (head.lower, interval.lower),
        (head.upper, interval.upper),
        (head.width, interval.width),
    ):
        torch.testing.assert_close(found, expected, rtol=3e-4, atol=1e-7)
    torch.testing.assert_close(head.width.sum(), interval.width.sum(), rtol=1e-4, atol=1e-6)


def test_batches_are_scored_row_by_row() -> None:
    heads = [random_head(seed=seed) for seed in range(3)]
    batch = HeadOutput(
        torch.stack([h.centre for h in heads]), torch.stack([h.reach for h in heads])
    )
    for score in (total_width, interval_uncertainty, entropy, softmax_corr):
        torch.testing.assert_close(score(batch), torch.stack([score(h) for h in heads]))


@pytest.mark.parametrize("num_scored", [0, 1, 3])
def test_stacked_heads_are_the_single_ones(num_scored: int) -> None:
    heads = [random_head(seed=seed) for seed in range(3)]
    reach = torch.stack([h.reach for h in [random_head(seed=seed) for seed in range(3)]])
    for head in heads[:num_scored]:
        total_width(head)
    stacked = HeadOutput.stack(heads, no_reach if num_scored == 3 else lambda: reach)
    for name in ("mid", "rest", "doubt", "reach", "lower", "upper", "width"):
        expected = torch.stack([getattr(head, name) for head in heads])
        torch.testing.assert_close(getattr(stacked, name), expected)


def test_scores_equal_their_definitions() -> None:
    head = random_head()
    p, width = head.centre.double().softmax(-1), interfuse(head.centre, head.radius).width.double()
    spread = math.sqrt(float(((width - width.mean()) ** 2).mean()))
    assert float(total_width(head)) == pytest.approx(float(width.sum()), rel=1e-4)
    assert float(interval_uncertainty(head)) == pytest.approx(float(width.sum()) * spread, rel=1e-4)
    assert float(scaled_uncertainty(head)) == pytest.approx(
        float(interval_uncertainty(head)) * 8, rel=1e-5
    )
    assert float(entropy(head)) == pytest.approx(float(-(p * p.log()).sum()), rel=1e-5)
    assert float(softmax_corr(head)) == pytest.approx(float(1 - p.max()), rel=1e-5)


def distributions_inside(head: HeadOutput, *, count: int) -> Tensor:
    """Corners of the set of distributions in the interval: [count, V] float64.

    In a random order, codes are raised to their upper bounds until the sum is one.
    """
    lower, upper = head.lower.double(), head.upper.double()
    generator = torch.Generator().manual_seed(1)
    orders = torch.rand(count, len(lower), generator=generator).argsort(dim=-1)
    room = (upper - lower)[orders]
    before = room.cumsum(dim=-1) - room
    raised = torch.minimum(room, (1 - lower.sum() - before).clamp(min=0))
    return lower + torch.zeros_like(raised).scatter(-1, orders, raised)


@pytest.mark.parametrize("token", [0, 1, 7, 23])
def test_draw_doubt_bounds_the_chance_that_the_cloud_draws_another_token(token: int) -> None:
    centre = torch.randn(24, generator=torch.Generator().manual_seed(2)) * 2
    head = HeadOutput(centre, torch.full((24,), math.tanh(0.35)), torch.tensor(token))
    p = head.mid.double()
    q = distributions_inside(head, count=500)
    torch.testing.assert_close(q.sum(dim=-1), torch.ones(len(q), dtype=q.dtype))
    ratios = torch.maximum(p / p[token], q / q[:, [token]])  # a shared draw: 1 / their sum
    agree = 1 / ratios.sum(dim=-1) / p[token]
    doubt = float(draw_doubt(head))
    assert float((1 - agree).max()) <= doubt + 1e-6
    lower, others = float(head.lower[token]), float(head.upper.sum() - head.upper[token])
    worst = 1 - 1 / (float(p[token]) + float(p[token]) / lower * others)
    assert doubt == pytest.approx(worst, rel=1e-4)


def test_a_rare_draw_is_doubtful_where_the_prediction_is_sure() -> None:
    centre = torch.zeros(64)
    centre[3] = 9.0
    reach = torch.full((64,), 1 / 3)
    likely, rare = (HeadOutput(centre, reach, torch.tensor(token)) for token in (3, 5))
    assert float(total_width(likely)) == float(total_width(rare))
    assert float(draw_doubt(likely)) < 0.1 < 0.5 < float(draw_doubt(rare))
    assert float(draw_doubt(HeadOutput(centre, reach))) == float(draw_doubt(likely))
    exact = HeadOutput(centre, torch.zeros(64), torch.tensor(3))
    assert float(draw_doubt(exact)) == pytest.approx(0, abs=1e-6)


def test_scores_of_extreme_predictions_are_finite() -> None:
    centre = torch.full((64,), -300.0)
    centre[3], centre[5] = 0.0, -torch.inf
    head = HeadOutput(centre, torch.full((64,), math.tanh(3.0)))
    for name, score in TENSOR_SCORES.items():
        assert math.isfinite(float(score(head))), name
    assert float(entropy(head)) == 0.0
    flat = HeadOutput(torch.zeros(64), torch.full((64,), 1 / 3))
    assert float(entropy(flat)) == pytest.approx(math.log(64), rel=1e-5)


@pytest.mark.parametrize("radius", [0.0, 6.0, 14.0, 40.0])
def test_intervals_of_any_radius_are_finite(radius: float) -> None:
    """Also of codes whose p rounds to 1 or to 0; behind 14.6 the radius counts as that."""
    centre = torch.tensor([0.0, -40.0, -400.0])
    head = HeadOutput(centre, reach_of(torch.full((3,), radius)))
    for name in ("lower", "upper", "width"):
        values = getattr(head, name)
        assert bool(((values >= 0) & (values <= 1)).all()), name
    torch.testing.assert_close(head.radius, torch.full((3,), min(radius, 14.6)), rtol=0.01, atol=0)


def test_doubt_is_exact_where_p_rounds_to_one() -> None:
    head = HeadOutput(torch.tensor([20.0, 0.0]), torch.full((2,), 1 / 3))
    assert float(head.mid[0]) == 1.0
    assert float(softmax_corr(head)) == pytest.approx(math.exp(-20.0), rel=1e-5)


@pytest.mark.parametrize("name", ["entropy", "softmax-corr", "softmax-corr-window", "random"])
def test_scores_that_ignore_the_radius_do_not_compute_it(name: str) -> None:
    make_router(name).decide(0, HeadOutput(torch.randn(16), no_reach))
    with pytest.raises(AssertionError):
        make_router("interval").decide(0, HeadOutput(torch.randn(16), no_reach))


def test_the_whole_codebook_in_a_discrete_set_is_the_closed_form() -> None:
    head = random_head()
    assert float(discrete_uncertainty(head, num_codes=64)) == pytest.approx(
        float(interval_uncertainty(head)), rel=1e-4
    )
    assert float(discrete_uncertainty(head, num_codes=300)) == pytest.approx(
        float(interval_uncertainty(head)), rel=1e-4
    )


def test_a_discrete_set_has_the_widths_of_its_codes() -> None:
    """The remainder bucket keeps the bounds of the k codes what they are."""
    head = random_head()
    width = head.width[head.centre.topk(10).indices].double()
    expected = float(width.sum() * width.std(correction=0))
    assert float(discrete_uncertainty(head, num_codes=10)) == pytest.approx(expected, rel=1e-4)


def test_a_nucleus_has_the_fewest_codes_of_its_mass() -> None:
    centre = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.91, 0.03, 0.03, 0.03]]).log()
    head = HeadOutput(centre, torch.zeros(2, 4))
    assert nucleus_size(head, num_codes=4).tolist() == [0.75, 0.25]
    assert nucleus_size(head, num_codes=2).tolist() == [1.0, 0.5]


def test_window_corr_equals_its_definition() -> None:
    rows = torch.stack([random_head(seed=s).mid for s in range(5)]).double()
    correlation = rows.T @ rows / 5  # [V, V]
    eye = torch.eye(64, dtype=torch.double)
    cosine = (correlation * eye).sum() / (correlation.norm() * eye.norm())
    expected = 1 - cosine * math.sqrt(64 / 5)
    assert float(window_corr(rows)) == pytest.approx(float(expected), abs=1e-9)


def test_window_corr_at_its_ends() -> None:
    assert float(window_corr(random_head().mid[None])) == pytest.approx(0.0, abs=1e-6)
    assert float(window_corr(torch.eye(4))) == pytest.approx(0.0, abs=1e-6)
    assert float(window_corr(torch.ones(4, 8))) == pytest.approx(0.5, abs=1e-6)


def test_the_window_holds_neighbours_on_the_grid() -> None:
    """On a grid of 4, position 4 begins a row: 0 and 1 are above it, 3 is not to its left."""
    heads = {position: random_head(seed=position) for position in range(5)}
    router = make_router("softmax-corr-window", grid_size=4)
    scores = [router.decide(position, head)[0] for position, head in heads.items()]
    expected = window_corr(torch.stack([heads[p].mid for p in (4, 0, 1, 2)]))
    assert scores[0] == pytest.approx(0.0, abs=1e-6)
    assert scores[4] == pytest.approx(float(expected), abs=1e-6)
