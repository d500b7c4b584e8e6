"""Pictures to features: what distances between sets of pictures are measured in.

    n pictures   D width of a feature

Two of them need no network once `ciar-bench fetch-features` has run. CLIP is in `clip`.
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
from ciar_bench.quality.fetch import EFFICIENTNET_LITE0, INCEPTION, find, sha256_of

BATCH = 32


class FeatureExtractor(Protocol):
    """A frozen network.

    name: in options and file names.  label: in tables.  width: D.  fingerprint: of its weights.
    """

    name: str
    label: str
    width: int
    fingerprint: str

    def __call__(self, pictures: Tensor) -> Tensor:
        """uint8 [n, 3, H, W] -> float32 [n, D]."""
        ...


class InceptionFeatures:
    """The Inception of FID. Pictures are resized as clean-fid does: bicubic, with antialiasing."""

    name, label, width, size = "inception", "Inception", 2048, 299

    def __init__(self, path: Path | None = None, *, device: str = "cpu") -> None:
        path = path or find(INCEPTION)
        self.fingerprint = sha256_of(path)[:16]
        with warnings.catch_warnings():  # torch would rather have another form: it has no other
            warnings.simplefilter("ignore", DeprecationWarning)
            model = torch.jit.load(path, map_location=device)  # type: ignore[no-untyped-call]
        self._model = model.eval()
        self._device = device

    @torch.inference_mode()
    def __call__(self, pictures: Tensor) -> Tensor:
        pixels = resized(pictures.to(self._device), self.size)
        features: Tensor = self._model(pixels / 127.5 - 1)
        return features.float().cpu()


class EfficientNetFeatures:
    """EfficientNet-Lite0 on ImageNet (Tan and Le 2019), pooled over the picture at 128 px.

    has_maxima: the largest values of each channel follow the means, which a caption scorer needs
    to find small things.
    """

    label, size = "EffNetLite0", 128

    def __init__(
        self, path: Path | None = None, *, has_maxima: bool = False, device: str = "cpu"
    ) -> None:
        from efficientnet_lite_pytorch import EfficientNet

        path = path or find(EFFICIENTNET_LITE0)
        self.fingerprint = sha256_of(path)[:16]
        self.name = "efficientnet-maxima" if has_maxima else "efficientnet"
        self.width = 2560 if has_maxima else 1280
        self._has_maxima, self._device = has_maxima, device
        model = EfficientNet.from_name("efficientnet-lite0")
        model.load_state_dict(torch.load(path, weights_only=True, map_location=device))
        self._model = model.eval().to(device, memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, pictures: Tensor) -> Tensor:
        pixels = (resized(pictures.to(self._device), self.size) - 127) / 128
        channels: Tensor = self._model.extract_features(
            pixels.contiguous(memory_format=torch.channels_last)
        )  # [n, 1280, 4, 4]
        pooled = [channels.mean((2, 3))]
        if self._has_maxima:
            pooled.append(channels.amax((2, 3)))
        return torch.cat(pooled, 1).float().cpu()


def resized(pictures: Tensor, size: int) -> Tensor:
    """uint8 [n, 3, H, W] -> float32 [n, 3, size, size] from 0 to 255."""
    pixels = pictures.float()
    if pixels.shape[-2:] == (size, size):
        return pixels
    shape = (size, size)
    pixels = F.interpolate(pixels, shape, mode="bicubic", antialias=True, align_corners=False)
    return pixels.clamp(0, 255)


def read_pictures(
    paths: Iterable[Path], *, size: int | None = None, batch: int = BATCH
) -> Iterator[Tensor]:
    """uint8 [n, 3, H, W], up to `batch` at a time. Raises `InvalidInput` for what is no picture.

    size: H and W to bring them to, without regard to their shape, as clean-fid does.
    """
    rows: list[Tensor] = []
    for path in paths:
        try:
            with Image.open(path) as image:
                pixels = np.array(image.convert("RGB"))
        except OSError as error:
            raise InvalidInput("picture", str(path), f"give an image file: {error}") from error
        picture = torch.from_numpy(pixels).permute(2, 0, 1)
        if size:
            picture = resized(picture[None], size)[0].round().to(torch.uint8)
        rows.append(picture)
        if rows[0].shape != rows[-1].shape:
            raise InvalidInput("picture", str(path), "give pictures of one size, or a size")
        if len(rows) == batch:
            yield torch.stack(rows)
            rows = []
    if rows:
        yield torch.stack(rows)
