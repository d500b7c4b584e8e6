"""What was measured of a model's static thresholds: how much of what the edge keeps is wrong, and
how many calls that costs. It lies beside the draft model's weights.

    risk    expected share of an image's kept tokens that differ from the cloud's own draw in the
            same context
    level   a risk that a threshold has with probability 1 - delta over the calibration images

`ciar-bench certify` makes it. It is of one pair of models, one score and one way to draw.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ciar.checkpoint import from_dict
from ciar.errors import CheckpointError, InvalidInput
from ciar.feature_mode import FeatureMode
from ciar.output_file import replace_file
from ciar.types import SamplingParams

CERTIFICATE_FILE = "certificate.json"
VERSION = 1
MAKE = "make one with ciar-bench certify"  # the remedy


@dataclass(frozen=True, kw_only=True)
class Mean:
    """Over images, with its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A threshold on the calibration images.

    calls: cloud calls a token of the image, prefix included, where a verdict brings the next token
        along.  sent: tokens that the edge does not keep.
    """

    threshold: float
    risk: Mean
    calls: Mean
    sent: Mean


@dataclass(frozen=True, kw_only=True)
class Level:
    """The largest thresholds found to have this risk; None: no measured one was.

    conformal: by conformal risk control, which bounds the mean over calibrations and supposes that
    the loss only grows with the threshold. For comparison: it is not used.
    """

    risk: float
    threshold: float | None
    conformal: float | None


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """target, draft: fingerprints of the pair.  measured: by ascending threshold.

    sampling: all parameters but the seed.  prompts: which, in words.  levels: by ascending risk.
    """

    date: str
    target: str
    draft: str
    router: str
    sampling: Mapping[str, Any]
    prefix_rate: float
    prompts: str
    num_images: int
    delta: float
    measured: tuple[Measured, ...]
    levels: tuple[Level, ...]

    def check_edge(
        self,
        *,
        draft: str,
        router: str,
        prefix_rate: float,
        wavefront: int = 0,
        features: FeatureMode = "send",
        epsilon: float = 0.0,
    ) -> None:
        """Raise `InvalidInput` unless it was made for these. draft: the fingerprint."""
        self._check_model("draft", draft)
        if features == "none":
            remedy = "give send or recompute: certificates are for clouds that have the features"
            raise InvalidInput("features", features, remedy)
        if epsilon:
            remedy = "give 0: certificates are for uncertain tokens that are the cloud's"
            raise InvalidInput("epsilon", epsilon, remedy)
        if wavefront:
            remedy = "give 0: certificates are for images drawn in raster order"
            raise InvalidInput("wavefront", wavefront, remedy)
        self._check("router", router, self.router)
        self._check("prefix_rate", prefix_rate, self.prefix_rate)

    def check_cloud(self, *, target: str, sampling: SamplingParams) -> None:
        """Raise `InvalidInput` unless it was made for these. target: the fingerprint."""
        self._check_model("target", target)
        for name, value in sampling_of(sampling).items():
            self._check(name, value, self.sampling.get(name))

    def _check_model(self, part: str, fingerprint: str) -> None:
        if fingerprint != (own := getattr(self, part)):
            raise InvalidInput(
                part, fingerprint, f"the certificate is for another model, {own}: {MAKE}"
            )

    def _check(self, name: str, value: Any, own: Any) -> None:
        if value != own:
            remedy = f"the certificate is for {own!r}: give that, or {MAKE}"
            raise InvalidInput(name, value, remedy)

    def threshold(
        self, max_risk: float, *, budget: float | None = None, is_one_by_one: bool = True
    ) -> float:
        """One with at most that risk: the largest, or with a budget the smallest that keeps it.

        is_one_by_one: tokens are asked for one after another, so that a verdict brings the next
        one along.  Raises `InvalidInput`.
        """
        check_risk(max_risk)
        found = {one.risk: one.threshold for one in self.levels if one.threshold is not None}
        certified = max((found[risk] for risk in found if risk <= max_risk), default=None)
        if certified is None:
            least = f"give at least {min(found):g}" if found else "no risk is certified: give none"
            raise InvalidInput("max_risk", max_risk, f"{least}, or {MAKE} and more images")
        if budget is None:
            return certified
        rows = [one for one in self.measured if one.threshold <= certified]
        calls = {one.threshold: one.calls if is_one_by_one else one.sent for one in rows}
        for threshold, share in calls.items():
            if share.high <= budget:
                return threshold
        least_calls = min(calls.values(), key=lambda share: share.high)
        needed = math.ceil(1000 * least_calls.high - 1e-6) / 1000
        raise InvalidInput(
            "budget",
            budget,
            f"infeasible: a risk of at most {max_risk:g} needs a budget of {needed:g} "
            f"(expected calls {least_calls.mean:.3f}, 95 % interval {least_calls.low:.3f} to "
            f"{least_calls.high:.3f}); give that, or a larger risk",
        )

    def write(self, folder: Path) -> None:
        text = json.dumps({"version": VERSION, **asdict(self)}, indent=1)
        replace_file(folder / CERTIFICATE_FILE, f"{text}\n".encode())


def check_risk(max_risk: float) -> None:
    """Raise `InvalidInput`."""
    if not 0 < max_risk < 1:
        raise InvalidInput("max_risk", max_risk, "give a share above 0 and below 1")


def sampling_of(sampling: SamplingParams) -> dict[str, Any]:
    """Without the seed."""
    return {name: value for name, value in asdict(sampling).items() if name != "seed"}


def read_certificate(folder: Path, *, max_risk: float) -> Certificate:
    """Of the draft model in a folder.

    Raises `InvalidInput` where there is none, `CheckpointError` for a damaged one.
    """
    path = folder / CERTIFICATE_FILE
    try:
        values = json.loads(path.read_text())
        version = values.pop("version")
        if version != VERSION:
            raise CheckpointError(f"{path}: version {version!r}, expected {VERSION}: {MAKE}")
        parts = {
            "measured": tuple(
                from_dict(Measured, row, where="measured") for row in values["measured"]
            ),
            "levels": tuple(from_dict(Level, row, where="levels") for row in values["levels"]),
        }
        return from_dict(Certificate, values | parts, where=str(path))
    except FileNotFoundError:
        remedy = f"no certificate beside the weights, {path}: {MAKE}, or give a budget instead"
        raise InvalidInput("max_risk", max_risk, remedy) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error!r}") from error
