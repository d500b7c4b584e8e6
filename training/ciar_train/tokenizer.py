"""`ciar-train tokenizer`: the VQ model, trained for sharp reconstructions.

loss = |x - y|_1 + edge * |grad x - grad y|_1 + commitment * |z - sg(e)|^2 + adversarial * A(y)

A is how unreal a critic of patches finds the reconstruction (`discriminator`). Distances alone are
smallest at the mean of what could be there, which is a blur; A is not.

Codes follow their latents by exponential averages (van den Oord et al., 2017, appendix A) on the
unit sphere, and codes nobody uses move to latents of the current batch, so that the whole codebook
stays in use.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ciar.models.vq import VQConfig, VQModel
from ciar_train.discriminator import (
    PatchDiscriminator,
    adversarial_loss,
    balanced,
    discriminator_loss,
)
from ciar_train.images import SceneFolder
from ciar_train.loop import Metrics, Run, World, batch_indices, random_at, train
from ciar_train.plan import TrainingPlan

ModelT = TypeVar("ModelT", bound=nn.Module)
CRITIC_ALONE = (
    0.1  # share of the steps that the critic learns alone, and then that its weight grows
)


@dataclass(frozen=True, kw_only=True)
class TokenizerLoss:
    """adversarial: weight of the critic's loss, relative to the distances' by their gradients; 0:
        no critic.
    adversarial_from: share of the steps before the critic begins. It learns alone for a tenth of
        the steps, then its weight grows over another.
    critic_channels, critic_levels: its size (`PatchDiscriminator`).
    """

    edge: float = 0.5
    commitment: float = 0.25
    code_decay: float = 0.99
    dead_below: float = 0.1  # a code used less than this often a batch (averaged) is moved
    adversarial: float = 0.0
    adversarial_from: float = 0.4
    critic_channels: int = 32
    critic_levels: int = 2

    def __post_init__(self) -> None:
        if self.adversarial < 0:
            raise ValueError(f"adversarial: {self.adversarial}: give a weight, 0 for no critic")
        if not 0 <= self.adversarial_from < 1:
            raise ValueError(f"adversarial_from: {self.adversarial_from}: give a share below 1")

    def adversarial_at(self, progress: float) -> float:
        """The weight at a share of the steps; 0 while the critic learns alone."""
        behind = (progress - self.adversarial_from) / CRITIC_ALONE - 1
        return self.adversarial * min(1.0, max(0.0, behind))


class CodeTracker(nn.Module):
    """Averaged counts and sums of the latents assigned to each code, in all processes together."""

    counts: Tensor
    sums: Tensor

    def __init__(self, vq: VQModel, loss: TokenizerLoss, world: World) -> None:
        super().__init__()
        self.loss, self.world = loss, world
        self.codebook = vq.quantize
        self.codebook.embedding.weight.requires_grad_(False)
        codes = self.codebook.codes()
        # Counts start at zero, so that the first batch places all codes.
        self.register_buffer("counts", torch.zeros(codes.shape[0]))
        self.register_buffer("sums", codes.detach().clone())

    @torch.no_grad()
    def update(self, z: Tensor, ids: Tensor, moves: torch.Generator | None) -> None:
        """z [B, C, h, w] latents as compared, ids [B, h, w], both of this process's pictures.

        moves: picks latents of the main process for codes nobody uses; None: they stay.
        """
        flat = z.detach().permute(0, 2, 3, 1).reshape(-1, z.shape[1])
        ones = torch.ones(len(flat), device=z.device)
        hot = torch.zeros_like(self.counts).index_add_(0, ids.flatten(), ones)
        sums = torch.zeros_like(self.sums).index_add_(0, ids.flatten(), flat)
        self.world.add_up(hot)
        self.world.add_up(sums)
        self.counts.lerp_(hot, 1 - self.loss.code_decay)
        self.sums.lerp_(sums, 1 - self.loss.code_decay)
        if moves:
            is_dead = self.counts < self.loss.dead_below
            rows = torch.randint(len(flat), self.counts.shape, generator=moves, device=z.device)
            picks = flat[rows]  # [V, C]
            self.world.take_over(picks)
            self.sums.copy_(torch.where(is_dead[:, None], picks, self.sums))
            self.counts.masked_fill_(is_dead, 1.0)
        self.codebook.embedding.weight.copy_(self.sums / self.counts[:, None].clamp(min=1e-3))


def edges(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def reconstruction_loss(x: Tensor, y: Tensor, *, edge: float) -> Tensor:
    sharp = sum((F.l1_loss(a, b) for a, b in zip(edges(x), edges(y), strict=True)), x.new_zeros(()))
    return F.l1_loss(x, y) + edge * sharp


class Critic:
    """Adds the adversarial loss, and learns by it."""

    def __init__(self, vq: VQModel, loss: TokenizerLoss, *, steps: int) -> None:
        self.loss, self.steps = loss, steps
        self.model = PatchDiscriminator(channels=loss.critic_channels, levels=loss.critic_levels)
        self._last_layer = vq.decoder.conv_out.weight

    def added_to(self, distance: Tensor, x: Tensor, y: Tensor, step: int) -> tuple[Tensor, Metrics]:
        """The distance between pictures x and reconstructions y, and both losses of the critic."""
        progress = step / self.steps
        if progress < self.loss.adversarial_from:
            return distance, {}
        critic = discriminator_loss(self.model, x, y)
        total, weight = distance + critic, self.loss.adversarial_at(progress)
        if weight:
            unreal = adversarial_loss(self.model, y)
            total = total + weight * balanced(unreal, distance, self._last_layer)
        return total, {"critic": critic.detach()}


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """dB, for pixels in [-1, 1]."""
    return 10 * torch.log10(4 / F.mse_loss(x, y.clamp(-1, 1)))


def num_distinct(ids: Tensor, codebook_size: int) -> Tensor:
    """How many codes occur."""
    return ids.new_zeros(codebook_size).index_fill_(0, ids.flatten(), 1).sum()


@torch.inference_mode()
def steady_share(vq: VQModel, x: Tensor, ids: Tensor) -> float:
    """Share of the left halves' codes that stay when the right halves come from other pictures.

    1 when codes are local. What changes is noise to a transformer: the same thing in other tokens.

    x: pixels [B, 3, H, W], ids: their codes [B, h, w]. The two columns of tokens next to the seam
    are left out.
    """
    seam = x.shape[-1] // 2
    mixed = torch.cat([x[..., :seam], x.roll(1, 0)[..., seam:]], -1)
    columns = seam // vq.config.downsample - 2
    same = ids[..., :columns] == vq.encode(mixed)[..., :columns]
    return float(same.float().mean())


def channels_last(model: ModelT, device: torch.device) -> ModelT:
    """On the device, in the memory layout that convolutions are fastest with."""
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def train_tokenizer(
    config: VQConfig,
    plan: TrainingPlan,
    loss: TokenizerLoss,
    *,
    data: SceneFolder,
    held_out: SceneFolder,
    run_folder: Path,
    world: World,
    start: VQModel | None = None,
) -> VQModel:
    """Train or resume; returns the model in eval mode.

    start: an earlier model. Its encoder and codes stay as they are, so that a target trained on its
    tokens still fits; the decoder learns on.
    """
    torch.manual_seed(plan.seed)
    vq = channels_last(start or VQModel(config), world.device).requires_grad_(True)
    tracker = CodeTracker(vq, loss, world).to(world.device)
    model = nn.ModuleDict({"vq": vq, "tracker": tracker})
    critic = Critic(vq, loss, steps=plan.num_parts) if loss.adversarial else None
    if critic:
        model["critic"] = channels_last(critic.model, world.device)
    if start:
        for part in (vq.encoder, vq.quant_conv):
            part.requires_grad_(False)

    def load(folder: SceneFolder, indices: Tensor) -> Tensor:
        return folder.images(indices, world.device)

    def distance(x: Tensor, y: Tensor, number: int) -> tuple[Tensor, Metrics]:
        found = reconstruction_loss(x, y, edge=loss.edge)
        total, metrics = critic.added_to(found, x, y, number) if critic else (found, {})
        return total, {"psnr": psnr(x, y.detach()), **metrics}

    def step(number: int) -> tuple[Tensor, Metrics]:
        indices = batch_indices(
            number, count=len(data), batch_size=plan.part_size, world=world, seed=plan.seed
        )
        x = load(data, indices)
        if start:
            with torch.no_grad():
                codes = vq.quantize.lookup(vq.encode(x))
            y = vq.decode_latents(codes)
            return distance(x, y, number)
        z = vq.quantize.on_sphere(vq.latents(x))
        ids = vq.quantize.nearest(z)
        codes = vq.quantize.lookup(ids)
        y = vq.decode_latents(z + (codes - z).detach())  # straight through
        commitment = F.mse_loss(z, codes.detach()) * z.shape[1]
        total, metrics = distance(x, y, number)
        can_move = number < plan.num_parts * (1 - plan.cooldown)
        moves = random_at(number, world=world, seed=plan.seed) if can_move else None
        tracker.update(z, ids, moves)
        return total + loss.commitment * commitment, {
            **metrics,
            "codes": num_distinct(ids, config.codebook_size),
        }

    def evaluate() -> Metrics:
        x = load(held_out, torch.arange(min(256, len(held_out))))
        with torch.inference_mode():
            ids = vq.encode(x)
            return {
                "psnr": psnr(x, vq.decode(ids)),
                "codes": num_distinct(ids, config.codebook_size),
                "steady": steady_share(vq, x, ids),
            }

    train(model, step, plan=plan, run=Run(run_folder, world=world), evaluate=evaluate)
    return vq.eval()
