"""VQ tokenizers: LlamaGen's VQ-16, and Chameleon's, which Anole draws with.

Both are VQGANs (Esser et al. 2021) with other names, level orders and flags: LlamaGen's codes lie
on the unit sphere and its lowest level has attention, Chameleon's have 256 dimensions and no norm.
Chameleon's decoder counts its levels from the highest resolution, ours from the lowest.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from ciar.errors import CheckpointError
from ciar.models.vq import VQConfig, VQModel
from ciar_cloud.convert.reader import LazyTensor, Tensors
from ciar_cloud.convert.writer import Entry, entries_of

UNUSED = ("quantize.codebook_used", "loss.")  # beginnings: what training counts and learns beside
PREFIX = "model.vqmodel."  # inside Anole in Hugging Face's layout
ENCODER_MARK, DECODER_MARK = (
    "encoder.down.0.block.0.conv1.weight",
    "decoder.up.0.block.0.conv1.weight",
)
NAMES = (
    (r"^encoder\.down\.(\d+)\.block\.", r"encoder.conv_blocks.\1.res."),
    (r"^encoder\.down\.(\d+)\.", r"encoder.conv_blocks.\1."),
    (r"\.mid\.block_1\.", ".mid.0."),
    (r"\.mid\.attn_1\.", ".mid.1."),
    (r"\.mid\.block_2\.", ".mid.2."),
)


def is_llamagen(names: Tensors) -> bool:
    return "encoder.conv_blocks.0.res.0.conv1.weight" in names


def is_chameleon(names: Tensors) -> bool:
    return ENCODER_MARK in names or f"{PREFIX}{ENCODER_MARK}" in names


def llamagen_entries(tensors: Tensors) -> tuple[VQConfig, dict[str, Entry]]:
    """VQ-16, or a tokenizer with other numbers of channels. Raises `CheckpointError`."""
    return entries(used(tensors), {"is_l2_normalized": True})


def chameleon_entries(tensors: Tensors) -> tuple[VQConfig, dict[str, Entry]]:
    """Raises `CheckpointError`, also for stock Chameleon, whose decoder is left out."""
    inner = {n.removeprefix(PREFIX): t for n, t in tensors.items() if n.startswith(PREFIX)}
    own = used(inner or tensors)
    if DECODER_MARK not in own:
        raise CheckpointError(
            "the VQ decoder is missing, as in every stock conversion of Chameleon: take Anole's "
            "own VQ model (Anole-7b-v0.1-vqvae-hf, or vqgan.ckpt)"
        )
    return entries(renamed(own), {"is_l2_normalized": False, "middle_level": 127.5})


def used(tensors: Tensors) -> dict[str, LazyTensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(UNUSED)}


def renamed(tensors: Tensors) -> dict[str, LazyTensor]:
    """Chameleon's names to LlamaGen's."""
    last = max(int(m[1]) for n in tensors if (m := re.match(r"decoder\.up\.(\d+)\.", n)))
    found = {}
    for name, tensor in tensors.items():
        for pattern, ours in NAMES:
            name = re.sub(pattern, ours, name)
        if match := re.match(r"decoder\.up\.(\d+)\.(block\.)?", name):
            kind = "res." if match[2] else ""
            rest = name[match.end() :]
            name = f"decoder.conv_blocks.{last - int(match[1])}.{kind}{rest}"
        found[name] = tensor
    return found


def entries(
    tensors: Mapping[str, LazyTensor], flags: Mapping[str, Any]
) -> tuple[VQConfig, dict[str, Entry]]:
    """In float32, as VQ decoders are run. flags: what no shape tells. Raises `CheckpointError`."""
    config = replace(config_of(tensors), **flags)
    try:
        with torch.device("meta"):
            model = VQModel(config)
    except ValueError as error:  # widths that 32 groups of a norm do not fit
        raise CheckpointError(f"no VQ tokenizer of that kind: {error}") from error
    return config, entries_of(model, tensors, torch.float32)


def config_of(tensors: Tensors) -> VQConfig:
    """Sizes as the shapes tell. Raises `CheckpointError`."""
    levels = {int(m[1]) for n in tensors if (m := re.match(r"encoder\.conv_blocks\.(\d+)\.", n))}
    blocks = {n for n in tensors if re.match(r"encoder\.conv_blocks\.0\.res\.\d+\.conv1\.w", n)}
    try:
        channels = tensors["encoder.conv_in.weight"].shape[0]
        widths = [
            tensors[f"encoder.conv_blocks.{level}.res.0.conv1.weight"].shape[0]
            for level in sorted(levels)
        ]
        codebook_size, codebook_dim = tensors["quantize.embedding.weight"].shape
        z_channels = tensors["encoder.conv_out.weight"].shape[0]
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(f"no VQ tokenizer: {error} is missing or odd") from error
    return VQConfig(
        codebook_size=codebook_size,
        codebook_dim=codebook_dim,
        channels=channels,
        channel_multipliers=tuple(width // channels for width in widths),
        num_res_blocks=len(blocks),
        z_channels=z_channels,
        has_lowest_attention=f"encoder.conv_blocks.{max(levels)}.attn.0.q.weight" in tensors,
    )
