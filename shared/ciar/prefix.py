"""How much of an image the cloud draws before the edge starts (Prefix Injection).

Without torch, so that command lines can show the default at once.
"""

import math

DEFAULT_PREFIX_RATE = 0.06  # rho


def prefix_length(rate: float, num_tokens: int) -> int:
    """`m = floor(rho T)`."""
    return math.floor(rate * num_tokens)
