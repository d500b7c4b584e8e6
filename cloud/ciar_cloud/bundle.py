"""The cloud's parts of a model bundle: target, text encoder, and what they promise to an edge."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ciar.checkpoint import find_model, fingerprint, read_config, read_sampling
from ciar.errors import CheckpointError, InvalidInput
from ciar.models.packed import pack
from ciar.target import TargetModel
from ciar.text import TextFeatures, load_text
from ciar.types import ModelInfo
from ciar_cloud.text import MAX_PROMPT_CHARS

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True, eq=False)
class CloudModel:
    """What a cloud serves."""

    folder: Path
    target: TargetModel
    encoder: TextFeatures
    info: ModelInfo


def load_cloud_model(
    model: str, *, device: str = "cpu", dtype: str = "float32", max_batch_tokens: int = 0
) -> CloudModel:
    """Load `cloud/` and `text/` of a bundle, by folder or embedded name.

    max_batch_tokens: most tokens in one batch, 0 for as many as an image has. Raises
    `CheckpointError` for a bundle that cannot be used and `InvalidInput` for a device that is not
    there.
    """
    check_dtype(dtype)
    check_device(device)
    folder = find_model(model)
    cloud = folder / "cloud"
    config = read_config(cloud)
    if config.get("kind") != "target":
        raise CheckpointError(f"{cloud}: kind {config.get('kind')!r}, expected 'target'")
    for key in ("transformer", "feature_dim", "name"):
        if key not in config:
            raise CheckpointError(f"{cloud}: no {key!r} in its configuration")
    target = TargetModel.load(cloud, device=device, dtype=DTYPES[dtype])
    encoder = load_text(folder / "text")
    check_fit(folder, target, encoder)
    pack(target.transformer)
    info = model_info(cloud, config, target, max_batch_tokens=max_batch_tokens)
    return CloudModel(folder=folder, target=target, encoder=encoder, info=info)


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


def check_fit(folder: Path, target: TargetModel, text: TextFeatures) -> None:
    """Raise `CheckpointError` unless the text encoder gives what the target was trained on."""
    sizes = target.config
    if text.dim != sizes.condition_dim or text.max_tokens > sizes.num_condition:
        raise CheckpointError(
            f"{folder}: text/ gives up to {text.max_tokens} rows of {text.dim}, but cloud/ takes "
            f"{sizes.num_condition} of {sizes.condition_dim}: they belong to different models"
        )


def model_info(
    cloud: Path, config: dict[str, Any], target: TargetModel, *, max_batch_tokens: int
) -> ModelInfo:
    sizes = target.config
    return ModelInfo(
        name=str(config["name"]),
        family=str(config["family"]),
        fingerprint=fingerprint(cloud),
        grid_size=sizes.grid_size,
        vocab_size=sizes.vocab_size,
        condition_dim=sizes.dim,
        feature_dim=target.feature_dim,
        max_prompt_chars=MAX_PROMPT_CHARS,
        max_batch_tokens=min(max_batch_tokens, sizes.num_tokens) or sizes.num_tokens,
        sampling=read_sampling(cloud),
    )
