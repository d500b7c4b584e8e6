"""The unconditional branch of prompts, computed once a length: the same as computed each time."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ciar.feed import Feed
from ciar.models import uncond_prefix
from ciar.models.transformer import TransformerConfig
from ciar.models.uncond_prefix import UncondPrefix
from ciar.target import Target, TargetModel
from tests.test_full_size import FAMILIES
from tests.tiny import wide_target

LLAMAGEN, CHAMELEON = (replace(sizes, grid_size=8, num_layers=3) for sizes in FAMILIES)
LENGTHS = (5, 6, 7)


def prefill(model: TargetModel, slot: int, count: int, *, seed: int = 0, tokens: int = 3) -> Feed:
    generator = torch.Generator().manual_seed(seed)
    condition = torch.randn(count, model.config.condition_dim, generator=generator)
    ids = torch.randint(model.config.vocab_size, (tokens,), generator=generator)
    return Feed(
        slot=slot,
        num_condition=count,
        position=0,
        tokens=ids,
        before=ids[:0],
        cfg_scale=2.0,
        condition=condition,
    )


def after(target: Target, feed: Feed) -> Tensor:
    """Logits behind another token: they see every row that the prefill left."""
    next_one = Feed(
        slot=feed.slot,
        num_condition=feed.num_condition,
        position=len(feed.tokens),
        tokens=torch.tensor([3]),
        before=feed.tokens,
        cfg_scale=2.0,
    )
    return target.extend([next_one])[0]


def unshared(model: TargetModel, **settings: Any) -> Target:
    target = Target(model, num_slots=4, **settings)
    target._uncond = None
    return target


@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize("sizes", [LLAMAGEN, CHAMELEON], ids=lambda sizes: sizes.family)
def test_shared_is_unshared(sizes: TransformerConfig, is_padded: bool) -> None:
    """Prompts of several lengths in one step, in slots with rows of others; and what follows."""
    model = wide_target(sizes)
    ours, theirs = Target(model, num_slots=4, is_padded=is_padded), unshared(model)
    for target in (ours, theirs):
        target.cache.data.normal_(generator=torch.Generator().manual_seed(1))
    for repeat in range(2):
        feeds = [prefill(model, slot, n, seed=repeat) for slot, n in enumerate(LENGTHS)]
        for own, other in zip(ours.outputs(feeds), theirs.outputs(feeds), strict=True):
            assert torch.allclose(own.logits, other.logits, atol=1e-4)
            assert torch.allclose(own.hidden, other.hidden, atol=1e-4)
        for feed in feeds:
            assert torch.allclose(after(ours, feed), after(theirs, feed), atol=1e-4)
    assert isinstance(ours._uncond, UncondPrefix)
    assert ours._uncond.num_computed == len(feeds)  # once a length, however often it came


def test_a_prompt_of_one_row_shares_nothing() -> None:
    model = wide_target(LLAMAGEN)
    ours, theirs = Target(model, num_slots=4), unshared(model)
    feed = prefill(model, 0, 1)
    assert torch.equal(ours.extend([feed])[0], theirs.extend([feed])[0])


def test_the_last_used_lengths_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uncond_prefix, "MAX_LENGTHS", 2)
    model = wide_target(LLAMAGEN)
    target = Target(model, num_slots=1)
    assert isinstance(target._uncond, UncondPrefix)
    for count in (2, 3, 4, 3, 2, 4):  # room for two
        target.extend([prefill(model, 0, count)])
    assert target._uncond.num_computed == 5
    assert len(target._uncond._rows) == 2
