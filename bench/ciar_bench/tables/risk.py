"""What is left wrong at a share of calls: every score against the truth, on the same rollouts.

    risk        tokens that the edge keeps and the cloud would have drawn otherwise, a routed token
    AUROC       of a score against "the draws differ", and against "TV above its median"

Intervals come from images drawn anew with replacement.

    N routed positions   S shares of calls
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ciar_bench.quality.bootstrap import Estimate, Measurement
from ciar_bench.routing import CEILING, DIFFERS, IMAGE, by_score, scores_in
from ciar_train.losses import auroc

SHARES = tuple(round(0.05 * i, 2) for i in range(21))  # of calls
SHOWN = (0.05, 0.1, 0.2, 0.3, 0.365, 0.5)
NUM_RESAMPLES = 100


@dataclass(frozen=True, kw_only=True)
class RiskCurve:
    """risks: at `SHARES`, and at those of `SHOWN`.  aurocs: by what they are against."""

    score: str
    risks: dict[float, Estimate]
    aurocs: dict[str, Estimate]

    @property
    def numbers(self) -> dict[str, Estimate]:
        """For a table."""
        shown = {f"risk at {share:.1%}": self.risks[share] for share in SHOWN}
        return {f"AUROC, {what}": found for what, found in self.aurocs.items()} | shown


def risk_curves(
    values: Mapping[str, Tensor], *, names: Sequence[str] | None = None
) -> list[RiskCurve]:
    """values: of `ciar_bench.routing.watch_routing`.  names: of scores; None: all."""
    shares = sorted({*SHARES, *SHOWN})
    return [curve(name, values, shares) for name in names or scores_in(values)]


def curve(name: str, values: Mapping[str, Tensor], shares: list[float]) -> RiskCurve:
    scores, differs, tv = values[name], values[DIFFERS], values[CEILING]
    is_hard = tv > tv.median()
    rows = rows_of_images(values[IMAGE])

    def numbers(picked: Tensor) -> np.ndarray:
        """Of some positions: risks at all shares, then both AUROCs."""
        risks = risks_at(scores[picked], differs[picked], shares)
        found = [auroc(scores[picked], labels[picked]) for labels in (differs, is_hard)]
        return np.array([*risks, *found])

    whole = numbers(torch.arange(len(scores)))
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(NUM_RESAMPLES):
        images = rng.integers(len(rows), size=len(rows))
        drawn.append(numbers(torch.cat([rows[i] for i in images])))
    columns = np.array(drawn).T
    found = [Measurement(v, c).estimate() for v, c in zip(whole, columns, strict=True)]
    return RiskCurve(
        score=name,
        risks=dict(zip(shares, found[:-2], strict=True)),
        aurocs={"the draws differ": found[-2], "TV above its median": found[-1]},
    )


def rows_of_images(image: Tensor) -> list[Tensor]:
    """Positions of each image, from the image of each position [N]."""
    order = image.argsort(stable=True)
    return list(torch.split(order, image.bincount().tolist()))


def risks_at(scores: Tensor, differs: Tensor, shares: list[float]) -> list[float]:
    """Share of positions [n] that differ and are not among the highest scores."""
    left = torch.cat([torch.zeros(1), by_score(differs, scores).cumsum(0)])
    return [float(left[round((1 - share) * len(scores))]) / len(scores) for share in shares]
