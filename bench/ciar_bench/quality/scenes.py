"""Drawn scenes as a set of pictures, their VQ round trip, and their captions as prompts."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ciar.errors import InvalidInput
from ciar.models.vq import VQModel, to_uint8
from ciar_bench.quality.feature_cache import PictureSet, files_source
from ciar_bench.quality.folder import Caption
from ciar_train.images import SceneFolder
from ciar_train.scenes.dataset import captions_beside
from ciar_train.scenes.places import find_place

BATCH = 64


class DrawnScenes:
    """A folder of `ciar-train scenes`, or its first `count` pictures.

    lines: what is known of each: captions, nouns, place, time, style.
    captions: the first of each; its seed is the number of the picture.
    Raises `InvalidInput` for a folder without pictures, or whose captions are not those of all.
    """

    def __init__(self, folder: Path, *, count: int | None = None) -> None:
        self._scenes = SceneFolder(folder)
        if count is not None and not 2 <= count <= len(self._scenes):
            raise InvalidInput("count", count, f"give 2 to {len(self._scenes)}")
        self._count = count or len(self._scenes)
        self.folder = folder
        self.tag = f"-{count}" if count else ""
        self.lines = read_lines(self._scenes)[: self._count]
        self.captions = tuple(
            Caption(
                prompt=line["captions"][0],
                seed=number,
                nouns=tuple(line["nouns"]),
                place=stated_place(line["captions"][0], line["place"]),
            )
            for number, line in enumerate(self.lines)
        )

    def __len__(self) -> int:
        return self._count

    def batches(self) -> Iterator[Tensor]:
        """uint8 [n, 3, H, W], one after another."""
        for indices in torch.split(torch.arange(self._count), BATCH):
            yield to_uint8(self._scenes.images(indices))

    def source(self) -> dict[str, Any]:
        """What changes when the pictures do."""
        return files_source(sorted(self.folder.glob("images-*.npy"))) | {"pictures": self._count}


class Reconstructed:
    """Pictures after their way through a tokenizer: what a perfect target would draw.

    fingerprint: of the tokenizer's folder.
    """

    def __init__(self, pictures: PictureSet, vq: VQModel, *, fingerprint: str) -> None:
        self._pictures, self._vq, self._fingerprint = pictures, vq, fingerprint
        self.folder, self.tag = pictures.folder, f"{pictures.tag}-vq"

    def __len__(self) -> int:
        return len(self._pictures)

    @torch.inference_mode()
    def batches(self) -> Iterator[Tensor]:
        """uint8 [n, 3, H, W], one after another."""
        device = self._vq.quantize.embedding.weight.device
        for batch in self._pictures.batches():
            pixels = batch.to(device).float() / 127.5 - 1
            decoded = self._vq.decode(self._vq.encode(pixels))
            yield to_uint8(decoded, middle_level=self._vq.config.middle_level).cpu()

    def source(self) -> dict[str, Any]:
        """What changes when the pictures or the tokenizer do."""
        return {**self._pictures.source(), "vq": self._fingerprint}


def read_lines(scenes: SceneFolder) -> list[dict[str, Any]]:
    """Captions, nouns and place of every picture. Raises `InvalidInput`, naming the file."""
    lines: list[dict[str, Any]] = []
    for images, count in zip(scenes.paths, map(len, scenes.shards), strict=True):
        path = captions_beside(images)
        try:
            found = [json.loads(line) for line in path.read_text().splitlines()][:count]
            for line in found:
                _ = line["captions"][0], line["nouns"], find_place(line["place"])
            if len(found) < count:
                raise ValueError(f"{len(found)} lines for {count} pictures")
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            remedy = f"remove {images.name} and draw it again: ciar-train scenes"
            raise InvalidInput(str(path), error, remedy) from error
        lines += found
    return lines


def stated_place(caption: str, place: str) -> str | None:
    """The place, if the caption says it in any of the place's phrases; one in eight does not."""
    known = find_place(place)
    phrases = (*known.phrases, *known.titles, *known.over, *known.on_water, *known.by_water)
    text = caption.lower()
    return place if any(phrase.lower() in text for phrase in phrases) else None
