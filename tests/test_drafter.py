"""Drafting row by row equals the uncached model; rollback equals never having been there."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ciar.errors import CheckpointError
from ciar.models.inter_head import DraftModel, InterHeadConfig
from ciar.models.neighbours import NeighbourConfig
from ciar.models.transformer import TransformerConfig
from ciar.sampling import Noise, coupled_draw
from ciar.types import SamplingParams
from ciar_edge.drafter import Draft, Drafter, PreparedDraft
from ciar_edge.models import load_draft_model
from ciar_train.ngrams import count_ngrams
from tests.tiny import write_bundle

CONFIG = TransformerConfig(
    vocab_size=40,
    grid_size=4,
    num_layers=1,
    dim=32,
    num_heads=2,
    ffn_multiple_of=8,
    num_condition=6,
    condition_dim=8,
)
T = CONFIG.num_tokens
SAMPLING = SamplingParams(seed=11)
NEIGHBOURS = NeighbourConfig(count=5, width=4, ngrams=(1, 3), ngram_slots=1024)


def new_model(
    *, num_layers: int = 1, radius_width: int = 4, neighbours: NeighbourConfig = NEIGHBOURS
) -> DraftModel:
    torch.manual_seed(0)
    sizes = replace(CONFIG, num_layers=num_layers, neighbours=neighbours)
    head = InterHeadConfig(radius_width=radius_width, feature_dim=8)
    model = DraftModel(sizes, head).eval()
    if model.neighbours is not None:
        torch.nn.init.normal_(model.neighbours.mix.weight, std=0.2)
        torch.nn.init.normal_(model.neighbours.positions.weight, std=0.2)
        if model.neighbours.ngrams is not None:
            torch.nn.init.normal_(model.neighbours.gates.weight, std=0.2)
        count_ngrams(model.neighbours, np.random.default_rng(0).integers(0, 40, (50, T)))
    for name, weight in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    torch.nn.init.normal_(model.inter_head.radius_up.weight, std=0.5)
    torch.nn.init.normal_(model.inter_head.centre.weight, std=0.3)
    return model.requires_grad_(False)


def condition() -> Tensor:
    return torch.randn(5, CONFIG.dim, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model() -> DraftModel:
    return new_model()


def new_drafter(model: DraftModel, sampling: SamplingParams = SAMPLING) -> Drafter:
    return Drafter(PreparedDraft(model), condition(), sampling)


def step(drafter: Drafter) -> Draft:
    draft = drafter.draft()
    drafter.commit(draft.token)
    return draft


def uncached(model: DraftModel, tokens: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, centres and radii for positions 0 .. len(tokens)."""
    mask = torch.ones(1, 5, dtype=torch.bool)
    ids = torch.tensor(tokens, dtype=torch.long)[None]
    hidden = model.masked_hidden(condition()[None], ids, mask)
    centre, radius = model.inter_head(hidden)
    return hidden[0], centre[0], radius[0]


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("radius_width", [0, 4])
@pytest.mark.parametrize("neighbours", [NeighbourConfig(), NeighbourConfig(count=5), NEIGHBOURS])
@pytest.mark.parametrize("num_prefix", [0, 1, 5])
def test_drafting_equals_the_uncached_model(
    num_layers: int, radius_width: int, neighbours: NeighbourConfig, num_prefix: int
) -> None:
    model = new_model(num_layers=num_layers, radius_width=radius_width, neighbours=neighbours)
    drafter = new_drafter(model)
    tokens = [3, 1, 4, 1, 5][:num_prefix]
    drafter.commit(*tokens)
    drafts = [step(drafter) for _ in range(num_prefix, T)]
    tokens += [draft.token for draft in drafts]
    hidden, centre, radius = uncached(model, tokens[:-1])
    for draft in drafts:
        at = draft.position
        torch.testing.assert_close(draft.hidden, hidden[at], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(draft.head.centre, centre[at], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(draft.head.radius, radius[at], atol=1e-5, rtol=1e-5)
        assert draft.token == coupled_draw(centre[at], at, SAMPLING)
    features = model.features(hidden, centre, radius)[num_prefix:]
    torch.testing.assert_close(drafter.features(drafts), features, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_committed", [1, 2, 4])
def test_several_known_tokens_are_fed_at_once(model: DraftModel, num_committed: int) -> None:
    one_by_one, at_once = new_drafter(model), new_drafter(model)
    tokens = [step(one_by_one).token for _ in range(3 + num_committed)]
    for _ in range(3):
        step(at_once)
    at_once.commit(*tokens[3:])
    torch.testing.assert_close(
        at_once.draft().head.centre, one_by_one.draft().head.centre, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("position", [0, 1, 4, 9])
def test_rollback_never_happened(model: DraftModel, position: int) -> None:
    drafter, straight = new_drafter(model), new_drafter(model)
    for _ in range(position):
        step(drafter)
    drafter.commit(*[7] * (9 - position))  # a way that is given up
    drafter.draft()
    drafter.rollback(position)
    drafts = [step(drafter) for _ in range(position, T)]
    expected = [step(straight) for _ in range(T)][position:]
    assert [d.token for d in drafts] == [d.token for d in expected]
    for draft, other in zip(drafts, expected, strict=True):
        torch.testing.assert_close(draft.head.centre, other.head.centre, atol=1e-6, rtol=1e-6)


def test_other_tokens_after_a_rollback(model: DraftModel) -> None:
    """Committed several at once, so that stale rows of the given-up way would be read."""
    drafter, straight = new_drafter(model), new_drafter(model)
    tokens = [step(drafter).token for _ in range(8)]
    drafter.rollback(3)
    drafter.commit(30, 31, 32)
    straight.commit(*tokens[:3], 30, 31, 32)
    torch.testing.assert_close(
        drafter.draft().head.centre, straight.draft().head.centre, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("position", [0, 1, 6])
@pytest.mark.parametrize("stands", [True, False])
@torch.inference_mode()
def test_drafting_ahead_changes_nothing(model: DraftModel, position: int, stands: bool) -> None:
    drafter, straight = new_drafter(model), new_drafter(model)
    for _ in range(position):
        step(drafter)
        step(straight)
    (ahead,) = drafter.draft_ahead()
    assert ahead.position == position + 1
    assert drafter.draft_ahead() == [ahead]
    assert drafter.position == drafter.draft().position == position
    token = drafter.draft().token if stands else (drafter.draft().token + 1) % 40
    for each in (drafter, straight):
        each.commit(token)
    assert (drafter.draft() is ahead) == stands
    for _ in range(position + 1, T):
        found, expected = step(drafter), step(straight)
        assert found.token == expected.token
        torch.testing.assert_close(found.hidden, expected.hidden, atol=1e-6, rtol=1e-6)


def test_drafting_ahead_and_rolling_back(model: DraftModel) -> None:
    drafter, straight = new_drafter(model), new_drafter(model)
    tokens = [step(drafter).token for _ in range(5)]
    drafter.draft_ahead()
    drafter.rollback(3)
    straight.commit(*tokens[:3])
    assert [step(drafter).token for _ in range(9)] == [step(straight).token for _ in range(9)]


def test_nothing_follows_the_last_token(model: DraftModel) -> None:
    drafter = new_drafter(model)
    drafter.commit(*range(T - 1))
    assert drafter.draft_ahead() == []
    drafter.commit(drafter.draft().token)
    assert drafter.position == T


def test_drafting_commits_nothing(model: DraftModel) -> None:
    drafter = new_drafter(model)
    step(drafter)
    draft = drafter.draft()
    assert drafter.draft() is draft
    assert drafter.position == draft.position == 1
    drafter.commit(draft.token)
    assert drafter.draft().position == 2


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(seed=2, temperature=0.0),
        SamplingParams(seed=2, temperature=0.7, top_k=6),
        SamplingParams(seed=2**64 - 1, top_p=0.6),
    ],
)
def test_tokens_are_coupled_draws(model: DraftModel, sampling: SamplingParams) -> None:
    drafter = new_drafter(model, sampling)
    for position in range(T):
        draft = step(drafter)
        assert draft.token == coupled_draw(draft.head.centre, position, sampling)


def test_noise_drawn_ahead_is_the_same_noise(model: DraftModel) -> None:
    noise = Noise(SAMPLING.seed, vocab_size=CONFIG.vocab_size)
    noise.max_rows = 6  # the others are drawn on demand
    for position in range(T):
        noise.prepare(position)
    ahead = Drafter(PreparedDraft(model), condition(), SAMPLING, noise=noise)
    straight = new_drafter(model)
    assert [step(ahead).token for _ in range(T)] == [step(straight).token for _ in range(T)]


def test_images_share_weights_but_no_memory(model: DraftModel) -> None:
    prepared = PreparedDraft(model)
    one, two = (Drafter(prepared, condition(), SamplingParams(seed=s)) for s in (1, 2))
    mixed = [(step(one).token, step(two).token) for _ in range(T)]
    for seed, tokens in zip((1, 2), zip(*mixed, strict=True), strict=True):
        alone = Drafter(prepared, condition(), SamplingParams(seed=seed))
        assert [step(alone).token for _ in range(T)] == list(tokens)


def test_a_model_folder_is_loaded(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path)
    model = load_draft_model(bundle / "edge")
    config = json.loads((bundle / "edge/config.json").read_text())
    assert model.target == config["target"]
    assert model.router == config["router"]
    assert model.calibration == config["calibration"]
    assert model.draft.rope.device.type == "cpu"
    assert not any(weight.requires_grad for weight in model.draft.parameters())
    rows = torch.randn(5, model.draft.config.dim)
    drafter = Drafter(model.prepared, rows, SAMPLING)
    assert 0 <= step(drafter).token < model.draft.config.vocab_size


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("target"), "missing target"),
        (lambda c: c.update(kind="target"), "kind"),
        (lambda c: c.update(family="anole"), "family"),
        (lambda c: c.update(router="confidence"), "router"),
        (lambda c: c.update(routr="interval"), "unknown routr"),
        (lambda c: c.update(calibration={"interval": [1.0, 2.0]}), "calibration"),
        (lambda c: c.update(calibration=[1.0]), "config.json"),
        (lambda c: c["head"].update(radius_width=3), "radius_down"),
        (lambda c: c["head"].update(rank=3), "rank"),
        (
            lambda c: c["transformer"].update(vocab_size=7),
            r"inter_head.centre.weight is \(24, 32\)",
        ),
    ],
)
def test_a_wrong_model_folder_is_refused(
    tmp_path: Path, change: Callable[[dict[str, object]], object], message: str
) -> None:
    folder = write_bundle(tmp_path) / "edge"
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        load_draft_model(folder)


def test_truncated_weights_are_refused(tmp_path: Path) -> None:
    weights = write_bundle(tmp_path) / "edge/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        load_draft_model(weights.parent)
