"""Steps before the first edge comes, so that it does not wait for memory, kernels and, on a GPU,
captured graphs."""

import torch

from ciar.feed import Feed
from ciar.target import Target

NUM_CONDITION = 8
CHUNKS = (1, 2, 4, 8)  # tokens fed at once


@torch.inference_mode()
def warm_up(target: Target) -> None:
    """A prefill, then chunks of a few lengths, in the first slot: nobody sees what it leaves."""
    config = target.config
    features = torch.zeros(NUM_CONDITION, config.condition_dim)
    tokens = torch.zeros(config.num_tokens, dtype=torch.long)
    position = 0
    for count in (0, *CHUNKS):
        end = min(position + count, config.num_tokens - 1)
        feed = Feed(
            slot=0,
            num_condition=NUM_CONDITION,
            position=position,
            tokens=tokens[position:end],
            before=tokens[:position],
            cfg_scale=1.5,
            condition=None if count else features,
        )
        if count == 0 or end > position:
            target.extend([feed])
        position = end
