"""Certificates: the statistics hold what they promise, and the edge takes no other threshold."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from ciar.certificate import CERTIFICATE_FILE, Certificate, Level, Mean, Measured, read_certificate
from ciar.errors import CheckpointError, InvalidInput
from ciar.types import SamplingParams
from ciar_bench import cli
from ciar_bench.certify.losses import losses, num_calls, read_tally
from ciar_bench.certify.risk_control import (
    binomial_cdf,
    conformal_risk_control,
    hoeffding_bentkus,
    learn_then_test,
)
from ciar_bench.cloud_process import cloud_process
from ciar_edge.cli import app
from ciar_edge.config import DecodeConfig
from ciar_edge.draw import DrawOptions, draw
from ciar_edge.image import Drawing
from ciar_edge.result import Silent
from ciar_train.rollouts import Rollout
from tests.tiny import PROMPT, write_bundle

GRID = 6
RISK = 0.9  # of a tiny random model on a few images

# ------------------------------------------------------------------------------ statistics


@pytest.mark.parametrize(
    ("mean", "count", "level", "expected"),
    [
        (0.0, 100, 0.05, 0.95**100),  # Hoeffding
        (0.01, 100, 0.1, 0.000798223),
        (0.02, 200, 0.05, 0.0718898559),  # Bentkus
        (0.08, 1000, 0.1, 0.0478732234),
        (0.3, 50, 0.5, 0.0089709389),
        (0.06, 100, 0.05, 1.0),
        (1.0, 10, 0.5, 1.0),
    ],
)
def test_p_values_of_hoeffding_and_bentkus(
    mean: float, count: int, level: float, expected: float
) -> None:
    assert hoeffding_bentkus(mean, count, level) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("most", "count", "chance"), [(0, 7, "0.3"), (5, 10, "0.5"), (40, 40, "0.2")]
)
def test_binomial_chances_are_exact(most: int, count: int, chance: str) -> None:
    hit = Fraction(chance)
    terms = (math.comb(count, k) * hit**k * (1 - hit) ** (count - k) for k in range(most + 1))
    assert binomial_cdf(most, count, float(hit)) == pytest.approx(float(sum(terms)))


@pytest.mark.parametrize("level", [0.02, 0.1, 0.4])
@pytest.mark.parametrize("kind", ["coins", "beta"])
def test_p_values_are_valid(level: float, kind: str) -> None:
    """At a risk equal to the level, at most a share x of them is below x."""
    rng, count = np.random.default_rng(0), 60
    if kind == "coins":
        drawn = (rng.random((2000, count)) < level).astype(float)
    else:
        drawn = rng.beta(2 * level, 2 * (1 - level), size=(2000, count))
    found = np.array([hoeffding_bentkus(float(row.mean()), count, level) for row in drawn])
    for x in (0.01, 0.05, 0.1, 0.3):
        assert (found <= x).mean() <= x + 3 * math.sqrt(x * (1 - x) / 2000)


def test_fixed_sequence_testing_controls_the_error() -> None:
    """Of 1,000 calibrations at most a share delta certifies a threshold whose risk is above."""
    risks, level, delta, count = (0.01, 0.03, 0.05, 0.1, 0.101, 0.2), 0.1, 0.1, 100
    rng = np.random.default_rng(0)
    numbers = []
    for _ in range(1000):
        dice = rng.random(count)  # the same images at every threshold
        drawn = [(dice < risk).astype(float) for risk in risks]
        numbers.append(learn_then_test(drawn, level=level, delta=delta))
    assert np.mean([number > 4 for number in numbers]) <= delta
    assert np.mean([number >= 2 for number in numbers]) > 0.8  # and it does find the safe ones


def test_testing_stops_at_the_first_that_is_not_refuted() -> None:
    bad, good = np.ones(200), np.zeros(200)
    assert learn_then_test([good, bad, good], level=0.1, delta=0.05) == 1
    assert learn_then_test([bad, good], level=0.1, delta=0.05) == 0
    assert learn_then_test([good, good], level=0.1, delta=0.05) == 2


def test_conformal_risk_control() -> None:
    """n / (n + 1) R + 1 / (n + 1) at most the level."""
    values = np.array([0.0, 0.1, 0.2, 0.1])  # (0.4 + 1) / 5 = 0.28
    assert conformal_risk_control([values], level=0.281) == 1
    assert conformal_risk_control([values], level=0.279) == 0
    assert conformal_risk_control([np.zeros(9), np.ones(9), np.zeros(9)], level=0.1) == 1


def test_conformal_risk_control_bounds_the_mean_risk() -> None:
    risks, level, rng = np.linspace(0.01, 0.3, 30), 0.1, np.random.default_rng(1)
    found = []
    for _ in range(1000):
        dice = rng.random(50)
        number = conformal_risk_control(
            [(dice < risk).astype(float) for risk in risks], level=level
        )
        found.append(risks[number - 1] if number else 0.0)
    assert np.mean(found) <= level


# ------------------------------------------------------------------------------ measured


def rollout(kept: list[list[bool]], differs: list[list[bool]]) -> Rollout:
    drafted = torch.zeros(len(kept), len(kept[0]), dtype=torch.long)
    return Rollout(
        tokens=drafted,
        drafted=drafted,
        drawn=torch.tensor(differs).long(),
        kept=torch.tensor(kept),
        features=torch.zeros(len(kept), len(kept[0]), 1),
    )


def test_the_loss_is_of_kept_tokens() -> None:
    kept = [[False, True, True, False], [False, False, False, False], [True, True, True, True]]
    differs = [[True, True, False, True], [True, True, True, True], [False, False, True, False]]
    assert losses(rollout(kept, differs)) == [0.5, 0.0, 0.25]


def test_a_verdict_that_agrees_brings_the_next_token_along() -> None:
    def calls(text: str) -> int:
        """k: kept, a: asked for and right, d: asked for and different."""
        return num_calls([x == "k" for x in text], [x == "d" for x in text], num_prefix=1)

    assert calls("aa") == 2  # the prefix is paid
    assert calls("aaa") == 2
    assert calls("aaaa") == 3
    assert calls("adda") == 4
    assert calls("kakaka") == 4
    assert calls("k" + 60 * "d" + "aa") == 63  # by then nobody hopes for an agreement


# ------------------------------------------------------------------------------ the file


def mean(value: float) -> Mean:
    return Mean(mean=value, low=round(value - 0.01, 6), high=round(value + 0.01, 6))


CERTIFICATE = Certificate(
    date="2026-01-01",
    target="cloud",
    draft="edge",
    router="interval",
    sampling={"temperature": 1.0, "top_k": 0, "top_p": 1.0, "cfg_scale": 2.0, "cfg_interval": -1},
    prefix_rate=0.06,
    prompts="some",
    num_images=200,
    delta=0.05,
    measured=tuple(
        Measured(threshold=threshold, risk=mean(risk), calls=mean(calls), sent=mean(calls + 0.1))
        for threshold, risk, calls in ((1.0, 0.01, 0.5), (2.0, 0.02, 0.3), (3.0, 0.06, 0.2))
    ),
    levels=(
        Level(risk=0.01, threshold=None, conformal=None),
        Level(risk=0.05, threshold=2.0, conformal=2.0),
        Level(risk=0.1, threshold=3.0, conformal=3.0),
    ),
)


def test_a_certificate_is_read_as_it_was_written(tmp_path: Path) -> None:
    CERTIFICATE.write(tmp_path)
    assert read_certificate(tmp_path, max_risk=0.1) == CERTIFICATE


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ("{}", "cannot be read.*version"),
        ('{"version": 2}', "version 2, expected 1: make one with ciar-bench certify"),
        ('{"version": 1, "levels": [], "measured": []}', "missing"),
        ('{"version": 1, "levels": [{"rsk": 1}], "measured": []}', "unknown rsk"),
    ],
)
def test_damaged_certificates(tmp_path: Path, text: str, pattern: str) -> None:
    (tmp_path / CERTIFICATE_FILE).write_text(text)
    with pytest.raises(CheckpointError, match=pattern):
        read_certificate(tmp_path, max_risk=0.1)


def test_no_certificate(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="max_risk: 0.1: no certificate.*ciar-bench certify"):
        read_certificate(tmp_path, max_risk=0.1)


@pytest.mark.parametrize(
    ("max_risk", "budget", "is_one_by_one", "expected"),
    [
        (0.05, None, True, 2.0),
        (0.07, None, True, 2.0),
        (0.1, None, True, 3.0),
        (0.5, None, True, 3.0),
        (0.1, 0.9, True, 1.0),  # what the budget allows buys less risk
        (0.1, 0.31, True, 2.0),
        (0.1, 0.30, True, 3.0),
        (0.1, 0.41, False, 2.0),
        (0.05, 0.31, True, 2.0),
    ],
)
def test_the_threshold_of_a_risk(
    max_risk: float, budget: float | None, is_one_by_one: bool, expected: float
) -> None:
    found = CERTIFICATE.threshold(max_risk, budget=budget, is_one_by_one=is_one_by_one)
    assert found == expected


@pytest.mark.parametrize(
    ("max_risk", "budget", "is_one_by_one", "pattern"),
    [
        (0.0, None, True, "max_risk: 0.0: give a share above 0"),
        (1.0, None, True, "max_risk: 1.0: give a share"),
        (0.04, None, True, "max_risk: 0.04: give at least 0.05, or make one"),
        (
            0.05,
            0.3,
            True,
            r"budget: 0.3: infeasible: a risk of at most 0.05 needs a budget of 0.31 ",
        ),
        (0.05, 0.3, False, r"a budget of 0.41 \(expected calls 0.400, 95 % interval 0.390 to"),
    ],
)
def test_risks_that_cannot_be_had(
    max_risk: float, budget: float | None, is_one_by_one: bool, pattern: str
) -> None:
    with pytest.raises(InvalidInput, match=pattern):
        CERTIFICATE.threshold(max_risk, budget=budget, is_one_by_one=is_one_by_one)


def test_a_certificate_without_any_level() -> None:
    with pytest.raises(InvalidInput, match="no risk is certified"):
        replace(CERTIFICATE, levels=CERTIFICATE.levels[:1]).threshold(0.1)


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        ({"draft": "x"}, "draft: 'x': the certificate is for another model, edge: make one"),
        ({"router": "entropy"}, "router: 'entropy': the certificate is for 'interval': give that"),
        ({"prefix_rate": 0.1}, "prefix_rate: 0.1: the certificate is for 0.06"),
        ({"wavefront": 4}, "wavefront: 4: give 0: certificates"),
    ],
)
def test_a_certificate_of_another_edge(change: dict[str, Any], pattern: str) -> None:
    own: dict[str, Any] = {"draft": "edge", "router": "interval", "prefix_rate": 0.06}
    CERTIFICATE.check_edge(**own)
    with pytest.raises(InvalidInput, match=pattern):
        CERTIFICATE.check_edge(**own | change)


@pytest.mark.parametrize(
    "change",
    [{"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.9}, {"cfg_scale": 3.0}, {"cfg_interval": 4}],
)
def test_a_certificate_of_another_way_to_draw(change: dict[str, Any]) -> None:
    sampling = SamplingParams(cfg_scale=2.0)
    CERTIFICATE.check_cloud(target="cloud", sampling=replace(sampling, seed=7))
    ((name, value),) = change.items()
    pattern = f"{name}: {value}: the certificate is for {CERTIFICATE.sampling[name]}: give that"
    with pytest.raises(InvalidInput, match=pattern):
        CERTIFICATE.check_cloud(target="cloud", sampling=replace(sampling, **change))
    with pytest.raises(InvalidInput, match="target: 'other': the certificate is for another model"):
        CERTIFICATE.check_cloud(target="other", sampling=sampling)


# ------------------------------------------------------------------------------ end to end


def bench(*arguments: object) -> str:
    done = CliRunner().invoke(cli.app, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("a dog\na cat on the beach\na red cat\nthe snow\na dog at the beach\n")
    return path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, prompts: Path) -> Path:
    """A tiny model with a certificate, by the command; what it measured is used again."""
    folder = write_bundle(tmp_path_factory.mktemp("bundle"), grid_size=GRID, seed=3)
    options = ["--model", folder, "--prompts", prompts, "--images", 5, "--work", folder / "work"]
    options += ["--level", RISK, "--level", 0.05, "--share", 0.6, "--share", 0.3]
    first = bench("certify", *options)
    stamps = {path: path.stat().st_mtime_ns for path in (folder / "work").iterdir()}
    assert len(stamps) == 2
    assert bench("certify", *options) == first
    assert stamps == {path: path.stat().st_mtime_ns for path in (folder / "work").iterdir()}
    return folder


@pytest.mark.parametrize("keep", [0, 1, 60, -1])
def test_half_a_measurement_is_none(bundle: Path, tmp_path: Path, keep: int) -> None:
    text = next((bundle / "work").iterdir()).read_text()
    path = tmp_path / "measured.json"
    assert read_tally(path) is None
    path.write_text(text)
    assert read_tally(path) is not None
    path.write_text(text[:keep])
    assert read_tally(path) is None


@pytest.fixture(scope="module")
def cloud(bundle: Path) -> Iterator[str]:
    with cloud_process(bundle, core=None) as process:
        yield process.address


def options_of(bundle: Path, cloud: str, mode: Any = "blocking", **options: Any) -> DrawOptions:
    decode = DecodeConfig(mode=mode)
    return DrawOptions(
        prompt=PROMPT, seed=5, model=str(bundle), cloud=cloud, decode=decode, **options
    )


def test_what_certify_writes(bundle: Path) -> None:
    found = read_certificate(bundle / "edge", max_risk=RISK)
    assert [level.risk for level in found.levels] == [0.05, RISK]
    assert found.levels[0].threshold is None
    safest, largest = found.measured
    assert safest.threshold < largest.threshold == found.levels[1].threshold
    assert safest.calls.mean > largest.calls.mean
    assert safest.sent.mean >= safest.calls.mean
    assert (bundle / "edge" / CERTIFICATE_FILE).stat().st_size < 4096


def test_a_risk_draws_as_its_threshold_does(bundle: Path, cloud: str, run: Any) -> None:
    certificate = read_certificate(bundle / "edge", max_risk=RISK)

    def drawn(**options: Any) -> Drawing:
        image: Drawing = run(
            draw(options_of(bundle, cloud, **options), embedded=None, observer=Silent())
        )
        return image

    safest, largest = (one.threshold for one in certificate.measured)
    found = drawn(max_risk=RISK).result
    assert found.tokens == drawn(threshold=largest).result.tokens
    assert found.tokens == drawn(max_risk=RISK, mode="optimistic").result.tokens
    spent = drawn(max_risk=RISK, budget=1.0).result
    assert spent.tokens == drawn(threshold=safest).result.tokens
    assert spent.origins != found.origins


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"max_risk": 0.06}, "max_risk: 0.06: give at least 0.9"),
        ({"max_risk": RISK, "budget": 0.05}, "budget: 0.05: infeasible: .* needs a budget of 0."),
        ({"max_risk": RISK, "router": "entropy"}, "router: 'entropy': the certificate is for"),
        ({"max_risk": RISK, "sampling": {"top_k": 5}}, "top_k: 5: the certificate is for 0"),
    ],
)
def test_risks_that_are_refused(
    bundle: Path, cloud: str, run: Any, options: dict[str, Any], pattern: str
) -> None:
    with pytest.raises(InvalidInput, match=pattern):
        run(draw(options_of(bundle, cloud, **options), embedded=None, observer=Silent()))


def test_a_certificate_does_not_move_to_another_model(
    bundle: Path, tmp_path: Path, run: Any
) -> None:
    other = write_bundle(tmp_path, grid_size=GRID, seed=4)
    options = options_of(other, "127.0.0.1:1", max_risk=RISK)
    with pytest.raises(InvalidInput, match="max_risk: 0.9: no certificate"):
        run(draw(options, embedded=None, observer=Silent()))
    own = (bundle / "edge" / CERTIFICATE_FILE).read_text()
    (other / "edge" / CERTIFICATE_FILE).write_text(own)
    with pytest.raises(InvalidInput, match="draft: .* the certificate is for another model"):
        run(draw(options, embedded=None, observer=Silent()))


def test_held_out_images_are_checked(bundle: Path, prompts: Path, tmp_path: Path) -> None:
    arguments = ["risk-check", "--prompts", prompts, "--images", 4, "--max-risk"]
    found = bench(*arguments, RISK, "--model", bundle)
    assert found.startswith("risk 0.") and "at most 0.9 certified" in found
    too_good = copytree(bundle, tmp_path / "bundle") / "edge" / CERTIFICATE_FILE
    values = json.loads(too_good.read_text())
    values["levels"][0]["threshold"] = values["levels"][1]["threshold"]
    too_good.write_text(json.dumps(values))
    command = [str(x) for x in (*arguments, 0.05, "--model", tmp_path / "bundle")]
    assert CliRunner().invoke(cli.app, command).exit_code == 1


def test_the_command_takes_a_risk(
    bundle: Path, cloud: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["generate", PROMPT, "--model", str(bundle), "--cloud", cloud, "--json"]
    done = CliRunner().invoke(app, command, env={"CIAR_MAX_RISK": str(RISK), "NO_COLOR": "1"})
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["max_risk"] == RISK
    done = CliRunner().invoke(app, [*command, "--max-risk", "0.06"])
    assert done.exit_code == 2
    assert "max_risk: 0.06: give at least 0.9" in done.stderr
