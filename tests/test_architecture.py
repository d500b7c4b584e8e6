"""Who may know whom: the import arrows between packages, and where gRPC and Prometheus may be."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "ciar": ROOT / "shared/ciar",
    "ciar_edge": ROOT / "edge/ciar_edge",
    "ciar_cloud": ROOT / "cloud/ciar_cloud",
    "ciar_train": ROOT / "training/ciar_train",
    "ciar_bench": ROOT / "bench/ciar_bench",
}
MAY_IMPORT = {
    "ciar": {"ciar"},
    "ciar_edge": {"ciar_edge", "ciar"},
    "ciar_cloud": {"ciar_cloud", "ciar"},
    "ciar_train": {"ciar_train", "ciar"},
    "ciar_bench": set(PACKAGES),
}
# Modules that are gRPC or protobuf, or drag them in; and the files that may use them.
TRANSPORT_MODULES = (
    "grpc",
    "grpc_health",
    "grpc_reflection",
    "grpc_status",
    "google",
    "ciar.wire",
    "ciar.status",
    "ciar.v1",
)
TRANSPORT_FILES = {
    "remote.py",
    "remote_session.py",
    "servicer.py",
    "server.py",
    "interceptor.py",
    "credentials.py",
    "probe.py",
    "cli.py",
}
SHARED_TRANSPORT_FILES = {"wire.py", "status.py"}
GENERATED = PACKAGES["ciar"] / "v1"
HOMELESS_NAMES = {"utils", "common", "helpers", "base", "manager"}


def imported_modules(source: str, *, inside: str) -> Iterator[str]:
    """Dotted names of all that is imported anywhere in a file; `from a import b` gives `a.b`.

    inside: dotted name of the package the file lies in, where relative imports start.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = inside.split(".")[: len(inside.split(".")) - node.level + 1]
            origin = ".".join([*(parents if node.level else []), *filter(None, [node.module])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def is_within(module: str, parent: str) -> bool:
    return module == parent or module.startswith(f"{parent}.")


def may_use_transport(package: str, path: Path) -> bool:
    if package == "ciar":
        return path.name in SHARED_TRANSPORT_FILES or path.is_relative_to(GENERATED)
    return path.name in TRANSPORT_FILES


def violations(package: str, path: Path, source: str) -> list[str]:
    found = []
    inside = ".".join(path.parent.relative_to(PACKAGES[package].parent).parts)
    for module in imported_modules(source, inside=inside):
        top = module.partition(".")[0]
        if top in PACKAGES and top not in MAY_IMPORT[package]:
            found.append(f"{package} may not know {top}")
        is_transport = any(is_within(module, name) for name in TRANSPORT_MODULES)
        if is_transport and not may_use_transport(package, path):
            found.append(f"{module}: gRPC and protobuf stay in the transport files")
        if top == "prometheus_client" and path.name != "metrics.py":
            found.append(f"{module}: Prometheus stays in metrics.py")
    return found


def source_files() -> list[tuple[str, Path]]:
    return [(name, path) for name, root in PACKAGES.items() for path in sorted(root.rglob("*.py"))]


def test_every_package_is_walked() -> None:
    assert {name for name, _ in source_files()} == set(PACKAGES)


@pytest.mark.parametrize(
    ("package", "path"),
    [pytest.param(*item, id=str(item[1].relative_to(ROOT))) for item in source_files()],
)
def test_imports_follow_the_arrows(package: str, path: Path) -> None:
    assert violations(package, path, path.read_text()) == []


@pytest.mark.parametrize("path", [path for _, path in source_files()], ids=lambda path: path.stem)
def test_no_module_without_a_home(path: Path) -> None:
    assert not HOMELESS_NAMES & set(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize(
    ("package", "file", "source"),
    [
        ("ciar", "types.py", "import ciar_edge"),
        ("ciar_edge", "loop.py", "from ciar_cloud.engine import Engine"),
        ("ciar_cloud", "engine.py", "def f():\n    import ciar_edge.loop"),
        ("ciar_train", "draft.py", "from ciar_bench import quality"),
        ("ciar", "sampling.py", "from grpc import aio"),
        ("ciar", "remote.py", "import grpc"),
        ("ciar_edge", "loop.py", "from ciar import wire"),
        ("ciar", "verifier.py", "from . import wire"),
        ("ciar", "models/vq.py", "from ..v1.collaboration_pb2 import Tensor"),
        ("ciar_edge", "loop.py", "from ciar.v1 import collaboration_pb2"),
        ("ciar_cloud", "engine.py", "import google.protobuf.message"),
        ("ciar_cloud", "scheduler.py", "from prometheus_client import Counter"),
    ],
)
def test_a_broken_arrow_is_seen(package: str, file: str, source: str) -> None:
    assert violations(package, PACKAGES[package] / file, source)


@pytest.mark.parametrize(
    ("package", "file", "source"),
    [
        ("ciar", "wire.py", "from ciar.v1 import collaboration_pb2"),
        ("ciar_edge", "remote.py", "from grpc import aio\nfrom ciar.wire import encode_tensor"),
        ("ciar_cloud", "metrics.py", "import prometheus_client"),
        ("ciar_bench", "latency.py", "import ciar_edge.loop, ciar_cloud.engine, ciar_train"),
    ],
)
def test_an_arrow_of_the_design_is_allowed(package: str, file: str, source: str) -> None:
    assert violations(package, PACKAGES[package] / file, source) == []


def test_the_core_runs_without_transport() -> None:
    """Importing all of `ciar` but transport and metrics loads no gRPC, protobuf or Prometheus."""
    root = PACKAGES["ciar"]
    modules = [
        ".".join(path.relative_to(root.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted(root.rglob("*.py"))
        if not may_use_transport("ciar", path) and path.name != "metrics.py"
    ]
    assert "ciar.types" in modules
    program = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print([n for n in ('grpc', 'google.protobuf', 'prometheus_client') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "[]"
