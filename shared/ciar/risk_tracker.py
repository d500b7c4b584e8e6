"""A threshold that follows what the cloud says of kept tokens, from image to image.

Late verification tells of every kept token whether the cloud would have drawn it. The share of an
image's that it would not is the image's loss; the threshold, on ranks of the score, follows it:

    tau <- min(1, tau + step_size (risk - loss))

Below rank 0 everything is asked for and nothing can be lost, so where k images are drawn at a time
tau stays above -k step_size, and for *any* n images the mean loss is at most
risk + (1 + k step_size) / (step_size n)  (adaptive conformal inference, Gibbs and Candès, 2021). An
image's threshold is fixed while it is drawn: its tokens do not depend on when verdicts arrive.
"""

import math
from collections.abc import Sequence

import numpy as np

from ciar.errors import InvalidInput
from ciar.threshold import check_quantiles

STEP_SIZE = 0.1


class RiskTracker:
    """Of one router; one for all images that are to keep to the risk together.

    risk: the share of kept tokens that may differ, on average.
    quantiles: of the score, at 0, 1, ..., 100 percent.
    start: rank of the first threshold: 1 less the share of tokens to ask for, or where another
        tracker has left it.
    """

    def __init__(
        self,
        risk: float,
        quantiles: Sequence[float],
        *,
        start: float = 0.7,
        step_size: float = STEP_SIZE,
    ) -> None:
        if not 0 < risk < 1:
            raise InvalidInput("risk", risk, "give a share above 0 and below 1")
        if not -math.inf < start <= 1:
            raise InvalidInput("start", start, "give a rank from 0 to 1, or where it was left")
        self.risk = risk
        self.rank = start
        self._quantiles = check_quantiles(quantiles)
        self._step_size = step_size

    @property
    def tau(self) -> float:
        """The threshold on the score, for the next image."""
        if self.rank < 0:
            return -math.inf
        ranks = np.linspace(0, 1, len(self._quantiles))
        return float(np.interp(self.rank, ranks, self._quantiles))

    def learn(self, loss: float) -> None:
        """An image was drawn at `tau`: of its kept tokens this share differed."""
        assert 0 <= loss <= 1, "a loss is a share"
        self.rank = min(1.0, self.rank + self._step_size * (self.risk - loss))
