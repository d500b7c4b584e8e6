"""The cloud's parts of a model bundle: target, text encoder, and what they promise to an edge."""

from dataclasses import dataclass
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
from ciar.errors import CheckpointError, InvalidInput
from ciar.families import make_transformer, read_sizes
from ciar.models.packed import pack
from ciar.models.transformer import Transformer, TransformerConfig
from ciar.target import TargetModel
from ciar.text import TextFeatures, load_text
from ciar.types import ModelInfo
from ciar_cloud.text import MAX_PROMPT_CHARS

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True, eq=False)
class FrontModel:
    """What serving needs where the target itself is elsewhere.

    transformer: of the target; nothing but its prompt's part need have weights.
    """

    folder: Path
    encoder: TextFeatures
    info: ModelInfo
    transformer: Transformer

    def condition_rows(self, features: Tensor) -> Tensor:
        """Text features [L, condition_dim] to an edge's first rows: float32 [L, D], on the CPU."""
        like = next(self.transformer.cls_embedding.buffers())
        return self.transformer.condition_rows(features.to(like)).float().cpu()


@dataclass(frozen=True, kw_only=True, eq=False)
class CloudModel(FrontModel):
    """What a cloud serves."""

    target: TargetModel


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
    config = read_target_config(folder / "cloud")
    target = TargetModel.load(folder / "cloud", device=device, dtype=DTYPES[dtype])
    encoder = load_text(folder / "text")
    check_fit(folder, target.config, encoder)
    pack(target.transformer)
    info = model_info(
        folder / "cloud", config, target.transformer, max_batch_tokens=max_batch_tokens
    )
    return CloudModel(
        folder=folder, encoder=encoder, info=info, transformer=target.transformer, target=target
    )


def load_front_model(
    model: str, *, dtype: str = "float32", max_batch_tokens: int = 0
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
    return FrontModel(folder=folder, encoder=encoder, info=info, transformer=transformer)


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
