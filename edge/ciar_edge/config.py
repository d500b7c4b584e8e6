"""How an image is decoded: what the user may choose, checked when it is built."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from ciar.errors import InvalidInput
from ciar.feature_mode import FeatureMode, check_feature_mode
from ciar.prefix import DEFAULT_PREFIX_RATE, prefix_length
from ciar.tolerance import check_tolerances

Mode = Literal["blocking", "optimistic", "exact", "offline"]
MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True, kw_only=True)
class DecodeConfig:
    """How edge and cloud share the work.

    mode: `blocking` asks for one uncertain token at a time and waits; `optimistic` drafts on
        meanwhile, and goes back where the cloud differs; `exact` does so and has every token
        verified, so the image is the cloud's own; `offline` never calls.
    prefix_rate: share of the image that the cloud draws first.
    features: what kept tokens enter the cloud with: `send` their interval features, `none`, or let
        the cloud `recompute` them from the tokens.
    epsilon: how far an uncertain token's perturbed score may fall short of the cloud's best one, in
        nats, for it to stand; 0: the cloud has to draw it, too.
    max_gap: the same for kept tokens, looked at when the cloud has them anyway: `optimistic` goes
        back to those that fall shorter. 0: all are the cloud's; infinity: nobody looks.
    wavefront: tokens that a row is behind the row above, so that rows are drawn side by side; 0:
        raster order, row after row.
    """

    mode: Mode = "blocking"
    prefix_rate: float = DEFAULT_PREFIX_RATE
    features: FeatureMode = "send"
    epsilon: float = 0.0
    max_gap: float = math.inf
    wavefront: int = 0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InvalidInput("mode", self.mode, f"give one of {', '.join(MODES)}")
        if self.wavefront < 0:
            raise InvalidInput("wavefront", self.wavefront, "give a count of tokens, 0 for none")
        check_feature_mode(self.image_features, wavefront=self.wavefront)
        if not 0 <= self.prefix_rate <= 1:
            raise InvalidInput("prefix_rate", self.prefix_rate, "give a share from 0 to 1")
        check_tolerances(self.epsilon, self.max_gap)
        if self.epsilon and self.mode == "exact":
            raise InvalidInput("epsilon", self.epsilon, "exact decoding takes none; give 0")
        if self.max_gap < math.inf and self.mode != "optimistic":
            raise InvalidInput(
                "max_gap", self.max_gap, "only optimistic decoding can go back to kept tokens"
            )

    @property
    def image_features(self) -> FeatureMode:
        """Of a request: `exact` keeps tokens only where verdicts are late, and those are plain."""
        return "none" if self.mode == "exact" else self.features

    def num_prefix(self, num_tokens: int) -> int:
        return prefix_length(self.prefix_rate, num_tokens)
