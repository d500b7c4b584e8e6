"""Tables of n-grams on the grid: counted in training, looked up at both ends."""

from collections import Counter

import numpy as np
import pytest
import torch

from ciar.models.neighbours import PLACES, NeighbourConfig, NeighbourEmbedding
from ciar.models.ngrams import NgramLookup, NgramTables
from ciar_train.ngrams import count_ngrams

VOCAB, GRID = 9, 4
UNKNOWN = VOCAB


def counted(
    tokens: np.ndarray, *, orders: tuple[int, ...] = (1, 3), slots: int = 1 << 12
) -> tuple[NeighbourEmbedding, NgramTables]:
    config = NeighbourConfig(count=2, width=3, ngrams=orders, ngram_slots=slots)
    neighbours = NeighbourEmbedding(config, vocab_size=VOCAB, grid_size=GRID, dim=16)
    count_ngrams(neighbours, tokens)
    assert neighbours.ngrams is not None
    return neighbours, neighbours.ngrams


def pictures(count: int, *, seed: int = 0, used: int = VOCAB) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, used, (count, GRID**2)).astype(np.uint16)


def context(ids: list[int], position: int, order: int) -> tuple[int, ...]:
    row, column = divmod(position, GRID)
    cells = [(row + down, column + right) for down, right in PLACES[:order]]
    is_inside = [r >= 0 and 0 <= c < GRID for r, c in cells]
    return tuple(
        ids[r * GRID + c] if ok else VOCAB for (r, c), ok in zip(cells, is_inside, strict=True)
    )


@pytest.mark.parametrize("order", [1, 2, 4])
def test_followers_are_the_commonest_by_plain_counting(order: int) -> None:
    tokens = pictures(40, used=4)
    neighbours, tables = counted(tokens, orders=(order,), slots=1 << 16)
    counts: dict[tuple[int, ...], Counter[int]] = {}
    for ids in tokens.tolist():
        for position in range(1, GRID**2):
            counts.setdefault(context(ids, position, order), Counter())[ids[position]] += 1
    seen = torch.from_numpy(tokens.astype(np.int64))[:, :-1]
    found = tables(neighbours.around(seen, 0))[..., 0]  # [N, T - 1]
    for ids, row in zip(tokens.tolist(), found.tolist(), strict=True):
        for position, follower in enumerate(row, start=1):
            counter = counts[context(ids, position, order)]
            assert counter[follower] == max(counter.values())


def test_contexts_never_seen_are_unknown() -> None:
    neighbours, tables = counted(pictures(30, used=4), orders=(3,), slots=1 << 16)
    other = torch.full((1, GRID**2 - 1), 8)
    inside = tables(neighbours.around(other, 0))[0, GRID + 1 :, 0]
    assert (inside == UNKNOWN).all()


def test_an_empty_table_knows_nothing() -> None:
    tables = NgramTables((1, 2), num_slots=64, vocab_size=VOCAB)
    assert (tables(torch.randint(VOCAB, (5, 2))) == UNKNOWN).all()


def test_a_full_table_keeps_the_more_frequent() -> None:
    """One slot for all contexts: the commonest pair stays, the tag denies it to the others."""
    tokens = np.zeros((3, GRID**2), np.uint16)
    tokens[0] = pictures(1)[0]
    neighbours, tables = counted(tokens, orders=(1,), slots=1)
    zeros = torch.zeros(1, GRID**2 - 1, dtype=torch.long)
    assert (tables(neighbours.around(zeros, 0))[0, :3, 0] == 0).all()
    assert tables(torch.tensor([[7]])).tolist() == [[UNKNOWN]]


def test_the_integer_lookup_is_the_same() -> None:
    tokens = pictures(60, used=6)
    neighbours, tables = counted(tokens, orders=(1, 2, 5))
    lookup = NgramLookup(tables)
    around = neighbours.around(torch.from_numpy(pictures(3, seed=1).astype(np.int64))[:, :-1], 0)
    expected = tables(around)
    assert (expected != UNKNOWN).any()
    assert (expected == UNKNOWN).any()
    for contexts, followers in zip(around.tolist(), expected.tolist(), strict=True):
        assert [lookup.followers(row) for row in contexts] == followers


def test_followers_enter_the_input() -> None:
    neighbours, tables = counted(pictures(60))
    torch.nn.init.normal_(neighbours.mix.weight)
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6]])
    rows, found = neighbours(tokens, 0)
    assert found is not None
    assert torch.equal(found, tables(neighbours.around(tokens, 0)))
    codes, around = neighbours.codes.weight, neighbours.around(tokens, 0)
    for number, (ids, followers) in enumerate(
        zip(around[0].tolist(), found[0].tolist(), strict=True)
    ):
        code = torch.cat([codes[i] for i in (*ids[1:3], *followers)])
        torch.testing.assert_close(rows[0, number], neighbours.mix.weight @ code)


def test_hidden_states_are_drawn_to_their_followers() -> None:
    neighbours, _ = counted(pictures(60))
    hidden = torch.randn(2, 16)
    assert torch.equal(neighbours.recall(hidden, torch.tensor([[1, 2], [3, 4]])), hidden)
    torch.nn.init.normal_(neighbours.gates.weight)
    torch.nn.init.normal_(neighbours.gates.bias)
    found = neighbours.recall(hidden, torch.tensor([[1, 2], [3, UNKNOWN]]))
    gates, rows = neighbours.gates(hidden), neighbours.recalled.weight
    torch.testing.assert_close(found[0], hidden[0] + gates[0, 0] * rows[1] + gates[0, 1] * rows[2])
    torch.testing.assert_close(found[1], hidden[1] + gates[1, 0] * rows[3])


@pytest.mark.parametrize(
    ("name", "value"),
    [("ngrams", (3, 1)), ("ngrams", (0,)), ("ngrams", (99,)), ("ngram_slots", 1000)],
)
def test_sizes_out_of_range(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name}: "):
        NeighbourConfig(**{name: value})  # type: ignore[arg-type]
