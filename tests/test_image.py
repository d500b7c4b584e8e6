"""PNG files that are whole or not there, and a token map that tells origins apart."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ciar.checkpoint import read_config, read_weights, save_folder
from ciar.errors import CheckpointError, InvalidInput, OutputError
from ciar.models.vq import VQConfig, VQModel, to_uint8
from ciar.picture import Painter, check_picture_path, picture_metadata, save_picture
from ciar_edge.token_map import ORIGINS, PANEL, TITLE, draw_token_map, viridis
from tests.small_disk import small_disk
from tests.tiny import write_bundle


def noise(height: int = 8, width: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (height, width, 3), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle"))


# ------------------------------------------------------------------------------------ PNG files


def test_pixels_and_text_come_back(tmp_path: Path) -> None:
    texts = picture_metadata(
        prompt='ein Hund — 犬 — on\nthe "beach"',
        seed=2**64 - 1,
        fingerprint="0123456789abcdef",
        mode="blocking",
        counts={"num_kept": 3},
    )
    path = tmp_path / "dog.png"
    save_picture(path, noise(), texts)
    with Image.open(path) as image:
        assert image.mode == "RGB"
        assert np.array_equal(np.array(image), noise().numpy())
        assert image.text == texts  # type: ignore[attr-defined]
    assert json.loads(texts["counts"]) == {"num_kept": 3}
    assert texts["Software"].startswith("ciar ")
    assert os.listdir(tmp_path) == ["dog.png"]


def test_a_picture_obeys_the_umask_and_follows_links(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "link.png"
    link.symlink_to(tmp_path / "real" / "dog.png")
    save_picture(link, noise(), {})
    assert link.is_symlink()
    fresh = tmp_path / "fresh"
    fresh.touch()
    assert (tmp_path / "real" / "dog.png").stat().st_mode == fresh.stat().st_mode


@pytest.mark.parametrize("name", ["dog.jpg", "dog", "dog.png.txt"])
def test_only_png_is_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInput, match=r"\.png") as caught:
        save_picture(tmp_path / name, noise(), {})
    assert caught.value.field == "output"
    assert os.listdir(tmp_path) == []


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no such folder: .*nowhere.*create it"):
        check_picture_path(tmp_path / "nowhere" / "dog.png")


def test_a_folder_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "dog.png").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        check_picture_path(tmp_path / "dog.png")


def test_a_folder_without_permission_says_so() -> None:
    """/proc/1 refuses root, too."""
    with pytest.raises(OutputError, match="permission|cannot be written"):
        save_picture(Path("/proc/1/dog.png"), noise(), {})


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        path = disk / "dog.png"
        save_picture(path, noise(), {})
        before = path.read_bytes()
        with pytest.raises(OutputError, match="disk is full.*another folder"):
            save_picture(path, noise(128, 128), {})
        assert path.read_bytes() == before
        assert os.listdir(disk) == ["dog.png"]


# ------------------------------------------------------------------------------------ VQ folder


def test_painting_is_the_vq_decoder(bundle: Path) -> None:
    config = VQConfig(**read_config(bundle / "vq")["vq"])
    model = VQModel(config)
    model.load_state_dict(read_weights(bundle / "vq"))
    tokens = [(7 * i) % config.codebook_size for i in range(16)]
    with torch.no_grad():
        expected = to_uint8(model.eval().decode(torch.tensor(tokens).view(1, 4, 4)))[0]
    pixels = Painter.load(bundle / "vq").paint(tokens)
    assert pixels.shape == (8, 8, 3)
    assert torch.equal(pixels, expected.permute(1, 2, 0))


@pytest.mark.parametrize("tokens", [[], [0] * 15, [0] * 15 + [24], [-1] * 16])
def test_painting_refuses_what_is_no_grid_of_codes(bundle: Path, tokens: list[int]) -> None:
    with pytest.raises(InvalidInput, match="tokens"):
        Painter.load(bundle / "vq").paint(tokens)


def test_folders_of_another_kind_are_refused(bundle: Path) -> None:
    with pytest.raises(CheckpointError, match="kind 'target', expected 'vq'"):
        Painter.load(bundle / "cloud")


@pytest.mark.parametrize("key", ["codebook_sise", None])
def test_a_wrong_configuration_is_refused(bundle: Path, tmp_path: Path, key: str | None) -> None:
    config = read_config(bundle / "vq")
    wrong = {"kind": "vq"} if key is None else config | {"vq": config["vq"] | {key: 1}}
    save_folder(tmp_path / "vq", wrong, read_weights(bundle / "vq"))
    with pytest.raises(CheckpointError, match="codebook_sise|no object 'vq'"):
        Painter.load(tmp_path / "vq")


def test_a_codebook_of_another_size_is_refused(bundle: Path) -> None:
    painter = Painter.load(bundle / "vq")
    painter.check_codebook(24)
    with pytest.raises(CheckpointError, match="24 codes but the model draws 25"):
        painter.check_codebook(25)


def test_default_sizes_are_read(bundle: Path, tmp_path: Path) -> None:
    """Fields at their default may be left out of the configuration."""
    sizes = dataclasses.asdict(VQConfig(**read_config(bundle / "vq")["vq"]))
    defaults = dataclasses.asdict(VQConfig())
    short = {name: value for name, value in sizes.items() if value != defaults[name]}
    assert len(short) < len(sizes)
    save_folder(tmp_path / "vq", {"kind": "vq", "vq": short}, read_weights(bundle / "vq"))
    tokens = list(range(16))
    expected = Painter.load(bundle / "vq").paint(tokens)
    assert torch.equal(Painter.load(tmp_path / "vq").paint(tokens), expected)


# ------------------------------------------------------------------------------------ token map


def test_each_origin_has_its_own_colour_on_the_map() -> None:
    origins = [list(ORIGINS)[i % len(ORIGINS)] for i in range(16)]
    sheet = draw_token_map(
        torch.full((8, 8, 3), 128, dtype=torch.uint8), origins=origins, scores=[1.0] * 16
    )
    tile, left = PANEL // 4, 16 + PANEL + 16  # the second panel
    centres = {
        origin: tuple(sheet[TITLE + tile // 2, left + i * tile + tile // 2].tolist())
        for i, origin in enumerate(origins[:4])
    }
    assert len(set(centres.values())) == 4
    again = tuple(sheet[TITLE + tile + tile // 2, left + 2 * tile + tile // 2].tolist())
    assert again == centres[origins[6]]


def test_more_uncertain_is_brighter_and_no_score_is_grey() -> None:
    colours = viridis(np.linspace(0, 1, 64))
    luminance = colours @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(luminance) > 0).all()
    scores = [None, 0.0, 1.0, 2.0]
    sheet = draw_token_map(noise(), origins=["kept"] * 4, scores=scores)
    half, left = PANEL // 2, 16 + 2 * (PANEL + 16)
    tiles = [
        sheet[TITLE + y * half + half // 2, left + x * half + half // 2].float()
        for y in (0, 1)
        for x in (0, 1)
    ]
    assert len(set(tiles[0].tolist())) == 1
    weights = torch.tensor([0.2126, 0.7152, 0.0722])
    assert float(tiles[1] @ weights) < float(tiles[2] @ weights) < float(tiles[3] @ weights)


@pytest.mark.parametrize("scores", [[None] * 4, [0.5] * 4, [float("nan")] * 3 + [1.0]])
def test_maps_of_flat_or_missing_scores_are_drawn(scores: list[float | None]) -> None:
    sheet = draw_token_map(noise(), origins=["kept"] * 4, scores=scores)
    assert sheet.dtype == torch.uint8
    assert sheet.shape[1] == 3 * PANEL + 4 * 16
