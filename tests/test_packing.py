import pytest
import torch
from torch import Tensor

from ciar.errors import InvalidInput
from ciar.packing import PackedDtype, PackedTensor, pack, unpack
from tests.rounding import round_features


def bits(tensor: Tensor) -> bytes:
    return tensor.numpy().tobytes()


def test_many_int8_rows_survive_a_second_trip() -> None:
    generator = torch.Generator().manual_seed(2)
    tensor = torch.randn(20_000, 8, generator=generator)
    tensor *= 10 ** torch.empty(20_000, 1).uniform_(-32, 5, generator=generator)
    once = round_features(tensor, "int8")
    assert bits(round_features(once, "int8")) == bits(once)


def test_rounding_stays_within_its_bound() -> None:
    tensor = torch.randn(64, 16, generator=torch.Generator().manual_seed(3))
    largest = tensor.abs().amax(dim=1, keepdim=True)
    assert torch.equal(round_features(tensor, "fp32"), tensor)
    error = (round_features(tensor, "fp16") - tensor).abs()
    assert bool((error <= tensor.abs() * 2**-11 + 2**-25).all())
    error = (round_features(tensor, "int8") - tensor).abs()
    assert bool((error <= largest / 127 * 0.5 * 1.0001).all())
    assert bool((error > 0).any())


@pytest.mark.parametrize("dtype", ["fp16", "int8"])
def test_large_values_saturate(dtype: PackedDtype) -> None:
    rounded = round_features(torch.tensor([[1e9, -1e30, 0.0]]), dtype)
    assert bool(torch.isfinite(rounded).all())
    assert rounded[0, 0].item() == pytest.approx(65504, rel=1e-4)
    assert rounded[0, 1].item() == pytest.approx(-65504, rel=1e-4)


def test_the_sender_keeps_its_own_tensor() -> None:
    tensor = torch.tensor([[1e9, 0.1]])
    pack(tensor, "int8")
    assert tensor.tolist() == torch.tensor([[1e9, 0.1]]).tolist()


def test_what_is_read_can_be_written_to() -> None:
    data = pack(torch.ones(2, 2), "fp32")
    unpack(data).add_(1)
    assert unpack(data).tolist() == [[1, 1], [1, 1]]


def test_an_integer_and_its_scale_make_the_value() -> None:
    packed = PackedTensor(
        dtype="int8", shape=(2, 2), data=bytes([1, 255, 127, 0]), scales=(0.5, 2.0)
    )
    assert unpack(packed).tolist() == [[0.5, -0.5], [254.0, 0.0]]


def test_an_unknown_dtype_is_refused() -> None:
    packed = PackedTensor(dtype="fp8", shape=(1,), data=b"1")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="t.dtype: 'fp8': give one of fp32, fp16, int8"):
        unpack(packed, field="t")
