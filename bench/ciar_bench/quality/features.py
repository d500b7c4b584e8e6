"""Pictures to features: what distances between sets of pictures are measured in.

n pictures   D width of a feature
"""

import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ciar.errors import InvalidInput
from ciar_bench.quality.fetch import INCEPTION, find

BATCH = 32


class FeatureExtractor(Protocol):
    """name: as tables name it.  width: D."""

    name: str
    width: int

    def __call__(self, pictures: Tensor) -> Tensor:
        """uint8 [n, 3, H, W] -> float32 [n, D]."""
        ...


class InceptionFeatures:
    """The Inception of FID. Pictures are resized as clean-fid does: bicubic, with antialiasing."""

    name, width, size = "inception", 2048, 299

    def __init__(self, path: Path | None = None, *, device: str = "cpu") -> None:
        with warnings.catch_warnings():  # torch would rather have another form: it has no other
            warnings.simplefilter("ignore", DeprecationWarning)
            model = torch.jit.load(path or find(INCEPTION), map_location=device)  # type: ignore[no-untyped-call]
        self._model = model.eval()
        self._device = device

    @torch.inference_mode()
    def __call__(self, pictures: Tensor) -> Tensor:
        pixels = resized(pictures.to(self._device), self.size)
        features: Tensor = self._model(pixels / 127.5 - 1)
        return features.float().cpu()


def resized(pictures: Tensor, size: int) -> Tensor:
    """uint8 [n, 3, H, W] -> float32 [n, 3, size, size] from 0 to 255."""
    pixels = pictures.float()
    if pixels.shape[-2:] == (size, size):
        return pixels
    shape = (size, size)
    pixels = F.interpolate(pixels, shape, mode="bicubic", antialias=True, align_corners=False)
    return pixels.clamp(0, 255)


def read_pictures(paths: Iterable[Path], *, batch: int = BATCH) -> Iterator[Tensor]:
    """uint8 [n, 3, H, W], up to `batch` at a time. Raises `InvalidInput` for what is no picture."""
    rows: list[Tensor] = []
    for path in paths:
        try:
            with Image.open(path) as image:
                pixels = np.array(image.convert("RGB"))
        except OSError as error:
            raise InvalidInput("picture", str(path), f"give an image file: {error}") from error
        rows.append(torch.from_numpy(pixels).permute(2, 0, 1))
        if rows[0].shape != rows[-1].shape:
            raise InvalidInput("picture", str(path), "give pictures of one size")
        if len(rows) == batch:
            yield torch.stack(rows)
            rows = []
    if rows:
        yield torch.stack(rows)
