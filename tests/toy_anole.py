"""A toy Chameleon with Anole's vocabulary layout, in both layouts of its files."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import ChameleonConfig, ChameleonForConditionalGeneration
from transformers.models.chameleon.configuration_chameleon import ChameleonVQVAEConfig

NUM_CODES, FIRST, HEADS = 64, 4, 4
WORDS = ("a", "dog", "cat", "on", "the", "beach", "in", "snow")


def image_name(code: int) -> str:
    return "IMGIMG" + "".join("ABCDEFGHIJ"[int(digit)] for digit in str(code)) + "Z"


def vocabulary() -> dict[str, int]:
    """In the order of the public one: specials, image tokens, the rest."""
    names = ["<s>", "<pad>", "</s>", "<unk>", *map(image_name, range(NUM_CODES))]
    names += ["<eoss>", "<racm3:break>", "<reserved08706>", "<image>", *WORDS]
    return {name: index for index, name in enumerate(names)}


def toy_anole(seed: int = 0) -> Any:
    """Weights of every kind random, norms too."""
    torch.manual_seed(seed)
    ids = vocabulary()
    config = ChameleonConfig(
        vocab_size=len(ids),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        vocabulary_map=ids,
        vq_config=ChameleonVQVAEConfig(
            embed_dim=16,
            num_embeddings=NUM_CODES,
            latent_channels=32,
            base_channels=32,
            channel_multiplier=[1, 2],
            num_res_blocks=1,
        ),
    )
    model: Any = ChameleonForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            if "norm" in name and name.endswith("weight"):
                parameter.normal_(1, 0.2)
            elif parameter.ndim > 1 and "vqmodel" not in name or "norm" in name:
                parameter.normal_(0, 0.1)
    return model.eval()


def write_hf(folder: Path, model: Any, *, has_tokenizer: bool = True) -> Path:
    """In two shards."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {n: t.contiguous() for n, t in model.state_dict().items()}
    names = sorted(state)
    files = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    for index, file in enumerate(files):
        save_file({n: state[n] for n in names[index::2]}, folder / file)
    weight_map = {name: files[i % 2] for i, name in enumerate(names)}
    index_path = folder / "model.safetensors.index.json"
    index_path.write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(model.config.to_dict()))
    if has_tokenizer:
        write_tokenizer(folder / "tokenizer.json")
    return folder


def write_tokenizer(path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel(vocabulary(), unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path))


def meta_weights(model: Any) -> dict[str, Tensor]:
    """As in consolidated.pth: rotary pairs adjacent, one norm for all heads."""
    names = {
        "self_attn.o_proj": "attention.wo",
        "self_attn.v_proj": "attention.wv",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.up_proj": "feed_forward.w3",
        "mlp.down_proj": "feed_forward.w2",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attention.wq",
        "self_attn.k_proj": "attention.wk",
        "self_attn.q_norm": "attention.q_normalization",
        "self_attn.k_norm": "attention.k_normalization",
    }
    found = {"rope.freqs": torch.zeros(8)}
    for name, tensor in model.state_dict().items():
        if "vqmodel" in name:
            continue
        theirs = name.removeprefix("model.").replace("embed_tokens", "tok_embeddings")
        theirs = theirs.replace("lm_head", "output")
        for ours, other in names.items():
            theirs = theirs.replace(ours, other)
        if theirs.endswith(("wq.weight", "wk.weight")):
            tensor = tensor.view(HEADS, 2, -1, tensor.shape[1]).transpose(1, 2)
            tensor = tensor.reshape(-1, tensor.shape[-1])
        elif "_normalization" in theirs:
            tensor = tensor[0].view(2, -1).t().reshape(-1)
        found[theirs] = tensor.contiguous()
    return found
