"""The edge's model folder, loaded: the draft model, and what its checkpoint knows of the cloud and
of its scores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ciar.draft_folder import load_draft, read_draft_config
from ciar.errors import CheckpointError, InvalidInput
from ciar.models.inter_head import DraftModel
from ciar.router import DEFAULT_ROUTER
from ciar.threshold import check_quantiles
from ciar_edge.doubt import Doubt
from ciar_edge.drafter import PreparedDraft


@dataclass(frozen=True, kw_only=True, eq=False)
class EdgeModel:
    """A draft model and its checkpoint's facts.

    target: fingerprint of the cloud folder it was trained for; empty: any cloud of the same sizes
    will do.
    router: the score that routes best on this pair.  calibration: quantiles by score name.
    """

    draft: DraftModel
    name: str = ""
    target: str = ""
    router: str = DEFAULT_ROUTER
    calibration: Mapping[str, Sequence[float]] = field(default_factory=dict)
    _doubts: dict[str, Doubt] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def prepared(self) -> PreparedDraft:
        """The weights laid out for drafting, shared by all images."""
        return PreparedDraft(self.draft)

    def doubt(self, router: str) -> Doubt:
        """How likely the cloud is to differ, as all images so far have shown; shared by them."""
        if router not in self._doubts:
            self._doubts[router] = Doubt(self.calibration.get(router))
        return self._doubts[router]


def load_draft_model(folder: Path) -> EdgeModel:
    """Load `NAME/edge` for the CPU; raises `CheckpointError`."""
    config = read_draft_config(folder)
    return EdgeModel(
        draft=load_draft(folder, config),
        name=str(config.get("name", "")),
        target=str(config["target"]),
        router=config.get("router", DEFAULT_ROUTER),
        calibration=_calibration(config.get("calibration", {}), folder),
    )


def _calibration(values: Mapping[str, Sequence[float]], folder: Path) -> dict[str, list[float]]:
    """Quantiles by score name.

    Names that no router has are left alone: another release may know them.
    """
    try:
        return {name: check_quantiles(row) for name, row in values.items()}
    except (InvalidInput, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder}: config.json: {error}") from error
