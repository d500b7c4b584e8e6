"""A T5 encoder with random weights and a tokenizer of a few words, as transformers saves them."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import T5Config, T5ForConditionalGeneration

WORDS = ("<pad>", "</s>", "<unk>", "a", "dog", "cat", "on", "the", "beach", "in", "snow")


def write_t5(folder: Path, *, dim: int, num_shards: int = 1) -> Path:
    """The whole sequence-to-sequence model, as users have it."""
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(WORDS),
        d_model=dim,
        d_kv=8,
        d_ff=24,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
    )
    model = T5ForConditionalGeneration(config)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    aliases = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    state = {n: t.clone() for n, t in model.state_dict().items() if n not in aliases}
    names = sorted(state)
    if num_shards == 1:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        shards = [names[i::num_shards] for i in range(num_shards)]
        files = [f"model-{i + 1:05d}-of-{num_shards:05d}.safetensors" for i in range(num_shards)]
        for file, shard in zip(files, shards, strict=True):
            save_file({n: state[n] for n in shard}, folder / file, metadata={"format": "pt"})
        weight_map = {n: file for file, shard in zip(files, shards, strict=True) for n in shard}
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
