"""The base: the cloud alone draws a whole image, wave by wave, in this process.

One session, one slot; in raster order T forward passes. With the same prompt, seed and checkpoint
this is what an edge gets that verifies every token.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ciar.picture import Painter, picture_metadata, save_picture
from ciar.session import PrefixWork, SessionState
from ciar.target import Target
from ciar.types import ImageRequest
from ciar_cloud.bundle import CloudModel
from ciar_cloud.text import PromptEncoder

MODE = "base"


@dataclass(frozen=True, kw_only=True)
class SoloImage:
    """seconds: from text features to the last token.  num_positions: fed, condition included."""

    tokens: tuple[int, ...]
    num_forwards: int
    num_positions: int
    seconds: float


def draw_picture(
    model: CloudModel,
    prompt: str,
    *,
    output: Path,
    sampling: Mapping[str, Any],
    wavefront: int = 0,
    on_token: Callable[[int, int], None],
) -> dict[str, Any]:
    """Draw `prompt` into the PNG `output`; returns the report of `--json`.

    sampling: fields that differ from the checkpoint's own.  wavefront: see `ciar.order`.
    on_token: told (known tokens, T).
    """
    info = model.info
    request = ImageRequest(
        prompt=prompt, sampling=replace(info.sampling, **sampling), wavefront=wavefront
    )
    painter = Painter.load(model.folder / "vq")
    painter.check_codebook(info.vocab_size)
    target = Target(model.target, num_slots=1)
    encoded = PromptEncoder(model.encoder, model.condition_rows).encode_now(prompt)
    image = draw_alone(
        target, request, encoded.features, on_token=lambda n: on_token(n, info.num_tokens)
    )
    counts = {
        "prefix_tokens": 0,
        "cloud_calls": image.num_forwards / info.num_tokens,
        "cloud_forwards": image.num_forwards,
        "cloud_decided": info.num_tokens,
        "round_trips": 0,
        "uplink_bytes": 0,
        "downlink_bytes": 0,
        "fallbacks": 0,
        "resumes": 0,
    }
    seed = request.sampling.seed
    metadata = picture_metadata(
        prompt=prompt, seed=seed, fingerprint=info.fingerprint, mode=MODE, counts=counts
    )
    save_picture(output, painter.paint(image.tokens), metadata)
    return {
        "prompt": prompt,
        "seed": seed,
        "mode": MODE,
        "wavefront": wavefront,
        "tokens": list(image.tokens),
        "grid": info.grid_size,
        **counts,
        "seconds": image.seconds,
        "output": str(output),
        "unknown_words": list(encoded.unknown_words),
    }


@torch.inference_mode()
def draw_alone(
    target: Target,
    request: ImageRequest,
    features: Tensor,
    *,
    on_token: Callable[[int], None] = lambda num_known: None,
) -> SoloImage:
    """Draw every token of an image in slot 0; features: [L, condition_dim] of the prompt."""
    config = target.config
    state = SessionState(
        request,
        features,
        num_tokens=config.num_tokens,
        vocab_size=config.vocab_size,
        feature_dim=target.model.feature_dim,
    )
    work = PrefixWork(state, config.num_tokens)
    started = time.perf_counter()
    num_forwards = num_positions = 0
    while not work.is_done:
        feed = work.feed(0)
        (logits,) = target.extend([feed])
        work.receive(logits)
        num_forwards += 1
        num_positions += feed.num_new_rows
        on_token(len(state.tokens))
    return SoloImage(
        tokens=state.order.to_raster(state.tokens),
        num_forwards=num_forwards,
        num_positions=num_positions,
        seconds=time.perf_counter() - started,
    )
