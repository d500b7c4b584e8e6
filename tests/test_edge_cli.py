"""`ciar-edge generate` as a user meets it: its files, its words and its exit codes."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from shutil import copytree, rmtree
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from ciar import __version__
from ciar.checkpoint import fingerprint
from ciar.errors import InvalidInput, OutputError
from ciar.risk_tracker import STEP_SIZE
from ciar.router import DEFAULT_BUDGET, ROUTERS
from ciar.tolerance import DEFAULT_MAX_GAP
from ciar_edge import draw as drawing
from ciar_edge.cli import ACCESS, app, default_name, settle
from ciar_edge.metrics import EdgeMetrics
from ciar_edge.risk_file import RiskFile
from tests.small_disk import small_disk
from tests.tiny import PROMPT, write_bundle

T = 16
KEYS = [
    *("prompt", "seed", "mode", "tokens", "grid", "prefix_tokens", "cloud_calls"),
    *("cloud_forwards", "cloud_decided", "round_trips", "uplink_bytes", "downlink_bytes"),
    *("fallbacks", "resumes", "seconds", "output"),
]
RISK = ("--max-risk", "0.1", "--risk-file")
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("CIAR_")}


def command(module: str, *arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", module, *map(str, arguments)]


def edge(
    *arguments: str | Path, folder: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`ciar-edge generate ...` in a folder."""
    return subprocess.run(
        command("ciar_edge.cli", "generate", *arguments),
        cwd=folder,
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def report(*arguments: str | Path, folder: Path, **environment: str) -> dict[str, Any]:
    """The object that it prints with --json."""
    done = edge(*arguments, "--json", folder=folder, **environment)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def cloud(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a cloud process that all tests of this file share."""
    ready = tmp_path_factory.mktemp("cloud") / "ready"
    options: list[str | Path] = ["--model", bundle, "--port", "0", "--ready-file", ready]
    options += ["--metrics-port", "0"]
    process = subprocess.Popen(
        command("ciar_cloud", "serve", *options, "--exit-with-parent"),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_until(ready.exists)
        yield ready.read_text().strip()
    finally:
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=30) == 0


def wait_until(is_so: Any, *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.01)


# ------------------------------------------------------------------------------ pictures


def test_an_embedded_cloud_draws_the_picture_and_its_map(bundle: Path, tmp_path: Path) -> None:
    done = edge(
        "a dog on the zebra", "--seed", "3", "--map", "map.png", "--json", folder=tmp_path,
        CIAR_MODEL=str(bundle), CIAR_PREFIX_RATE="0.2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert list(found)[: len(KEYS)] == KEYS
    assert (found["prompt"], found["seed"], found["mode"]) == ("a dog on the zebra", 3, "blocking")
    assert (len(found["tokens"]), found["grid"], found["prefix_tokens"]) == (T, 4, 3)
    assert found["cloud_calls"] == found["cloud_forwards"] / T
    assert found["cloud_forwards"] == 3 + found["round_trips"]
    assert sum(found["origins"].values()) == T
    assert found["output"] == "a-dog-on-the-zebra-3.png"
    assert sorted(os.listdir(tmp_path)) == ["a-dog-on-the-zebra-3.png", "map.png"]
    assert "4/16 tokens, cloud " in done.stderr
    assert "seed 3, cloud calls " in done.stderr
    with Image.open(tmp_path / found["output"]) as image:
        texts = image.text  # type: ignore[attr-defined]
        assert image.size == (8, 8)
    assert texts["prompt"] == "a dog on the zebra"
    assert texts["seed"] == "3"
    assert texts["fingerprint"] == fingerprint(bundle / "cloud")
    assert texts["mode"] == "blocking"
    assert texts["Software"] == f"ciar {__version__}"
    counts = json.loads(texts["counts"])
    assert counts == {name: found[name] for name in counts}
    with Image.open(tmp_path / "map.png") as sheet:
        assert sheet.size[0] > 3 * 512
        assert sheet.text == texts  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def base(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[int], bytes]:
    """Tokens and pixels of the picture that the cloud draws alone."""
    folder = tmp_path_factory.mktemp("base")
    found = drawn_alone(bundle, folder)
    return found["tokens"], pixels(folder / found["output"])


def drawn_alone(bundle: Path, folder: Path, *options: str) -> dict[str, Any]:
    """The report on a picture that the cloud draws alone."""
    given: list[str | Path] = ["--model", bundle, "--seed", "11", "--json", *options]
    done = subprocess.run(
        command("ciar_cloud", "generate", PROMPT, *given),
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


@pytest.mark.parametrize("how", [["--exact"], ["--budget", "1"]])
def test_everything_verified_is_the_clouds_own_picture(
    bundle: Path, cloud: str, base: tuple[list[int], bytes], tmp_path: Path, how: list[str]
) -> None:
    options: list[str | Path] = ["--seed", "11", "--cloud", cloud, "--model", bundle, *how]
    found = report(PROMPT, *options, folder=tmp_path)
    assert (found["tokens"], pixels(tmp_path / found["output"])) == base
    assert found["cloud_decided"] == T


@pytest.mark.parametrize("how", [["--exact"], ["--budget", "1"], ["--budget", "1", "--optimistic"]])
def test_rows_side_by_side_are_the_clouds_own_picture(
    bundle: Path, cloud: str, tmp_path: Path, how: list[str]
) -> None:
    alone = drawn_alone(bundle, tmp_path, "--wavefront", "2")
    options: list[str | Path] = ["--seed", "11", "--cloud", cloud, "--model", bundle, *how]
    found = report(PROMPT, *options, "--wavefront", "2", folder=tmp_path)
    assert (found["tokens"], found["wavefront"]) == (alone["tokens"], alone["wavefront"])


def test_an_optimistic_edge_looks_at_kept_tokens(bundle: Path, cloud: str, tmp_path: Path) -> None:
    """By default by so much, at 0, but not at infinity: then they are those of `blocking`."""
    options: list[str | Path] = [PROMPT, "--seed", "4", "--model", bundle, "--cloud", cloud]
    options += ["--router", "never", "--features", "none"]
    found = {}
    usual = f"{DEFAULT_MAX_GAP:g}"
    for gap in ("", usual, "0", "inf"):
        given = ["--max-gap", gap] if gap else []
        found[gap] = report(*options, "--optimistic", *given, folder=tmp_path)["tokens"]
    assert found[""] == found[usual]
    assert found["inf"] == report(*options, folder=tmp_path)["tokens"] != found["0"]


def test_a_risk_is_kept_from_picture_to_picture(bundle: Path, cloud: str, tmp_path: Path) -> None:
    state, folder = tmp_path / "risk.json", tmp_path
    given = ["--model", str(bundle), "--cloud", cloud, "--optimistic", "--max-gap", "1", "--json"]
    given += ["--max-risk", "0.1", "--risk-file", str(state)]
    rank, total = 1 - DEFAULT_BUDGET, 0.0
    for seed in range(4):
        done = edge(PROMPT, *given, "--seed", str(seed), folder=folder, CIAR_BUDGET="0.5")
        assert done.returncode == 0, done.stderr
        report, known = json.loads(done.stdout), json.loads(state.read_text())
        assert (report["risk_file"], report["budget"]) == (str(state), None)
        loss = report["loss"] if report["origins"]["kept"] or report["loss"] else 0.0
        rank, total = min(1.0, rank + STEP_SIZE * (0.1 - loss)), total + loss
        assert (known["rank"], known["lost"]) == pytest.approx((rank, total))
        assert known["num_images"] == seed + 1
    state.write_text(state.read_text().replace("0.1,", "0.2,"))
    done = edge(PROMPT, *given, folder=folder)
    assert done.returncode == 2 and "it keeps the threshold for risk 0.2, not 0.1" in done.stderr


def test_the_cloud_can_make_the_features(bundle: Path, cloud: str, tmp_path: Path) -> None:
    """One that listens, and the embedded one: the same picture from fewer bytes."""
    options: list[str | Path] = [PROMPT, "--seed", "4", "--model", bundle, "--budget", "0.3"]
    sent = report(*options, "--cloud", cloud, "--feature-dtype", "fp32", folder=tmp_path)
    for where in ({"CIAR_CLOUD": cloud}, {}):
        made = report(*options, folder=tmp_path, CIAR_FEATURES="recompute", **where)
        assert made["tokens"] == sent["tokens"]
        assert made["uplink_bytes"] < sent["uplink_bytes"]


def test_no_budget_and_no_cloud(bundle: Path, cloud: str, tmp_path: Path) -> None:
    """Budget 0 calls for the prefix alone; offline calls for nothing. Settings of the budget and
    the cloud in the environment do not stand in the way of --offline.
    """
    options: list[str | Path] = [PROMPT, "--seed", "4", "--model", bundle]
    env = {"CIAR_CLOUD": cloud, "CIAR_BUDGET": "0"}
    none = report(*options, "--prefix-rate", "0.25", folder=tmp_path, **env)
    assert none["cloud_forwards"] == none["prefix_tokens"] == 4
    assert none["round_trips"] == 0
    offline = report(*options, "--offline", folder=tmp_path, **env)
    assert offline["mode"] == "offline"
    assert offline["cloud_forwards"] == offline["uplink_bytes"] == offline["prefix_tokens"] == 0
    assert offline["origins"]["kept"] == T


def test_the_same_seed_draws_the_same(bundle: Path, cloud: str, tmp_path: Path) -> None:
    """A random seed is printed; drawn with it again, over fp16, a quiet run makes the same file."""
    options: list[str | Path] = [PROMPT, "--cloud", cloud, "--model", bundle, "--exact"]
    first = edge(*options, "-o", "first.png", folder=tmp_path)
    assert (first.returncode, first.stdout) == (0, "first.png\n")
    seed = re.search(r"^seed (\d+),", first.stderr, re.MULTILINE)
    assert seed
    quiet = [*options, "-q", "--seed", seed[1], "--feature-dtype", "fp16", "-o", "again.png"]
    again = edge(*quiet, folder=tmp_path)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert pixels(tmp_path / "first.png") == pixels(tmp_path / "again.png")


def test_unknown_words_are_said(bundle: Path, cloud: str, tmp_path: Path) -> None:
    options: list[str | Path] = ["--cloud", cloud, "--model", bundle, "--quiet", "--json"]
    done = edge("a dog 犬 on the beach", *options, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    (warning,) = json.loads(done.stdout)["warnings"]
    assert warning == "unknown words, drawn without them: '犬'"
    assert done.stderr == f"ciar-edge: warning: {warning}\n"


# ------------------------------------------------------------------------------ errors


def refused(
    code: int, pattern: str, *arguments: str | Path, folder: Path, num_files: int = 0
) -> None:
    done = edge(*arguments, folder=folder)
    assert done.returncode == code, done.stderr
    assert re.search(pattern, done.stderr, re.DOTALL), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert len(list(folder.rglob("*.png"))) == num_files


@pytest.mark.parametrize(
    ("prompt", "pattern"),
    [
        ("", "prompt: '': say what to draw"),
        ("  ", "prompt: '  ': say what to draw"),
        ("x" * 10_000, "prompt: '?10000 characters'?: give at most 1000"),
    ],
)
def test_bad_prompts(bundle: Path, cloud: str, tmp_path: Path, prompt: str, pattern: str) -> None:
    refused(2, pattern, prompt, "--cloud", cloud, "--model", bundle, folder=tmp_path)


def test_bad_prompts_offline(bundle: Path, tmp_path: Path) -> None:
    pattern = "prompt: '10000 characters': give at most 1000"
    refused(2, pattern, "x" * 10_000, "--offline", "--model", bundle, folder=tmp_path)


def test_a_wrong_host(bundle: Path, tmp_path: Path) -> None:
    options: list[str | Path] = ["--cloud", "127.0.0.1:1", "--model", bundle]
    options += ["--metrics-file", tmp_path / "edge.prom"]
    refused(3, "no cloud at 127.0.0.1:1.*ciar-cloud serve", PROMPT, *options, folder=tmp_path)
    page = (tmp_path / "edge.prom").read_text()
    assert 'ciar_edge_errors_total{reason="CloudUnavailable"} 1.0' in page
    assert "ciar_edge_images_total 0.0" in page


def test_a_mismatched_pair(cloud: str, tmp_path: Path) -> None:
    other = write_bundle(tmp_path / "other", seed=1)
    pattern = f"edge model was made for {fingerprint(other / 'cloud')}"
    refused(4, pattern, PROMPT, "--cloud", cloud, "--model", other, folder=tmp_path)


@pytest.mark.parametrize("part", ["edge", "vq", "cloud"])
def test_truncated_weights(bundle: Path, tmp_path: Path, part: str) -> None:
    """Those of the cloud are found by the embedded cloud, whose last words are passed on."""
    broken = copytree(bundle, tmp_path / "broken")
    weights = broken / part / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    pattern = f"{part}/model.safetensors.*(damaged|truncated)"
    refused(5, pattern, PROMPT, "--model", broken, folder=tmp_path)


def test_offline_needs_the_text_encoder(bundle: Path, tmp_path: Path) -> None:
    copy = copytree(bundle, tmp_path / "copy")
    rmtree(copy / "text")
    refused(5, "text/.*--cloud", PROMPT, "--offline", "--model", copy, folder=tmp_path)


def test_a_full_disk(bundle: Path, tmp_path: Path) -> None:
    options: list[str | Path] = ["--offline", "--model", bundle, "-o", "disk/dog.png"]
    with small_disk(tmp_path / "disk") as disk:
        (disk / "filling").write_bytes(bytes(16 * 1024))
        refused(6, "the disk is full", PROMPT, *options, folder=tmp_path)
        assert os.listdir(disk) == ["filling"]


def draw_here(bundle: Path, *options: str | Path) -> tuple[int, str]:
    """`ciar-edge generate --offline` in this process: its exit code and what it says."""
    arguments = ["generate", PROMPT, "--offline", "--model", *map(str, (bundle, *options))]
    done = CliRunner().invoke(app, arguments, env={"NO_COLOR": "1"})
    return done.exit_code, done.output


def test_metrics_that_cannot_be_written_leave_the_picture(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture, sheet = tmp_path / "dog.png", tmp_path / "map.png"
    monkeypatch.setattr(drawing, "num_cores", lambda: 1)  # the threads that it leaves to torch
    write, pages = EdgeMetrics.write, list[Path]()

    def write_once(metrics: EdgeMetrics, path: Path) -> None:
        pages.append(path)
        if len(pages) > 1:
            raise OutputError("metrics_file: the disk is full")
        write(metrics, path)

    monkeypatch.setattr(EdgeMetrics, "write", write_once)
    options = ("-o", picture, "--map", sheet, "--metrics-file", tmp_path / "edge.prom")
    code, said = draw_here(bundle, *options)
    assert (code, len(pages)) == (OutputError.exit_code, 2), said
    assert "the disk is full" in said and str(picture) in said
    assert picture.exists() and sheet.exists()


def test_a_risk_file_that_takes_nothing_leaves_the_picture(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was made another's meanwhile."""
    picture, state = tmp_path / "dog.png", tmp_path / "risk.json"
    risk_file = RiskFile(state, 0.1, draft="a", router="random", quantiles=range(101))
    draw = drawing.draw

    async def drawn(*arguments: Any, **options: Any) -> drawing.Drawn:
        found = await draw(*arguments, **options)
        state.write_text(state.read_text().replace("0.1", "0.2"))
        result = dataclasses.replace(found.result, gaps=(0.0,) * T)
        return dataclasses.replace(found, risk_file=risk_file, result=result)

    monkeypatch.setattr(drawing, "num_cores", lambda: 1)
    monkeypatch.setattr(drawing, "draw", drawn)
    code, said = draw_here(bundle, "-o", picture)
    assert code == InvalidInput.exit_code, said
    assert "it keeps the threshold for risk 0.2, not 0.1" in said and str(picture) in said
    assert picture.exists()


def test_a_page_of_metrics_may_be_a_link(tmp_path: Path) -> None:
    page, link = tmp_path / "page.prom", tmp_path / "link.prom"
    link.symlink_to(page)
    EdgeMetrics().write(link)
    assert link.is_symlink() and "ciar_edge_images_total 0.0" in page.read_text()
    with pytest.raises(OutputError, match="metrics_file: .*: cannot be written"):
        EdgeMetrics().write(page / "x.prom")


@pytest.mark.parametrize(
    ("arguments", "code", "pattern"),
    [
        (["--router", "best"], 2, "router: 'best': give one of interval,"),
        (["--budget", "1.5"], 2, "budget: 1.5: give a share"),
        (["--budget", "much"], 2, "--budget.*'much': give a number"),
        (["--seed", "1.5"], 2, "--seed.*'1.5': give a whole"),
        (["--seed", "-1"], 2, "seed: -1: give an integer"),
        (["--deadline", "0"], 2, "deadline_seconds: 0.0: give"),
        (["--temperature", "-1"], 2, "temperature: -1.0: give"),
        (["--prefix-rate", "2"], 2, "prefix_rate: 2.0: give"),
        (["--feature-dtype", "fp8"], 2, "feature_dtype: 'fp8': give"),
        (["--features", "half"], 2, "features: 'half': give one of send, none, recompute"),
        (["--exact", "--features", "none"], 2, "features: 'none': leave it out: --exact"),
        (["--offline", "--features", "send"], 2, "features: 'send': leave it out: --offline"),
        (
            ["--features", "none", "--feature-dtype", "int8"],
            2,
            "leave it out: only --features send",
        ),
        (["--cloud", "nowhere"], 2, "cloud: 'nowhere': give HOST:PORT"),
        (["-o", "dog.jpg"], 2, r"output: 'dog.jpg': give .*\.png"),
        (["-o", "dog.png", "--map", "dog.png"], 2, "map: 'dog.png': give another file"),
        (["--log-level", "loud"], 2, "log_level: 'loud': give one of"),
        (["--traces", "127.0.0.1:4317"], 2, "traces: '127.0.0.1:4317': give a URL"),
        (["--metrics-file", "nowhere/x.prom"], 6, "metrics_file: 'nowhere/x.prom': cannot be"),
        (["--map", "dog.bmp"], 2, r"map: 'dog.bmp': give .*\.png"),
        (["-o", "nowhere/dog.png"], 6, "output: .*no such folder"),
        (["--threshold", "1", "--budget", "0.1"], 2, "--budget or --threshold, not both"),
        (["--threshold", "1", "--max-risk", "0.1"], 2, "--max-risk or --threshold, not both"),
        (["--max-risk", "1.5"], 2, "max_risk: 1.5: give a share above 0"),
        (["--exact", "--max-risk", "0.1"], 2, "max-risk: 0.1: leave it out: --exact verifies"),
        (["--offline", "--max-risk", "0.1"], 2, "max-risk: 0.1: leave it out: --offline asks"),
        (["--max-risk", "0.1", "--risk-file", "r.json"], 2, "leave it out: only --optimistic"),
        (["--optimistic", "--risk-file", "r.json"], 2, "risk_file: 'r.json': say which risk"),
        (
            ["--optimistic", *RISK, "r.json", "--max-gap", "inf"],
            2,
            "risk_file: 'r.json': leave it out: only optimistic decoding with a max_gap",
        ),
        (["--optimistic", *RISK, "r.json", "--budget", "0.2"], 2, "budget: 0.2: leave it out"),
        (["--optimistic", *RISK, "nowhere/r.json"], 6, "risk_file: nowhere/r.json: No such file"),
        (["--optimistic", *RISK, __file__], 5, "no file of --risk-file"),
        (["--offline", "--exact"], 2, "--exact or --offline, not both"),
        (["--optimistic", "--exact"], 2, "optimistic: True: leave it out"),
        (["--exact", "--budget", "0.5"], 2, "budget: 0.5: leave it out: --exact verifies"),
        (["--router", "never", "--threshold", "1"], 2, "threshold: 1.0: leave it out"),
        (["--max-gap", "2"], 2, "max-gap: 2.0: leave it out: only --optimistic"),
        (["--optimistic", "--max-gap", "-1"], 2, "max_gap: -1.0: give a number of nats"),
        (["--exact", "--epsilon", "1"], 2, "epsilon: 1.0: leave it out: --exact"),
        (["--epsilon", "inf"], 2, "epsilon: inf: give a number of nats"),
        (["--wavefront", "-1"], 2, "wavefront: -1: give a count"),
        (["--wavefront", "a few"], 2, "'a few': give a"),
        (["--wavefront", "17", "--offline"], 2, "wavefront: 17: give 1 to 15 tokens"),
        (["--wavefront", "4", "--features", "recompute"], 2, "features: 'recompute': give send"),
        (["--wavefront", "4", "--max-risk", "0.05"], 2, "wavefront: 4: give 0: certificates"),
        (["--features", "none", "--max-risk", "0.05"], 2, "features: 'none': give send or recom"),
        (["--epsilon", "0.5", "--max-risk", "0.05"], 2, "epsilon: 0.5: give 0: certificates are"),
    ],
)
def test_usage_errors(arguments: list[str], code: int, pattern: str) -> None:
    """Found before anything is started: in this process, with nobody at the address."""
    if "--cloud" not in arguments:
        arguments = [*arguments, *([] if "--offline" in arguments else ["--cloud", "127.0.0.1:1"])]
    done = CliRunner().invoke(app, ["generate", PROMPT, *arguments], env={"NO_COLOR": "1"})
    assert done.exit_code == code, done.output
    assert re.search(pattern, done.stderr, re.DOTALL), done.stderr


def test_the_environment_gives_way_to_flags() -> None:
    params = {
        "exact": False,
        "offline": False,
        "router": None,
        "budget": 0.5,
        "threshold": 1.0,
        "max_risk": 0.1,
        "risk_file": None,
        "cloud": "a:1",
        "deadline": 10.0,
        "prefix_rate": 0.06,
        "features": "send",
        "optimistic": False,
        "epsilon": None,
        "max_gap": None,
        **dict.fromkeys(ACCESS),
    }
    assert settle(params, {"threshold"}) == params | {"budget": None, "max_risk": None}
    assert settle(params, {"budget"}) == params | {"threshold": None}
    assert settle(params, {"max_risk"}) == params | {"threshold": None}
    none = {"budget": None, "threshold": None, "max_risk": None}
    assert settle(params | {"exact": True}, {"exact"}) == params | none | {"exact": True}
    offline = settle(params | {"offline": True}, {"offline"})
    assert offline == params | none | {"offline": True, "cloud": None}
    late = params | none | {"max_gap": 2.0}
    assert settle(late, set()) == params | none, "of the environment, and there is no --optimistic"
    assert settle(late | {"optimistic": True}, set()) == late | {"optimistic": True}
    risk = {"optimistic": True, "threshold": None, "risk_file": Path("risk.json")}
    assert settle(params | risk, {"max_risk"}) == params | risk | {"budget": None}
    for flags, changes in (({"budget"}, {}), ({"threshold"}, {"budget": None, "max_risk": None})):
        found = settle(params | risk | {"threshold": 1.0}, flags)
        assert found["risk_file"] is None and found | changes == found
    assert settle(params | risk | {"optimistic": False}, {"max_risk"})["risk_file"] is None
    with pytest.raises(InvalidInput, match="cloud: 'a:1': leave it out: --offline"):
        settle(params | {"offline": True}, {"offline", "cloud"})


def test_default_names_are_plain() -> None:
    assert default_name("A dog, on a beach!", 0) == "a-dog-on-a-beach-0.png"
    assert default_name("Çà et là", 7) == "ca-et-la-7.png"
    assert default_name("犬", 2) == "picture-2.png"
    assert len(default_name("word " * 300, 2**64 - 1)) < 100


def test_help_names_every_router_and_waits_for_no_torch() -> None:
    done = subprocess.run(
        command("ciar_edge.cli", "generate", "--help"),
        env=ENVIRONMENT | {"COLUMNS": "200", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    listed = done.stdout.partition("--router")[2].partition("--exact")[0]
    found = set(re.findall(r"[a-z0-9-]+", listed))
    assert set(ROUTERS) <= found
    probe = "import sys, ciar_edge.cli; print('torch' in sys.modules)"
    bare = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert bare.stdout == "False\n"


def test_the_version() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout == f"ciar-edge {__version__}\n"


# ------------------------------------------------------------------------------ ending early

linux_only = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")


def children(pid: int) -> list[int]:
    try:
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def is_cloud(pid: int) -> bool:
    """Whether the child has become a cloud: until then it is still a copy of the edge."""
    try:
        return "ciar_cloud" in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False


def has_ended(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


@linux_only
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_the_embedded_cloud_ends_with_the_edge(
    bundle: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """Ended while it waits for an embedded cloud that hangs; a killed edge takes it along, too."""
    options: list[str | Path] = [PROMPT, "--model", bundle, "--deadline", "60"]
    cloud_pid = 0
    (tmp_path / "cwd").mkdir()
    process = subprocess.Popen(
        command("ciar_edge.cli", "generate", *options),
        cwd=tmp_path / "cwd",
        env=ENVIRONMENT | {"TMPDIR": str(tmp_path)},  # a killed edge leaves a folder there
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: any(map(is_cloud, children(process.pid))))
        (cloud_pid,) = children(process.pid)
        if number != signal.SIGKILL:  # a stopped process notices nothing
            os.kill(cloud_pid, signal.SIGSTOP)
        wait_until(lambda: is_waiting(process.pid))
        process.send_signal(number)
        assert process.wait(timeout=60) == code
        wait_until(lambda: has_ended(cloud_pid), seconds=30)
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
        if number != signal.SIGKILL:
            assert list(tmp_path.glob("ciar-*")) == []
        assert os.listdir(tmp_path / "cwd") == []
    finally:
        process.kill()
        if cloud_pid and not has_ended(cloud_pid):
            os.kill(cloud_pid, signal.SIGKILL)
        process.communicate()


def is_waiting(pid: int) -> bool:
    """Whether the edge has a loop to wait on: an interrupt during imports can get lost in C."""
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            if os.readlink(fd) == "anon_inode:[eventpoll]":
                return True
    return False
