"""Captioned pictures to codes: every kind of source, what cannot be read, and going on."""

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from ciar.errors import InvalidInput
from ciar.picture import load_vq
from ciar.text import load_text
from ciar_train import extract as extract_module
from ciar_train.captioned import Item, items_print, list_items, squared
from ciar_train.cli import app
from ciar_train.codes import CodeFolder
from ciar_train.extract import Extractor, extract
from tests.tiny import write_bundle

CPU = torch.device("cpu")
CAPTIONS = [f"a dog on the beach {'very ' * i}far" for i in range(7)]


def picture(index: int, *, width: int = 40, height: int = 24) -> Image.Image:
    rng = np.random.default_rng(index)
    small = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(small.repeat(8, 0).repeat(8, 1))


def encoded(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures with a text file beside each, some in a folder inside; one of them is broken."""
    root = tmp_path / "pictures"
    (root / "more").mkdir(parents=True)
    for index, caption in enumerate(CAPTIONS):
        path = root / ("more" if index % 2 else ".") / f"{index}.png"
        picture(index).save(path)
        path.with_suffix(".txt").write_text(f"\n{caption}\nsecond line\n")
    (root / "3.png").write_bytes(b"not a picture")
    (root / "3.txt").write_text("broken")
    picture(9).save(root / "uncaptioned.png")
    return root


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    path = tmp_path / "shard.tar"
    with tarfile.open(path, "w") as file:
        for index, caption in enumerate(CAPTIONS):
            text = json.dumps({"caption": caption}) if index % 2 else caption
            suffix = "json" if index % 2 else "txt"
            members = [(f"{index:05d}.png", encoded(picture(index)))]
            members.append((f"{index:05d}.{suffix}", text.encode()))
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def extractor(bundle: Path) -> Extractor:
    return Extractor.load(bundle, device=CPU)


def test_pictures_are_squared_in_the_middle() -> None:
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, 20:40] = 200
    assert squared(Image.fromarray(pixels), 20).shape == (20, 20, 3)
    assert squared(Image.fromarray(pixels), 10)[:, 2:8].min() > 150
    tall = squared(Image.fromarray(pixels.swapaxes(0, 1)), 10)
    assert tall.shape == (10, 10, 3)


def test_codes_are_those_of_the_model(folder: Path, bundle: Path, tmp_path: Path) -> None:
    extractor = Extractor.load(bundle, device=CPU)
    items = list_items([folder])
    assert len(items) == 8
    assert extract(items, extractor, tmp_path / "codes") == 1
    codes = CodeFolder(tmp_path / "codes")
    assert (len(codes), codes.num_captions) == (7, 1)
    vq, text = load_vq(bundle / "vq"), load_text(bundle / "text")
    readable = [item for item in items if item.caption != "broken"]
    picks = torch.arange(7)
    tokens = codes.token_batch(picks)
    conditions = codes.condition_batch(picks, torch.zeros(7, dtype=torch.long))
    for row, item in enumerate(readable):
        pixels = torch.from_numpy(item.read(extractor.size)).permute(2, 0, 1)[None]
        with torch.inference_mode():
            assert torch.equal(tokens[row], vq.encode(pixels.float() / 127.5 - 1).flatten())
        (expected,) = text.encode([item.caption])
        found = conditions.features[row][conditions.mask[row]]
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=2e-3)


def test_archives_hold_the_same(tar: Path, extractor: Extractor, tmp_path: Path) -> None:
    items = list_items([tar])
    assert [item.caption for item in items] == CAPTIONS
    assert list_items([tar.parent]) == items
    for index, item in enumerate(items):
        expected = squared(picture(index), extractor.size)
        np.testing.assert_array_equal(item.read(extractor.size), expected)
    assert extract(items, extractor, tmp_path / "codes") == 0
    assert len(CodeFolder(tmp_path / "codes")) == 7


def test_an_index_names_files_and_prompts(folder: Path) -> None:
    lines = [{"file": "0.png", "prompt": "first"}, {"file": "more/1.png", "prompt": "second"}]
    index = folder / "captions.jsonl"
    index.write_text("\n".join(map(json.dumps, lines)))
    items = list_items([folder])
    assert items == [Item("first", folder / "0.png"), Item("second", folder / "more/1.png")]
    index.write_text('{"file": "0.png"}')
    with pytest.raises(InvalidInput, match="line 1"):
        list_items([folder])
    index.write_text('{"file": "missing.png", "prompt": "a"}')
    with pytest.raises(InvalidInput, match="is not there"):
        list_items([folder])


def test_an_interrupted_extraction_goes_on(
    tar: Path, extractor: Extractor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract_module, "PART", 3)
    items, done = list_items([tar]), []

    def stop(count: int, _: int, __: str) -> None:
        done.append(count)
        if count == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(items, extractor, tmp_path / "a", progress=stop)
    first = tmp_path / "a" / "parts" / "000000" / "tokens.npy"
    before = first.stat().st_mtime_ns
    times: list[int] = []

    def watch(count: int, _: int, __: str) -> None:
        times.append(first.stat().st_mtime_ns)

    extract(items, extractor, tmp_path / "a", progress=watch)
    assert times == [before] * 3
    assert not (tmp_path / "a" / "parts").exists()
    monkeypatch.setattr(extract_module, "PART", 512)
    extract(items, extractor, tmp_path / "b")
    for name in ("tokens", "features", "starts", "captions"):
        one, other = (np.load(tmp_path / place / f"{name}.npy") for place in "ab")
        np.testing.assert_array_equal(one, other)
    written = (tmp_path / "b" / "tokens.npy").stat().st_mtime_ns
    assert extract(items, extractor, tmp_path / "b") == 0
    assert (tmp_path / "b" / "tokens.npy").stat().st_mtime_ns == written


def test_codes_of_another_model_are_not_mixed(
    tar: Path, extractor: Extractor, tmp_path: Path
) -> None:
    items = list_items([tar])
    extract(items, extractor, tmp_path / "codes")
    with pytest.raises(InvalidInput, match="another model or other pictures"):
        extract(items[1:], extractor, tmp_path / "codes")
    changed = [*items[:3], replace(items[3], caption="a cat"), *items[4:]]
    with pytest.raises(InvalidInput, match="another model or other pictures"):
        extract(changed, extractor, tmp_path / "codes")
    other = replace(extractor, source=extractor.source | {"vq": "another"})
    with pytest.raises(InvalidInput, match="another model or other pictures"):
        extract(items, other, tmp_path / "codes")


def test_a_file_that_changes_is_another_picture(folder: Path) -> None:
    before = items_print(list_items([folder]))
    assert items_print(list_items([folder])) == before
    path = folder / "2.png"
    path.write_bytes(path.read_bytes() + b"0")
    assert items_print(list_items([folder])) != before


def test_pictures_of_too_many_pixels_are_left_out(
    folder: Path, extractor: Extractor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(0, width=400, height=400).save(folder / "0.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400 * 100)  # from twice as many on
    assert extract(list_items([folder]), extractor, tmp_path / "codes") == 2


def test_captions_in_another_encoding_are_named(folder: Path, tar: Path) -> None:
    (folder / "2.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(InvalidInput, match=r"2\.txt: .*: give captions in UTF-8"):
        list_items([folder])
    (folder / "captions.jsonl").write_bytes("café".encode("latin-1"))
    with pytest.raises(InvalidInput, match=r"captions\.jsonl: .*: give captions in UTF-8"):
        list_items([folder])
    with tarfile.open(tar, "a") as file:
        file.addfile(info := tarfile.TarInfo("8.txt"), None)
        info.size = 1
        file.addfile(info, io.BytesIO(b"\xe9"))
    with pytest.raises(InvalidInput, match=r"shard\.tar, 8\.txt: .*: give captions in UTF-8"):
        list_items([tar])


def test_bad_sources_are_named(tmp_path: Path, extractor: Extractor) -> None:
    with pytest.raises(InvalidInput, match=r"folder of pictures, or a \.tar"):
        list_items([tmp_path / "missing"])
    (tmp_path / "bad.tar").write_bytes(b"no archive")
    with pytest.raises(InvalidInput, match="no readable archive"):
        list_items([tmp_path / "bad.tar"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match="pictures with captions"):
        list_items([tmp_path / "empty"])
    (tmp_path / "empty" / "a.png").write_bytes(b"broken")
    (tmp_path / "empty" / "a.txt").write_text("a")
    with pytest.raises(InvalidInput, match="none of the pictures"):
        extract(list_items([tmp_path / "empty"]), extractor, tmp_path / "codes")


def test_the_command(folder: Path, bundle: Path, tmp_path: Path) -> None:
    options = ["--target", str(bundle), "--out", str(tmp_path / "codes"), "--device", "cpu"]
    done = CliRunner().invoke(app, ["extract", str(folder), *options])
    assert done.exit_code == 0, done.output
    assert "7 pictures, 1 could not be read" in done.stdout
