"""Anole (Chern et al. 2024): Chameleon-7B whose output head has learned its image rows.

Two layouts: Hugging Face's, and Meta's (`consolidated.pth`), whose rotary pairs are adjacent, as
ours are. In Hugging Face's the rows of query and key, and the numbers of their norms, are reordered
within each head: first all even numbers of the pairs, then all odd ones.

Image tokens are consecutive ids of the vocabulary; here they are 0 to V - 1.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ciar.errors import CheckpointError
from ciar.models.chameleon import ChameleonConfig
from ciar.models.token_prompt import EMBEDDING, KIND, TOKENIZER_FILE
from ciar.types import SamplingParams
from ciar_cloud.convert.llamagen import ffn_step
from ciar_cloud.convert.reader import LazyTensor, Tensors, stacked
from ciar_cloud.convert.writer import Entry, write_folder

SAMPLING = SamplingParams(temperature=0.7, top_k=0, top_p=0.9, cfg_scale=3.0)  # GAIR's text2image
HEAD_DIM = 128
IMAGE_NAME = re.compile(r"IMGIMG([A-J]+)Z")  # the codebook id, its digits written A to J
BEGIN, END_OF_TURN, BEGIN_IMAGE = "<s>", "<reserved08706>", "<racm3:break>"
TOKENIZER_NAMES = ("tokenizer.json", "text_tokenizer.json")
HF_MARK, META_MARK = (
    "model.layers.0.self_attn.q_norm.weight",
    ("layers.0.attention.q_normalization.weight"),
)
# ours, Hugging Face's, Meta's; behind `layers.N.`
LAYER_NAMES = (
    ("attention.wo.weight", "self_attn.o_proj.weight", "attention.wo.weight"),
    ("feed_forward.w1.weight", "mlp.gate_proj.weight", "feed_forward.w1.weight"),
    ("feed_forward.w3.weight", "mlp.up_proj.weight", "feed_forward.w3.weight"),
    ("feed_forward.w2.weight", "mlp.down_proj.weight", "feed_forward.w2.weight"),
    ("attention_norm.weight", "input_layernorm.weight", "attention_norm.weight"),
    ("ffn_norm.weight", "post_attention_layernorm.weight", "ffn_norm.weight"),
)
UNUSED = ("model.vqmodel.", "rope.freqs")  # beginnings: the tokenizer, and what is computed


class Vocabulary:
    """Ids by name, and where the image tokens are. Raises `CheckpointError`."""

    def __init__(self, ids: Mapping[str, int], where: Path) -> None:
        missing = [n for n in (BEGIN, END_OF_TURN, BEGIN_IMAGE) if n not in ids]
        if missing:
            raise CheckpointError(f"{where}: no token {missing[0]}: not Chameleon's vocabulary")
        self.begin, self.begin_image = ids[BEGIN], ids[BEGIN_IMAGE]
        self.after = (ids[END_OF_TURN], ids[BEGIN_IMAGE])
        codes = {codebook_id(m[1]): i for n, i in ids.items() if (m := IMAGE_NAME.fullmatch(n))}
        self.first, self.count = min(codes.values(), default=0), len(codes)
        if not codes or any(codes.get(i) != self.first + i for i in range(self.count)):
            raise CheckpointError(
                f"{where}: its {self.count} image tokens are not consecutive, so codebook ids "
                "cannot be told"
            )


def codebook_id(letters: str) -> int:
    return int("".join(str(ord(letter) - ord("A")) for letter in letters))


def is_transformer(names: Tensors) -> bool:
    return HF_MARK in names or META_MARK in names


def read_vocabulary(configuration: Mapping[str, Any] | None, folder: Path) -> Vocabulary:
    """Of Hugging Face's configuration, else of the tokenizer's file."""
    if configuration and "vocabulary_map" in configuration:
        return Vocabulary(configuration["vocabulary_map"], folder)
    path = tokenizer_file(folder)
    try:
        values = json.loads(path.read_text())
        ids = dict(values["model"]["vocab"])
        ids |= {one["content"]: one["id"] for one in values.get("added_tokens", [])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: no tokenizer: {error!r}") from error
    return Vocabulary(ids, path)


def tokenizer_file(folder: Path) -> Path:
    """In the folder, or in `tokenizer/` of Meta's download, which lies beside `models/7b`."""
    folders = (folder, folder / "tokenizer", folder.parent.parent / "tokenizer")
    for place in folders:
        for name in TOKENIZER_NAMES:
            if (place / name).is_file():
                return place / name
    raise CheckpointError(
        f"{folder}: no {' or '.join(TOKENIZER_NAMES)} there: put the tokenizer's file beside the "
        "weights"
    )


def renamed(
    tensors: Tensors, config: ChameleonConfig, vocabulary: Vocabulary
) -> dict[str, LazyTensor]:
    """Every tensor of the target's transformer. Raises `CheckpointError` if one is missing."""
    is_hf = HF_MARK in tensors
    left = {name for name in tensors if not name.startswith(UNUSED)}

    def take(name: str) -> LazyTensor:
        if name not in tensors:
            raise CheckpointError(f"missing {name}: download the checkpoint again")
        left.discard(name)
        return tensors[name]

    prefix, parts = ("model.", 1) if is_hf else ("", 2)
    embedding = take("model.embed_tokens.weight" if is_hf else "tok_embeddings.weight")
    head = take("lm_head.weight" if is_hf else "output.weight")
    found = {
        "tok_embeddings.weight": image_rows(embedding, vocabulary),
        "output.weight": image_rows(head, vocabulary),
        "norm.weight": take(f"{prefix}norm.weight"),
        "cls_embedding.uncond_rows": mapped(
            embedding,
            (config.num_uncond, config.dim),
            lambda t: t[[vocabulary.begin, vocabulary.begin_image]],
        ),
    }
    for layer in range(config.num_layers):
        before = f"{prefix}layers.{layer}."
        for names in LAYER_NAMES:
            found[f"layers.{layer}.{names[0]}"] = take(before + names[parts])
        attention = f"layers.{layer}.attention"
        if is_hf:
            q, k, v = (take(f"{before}self_attn.{part}_proj.weight") for part in "qkv")
            q, k = (mapped(one, one.shape, adjacent_rows(config.num_heads)) for one in (q, k))
        else:
            q, k, v = (take(f"{before}attention.w{part}.weight") for part in "qkv")
        found[f"{attention}.wqkv.weight"] = stacked(q, k, v)
        for part in "qk":
            for kind in ("weight", "bias"):
                place = f"self_attn.{part}_norm" if is_hf else f"attention.{part}_normalization"
                norm = take(f"{before}{place}.{kind}")
                shape = (config.num_heads, config.head_dim)
                change = head_norm(config.num_heads, is_hf=is_hf)
                found[f"{attention}.{part}_norm.{kind}"] = mapped(norm, shape, change)
    if left:
        raise CheckpointError(f"unexpected {', '.join(sorted(left)[:4])}")
    return found


def mapped(
    source: LazyTensor, shape: tuple[int, ...], change: Callable[[Tensor], Tensor]
) -> LazyTensor:
    return LazyTensor(shape, source.dtype, lambda: change(source.read()))


def image_rows(source: LazyTensor, vocabulary: Vocabulary) -> LazyTensor:
    first, count = vocabulary.first, vocabulary.count
    return mapped(source, (count, *source.shape[1:]), lambda t: t[first : first + count])


def adjacent_rows(num_heads: int) -> Callable[[Tensor], Tensor]:
    """[D, D] with halves of each head, to adjacent rotary pairs."""

    def change(weight: Tensor) -> Tensor:
        halves = weight.view(num_heads, 2, -1, weight.shape[1])  # [H, 2, d/2, D]
        return halves.transpose(1, 2).reshape(weight.shape)

    return change


def head_norm(num_heads: int, *, is_hf: bool) -> Callable[[Tensor], Tensor]:
    """[d], [1, d] or [H, d] to [H, d], in the order of the rows of query and key."""

    def change(values: Tensor) -> Tensor:
        rows = values.reshape(-1, values.shape[-1])
        if is_hf:
            rows = rows.view(len(rows), 2, -1).transpose(1, 2).flatten(1)
        return rows.expand(num_heads, -1)

    return change


def sizes(
    tensors: Tensors, vocabulary: Vocabulary, *, grid_size: int, num_heads: int | None
) -> ChameleonConfig:
    """As the shapes tell. num_heads: None: heads of 128. Raises `CheckpointError`."""
    is_hf = HF_MARK in tensors
    gate = "model.layers.0.mlp.gate_proj.weight" if is_hf else "layers.0.feed_forward.w1.weight"
    try:
        ffn_dim, dim = tensors[gate].shape
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"no Chameleon transformer: {error} is missing or odd") from error
    layers = {int(m[1]) for n in tensors if (m := re.match(r"(?:model\.)?layers\.(\d+)\.", n))}
    return ChameleonConfig(
        vocab_size=vocabulary.count,
        grid_size=grid_size,
        num_layers=len(layers),
        dim=dim,
        num_heads=num_heads or dim // HEAD_DIM,
        ffn_multiple_of=ffn_step(dim, ffn_dim),
        condition_dim=dim,
    )


def write_prompts(
    tensors: Tensors,
    config: ChameleonConfig,
    vocabulary: Vocabulary,
    source: Path,
    folder: Path,
    *,
    on_tensor: Callable[[str], None],
) -> None:
    """`text/`: the tokenizer and the whole embedding."""
    name = "model.embed_tokens.weight" if HF_MARK in tensors else "tok_embeddings.weight"
    embedding = tensors[name]
    values = {
        "kind": KIND,
        "dim": config.dim,
        "max_tokens": config.num_condition,
        "before": [vocabulary.begin],
        "after": list(vocabulary.after),
    }
    entries = {EMBEDDING: Entry(embedding.shape, embedding.dtype, embedding.read)}
    beside = {TOKENIZER_FILE: tokenizer_file(source)}
    write_folder(folder, values, entries, on_tensor=on_tensor, beside=beside)
