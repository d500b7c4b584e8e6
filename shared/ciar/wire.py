"""Protocol messages <-> the values of `ciar.types`.

Invariant: `x_from_proto(x_to_proto(x)) == x`. What a peer sent is checked here, against the limits
in `ModelInfo`, before any memory is taken that its numbers ask for; what is wrong is an
`InvalidInput` that names the field. What a message means to a session (known positions, epochs) is
not judged here. Fields of the same name hold the same thing on both sides.

Errors travel as gRPC statuses: see `ciar.status`.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from google.protobuf.message import Message
from torch import Tensor

from ciar.errors import InvalidInput
from ciar.feature_mode import FeatureMode
from ciar.order import check_wavefront
from ciar.packing import PackedDtype, PackedTensor, pack, unpack
from ciar.status import error_from_rpc as error_from_rpc
from ciar.status import status_from_error as status_from_error
from ciar.types import (
    ImageRequest,
    ModelInfo,
    Prefix,
    Resume,
    SamplingParams,
    Timings,
    TokenSpan,
    Verdict,
    VerifyBatch,
    no_features,
)
from ciar.v1 import collaboration_pb2 as pb

PROTOCOL_VERSION = 1
SERVICE_NAME: str = pb.DESCRIPTOR.services_by_name["Collaboration"].full_name
IMAGE_HEADER = (
    "x-ciar-image"  # metadata of all calls for one image, by which proxies keep them together
)
MESSAGE_LIMIT_BYTES = 16 * 1024 * 1024  # set on both sides, both ways

_MAX_GRID_SIZE = 1024  # tokens a side
_DTYPE_REMEDY = "give DTYPE_FP32, DTYPE_FP16 or DTYPE_INT8"
_MAX_UINT32 = 2**32 - 1
_DTYPE_TO_PROTO: dict[PackedDtype, "pb.DType.ValueType"] = {
    "fp32": pb.DTYPE_FP32,
    "fp16": pb.DTYPE_FP16,
    "int8": pb.DTYPE_INT8,
}
_DTYPE_FROM_PROTO: dict[int, PackedDtype] = {proto: name for name, proto in _DTYPE_TO_PROTO.items()}
_MODE_TO_PROTO: dict[FeatureMode, "pb.FeatureMode.ValueType"] = {
    "send": pb.FEATURE_MODE_SEND,
    "none": pb.FEATURE_MODE_NONE,
    "recompute": pb.FEATURE_MODE_RECOMPUTE,
}
_MODE_FROM_PROTO: dict[int, FeatureMode] = {proto: name for name, proto in _MODE_TO_PROTO.items()}


@dataclass(frozen=True, kw_only=True)
class ImageCounts:
    """How the tokens of one image came about, for the cloud's metrics.

    Prefix, kept, agreed, drawn and fallback tokens sum to the tokens of the image.
    """

    num_prefix: int  # drawn by PrefixInject
    num_kept: int  # kept by the edge without asking
    num_agreed: int  # uncertain, and the cloud drew the same
    num_drawn: int  # taken from verdicts
    num_corrected: int  # those of num_drawn that replaced a token of the edge
    num_fallback: int  # uncertain, decided by the edge for want of an answer
    num_round_trips: int
    num_resumes: int
    num_forwards: int  # sequential cloud forward passes, of the prefix and the answered batches
    image_seconds: float  # prompt in to last token known at the edge


# ---------------------------------------------------------------------------------------- tensors


def encode_tensor(tensor: Tensor, *, dtype: PackedDtype) -> pb.Tensor:
    """A finite float tensor of one or two axes; fp16 and int8 round (see `ciar.packing`)."""
    packed = pack(tensor, dtype)
    return pb.Tensor(
        dtype=_DTYPE_TO_PROTO[dtype], shape=packed.shape, data=packed.data, scales=packed.scales
    )


def decode_tensor(message: pb.Tensor, *, field: str) -> Tensor:
    """float32, on the CPU. Raises `InvalidInput` that names `field`."""
    dtype = _DTYPE_FROM_PROTO.get(message.dtype)
    if dtype is None:
        raise InvalidInput(f"{field}.dtype", message.dtype, _DTYPE_REMEDY)
    _check_count(f"{field}.shape", len(message.shape), 2)
    packed = PackedTensor(
        dtype=dtype,
        shape=tuple(message.shape),
        data=message.data,
        scales=tuple(message.scales),
    )
    return unpack(packed, field=field)


# --------------------------------------------------------------------------------- model, request


def check_protocol_version(version: int) -> None:
    if version != PROTOCOL_VERSION:
        raise InvalidInput(
            "protocol_version",
            version,
            f"this side speaks version {PROTOCOL_VERSION}: install the same release on both sides",
        )


def sampling_to_proto(sampling: SamplingParams) -> pb.SamplingParams:
    _check_count("top_k", sampling.top_k, _MAX_UINT32)
    return pb.SamplingParams(**asdict(sampling))


def sampling_from_proto(
    message: pb.SamplingParams, *, defaults: SamplingParams | None = None
) -> SamplingParams:
    """Fields that are absent come from `defaults`."""
    absent = asdict(defaults or SamplingParams())
    given = {field.name: value for field, value in message.ListFields()}
    return SamplingParams(**absent | given)


def model_info_to_proto(info: ModelInfo) -> pb.GetModelResponse:
    values = asdict(info) | {"sampling": sampling_to_proto(info.sampling)}
    return pb.GetModelResponse(protocol_version=PROTOCOL_VERSION, **values)


def model_info_from_proto(message: pb.GetModelResponse) -> ModelInfo:
    check_protocol_version(message.protocol_version)
    if not 1 <= message.grid_size <= _MAX_GRID_SIZE:
        raise InvalidInput("grid_size", message.grid_size, f"give 1 to {_MAX_GRID_SIZE}")
    for field in ("vocab_size", "condition_dim", "max_prompt_chars", "max_batch_tokens"):
        if getattr(message, field) < 1:
            raise InvalidInput(field, getattr(message, field), "give a count above 0")
    values = _same_names(message, ModelInfo)
    return ModelInfo(**values | {"sampling": sampling_from_proto(message.sampling)})


def image_request_to_proto(request: ImageRequest) -> pb.ImageRequest:
    if any("\ud800" <= char <= "\udfff" for char in request.prompt):
        raise InvalidInput("prompt", request.prompt, "give Unicode text without lone surrogates")
    return pb.ImageRequest(
        protocol_version=PROTOCOL_VERSION,
        prompt=request.prompt,
        sampling=sampling_to_proto(request.sampling),
        num_prefix=request.num_prefix,
        fingerprint=request.fingerprint,
        epsilon=request.epsilon,
        max_gap=request.max_gap if request.looks_at_kept else None,
        features=_MODE_TO_PROTO[request.features],
        wavefront=request.wavefront,
        num_exact=request.num_exact,
    )


def image_request_from_proto(message: pb.ImageRequest, *, info: ModelInfo) -> ImageRequest:
    """Leaves the fingerprint alone: one that differs is no invalid input, but a `PairMismatch`."""
    check_protocol_version(message.protocol_version)
    if len(message.prompt) > info.max_prompt_chars:
        raise InvalidInput(
            "prompt",
            f"{len(message.prompt)} characters",
            f"give at most {info.max_prompt_chars}",
        )
    _check_count("num_prefix", message.num_prefix, info.num_tokens)
    _check_count("num_exact", message.num_exact, info.num_tokens)
    check_wavefront(message.wavefront, grid_size=info.grid_size)
    return ImageRequest(
        prompt=message.prompt,
        sampling=sampling_from_proto(message.sampling, defaults=info.sampling),
        num_prefix=message.num_prefix,
        fingerprint=message.fingerprint,
        epsilon=message.epsilon,
        max_gap=message.max_gap if message.HasField("max_gap") else math.inf,
        features=_mode_from_proto(message.features),
        wavefront=message.wavefront,
        num_exact=message.num_exact,
    )


def _mode_from_proto(value: int) -> FeatureMode:
    mode = _MODE_FROM_PROTO.get(value or pb.FEATURE_MODE_SEND)
    if mode is None:
        names = ", ".join(pb.FeatureMode.keys()[1:])
        raise InvalidInput("features", value, f"give one of {names}")
    return mode


def prefix_request_to_proto(
    request: ImageRequest, *, condition_dtype: PackedDtype = "fp32"
) -> pb.PrefixInjectRequest:
    return pb.PrefixInjectRequest(
        image=image_request_to_proto(request), condition_dtype=_DTYPE_TO_PROTO[condition_dtype]
    )


def prefix_request_from_proto(
    message: pb.PrefixInjectRequest, *, info: ModelInfo
) -> tuple[ImageRequest, PackedDtype]:
    """The image to be, and the type the edge wants its condition in: float32 if it names none."""
    dtype = _DTYPE_FROM_PROTO.get(message.condition_dtype or pb.DTYPE_FP32)
    if dtype is None:
        raise InvalidInput("condition_dtype", message.condition_dtype, _DTYPE_REMEDY)
    return image_request_from_proto(message.image, info=info), dtype


def prefix_to_proto(prefix: Prefix, *, condition_dtype: PackedDtype) -> pb.PrefixInjectResponse:
    return pb.PrefixInjectResponse(
        session_id=prefix.session_id,
        tokens=prefix.tokens,
        condition=encode_tensor(prefix.condition, dtype=condition_dtype),
        lease_seconds=prefix.lease_seconds,
        unknown_words=prefix.unknown_words,
        timings=timings_to_proto(prefix.timings),
    )


def prefix_from_proto(message: pb.PrefixInjectResponse, *, info: ModelInfo) -> Prefix:
    condition = decode_tensor(message.condition, field="condition")  # [num_valid, condition_dim]
    if condition.ndim != 2 or condition.shape[1] != info.condition_dim:
        raise InvalidInput(
            "condition.shape", tuple(condition.shape), f"give [rows, {info.condition_dim}]"
        )
    _check_seconds("lease_seconds", message.lease_seconds)
    return Prefix(
        session_id=message.session_id,
        tokens=_tokens_from_proto(message.tokens, info=info, max_tokens=info.num_tokens),
        condition=condition,
        lease_seconds=message.lease_seconds,
        unknown_words=tuple(message.unknown_words),
        timings=timings_from_proto(message.timings),
    )


# ---------------------------------------------------------------------------------- spans, stream


def verify_batch_to_proto(batch: VerifyBatch, *, dtype: PackedDtype) -> pb.Batch:
    """dtype: of the features. The same features make the same bytes each time."""
    span = _span_to_proto(batch, dtype=dtype)
    return pb.Batch(
        epoch=batch.epoch,
        span=span,
        skips_next=not batch.wants_next,
        num_decided=batch.num_decided,
        run_on=batch.run_on,
    )


def verify_batch_from_proto(
    message: pb.Batch, *, info: ModelInfo, mode: FeatureMode = "send"
) -> VerifyBatch:
    """mode: of the image's features."""
    span = _span_from_proto(message.span, info=info, max_tokens=info.max_batch_tokens, mode=mode)
    if not span.tokens:
        raise InvalidInput("tokens", (), "give at least one token")
    _check_count("num_decided", message.num_decided, len(span.tokens))
    _check_count("run_on", message.run_on, info.num_tokens)
    return VerifyBatch(
        position=span.position,
        tokens=span.tokens,
        uncertain=span.uncertain,
        features=span.features,
        epoch=message.epoch,
        wants_next=not message.skips_next,
        num_decided=message.num_decided,
        run_on=message.run_on,
    )


def resume_to_proto(resume: Resume, *, dtype: PackedDtype) -> pb.Resume:
    """dtype: of the features, the one that the batches of the session were sent in."""
    return pb.Resume(
        image=image_request_to_proto(resume.request),
        history=_span_to_proto(resume.history, dtype=dtype),
        epoch=resume.epoch,
    )


def resume_from_proto(message: pb.Resume, *, info: ModelInfo) -> Resume:
    request = image_request_from_proto(message.image, info=info)
    history = _span_from_proto(
        message.history, info=info, max_tokens=info.num_tokens, mode=request.features
    )
    if history.position != 0:
        raise InvalidInput("position", history.position, "a history starts at 0")
    return Resume(request=request, history=history, epoch=message.epoch)


def verdict_to_proto(verdict: Verdict) -> pb.Verdict:
    return pb.Verdict(
        epoch=verdict.epoch,
        position=verdict.position,
        num_agreed=verdict.num_agreed,
        token=verdict.token,
        timings=timings_to_proto(verdict.timings),
        gaps=verdict.gaps,
        run_on=verdict.run_on,
    )


def verdict_from_proto(message: pb.Verdict, *, info: ModelInfo) -> Verdict:
    token = message.token if message.HasField("token") else None
    stop = message.position + message.num_agreed
    _check_count("num_agreed", stop, info.num_tokens)
    if token is not None:
        _check_token("token", token, info)
        if stop == info.num_tokens:
            raise InvalidInput("token", token, "nothing follows the last position of the image")
    return Verdict(
        epoch=message.epoch,
        position=message.position,
        num_agreed=message.num_agreed,
        token=token,
        timings=timings_from_proto(message.timings),
        gaps=_gaps(message.gaps),
        run_on=_run_on(message, info),
    )


def _run_on(message: pb.Verdict, info: ModelInfo) -> tuple[int, ...]:
    tokens = tuple(message.run_on)
    if tokens and not message.HasField("token"):
        raise InvalidInput("run_on", tokens, "it follows a token: give that one, too")
    if tokens:
        end = message.position + message.num_agreed + 1 + len(tokens)
        _check_count("run_on", end, info.num_tokens)
    for token in tokens:
        _check_token("run_on", token, info)
    return tokens


def _gaps(values: Sequence[float]) -> tuple[float, ...]:
    if not all(gap >= 0 for gap in values):
        raise InvalidInput("gaps", min(values), "give numbers of nats, 0 or more")
    return tuple(values)


def finish_to_proto(counts: ImageCounts) -> pb.Finish:
    return pb.Finish(**asdict(counts))


def finish_from_proto(message: pb.Finish, *, info: ModelInfo) -> ImageCounts:
    _check_seconds("image_seconds", message.image_seconds)
    counts = ImageCounts(**_same_names(message, ImageCounts))
    num_edge = counts.num_kept + counts.num_fallback
    num_tokens = counts.num_prefix + counts.num_agreed + counts.num_drawn + num_edge
    if num_tokens != info.num_tokens:
        raise InvalidInput("finish", f"{num_tokens} tokens", f"the image has {info.num_tokens}")
    _check_count("num_corrected", counts.num_corrected, counts.num_drawn)
    return counts


def timings_to_proto(timings: Timings) -> pb.Timings:
    return pb.Timings(**vars(timings))


def timings_from_proto(message: pb.Timings) -> Timings:
    _check_seconds("queue_seconds", message.queue_seconds)
    _check_seconds("compute_seconds", message.compute_seconds)
    return Timings(**_same_names(message, Timings))


# ------------------------------------------------------------------------------------------ parts


def _same_names(message: Message, kind: type[Any]) -> dict[str, Any]:
    return {field.name: getattr(message, field.name) for field in fields(kind)}


def _span_to_proto(span: TokenSpan, *, dtype: PackedDtype) -> pb.TokenSpan:
    bits = sum(1 << index for index, flag in enumerate(span.uncertain) if flag)
    mask = bits.to_bytes(_mask_bytes(len(span.tokens)), "little")
    message = pb.TokenSpan(position=span.position, tokens=span.tokens, uncertain=mask)
    if span.features.numel():
        message.features.CopyFrom(encode_tensor(span.features, dtype=dtype))
    return message


def _span_from_proto(
    message: pb.TokenSpan, *, info: ModelInfo, max_tokens: int, mode: FeatureMode
) -> TokenSpan:
    tokens = _tokens_from_proto(message.tokens, info=info, max_tokens=max_tokens)
    if message.position + len(tokens) > info.num_tokens:
        raise InvalidInput(
            "position", message.position, f"{len(tokens)} tokens from there pass {info.num_tokens}"
        )
    uncertain = _mask_from_proto(message.uncertain, num_tokens=len(tokens))
    num_kept = sum(not flag for flag in uncertain)
    features = _features_from_proto(message, info=info, num_kept=num_kept, mode=mode)
    return TokenSpan(
        position=message.position, tokens=tokens, uncertain=uncertain, features=features
    )


def _features_from_proto(
    message: pb.TokenSpan, *, info: ModelInfo, num_kept: int, mode: FeatureMode
) -> Tensor:
    """[num_kept, feature_dim], no rows unless they are sent."""
    width = info.feature_dim
    if mode != "send":
        if message.HasField("features"):
            shape = list(message.features.shape)
            raise InvalidInput("features", shape, f"leave it out: this image's are {mode!r}")
        return no_features(width)
    if message.HasField("features"):
        features = decode_tensor(message.features, field="features")
    else:
        features = torch.zeros(0 if width else num_kept, width)
    if tuple(features.shape) != (num_kept, width):
        raise InvalidInput("features.shape", tuple(features.shape), f"give [{num_kept}, {width}]")
    return features


def _mask_from_proto(mask: bytes, *, num_tokens: int) -> tuple[bool, ...]:
    num_bytes = _mask_bytes(num_tokens)
    if len(mask) != num_bytes:
        raise InvalidInput(
            "uncertain", f"{len(mask)} bytes", f"give {num_bytes} bytes for {num_tokens} tokens"
        )
    bits = int.from_bytes(mask, "little")
    if bits >> num_tokens:
        raise InvalidInput("uncertain", mask[-1:], "leave the spare bits of the last byte 0")
    return tuple(bool(bits >> index & 1) for index in range(num_tokens))


def _mask_bytes(num_tokens: int) -> int:
    return (num_tokens + 7) // 8


def _tokens_from_proto(
    tokens: Iterable[int], *, info: ModelInfo, max_tokens: int
) -> tuple[int, ...]:
    values = tuple(tokens)
    _check_count("tokens", len(values), max_tokens)
    for index, token in enumerate(values):
        _check_token(f"tokens[{index}]", token, info)
    return values


def _check_token(field: str, token: int, info: ModelInfo) -> None:
    if token >= info.vocab_size:
        raise InvalidInput(field, token, f"give a token id from 0 to {info.vocab_size - 1}")


def _check_count(field: str, count: int, limit: int) -> None:
    if count > limit:
        raise InvalidInput(field, count, f"give at most {limit}")


def _check_seconds(field: str, seconds: float) -> None:
    if not (math.isfinite(seconds) and seconds >= 0):
        raise InvalidInput(field, seconds, "give a finite duration from 0 seconds")
