"""The adversarial loss of a tokenizer: a critic of patches learns what real pictures look like.

    B batch   H, W pixels   h, w patches

PatchGAN (Isola et al. 2017) with the hinge loss and the weight of VQGAN (Esser et al. 2021): the
gradients of both losses at the decoder's last layer are equally long before `strength` counts.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.2
LARGEST_WEIGHT = 1e4


class PatchDiscriminator(nn.Module):
    """[B, 3, H, W] pixels -> [B, 1, h, w], high where a patch looks real.

    levels: each halves the resolution; patches are 16, 34 or 70 pixels wide with 1, 2 or 3.
    """

    def __init__(self, *, channels: int, levels: int) -> None:
        super().__init__()
        widths = [channels * 2**level for level in range(levels + 1)]
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1)]
        for index, (c_in, c_out) in enumerate(zip(widths, widths[1:], strict=False)):
            stride = 2 if index + 1 < levels else 1
            layers += [
                nn.LeakyReLU(SLOPE),
                nn.Conv2d(c_in, c_out, 4, stride=stride, padding=1),
                nn.GroupNorm(min(8, c_out), c_out),
            ]
        layers += [nn.LeakyReLU(SLOPE), nn.Conv2d(widths[-1], 1, 4, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, pixels: Tensor) -> Tensor:
        score: Tensor = self.layers(pixels)
        return score


def discriminator_loss(critic: nn.Module, real: Tensor, drawn: Tensor) -> Tensor:
    """Hinge loss of the critic; the pictures learn nothing by it."""
    loss: Tensor = F.relu(1 - critic(real)).mean() + F.relu(1 + critic(drawn.detach())).mean()
    return loss


def adversarial_loss(critic: nn.Module, drawn: Tensor) -> Tensor:
    """How unreal the critic finds drawn pictures; the critic learns nothing by it."""
    with fixed(critic):
        loss: Tensor = -critic(drawn).mean()
    return loss


def balanced(loss: Tensor, to: Tensor, last_layer: Tensor) -> Tensor:
    """`loss`, scaled so that its gradient at the last layer is as long as that of `to`."""
    wanted, own = (
        torch.autograd.grad(one, last_layer, retain_graph=True)[0].norm() for one in (to, loss)
    )
    weight: Tensor = (wanted / (own + 1e-6)).clamp(max=LARGEST_WEIGHT).detach()
    return loss * weight


@contextmanager
def fixed(model: nn.Module) -> Iterator[None]:
    """What is computed inside has no gradient to the model's parameters."""
    model.requires_grad_(False)
    try:
        yield
    finally:
        model.requires_grad_(True)
