"""`ciar-train extract`: captioned pictures to what a draft learns from, for any target folder.

Pictures become token grids and captions become text features, in parts of PART pictures that are
kept: an interrupted run goes on. At the end the parts become one folder as `codes` reads it, piece
by piece, so that memory holds one part however many there are.

    T tokens   C width of the text features
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ciar.checkpoint import fingerprint, read_config
from ciar.errors import InvalidInput
from ciar.models.vq import VQModel
from ciar.output_file import replace_file, replacing
from ciar.picture import load_vq
from ciar.text import TextFeatures, load_text
from ciar_train.captioned import Item, items_print
from ciar_train.codes import SOURCE_FILE, read_source, save
from ciar_train.progress import Progress, say_nothing
from ciar_train.tokenizer import channels_last

PART = 512  # pictures
BATCH = 16
# What Pillow raises for what is no picture, or one of too many pixels.
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
FINISHED = "captions.npy"  # written last


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """A target folder's tokenizer and text encoder. size: of the pictures, pixels."""

    vq: VQModel
    text: TextFeatures
    size: int
    source: dict[str, Any]

    @classmethod
    def load(cls, target: Path, *, device: torch.device) -> "Extractor":
        """Of a bundle with cloud/, vq/ and text/. Raises `CheckpointError`."""
        vq = channels_last(load_vq(target / "vq"), device)
        grid = int(read_config(target / "cloud")["transformer"]["grid_size"])
        prints = {part: fingerprint(target / part) for part in ("vq", "text")}
        size = grid * vq.config.downsample
        return cls(
            vq=vq, text=load_text(target / "text"), size=size, source={"size": size, **prints}
        )

    @torch.inference_mode()
    def tokens(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """uint8 [size, size, 3] each -> uint16 [n, T]."""
        rows = []
        for first in range(0, len(pictures), BATCH):
            pixels = torch.from_numpy(np.stack(pictures[first : first + BATCH]))
            pixels = pixels.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
            device = self.vq.quantize.embedding.weight.device
            ids = self.vq.encode(pixels.to(device, memory_format=torch.channels_last))
            rows.append(ids.flatten(1).cpu().numpy().astype(np.uint16))
        return np.concatenate(rows)

    def features(self, captions: Sequence[str]) -> list[np.ndarray]:
        """float16 [L, C] each; like lengths together, so that little is padding."""
        order = sorted(range(len(captions)), key=lambda i: len(captions[i]))
        found: dict[int, Tensor] = {}
        for first in range(0, len(order), BATCH):
            picked = order[first : first + BATCH]
            encoded = self.text.encode([captions[i] for i in picked])
            found |= dict(zip(picked, encoded, strict=True))
        return [found[i].cpu().numpy().astype(np.float16) for i in range(len(captions))]


def extract(
    items: Sequence[Item], extractor: Extractor, out: Path, *, progress: Progress = say_nothing
) -> int:
    """Write a code folder; returns how many pictures could not be read and are left out.

    Raises `InvalidInput` if none could, or if `out` holds those of another model or other pictures.
    """
    source = {**extractor.source, "items": items_print(items)}
    parts_folder = out / "parts"
    check_source(out, source)
    if (out / FINISHED).exists():
        return len(items) - len(np.load(out / FINISHED))
    numbers = range(0, len(items), PART)
    for first in numbers:
        path = parts_folder / f"{first // PART:06d}"
        if not (path / "tokens.npy").exists():
            write_part(items[first : first + PART], extractor, path)
        progress(min(first + PART, len(items)), len(items), "pictures")
    parts = [parts_folder / f"{first // PART:06d}" for first in numbers]
    count = join(parts, out)
    if not count:
        raise InvalidInput("source", len(items), "none of the pictures could be read")
    shutil.rmtree(parts_folder)
    return len(items) - count


def check_source(out: Path, source: dict[str, Any]) -> None:
    stamp = out / SOURCE_FILE
    if stamp.exists() and read_source(out) != source:
        raise InvalidInput(
            "out", str(out), "holds codes of another model or other pictures: give another folder"
        )
    out.mkdir(parents=True, exist_ok=True)
    replace_file(stamp, json.dumps(source).encode())


def write_part(items: Sequence[Item], extractor: Extractor, folder: Path) -> None:
    """Tokens last: where they are, the part is whole. A part may be empty."""
    pictures, captions = [], []
    for item in items:
        try:
            pictures.append(item.read(extractor.size))
        except UNREADABLE:
            continue
        captions.append(item.caption)
    rows = extractor.features(captions) if captions else []
    starts = np.cumsum([0] + [len(row) for row in rows])
    width = extractor.text.dim
    folder.mkdir(parents=True, exist_ok=True)
    save(folder / "starts.npy", starts)
    nothing = np.zeros((0, width), np.float16)
    save(folder / "features.npy", np.concatenate([nothing, *rows]))
    tokens = extractor.tokens(pictures) if pictures else np.zeros((0, 0), np.uint16)
    save(folder / "tokens.npy", tokens)


def join(parts: Sequence[Path], out: Path) -> int:
    """Parts [n_i pictures] to one code folder; returns the number of pictures."""
    parts = [part for part in parts if len(np.load(part / "tokens.npy", mmap_mode="r"))]
    if not parts:
        return 0
    for name in ("tokens", "features"):
        arrays = [np.load(part / f"{name}.npy", mmap_mode="r") for part in parts]
        shape = (sum(map(len, arrays)), arrays[0].shape[1])
        with replacing(out / f"{name}.npy") as part:
            joined = np.lib.format.open_memmap(part, mode="w+", dtype=arrays[0].dtype, shape=shape)
            first = 0
            for array in arrays:
                joined[first : first + len(array)] = array
                first += len(array)
            joined.flush()
            del joined
    starts = [0]
    for folder in parts:
        starts += (np.load(folder / "starts.npy")[1:] + starts[-1]).tolist()
    save(out / "starts.npy", np.array(starts))
    count = len(starts) - 1
    save(out / FINISHED, np.arange(count)[:, None])
    return count
