"""Memory-mapped weights equal the library's, and damaged files are refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ciar.errors import CheckpointError
from ciar.mapped import DTYPES, mapped_tensors

TENSORS = {
    **{name: torch.arange(6).reshape(2, 3).to(dtype) for name, dtype in DTYPES.items()},
    "scalar": torch.tensor(3.5),
    "empty": torch.empty(0, 4),
    "odd": torch.arange(5, dtype=torch.uint8),
    "after odd": torch.randn(3, generator=torch.Generator().manual_seed(0)),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "w.safetensors", metadata={"kind": "test"})
    return tmp_path / "w.safetensors"


def test_tensors_are_the_librarys(path: Path) -> None:
    found, expected = mapped_tensors(path), load_file(path)
    assert found.keys() == expected.keys() == TENSORS.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name], tensor), name


def test_writing_leaves_the_file(path: Path) -> None:
    before = path.read_bytes()
    mapped_tensors(path)["F32"].add_(1)
    assert path.read_bytes() == before


def test_a_dropped_tensor_is_unmapped(path: Path) -> None:
    def num_maps() -> int:
        return Path("/proc/self/maps").read_text().count(str(path))

    if not Path("/proc/self/maps").exists():
        pytest.skip("needs /proc")
    tensors = mapped_tensors(path)
    before = num_maps()
    assert before > 1
    del tensors["F32"], tensors["odd"]
    assert num_maps() < before


@pytest.mark.parametrize("keep", [0, 4, 8, 200, -1])
def test_truncated_files_are_refused(keep: int, path: Path) -> None:
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        mapped_tensors(path)


@pytest.mark.parametrize(
    "header",
    [
        [],
        {"a": 3},
        {"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [64, 68]}},
    ],
)
def test_headers_that_cannot_be_are_refused(header: object, tmp_path: Path) -> None:
    text = json.dumps(header).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        mapped_tensors(path)
