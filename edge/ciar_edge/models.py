"""The edge's model folder, loaded: the draft model, and what its checkpoint knows of the cloud and
of its scores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from ciar.checkpoint import from_dict, load_into, read_config, read_weights, to_device
from ciar.errors import CheckpointError, InvalidInput
from ciar.families import make_draft, read_sizes
from ciar.models.inter_head import DraftModel, InterHeadConfig
from ciar.router import DEFAULT_ROUTER, ROUTERS
from ciar.threshold import check_quantiles
from ciar_edge.doubt import Doubt
from ciar_edge.drafter import PreparedDraft

_NEEDED = frozenset(("kind", "family", "transformer", "head", "target"))
_KNOWN = _NEEDED | {"name", "router", "calibration"}


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
    """Load `NAME/edge` for the CPU in float32, strictly; raises `CheckpointError`."""
    config = read_config(folder)
    _check_config(config, folder)
    sizes = read_sizes(config, where=folder)
    head = from_dict(InterHeadConfig, config["head"], where=f"{folder}: head")
    with torch.device("meta"):
        model = make_draft(sizes, head)
    load_into(model, read_weights(folder), where=folder)
    model.rebuild_tables("cpu")  # not in the weights: still on the meta device
    to_device(model, device="cpu", dtype=torch.float32)
    return EdgeModel(
        draft=model,
        name=str(config.get("name", "")),
        target=str(config["target"]),
        router=config.get("router", DEFAULT_ROUTER),
        calibration=_calibration(config.get("calibration", {}), folder),
    )


def _check_config(config: Mapping[str, object], folder: Path) -> None:
    wrong = [f"missing {key}" for key in sorted(_NEEDED - config.keys())]
    wrong += [f"unknown {key}" for key in sorted(config.keys() - _KNOWN)]
    if wrong:
        raise CheckpointError(f"{folder}: config.json: {', '.join(wrong)}")
    if config["kind"] != "draft":
        raise CheckpointError(f"{folder}: kind {config['kind']!r}, expected 'draft'")
    router = config.get("router", DEFAULT_ROUTER)
    if router not in ROUTERS:
        raise CheckpointError(f"{folder}: router {router!r}, expected one of {', '.join(ROUTERS)}")


def _calibration(values: Mapping[str, Sequence[float]], folder: Path) -> dict[str, list[float]]:
    """Quantiles by score name.

    Names that no router has are left alone: another release may know them.
    """
    try:
        return {name: check_quantiles(row) for name, row in values.items()}
    except (InvalidInput, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder}: config.json: {error}") from error
