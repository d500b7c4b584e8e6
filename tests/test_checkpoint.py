"""Model folders and configurations: strict both ways, and errors that name the place."""

import json
import tomllib
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ciar import checkpoint
from ciar.checkpoint import (
    CONFIG_FILE,
    DEFAULT_MODEL,
    INDEX_FILE,
    PARTS,
    PHI_FILE,
    WEIGHTS_FILE,
    find_model,
    fingerprint,
    from_dict,
    load_into,
    read_config,
    read_weights,
    save_folder,
)
from ciar.errors import CheckpointError
from ciar.models.vq import VQConfig


@dataclass(frozen=True, kw_only=True)
class Optics:
    focus: float
    stops: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.focus <= 0:
            raise ValueError(f"focus: {self.focus}: give a positive distance")


@dataclass(frozen=True, kw_only=True)
class Camera:
    optics: Optics
    name: str = "plain"
    spare: tuple[float, float] | None = None
    labels: list[str] = field(default_factory=list)


def test_nested_dataclasses_come_from_toml() -> None:
    text = """
    name = "box"
    spare = [1.0, 2.0]
    labels = ["old"]
    [optics]
    focus = 2.5
    stops = [2, 4, 8]
    """
    found = from_dict(Camera, tomllib.loads(text), where="camera.toml")
    optics = Optics(focus=2.5, stops=(2, 4, 8))
    assert found == Camera(optics=optics, name="box", spare=(1.0, 2.0), labels=["old"])


def test_a_configuration_survives_json() -> None:
    config = VQConfig(channel_multipliers=(1, 2, 4), has_lowest_attention=False)
    assert from_dict(VQConfig, json.loads(json.dumps(asdict(config))), where="vq") == config


def test_lists_become_tuples_only_where_the_field_declares_one() -> None:
    found = from_dict(Camera, {"optics": {"focus": 1, "stops": []}, "spare": None}, where="c")
    assert found.optics.stops == ()
    assert found.spare is None
    assert from_dict(Camera, {"optics": {"focus": 1}, "labels": ["a"]}, where="c").labels == ["a"]


def test_a_dataclass_that_is_one_already_is_taken_as_it_is() -> None:
    optics = Optics(focus=1.0)
    assert from_dict(Camera, {"optics": optics}, where="c").optics is optics


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"optics": {"focus": 1}, "zoom": 2}, ["c: unknown zoom", "known: optics, name"]),
        ({"optics": {"focus": 1, "zoom": 2}}, ["c.optics: unknown zoom", "known: focus, stops"]),
        ({"name": "box"}, ["c: ", "'optics'"]),
        ({"optics": {}}, ["c.optics: ", "'focus'"]),
        ({"optics": {"focus": -1}}, ["c.optics: focus: -1: give a positive distance"]),
    ],
)
def test_wrong_names_and_values_are_named_with_their_place(
    values: dict[str, object], words: list[str]
) -> None:
    with pytest.raises(CheckpointError) as caught:
        from_dict(Camera, values, where="c")
    assert all(word in str(caught.value) for word in words), str(caught.value)


def write(folder: Path, **changes: object) -> Path:
    config = {"kind": "test", "size": 3, "calibration": {"interval": [0.0, 1.0]}} | changes
    save_folder(folder, config, weights())
    return folder


def weights() -> dict[str, Tensor]:
    return {"weight": torch.arange(6.0).view(2, 3), "bias": torch.tensor([0.5, -0.5])}


def test_a_folder_comes_back_as_it_was_written(tmp_path: Path) -> None:
    folder = write(tmp_path / "deep" / "model")
    assert read_config(folder)["size"] == 3
    found = read_weights(folder)
    assert found.keys() == weights().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in weights().items())


def test_whoever_reads_the_configuration_reads_the_weights(tmp_path: Path) -> None:
    save_folder(tmp_path, {}, {"x": torch.zeros(1)})
    modes = {path.name: oct(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes["model.safetensors"] == modes["config.json"]


def test_nothing_stale_is_read_in_place_of_new_weights(tmp_path: Path) -> None:
    """Neither another half of phi, nor an index of shards that are there from before."""
    save_file({"weight": torch.ones(2, 3)}, tmp_path / PHI_FILE)
    save_file({"bias": torch.ones(2)}, tmp_path / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"bias": "model-00001-of-00001.safetensors"}}
    (tmp_path / INDEX_FILE).write_text(json.dumps(index))
    found = read_weights(write(tmp_path))
    assert found.keys() == weights().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in weights().items())


@pytest.mark.parametrize("step", ["write_tensors", "replace_file"])
def test_a_folder_with_a_configuration_is_whole(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written anew is there as before until all weights are; then without, until done."""
    before = fingerprint(write(tmp_path))

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, step, stop)
    with pytest.raises(KeyboardInterrupt):
        save_folder(tmp_path, {"kind": "other"}, {"weight": torch.zeros(1)})
    if step == "write_tensors":
        assert fingerprint(tmp_path) == before
    else:
        assert not (tmp_path / CONFIG_FILE).exists()
    assert not list(tmp_path.glob(".ciar-*"))


def test_views_are_written_whole(tmp_path: Path) -> None:
    """A transposed view shares memory with its base and is not contiguous."""
    turned = torch.arange(6.0).view(2, 3).t()
    save_folder(tmp_path, {}, {"weight": turned})
    assert torch.equal(read_weights(tmp_path)["weight"], turned)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_a_truncated_weights_file_is_an_error(tmp_path: Path, share: float) -> None:
    path = write(tmp_path) / WEIGHTS_FILE
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        read_weights(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"[1, 2]", "holds list, expected an object"),
    ],
)
def test_a_damaged_configuration_is_an_error(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / CONFIG_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        read_config(tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"no {CONFIG_FILE}; is this a model folder"):
        read_config(tmp_path)
    (tmp_path / CONFIG_FILE).write_text("{}")
    with pytest.raises(CheckpointError, match=f"no {WEIGHTS_FILE}"):
        read_weights(tmp_path)
    (tmp_path / CONFIG_FILE).write_text("{}")
    with pytest.raises(CheckpointError, match=f"{WEIGHTS_FILE}: cannot be read"):
        fingerprint(tmp_path)


def test_weights_are_loaded_strictly(tmp_path: Path) -> None:
    linear = nn.Linear(3, 2)
    load_into(linear, weights(), where=tmp_path)
    assert torch.equal(linear.weight, weights()["weight"])


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"bias": torch.zeros(2)}, ["missing weight"]),
        (weights() | {"extra": torch.zeros(1)}, ["unexpected extra"]),
        (weights() | {"weight": torch.zeros(3, 2)}, ["weight is (3, 2), expected (2, 3)"]),
        ({f"x{i}": torch.zeros(1) for i in range(5)}, ["missing bias", "unexpected x1", "3 more"]),
    ],
)
def test_every_difference_is_named(
    tmp_path: Path, state: dict[str, Tensor], words: list[str]
) -> None:
    linear = nn.Linear(3, 2)
    before = linear.weight.detach().clone()
    with pytest.raises(CheckpointError) as caught:
        load_into(linear, state, where=tmp_path)
    assert all(word in str(caught.value) for word in [str(tmp_path), *words]), str(caught.value)
    assert torch.equal(linear.weight, before)


def test_the_fingerprint_is_of_weights_and_configuration(tmp_path: Path) -> None:
    plain = fingerprint(write(tmp_path / "plain"))
    assert len(plain) == 16
    assert fingerprint(write(tmp_path / "again")) == plain
    assert fingerprint(write(tmp_path / "calibrated", calibration={"entropy": [2.0]})) == plain
    assert fingerprint(write(tmp_path / "configured", size=4)) != plain
    changed = weights()
    changed["bias"][0] += 1e-3
    save_folder(tmp_path / "plain", read_config(tmp_path / "plain"), changed)
    assert fingerprint(tmp_path / "plain") != plain


def test_the_order_of_a_configuration_does_not_matter(tmp_path: Path) -> None:
    for name, config in (("a", {"kind": "x", "size": 1}), ("b", {"size": 1, "kind": "x"})):
        save_folder(tmp_path / name, config, weights())
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")


@pytest.mark.parametrize("part", PARTS)
def test_a_model_is_found_by_folder(tmp_path: Path, part: str) -> None:
    (tmp_path / "mine" / part).mkdir(parents=True)
    assert find_model(tmp_path / "mine") == tmp_path / "mine"
    assert find_model(str(tmp_path / "mine")) == tmp_path / "mine"


def test_the_embedded_model_is_found_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = find_model(DEFAULT_MODEL)
    assert found.is_absolute()
    assert (found / "text" / CONFIG_FILE).is_file()


def test_the_embedded_model_is_below_40_mib() -> None:
    files = [path for path in find_model(DEFAULT_MODEL).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 40 * 2**20


def test_a_folder_here_hides_the_embedded_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / DEFAULT_MODEL / "edge").mkdir(parents=True)
    assert find_model(DEFAULT_MODEL).resolve() == tmp_path / DEFAULT_MODEL


def test_an_unknown_model_says_what_to_give(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for model in ("ciar-huge", tmp_path / "empty"):
        with pytest.raises(CheckpointError) as caught:
            find_model(model)
        text = str(caught.value)
        assert repr(str(model)) in text
        assert "cloud, edge, vq, text" in text
        assert repr(DEFAULT_MODEL) in text
