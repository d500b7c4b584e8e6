"""Codes of drawn pictures are those of the pictures and models that are there."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ciar.errors import InvalidInput
from ciar.models.text_encoder import TextEncoder
from ciar.models.vq import VQModel
from ciar.picture import load_vq
from ciar_train.codes import CodeFolder, write_codes
from ciar_train.images import SceneFolder
from tests.test_train_tokenizer import scene_folder
from tests.tiny import write_bundle


@pytest.fixture
def models(tmp_path: Path) -> tuple[VQModel, TextEncoder]:
    bundle = write_bundle(tmp_path / "bundle")
    return load_vq(bundle / "vq"), TextEncoder.load(bundle / "text")


def times(folder: Path) -> dict[str, int]:
    return {path.stem: path.stat().st_mtime_ns for path in folder.glob("*.npy")}


def test_codes_are_made_again_when_what_they_are_of_has_changed(
    models: tuple[VQModel, TextEncoder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (vq, text), folder = models, tmp_path / "codes"

    def write() -> CodeFolder:
        return write_codes(SceneFolder(tmp_path / "scenes"), vq, text, folder)

    scene_folder(tmp_path / "scenes", count=6)
    first = write()
    written = times(folder)
    with torch.no_grad():
        vq.decoder.conv_in.weight.neg_()  # it makes no tokens
    write()
    assert (times(folder), capsys.readouterr().out) == (written, "")

    with torch.no_grad():
        vq.quantize.embedding.weight.copy_(vq.quantize.embedding.weight.flip(0))
    second = write()
    assert not np.array_equal(second.tokens, first.tokens)
    assert times(folder)["captions"] == written["captions"]
    assert "tokens.npy: another tokenizer: made again" in capsys.readouterr().out

    scene_folder(tmp_path / "scenes", count=3, shard=1)
    third = write()
    assert (len(third.tokens), len(third.captions)) == (9, 9)
    np.testing.assert_array_equal(third.tokens[:6], second.tokens)
    assert capsys.readouterr().out.count("another number of pictures") == 2

    with torch.no_grad():
        text.norm.weight.mul_(2)
    write()
    assert "captions.npy: another text encoder: made again" in capsys.readouterr().out

    (folder / "source.json").unlink()  # as before there was one
    written = times(folder)
    write()
    assert all(when > written[name] for name, when in times(folder).items())
    assert "nothing says what it was made of" in capsys.readouterr().out
    written = times(folder)
    write()
    assert times(folder) == written


def test_captions_are_those_of_their_own_shard(tmp_path: Path) -> None:
    """Shards are drawn at the same time, so one between others may lack its pictures."""
    for shard in range(3):
        scene_folder(tmp_path, count=2, shard=shard)
    (tmp_path / "images-00001.npy").unlink()
    captions = SceneFolder(tmp_path).captions()
    assert captions == [["a dog 0 0"], ["a dog 0 1"], ["a dog 2 0"], ["a dog 2 1"]]


@pytest.mark.parametrize("text", [None, '{"captions": ["a dog"]}\n'])
def test_pictures_without_captions_are_named(text: str | None, tmp_path: Path) -> None:
    scenes = scene_folder(tmp_path, count=2)
    (tmp_path / "captions-00000.jsonl").unlink()
    if text:
        (tmp_path / "captions-00000.jsonl").write_text(text)
    with pytest.raises(
        InvalidInput, match=r"data: .* images-00000\.npy has 2 pictures .*ciar-train scenes"
    ):
        scenes.captions()
