"""Every method keeps the law it promises, and its accounting adds up."""

import itertools
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ciar.errors import CheckpointError, InvalidInput
from ciar.feed import Feed
from ciar.types import SamplingParams
from ciar_bench.methods import KINDS, Method, kind_of, make_method, shortest
from ciar_bench.methods.bench_model import NUM_SPARE, BenchModel, sampling_view
from ciar_bench.methods.eagle1 import Eagle1, accept_by_ratio
from ciar_bench.methods.eagle2 import Eagle2, accept_in_order
from ciar_bench.methods.lantern import (
    Lantern,
    greedy_rule,
    nearest_codes,
    relaxed_mass,
    relaxed_rule,
)
from ciar_bench.methods.lantern_static import LanternStatic, scaled_rule, shape
from ciar_bench.methods.speculative import Accept, draw, normalized
from tests.tiny import PROMPT, write_bundle, write_eagle

VOCAB = 16
TRIALS = 4000


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> BenchModel:
    folder = write_bundle(tmp_path_factory.mktemp("bundle"))
    write_eagle(folder)
    return BenchModel.load(folder)


@pytest.fixture(scope="module")
def small_bench(tmp_path_factory: pytest.TempPathFactory) -> BenchModel:
    """Four tokens of five: few enough images to count."""
    folder = write_bundle(tmp_path_factory.mktemp("small"), grid_size=2, vocab_size=5)
    write_eagle(folder)
    return BenchModel.load(folder)


def tokens_of(
    method: Method, bench: BenchModel, seed: int = 3, **settings: float
) -> tuple[int, ...]:
    sampling = replace(bench.sampling, seed=seed, **settings)  # type: ignore[arg-type]
    return method.draw(bench, PROMPT, sampling).tokens


def distribution(seed: int, *, sharpness: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(VOCAB, generator=generator)).softmax(-1)


def assert_law(counts: Counter[int], law: Tensor) -> None:
    """Chi-square against [V], cells below 5 joined; fails by chance once in some 10,000 runs."""
    total = sum(counts.values())
    expected = law.double() * total
    found = torch.tensor([counts[i] for i in range(len(law))], dtype=torch.float64)
    rare = expected < 5
    cells = [(float(found[i]), float(expected[i])) for i in range(len(law)) if not rare[i]]
    if bool(rare.any()):
        cells.append((float(found[rare].sum()), max(float(expected[rare].sum()), 1e-9)))
    statistic = sum((f - e) ** 2 / e for f, e in cells if e > 1e-6)
    freedom = len(cells) - 1
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5 + 8, (statistic, freedom)


def law_of(accept: Accept, p: Tensor, propose: "Proposer", trials: int = TRIALS) -> Counter[int]:
    """How often each token comes out of one level of a tree."""
    generator = torch.Generator().manual_seed(0)
    found: Counter[int] = Counter()
    for _ in range(trials):
        tokens, proposals = propose(generator)
        ruling = accept(p, tokens, proposals, generator)
        is_drawn = ruling.child < 0
        token = draw(ruling.rest, generator) if is_drawn else tokens[ruling.child]
        found[int(token)] += 1
    return found


class Proposer:
    """Children: the likeliest of q, or drawn from it."""

    def __init__(self, q: Tensor, count: int, *, is_drawn: bool) -> None:
        self.q, self.count, self.is_drawn = q, count, is_drawn

    def __call__(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if self.is_drawn:
            tokens = draw(self.q, generator, count=self.count)
        else:
            tokens = self.q.topk(self.count).indices
        return tokens, self.q.expand(self.count, -1)


# One level of a tree: the rules


@pytest.mark.parametrize("count", [1, 3, VOCAB])
def test_eagle_2_draws_from_p_whatever_is_proposed(count: int) -> None:
    p, q = distribution(0), distribution(1)
    assert_law(law_of(accept_in_order, p, Proposer(q, count, is_drawn=False)), p)


def test_eagle_1_draws_from_p() -> None:
    p, q = distribution(0), distribution(1)
    assert_law(law_of(accept_by_ratio, p, Proposer(q, 1, is_drawn=True)), p)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_static_tree_without_relaxation_draws_from_p(count: int) -> None:
    p, q = distribution(0), distribution(1)
    rule = scaled_rule(nearest_codes(torch.randn(VOCAB, 3), 5), 1.0)
    assert_law(law_of(rule, p, Proposer(q, count, is_drawn=True)), p)


def test_the_chi_square_would_notice() -> None:
    p, q = distribution(0), distribution(1)
    with pytest.raises(AssertionError):
        assert_law(law_of(accept_in_order, q, Proposer(q, 3, is_drawn=False)), p)


@pytest.mark.parametrize("delta", [0.05, 0.3])
def test_one_relaxed_draft_moves_the_law_by_what_it_takes_over(delta: float) -> None:
    p, codes = distribution(2, sharpness=1.0), torch.randn(VOCAB, 3)
    table, token = nearest_codes(codes, 5), torch.tensor(int(distribution(3).argmax()))
    mass, rest = relaxed_mass(p, token, table, torch.tensor(delta))
    assert 0 <= float(mass) <= delta
    assert float(rest.sum()) == pytest.approx(1 - float(p[token] + mass), abs=1e-6)
    law = rest.clone()
    law[token] = p[token] + mass
    assert 0.5 * float((law - p).abs().sum()) == pytest.approx(float(mass), abs=1e-6)
    rule = relaxed_rule(table, delta)
    one_hot = torch.nn.functional.one_hot(token, VOCAB).float()
    assert_law(law_of(rule, p, Proposer(one_hot, 1, is_drawn=False)), law)


@pytest.mark.parametrize("delta", [0.05, 0.1])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_relaxed_siblings_move_the_law_by_at_most_delta_each(count: int, delta: float) -> None:
    p, q = distribution(2, sharpness=1.0), distribution(3)
    codes = torch.randn(VOCAB, 3, generator=torch.Generator().manual_seed(4))
    table = nearest_codes(codes, 5)
    law, left, reached = torch.zeros(VOCAB), p, torch.tensor(1.0)
    for token in q.topk(count).indices:
        mass, rest = relaxed_mass(left, token, table, torch.tensor(delta))
        chance = left[token] + mass
        law[token] += reached * chance
        reached = reached * (1 - chance)
        left = normalized(rest, left)
    law += reached * left
    variation = 0.5 * float((law - p).abs().sum())
    assert 0 < variation <= count * delta
    rule = relaxed_rule(table, delta)
    assert_law(law_of(rule, p, Proposer(q, count, is_drawn=False)), law)


def test_neighbours_are_taken_while_their_sum_stays_below_the_bound() -> None:
    p = torch.tensor([0.4, 0.05, 0.1, 0.3, 0.15])
    table = torch.tensor([[1, 2, 3, 4]] * 5)
    for bound, expected in ((0.0, 0.0), (0.05, 0.05), (0.2, 0.15), (0.45, 0.45), (1.0, 0.6)):
        mass, rest = relaxed_mass(p, torch.tensor(0), table, torch.tensor(bound + 1e-6))
        assert float(mass) == pytest.approx(expected)
        assert float(rest.sum()) == pytest.approx(0.6 - expected)


def test_nothing_left_falls_back_to_p() -> None:
    p = torch.tensor([0.5, 0.5, 0.0])
    rule = relaxed_rule(torch.tensor([[1, 2], [0, 2], [0, 1]]), 1.0)
    ruling = rule(p, torch.tensor([0]), None, torch.Generator())
    assert ruling.child == 0
    torch.testing.assert_close(ruling.rest, p)


def test_greedy_lantern_accepts_a_code_that_beats_all_others_with_its_neighbours() -> None:
    p = torch.tensor([0.3, 0.25, 0.45])
    table = torch.tensor([[1, 2], [0, 2], [1, 0]])
    generator = torch.Generator()
    bounds = (
        (lambda own: torch.full_like(own, 0.3), True),
        (lambda own: torch.full_like(own, 0.1), False),
        (lambda own: (2.0 - 1) * own, True),  # of LANTERN++: 0.25 is within 0.3,
        (lambda own: (1.5 - 1) * own, False),  # and not within 0.15
    )
    for bound, stands in bounds:
        rule = greedy_rule(table, bound)
        assert (rule(p, torch.tensor([0]), None, generator).child == 0) is stands
    assert rule(p, torch.tensor([0, 2, 1]), None, generator).child == 1  # the likeliest by itself


def test_nearest_codes_are_in_order_and_leave_out_the_code_itself() -> None:
    codes = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    assert nearest_codes(codes, 2).tolist() == [[1, 2], [0, 2], [1, 0], [2, 1]]
    assert nearest_codes(codes, 99).shape == (4, 3)
    assert nearest_codes(codes, 0).shape == (4, 0)


def test_a_level_gives_its_first_parent_the_most_children() -> None:
    assert shape(1, 3).tolist() == [[0, 0], [0, 1], [0, 2]]
    assert shape(3, 5).tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [2, 0]]


# Whole images: laws


def exact_law(bench: BenchModel, sampling: SamplingParams) -> dict[tuple[int, ...], float]:
    """The base's probability of every beginning of two tokens, guided and filtered."""
    condition = bench.encode(PROMPT)

    def behind(tokens: list[int]) -> Tensor:
        feed = Feed(
            slot=0,
            num_condition=len(condition),
            position=0,
            tokens=torch.tensor(tokens, dtype=torch.long),
            cfg_scale=sampling.cfg_scale,
            condition=condition,
        )
        return sampling_view(bench.target.extend([feed])[0][-1], sampling)

    first = behind([])
    return {
        (a, b): float(first[a] * behind([a])[b])
        for a, b in itertools.product(range(bench.vocab_size), repeat=2)
    }


@pytest.mark.parametrize(
    "method",
    [
        make_method("base"),
        Eagle1(length=2),
        Eagle2(top=3, depth=2, size=6),
        LanternStatic(lam=1.0, levels=(2, 3)),
    ],
    ids=lambda method: method.name,
)
def test_lossless_methods_draw_from_the_bases_law(method: Method, small_bench: BenchModel) -> None:
    """The second token is the first that a draft may decide."""
    sampling = replace(small_bench.sampling, temperature=0.7)
    law = exact_law(small_bench, sampling)
    cells = {tokens: index for index, tokens in enumerate(law)}
    counts: Counter[int] = Counter()
    for seed in range(600):
        image = method.draw(small_bench, PROMPT, replace(sampling, seed=seed))
        counts[cells[image.tokens[0], image.tokens[1]]] += 1
    assert_law(counts, torch.tensor(list(law.values())))


@pytest.mark.parametrize(
    "spec",
    ["exact", "jacobi", "jacobi:window=1", "wavefront:window=4", "code:share=1"],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_coupled_methods_draw_the_bases_own_image(spec: str, seed: int, bench: BenchModel) -> None:
    base = tokens_of(make_method("base"), bench, seed)
    assert tokens_of(make_method(spec), bench, seed) == base


@pytest.mark.parametrize(
    "router",
    [
        "random:budget=1,prefix_rate=0",
        "always:prefix_rate=0",
        "interval:threshold=-Infinity,prefix_rate=0",
        "entropy:threshold=-Infinity,prefix_rate=0",
    ],
)
def test_asking_for_everything_is_the_base(router: str, bench: BenchModel) -> None:
    assert tokens_of(make_method(router), bench) == tokens_of(make_method("base"), bench)


@pytest.mark.parametrize(
    "spec",
    [
        "never:prefix_rate=0",
        "random:budget=0,prefix_rate=0",
        "interval:threshold=1e9,prefix_rate=0",
    ],
)
def test_asking_for_nothing_is_the_edge_alone(spec: str, bench: BenchModel) -> None:
    image = make_method(spec).draw(bench, PROMPT, bench.sampling)
    assert image.tokens == tokens_of(make_method("code:share=0"), bench, bench.sampling.seed)
    assert image.costs.forwards == 0


@pytest.mark.parametrize("spec", ["eagle-1", "eagle-2", "lantern:delta=0", "lantern++:lam=1.0"])
def test_greedy_images_are_the_bases(spec: str, bench: BenchModel) -> None:
    base = tokens_of(make_method("base"), bench, temperature=0.0)
    assert tokens_of(make_method(spec), bench, temperature=0.0) == base


@pytest.mark.parametrize("spec", ["lantern:delta=0", "lantern:neighbours=0"])
def test_lantern_without_relaxation_is_eagle_2(spec: str, bench: BenchModel) -> None:
    for seed in range(3):
        assert tokens_of(make_method(spec), bench, seed) == tokens_of(Eagle2(), bench, seed)


def test_relaxation_accepts_more(bench: BenchModel) -> None:
    def forwards(method: Method) -> int:
        seeds = (replace(bench.sampling, seed=seed) for seed in range(8))
        return sum(method.draw(bench, PROMPT, s).costs.forwards for s in seeds)

    assert forwards(Lantern(delta=0.9)) < forwards(Eagle2())


@pytest.mark.parametrize("spec", ["lantern:delta={}", "lantern++:lam={}"])
def test_relaxation_accepts_more_at_temperature_0(spec: str, bench: BenchModel) -> None:
    def forwards(bound: float) -> int:
        method = make_method(spec.format(bound))
        seeds = (replace(bench.sampling, seed=seed, temperature=0.0) for seed in range(4))
        return sum(method.draw(bench, PROMPT, s).costs.forwards for s in seeds)

    assert forwards(9.0) < forwards({"lantern": 0.0}.get(spec.partition(":")[0], 1.0))


def test_the_largest_tree_has_room(bench: BenchModel) -> None:
    assert len(tokens_of(Eagle2(top=NUM_SPARE // 4, depth=5, size=NUM_SPARE), bench)) == 16
    assert len(tokens_of(LanternStatic(levels=(NUM_SPARE // 2,) * 2), bench)) == 16
    assert len(tokens_of(Eagle1(length=2 * NUM_SPARE), bench)) == 16  # ends with the image


def test_a_window_below_a_row_is_faster_and_another_picture(bench: BenchModel) -> None:
    wave = make_method("wavefront:window=1").draw(bench, PROMPT, bench.sampling)
    assert wave.costs.forwards == 7  # 4 rows, each a step behind the one above
    assert wave.tokens != tokens_of(make_method("base"), bench, bench.sampling.seed)


# Accounting


def test_the_base_costs_a_forward_a_token(bench: BenchModel) -> None:
    image = make_method("base").draw(bench, PROMPT, bench.sampling)
    assert image.cloud_calls == 1
    condition = len(bench.encode(PROMPT))
    assert image.costs.positions == 2 * (condition + bench.num_tokens - 1)
    assert (image.costs.decided, image.costs.round_trips) == (bench.num_tokens, 1)
    assert image.costs.downlink_bytes == 10  # 16 ids of 24


@pytest.mark.parametrize("share", [0.3, 0.25, 0.5, 0.9])
def test_code_costs_its_share(share: float, bench: BenchModel) -> None:
    image = make_method(f"code:share={share}").draw(bench, PROMPT, bench.sampling)
    count = round(share * bench.num_tokens)
    assert image.cloud_calls == count / bench.num_tokens
    assert (image.costs.decided, image.costs.round_trips) == (count, 1)


def test_the_cloud_may_draw_the_end_instead(bench: BenchModel) -> None:
    image = make_method("code:share=0.25,is_last=true").draw(bench, PROMPT, bench.sampling)
    edge_alone = tokens_of(make_method("code:share=0"), bench, bench.sampling.seed)
    assert set(image.origins[:12]) == {"kept"}
    assert image.tokens[:12] == edge_alone[:12]
    assert set(image.origins[12:]) <= {"agreed", "corrected"}
    assert image.costs.decided == 4
    assert 1 <= image.costs.forwards <= 4


@pytest.mark.parametrize("spec", ["eagle-1", "eagle-2", "lantern", "lantern++"])
def test_forwards_are_a_prefill_and_rounds(spec: str, bench: BenchModel) -> None:
    image = make_method(spec).draw(bench, PROMPT, bench.sampling)
    rounds = image.costs.round_trips - 1
    assert image.costs.forwards == 1 + rounds
    assert len(image.tokens) == bench.num_tokens
    assert image.costs.decided == bench.num_tokens


def test_a_selective_image_adds_up(bench: BenchModel) -> None:
    image = make_method("random:budget=0.5").draw(bench, PROMPT, bench.sampling)
    asked = sum(origin in ("agreed", "corrected") for origin in image.origins)
    assert image.costs.decided == asked  # a prefix of floor(0.06 * 16) = 0 tokens
    assert image.costs.round_trips - 1 <= asked
    assert image.costs.forwards == image.costs.round_trips - 1


def test_features_cost_bytes_and_are_for_intervals(bench: BenchModel) -> None:
    with_features = make_method("interval").draw(bench, PROMPT, bench.sampling)
    for mode in ("none", "recompute"):
        without = make_method(f'interval:features="{mode}"').draw(bench, PROMPT, bench.sampling)
        assert with_features.costs.uplink_bytes > without.costs.uplink_bytes
    assert make_method("entropy").feature_mode == "none"  # type: ignore[attr-defined]


def test_latency_grows_with_round_trips(bench: BenchModel) -> None:
    costs = make_method("interval").draw(bench, PROMPT, bench.sampling).costs
    still = costs.latency(rtt=0)
    assert still == costs.cloud_seconds + costs.edge_seconds > 0
    assert costs.latency(rtt=0.1) == pytest.approx(still + 0.1 * costs.round_trips)


# Names and files


def test_methods_are_made_by_name() -> None:
    for name in KINDS:
        assert make_method(name).name == name
    assert make_method("lantern:delta=0.4,neighbours=100") == Lantern(delta=0.4, neighbours=100)
    static = LanternStatic(levels=(5, 13, 16, 14, 9), lam=10)
    assert make_method("lantern++:levels=[5, 13,16,14,9],lam=10") == static


@pytest.mark.parametrize(
    ("spec", "short"),
    [
        ("code:share=0.3", "code"),
        ("interval:prefix_rate=0.06", "interval"),
        ("eagle-2:size=20,top=10", "eagle-2:size=20"),
        ('interval:features="none",threshold=0.5', 'interval:threshold=0.5,features="none"'),
        ("lantern++:levels=[4,8,8,3,2]", "lantern++"),
        ("lantern++:levels=[4,8]", "lantern++:levels=[4, 8]"),
    ],
)
def test_a_method_has_one_shortest_name(spec: str, short: str) -> None:
    assert shortest(spec) == shortest(short) == short
    assert make_method(short) == make_method(spec)


@pytest.mark.parametrize("name", KINDS)
def test_methods_draw_with_the_drafter_they_name(name: str, bench: BenchModel) -> None:
    without = replace(bench, edge=None)  # type: ignore[arg-type]
    if kind_of(name).drafter == "edge":
        with pytest.raises(AttributeError):
            make_method(name).draw(without, PROMPT, bench.sampling)
    else:
        make_method(name).draw(without, PROMPT, bench.sampling)
    assert ("eagle" in vars(without)) is (kind_of(name).drafter == "eagle")


@pytest.mark.parametrize(
    "spec", ["magic", "lantern:lambda=3", "lantern:delta", "jacobi:window=0", "code:share=2"]
)
def test_a_wrong_name_says_what_there_is(spec: str) -> None:
    with pytest.raises(InvalidInput, match="method"):
        make_method(spec)


@pytest.mark.parametrize(
    "spec", ["eagle-2:size=80", "eagle-2:top=20", "lantern:size=65", "lantern++:levels=[40,25]"]
)
def test_a_tree_that_caches_have_no_room_for_is_refused(spec: str) -> None:
    with pytest.raises(InvalidInput, match=f"at most {NUM_SPARE} nodes"):
        make_method(spec)


def test_the_drafter_of_eagle_must_be_there_and_fit(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "own")
    with pytest.raises(CheckpointError, match="--kind eagle"):
        _ = BenchModel.load(folder).eagle
    write_eagle(folder)
    _ = BenchModel.load(folder).eagle
    other = write_bundle(tmp_path / "other", seed=1)
    shutil.copytree(folder / "eagle", other / "eagle")
    with pytest.raises(CheckpointError, match="another target's"):
        _ = BenchModel.load(other).eagle


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
