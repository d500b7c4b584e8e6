"""Packages from an npm registry: fetched as tarballs, checked, kept.

A tarball is used only if its SHA-512 is the one pinned here, wherever it came from.
"""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from ciar.errors import CiarError
from ciar.output_file import replace_file

DEFAULT_REGISTRY = "https://registry.npmjs.org"
TIMEOUT_SECONDS = 60


class ArtworkError(CiarError):
    """Artwork could not be fetched, or is not what was expected."""


@dataclass(frozen=True, kw_only=True)
class Package:
    """One version of a package; `integrity` is "sha512-" and the base64 of its digest."""

    name: str
    version: str
    integrity: str

    @property
    def file_name(self) -> str:
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


def find_registry(registry: str = DEFAULT_REGISTRY) -> str:
    """The registry to use: the one given, or else the one that npm is set up for, if any."""
    if registry.rstrip("/") != DEFAULT_REGISTRY:
        return registry.rstrip("/")
    for name in ("npm_config_registry", "NPM_CONFIG_REGISTRY"):
        if os.environ.get(name):
            return os.environ[name].rstrip("/")
    npm = shutil.which("npm")
    if npm is not None:
        answer = subprocess.run(
            [npm, "config", "get", "registry"],
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_SECONDS,
        )
        if answer.stdout.strip().startswith(("https://", "http://")):
            return answer.stdout.strip().rstrip("/")
    return DEFAULT_REGISTRY


def fetch_package(package: Package, folder: Path, *, registry: str) -> Path:
    """The tarball of a package in `folder`, fetched unless it is there already.

    Raises:
        ArtworkError: the registry cannot be reached, does not have the package, or its tarball
            is not the pinned one.
    """
    path = folder / package.file_name
    if path.exists() and _integrity(path.read_bytes()) == package.integrity:
        return path
    metadata_url = f"{registry}/{quote(package.name, safe='@')}/{package.version}"
    metadata = json.loads(_download(metadata_url, package))
    content = _download(metadata["dist"]["tarball"], package)
    if _integrity(content) != package.integrity:
        raise ArtworkError(
            f"{package.name} {package.version}: {registry} sent another tarball than the pinned "
            f"one ({_integrity(content)}): use another registry"
        )
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(path, content)
    return path


def read_package(path: Path, wanted: Callable[[str], bool]) -> Mapping[str, bytes]:
    """The wanted files of a tarball by their path inside the package."""
    files = {}
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            name = member.name.partition("/")[2]  # below the top folder, "package"
            stream = archive.extractfile(member) if wanted(name) else None
            if stream is not None:
                files[name] = stream.read()
    return files


def _integrity(content: bytes) -> str:
    return "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()


def _download(url: str, package: Package) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
            content: bytes = response.read()
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise ArtworkError(
            f"{package.name} {package.version} could not be fetched from {url} ({error}): check "
            "the network, or name a registry that can be reached (npm config set registry URL), "
            "or put a packed atlas in place"
        ) from error
    return content
