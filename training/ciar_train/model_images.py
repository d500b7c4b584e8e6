"""Images that the models draw, for a draft to learn from: by the cloud alone, and by both.

Several processes share the work: each draws its batches, and in the end all have all of them. They
run equally many forwards, as a target needs whose layers are shared out among them (`sharded`).
"""

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from ciar.models.inter_head import DraftModel
from ciar.target import TargetModel
from ciar.types import SamplingParams
from ciar_train.contexts import Contexts
from ciar_train.loop import World
from ciar_train.progress import Progress, say_nothing
from ciar_train.rollouts import Choice, roll_out

AT_ONCE = {"cpu": 32, "cuda": 256}  # images drawn in lock step
ALONE = World(0, 1, torch.device("cpu"))


def at_once(target: TargetModel) -> int:
    return AT_ONCE[target.injection.weight.device.type]


def batches(count: int, size: int) -> Iterator[range]:
    for first in range(0, count, size):
        yield range(first, min(first + size, count))


def cloud_images(
    target: TargetModel,
    conditions: Sequence[Tensor],
    *,
    sampling: SamplingParams,
    first_seed: int,
    world: World = ALONE,
    progress: Progress = say_nothing,
) -> Contexts:
    """Images the cloud draws alone for these prompts.

    They are contexts with guidance in them, which drawn pictures lack.
    """

    def draw(span: range) -> Tensor:
        picked = [conditions[i].float() for i in span]
        seeds = [first_seed + i for i in span]
        return roll_out(target, None, picked, seeds=seeds, sampling=sampling).tokens

    def say(done: int) -> None:
        progress(done, len(conditions), "cloud images")

    tokens = shared(draw, count=len(conditions), target=target, world=world, say=say)
    return Contexts(tokens=tokens, conditions=conditions)


def protocol_images(
    target: TargetModel,
    draft: DraftModel,
    conditions: Sequence[Tensor],
    *,
    sampling: SamplingParams,
    kept_share: float,
    num_prefix: int,
    first_seed: int,
    world: World = ALONE,
    progress: Progress = say_nothing,
) -> Contexts:
    """Images both sides draw, a random `kept_share` of the routed tokens the edge's own.

    Random, because the radius that would route is not trained yet; features are zero until phi is.
    """

    def draw(span: range) -> Tensor:
        generator = torch.Generator().manual_seed(first_seed + span.start)

        def keep(choice: Choice) -> Tensor:
            return torch.rand(len(choice.centre), generator=generator) < kept_share

        rollout = roll_out(
            target,
            draft,
            [conditions[i].float() for i in span],
            seeds=[first_seed + i for i in span],
            sampling=sampling,
            num_prefix=num_prefix,
            keep=keep,
        )
        return rollout.tokens

    def say(done: int) -> None:
        progress(done, len(conditions), "protocol images")

    tokens = shared(draw, count=len(conditions), target=target, world=world, say=say)
    return Contexts(tokens=tokens, conditions=conditions)


def shared(
    draw: Callable[[range], Tensor],
    *,
    count: int,
    target: TargetModel,
    world: World,
    say: Callable[[int], None],
) -> Tensor:
    """Tokens [count, T] of all batches, each drawn by one process.

    A process without a batch left draws the last one again, for nothing.
    """
    spans = list(batches(count, at_once(target)))
    tokens = torch.zeros(count, target.config.num_tokens, dtype=torch.long)
    for first in range(0, len(spans), world.size):
        number = first + world.rank
        span = spans[min(number, len(spans) - 1)]
        drawn = draw(span)
        if number < len(spans):
            tokens[span.start : span.stop] = drawn
        say(spans[min(first + world.size, len(spans)) - 1].stop)
    if world.size > 1:
        everyones = tokens.to(world.device)
        dist.all_reduce(everyones)  # the others' are zero
        tokens = everyones.cpu()
    return tokens
