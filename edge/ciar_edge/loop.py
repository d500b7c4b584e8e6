"""The decoding loop: one prompt to one grid of tokens, over any `Verifier`.

    blocking    draft x_t. Certain: keep it. Uncertain: send what was kept since the last verdict
                and x_t, and wait
    optimistic  draft on while uncertain tokens are verified, and go back to the first difference
    exact       the same with every token uncertain: the cloud's own image
    offline     no cloud at all

`ciar_edge.decoder` goes through the tokens; here a cloud is asked, checked and opened for it.
"""

import asyncio
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ciar import tracing
from ciar.errors import InvalidInput, PairMismatch
from ciar.order import order_of
from ciar.router import Router
from ciar.sampling import Noise
from ciar.types import ImageRequest, ModelInfo, SamplingParams
from ciar.verifier import Session, Verifier
from ciar_edge.config import DecodeConfig
from ciar_edge.decoder import Decoder
from ciar_edge.drafter import Drafter
from ciar_edge.link import Link
from ciar_edge.models import EdgeModel
from ciar_edge.optimistic import OptimisticDecoder
from ciar_edge.result import ImageResult, Observer, Silent

_ROWS_PER_TICK = 4  # of noise, drawn without letting other tasks of the event loop run

EncodeText = Callable[[str], Tensor]
"""A prompt to its text features [L, condition_dim]."""


async def generate(
    prompt: str,
    *,
    model: EdgeModel,
    router: Router,
    verifier: Verifier | None = None,
    config: DecodeConfig | None = None,
    sampling: SamplingParams | None = None,
    encode_text: EncodeText | None = None,
    observer: Observer | None = None,
) -> ImageResult:
    """Decode one image.

    router: fresh, for this image; `exact` looks at its scores alone.
    verifier, encode_text: `offline` needs only the latter, the others only the former.

    Raises what `verifier.open` raises, `PairMismatch` and `InvalidInput`. A cloud that is lost
    later does not raise: the edge goes on alone and the result says so.
    """
    config, sampling = config or DecodeConfig(), sampling or SamplingParams()
    observer = observer or Silent()
    with tracing.span("image", mode=config.mode) as span:
        result = await _decode(
            prompt, model, router, verifier, config, sampling, encode_text, observer
        )
        span.set(
            num_tokens=len(result.tokens),
            cloud_forwards=result.cloud_forwards,
            round_trips=result.round_trips,
            resumes=result.resumes,
            fallbacks=result.fallbacks,
            draft_seconds=result.draft_seconds,
            wait_seconds=result.wait_seconds,
        )
    return result


async def _decode(
    prompt: str,
    model: EdgeModel,
    router: Router,
    verifier: Verifier | None,
    config: DecodeConfig,
    sampling: SamplingParams,
    encode_text: EncodeText | None,
    observer: Observer,
) -> ImageResult:
    noise = Noise(sampling.seed, vocab_size=model.draft.config.vocab_size)
    order = order_of(model.draft.config.grid_size, config.wavefront)
    started = time.perf_counter()
    if config.mode == "offline":
        condition = _offline_condition(prompt, model, encode_text)
        drafter = Drafter(model.prepared, condition, sampling, noise=noise, order=order)
        image = Decoder(drafter, router, None, observer=observer, started=started)
        await image.decode()
        return image.result()
    if verifier is None:
        raise InvalidInput("mode", config.mode, "give a cloud, or decode offline")
    info = await verifier.info()
    check_pair(model, info)
    info.check_features(config.image_features)
    num_prefix = config.num_prefix(info.num_tokens)
    goes_ahead = config.mode in ("optimistic", "exact")
    num_drawn = 0 if goes_ahead else num_prefix  # the rest of the prefix is drafted, too
    request = ImageRequest(
        prompt=prompt,
        sampling=sampling,
        num_prefix=num_drawn,
        fingerprint=model.target,
        epsilon=config.epsilon,
        max_gap=config.max_gap,
        features=config.image_features,
        wavefront=config.wavefront,
        num_exact=num_prefix,
    )
    noise_ahead = asyncio.create_task(_prepare(noise, order.cells[num_drawn:]))
    try:
        async with verifier.open(request) as session:
            noise_ahead.cancel()
            condition = session.prefix.condition
            drafter = Drafter(model.prepared, condition, sampling, noise=noise, order=order)
            link = _link(session, drafter, info, config=config, observer=observer)
            decoder: Decoder
            if goes_ahead:
                doubt = model.doubt(router.name)
                decoder = OptimisticDecoder(
                    *(drafter, router, link),
                    doubt=doubt,
                    num_prefix=num_prefix,
                    asks_all=config.mode == "exact",
                    looks_at_kept=request.looks_at_kept,
                    observer=observer,
                    started=started,
                )
            else:
                decoder = Decoder(drafter, router, link, observer=observer, started=started)
            decoder.take_prefix(session)
            await decoder.decode()
            return decoder.result()
    finally:
        noise_ahead.cancel()


def check_pair(model: EdgeModel, info: ModelInfo) -> None:
    """Raise `PairMismatch` unless the cloud serves the model that the draft model was made for."""
    draft = model.draft
    sides = {
        "fingerprint": (model.target or info.fingerprint, info.fingerprint),
        "vocab_size": (draft.config.vocab_size, info.vocab_size),
        "grid_size": (draft.config.grid_size, info.grid_size),
        "condition_dim": (draft.config.dim, info.condition_dim),
        "feature_dim": (draft.head_config.feature_dim, info.feature_dim),
    }
    for name, (edge, cloud) in sides.items():
        if edge != cloud:
            raise PairMismatch(
                f"{name}: the edge model was made for {edge}, the cloud ({info.name!r}) has "
                f"{cloud}; "
                "use the two halves of one model on both sides"
            )


@torch.inference_mode()
def _offline_condition(prompt: str, model: EdgeModel, encode_text: EncodeText | None) -> Tensor:
    if encode_text is None:
        raise InvalidInput("mode", "offline", "give the text encoder of the model folder")
    condition: Tensor = model.draft.cap_proj(encode_text(prompt))
    return condition


async def _prepare(noise: Noise, cells: Sequence[int]) -> None:
    """Draw noise while the cloud draws the prefix."""
    for index, cell in enumerate(cells):
        noise.prepare(cell)
        if index % _ROWS_PER_TICK == 0:
            await asyncio.sleep(0)


def _link(
    session: Session,
    drafter: Drafter,
    info: ModelInfo,
    *,
    config: DecodeConfig,
    observer: Observer,
) -> Link:
    return Link(
        *(session, drafter, info),
        sends_features=config.image_features == "send",
        # Of another token than the cloud's own, only a question tells whether it is near enough.
        brings_next=not config.epsilon,
        observer=observer,
    )
