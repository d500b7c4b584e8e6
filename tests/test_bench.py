"""The benches measure what they say: real processes and rollouts on tiny models."""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from ciar.checkpoint import DEFAULT_MODEL, find_model, fingerprint
from ciar.errors import CheckpointError, CloudUnavailable, EngineError, InvalidInput
from ciar.models.text_encoder import TextEncoder
from ciar.picture import Painter
from ciar.target import TargetModel
from ciar.threshold import DynamicThreshold, StaticThreshold
from ciar.types import SamplingParams
from ciar.uncertainty import TENSOR_SCORES
from ciar_bench import cli, latency_cli, latency_table
from ciar_bench.cloud_process import cloud_process
from ciar_bench.emulation import Proxies
from ciar_bench.latency import METHODS, Cell, LatencyPlan, Round, measure_latency
from ciar_bench.latency_report import (
    CellReport,
    LateReport,
    Spread,
    measures,
    report_cell,
    spread,
)
from ciar_bench.pair import write_random_pair
from ciar_bench.routing import (
    CEILING,
    RANDOM,
    RoutingReport,
    RoutingRow,
    report_routing,
    watch_routing,
)
from ciar_bench.slow_link import SlowLink
from ciar_bench.workload import seeded_prompts
from ciar_cloud.bundle import load_cloud_model
from ciar_edge.loop import check_pair
from ciar_edge.models import EdgeModel, load_draft_model
from ciar_edge.result import ImageResult, Origin
from ciar_train.sizes import Size, load_size
from tests.tiny import PROMPT, TEXT_DIM, write_bundle

GRID = 4
T = GRID * GRID
NUM_IMAGES, ROUTING_GRID, NUM_PREFIX, SHARE = 24, 6, 2, 0.3


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle"), grid_size=GRID)


@pytest.fixture(scope="module")
def plan(bundle: Path) -> LatencyPlan:
    """At a static threshold, so that optimistic and blocking draw the same tokens."""
    quantiles = load_draft_model(bundle / "edge").calibration["interval"]
    links = (SlowLink(), SlowLink(rtt=0.005))
    rules: dict[str, Any] = {"threshold": quantiles[50], "wavefront": 2, "max_gap": 1.0}
    return LatencyPlan(links=links, methods=METHODS, rounds=3, **rules)


@pytest.fixture(scope="module")
def measured(bundle: Path, plan: LatencyPlan, run: Any) -> tuple[list[Cell], list[str]]:
    """Cells over a real socket, and what was said on the way."""
    said: list[str] = []
    edge = load_draft_model(bundle / "edge")
    with cloud_process(bundle, core=None) as cloud:
        how = Proxies((), is_always=False)
        prompts = [PROMPT, "a red cat", "a dog in snow"]
        cells = run(measure_latency(cloud.address, edge, prompts, plan, how, progress=said.append))
    return cells, said


@pytest.fixture(scope="module")
def reports(measured: tuple[list[Cell], list[str]]) -> list[CellReport]:
    return [report_cell(cell, lambda score: 0.3, is_static=True) for cell in measured[0]]


def test_cells_are_the_plans_links(
    measured: tuple[list[Cell], list[str]], plan: LatencyPlan
) -> None:
    cells, said = measured
    assert [(cell.link, cell.carrier) for cell in cells] == [
        (plan.links[0], "straight"),
        (plan.links[1], "a proxy"),
    ]
    assert all(len(cell.rounds) == plan.rounds for cell in cells)
    assert said == [f"RTT {rtt} ms: round {i} of 3" for rtt in (0, 5) for i in (1, 2, 3)]


def test_a_link_changes_no_token(measured: tuple[list[Cell], list[str]]) -> None:
    """Exact is the base; optimistic and blocking are equal at a static threshold."""
    straight, slow = measured[0]
    for one, other in zip(straight.rounds, slow.rounds, strict=True):
        tokens = {name: image.tokens for name, image in one.images.items()}
        assert tokens == {name: image.tokens for name, image in other.images.items()}
        assert tokens["exact"] == tokens["base"]
        assert tokens["optimistic"] == tokens["blocking"]
        assert tokens["wavefront-optimistic"] == tokens["wavefront-blocking"]
        assert tokens["wavefront"] != tokens["base"]
        assert one.images["base"].seconds > one.images["base"].cloud_compute_seconds
    assert len({one.images["base"].tokens for one in straight.rounds}) == 3  # seeds differ


def test_a_latency_report_is_consistent(reports: list[CellReport]) -> None:
    _, slow = reports
    for report in reports:
        assert report.num_tokens == T and report.num_rounds == 3 and report.equal_images == 1
        assert list(report.methods) == list(METHODS)
        for found in report.methods.values():
            assert all(one.least <= one.median <= one.largest for one in found.values())
            assert found["seconds"].least > 0 and found["uplink_bytes"].least > 0
        base, blocking, optimistic, late, exact, wavefront, *_ = report.methods.values()
        assert wavefront["cloud_forwards"].median == (4 + 2 * 3) / T
        assert wavefront.keys() >= {"model_ratio", "base_ratio"}
        assert "optimistic_ratio" in late and "model_ratio" not in late
        assert base["cloud_forwards"].median == 1 and base["cloud_positions"].median > 1
        assert "base_ratio" not in base and "blocking_ratio" not in blocking
        assert base.keys() < exact.keys() | {"blocking_ratio", "optimistic_ratio"}
        assert exact["uncertain"].median == 1
        assert 0 < blocking["uncertain"].median == optimistic["uncertain"].median < 1
        assert blocking["agreed"].median == optimistic["agreed"].median
        assert blocking["drafts"].least >= T
    for name in ("blocking", "optimistic", "exact"):
        assert slow.methods[name]["protocol_seconds"].least >= 0.005
    assert all(found["seconds"].least >= 0.005 for found in slow.methods.values())
    found = slow.methods["blocking"]  # with nothing but one trip at a time
    assert found["seconds"].median >= 0.005 * (1 + found["round_trips"].least)


def test_cloud_steps_are_those_that_fit_on_the_grid(reports: list[CellReport]) -> None:
    for report in reports:
        assert list(report.cloud_step) == [1, 2, 4, 8]  # half of 16 tokens are known: 16 do not fit
        assert list(report.step_ratios) == [2, 4, 8]
        assert all(one.least > 0 for one in report.cloud_step.values())


def test_a_slow_spell_is_on_both_sides_of_a_ratio() -> None:
    rounds = [a_round(slowness) for slowness in (1.0, 9.0, 3.0)]
    report = report_cell(straight(rounds), float, is_static=True)
    base, blocking, exact = report.methods.values()
    assert base["seconds"].median == 24 and blocking["seconds"].median == 12
    assert blocking["base_ratio"] == Spread(median=2, least=2, largest=2)
    assert exact["blocking_ratio"] == Spread(median=0.5, least=0.5, largest=0.5)
    assert exact["edge_blocking_ratio"] == Spread(median=1, least=1, largest=1)
    assert report.step_ratios == {16: Spread(median=4, least=4, largest=4)}
    assert blocking["draft_step_ratio"].median == 1
    assert report.equal_images == 1, "exact and the base"


def test_spreads_leave_out_a_tenth_at_either_end() -> None:
    assert spread(range(11)) == Spread(median=5, least=1, largest=9)


def test_what_was_not_asked_for_has_no_agreement() -> None:
    found = measures(a_round(1.0), "blocking")
    assert found["uncertain"] == 0
    assert not {"agreed", "protocol_seconds", "edge_blocking_ratio"} & found.keys()


def test_late_verification_is_counted_over_all_images() -> None:
    """Kept tokens only, and of them those beyond 4 nats; nobody looked at the first."""
    gaps = (math.nan, 4.5, math.inf, 4.0, 7.0) + (0.0,) * (T - 5)
    origins = (Origin.KEPT,) * 4 + (Origin.AGREED,) + (Origin.KEPT,) * (T - 5)
    rounds = [a_round(1.0), a_round(1.0)]
    for one, late in zip(rounds, (0, 3), strict=True):
        image = replace(one.images["blocking"], gaps=gaps, origins=origins, late=late)
        one.images["late"] = image
        one.overheads["late"] = []
    report = report_cell(straight(rounds), float, is_static=True)
    assert report.late == LateReport(taken_back=1.5, far=2)
    assert "Late: 1.50 kept tokens an image are taken back; 2.00 are" in latency_table.about(report)


def straight(rounds: list[Round]) -> Cell:
    return Cell(link=SlowLink(), carrier="straight", rounds=rounds)


def a_round(slowness: float) -> Round:
    image = ImageResult(
        tokens=(0,) * T,
        origins=(Origin.KEPT,) * T,
        scores=(0.0,) * T,
        drafts=T,
        seconds=4.0 * slowness,
        draft_seconds=T * slowness,
    )
    base = replace(image, seconds=8.0 * slowness, cloud_forwards=T)
    base = replace(base, cloud_compute_seconds=T * slowness)
    return Round(
        images={"base": base, "blocking": image, "exact": replace(image, seconds=8.0 * slowness)},
        overheads={"base": [], "blocking": [], "exact": []},
        spans={},
        chunk_seconds={16: 4.0 * slowness},
    )


def test_a_latency_report_is_shown_whole(reports: list[CellReport], plan: LatencyPlan) -> None:
    found = json.loads(json.dumps([asdict(report) for report in reports]))
    assert found[1]["link"]["rtt"] == 0.005
    assert set(found[0]["methods"]) == set(METHODS)
    text = latency_table.markdown(reports, "latency of tiny", plan)
    assert text.startswith("# latency of tiny\n")
    assert "the model's router at a static threshold" in text
    for report in reports:
        assert f"## {report.link} ({report.carrier})" in text
        assert f"| {report.link} | {report.methods['base']['seconds'].median:.3f} | " in text
    written = {name for name, _, _ in latency_table.ROWS}
    assert all(f"\n| {name} | " in text for name in written)
    keys = {key for _, key, _ in latency_table.ROWS}
    assert keys == {key for found in reports[0].methods.values() for key in found}


def test_routing_is_the_models_own_or_forced(bundle: Path, plan: LatencyPlan) -> None:
    edge = load_draft_model(bundle / "edge")
    assert LatencyPlan().router(edge, seed=0).name == edge.router == "interval"
    assert LatencyPlan(share=0.5).router(edge, seed=0).name == "random"
    assert isinstance(plan.router(edge, seed=0).threshold, StaticThreshold)
    assert isinstance(LatencyPlan(budget=0.3).router(edge, seed=0).threshold, DynamicThreshold)


def run_bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, which pins itself to a core."""
    command = [sys.executable, "-m", "ciar_bench.cli", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "90"}
    )


def test_the_latency_command_goes_through_links(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "tables" / "latency.md"
    options = ["--rtt", "0,5", "--jitter", "1", "--rounds", "2", "--emulation", "proxy"]
    options += ["--share", "0.5", "--modes", "optimistic,base", "--json", "--out", str(out)]
    done = run_bench("latency", "--model", str(bundle), *options)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["routing"] == "50% of the tokens routed at random"
    assert [cell["link"]["rtt"] for cell in found["cells"]] == [0, 0.005]
    assert [cell["carrier"] for cell in found["cells"]] == ["a proxy", "a proxy"]
    assert [list(cell["methods"]) for cell in found["cells"]] == [["base", "optimistic"]] * 2
    assert "## RTT 5 ms, jitter 1 ms (a proxy)" in out.read_text()


def test_an_interrupted_latency_run_leaves_the_links_it_had_done(
    bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "latency.md"
    options = ["--rtt", "0,20", "--rounds", "2", "--modes", "base", "--out", str(out)]
    command = [sys.executable, "-m", "ciar_bench.cli", "latency", "--model", str(bundle), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert any("RTT 20 ms: round 1 of 2" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
    assert process.returncode == 130
    assert "## RTT 0 ms (straight)" in out.read_text()
    assert "RTT 20 ms" not in out.read_text()


def test_the_latency_command_shows_a_table(bundle: Path) -> None:
    done = run_bench("latency", "--model", str(bundle), "--rounds", "1", "--modes", "base,exact")
    assert done.returncode == 0, done.stderr
    assert "RTT 0 ms (straight)" in done.stdout
    assert "base / this" in done.stdout and "C(1)" in done.stdout
    assert "blocking / this" not in done.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--rtt", "0,fast"],
            "rtt: '0,fast': give milliseconds from 0 to 1000, separated by commas",
        ),
        (["--rtt", "5000"], "rtt: '5000': give milliseconds from 0 to 1000"),
        (["--jitter", "-1"], "jitter: '-1': give milliseconds"),
        (["--bandwidth", "-2"], "bandwidth: '-2': give Mbit/s"),
        (["--loss", "80"], "loss: '80': give percent from 0 to 50"),
        (["--modes", "base,magic"], "modes: 'base,magic': give some of base, blocking"),
        (["--share", "0.3", "--threshold", "1"], "threshold: 1.0: leave it or share out"),
        (["--budget", "0.3", "--share", "0.3"], "budget: 0.3: leave it or share out"),
    ],
)
def test_latency_options_that_cannot_be(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    words: str,
) -> None:
    monkeypatch.setattr("sys.argv", ["ciar-bench", "latency", *options])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == InvalidInput.exit_code
    assert f"error: {words}" in capsys.readouterr().err


def test_a_cloud_that_does_not_start_says_why(tmp_path: Path) -> None:
    folder = tmp_path / "nowhere"
    with (
        pytest.raises(CloudUnavailable, match="no such model folder"),
        cloud_process(folder, core=None),
    ):
        pytest.fail("nothing serves there")


@pytest.fixture(scope="module")
def routing(tmp_path_factory: pytest.TempPathFactory) -> RoutingReport:
    folder = write_bundle(tmp_path_factory.mktemp("routing"), grid_size=ROUTING_GRID, seed=3)
    edge = load_draft_model(folder / "edge")
    values = watch_routing(
        TargetModel.load(folder / "cloud"),
        edge.draft,
        [torch.randn(3 + i % 4, TEXT_DIM, generator=seeded(i)) for i in range(NUM_IMAGES)],
        sampling=SamplingParams(cfg_scale=1.0),
        calibration={name: list(row) for name, row in edge.calibration.items()},
        router="interval",
        share=SHARE,
        num_prefix=NUM_PREFIX,
    )
    return report_routing(values, share=SHARE)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows_by_score(report: RoutingReport) -> dict[str, RoutingRow]:
    return {row.score: row for row in report.rows}


def test_every_score_is_judged_on_every_routed_position(routing: RoutingReport) -> None:
    scores = {name for name in TENSOR_SCORES if not name.startswith("discrete")}
    assert set(rows_by_score(routing)) == scores | {RANDOM, CEILING}
    assert routing.num_images == NUM_IMAGES
    assert routing.num_positions == NUM_IMAGES * (ROUTING_GRID**2 - NUM_PREFIX)
    assert routing.share == SHARE
    assert 0 < routing.cloud_share < 1


def test_the_ceiling_knows_the_total_variation(routing: RoutingReport) -> None:
    rows = rows_by_score(routing)
    ceiling = rows.pop(CEILING)
    assert ceiling.auroc == 1.0
    assert all(ceiling.kept_tv < row.kept_tv for row in rows.values())
    assert ceiling.kept_tv < routing.tv
    assert ceiling.disagreement < routing.disagreement


def test_a_random_score_knows_nothing(routing: RoutingReport) -> None:
    row = rows_by_score(routing)[RANDOM]
    assert row.auroc == pytest.approx(0.5, abs=0.08)
    assert row.kept_tv == pytest.approx(routing.tv, rel=0.1)
    assert row.disagreement == pytest.approx(routing.disagreement, abs=0.05)


def test_agreement_is_what_its_closed_form_expects(routing: RoutingReport) -> None:
    deviation = math.sqrt(0.25 / routing.num_positions)
    found = 1 - routing.disagreement
    assert found == pytest.approx(routing.expected_agreement, abs=4 * deviation)


def test_routing_means_are_means(routing: RoutingReport) -> None:
    assert 0 < routing.tv < 1
    assert 0 <= routing.covered <= 1
    assert 0 < routing.mean_width < 24  # one at most for each of 24 codes


def test_a_routing_report_is_shown_whole(routing: RoutingReport) -> None:
    text = cli.routing_markdown(routing, "tiny")
    assert "among the kept 70%" in text
    for row in routing.rows:
        assert f"| {row.score} | {row.auroc:.3f} | {row.disagreement:.3f} |" in text


@pytest.fixture(scope="module")
def size() -> Size:
    """The smallest real size, made thin."""
    size = load_size("mini-cpu")
    return replace(
        size,
        transformer=replace(size.transformer, num_layers=2, dim=32, num_heads=2),
        vq=replace(size.vq, channels=8, z_channels=8, norm_groups=4),
        head=replace(size.head, radius_width=4, feature_dim=8),
    )


@pytest.fixture(scope="module")
def random_pair(size: Size, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield write_random_pair(size, tmp_path_factory.mktemp("pair"))


def test_the_halves_of_a_random_pair_load_and_fit(size: Size, random_pair: Path) -> None:
    cloud = load_cloud_model(str(random_pair))  # checks that text and target fit
    edge: EdgeModel = load_draft_model(random_pair / "edge")
    check_pair(edge, cloud.info)
    assert edge.target == fingerprint(random_pair / "cloud")
    assert cloud.target.config == size.transformer
    assert cloud.info.sampling == size.sampling
    assert edge.draft.head_config == size.head
    painter = Painter.load(random_pair / "vq")
    painter.check_codebook(size.transformer.vocab_size)


def test_a_random_pair_is_fixed_by_its_seed(size: Size, random_pair: Path, tmp_path: Path) -> None:
    same = write_random_pair(size, tmp_path / "same", seed=0)
    other = write_random_pair(size, tmp_path / "other", seed=1)
    for part in ("cloud", "edge", "vq"):
        assert fingerprint(same / part) == fingerprint(random_pair / part)
        assert fingerprint(other / part) != fingerprint(random_pair / part)


def test_seeded_prompts_repeat_and_do_not_depend_on_their_number() -> None:
    size = load_size("mini-cpu")
    prompts = seeded_prompts(size, 40)
    assert seeded_prompts(size, 40) == prompts
    assert seeded_prompts(size, 10) == prompts[:10]
    assert seeded_prompts(size, 40, seed=1) != prompts
    assert len(set(prompts)) > 20


def test_seeded_prompts_are_in_the_sizes_vocabulary() -> None:
    size = load_size("mini-cpu")
    encoder = TextEncoder.load(find_model(DEFAULT_MODEL) / "text")
    nouns = size.data.scene_recipe().nouns
    assert nouns
    for prompt in seeded_prompts(size, 200):
        assert list(encoder.tokenizer.unknown_words(prompt)) == []
        assert any(noun in prompt for noun in nouns), prompt


def test_help_names_the_commands() -> None:
    for arguments, words in (([], ["latency", "routing"]), (["latency"], ["--rounds", "--size"])):
        done = CliRunner().invoke(cli.app, [*arguments, "--help"], env={"NO_COLOR": "1"})
        assert done.exit_code == 0
        assert all(word in done.output for word in words)


def test_the_routing_command_prints_json(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "tables" / "routing.md"
    arguments = ["routing", "--model", str(bundle), "--images", "2", "--json", "--out", str(out)]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["num_images"] == 2
    assert found["num_positions"] == 2 * T
    assert out.read_text().startswith("# Routing of ")


def test_an_unknown_model_ends_with_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["ciar-bench", "routing", "--model", "nowhere"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == CheckpointError.exit_code
    assert "error: model: 'nowhere'" in capsys.readouterr().err


def test_other_tokens_at_a_static_threshold_are_an_error(
    monkeypatch: pytest.MonkeyPatch, reports: list[CellReport], tmp_path: Path
) -> None:
    """Behind the report, which says what else was found."""
    unequal = [reports[0], replace(reports[1], equal_images=0.5)]

    def measure(*arguments: Any) -> list[CellReport]:
        keep = arguments[-1]
        keep(unequal)
        return unequal

    monkeypatch.setattr(latency_cli, "measure", measure)
    out = tmp_path / "latency.md"
    monkeypatch.setattr("sys.argv", ["ciar-bench", "latency", "--out", str(out)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == EngineError.exit_code
    assert "optimistic those of blocking, in 50% of the pairs" in out.read_text()


def test_edge_and_cloud_get_a_core_each() -> None:
    assert latency_cli.pick_cores([3, 5, 8]) == (3, 5)
    assert latency_cli.pick_cores([3]) == (None, None)
