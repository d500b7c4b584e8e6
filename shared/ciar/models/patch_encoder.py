"""A picture encoder whose codes are local: each depends on the pixels of its own token alone.

LlamaGen's encoder normalises over the whole picture and attends across it, so a code changes with
whatever else is in the picture (docs/experiments.md has a measurement). With local codes a thing is
made of the same tokens wherever it stands, which a transformer learns sooner. The decoder may still
see everything: it smooths the seams.

    B batch   H, W pixels   s pixels along a token's side   h = H / s   D width
"""

from torch import Tensor, nn

NUM_BLOCKS = 3


class PatchBlock(nn.Module):
    """A residual perceptron on every token's features by themselves: [B, h, w, D] to the same."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, 4 * dim)
        self.down = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.down(nn.functional.gelu(self.up(self.norm(x))))
        return y


class PatchEncoder(nn.Module):
    """Pixels [B, 3, H, W] to features [B, D, h, w]; `side` is s, and D the features' width."""

    def __init__(self, *, side: int, dim: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, dim, side, stride=side)
        self.blocks = nn.Sequential(*(PatchBlock(dim) for _ in range(NUM_BLOCKS)))
        self.norm = nn.LayerNorm(dim)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patches(pixels).permute(0, 2, 3, 1)  # [B, h, w, D]
        y: Tensor = self.norm(self.blocks(x))
        return y.permute(0, 3, 1, 2)
