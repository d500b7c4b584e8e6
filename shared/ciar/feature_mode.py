"""What kept tokens enter the cloud with beside their ids.

    send        interval-feature codes that come with them
    none        nothing: they are tokens like all others
    recompute   codes that the cloud makes itself, with the draft model, from the tokens before

Without torch, so that command lines can check it at once.
"""

from typing import Literal, get_args

from ciar.errors import InvalidInput

FeatureMode = Literal["send", "none", "recompute"]
FEATURE_MODES: tuple[FeatureMode, ...] = get_args(FeatureMode)


def check_feature_mode(features: str, *, wavefront: int = 0) -> None:
    """Raise `InvalidInput` unless it is one, and can be had along a wavefront if there is one."""
    if features not in FEATURE_MODES:
        raise InvalidInput("features", features, f"give one of {', '.join(FEATURE_MODES)}")
    if features == "recompute" and wavefront:
        remedy = "give send or none: along a wavefront the cloud recomputes none"
        raise InvalidInput("features", features, remedy)
