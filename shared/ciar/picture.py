"""Token grids to PNG files: the VQ decoder of a bundle, and writing a whole file or none.

A picture is encoded in memory, written beside its destination under another name and moved over it,
so a full disk or a kill never leaves half a PNG, nor damages the file that was there before. The
text chunks of the PNG (`prompt`, `seed`, ...) say how to draw it again.
"""

import errno
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ciar import __version__
from ciar.checkpoint import from_dict, load_into, read_config, read_weights, to_device
from ciar.errors import CheckpointError, InvalidInput, OutputError, shorten
from ciar.models.vq import VQConfig, VQModel, to_uint8
from ciar.output_file import output_error, replace_file

SUFFIX = ".png"


def load_vq(folder: Path, *, device: str = "cpu") -> VQModel:
    """Load `NAME/vq` for inference in float32; raises `CheckpointError`."""
    config = read_config(folder)
    if config.get("kind") != "vq":
        raise CheckpointError(f"{folder}: kind {config.get('kind')!r}, expected 'vq'")
    sizes = config.get("vq")
    if not isinstance(sizes, dict):
        raise CheckpointError(f"{folder}: no object 'vq' in its configuration")
    with torch.device("meta"):
        model = VQModel(from_dict(VQConfig, sizes, where=f"{folder}: vq"))
    load_into(model, read_weights(folder), where=folder)
    to_device(model, device=device, dtype=torch.float32)
    return model


class Painter:
    """Token grids to pixels: the VQ tokenizer's decoder."""

    def __init__(self, model: VQModel) -> None:
        self._model = model

    @classmethod
    def load(cls, folder: Path, *, device: str = "cpu") -> "Painter":
        """Load `NAME/vq`; raises `CheckpointError`."""
        return cls(load_vq(folder, device=device))

    def check_codebook(self, vocab_size: int) -> None:
        """Raise `CheckpointError` unless the codes are those the transformers were trained on."""
        size = self._model.config.codebook_size
        if size != vocab_size:
            raise CheckpointError(
                f"the vq folder has {size} codes but the model draws {vocab_size}: "
                "the folders belong to different models"
            )

    @torch.inference_mode()
    def paint(self, tokens: Sequence[int]) -> Tensor:
        """All tokens of a square grid in raster order -> pixels, uint8 RGB [H, W, 3]."""
        side = round(len(tokens) ** 0.5)
        if not tokens or side * side != len(tokens):
            raise InvalidInput("tokens", f"{len(tokens)} of them", "give a full square grid")
        codebook = self._model.quantize.embedding.weight
        size = len(codebook)
        bad = [token for token in tokens if not 0 <= token < size]
        if bad:
            raise InvalidInput("tokens", bad[0], f"give codebook ids from 0 to {size - 1}")
        grid = torch.tensor(tokens, device=codebook.device).view(1, side, side)  # [1, h, w]
        level = self._model.config.middle_level
        pixels = to_uint8(self._model.decode(grid), middle_level=level)  # [1, 3, H, W]
        return pixels[0].permute(1, 2, 0).contiguous().cpu()


def picture_metadata(
    *, prompt: str, seed: int, fingerprint: str, mode: str, counts: Mapping[str, int | float]
) -> dict[str, str]:
    """The text chunks of a drawn picture.

    fingerprint: of the target checkpoint.  mode: `blocking`, `exact`, `offline` or `base`.
    counts: how the tokens came about, stored as a JSON object.
    """
    return {
        "Software": f"ciar {__version__}",
        "prompt": prompt,
        "seed": str(seed),
        "fingerprint": fingerprint,
        "mode": mode,
        "counts": json.dumps(counts),
    }


def check_picture_path(path: Path, *, field: str = "output") -> None:
    """Refuse what `save_picture` could not write for certain, before time is spent on the picture.

    Errors name `field`: `InvalidInput` (another suffix), `OutputError` (no such folder).
    """
    if path.suffix.lower() != SUFFIX:
        raise InvalidInput(field, str(path), f"give a file name that ends in {SUFFIX}")
    if path.is_dir():
        raise OutputError(f"{field}: {shorten(str(path))}: is a folder; give the name of a file")
    folder = path.resolve().parent
    if not folder.is_dir():
        raise OutputError(
            f"{field}: {shorten(str(path))}: no such folder: {shorten(str(folder))}; "
            "create it first"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise output_error(path, PermissionError(errno.EACCES, ""), field=field)


def save_picture(path: Path, pixels: Tensor, metadata: Mapping[str, str]) -> None:
    """Write uint8 RGB pixels [H, W, 3] as a PNG with `metadata` as its text chunks.

    Raises `InvalidInput` (field `output`) for another suffix than .png, and `OutputError` when the
    file cannot be written: no such folder, no permission, disk full. Then what was there before is
    still there.
    """
    assert pixels.dtype == torch.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3, pixels.shape
    check_picture_path(path)
    chunks = PngInfo()
    for key, text in metadata.items():
        chunks.add_text(key, text)
    buffer = io.BytesIO()
    Image.fromarray(pixels.cpu().numpy()).save(buffer, format="PNG", pnginfo=chunks)
    try:
        replace_file(path, buffer.getvalue())
    except OSError as error:
        raise output_error(path, error, field="output") from error
