"""flan-t5-xl's encoder, without the decoder that comes with it, and its tokenizer's files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ciar.checkpoint import CONFIG_FILE, WEIGHTS_IN, forget_weights, write_json
from ciar.errors import CheckpointError
from ciar.models.t5_encoder import INNER, KIND, MAX_TOKENS
from ciar_cloud.convert.reader import LazyTensor, Tensors
from ciar_cloud.convert.writer import Entry, write_folder, writing_to

TOKENIZER_FILES = (
    "tokenizer.json",
    "spiece.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
ALIAS = "encoder.embed_tokens.weight"  # `shared.weight` once more
LICENCE = "Apache-2.0 (flan-t5)"


def is_encoder(names: Tensors) -> bool:
    return "encoder.block.0.layer.0.SelfAttention.q.weight" in names


def write_encoder(
    tensors: Tensors,
    configuration: dict[str, Any],
    source: Path,
    folder: Path,
    *,
    max_bytes: int,
    on_tensor: Callable[[str], None],
) -> int:
    """Write `text/` from the folder `source`; returns the width of its features.

    Raises `CheckpointError`, `OutputError`.
    """
    files = {name: source / name for name in TOKENIZER_FILES if (source / name).exists()}
    if not {"tokenizer.json", "spiece.model"} & files.keys():
        raise CheckpointError(f"{source}: no tokenizer.json or spiece.model: download it too")
    kept = encoder_tensors(tensors, configuration, source)
    entries = {n: Entry(t.shape, t.dtype, t.read) for n, t in sorted(kept.items())}
    inner = {**configuration, "architectures": ["T5EncoderModel"]}
    width = int(configuration["d_model"])
    values = {"kind": KIND, "dim": width, "max_tokens": MAX_TOKENS, WEIGHTS_IN: INNER}
    with writing_to(folder):
        forget_weights(folder)
        write_folder(
            folder / INNER,
            inner,
            entries,
            max_bytes=max_bytes,
            on_tensor=on_tensor,
            beside=files,
        )
        write_json(folder / CONFIG_FILE, values)
    return width


def encoder_tensors(
    tensors: Tensors, configuration: dict[str, Any], source: Path
) -> dict[str, LazyTensor]:
    """Those of the encoder, all of them. Raises `CheckpointError`."""
    kept = {n: t for n, t in tensors.items() if n.startswith("encoder.") and n != ALIAS}
    shared = tensors.get("shared.weight") or tensors.get(ALIAS)
    if shared:
        kept["shared.weight"] = shared
    try:
        int(configuration["d_model"])
        num_layers, gated = configuration["num_layers"], configuration["feed_forward_proj"]
        wanted = names_of(num_layers, is_gated=str(gated).startswith("gated"))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{source / CONFIG_FILE}: no configuration of T5: {error!r}"
        ) from error
    wrong = [f"missing {n}" for n in sorted(wanted - kept.keys())]
    wrong += [f"unexpected {n}" for n in sorted(kept.keys() - wanted)]
    if wrong:
        raise CheckpointError(f"{source}: {'; '.join(wrong[:4])}")
    return kept


def names_of(num_layers: int, *, is_gated: bool) -> set[str]:
    """The encoder's tensors. Position biases are the first layer's."""
    found = {"shared.weight", "encoder.final_layer_norm.weight"}
    found.add("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight")
    up = ("wi_0", "wi_1") if is_gated else ("wi",)
    for layer in range(num_layers):
        block = f"encoder.block.{layer}.layer"
        found |= {f"{block}.0.SelfAttention.{name}.weight" for name in "qkvo"}
        found |= {f"{block}.1.DenseReluDense.{name}.weight" for name in (*up, "wo")}
        found |= {f"{block}.{part}.layer_norm.weight" for part in (0, 1)}
    return found
