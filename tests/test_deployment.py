"""The manifests of docker/: Kubernetes' against its own schemas, and what they must agree on."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from shutil import which
from typing import Any

import pytest

from ciar_cloud.config import ServeConfig

kubernetes_validate = pytest.importorskip(
    "kubernetes_validate", reason="needs schemas: pip install kubernetes-validate"
)
import yaml  # noqa: E402  (comes with kubernetes-validate)

DOCKER = Path(__file__).parents[1] / "docker"
MANIFESTS = sorted((DOCKER / "kubernetes").glob("*.yaml"))
SERVICE = "ciar.v1.Collaboration"


def documents() -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in MANIFESTS:
        for document in yaml.safe_load_all(path.read_text()):
            yield path, document


def pods(name: str) -> dict[str, Any]:
    """What a Deployment says of its pods."""
    (found,) = (
        document["spec"]["template"]["spec"]
        for _, document in documents()
        if document["kind"] == "Deployment" and document["metadata"]["name"] == name
    )
    return dict(found)


def test_every_manifest_fits_its_schema() -> None:
    kinds = set()
    for path, document in documents():
        if document["kind"] != "Kustomization":  # kustomize's own, no resource
            kubernetes_validate.validate(document, "1.34", strict=True)
            kinds.add((path.name, document["kind"]))
    assert ("cloud.yaml", "PodDisruptionBudget") in kinds
    assert ("scaling.yaml", "HorizontalPodAutoscaler") in kinds


def test_a_manifest_with_a_slip_is_refused() -> None:
    deployment = next(d for _, d in documents() if d["kind"] == "Deployment")
    deployment["spec"]["replica"] = 3
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, "1.34", strict=True)


def test_kustomization_names_every_manifest() -> None:
    (kustomization,) = (d for _, d in documents() if d["kind"] == "Kustomization")
    assert sorted(kustomization["resources"]) == [
        path.name for path in MANIFESTS if path.name != "kustomization.yaml"
    ]
    for generator in kustomization["configMapGenerator"]:
        for file in generator["files"]:
            assert (DOCKER / "kubernetes" / file.partition("=")[2]).exists()


def test_ports_and_probes_are_the_clouds() -> None:
    defaults, cloud = ServeConfig(), pods("cloud")["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in cloud["ports"]}
    assert ports["grpc"] == defaults.port and ports["metrics"] == defaults.metrics_port
    image = (DOCKER / "Dockerfile").read_text()
    assert f"CIAR_CLOUD_HEALTH_PORT={ports['health']}" in image
    assert cloud["readinessProbe"]["grpc"] == {"port": ports["health"], "service": SERVICE}
    assert cloud["livenessProbe"]["grpc"] == {"port": ports["health"]}
    assert f"service_name: {SERVICE}" in (DOCKER / "envoy/envoy.yaml").read_text()


def test_graces_are_longer_than_drains() -> None:
    cloud = pods("cloud")
    environment = {e["name"]: e["value"] for e in cloud["containers"][0]["env"]}
    drain = int(environment["CIAR_CLOUD_DRAIN_SECONDS"])
    assert cloud["terminationGracePeriodSeconds"] >= drain + 10
    compose = (DOCKER / "compose.yaml").read_text()
    found = re.search(r"stop_grace_period: (\d+)s", compose)
    drained = re.search(r'CIAR_CLOUD_DRAIN_SECONDS: "(\d+)"', compose)
    assert found and drained and int(found[1]) >= int(drained[1]) + 10


@pytest.mark.skipif(not which("promtool"), reason="needs promtool (Debian: prometheus)")
def test_prometheus_reads_its_configuration() -> None:
    config = str(DOCKER / "prometheus/prometheus.yml")
    subprocess.run(["promtool", "check", "config", config], check=True, capture_output=True)
