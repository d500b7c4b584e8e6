"""How far a token's perturbed score may fall short of the cloud's best one, in nats, to stand.

    epsilon   an uncertain token; 0: the cloud has to draw it, too
    max_gap   a kept token; infinity: nobody looks

Without torch, so that command lines can check it at once.
"""

import math

from ciar.errors import InvalidInput

DEFAULT_MAX_GAP = 5.0  # of optimistic edges: nine tenths of what falls short by more than 4


def check_tolerances(epsilon: float, max_gap: float) -> None:
    """Raise `InvalidInput` unless they are tolerances."""
    if not (math.isfinite(epsilon) and epsilon >= 0):
        raise InvalidInput("epsilon", epsilon, "give a number of nats, 0 or more")
    if not max_gap >= 0:
        raise InvalidInput("max_gap", max_gap, "give a number of nats, 0 or more")
