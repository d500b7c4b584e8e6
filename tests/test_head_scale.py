"""What the edge runs behind the centre head equals the definition; the bench measures just that."""

import math

import pytest
import torch
from torch import Tensor

from ciar.head_output import HeadOutput
from ciar.int8 import dequantize_rows, quantize_rows
from ciar.interval import Interval, interfuse
from ciar.models.inter_head import InterHead, InterHeadConfig
from ciar.uncertainty import interval_uncertainty, total_width
from ciar_edge.heads import PreparedHeads

D = 32


def new_head(vocab_size: int, *, radius_width: int = 8, scale: float = 1.0) -> InterHead:
    """Random weights; centre logits and raw radii of about `scale` and 2 standard deviations."""
    torch.manual_seed(vocab_size)
    head = InterHead(D, vocab_size, InterHeadConfig(radius_width=radius_width))
    torch.nn.init.normal_(head.centre.weight, std=scale / math.sqrt(D))
    for layer in head.radius_layers:
        torch.nn.init.normal_(layer.weight, std=2 / math.sqrt(layer.in_features))
    return head.requires_grad_(False)


def hidden() -> Tensor:
    return torch.randn(D, generator=torch.Generator().manual_seed(1))


def prepared_output(head: InterHead) -> HeadOutput:
    heads = PreparedHeads(head)
    centre, code = heads(hidden())
    return HeadOutput(centre, lambda: heads.growth(code[None])[0])


def assert_equal(output: HeadOutput, interval: Interval) -> None:
    """Bounds and both scores, relatively where they are not tiny."""
    for name in ("mid", "lower", "upper", "width"):
        found, expected = getattr(output, name), getattr(interval, name)
        torch.testing.assert_close(found, expected, rtol=3e-4, atol=1e-7)
    width = interval.width.double()
    total, spread = float(width.sum()), float(width.std(correction=0))
    assert float(total_width(output)) == pytest.approx(total, rel=1e-4)
    assert float(interval_uncertainty(output)) == pytest.approx(total * spread, rel=1e-4)


@pytest.mark.parametrize("vocab_size", [64, 1024, 16384])
@pytest.mark.parametrize("radius_width", [0, 8])
@pytest.mark.parametrize("scale", [0.1, 3.0, 60.0])
def test_prepared_heads_are_interfuse(vocab_size: int, radius_width: int, scale: float) -> None:
    head = new_head(vocab_size, radius_width=radius_width, scale=scale)
    assert_equal(prepared_output(head), interfuse(*head(hidden())))


@pytest.mark.parametrize("vocab_size", [64, 1024, 16384])
@pytest.mark.parametrize("gap", [0.0, 20.0, 60.0, 1000.0])
def test_one_logit_far_above_the_others(vocab_size: int, gap: float) -> None:
    """max p rounds to 1 from a gap of 17 on; what is left of it still counts."""
    centre = torch.zeros(vocab_size)
    centre[vocab_size // 2] = gap
    radius = torch.rand(vocab_size, generator=torch.Generator().manual_seed(2)) * 6
    assert_equal(HeadOutput(centre, radius.expm1()), interfuse(centre, radius))


@pytest.mark.parametrize("vocab_size", [64, 16384])
def test_impossible_codes_and_two_of_the_same_chance(vocab_size: int) -> None:
    centre = torch.full((vocab_size,), -torch.inf)
    centre[:2] = 3.0
    radius = torch.full((vocab_size,), 2.0)
    output = HeadOutput(centre, radius.expm1())
    assert_equal(output, interfuse(centre, radius))
    assert float(output.width[2:].sum()) == 0.0
    assert float(output.doubt) == pytest.approx(0.5)


@pytest.mark.parametrize("radius_width", [0, 32])
def test_int8_heads_are_right_to_bfloat16(radius_width: int) -> None:
    head = new_head(256, radius_width=radius_width)
    for layer in (head.centre, *head.radius_layers):
        layer.weight.copy_(dequantize_rows(*quantize_rows(layer.weight)))
    output, (centre, radius) = prepared_output(head), head(hidden())
    torch.testing.assert_close(output.centre, centre, rtol=0.0, atol=0.03)
    torch.testing.assert_close(output.radius, radius, rtol=0.0, atol=0.06)
