"""Fields of smooth random numbers: clouds, grass, sand, wood, water.

A field is made once for each kind and size, twice as large as the picture, with mean 0, standard
deviation 1 and edges that join. A picture takes a window of it at a random place. The spectrum
falls as `frequency ** -exponent`, flat below the lowest frequency.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from ciar_train.scenes.colour import Array


@dataclass(frozen=True)
class _Spectrum:
    exponent: float
    lowest: float
    stretch_x: float = 1.0
    stretch_y: float = 1.0
    is_softened: bool = False  # without the finest grain, which would only flicker


_SPECTRA = {
    "cloud": _Spectrum(1.75, 2.0, stretch_x=2.4),
    "soft": _Spectrum(2.0, 1.5),
    "fine": _Spectrum(0.55, 6, is_softened=True),
    "mid": _Spectrum(1.2, 3),
    "water": _Spectrum(1.0, 5, stretch_x=5.0, is_softened=True),
    "wood": _Spectrum(1.1, 3, stretch_x=14.0),
    "grass": _Spectrum(0.7, 5, stretch_y=3.0, is_softened=True),
}
SMOOTH_KINDS = ("cloud", "soft")  # light and weather rather than texture


@cache
def noise_field(kind: str, size: int) -> Array:
    """The field of one kind for pictures of `size` pixels: float32 [2 * size, 2 * size]."""
    spectrum = _SPECTRA[kind]
    n = 2 * size
    rng = np.random.default_rng(sum(map(ord, kind)))
    fy = np.fft.fftfreq(n)[:, None] * n * spectrum.stretch_y
    fx = np.fft.rfftfreq(n)[None] * n * spectrum.stretch_x
    frequency = np.sqrt(fx * fx + fy * fy)
    frequency[0, 0] = 1
    gain = (np.maximum(frequency, spectrum.lowest * 2)) ** (-spectrum.exponent)
    gain[0, 0] = 0
    if spectrum.is_softened:
        gain = gain * np.exp(-((frequency / (n * 0.42)) ** 2))
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((n, n))) * gain, s=(n, n))
    scaled: Array = (field / field.std()).astype(np.float32)
    scaled.flags.writeable = False
    return scaled
