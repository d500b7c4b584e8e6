"""A tiny model bundle with random weights: real files, real models, milliseconds a picture.

The draft is made of the target's own parts (embedding, first layer, output), so that the two agree
often but not always; its radii depend on the hidden state, so that scores differ between tokens.
"""

import dataclasses
import string
from pathlib import Path

import torch
from torch import Tensor, nn

from ciar.checkpoint import fingerprint, save_folder
from ciar.head_output import HeadOutput, reach_of
from ciar.interval import interfuse
from ciar.models.inter_head import DraftModel, InterHeadConfig
from ciar.models.neighbours import NeighbourConfig, NeighbourEmbedding
from ciar.models.text_encoder import TextEncoder, TextEncoderConfig
from ciar.models.transformer import TransformerConfig
from ciar.models.vq import VQConfig, VQModel
from ciar.models.wordpiece import SPECIAL_PIECES, WordPiece
from ciar.target import TargetModel
from ciar_train.draft import DraftShape
from ciar_train.eagle import eagle_from_target, export_eagle
from ciar_train.ngrams import count_ngrams

NAME = "ciar-tiny"
WORDS = ("a", "cat", "dog", "on", "the", "beach", "red", "at", "in", "snow")
PROMPT = "a dog on the beach"
TEXT_DIM = 16
MAX_TEXT_TOKENS = 10


def write_bundle(
    folder: Path,
    *,
    seed: int = 0,
    grid_size: int = 4,
    vocab_size: int = 24,
    dim: int = 32,
    num_layers: int = 2,
    feature_dim: int = 8,
    cfg_scale: float = 2.0,
) -> Path:
    """Write `cloud/`, `edge/`, `vq/` and `text/` into `folder` and return it.

    The same seed gives the same weights.
    """
    sizes = TransformerConfig(
        vocab_size=vocab_size,
        grid_size=grid_size,
        num_layers=num_layers,
        dim=dim,
        num_heads=2,
        ffn_multiple_of=8,
        num_condition=MAX_TEXT_TOKENS,
        condition_dim=TEXT_DIM,
        neighbours=NeighbourConfig(count=2, width=8, ngrams=(1, 2), ngram_slots=1024),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        target = random_target(sizes, feature_dim=feature_dim)
        draft = draft_of(target)
        write_cloud(folder / "cloud", target, cfg_scale=cfg_scale)
        write_edge(folder / "edge", draft, target=fingerprint(folder / "cloud"))
        write_vq(folder / "vq", vocab_size=vocab_size)
        write_text(folder / "text")
    return folder


def write_eagle(bundle: Path) -> None:
    """An untrained drafter of EAGLE for a bundle's target, as `eagle/`."""
    target = TargetModel.load(bundle / "cloud")
    shape = DraftShape(neighbours=target.config.neighbours)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = eagle_from_target(target, shape, ngrams=None)
    fill_neighbours(model.neighbours, model.config)
    export_eagle(model, bundle / "eagle")


def random_target(sizes: TransformerConfig, *, feature_dim: int) -> TargetModel:
    model = TargetModel(sizes, feature_dim=feature_dim)
    nn.init.normal_(model.injection.weight, std=0.2)
    nn.init.normal_(model.transformer.output.weight, std=0.3)
    fill_neighbours(model.transformer.neighbours, sizes)
    return model.eval()


def wide_target(sizes: TransformerConfig, *, feature_dim: int = 4) -> TargetModel:
    """Matrices that keep the length of rows, for shapes of published models."""
    torch.manual_seed(0)
    model = TargetModel(sizes, feature_dim=feature_dim)
    for parameter in model.transformer.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return model.eval().requires_grad_(False)


def draft_of(target: TargetModel) -> DraftModel:
    source = target.transformer
    sizes = dataclasses.replace(target.config, num_layers=1)
    head = InterHeadConfig(radius_width=4, feature_dim=target.feature_dim)
    draft = DraftModel(sizes, head)
    assert draft.neighbours is not None
    assert source.neighbours is not None
    draft.neighbours.load_state_dict(source.neighbours.state_dict())
    draft.tok_embeddings.load_state_dict(source.tok_embeddings.state_dict())
    draft.layers[0].load_state_dict(source.layers[0].state_dict())
    draft.norm.load_state_dict(source.norm.state_dict())
    draft.cap_proj.load_state_dict(source.cls_embedding.cap_proj.state_dict())
    draft.inter_head.centre.load_state_dict(source.output.state_dict())
    nn.init.normal_(draft.inter_head.radius_up.weight, std=0.5)
    return draft.eval()


def fill_neighbours(neighbours: NeighbourEmbedding | None, sizes: TransformerConfig) -> None:
    """Random weights, and tables counted on random pictures."""
    assert neighbours is not None
    nn.init.normal_(neighbours.mix.weight, std=0.2)
    nn.init.normal_(neighbours.gates.weight, std=0.2)
    tokens = torch.randint(sizes.vocab_size, (64, sizes.num_tokens))
    count_ngrams(neighbours, tokens.numpy())


def write_cloud(folder: Path, target: TargetModel, *, cfg_scale: float) -> None:
    config = {
        "kind": "target",
        "family": "llamagen",
        "name": NAME,
        "transformer": dataclasses.asdict(target.config),
        "feature_dim": target.feature_dim,
        "sampling": {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "cfg_scale": cfg_scale},
    }
    save_folder(folder, config, target.state_dict())


def write_edge(folder: Path, draft: DraftModel, *, target: str) -> None:
    config = {
        "kind": "draft",
        "family": "llamagen",
        "name": NAME,
        "transformer": dataclasses.asdict(draft.config),
        "head": dataclasses.asdict(draft.head_config),
        "target": target,
        "router": "interval",
        "calibration": calibration(draft),
    }
    save_folder(folder, config, draft.state_dict())


@torch.no_grad()
def calibration(draft: DraftModel) -> dict[str, list[float]]:
    """101 quantiles of each score over random token sequences."""
    config, num_images = draft.config, 32
    rows = torch.randn(num_images, 5, config.dim)
    tokens = torch.randint(config.vocab_size, (num_images, config.num_tokens - 1))
    mask = torch.ones(num_images, 5, dtype=torch.bool)
    centre, radius = draft.inter_head(draft.masked_hidden(rows, tokens, mask))
    interval = interfuse(centre, radius)
    width = interval.width  # [images, T, V]
    scores = {
        "interval": width.sum(-1),
        "interval-u": width.sum(-1) * width.std(-1, unbiased=False),
        "entropy": -(interval.mid * interval.log_mid).sum(-1),
        "softmax-corr": 1 - interval.mid.amax(-1),
        "random": torch.rand(num_images, config.num_tokens),
    }
    return {name: quantiles(score) for name, score in scores.items()}


def quantiles(score: Tensor) -> list[float]:
    values: list[float] = score.flatten().quantile(torch.linspace(0, 1, 101)).tolist()
    return values


def vq_f4(*, has_local_encoder: bool) -> VQModel:
    """A random tokenizer of 4x4 pixels a token."""
    torch.manual_seed(0)
    config = VQConfig(
        codebook_size=64,
        channels=8,
        channel_multipliers=(1, 1, 1),
        z_channels=8,
        norm_groups=4,
        has_local_encoder=has_local_encoder,
    )
    return VQModel(config).eval()


def write_vq(folder: Path, *, vocab_size: int) -> None:
    sizes = VQConfig(
        codebook_size=vocab_size,
        codebook_dim=4,
        channels=8,
        channel_multipliers=(1, 2),
        num_res_blocks=1,
        z_channels=8,
        norm_groups=4,
        has_lowest_attention=False,
    )
    config = {"kind": "vq", "vq": dataclasses.asdict(sizes)}
    save_folder(folder, config, VQModel(sizes).state_dict())


def write_text(folder: Path) -> None:
    letters = [*string.ascii_lowercase, *(f"##{c}" for c in string.ascii_lowercase), *".,!?'"]
    pieces = [*SPECIAL_PIECES, *dict.fromkeys([*WORDS, *letters])]
    config = TextEncoderConfig(
        vocab_size=len(pieces), dim=TEXT_DIM, heads=2, ffn=32, layers=1, max_tokens=MAX_TEXT_TOKENS
    )
    TextEncoder(config, WordPiece(pieces)).save(folder)


def random_head(vocab_size: int = 64, *, scale: float = 2.0, seed: int = 0) -> HeadOutput:
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(vocab_size, generator=generator) * scale
    return HeadOutput(centre, reach_of(torch.rand(vocab_size, generator=generator) * 6))
