"""The VQ tokenizer of LlamaGen (a VQGAN): pictures to token grids and back.

    B batch   H, W pixels   h, w tokens, h = H / downsample   C codebook width   V codebook size

Module names follow the public checkpoint (`vq_ds16_t2i.pt`), so its state dict loads as it is. In
the decoder `conv_blocks.0` is the lowest resolution. One more level in `channel_multipliers`
doubles the downsampling: three levels are f4, four f8, five f16. Only `has_local_encoder` is not
LlamaGen's.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ciar.errors import InvalidInput
from ciar.models.patch_encoder import PatchEncoder


@dataclass(frozen=True, kw_only=True)
class VQConfig:
    """Sizes of a tokenizer. Defaults are LlamaGen's VQ-16."""

    codebook_size: int = 16384
    codebook_dim: int = 8
    channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2  # a level; the decoder has one more
    z_channels: int = 256
    norm_groups: int = 32
    has_lowest_attention: bool = True  # at the lowest level too, not only in the middle
    is_l2_normalized: bool = True  # compare and look up codes on the unit sphere
    has_local_encoder: bool = False  # ours: a code depends on its own pixels alone
    middle_level: float = 128.0  # where 0.0 lies among 0..255; Chameleon: 127.5

    @property
    def downsample(self) -> int:
        return int(2 ** (len(self.channel_multipliers) - 1))


class Norm(nn.GroupNorm):
    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(groups, channels, eps=1e-6)


class ResBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = Norm(c_in, groups)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2 = Norm(c_out, groups)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return (x if self.nin_shortcut is None else self.nin_shortcut(x)) + y


class SpatialAttention(nn.Module):
    """One head over all positions."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = Norm(channels, groups)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (
            conv(y).flatten(2).transpose(1, 2).contiguous() for conv in (self.q, self.k, self.v)
        )  # [B, h*w, C]
        y = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        out: Tensor = self.proj_out(y.transpose(1, 2).reshape(x.shape))
        return x + out


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return y


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return y


class Level(nn.Module):
    """All blocks of one resolution, then a change of resolution unless it is the last."""

    downsample: Downsample
    upsample: Upsample

    def __init__(
        self, c_in: int, c_out: int, *, config: VQConfig, num_blocks: int, has_attention: bool
    ) -> None:
        super().__init__()
        groups = config.norm_groups
        widths = [c_in] + [c_out] * num_blocks
        self.res = nn.ModuleList(
            ResBlock(a, b, groups) for a, b in zip(widths, widths[1:], strict=False)
        )
        self.attn = nn.ModuleList(
            SpatialAttention(c_out, groups) for _ in range(num_blocks if has_attention else 0)
        )

    def forward(self, x: Tensor) -> Tensor:
        for index, res in enumerate(self.res):
            x = res(x)
            if len(self.attn):
                x = self.attn[index](x)
        for name in ("downsample", "upsample"):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return x


def middle(channels: int, groups: int) -> nn.ModuleList:
    return nn.ModuleList(
        [
            ResBlock(channels, channels, groups),
            SpatialAttention(channels, groups),
            ResBlock(channels, channels, groups),
        ]
    )


class Encoder(nn.Module):
    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.channel_multipliers]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1)
        self.conv_blocks = nn.ModuleList()
        c_in = config.channels
        for index, width in enumerate(widths):
            level = Level(
                c_in,
                width,
                config=config,
                num_blocks=config.num_res_blocks,
                has_attention=config.has_lowest_attention and index == last,
            )
            if index < last:
                level.downsample = Downsample(width)
            self.conv_blocks.append(level)
            c_in = width
        self.mid = middle(c_in, config.norm_groups)
        self.norm_out = Norm(c_in, config.norm_groups)
        self.conv_out = nn.Conv2d(c_in, config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in [*self.conv_blocks, *self.mid]:
            x = block(x)
        y: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return y


def encoder_of(config: VQConfig) -> nn.Module:
    """The encoder that a configuration asks for: [B, 3, H, W] to [B, z_channels, h, w]."""
    if config.has_local_encoder:
        return PatchEncoder(side=config.downsample, dim=config.z_channels)
    return Encoder(config)


class Decoder(nn.Module):
    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        widths = [config.channels * m for m in reversed(config.channel_multipliers)]
        last = len(widths) - 1
        c_in = widths[0]
        self.conv_in = nn.Conv2d(config.z_channels, c_in, 3, padding=1)
        self.mid = middle(c_in, config.norm_groups)
        self.conv_blocks = nn.ModuleList()
        for index, width in enumerate(widths):
            level = Level(
                c_in,
                width,
                config=config,
                num_blocks=config.num_res_blocks + 1,
                has_attention=config.has_lowest_attention and index == 0,
            )
            if index < last:
                level.upsample = Upsample(width)
            self.conv_blocks.append(level)
            c_in = width
        self.norm_out = Norm(c_in, config.norm_groups)
        self.conv_out = nn.Conv2d(c_in, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        z = self.conv_in(z)
        for block in [*self.mid, *self.conv_blocks]:
            z = block(z)
        y: Tensor = self.conv_out(F.silu(self.norm_out(z)))
        return y


class Codebook(nn.Module):
    """Nearest-neighbour codes, on the unit sphere when `is_l2_normalized`."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.is_l2_normalized = config.is_l2_normalized
        self.embedding = nn.Embedding(config.codebook_size, config.codebook_dim)

    def codes(self) -> Tensor:
        """[V, C] the vectors as compared and looked up."""
        weight = self.embedding.weight
        return F.normalize(weight, dim=-1) if self.is_l2_normalized else weight

    def on_sphere(self, z: Tensor) -> Tensor:
        """Latents [B, C, h, w], projected like the codes are."""
        return F.normalize(z, dim=1) if self.is_l2_normalized else z

    def nearest(self, z: Tensor) -> Tensor:
        """[B, C, h, w] -> token ids [B, h, w] by squared Euclidean distance."""
        codes = self.codes()
        flat = self.on_sphere(z).permute(0, 2, 3, 1).reshape(-1, codes.shape[1])  # [B*h*w, C]
        distance = codes.square().sum(1) - 2 * flat @ codes.t()  # [B*h*w, V], up to |flat|^2
        return distance.argmin(1).view(z.shape[0], *z.shape[2:])

    def lookup(self, ids: Tensor) -> Tensor:
        """[B, h, w] -> [B, C, h, w]."""
        return F.embedding(ids, self.codes()).permute(0, 3, 1, 2)


class VQModel(nn.Module):
    """Encoder, codebook and decoder.

    Pixels are RGB in [-1, 1]; the decoder's output is not clamped.
    """

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder_of(config)
        self.quant_conv = nn.Conv2d(config.z_channels, config.codebook_dim, 1)
        self.quantize = Codebook(config)
        self.post_quant_conv = nn.Conv2d(config.codebook_dim, config.z_channels, 1)
        self.decoder = Decoder(config)

    def latents(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, C, h, w], before the codebook."""
        step = self.config.downsample
        if pixels.shape[-1] % step or pixels.shape[-2] % step:
            raise InvalidInput(
                "pixels", tuple(pixels.shape), f"give height and width that are multiples of {step}"
            )
        z: Tensor = self.quant_conv(self.encoder(pixels))
        return z

    def encode(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> token ids [B, h, w]."""
        return self.quantize.nearest(self.latents(pixels))

    def decode_latents(self, z: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, 3, H, W]."""
        pixels: Tensor = self.decoder(self.post_quant_conv(z))
        return pixels

    def decode(self, ids: Tensor) -> Tensor:
        """Token ids [B, h, w] -> pixels [B, 3, H, W], nominally in [-1, 1]."""
        return self.decode_latents(self.quantize.lookup(ids))


def to_uint8(pixels: Tensor, *, middle_level: float = VQConfig.middle_level) -> Tensor:
    """[-1, 1] -> 0..255, clamped and truncated, as the family writes its pictures."""
    return (127.5 * pixels + middle_level).clamp(0, 255).to(torch.uint8)
