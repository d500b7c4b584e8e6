"""LlamaGen's text-to-image transformers (Sun et al. 2024) to the target of a bundle.

Facts of the public files: the transformers of stage I (16 x 16 tokens) and stage II (32 x 32) have
the same names and shapes, so the stage is known by the file's SHA-256, or by the configuration
beside it, or it must be said; a wrong one draws zoomed-in pictures and no error. Heads are 64 wide.
Condition rows of the unconditional branch are stored as features, before the projection.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ciar.errors import CheckpointError, InvalidInput
from ciar.models.transformer import TransformerConfig
from ciar.types import SamplingParams
from ciar_cloud.convert.reader import LazyTensor, Tensors, stacked

GRIDS = {1: 16, 2: 32}  # by stage
HEAD_DIM = 64
SAMPLING = SamplingParams(temperature=1.0, top_k=1000, top_p=1.0, cfg_scale=7.5)
LICENCE = "MIT (LlamaGen)"


@dataclass(frozen=True, kw_only=True)
class Release:
    """A published file. stage: 0 where it has none."""

    file: str
    stage: int = 0


RELEASES = {
    "87d94b9b11cd80f44bd69122a4d4ed28304956e0fba07edcafce08c7a2716600": Release(
        file="t2i_XL_stage1_256.pt", stage=1
    ),
    "7d02d368751c21b61dc3914b0ccba70fc913dafc063dd5b16bc9abf7091f8be1": Release(
        file="t2i_XL_stage2_512.pt", stage=2
    ),
    "0e21fc1318e2e9ee641a07bdad0e20675e9ec35e6e3eb911d58b5d7a2cd8d4cb": Release(
        file="vq_ds16_t2i.pt"
    ),
}

# The Hugging Face style of the same transformer, name by name; q, k and v are one matrix in ours.
HF_MARK = "model.cls_embedding.uncond_embedding"
HF_NAMES = (
    (r"^model\.embed_tokens\.", "tok_embeddings."),
    (r"^lm_head\.", "output."),
    (r"^model\.", ""),
    (r"\.self_attn\.o_proj\.", ".attention.wo."),
    (r"\.mlp\.gate_proj\.", ".feed_forward.w1."),
    (r"\.mlp\.up_proj\.", ".feed_forward.w3."),
    (r"\.mlp\.down_proj\.", ".feed_forward.w2."),
    (r"\.input_layernorm\.", ".attention_norm."),
    (r"\.post_attention_layernorm\.", ".ffn_norm."),
)


def is_transformer(names: Tensors) -> bool:
    return "cls_embedding.uncond_embedding" in names or HF_MARK in names


def from_hf(tensors: Tensors) -> dict[str, LazyTensor]:
    """Names of the public repository; q, k and v stacked, nothing permuted."""
    found: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        if match := re.fullmatch(r"model\.(layers\.\d+)\.self_attn\.([qkv])_proj\.weight", name):
            if match[2] == "q":
                parts = [tensors.get(name.replace("q_proj", f"{p}_proj")) for p in "qkv"]
                present = [part for part in parts if part is not None]
                if len(present) < len(parts):
                    raise CheckpointError(
                        f"{name}: its key or value matrix is missing; download it again"
                    )
                found[f"{match[1]}.attention.wqkv.weight"] = stacked(*present)
            continue
        for pattern, ours in HF_NAMES:
            name = re.sub(pattern, ours, name)
        found[name] = tensor
    return found


def transformer_config(
    tensors: Tensors, *, grid_size: int, num_heads: int | None = None
) -> TransformerConfig:
    """Sizes as the shapes tell. num_heads: None: heads of 64. Raises `CheckpointError`."""
    try:
        vocab_size, dim = tensors["tok_embeddings.weight"].shape
        num_condition, condition_dim = tensors["cls_embedding.uncond_embedding"].shape
        ffn_dim = tensors["layers.0.feed_forward.w1.weight"].shape[0]
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(f"no LlamaGen transformer: {error} is missing or odd") from error
    layers = {int(m[1]) for n in tensors if (m := re.match(r"layers\.(\d+)\.", n))}
    return TransformerConfig(
        vocab_size=vocab_size,
        grid_size=grid_size,
        num_layers=len(layers),
        dim=dim,
        num_heads=num_heads or dim // HEAD_DIM,
        ffn_multiple_of=ffn_step(dim, ffn_dim),
        num_condition=num_condition,
        condition_dim=condition_dim,
    )


def ffn_step(dim: int, ffn_dim: int) -> int:
    """The largest power of two, up to LlamaGen's 256, to whose multiple 8 D / 3 is rounded up."""
    for step in (256 >> i for i in range(9)):
        if TransformerConfig(dim=dim, num_heads=1, ffn_multiple_of=step).ffn_dim == ffn_dim:
            return step
    raise CheckpointError(f"feed-forward width {ffn_dim}: no multiple for a width of {dim}")


def stage_of(
    *, given: int | None, release: Release | None, configuration: Mapping[str, Any] | None
) -> int:
    """1 or 2, from what is known of the file, never from the weights. Raises `InvalidInput`."""
    block_size: int = (configuration or {}).get("block_size", 0)
    by_size = {grid**2: stage for stage, grid in GRIDS.items()}
    known = release.stage if release else by_size.get(block_size)
    if given is not None and given not in GRIDS:
        raise InvalidInput("stage", given, "give 1 (256 px) or 2 (512 px)")
    if known and given and known != given:
        what = release.file if release else f"block_size {block_size}"
        raise InvalidInput("stage", given, f"this is {what}, of stage {known}: leave it out")
    stage = known or given
    if not stage:
        raise InvalidInput(
            "stage",
            given,
            "give --stage 1 (256 px) or --stage 2 (512 px): this file is none of those published, "
            "and its weights do not tell",
        )
    return stage
