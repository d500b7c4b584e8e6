"""A tree of drafts in one pass equals each of its paths fed as a sequence."""

import pytest
import torch
from torch import Tensor

from ciar.feed import Feed
from ciar.types import SamplingParams
from ciar_bench.methods.bench_model import BenchModel
from ciar_bench.methods.eagle_drafter import EagleDrafter
from ciar_bench.methods.tree import ROOT, DraftTree, ancestry, chain, scattered
from tests.tiny import PROMPT, write_bundle, write_eagle

KNOWN = [3, 1, 4, 1, 5]
TREE = DraftTree(
    tokens=torch.tensor([9, 2, 6, 5, 3, 5]), parents=torch.tensor([ROOT, ROOT, 0, 0, 3, 1])
)
PATHS = [[9], [2], [9, 6], [9, 5], [9, 5, 3], [2, 5]]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> BenchModel:
    folder = write_bundle(tmp_path_factory.mktemp("bundle"))
    write_eagle(folder)
    return BenchModel.load(folder)


def feed(bench: BenchModel, tokens: list[int]) -> Tensor:
    """Logits behind a fresh sequence."""
    condition = bench.encode(PROMPT)
    (logits,) = bench.target.extend(
        [
            Feed(
                slot=0,
                num_condition=len(condition),
                position=0,
                tokens=torch.tensor(tokens),
                cfg_scale=2.0,
                condition=condition,
            )
        ]
    )
    return logits


def tree_feed(bench: BenchModel, num_condition: int) -> Feed:
    scatter = scattered(
        KNOWN, TREE, num_tokens=16, vocab_size=bench.vocab_size, num_cached=len(KNOWN)
    )
    return Feed(
        slot=0,
        num_condition=num_condition,
        position=len(KNOWN),
        tokens=TREE.tokens,
        cfg_scale=2.0,
        scatter=scatter,
    )


def test_ancestry_holds_the_path_to_every_node() -> None:
    found = [TREE.tokens[row].tolist() for row in ancestry(TREE.parents)]
    assert found == PATHS
    assert (
        ancestry(chain(torch.arange(3)).parents).tolist() == torch.ones(3, 3).tril().bool().tolist()
    )


def test_a_tree_predicts_what_its_paths_predict(bench: BenchModel) -> None:
    num_condition = len(bench.encode(PROMPT))
    expected = [feed(bench, KNOWN + path)[-1] for path in PATHS]
    feed(bench, KNOWN)
    (found,) = bench.target.extend([tree_feed(bench, num_condition)])
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_the_kept_path_is_all_that_the_cache_remembers(bench: BenchModel) -> None:
    num_condition = len(bench.encode(PROMPT))
    expected = feed(bench, [*KNOWN, 9, 5, 7])[-1]
    feed(bench, KNOWN)
    bench.target.extend([tree_feed(bench, num_condition)])
    start = num_condition + len(KNOWN)
    bench.target.cache.keep(0, start, start + torch.tensor([0, 3]))
    follow = Feed(
        slot=0,
        num_condition=num_condition,
        position=7,
        tokens=torch.tensor([7]),
        before=torch.tensor([*KNOWN, 9, 5]),
        cfg_scale=2.0,
    )
    (found,) = bench.target.extend([follow])
    torch.testing.assert_close(found[-1], expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_the_drafter_expands_a_tree_as_its_paths(bench: BenchModel) -> None:
    """Level by level, each node with the state that was expected behind its parent."""
    dim, sampling = bench.dim, SamplingParams(cfg_scale=2.0)
    rows, features = torch.randn(2, 4, dim), torch.randn(2, len(KNOWN), dim)

    def drafter() -> tuple[EagleDrafter, Tensor]:
        one = EagleDrafter(bench.eagle, rows, sampling)
        return one, one.advance(KNOWN, features)

    one, root = drafter()
    first = one.expand(
        DraftTree(tokens=TREE.tokens[:2], parents=TREE.parents[:2]), 0, root.expand(-1, 2, -1)
    )
    whole = one.expand(TREE, 2, first[:, [0, 0, 0, 1]])
    second = one.expand(
        DraftTree(tokens=TREE.tokens[:4], parents=TREE.parents[:4]), 2, first[:, [0, 0]]
    )
    assert torch.allclose(whole[:, :2], second, atol=1e-5)
    other, root = drafter()
    path = torch.tensor([9, 5])
    step = other.expand(chain(path[:1]), 0, root)
    torch.testing.assert_close(step, first[:, :1], atol=1e-5, rtol=1e-5)
    step = other.expand(chain(path), 1, step)
    torch.testing.assert_close(step, second[:, 1:], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_the_drafter_in_serving_is_the_one_in_training(bench: BenchModel) -> None:
    rows, features = torch.randn(2, 4, bench.dim), torch.randn(2, len(KNOWN), bench.dim)
    tokens, mask = torch.tensor([KNOWN, KNOWN]), torch.ones(2, 4, dtype=torch.bool)
    expected = bench.eagle.forced(rows, tokens, features, mask)
    drafter = EagleDrafter(bench.eagle, rows, SamplingParams(cfg_scale=2.0))
    drafter.advance(KNOWN[:2], features[:, :2])
    found = drafter.advance(KNOWN[2:], features[:, 2:])
    torch.testing.assert_close(found, expected[:, -1:], atol=1e-5, rtol=1e-5)
