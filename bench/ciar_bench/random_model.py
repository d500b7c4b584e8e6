"""Bundles of published sizes with random weights: what only needs the shapes can be measured on
them. Written tensor by tensor, so a model may be larger than memory."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ciar.checkpoint import fingerprint
from ciar.models.cached_features import CachedFeatures
from ciar.models.chameleon import ChameleonConfig
from ciar.models.transformer import TransformerConfig
from ciar.models.vq import VQConfig, VQModel
from ciar.target import TargetModel
from ciar.types import SamplingParams
from ciar_cloud.convert import anole, llamagen
from ciar_cloud.convert.target import FEATURE_DIM, target_configuration
from ciar_cloud.convert.writer import Entry, write_folder
from ciar_train.draft import new_draft
from ciar_train.export import export_draft, export_vq
from ciar_train.plans import load_plan

PROMPT_ROWS = 16
ANOLE_VQ = VQConfig(
    codebook_size=8192,
    codebook_dim=256,
    has_lowest_attention=False,
    is_l2_normalized=False,
    middle_level=127.5,
)


@dataclass(frozen=True, kw_only=True)
class PublishedSize:
    """plan: of its edge."""

    transformer: TransformerConfig
    vq: VQConfig
    plan: str
    sampling: SamplingParams


PUBLISHED: Mapping[str, PublishedSize] = {
    "llamagen-xl-256": PublishedSize(
        transformer=TransformerConfig(),
        vq=VQConfig(),
        plan="llamagen-xl",
        sampling=llamagen.SAMPLING,
    ),
    "llamagen-xl-512": PublishedSize(
        transformer=TransformerConfig(grid_size=32),
        vq=VQConfig(),
        plan="llamagen-xl",
        sampling=llamagen.SAMPLING,
    ),
    "anole-7b": PublishedSize(
        transformer=ChameleonConfig(), vq=ANOLE_VQ, plan="anole-7b", sampling=anole.SAMPLING
    ),
}


def write_random_model(
    size: PublishedSize,
    folder: Path,
    *,
    prompt: str,
    dtype: torch.dtype,
    on_tensor: Callable[[str], None] = lambda _: None,
) -> Path:
    """A bundle that knows one prompt; its pair is unrelated, so it agrees by chance only."""
    torch.manual_seed(0)
    write_target(size, folder / "cloud", dtype, on_tensor)
    plan = load_plan(size.plan)
    export_draft(
        new_draft(size.transformer, plan.head, plan.draft.shape),
        folder / "edge",
        name="random",
        target_fingerprint=fingerprint(folder / "cloud"),
        calibration={},
    )
    export_vq(VQModel(size.vq), folder / "vq")
    features = torch.randn(PROMPT_ROWS, size.transformer.condition_dim).half()
    CachedFeatures.save(
        folder / "text", [prompt], [features], max_tokens=size.transformer.num_condition
    )
    return folder


def write_target(
    size: PublishedSize, folder: Path, dtype: torch.dtype, on_tensor: Callable[[str], None]
) -> None:
    with torch.device("meta"):
        model = TargetModel(size.transformer, feature_dim=FEATURE_DIM)
    norms = {
        f"{at}.{name}"
        for at, module in model.named_modules()
        if "Norm" in type(module).__name__
        for name, _ in module.named_parameters(recurse=False)
    }
    entries = {
        name: Entry(tuple(t.shape), dtype, maker(name, t, is_norm=name in norms))
        for name, t in model.state_dict().items()
    }
    config = target_configuration(size.transformer, name="random", sampling=size.sampling)
    write_folder(folder, config, entries, on_tensor=on_tensor)


def maker(name: str, like: Tensor, *, is_norm: bool) -> Callable[[], Tensor]:
    """Norms as they begin, matrices such that rows keep their length."""

    def make() -> Tensor:
        if is_norm:
            return torch.ones(like.shape) * (not name.endswith("bias"))
        tensor = torch.empty(like.shape)
        return nn.init.normal_(tensor, std=1 / math.sqrt(like.shape[-1]))

    return make
