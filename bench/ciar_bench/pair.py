"""A pair of a size with random weights: the right shapes to time, without a training."""

import shutil
from pathlib import Path

import torch
from torch import nn

from ciar.checkpoint import DEFAULT_MODEL, find_model
from ciar.models.vq import VQModel
from ciar.target import TargetModel
from ciar_train.draft import new_draft
from ciar_train.export import export_draft, export_target, export_vq
from ciar_train.sizes import Size
from ciar_train.target import init_weights

HEAD_STD = 0.05  # of output heads, so that predictions are neither flat nor certain


def write_random_pair(size: Size, folder: Path, *, seed: int = 0) -> Path:
    """A model bundle of the size's shapes.

    Edge and cloud are unrelated: they agree by chance only.
    """
    torch.manual_seed(seed)
    target = TargetModel(size.transformer, feature_dim=size.head.feature_dim)
    draft = new_draft(size.transformer, size.head, size.draft.shape)
    for model in (target.transformer, draft):
        init_weights(model, num_layers=model.config.num_layers)
    for head in (target.transformer.output, draft.inter_head.centre):
        nn.init.normal_(head.weight, std=HEAD_STD)
    fingerprint = export_target(target, folder / "cloud", name="random", sampling=size.sampling)
    export_draft(
        draft, folder / "edge", name="random", target_fingerprint=fingerprint, calibration={}
    )
    export_vq(VQModel(size.vq), folder / "vq")
    shutil.copytree(find_model(DEFAULT_MODEL) / "text", folder / "text", dirs_exist_ok=True)
    return folder
