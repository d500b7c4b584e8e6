"""The critic's losses: who learns by which, and that it learns to tell blurred pictures."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ciar_train.discriminator import (
    PatchDiscriminator,
    adversarial_loss,
    balanced,
    discriminator_loss,
)
from ciar_train.tokenizer import TokenizerLoss


def noise(count: int, *, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def blurred(pixels: Tensor) -> Tensor:
    return F.avg_pool2d(pixels, 3, stride=1, padding=1)


def critic() -> PatchDiscriminator:
    torch.manual_seed(0)
    return PatchDiscriminator(channels=8, levels=2)


@pytest.mark.parametrize(("levels", "width"), [(1, 16), (2, 34), (3, 70)])
def test_a_score_is_of_a_patch(levels: int, width: int) -> None:
    """Without norms, which see the whole picture: pixels outside the patch do not count."""
    model = PatchDiscriminator(channels=4, levels=levels)
    for index, layer in enumerate(model.layers):
        if isinstance(layer, nn.GroupNorm):
            model.layers[index] = nn.Identity()
    pixels = torch.zeros(1, 3, 128, 128, requires_grad=True)
    scores = model(pixels)
    middle = scores.shape[-1] // 2
    torch.autograd.backward(scores[0, 0, middle, middle])
    assert pixels.grad is not None
    columns = pixels.grad.abs().sum((0, 1, 2)).nonzero().flatten()
    assert int(columns.max() - columns.min()) + 1 == width


def test_each_loss_teaches_its_own_side() -> None:
    model, drawn = critic(), noise(2).requires_grad_()
    torch.autograd.backward(adversarial_loss(model, drawn))
    assert drawn.grad is not None and float(drawn.grad.abs().max()) > 0
    assert all(parameter.grad is None for parameter in model.parameters())
    drawn.grad = None
    torch.autograd.backward(discriminator_loss(model, noise(2, seed=1), drawn))
    assert drawn.grad is None
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_balanced_gradients_are_equally_long() -> None:
    weight = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    to, loss = weight.square().mean(), 1000 * weight.sum()
    (wanted,) = torch.autograd.grad(to, weight, retain_graph=True)
    (found,) = torch.autograd.grad(balanced(loss, to, weight), weight)
    assert float(found.norm()) == pytest.approx(float(wanted.norm()), rel=1e-4)


def test_a_critic_learns_what_blurred_pictures_look_like() -> None:
    model = critic()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(60):
        real = noise(8, seed=step)
        optimizer.zero_grad()
        torch.autograd.backward(discriminator_loss(model, real, blurred(real)))
        optimizer.step()
    unseen = noise(8, seed=1000)
    with torch.no_grad():
        assert float(discriminator_loss(model, unseen, blurred(unseen))) < 1
        assert float(adversarial_loss(model, unseen)) < float(
            adversarial_loss(model, blurred(unseen))
        )


def test_the_critics_weight_grows_from_where_it_begins() -> None:
    loss = TokenizerLoss(adversarial=0.5, adversarial_from=0.4)
    weights = [loss.adversarial_at(progress) for progress in (0.0, 0.4, 0.5, 0.55, 0.6, 1.0)]
    assert weights == pytest.approx([0, 0, 0, 0.25, 0.5, 0.5])
    assert TokenizerLoss().adversarial_at(1.0) == 0


@pytest.mark.parametrize("values", [{"adversarial": -1.0}, {"adversarial_from": 1.0}])
def test_settings_of_the_critic_are_checked(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        TokenizerLoss(**values)  # type: ignore[arg-type]
