"""InterFuse: order and sums for any logits, exact in the tails, smooth where training needs it."""

import pytest
import torch
from torch import Tensor

from ciar.interval import interfuse, interval_width


def random_head(vocab_size: int, *, scale: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(5, vocab_size, generator=generator) * scale
    return centre, torch.rand(5, vocab_size, generator=generator) * 6


def width_in_float64(centre: Tensor, radius: Tensor) -> Tensor:
    """The definition: the ratio of exponentials, each code moved on its own."""
    c, r = centre.double(), radius.double()
    e = (c - c.amax(-1, keepdim=True)).exp()
    rest = torch.stack([e[..., torch.arange(e.shape[-1]) != i].sum(-1) for i in range(e.shape[-1])])
    rest = rest.movedim(0, -1)
    upper, lower = e * r.exp(), e * (-r).exp()
    return upper / (upper + rest) - lower / (lower + rest)


@pytest.mark.parametrize("vocab_size", [2, 64, 16384])
@pytest.mark.parametrize("scale", [0.0, 0.1, 3.0, 40.0])
def test_intervals_hold_the_centre_and_a_distribution(vocab_size: int, scale: float) -> None:
    interval = interfuse(*random_head(vocab_size, scale=scale))
    for part in (interval.lower, interval.mid, interval.upper, interval.width):
        assert bool(part.isfinite().all())
    assert bool((interval.lower <= interval.mid * (1 + 1e-5)).all())
    assert bool((interval.mid <= interval.upper * (1 + 1e-5)).all())
    torch.testing.assert_close(interval.mid.sum(-1), torch.ones(5), atol=1e-5, rtol=1e-5)
    assert bool((interval.lower.sum(-1) <= 1 + 1e-5).all())
    assert bool((interval.upper.sum(-1) >= 1 - 1e-5).all())


@pytest.mark.parametrize("scale", [0.1, 3.0, 8.0])
def test_width_equals_the_definition(scale: float) -> None:
    """Relative to each entry: subtraction of near-equal numbers would fail this."""
    centre, radius = random_head(64, scale=scale)
    radius[:, ::3] *= 1e-3
    expected = width_in_float64(centre, radius)
    for width in (interfuse(centre, radius).width, interval_width(centre, radius)):
        torch.testing.assert_close(width.double(), expected, rtol=2e-4, atol=1e-30)


def test_bounds_equal_the_definition_for_the_likeliest_token() -> None:
    """1 - p is 1e-9 there, which float32 cannot hold next to 1."""
    gap = 20.7
    centre, radius = torch.tensor([gap, 0.0, 0.0]), torch.tensor([2.0, 2.0, 2.0])
    rest = 2 * torch.tensor(-gap).double().exp()
    interval = interfuse(centre, radius)
    shrunk = torch.tensor(-2.0).double().exp()
    torch.testing.assert_close(
        interval.width[0].double(), (rest / shrunk - rest * shrunk), rtol=1e-4, atol=0.0
    )


def test_a_gap_of_300_logits() -> None:
    interval = interfuse(torch.tensor([300.0, 0.0, -300.0]), torch.full((3,), 6.0))
    assert interval.mid.tolist() == [1.0, 0.0, 0.0]
    assert bool((interval.log_lower[1:] < -290).all())
    assert all(bool(t.isfinite().all()) for t in (interval.log_lower, interval.log_width))


def test_no_radius_no_width() -> None:
    centre, _ = random_head(64, scale=3.0)
    interval = interfuse(centre, torch.zeros_like(centre))
    assert not interval.width.any()
    torch.testing.assert_close(interval.lower, interval.upper)


def test_impossible_tokens_have_an_empty_interval() -> None:
    centre, radius = random_head(8, scale=2.0)
    possible = interfuse(centre[:, :6], radius[:, :6])
    centre[:, 6:] = -torch.inf
    interval = interfuse(centre, radius)
    for part in (interval.lower, interval.mid, interval.upper, interval.width):
        assert not part[:, 6:].any()
    torch.testing.assert_close(interval.width[:, :6], possible.width)


def test_gradients_equal_finite_differences() -> None:
    """Of a sum that weights every bound of every code differently."""
    centre, radius = (t[0].clone().requires_grad_() for t in random_head(64, scale=1.5))
    weights = torch.randn(3, 64, generator=torch.Generator().manual_seed(2))

    def value(c: Tensor, r: Tensor) -> Tensor:
        interval = interfuse(c, r)
        bounds = torch.stack([interval.lower, interval.upper, interval.width])
        return (bounds * weights).double().sum()

    value(centre, radius).backward()  # type: ignore[no-untyped-call]
    step = 1e-2
    for tensor, other, is_centre in ((centre, radius, True), (radius, centre, False)):
        assert tensor.grad is not None
        for code in (0, 7, int(centre.argmax())):
            move = torch.zeros(64)
            move[code] = step
            ends = []
            for moved in (tensor.detach() + move, tensor.detach() - move):
                pair = (moved, other.detach()) if is_centre else (other.detach(), moved)
                ends.append(float(value(*pair)))
            slope = (ends[0] - ends[1]) / (2 * step)
            assert float(tensor.grad[code]) == pytest.approx(slope, rel=2e-2, abs=1e-5)


@pytest.mark.parametrize("vocab_size", [64, 16384])
def test_gradients_are_finite_at_extremes(vocab_size: int) -> None:
    centre, radius = (t.requires_grad_() for t in random_head(vocab_size, scale=60.0))
    interval = interfuse(centre, radius)
    (interval.log_lower.sum() + interval.log_upper.sum()).backward()  # type: ignore[no-untyped-call]
    for tensor in (centre, radius):
        assert tensor.grad is not None and bool(tensor.grad.isfinite().all())
