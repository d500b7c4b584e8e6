"""How often the cloud agrees to what it is asked, and what is worth doing ahead of its answer."""

_MEMORY = 0.9  # how much of the measured agreement is left after another batch

# A token that stands gives more than its successor costs from about this share on: the successor
# is another row of a forward pass (6 % of a step of `mini` on a CPU, less on a GPU), and about
# every third time it saves a whole step and a round trip.
_WORTHWHILE = 0.15


class Agreement:
    """Of one image; begins hopeful: two of three stand."""

    def __init__(self) -> None:
        self._num_agreed, self._num_differed = 2.0, 1.0

    @property
    def is_likely(self) -> bool:
        """Whether it pays to prepare for a token that stands."""
        return self._num_agreed >= _WORTHWHILE * (self._num_agreed + self._num_differed)

    def learn(self, num_agreed: int, num_asked: int) -> None:
        """Of so many tokens in a row, that many stood until the first difference or the end."""
        self._num_agreed = _MEMORY * self._num_agreed + num_agreed
        self._num_differed = _MEMORY * self._num_differed + (num_agreed < num_asked)
