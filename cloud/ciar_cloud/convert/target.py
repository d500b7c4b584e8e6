"""Target folders, whatever family was converted."""

from dataclasses import asdict
from typing import Any

import torch

from ciar.models.inter_head import InterHeadConfig
from ciar.models.transformer import TransformerConfig
from ciar.target import TargetModel
from ciar.types import SamplingParams
from ciar_cloud.convert.reader import LazyTensor, Tensors
from ciar_cloud.convert.writer import Entry, entries_of

FEATURE_DIM = InterHeadConfig().feature_dim


def target_entries(
    transformer: Tensors, config: TransformerConfig, dtype: torch.dtype | None
) -> dict[str, Entry]:
    """What `TargetModel` loads; interval features change nothing until a draft is trained.

    transformer: under our names.  dtype: None keeps that of each tensor. Raises `CheckpointError`.
    """
    with torch.device("meta"):
        model = TargetModel(config, feature_dim=FEATURE_DIM)
    shape = (config.dim, FEATURE_DIM)
    found = {f"transformer.{name}": tensor for name, tensor in transformer.items()}
    found["injection.weight"] = LazyTensor(shape, torch.float32, lambda: torch.zeros(shape))
    return entries_of(model, found, dtype)


def target_configuration(
    config: TransformerConfig, *, name: str, sampling: SamplingParams
) -> dict[str, Any]:
    """`config.json` of the target."""
    return {
        "kind": "target",
        "family": config.family,
        "name": name,
        "transformer": asdict(config),
        "feature_dim": FEATURE_DIM,
        "sampling": {k: v for k, v in asdict(sampling).items() if k != "seed"},
    }
