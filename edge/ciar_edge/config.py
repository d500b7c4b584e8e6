"""How an image is decoded: what the user may choose, checked when it is built."""

from dataclasses import dataclass
from typing import Literal, get_args

from ciar.errors import InvalidInput
from ciar.prefix import DEFAULT_PREFIX_RATE, prefix_length

Mode = Literal["blocking", "optimistic", "exact", "offline"]
MODES: tuple[Mode, ...] = get_args(Mode)
MAX_DRAFT = 256


@dataclass(frozen=True, kw_only=True)
class DecodeConfig:
    """How edge and cloud share the work.

    mode: `blocking` asks for one uncertain token at a time and waits; `optimistic` drafts on
        meanwhile, and goes back where the cloud differs; `exact` has every token
        verified, so the image is the cloud's own; `offline` never calls.
    prefix_rate: share of the image that the cloud draws first.
    has_features: send the interval features of kept tokens; without them they enter the cloud as
        plain tokens.
    max_draft: most tokens that `exact` drafts ahead of a verification.
    """

    mode: Mode = "blocking"
    prefix_rate: float = DEFAULT_PREFIX_RATE
    has_features: bool = True
    max_draft: int = 16

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InvalidInput("mode", self.mode, f"give one of {', '.join(MODES)}")
        if not 0 <= self.prefix_rate <= 1:
            raise InvalidInput("prefix_rate", self.prefix_rate, "give a share from 0 to 1")
        if not 1 <= self.max_draft <= MAX_DRAFT:
            raise InvalidInput("max_draft", self.max_draft, f"give a count from 1 to {MAX_DRAFT}")

    def num_prefix(self, num_tokens: int) -> int:
        return prefix_length(self.prefix_rate, num_tokens)
