"""Packed layers give what plain ones give, and leave alone what they cannot replace."""

import copy

import pytest
import torch
from torch import nn

from ciar.feed import Feed
from ciar.models.packed import PackedLinear, PackedNorm, can_pack, pack
from ciar.models.transformer import RMSNorm, TransformerConfig
from ciar.target import Target, TargetModel


@pytest.mark.skipif(not can_pack(), reason="this build of torch has no oneDNN")
@pytest.mark.parametrize("shape", [(1, 24), (7, 24), (2, 5, 24), (0, 24)])
def test_packed_equals_plain(shape: tuple[int, ...]) -> None:
    plain = nn.Linear(24, 40, bias=False)
    x = torch.randn(shape)
    with torch.inference_mode():
        torch.testing.assert_close(PackedLinear(plain.weight.detach())(x), plain(x))


@pytest.mark.parametrize("scale", [0.0, 1e-4, 1e-2, 1.0, 1e3])
@torch.inference_mode()
def test_a_packed_norm_is_rms_norm(scale: float) -> None:
    norm = RMSNorm(288, 1e-5)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(2, 3, 288) * scale
    torch.testing.assert_close(PackedNorm(norm)(x), norm(x))
    torch.testing.assert_close(PackedNorm(norm)(x[0, 0]), norm(x[0, 0]))


@pytest.mark.skipif(not can_pack(), reason="this build of torch has no oneDNN")
def test_a_packed_target_gives_the_same_logits() -> None:
    config = TransformerConfig(
        vocab_size=24,
        grid_size=4,
        num_layers=2,
        dim=32,
        num_heads=2,
        num_condition=4,
        condition_dim=8,
    )
    torch.manual_seed(0)
    model = TargetModel(config, feature_dim=4).eval()
    packed = copy.deepcopy(model)
    pack(packed)
    assert isinstance(packed.transformer.output, PackedLinear)
    assert isinstance(packed.transformer.norm, PackedNorm)
    feed = Feed(
        slot=0,
        num_condition=3,
        position=0,
        tokens=torch.tensor([1, 2, 3]),
        cfg_scale=3.0,
        condition=torch.randn(3, 8),
        features=torch.randn(3, 4),
    )
    expected = Target(model, num_slots=1).extend([feed])[0]
    torch.testing.assert_close(Target(packed, num_slots=1).extend([feed])[0], expected)


def test_layers_with_bias_or_in_half_precision_stay() -> None:
    half = (nn.Linear(4, 4, bias=False).bfloat16(), RMSNorm(4, 1e-5).bfloat16())
    module = nn.Sequential(nn.Linear(4, 4), *half)
    pack(module)
    assert [type(child) for child in module] == [nn.Linear, nn.Linear, RMSNorm]
