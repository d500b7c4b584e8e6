"""What must hold for every family of targets: chunks, rollback, and what bfloat16 costs."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ciar.families import FAMILIES
from ciar.feed import Feed
from ciar.models.transformer import Transformer, TransformerConfig
from ciar.sampling import guide
from ciar.target import Target, TargetModel
from ciar.types import SamplingParams
from ciar_bench.random_model import PublishedSize, write_random_model
from ciar_cloud.bundle import load_cloud_model
from ciar_train import teacher
from ciar_train.codes import Conditions
from ciar_train.teacher import Teacher
from tests import test_full_size
from tests.test_full_size import SAMPLING, VQ, write_plan
from tests.tiny import wide_target

CFG, NUM_ROWS, GRID = 3.0, 7, 8
NUM_TOKENS = GRID**2 - 1  # fed: the last is not
LLAMAGEN, CHAMELEON = (
    replace(sizes, grid_size=GRID, num_layers=3) for sizes in test_full_size.FAMILIES
)


@pytest.fixture(scope="module", params=[LLAMAGEN, CHAMELEON], ids=lambda sizes: sizes.family)
def sizes(request: pytest.FixtureRequest) -> TransformerConfig:
    found: TransformerConfig = request.param
    return found


@pytest.fixture(scope="module")
def model(sizes: TransformerConfig) -> TargetModel:
    return wide_target(sizes)


@pytest.fixture(scope="module")
def condition(sizes: TransformerConfig) -> Tensor:
    return torch.randn(NUM_ROWS, sizes.condition_dim, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def tokens(sizes: TransformerConfig) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(sizes.vocab_size, (NUM_TOKENS,), generator=generator)


def feed(
    tokens: Tensor, position: int, condition: Tensor | None = None, *, interval: int = -1
) -> Feed:
    return Feed(
        slot=0,
        num_condition=NUM_ROWS,
        position=position,
        tokens=tokens,
        cfg_scale=CFG,
        cfg_interval=interval,
        condition=condition,
    )


def in_chunks(
    model: TargetModel, condition: Tensor, tokens: Tensor, size: int, *, interval: int = -1
) -> Tensor:
    """Guided logits [T, V], every chunk fed wrongly first and then again from where it began."""
    target = Target(model, num_slots=1)
    found = target.extend([feed(tokens[:0], 0, condition, interval=interval)])
    for position in range(0, len(tokens), size):
        chunk = tokens[position : position + size]
        wrong = (chunk + 1) % model.config.vocab_size
        target.extend([feed(wrong, position)])
        found += target.extend([feed(chunk, position, interval=interval)])
    return torch.cat(found)


@pytest.fixture(scope="module")
def one_by_one(model: TargetModel, condition: Tensor, tokens: Tensor) -> Tensor:
    target = Target(model, num_slots=1)
    found = target.extend([feed(tokens[:0], 0, condition)])
    for position in range(len(tokens)):
        found += target.extend([feed(tokens[position : position + 1], position)])
    return torch.cat(found)


@pytest.mark.parametrize("size", range(1, 33))
def test_chunks_with_rollback_equal_one_by_one(
    size: int, model: TargetModel, condition: Tensor, tokens: Tensor, one_by_one: Tensor
) -> None:
    found = in_chunks(model, condition, tokens, size)
    torch.testing.assert_close(found, one_by_one, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("counts", [(1,), (1, 1, 1), (3, 1, 7), (32, 9), (5, 33)])
def test_steps_of_fixed_shapes_are_the_same_steps(
    counts: tuple[int, ...], model: TargetModel, condition: Tensor, tokens: Tensor
) -> None:
    """Sessions with prompts and chunks of their own, in mixed slots, rolled back once; the last are
    near the image's end, where what fills a step up has least room.
    """
    found = []
    for has_static_steps in (False, True):
        target = Target(model, num_slots=4, has_static_steps=has_static_steps)
        rows = []
        for slot, count in enumerate(counts):
            own = condition[slot:]
            prompt = replace(feed(tokens[:0], 0, own), slot=3 - slot, num_condition=len(own))
            rows += target.extend([replace(prompt, tokens=tokens[: NUM_TOKENS - count])])
        for shift in (1, 0):
            feeds = [
                replace(
                    feed((tokens[NUM_TOKENS - count :] + shift) % 64, NUM_TOKENS - count),
                    slot=3 - slot,
                    num_condition=NUM_ROWS - slot,
                )
                for slot, count in enumerate(counts)
            ]
            rows += target.extend(feeds)
        found.append(torch.cat(rows))
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=1e-4)


def test_a_step_of_fixed_shape_is_made_once(
    model: TargetModel, condition: Tensor, tokens: Tensor
) -> None:
    target = Target(model, num_slots=2, has_static_steps=True)
    target.extend([feed(tokens[:0], 0, condition)])
    for position in range(6):
        target.extend([feed(tokens[position : position + 1], position)])
    target.extend([feed(tokens[6:9], 6)])
    assert target._static is not None
    assert set(target._static._steps) == {(1, 8), (1, 1), (1, 4)}  # the prompt has seven rows


@pytest.mark.parametrize("size", [1, 5, 32])
@pytest.mark.parametrize("interval", [0, 10, NUM_TOKENS])
def test_guidance_ends_behind_its_interval(
    interval: int,
    size: int,
    model: TargetModel,
    condition: Tensor,
    tokens: Tensor,
    one_by_one: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tokens 0 to c + 1 are guided, the others the conditional branch's own."""
    monkeypatch.setattr(teacher, "mixed_precision", lambda device: nullcontext())
    found = in_chunks(model, condition, tokens, size, interval=interval)
    plain = Teacher(model, SamplingParams(cfg_scale=1.0))
    rows = Conditions(condition[None], torch.ones(1, NUM_ROWS, dtype=torch.bool))
    own = plain.logits(rows, tokens[None])[0]
    is_guided = torch.arange(NUM_TOKENS + 1) <= interval + 1
    expected = torch.where(is_guided[:, None], one_by_one, own)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    whole = Teacher(model, SamplingParams(cfg_scale=CFG, cfg_interval=interval))
    torch.testing.assert_close(whole.logits(rows, tokens[None])[0], found, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def plain_guided(transformer: Transformer, condition: Tensor, tokens: Tensor) -> Tensor:
    """Guided logits [T, V] of one pass over the whole sequence, all of it in the model's dtype."""
    mask = torch.ones(1, len(condition), dtype=torch.bool)
    rows = transformer.condition_rows(condition.to(transformer.output.weight.dtype))[None]
    branches = ((rows, mask), transformer.uncond_rows(mask))
    cond, uncond = (
        transformer.output(transformer.masked_hidden(rows, tokens[None], mask))[0]
        for rows, mask in branches
    )
    return guide(cond, uncond, CFG)


def test_what_is_served_in_bfloat16_is_as_good_as_a_plain_forward_in_it(
    sizes: TransformerConfig, tokens: Tensor, tmp_path: Path
) -> None:
    """Weights as they are stored in it, so that only the arithmetic differs."""
    size = PublishedSize(transformer=sizes, vq=VQ, plan=write_plan(tmp_path), sampling=SAMPLING)
    folder = write_random_model(size, tmp_path / "model", prompt="a cat", dtype=torch.bfloat16)
    (condition,) = load_cloud_model(str(folder)).encoder.encode(["a cat"])
    condition = condition[:NUM_ROWS]
    exact = in_chunks(TargetModel.load(folder / "cloud"), condition, tokens, 5)
    half = TargetModel.load(folder / "cloud", dtype=torch.bfloat16)
    plain = plain_guided(half.transformer, condition, tokens)
    served = in_chunks(load_cloud_model(str(folder), dtype="bfloat16").target, condition, tokens, 5)
    errors = [(found - exact).norm() / exact.norm() for found in (served, plain)]
    assert errors[0] < 2 * errors[1]
    assert errors[1] < 0.05
    assert (served.argmax(-1) == exact.argmax(-1)).float().mean() >= 0.95


def test_every_family_is_here() -> None:
    assert set(FAMILIES) == {LLAMAGEN.family, CHAMELEON.family}
