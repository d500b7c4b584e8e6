"""The cloud's parts of a model bundle: target, text encoder, and what they promise to an edge."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ciar.checkpoint import (
    find_model,
    fingerprint,
    load_into,
    read_config,
    read_sampling,
    read_weights,
    to_device,
)
from ciar.draft_folder import load_draft, read_draft_config
from ciar.errors import CheckpointError, InvalidInput
from ciar.families import make_transformer, read_sizes
from ciar.models.inter_head import DraftModel
from ciar.models.packed import pack
from ciar.models.transformer import Transformer, TransformerConfig
from ciar.target import TargetModel
from ciar.text import TextFeatures, load_text
from ciar.types import ModelInfo
from ciar_cloud.text import MAX_PROMPT_CHARS

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True, eq=False)
class FrontModel:
    """What serving needs where the target itself is elsewhere.

    transformer: of the target; nothing but its prompt's part need have weights.
    draft_folder: of the draft model that recomputes features; None: none does.
    """

    folder: Path
    encoder: TextFeatures
    info: ModelInfo
    transformer: Transformer
    draft_folder: Path | None = None

    def condition_rows(self, features: Tensor) -> Tensor:
        """Text features [L, condition_dim] to an edge's first rows: float32 [L, D], on the CPU."""
        like = next(self.transformer.cls_embedding.buffers())
        return self.transformer.condition_rows(features.to(like)).float().cpu()


@dataclass(frozen=True, kw_only=True, eq=False)
class CloudModel(FrontModel):
    """What a cloud serves."""

    target: TargetModel
    draft: DraftModel | None = None  # recomputes features


def load_cloud_model(
    model: str,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    max_batch_tokens: int = 0,
    recompute_features: bool | None = False,
) -> CloudModel:
    """Load `cloud/` and `text/` of a bundle, by folder or embedded name.

    max_batch_tokens: most tokens in one batch, 0 for as many as an image has.
    recompute_features: load `edge/`, too; None: if it is there (see `find_draft`).

    Raises `CheckpointError` for a bundle that cannot be used and `InvalidInput` for a device that
    is not there.
    """
    check_dtype(dtype)
    check_device(device)
    folder = find_model(model)
    config = read_target_config(folder / "cloud")
    target = TargetModel.load(folder / "cloud", device=device, dtype=DTYPES[dtype])
    encoder = load_text(folder / "text")
    check_fit(folder, target.config, encoder)
    pack(target.transformer)
    info = model_info(
        folder / "cloud", config, target.transformer, max_batch_tokens=max_batch_tokens
    )
    draft_folder = find_draft(folder, info, is_wanted=recompute_features)
    return CloudModel(
        folder=folder,
        encoder=encoder,
        info=replace(info, can_recompute=draft_folder is not None),
        transformer=target.transformer,
        draft_folder=draft_folder,
        target=target,
        draft=load_redraft(draft_folder, device=device) if draft_folder else None,
    )


def load_front_model(
    model: str,
    *,
    dtype: str = "float32",
    max_batch_tokens: int = 0,
    recompute_features: bool | None = False,
) -> FrontModel:
    """As `load_cloud_model`, with no more of the target than prompts go through."""
    check_dtype(dtype)
    folder = find_model(model)
    cloud = folder / "cloud"
    config = read_target_config(cloud)
    sizes = read_sizes(config, where=cloud)
    encoder = load_text(folder / "text")
    check_fit(folder, sizes, encoder)
    with torch.device("meta"):
        transformer = make_transformer(sizes)
    part = "transformer.cls_embedding."
    weights = read_weights(cloud, dtype=DTYPES[dtype], part=part)
    load_into(transformer.cls_embedding, weights, where=cloud)
    to_device(transformer.cls_embedding, device="cpu", dtype=DTYPES[dtype])
    pack(transformer.cls_embedding)
    info = model_info(cloud, config, transformer, max_batch_tokens=max_batch_tokens)
    draft_folder = find_draft(folder, info, is_wanted=recompute_features)
    return FrontModel(
        folder=folder,
        encoder=encoder,
        info=replace(info, can_recompute=draft_folder is not None),
        transformer=transformer,
        draft_folder=draft_folder,
    )


def find_draft(folder: Path, info: ModelInfo, *, is_wanted: bool | None) -> Path | None:
    """`edge/` of a bundle, to recompute features with; None where it is not wanted.

    is_wanted: None: if it is there and belongs to the target. Else it has to: `CheckpointError`.
    """
    if is_wanted is False:
        return None
    draft = folder / "edge"
    try:
        check_draft(draft, info)
    except CheckpointError as error:
        if is_wanted:
            raise
        log.info("features are not recomputed: %s", error)
        return None
    return draft


def check_draft(draft: Path, info: ModelInfo) -> None:
    """Raise `CheckpointError` unless the draft model was made for the target."""
    config = read_draft_config(draft)
    if config["target"] not in ("", info.fingerprint):
        raise CheckpointError(
            f"{draft}: a draft for target {config['target']}, not for {info.name} "
            f"{info.fingerprint}: use the edge and cloud folders of one model"
        )
    sizes, head = read_sizes(config, where=draft), config["head"]
    found = (sizes.grid_size, sizes.vocab_size, sizes.dim, head.get("feature_dim"))
    if found != (info.grid_size, info.vocab_size, info.condition_dim, info.feature_dim):
        raise CheckpointError(f"{draft}: a draft of other sizes than {info.name}")


def load_redraft(draft: Path, *, device: str) -> DraftModel:
    """The draft model for recomputing features, in float32 as edges have it."""
    model = load_draft(draft, read_draft_config(draft), device=device)
    pack(model)
    return model


def read_target_config(cloud: Path) -> dict[str, Any]:
    """Of the cloud's folder of a bundle. Raises `CheckpointError`."""
    config = read_config(cloud)
    if config.get("kind") != "target":
        raise CheckpointError(f"{cloud}: kind {config.get('kind')!r}, expected 'target'")
    for key in ("transformer", "feature_dim", "name"):
        if key not in config:
            raise CheckpointError(f"{cloud}: no {key!r} in its configuration")
    return config


def check_dtype(dtype: str) -> None:
    """Raise `InvalidInput` unless weights can be held in it."""
    if dtype not in DTYPES:
        raise InvalidInput("dtype", dtype, f"give one of {', '.join(DTYPES)}")


def check_device(device: str) -> None:
    """Raise `InvalidInput` unless tensors can be made there."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidInput(
            "device", device, f"give cpu, or a device that is here ({reason})"
        ) from None


def check_fit(folder: Path, sizes: TransformerConfig, text: TextFeatures) -> None:
    """Raise `CheckpointError` unless the text encoder gives what the target was trained on."""
    if text.dim != sizes.condition_dim or text.max_tokens > sizes.num_condition:
        raise CheckpointError(
            f"{folder}: text/ gives up to {text.max_tokens} rows of {text.dim}, but cloud/ takes "
            f"{sizes.num_condition} of {sizes.condition_dim}: they belong to different models"
        )


def model_info(
    cloud: Path, config: dict[str, Any], transformer: Transformer, *, max_batch_tokens: int
) -> ModelInfo:
    sizes = transformer.config
    return ModelInfo(
        name=str(config["name"]),
        family=str(config["family"]),
        fingerprint=fingerprint(cloud),
        grid_size=sizes.grid_size,
        vocab_size=sizes.vocab_size,
        condition_dim=sizes.dim,
        feature_dim=int(config["feature_dim"]),
        max_prompt_chars=MAX_PROMPT_CHARS,
        max_batch_tokens=min(max_batch_tokens, sizes.num_tokens) or sizes.num_tokens,
        sampling=read_sampling(cloud),
    )
