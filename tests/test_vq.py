"""The tokenizer equals the public LlamaGen VQ-16 on golden weights made from a recipe."""

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from ciar.errors import InvalidInput
from ciar.models.vq import VQConfig, VQModel, to_uint8
from tests.tiny import vq_f4

GOLDEN = Path(__file__).parent / "data" / "llamagen_vq16.safetensors"


def recipe_weight(salt: str, key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The deterministic weight the golden file's metadata describes."""
    rng = np.random.default_rng(zlib.crc32(f"{salt}:{key}".encode()))
    z = rng.standard_normal(shape).astype("float32")
    if "embedding" in key:
        return torch.from_numpy(z)
    if key.endswith(".bias"):
        return torch.from_numpy(0.02 * z)
    if len(shape) == 1:
        return torch.from_numpy(1 + 0.1 * z)
    return torch.from_numpy(z * np.float32(0.9 / np.sqrt(np.prod(shape[1:]))))


@pytest.fixture(scope="module")
def vq16() -> VQModel:
    with safe_open(GOLDEN, "pt") as file:
        salt = file.metadata()["salt"]
    with torch.device("meta"):
        model = VQModel(VQConfig())
    state = {k: recipe_weight(salt, k, tuple(v.shape)) for k, v in model.state_dict().items()}
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


def golden(name: str) -> torch.Tensor:
    with safe_open(GOLDEN, "pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
        return tensor


def test_state_dict_is_the_public_one(vq16: VQModel) -> None:
    state = vq16.state_dict()
    assert len(state) == 344 - 1  # the public file's codebook_used buffer is training state
    assert sum(v.numel() for v in state.values()) == 71_883_403
    assert state["decoder.conv_blocks.1.res.0.nin_shortcut.weight"].shape == (256, 512, 1, 1)


@torch.inference_mode()
def test_decode_equals_the_reference(vq16: VQModel) -> None:
    pixels = vq16.decode(golden("input.ids").long())
    torch.testing.assert_close(pixels, golden("expected.pixels"), atol=1e-4, rtol=0)


@torch.inference_mode()
def test_encode_equals_the_reference(vq16: VQModel) -> None:
    assert torch.equal(vq16.encode(golden("input.image")).int(), golden("expected.ids"))


@pytest.mark.parametrize(("multipliers", "factor"), [((1, 1, 1), 4), ((1, 1, 1, 1), 8)])
def test_depth_sets_the_downsampling(multipliers: tuple[int, ...], factor: int) -> None:
    config = VQConfig(
        codebook_size=32, channels=8, channel_multipliers=multipliers, z_channels=8, norm_groups=4
    )
    model = VQModel(config).eval()
    assert config.downsample == factor
    ids = model.encode(torch.rand(2, 3, 32, 64) * 2 - 1)
    assert ids.shape == (2, 32 // factor, 64 // factor)
    assert model.decode(ids).shape == (2, 3, 32, 64)


def test_local_codes_depend_on_their_own_pixels_alone() -> None:
    model = vq_f4(has_local_encoder=True)
    pixels = torch.rand(1, 3, 32, 32) * 2 - 1
    ids = model.encode(pixels)
    assert ids.shape == (1, 8, 8)
    assert len(set(ids.flatten().tolist())) > 8
    moved = model.encode(pixels.roll((4, 8), (2, 3)))
    assert torch.equal(moved, ids.roll((1, 2), (1, 2)))
    assert model.decode(ids).shape == pixels.shape


def test_codes_are_their_own_nearest() -> None:
    model = VQModel(VQConfig(codebook_size=64, channels=8, z_channels=8, norm_groups=4))
    ids = torch.randperm(64).view(1, 8, 8)
    assert torch.equal(model.quantize.nearest(model.quantize.lookup(ids)), ids)


def test_odd_sizes_are_refused() -> None:
    model = VQModel(VQConfig(codebook_size=8, channels=8, z_channels=8, norm_groups=4))
    with pytest.raises(InvalidInput, match="multiples of 16"):
        model.encode(torch.zeros(1, 3, 24, 32))


def test_pixels_are_truncated_and_clamped() -> None:
    pixels = torch.tensor([-1.2, -1.0, 0.0, 1.0, 1.2])
    assert to_uint8(pixels).tolist() == [0, 0, 128, 255, 255]
    chameleon = to_uint8(pixels, middle_level=127.5)
    assert chameleon.tolist() == [0, 0, 127, 255, 255]  # ((x + 1) / 2 * 255), truncated
