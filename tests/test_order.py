"""The order of drawing, against its definition, and what it makes of target and draft."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ciar.errors import InvalidInput
from ciar.models.inter_head import DraftModel, InterHeadConfig
from ciar.models.neighbours import NeighbourConfig
from ciar.models.transformer import Transformer, TransformerConfig, Trunk
from ciar.order import Order, order_of
from ciar.sampling import coupled_draw, guide
from ciar.session import PrefixWork, SessionState, VerifyWork
from ciar.target import Target, TargetModel
from ciar.types import ImageRequest, SamplingParams, VerifyBatch, no_features
from ciar_edge.drafter import Drafter, PreparedDraft

SIDE, V, L = 6, 30, 4
T = SIDE**2
CONFIG = TransformerConfig(
    vocab_size=V,
    grid_size=SIDE,
    num_layers=2,
    dim=32,
    num_heads=2,
    ffn_multiple_of=8,
    num_condition=L,
    condition_dim=8,
    neighbours=NeighbourConfig(count=9, width=8),
)
SAMPLING = SamplingParams(seed=4, cfg_scale=2.0)
WAVEFRONTS = (1, 2, 3, 5)


def wave_of(cell: int, ahead: int) -> int:
    return cell % SIDE + ahead * (cell // SIDE)


@pytest.mark.parametrize("wavefront", [0, *WAVEFRONTS, SIDE])
def test_waves_come_one_after_another(wavefront: int) -> None:
    order, ahead = Order(SIDE, wavefront), wavefront or SIDE
    assert sorted(order.cells) == list(range(T))
    assert [order.ranks[cell] for cell in order.cells] == list(range(T))
    waves = [wave_of(cell, ahead) for cell in order.cells]
    assert waves == sorted(waves)
    assert len(set(waves)) == SIDE + ahead * (SIDE - 1)
    for rank in range(T):
        wave = order.wave(rank)
        assert {waves[other] for other in wave} == {waves[rank]}
        assert wave.stop == T or waves[wave.stop] > waves[rank]
    assert order.to_raster(order.cells) == tuple(range(T))
    assert order.is_raster == (ahead == SIDE)
    if order.is_raster:
        assert order.cells == list(range(T)) and order.max_batch_tokens == T


@pytest.mark.parametrize("wavefront", WAVEFRONTS)
def test_rows_see_what_is_known_and_stands_before_them(wavefront: int) -> None:
    order = Order(SIDE, wavefront)
    tokens, unknown = [100 + cell for cell in order.cells], 7
    for first in range(T):
        wanted = order.wave(first)
        least, end = order.span(wanted)
        rows = order.rows(max(least, 0), end, wanted)
        seen, grids = order.sees(rows), order.grids(rows, tokens, unknown=unknown)
        num_fed = rows.end - rows.start
        assert seen.shape == (len(rows.cells), rows.end + len(rows.cells) - num_fed)
        for index, cell in enumerate(rows.cells):
            is_stand_in = index >= num_fed
            of_next = wave_of(cell + 1, wavefront) if is_stand_in else None
            known = {
                other
                for other in range(T)
                if other <= cell
                and (
                    wave_of(other, wavefront) < of_next
                    if of_next is not None
                    else wave_of(other, wavefront) <= wave_of(cell, wavefront)
                )
            }
            own = {rows.end + index - num_fed} if is_stand_in else set()
            assert set(seen[index].nonzero()[:, 0].tolist()) == own | {
                order.ranks[other] for other in known
            }
            for other in known - {cell}:
                assert grids[index, other] == 100 + other
            above = cell + 1 - SIDE + wavefront - 1  # the newest token of the row above
            assert grids[index, cell] == 100 + (above if is_stand_in else cell)


@pytest.mark.parametrize("wavefront", [-1, SIDE + 1])
def test_bad_wavefronts_are_refused(wavefront: int) -> None:
    with pytest.raises(InvalidInput, match="wavefront: .*1 to 5"):
        Order(SIDE, wavefront)


# -------------------------------------------------------------- against a pass over all there is


def dense_hidden(
    model: Trunk, condition: Tensor, grid: list[int | None], cell: int, ahead: int
) -> Tensor:
    """The hidden state [D] that predicts `cell`, from one pass without a cache.

    condition: [L, D].  grid: tokens by cell, None where unknown.
    """
    wave = wave_of(cell, ahead)
    seen = [c for c in range(cell) if wave_of(c, ahead) < wave]
    content = [(c, c, wave_of(c, ahead)) for c in seen]  # stands at, holds the token of, its time
    if cell and cell - 1 not in seen:
        content.append((cell - 1, cell - SIDE + ahead - 1, wave - 1))
    tokens = [V if token is None else token for token in grid]
    grids = torch.full((len(content), T), V)
    for index, (place, held, time) in enumerate(content):
        for c in range(place + 1):
            if c in seen and wave_of(c, ahead) <= time:
                grids[index, c] = tokens[c]
        grids[index, place] = tokens[held]
    places = torch.tensor([place for place, _, _ in content], dtype=torch.long)
    x, followers = model.scattered_inputs(grids, places)
    assert followers is None
    mask = torch.ones(L + len(content), L + len(content)).tril().bool()
    for i, (place, _, time) in enumerate(content):
        for j, (other, _, then) in enumerate(content):
            is_stand_in = j == len(content) - 1 and other not in seen
            sees = i == j or (other <= place and then <= time and not is_stand_in)
            mask[L + i, L + j] = sees

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (a.transpose(0, 1)[None] for a in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return y[0].transpose(0, 1)

    rope = torch.cat([model.condition_rope(L), model.rope[places + 1]])
    return model.hidden(torch.cat([condition, x]), rope, attend)[-1]


def dense_image(predict: "Predict", ahead: int) -> list[int]:
    """Tokens by cell."""
    grid: list[int | None] = [None] * T
    for cell in sorted(range(T), key=lambda c: wave_of(c, ahead)):
        grid[cell] = coupled_draw(predict(grid, cell), cell, SAMPLING)
    return [token for token in grid if token is not None]


class Predict:
    """Logits [V] of a cell from the tokens known before its wave."""

    def __init__(self, model: TargetModel, condition: Tensor, ahead: int) -> None:
        self.transformer, self.ahead = model.transformer, ahead
        rows = self.transformer.prompt_rows(condition)  # [2, L, D]
        self.branches = list(rows)

    def __call__(self, grid: list[int | None], cell: int) -> Tensor:
        model: Transformer = self.transformer
        cond, uncond = (
            model.output(dense_hidden(model, rows, grid, cell, self.ahead))
            for rows in self.branches
        )
        return guide(cond, uncond, SAMPLING.cfg_scale)


@pytest.fixture(scope="module")
def model() -> TargetModel:
    torch.manual_seed(0)
    model = TargetModel(CONFIG, feature_dim=4).eval().requires_grad_(False)
    torch.nn.init.normal_(model.transformer.output.weight, std=0.5)
    assert model.transformer.neighbours is not None
    torch.nn.init.normal_(model.transformer.neighbours.mix.weight, std=0.2)
    torch.nn.init.normal_(model.transformer.neighbours.positions.weight, std=0.2)
    return model


def condition() -> Tensor:
    return torch.randn(L, 8, generator=torch.Generator().manual_seed(1))


def session(wavefront: int) -> SessionState:
    request = ImageRequest(prompt="x", sampling=SAMPLING, wavefront=wavefront)
    return SessionState(request, condition(), num_tokens=T, vocab_size=V, feature_dim=4)


@pytest.mark.parametrize("has_static_steps", [False, True])
@pytest.mark.parametrize("wavefront", WAVEFRONTS)
def test_an_image_is_that_of_passes_over_all_there_is(
    model: TargetModel, wavefront: int, has_static_steps: bool
) -> None:
    target = Target(model, num_slots=1, has_static_steps=has_static_steps)
    state = session(wavefront)
    work, num_forwards = PrefixWork(state, T), 0
    while not work.is_done:
        work.receive(target.extend([work.feed(0)])[0])
        num_forwards += 1
    assert num_forwards == SIDE + wavefront * (SIDE - 1)  # a wave each
    expected = dense_image(Predict(model, condition(), wavefront), wavefront)
    assert state.order.to_raster(state.tokens) == tuple(expected)


@pytest.mark.parametrize("wavefront", WAVEFRONTS)
def test_batches_end_where_there_is_no_room_for_their_stand_ins(
    model: TargetModel, wavefront: int
) -> None:
    """The longest batch that is taken fits a slot wherever it begins, with the longest prompt."""
    target = Target(model, num_slots=1)
    most = order_of(SIDE, wavefront).max_batch_tokens
    for position in range(T):
        count = min(most, T - position)
        state = session(wavefront)
        state.adopt([1] * position, (), no_features(4), 0)
        batch = VerifyBatch(
            position=position,
            tokens=(1,) * count,
            uncertain=(True,) * count,
            features=no_features(4),
        )
        work = VerifyWork(state, batch)
        assert work.receive(target.extend([work.feed(0)])[0])
    with pytest.raises(InvalidInput, match="along a wavefront"):
        VerifyWork(
            session(wavefront),
            VerifyBatch(
                position=0,
                tokens=(1,) * (most + 1),
                uncertain=(True,) * (most + 1),
                features=no_features(4),
            ),
        )


@pytest.mark.parametrize("wavefront", WAVEFRONTS)
@pytest.mark.parametrize("num_layers", [1, 2])
def test_drafts_are_those_of_passes_over_all_there_is(wavefront: int, num_layers: int) -> None:
    torch.manual_seed(1)
    sizes = TransformerConfig(**{**vars(CONFIG), "num_layers": num_layers})
    draft = DraftModel(sizes, InterHeadConfig(radius_width=4, feature_dim=8)).eval()
    draft.requires_grad_(False)
    torch.nn.init.normal_(draft.inter_head.centre.weight, std=0.4)
    assert draft.neighbours is not None
    torch.nn.init.normal_(draft.neighbours.mix.weight, std=0.2)
    torch.nn.init.normal_(draft.neighbours.positions.weight, std=0.2)
    rows = torch.randn(L, 32)
    order = order_of(SIDE, wavefront)
    drafter = Drafter(PreparedDraft(draft), rows, SAMPLING, order=order)
    dice = torch.Generator().manual_seed(0)
    grid: list[int | None] = [None] * T
    while drafter.position < T:
        wave = drafter.draft_wave()
        known = list(grid)
        for one in wave:
            hidden = dense_hidden(draft, rows, known, one.cell, wavefront)
            torch.testing.assert_close(one.hidden, hidden, atol=1e-5, rtol=1e-5)
            centre, _ = draft.inter_head(hidden)
            assert one.token == coupled_draw(centre, one.cell, SAMPLING)
            other = int(
                torch.randint(V, (1,), generator=dice)
            )  # a cloud that differs, half the time
            grid[one.cell] = one.token if other % 2 else other
            drafter.commit(one.token if other % 2 else other)
        if len(wave) > 1 and drafter.position < T:
            assert drafter.num_drafts == drafter.position


def test_a_rollback_keeps_the_drafts_of_its_wave() -> None:
    torch.manual_seed(2)
    draft = DraftModel(CONFIG, InterHeadConfig(radius_width=4, feature_dim=8)).eval()
    drafter = Drafter(
        PreparedDraft(draft.requires_grad_(False)),
        torch.randn(L, 32),
        SAMPLING,
        order=Order(SIDE, 1),
    )
    while drafter.position < 15:
        drafter.commit(drafter.draft().token)
    wave = drafter.draft_wave()
    for one in wave:
        drafter.commit(one.token)
    drafter.draft()
    count, second = drafter.num_drafts, wave[1]
    drafter.rollback(second.position)
    drafter.commit((second.token + 1) % V)
    assert drafter.draft_wave() == wave[2:] and drafter.num_drafts == count
