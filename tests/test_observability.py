"""Metrics, rules and dashboards, in a real Prometheus that scrapes a real cloud and a real edge."""

import asyncio
import json
import math
import os
import re
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from typing import Any
from urllib.parse import urlencode
from urllib.request import ProxyHandler, build_opener

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ciar.errors import PairMismatch
from ciar.metrics import read_page, serve_metrics, total
from ciar.router import make_router
from ciar.types import ImageRequest, ModelInfo, SamplingParams
from ciar.verifier import Session, Verifier
from ciar_bench.cloud_process import CloudProcess, cloud_process, free_port
from ciar_bench.soak import process_tree
from ciar_cloud.config import ServeConfig
from ciar_edge.config import DecodeConfig
from ciar_edge.connection import RemoteConfig
from ciar_edge.loop import generate
from ciar_edge.metrics import EdgeMetrics
from ciar_edge.models import EdgeModel, load_draft_model
from ciar_edge.remote import RemoteVerifier
from tests.tiny import PROMPT

yaml = pytest.importorskip("yaml", reason="reads YAML: pip install pyyaml")

Run = Callable[[Awaitable[Any]], Any]
ROOT = Path(__file__).parents[1]
DOCKER, DOCUMENT = ROOT / "docker", ROOT / "docs/observability.md"
CONFIG = DOCKER / "prometheus/prometheus.yml"
RULES = sorted((DOCKER / "prometheus/rules").glob("*.yml"))
RULE_TESTS = DOCKER / "prometheus/rules/tests"
DASHBOARDS = sorted((DOCKER / "grafana/dashboards").glob("*.json"))
PROVISIONING = DOCKER / "grafana/provisioning"
CONTRACT = Path(__file__).parent / "data/metrics.txt"

needs_promtool = pytest.mark.skipif(
    which("promtool") is None, reason="needs promtool: install Debian's package prometheus"
)
WINDOW = "10s"  # for $__rate_interval
UNITS = {"none", "short", "percentunit", "s", "bytes", "Bps", "cps", "cpm", "reqps"}
# What does not happen while the images below are drawn.
STAYS_ZERO = {"Lost clouds", "Resumes", "Resumes an image", "Failed images"}


def promtool(*arguments: str | Path, page: str = "") -> subprocess.CompletedProcess[str]:
    command = ["promtool", *map(str, arguments)]
    return subprocess.run(command, input=page, capture_output=True, text=True, timeout=120)


def rules(kind: str) -> list[dict[str, Any]]:
    """All rules. kind: `alert` or `record`."""
    groups = [group for path in RULES for group in yaml.safe_load(path.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"] if kind in rule]


def panels(path: Path) -> list[dict[str, Any]]:
    """All but the headings."""
    found = json.loads(path.read_text())["panels"]
    return [panel for panel in found if panel["type"] != "row"]


def contract() -> dict[str, tuple[str, ...]]:
    """Kind and labels by name."""
    lines = (line.split() for line in CONTRACT.read_text().splitlines())
    return {name: (kind, *labels) for name, kind, *labels in lines}


# ------------------------------------------------------------------------------ something to see


class Prometheus:
    """The binary, with the repository's configuration but for whom it scrapes and how often."""

    def __init__(self, folder: Path, **targets: str) -> None:
        """targets: address by job, with `_` for `-`."""
        self.port = free_port()
        config = yaml.safe_load(CONFIG.read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(CONFIG.parent / pattern) for pattern in config["rule_files"]]
        config["scrape_configs"] = [
            {
                "job_name": job["job_name"],
                "static_configs": [{"targets": [targets[job["job_name"].replace("-", "_")]]}],
            }
            for job in config["scrape_configs"]
        ]
        file = folder / "prometheus.yml"
        file.write_text(yaml.safe_dump(config))
        command = ["prometheus", f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}"]
        command += [f"--web.listen-address=127.0.0.1:{self.port}", "--log.level=error"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def ask(self, path: str, **parameters: Any) -> Any:
        """`data` of an answer of the HTTP API."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urlencode(parameters, doseq=True)}"
        with build_opener(ProxyHandler({})).open(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def values(self, query: str) -> list[float]:
        return [float(one["value"][1]) for one in self.ask("query", query=query)["result"]]

    async def wait_for(self, query: str) -> None:
        """Until a query has an answer."""
        for _ in range(600):
            try:
                if await asyncio.to_thread(self.values, query):
                    return
            except OSError:  # it has not started yet
                assert self._process.poll() is None, "prometheus ended"
            await asyncio.sleep(0.1)
        raise AssertionError(f"no answer to {query} after a minute")

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A cloud and an edge that drew images, and who watched: None where there is no Prometheus."""

    cloud_page: str
    edge_page: str
    cloud: str  # as Prometheus calls it
    prometheus: Prometheus | None
    started: float


@pytest.fixture(scope="module")
def scene(bundle: Path, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    port = free_port()
    options = ["--engine-process", "--metrics-port", str(port), "--slots", "2"]
    options += ["--min-idle-seconds", "0", "--slow-step-seconds", "0.000001"]
    metrics = EdgeMetrics()
    with ExitStack() as stack:
        cloud = stack.enter_context(cloud_process(bundle, core=None, options=options))
        edge_port, stop = serve_metrics(metrics, host="127.0.0.1", port=0)
        stack.callback(stop)
        prometheus = None
        if which("prometheus"):
            prometheus = Prometheus(
                tmp_path_factory.mktemp("prometheus"),
                ciar_cloud=f"127.0.0.1:{port}",
                ciar_edge=f"127.0.0.1:{edge_port}",
            )
            stack.callback(prometheus.stop)
        started = time.time()
        run(draw(cloud, load_draft_model(bundle / "edge"), metrics, prometheus))
        pages = [fetch(f"http://127.0.0.1:{p}/metrics") for p in (port, edge_port)]
        yield Scene(
            cloud_page=pages[0],
            edge_page=pages[1],
            cloud=f"127.0.0.1:{port}",
            prometheus=prometheus,
            started=started,
        )


def fetch(url: str) -> str:
    with build_opener(ProxyHandler({})).open(url, timeout=10) as answer:
        page: str = answer.read().decode()
        return page


@dataclass
class Lingering:
    """A cloud whose session Prometheus has seen before its image goes on."""

    inner: Verifier
    prometheus: Prometheus | None

    async def info(self) -> ModelInfo:
        return await self.inner.info()

    @asynccontextmanager
    async def open(self, request: ImageRequest) -> AsyncIterator[Session]:
        async with self.inner.open(request) as session:
            if self.prometheus:
                await self.prometheus.wait_for("ciar_cloud_slots_in_use > 0")
            yield session


async def draw(
    cloud: CloudProcess, edge: EdgeModel, metrics: EdgeMetrics, prometheus: Prometheus | None
) -> None:
    """Images of four edges on two slots, two that are refused, and an engine that is killed."""
    if prometheus:  # which has seen all counters at zero then
        await prometheus.wait_for("ciar_cloud_images_total == 0 and ciar_cloud_ready == 1")
        await prometheus.wait_for("ciar_edge_images_total == 0")
    config = RemoteConfig(deadline_seconds=60, resume_seconds=60)

    async def image(verifier: Verifier, seed: int) -> None:
        await generate(
            PROMPT,
            model=edge,
            router=make_router(edge.router, budget=0.4, calibration=edge.calibration),
            verifier=verifier,
            config=DecodeConfig(prefix_rate=0.1),
            sampling=SamplingParams(seed=seed, cfg_scale=2.0),
            observer=metrics,
        )

    async def images(number: int, count: int) -> None:
        async with RemoteVerifier(cloud.address, config=config) as verifier:
            for seed in range(count):
                await image(verifier, 100 * number + seed)
                await asyncio.sleep(0.2 if prometheus else 0)

    async def refused() -> None:
        sampling = SamplingParams(seed=1, cfg_scale=2.0)
        wrong = ImageRequest(prompt=PROMPT, sampling=sampling, num_prefix=2, fingerprint="0" * 16)
        async with RemoteVerifier(cloud.address, config=config) as verifier:
            try:
                async with verifier.open(wrong):
                    raise AssertionError("it was opened")
            except PairMismatch as error:
                metrics.image_failed(error)

    async def all_edges(count: int) -> None:
        await asyncio.gather(*(images(number, count) for number in range(4)))

    await refused()
    async with RemoteVerifier(cloud.address, config=config) as verifier:
        await image(Lingering(verifier, prometheus), 1000)
    await all_edges(12)
    await refused()
    os.kill(list(process_tree(cloud.pid))[1], signal.SIGKILL)
    await all_edges(12)
    if prometheus:
        await prometheus.wait_for(f"ciar_edge_images_total == {1 + 2 * 4 * 12}")
        await prometheus.wait_for(f"ciar_cloud_images_total == {1 + 2 * 4 * 12}")
        await prometheus.wait_for('ALERTS{alertname="CiarCloudEngineDied"}')
        await asyncio.sleep(2)  # all rules see the last images


@pytest.fixture
def prometheus(scene: Scene) -> Prometheus:
    if scene.prometheus is None:
        pytest.skip("needs prometheus: install Debian's package of that name")
    return scene.prometheus


# ------------------------------------------------------------------------------ metrics


@needs_promtool
def test_names_and_texts_are_as_prometheus_wants_them(scene: Scene) -> None:
    for page in (scene.cloud_page, scene.edge_page):
        done = promtool("check", "metrics", page=page)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    bad = "# HELP a_ms A time\n# TYPE a_ms counter\na_ms 1\n"
    assert promtool("check", "metrics", page=bad).returncode != 0


def test_metrics_keep_their_names_and_labels(scene: Scene) -> None:
    """Others build on them. One less is a breaking change; a new one gets a line in the list."""
    found: dict[str, tuple[str, ...]] = {}
    for page in (scene.cloud_page, scene.edge_page):
        for family in text_string_to_metric_families(page):
            labels = {label for sample in family.samples for label in sample.labels} - {"le"}
            if family.name.startswith("ciar_") and not family.name.endswith("_created"):
                found[family.name] = (family.type, *sorted(labels))
    assert found == contract()


def test_the_document_and_the_files_name_metrics_that_exist() -> None:
    known = contract()
    text = DOCUMENT.read_text()
    for name, (kind, *_) in known.items():
        full = f"{name}_total" if kind == "counter" else name
        assert f"`{full}`" in text or f"`{full}{{" in text, full
    for path in [*RULES, *DASHBOARDS]:
        for full in re.findall(r"\bciar_(?:cloud|edge)_\w+", path.read_text()):
            name = re.sub("_(total|bucket|count|sum)$", "", full)
            assert name in known, f"{path.name}: {full}"
            is_whole = full.endswith("_total") == (known[name][0] == "counter")
            assert is_whole, f"{path.name}: {full}"


# ------------------------------------------------------------------------------ rules


@needs_promtool
def test_promtool_accepts_configuration_and_rules() -> None:
    for done in (promtool("check", "config", CONFIG), promtool("check", "rules", *RULES)):
        assert done.returncode == 0, done.stderr
        assert "SUCCESS" in done.stdout


@needs_promtool
@pytest.mark.parametrize("path", sorted(RULE_TESTS.glob("*.yml")), ids=lambda path: path.stem)
def test_rules_do_what_their_tests_say(path: Path, tmp_path: Path) -> None:
    done = promtool("test", "rules", path)
    assert done.returncode == 0, done.stderr + done.stdout
    text = path.read_text().replace("rule_files: [../", f"rule_files: [{path.parents[1]}/")
    text = text.replace(", ../", f", {path.parents[1]}/").replace("value: 1 }", "value: 2 }", 1)
    (tmp_path / "wrong.yml").write_text(text)
    assert promtool("test", "rules", tmp_path / "wrong.yml").returncode != 0


def test_every_rule_has_a_test_and_every_alert_a_runbook() -> None:
    recording, alerting = ((RULE_TESTS / f"{n}.yml").read_text() for n in ("recording", "alerts"))
    for rule in rules("record"):
        assert re.search(rf"{rule['record']}\b", recording), rule["record"]
    headings = re.findall(r"^### (\w+)$", DOCUMENT.read_text(), re.MULTILINE)
    alerts = [rule["alert"] for rule in rules("alert")]
    assert [name for name in headings if name.startswith("Ciar")] == alerts
    for rule in rules("alert"):
        assert f'alertname="{rule["alert"]}"' in alerting, rule["alert"]
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        notes = rule["annotations"]
        assert notes["summary"] and notes["description"]
        assert notes["runbook_url"] == f"docs/observability.md#{rule['alert'].lower()}"


def test_prometheus_scrapes_what_compose_starts() -> None:
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    clouds, edges = yaml.safe_load(CONFIG.read_text())["scrape_configs"]
    (service,) = clouds["dns_sd_configs"]
    assert service["port"] == ServeConfig().metrics_port
    assert set(service["names"]) <= set(compose["services"])
    (files,) = edges["file_sd_configs"]
    assert all((CONFIG.parent / name).exists() for name in files["files"])
    mounts = compose["services"]["prometheus"]["volumes"]
    assert "./prometheus:/etc/prometheus:ro" in mounts


# ------------------------------------------------------------------------------ dashboards


def test_grafana_is_given_its_prometheus_and_its_dashboards() -> None:
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    grafana = compose["services"]["grafana"]
    mounts = dict(mount.split(":")[:2] for mount in grafana["volumes"])
    (path,) = (PROVISIONING / "datasources").glob("*.yaml")
    (source,) = yaml.safe_load(path.read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090" and "prometheus" in compose["services"]
    interval = yaml.safe_load(CONFIG.read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == interval
    (path,) = (PROVISIONING / "dashboards").glob("*.yaml")
    (provider,) = yaml.safe_load(path.read_text())["providers"]
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]
    assert mounts["./grafana/provisioning"] == "/etc/grafana/provisioning"
    for file in DASHBOARDS:
        dashboard = json.loads(file.read_text())
        assert dashboard["uid"] == file.stem
        variables = {v["name"]: v for v in dashboard["templating"]["list"]}
        assert variables["datasource"]["current"]["value"] == source["uid"]


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_are_whole(path: Path) -> None:
    everything = json.loads(path.read_text())["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    cells: set[tuple[int, int]] = set()
    for panel in everything:
        x, y, w, h = (panel["gridPos"][key] for key in "xywh")
        own = {(a, b) for a in range(x, x + w) for b in range(y, y + h)}
        assert x + w <= 24 and not own & cells, panel["title"]
        cells |= own
    for panel in panels(path):
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        references = [target["refId"] for target in panel["targets"]]
        assert references == list("ABC"[: len(references)]), panel["title"]
        for target in panel["targets"]:
            chosen = re.findall(r"ciar_\w+(?:\{instance=~'\$instance')?", target["expr"])
            assert all(metric.endswith("$instance'") for metric in chosen), target["expr"]
            wide = r"\[(?:\$__rate_interval|\$__range)\]"
            ranges = re.findall(r"(?:rate|increase)\(", target["expr"])
            assert len(ranges) == len(re.findall(wide, target["expr"])), target["expr"]
            assert ("$__range]" in target["expr"]) <= target.get("instant", False)


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_every_panel_shows_data(path: Path, prometheus: Prometheus, scene: Scene) -> None:
    silent, zero = [], set()
    now = time.time()
    for panel in panels(path):
        for target in panel["targets"]:
            query = target["expr"].replace("$__rate_interval", WINDOW).replace("$instance", ".+")
            query = query.replace("$__range", f"{math.ceil(now - scene.started)}s")
            if target.get("instant"):
                results = prometheus.ask("query", query=query, time=now)["result"]
            else:
                results = prometheus.ask(
                    "query_range", query=query, start=scene.started, end=now, step=1
                )["result"]
            numbers = [
                float(value)
                for one in results
                for _, value in one.get("values", [one.get("value")])
                if math.isfinite(float(value))
            ]
            if not numbers:
                silent.append((panel["title"], query))
            elif not any(numbers):
                zero.add(panel["title"])
            for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
                assert all(one["metric"].get(label) for one in results), panel["title"]
    assert not silent
    assert zero <= STAYS_ZERO


def test_the_variables_of_dashboards_have_values(prometheus: Prometheus, scene: Scene) -> None:
    for path in DASHBOARDS:
        _, instance = json.loads(path.read_text())["templating"]["list"]
        parsed = re.fullmatch(r"label_values\((\w+), (\w+)\)", instance["query"]["query"])
        assert parsed
        values = prometheus.ask(f"label/{parsed[2]}/values", **{"match[]": parsed[1]})
        assert len(values) == 1
        assert (values == [scene.cloud]) == (path.stem == "ciar-cloud")


def test_every_rule_is_healthy_and_records(prometheus: Prometheus, scene: Scene) -> None:
    groups = prometheus.ask("rules")["groups"]
    found = [rule for group in groups for rule in group["rules"]]
    assert len(found) == len(rules("alert")) + len(rules("record"))
    assert {rule["health"] for rule in found} == {"ok"}
    for rule in rules("record"):
        assert prometheus.values(f"last_over_time({rule['record']}[5m])"), rule["record"]


def test_alerts_fire_for_what_happened(prometheus: Prometheus) -> None:
    firing = prometheus.ask("query", query='ALERTS{alertstate="firing"}')["result"]
    assert {one["metric"]["alertname"] for one in firing} == {
        "CiarCloudEngineDied",
        "CiarCloudSlowStep",  # every step is, by the option of this cloud
    }


def test_the_clouds_scrape_alone_says_what_edges_say(prometheus: Prometheus, scene: Scene) -> None:
    """The cloud-call rate: the same number from the cloud's page and from the edge's."""
    (by_cloud,) = prometheus.values("ciar:cloud_call_rate:ratio")
    (by_edge,) = prometheus.values("ciar:edge_call_rate:ratio")
    assert by_cloud == pytest.approx(by_edge, rel=1e-6)
    samples = read_page(f"http://{scene.cloud}/metrics")
    tokens = total(samples, "ciar_cloud_image_tokens_total")
    calls = total(samples, "ciar_cloud_image_calls_total")
    assert by_cloud == pytest.approx(calls / tokens, rel=0.02)
