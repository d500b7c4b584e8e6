"""How likely the cloud is to draw another token than the edge, as the router's score tells.

Scores are ranked among those of all tokens, and every rank has its share of differences: a guess
at first, then what the images of this process have shown. It changes how far ahead the edge drafts
and when it asks, never a token.
"""

from collections.abc import Callable, Sequence

from ciar.threshold import RunningRank, calibrated_rank

NUM_BINS = 20  # of equal width in rank
_NUM_SEEN = 1024  # scores without quantiles, until they have some
_GUESS_WEIGHT = 4.0  # a guess counts like so many answers
_MEMORY = 0.995  # how much of the older answers is left after another one in their bin


class Doubt:
    """Shared by all images of a model, for one router.

    quantiles: of its score, at 0, 1, ..., 100 percent; without them a score is ranked among those
        seen before it.
    """

    def __init__(self, quantiles: Sequence[float] | None = None) -> None:
        self._seen = RunningRank()
        self._rank: Callable[[float], float] = (
            self._seen if quantiles is None else calibrated_rank(quantiles)
        )
        self._asked = [_GUESS_WEIGHT] * NUM_BINS
        self._differed = [_GUESS_WEIGHT * guess((i + 0.5) / NUM_BINS) for i in range(NUM_BINS)]

    def rank(self, score: float) -> float:
        """In [0, 1], among the scores of all tokens."""
        rank = self._rank(score)
        if len(self._seen) == _NUM_SEEN:
            self._rank = calibrated_rank(self._seen.quantiles())
            self._seen.forget(0)
        return rank

    def of(self, rank: float) -> float:
        """The probability that the cloud differs."""
        number = bin_of(rank)
        return self._differed[number] / self._asked[number]

    def learn(self, rank: float, *, differs: bool) -> None:
        number = bin_of(rank)
        self._asked[number] = _MEMORY * self._asked[number] + 1
        self._differed[number] = _MEMORY * self._differed[number] + differs


def bin_of(rank: float) -> int:
    return min(int(rank * NUM_BINS), NUM_BINS - 1)


def guess(rank: float) -> float:
    """Before any answer: none of the surest 70 % differ, all of the least sure do."""
    return max(0.0, (rank - 0.7) / 0.3)
