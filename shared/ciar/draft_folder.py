"""A draft model's folder, `NAME/edge`: read by edges, and by clouds that recompute features."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ciar.checkpoint import from_dict, load_into, read_config, read_weights, to_device
from ciar.errors import CheckpointError
from ciar.families import make_draft, read_sizes
from ciar.models.inter_head import DraftModel, InterHeadConfig
from ciar.router import DEFAULT_ROUTER, ROUTERS

_NEEDED = frozenset(("kind", "family", "transformer", "head", "target"))
_KNOWN = _NEEDED | {"name", "router", "calibration"}


def read_draft_config(folder: Path) -> dict[str, Any]:
    """Its configuration, checked. Raises `CheckpointError`."""
    config = read_config(folder)
    wrong = [f"missing {key}" for key in sorted(_NEEDED - config.keys())]
    wrong += [f"unknown {key}" for key in sorted(config.keys() - _KNOWN)]
    if wrong:
        raise CheckpointError(f"{folder}: config.json: {', '.join(wrong)}")
    if config["kind"] != "draft":
        raise CheckpointError(f"{folder}: kind {config['kind']!r}, expected 'draft'")
    router = config.get("router", DEFAULT_ROUTER)
    if router not in ROUTERS:
        raise CheckpointError(f"{folder}: router {router!r}, expected one of {', '.join(ROUTERS)}")
    return config


def load_draft(folder: Path, config: Mapping[str, Any], *, device: str = "cpu") -> DraftModel:
    """The model in float32, loaded strictly; config: as read. Raises `CheckpointError`."""
    sizes = read_sizes(config, where=folder)
    head = from_dict(InterHeadConfig, config["head"], where=f"{folder}: head")
    with torch.device("meta"):
        model = make_draft(sizes, head)
    load_into(model, read_weights(folder), where=folder)
    model.rebuild_tables(device)  # not in the weights: still on the meta device
    to_device(model, device=device, dtype=torch.float32)
    return model
