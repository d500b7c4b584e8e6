"""The benches measure what they say: real processes and rollouts on tiny models."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from ciar.checkpoint import DEFAULT_MODEL, find_model, fingerprint
from ciar.errors import CheckpointError, CloudUnavailable
from ciar.models.text_encoder import TextEncoder
from ciar.picture import Painter
from ciar.target import TargetModel
from ciar.types import SamplingParams
from ciar.uncertainty import TENSOR_SCORES
from ciar_bench import cli
from ciar_bench.cloud_process import cloud_process, cores
from ciar_bench.latency import LatencyPlan, LatencyReport, Round, measure_latency, summarize
from ciar_bench.pair import write_random_pair
from ciar_bench.routing import (
    CEILING,
    RANDOM,
    RoutingReport,
    RoutingRow,
    report_routing,
    watch_routing,
)
from ciar_bench.workload import seeded_prompts
from ciar_cloud.bundle import load_cloud_model
from ciar_edge.loop import check_pair
from ciar_edge.models import EdgeModel, load_draft_model
from ciar_edge.result import ImageResult, Origin
from ciar_train.sizes import Size, load_size
from tests.tiny import TEXT_DIM, write_bundle

GRID = 4
T = GRID * GRID
NUM_IMAGES, ROUTING_GRID, NUM_PREFIX, SHARE = 24, 6, 2, 0.3


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle"), grid_size=GRID)


@pytest.fixture(scope="module")
def latency(bundle: Path, run: Any) -> tuple[LatencyReport, list[str]]:
    """A report over a real socket, and what was said on the way."""
    lines: list[str] = []
    with cloud_process(bundle, core=None) as cloud:
        edge = load_draft_model(bundle / "edge")
        plan = LatencyPlan(rounds=1, share=0.5)
        report = run(measure_latency(cloud.address, edge, plan, progress=lines.append))
    return report, lines


def test_a_latency_report_is_consistent(latency: tuple[LatencyReport, list[str]]) -> None:
    report, lines = latency
    assert report.num_tokens == T
    assert lines == ["round 0 of 1", "round 1 of 1"]  # the warm-up counts as none
    assert min(report.base_seconds, report.blocking_seconds, report.exact_seconds) > 0
    assert 0 < report.edge_step < report.blocking_seconds
    assert report.protocol_seconds > 0
    assert 0 < report.blocking_cloud_calls <= 1
    assert 0 < report.exact_cloud_calls <= 1
    assert report.exact_cloud_calls == report.exact_round_trips / T  # there is no prefix
    assert report.uplink_bytes > 0
    assert report.downlink_bytes > 0


def test_cloud_steps_are_those_that_fit_on_the_grid(
    latency: tuple[LatencyReport, list[str]],
) -> None:
    report, _ = latency
    assert list(report.cloud_step) == [1, 2, 4, 8]  # half of 16 tokens are known: 16 do not fit
    assert all(seconds > 0 for seconds in report.cloud_step.values())
    assert report.base_seconds > T * report.cloud_step[1]  # as many steps, and a wire


def test_ratios_are_medians_of_the_rounds(latency: tuple[LatencyReport, list[str]]) -> None:
    report, _ = latency
    assert report.ratios == {  # of a single round
        "base / blocking": report.base_seconds / report.blocking_seconds,
        "base / exact": report.base_seconds / report.exact_seconds,
        "e / C(1)": report.edge_step / report.cloud_step[1],
        "C(4) / C(1)": report.cloud_step[4] / report.cloud_step[1],
    }
    assert report.ratio_ranges == {name: (ratio, ratio) for name, ratio in report.ratios.items()}


def test_a_slow_spell_is_on_both_sides_of_a_ratio() -> None:
    rounds = [a_round(slowness, cloud_step={1: 1.0, 16: 4.0}) for slowness in (1.0, 9.0, 3.0)]
    report = summarize(rounds, T)
    assert (report.base_seconds, report.blocking_seconds, report.edge_step) == (24.0, 12.0, 3.0)
    assert report.ratios == {
        "base / blocking": 2.0,
        "base / exact": 1.0,
        "e / C(1)": 1.0,
        "C(16) / C(1)": 4.0,
    }
    assert report.ratio_ranges["base / blocking"] == (2.0, 2.0)


def a_round(slowness: float, *, cloud_step: dict[int, float]) -> Round:
    image = ImageResult(
        tokens=(0,) * T,
        origins=(Origin.KEPT,) * T,
        scores=(0.0,) * T,
        seconds=4.0 * slowness,
        draft_seconds=T * slowness,
    )
    return Round(
        base=8.0 * slowness,
        cloud_step={k: seconds * slowness for k, seconds in cloud_step.items()},
        blocking=image,
        exact=replace(image, seconds=8.0 * slowness),
        overheads=[0.1 * slowness],
    )


def test_a_latency_report_is_shown_whole(latency: tuple[LatencyReport, list[str]]) -> None:
    report, _ = latency
    found = json.loads(json.dumps(asdict(report)))
    assert found["ratios"] == report.ratios
    assert found["cloud_step"] == {str(k): s for k, s in report.cloud_step.items()}
    text = cli.markdown(report, "latency of tiny", LatencyPlan(rounds=1, share=0.5))
    assert text.startswith("# latency of tiny\n")
    assert "1 rounds, routing share 0.50" in text
    assert f"| base, image | {report.base_seconds:.3f} s |" in text
    assert all(f"| {name} | {value:.3f} (" in text for name, value in report.ratios.items())


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


def test_edge_and_cloud_get_a_core_each() -> None:
    edge, cloud = cli.pick_cores()
    if len(cores()) == 1:
        assert edge is cloud is None
    else:
        assert edge != cloud
        assert {edge, cloud} <= set(cores())
