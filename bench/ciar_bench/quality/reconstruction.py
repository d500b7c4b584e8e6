"""How much of a picture its way through a tokenizer leaves."""

import numpy as np
import torch

from ciar_bench.quality.feature_cache import PictureSet

PEAK = 255.0


def peak_ratios(pictures: PictureSet, rebuilt: PictureSet) -> np.ndarray:
    """Peak signal-to-noise ratio of each rebuilt picture, dB, [n], over its uint8 values.

    Infinite where nothing was lost.
    """
    found = []
    for before, after in zip(pictures.batches(), rebuilt.batches(), strict=True):
        errors = (before.double() - after.double()).square().mean(dim=(1, 2, 3))  # [n]
        found.append(10 * torch.log10(PEAK**2 / errors))
    return torch.cat(found).numpy()


def of_all_pixels(ratios: np.ndarray) -> float:
    """The ratio, dB, of the mean squared error of all pictures, from those of each, [n]."""
    return float(-10 * np.log10(np.mean(10 ** (-ratios / 10))))
