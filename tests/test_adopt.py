"""Runs that go on from a finished bundle, and bundles copied: as a whole, of one model, or not."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ciar.checkpoint import PARTS, fingerprint
from ciar.errors import CheckpointError, InvalidInput, OutputError
from ciar_train import steps, variants
from ciar_train.run_folder import RunFolder
from ciar_train.sizes import load_size
from ciar_train.steps import adopt, copy_folders, export_bundle, replace_folder
from ciar_train.variants import PLAIN, run_variant
from tests.test_training import CPU, TINY, quiet
from tests.tiny import write_bundle


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two of different weights."""
    root = tmp_path_factory.mktemp("models")
    first, second = (write_bundle(root / str(seed), seed=seed) for seed in (1, 2))
    return first, second


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    (tmp_path / "tiny.toml").write_text(TINY)
    size = load_size(tmp_path / "tiny.toml")
    return RunFolder(root=tmp_path / "run", size=size, world=CPU, progress=quiet)


def prints(bundle: Path) -> dict[str, str]:
    return {part: fingerprint(bundle / part) for part in PARTS if (bundle / part).exists()}


def touch(run: RunFolder, name: str) -> None:
    (run.root / name).parent.mkdir(parents=True, exist_ok=True)
    (run.root / name).touch()


TRACES = [
    "tokenizer/state.pt",
    "target/state.pt",
    "draft/phi/state.pt",
    "eagle/state.pt",
    "scenes/train/codes/tokens.npy",
]


@pytest.mark.parametrize("trace", TRACES)
@pytest.mark.parametrize("is_frozen", [True, False])
def test_a_run_that_has_begun_takes_no_model(
    is_frozen: bool, trace: str, run: RunFolder, models: tuple[Path, Path]
) -> None:
    touch(run, trace)
    with pytest.raises(InvalidInput, match="run: .*has been trained in it already"):
        adopt(run, models[0], is_frozen=is_frozen)
    assert not run.bundle.exists() and not run.adopted.exists()


@pytest.mark.parametrize("is_frozen", [True, False])
def test_the_same_model_again_changes_nothing(
    is_frozen: bool, run: RunFolder, models: tuple[Path, Path]
) -> None:
    """As `make tables` has it whenever it goes on."""
    adopt(run, models[0], is_frozen=is_frozen)
    assert prints(run.bundle).items() <= prints(models[0]).items()
    assert run.adopted.exists() != is_frozen
    touch(run, TRACES[2])
    trained = run.bundle / "vq" / "model.safetensors"  # another decoder, by now
    trained.write_bytes(b"trained")
    adopt(run, models[0], is_frozen=is_frozen)
    assert trained.read_bytes() == b"trained"
    shutil.rmtree(run.bundle / "text")
    adopt(run, models[0], is_frozen=is_frozen)
    assert (run.bundle / "text" / "config.json").exists()
    for other, other_way in ((models[1], is_frozen), (models[0], not is_frozen)):
        with pytest.raises(InvalidInput, match="run: .*goes on from another model, or otherwise"):
            adopt(run, other, is_frozen=other_way)


@pytest.mark.parametrize("is_frozen", [True, False])
def test_a_run_of_before_there_were_stamps_goes_on(
    is_frozen: bool, run: RunFolder, models: tuple[Path, Path]
) -> None:
    adopt(run, models[0], is_frozen=is_frozen)
    (run.root / "adopted.json").unlink()
    touch(run, TRACES[4])
    with pytest.raises(InvalidInput, match="has been trained"):
        adopt(run, models[1], is_frozen=is_frozen)
    adopt(run, models[0], is_frozen=is_frozen)
    assert (run.root / "adopted.json").exists()


def test_half_a_bundle_is_not_adopted(
    run: RunFolder, models: tuple[Path, Path], tmp_path: Path
) -> None:
    shutil.copytree(models[0], tmp_path / "half")
    (tmp_path / "half" / "edge" / "config.json").unlink()
    with pytest.raises(CheckpointError, match="edge"):
        adopt(run, tmp_path / "half")
    assert not run.root.exists()


@pytest.mark.parametrize("step", [steps.run_tokenizer, steps.run_target])
def test_a_target_that_is_kept_is_not_trained(
    step: Callable[[RunFolder], None], run: RunFolder, models: tuple[Path, Path]
) -> None:
    adopt(run, models[0], is_frozen=True)
    with pytest.raises(InvalidInput, match="run: .*keeps its target"):
        step(run)
    assert prints(run.bundle) == prints(models[0])


# Copies


def stop_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """As if the process were killed in the middle of a copy."""
    real, count = shutil.copytree, iter(range(100))

    def copytree(source: Path, out: Path, **options: Any) -> None:
        real(source, out, **options)
        if next(count) == number:
            (Path(out) / "config.json").unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copytree", copytree)


@pytest.mark.parametrize("number", range(4))
def test_an_interrupted_adoption_leaves_no_half_of_a_part(
    number: int, run: RunFolder, models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, number)
        adopt(run, models[0], is_frozen=True)
    assert not any((run.bundle / part).exists() for part in PARTS)
    adopt(run, models[0], is_frozen=True)
    assert prints(run.bundle) == prints(models[0])


def test_a_copy_replaces_all_that_was_there(models: tuple[Path, Path], tmp_path: Path) -> None:
    out, linked = tmp_path / "out", tmp_path / "linked"
    shutil.copytree(models[1] / "cloud", linked)
    before = fingerprint(linked)
    (linked / "phi.safetensors").write_bytes((linked / "model.safetensors").read_bytes())
    shutil.copytree(linked, out)
    (tmp_path / "link").symlink_to(linked)
    copy_folders({out: models[0] / "cloud", tmp_path / "link": models[0] / "cloud"})
    for copy in (out, tmp_path / "link"):
        assert fingerprint(copy) == fingerprint(models[0] / "cloud")
    (linked / "phi.safetensors").unlink()
    assert fingerprint(linked) == before, "a link is replaced, not what it leads to"
    assert {path.name for path in tmp_path.iterdir()} == {"out", "link", "linked"}


def test_the_folder_of_another_run_is_replaced_at_once(tmp_path: Path) -> None:
    for name in ("out", "out.part", "out.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    replace_folder(tmp_path / "out.part", tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "out.part"]


def test_an_exported_bundle_is_of_one_model(
    run: RunFolder, models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adopt(run, models[0], is_frozen=True)
    out = tmp_path / "out"
    shutil.copytree(models[1], out)
    (out / "README.md").write_text("what it is")
    for stale in ("cloud/phi.safetensors", "edge/certificate.json"):
        (out / stale).write_bytes(b"of another model")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 3)
        export_bundle(run, out)
    (out / "cloud" / "phi.safetensors").unlink()
    assert prints(out) == prints(models[1]), "an interrupted export leaves what was there"
    export_bundle(run, out)
    assert prints(out) == prints(models[0])
    assert not (out / "edge" / "certificate.json").exists()
    assert {path.name for path in out.iterdir()} == {*PARTS, "README.md"}


def test_where_no_bundle_can_be_written(
    run: RunFolder, models: tuple[Path, Path], tmp_path: Path
) -> None:
    adopt(run, models[0], is_frozen=True)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="out: "):
        export_bundle(run, tmp_path / "file" / "out")


@pytest.mark.parametrize("number", range(5))
def test_an_interrupted_variant_is_made_anew(
    number: int, run: RunFolder, models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(variants, "run_draft", lambda _: None)
    adopt(run, models[0], is_frozen=True)
    touch(run, "scenes/train/codes/tokens.npy")
    touch(run, "draft/cloud_images.pt")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, number)
        run_variant(run, PLAIN)
    assert not run.variant(PLAIN).exists()
    variant = run_variant(run, PLAIN)
    assert prints(variant.bundle).items() <= prints(models[0]).items()
    assert {path.name for path in variant.bundle.iterdir()} == {"cloud", "text", "vq"}
    assert (variant.root / "scenes").resolve() == (run.root / "scenes").resolve()
    assert (variant.root / "draft" / "cloud_images.pt").exists()
    assert [path.name for path in variant.root.parent.iterdir()] == [PLAIN]


# Artwork


def test_artwork_that_is_not_there_is_not_fetched(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="artwork: .*missing.pak.*no such file"):
        steps.draw_scenes(run, artwork=tmp_path / "missing.pak", num_workers=1)
