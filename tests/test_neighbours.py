"""The tokens around the next position, as a draft model sees them."""

import pytest
import torch

from ciar.models.neighbours import PLACES, NeighbourConfig, NeighbourEmbedding, places_around

VOCAB, GRID, DIM = 9, 4, 16
OUTSIDE = GRID**2


def test_the_nearest_come_first() -> None:
    assert PLACES[0] == (0, -1), "that token is the input itself"
    assert PLACES[1:6] == [(-1, 0), (-1, -1), (-1, 1), (-2, 0), (0, -2)]
    assert len(set(PLACES)) == len(PLACES)


def test_every_neighbour_is_known_when_the_next_token_is_predicted() -> None:
    places = places_around(4, len(PLACES))
    for position, row in enumerate(places):
        inside = [place for place in row if place != OUTSIDE]
        assert all(place < position for place in inside)
        assert len(set(inside)) == len(inside)


def test_places_by_hand() -> None:
    places = [row[1:] for row in places_around(4, 6)]
    #   0  1  2  3
    #   4  5  6  7
    #   8  9 10 11
    assert places[0] == [OUTSIDE] * 5
    assert places[6] == [2, 1, 3, OUTSIDE, 4]
    assert places[8] == [4, OUTSIDE, 5, 0, OUTSIDE]
    assert places[11] == [7, 6, OUTSIDE, 3, 9]


def new(config: NeighbourConfig) -> NeighbourEmbedding:
    return NeighbourEmbedding(config, vocab_size=VOCAB, grid_size=GRID, dim=DIM)


def embedding(count: int = 5) -> NeighbourEmbedding:
    torch.manual_seed(0)
    neighbours = new(NeighbourConfig(count=count, width=3))
    torch.nn.init.normal_(neighbours.mix.weight)
    torch.nn.init.normal_(neighbours.positions.weight)
    return neighbours.requires_grad_(False)


def test_rows_by_hand() -> None:
    neighbours = embedding()
    tokens = torch.randint(VOCAB, (2, 6), generator=torch.Generator().manual_seed(1))
    rows, followers = neighbours(tokens, 0)
    assert followers is None
    assert rows.shape == (2, 6, DIM)
    table = neighbours.codes.weight
    for image, ids in enumerate(tokens.tolist()):
        around = [ids[2], ids[1], ids[3], VOCAB, ids[4]]  # of position 6
        expected = neighbours.mix.weight @ torch.cat([table[i] for i in around])
        torch.testing.assert_close(rows[image, 5], expected + neighbours.positions.weight[6])


def test_part_of_the_rows_is_part_of_all() -> None:
    neighbours = embedding()
    tokens = torch.randint(VOCAB, (2, 15), generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(neighbours(tokens, 9)[0], neighbours(tokens, 0)[0][:, 9:])


def test_later_tokens_change_nothing() -> None:
    neighbours = embedding(len(PLACES) - 1)
    tokens = torch.randint(VOCAB, (1, 15), generator=torch.Generator().manual_seed(3))
    changed = tokens.clone()
    changed[:, 8:] = (changed[:, 8:] + 1) % VOCAB
    torch.testing.assert_close(neighbours(tokens, 0)[0][:, :9], neighbours(changed, 0)[0][:, :9])


def test_a_new_one_adds_nothing() -> None:
    neighbours = new(NeighbourConfig(count=3, width=4))
    assert not neighbours(torch.tensor([[1, 2, 3]]), 0)[0].any()


@pytest.mark.parametrize(("name", "value"), [("count", -1), ("count", 99), ("width", 0)])
def test_sizes_out_of_range(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name}: {value}"):
        NeighbourConfig(**{name: value})  # type: ignore[arg-type]
