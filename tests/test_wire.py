import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ciar import wire
from ciar.errors import InvalidInput
from ciar.feature_mode import FEATURE_MODES, FeatureMode
from ciar.packing import PACKED_DTYPES, PackedDtype
from ciar.types import (
    MAX_SEED,
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
from tests.rounding import round_features

INFO = ModelInfo(
    name="tiny",
    family="llamagen",
    fingerprint="0123abcd",
    grid_size=8,
    vocab_size=300,
    condition_dim=12,
    feature_dim=16,
    max_prompt_chars=40,
    max_batch_tokens=32,
    sampling=SamplingParams(
        seed=3, temperature=0.9, top_k=50, top_p=0.95, cfg_scale=4.5, cfg_interval=3
    ),
)
TIMINGS = Timings(queue_seconds=0.1, compute_seconds=2.5, num_forwards=3, num_positions=99)
COMPACT: tuple[PackedDtype, ...] = ("fp16", "int8")


def random_span(rng: random.Random, *, position: int, num_tokens: int) -> TokenSpan:
    uncertain = tuple(rng.random() < 0.3 for _ in range(num_tokens))
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    num_kept = num_tokens - sum(uncertain)
    return TokenSpan(
        position=position,
        tokens=tuple(rng.randrange(INFO.vocab_size) for _ in range(num_tokens)),
        uncertain=uncertain,
        features=torch.randn(num_kept, INFO.feature_dim, generator=generator),
    )


def random_batch(seed: int) -> VerifyBatch:
    rng = random.Random(seed)
    num_tokens = rng.randint(1, INFO.max_batch_tokens)
    position = rng.randint(0, INFO.num_tokens - num_tokens)
    span = random_span(rng, position=position, num_tokens=num_tokens)
    return VerifyBatch(
        **vars(span),
        epoch=rng.randrange(9),
        wants_next=rng.random() < 0.5,
        num_decided=rng.randint(0, len(span.tokens)),
        run_on=rng.randrange(3),
    )


def assert_same_span(first: TokenSpan, second: TokenSpan) -> None:
    assert type(first) is type(second)
    assert (first.position, first.tokens) == (second.position, second.tokens)
    assert first.uncertain == second.uncertain
    assert torch.equal(first.features, second.features)


def bits(tensor: Tensor) -> bytes:
    return tensor.numpy().tobytes()


# ---------------------------------------------------------------------------------------- tensors


@pytest.mark.parametrize("dtype", PACKED_DTYPES)
@pytest.mark.parametrize("shape", [(5,), (0,), (1, 1), (7, 16), (0, 16), (4, 0)])
def test_a_tensor_survives_a_second_trip_bit_for_bit(
    dtype: PackedDtype, shape: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(1)
    for exponent in (-40.0, -30.0, -3.0, 0.0, 3.0, 6.0):
        tensor = torch.randn(shape, generator=generator) * 10.0**exponent
        once = round_features(tensor, dtype)
        message = pb.Tensor.FromString(wire.encode_tensor(once, dtype=dtype).SerializeToString())
        twice = wire.decode_tensor(message, field="t")
        assert twice.dtype == torch.float32
        assert twice.shape == tensor.shape
        assert bits(twice) == bits(once)


def test_tensor_sizes() -> None:
    tensor = torch.randn(180, 64)
    sizes = {name: wire.encode_tensor(tensor, dtype=name).ByteSize() for name in PACKED_DTYPES}
    overhead = 20
    assert 180 * 64 * 4 < sizes["fp32"] < 180 * 64 * 4 + overhead
    assert 180 * 64 * 2 < sizes["fp16"] < 180 * 64 * 2 + overhead
    assert 180 * 64 + 180 * 4 < sizes["int8"] < 180 * 64 + 180 * 4 + overhead


def test_data_is_little_endian_and_row_major() -> None:
    tensor = torch.tensor([[1.0, 2.0], [-1.0, 0.5]])
    assert wire.encode_tensor(tensor, dtype="fp16").data == bytes.fromhex("003c004000bc0038")
    message = wire.encode_tensor(tensor.T, dtype="fp32")  # not contiguous
    assert torch.equal(wire.decode_tensor(message, field="t"), tensor.T)


def good_tensor() -> pb.Tensor:
    return wire.encode_tensor(torch.ones(3, 4), dtype="int8")


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("t.dtype", {"dtype": pb.DTYPE_UNSPECIFIED}),
        ("t.dtype", {"dtype": 99}),
        ("t.shape", {"shape": []}),
        ("t.shape", {"shape": [3, 2, 2]}),
        ("t.shape", {"shape": [2**32 - 1, 0], "data": b"", "scales": []}),
        ("t.data", {"shape": [2**20, 2**20]}),
        ("t.data", {"data": b""}),
        ("t.data", {"data": bytes(13)}),
        ("t.scales", {"scales": []}),
        ("t.scales", {"scales": [1.0] * 4}),
        ("t.scales", {"scales": [1.0, math.nan, 1.0]}),
        ("t.scales", {"scales": [1.0, math.inf, 1.0]}),
        ("t.scales", {"scales": [1.0, -1.0, 1.0]}),
        ("t", {"scales": [3e38, 3e38, 3e38]}),
        ("t.scales", {"dtype": pb.DTYPE_FP16, "data": bytes(24)}),
        ("t", {"dtype": pb.DTYPE_FP16, "data": b"\x00\x7e" * 12, "scales": []}),
        ("t", {"dtype": pb.DTYPE_FP32, "data": b"\x00\x00\x80\xff" * 12, "scales": []}),
    ],
)
def test_a_bad_tensor_is_refused_by_name(field: str, changes: dict[str, Any]) -> None:
    message = good_tensor()
    values: dict[str, Any] = {field.name: value for field, value in message.ListFields()}
    message = pb.Tensor(**values | changes)
    with pytest.raises(InvalidInput) as caught:
        wire.decode_tensor(message, field="t")
    assert caught.value.field == field


def test_a_lying_shape_takes_no_memory() -> None:
    message = pb.Tensor(dtype=pb.DTYPE_FP32, shape=[2**20, 2**20], data=b"1234")
    with pytest.raises(InvalidInput, match=r"t\.data: '4 bytes': give 4398046511104 bytes"):
        wire.decode_tensor(message, field="t")


# --------------------------------------------------------------------------------- model, request


def reserialise(message: Any) -> Any:
    return type(message).FromString(message.SerializeToString())


def test_model_info_round_trip() -> None:
    for info in (INFO, replace(INFO, can_recompute=True)):
        assert wire.model_info_from_proto(reserialise(wire.model_info_to_proto(info))) == info


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(),
        SamplingParams(seed=MAX_SEED, temperature=0, top_k=1, top_p=0.1, cfg_scale=1),
        SamplingParams(
            seed=7, temperature=1.1, top_k=2000, top_p=1.0, cfg_scale=7.5, cfg_interval=10
        ),
    ],
)
def test_request_round_trip(sampling: SamplingParams) -> None:
    request = ImageRequest(
        prompt="a dög on a beach", sampling=sampling, num_prefix=3, fingerprint="f"
    )
    others = [replace(request, features=mode) for mode in FEATURE_MODES]
    others.append(replace(request, wavefront=3, num_exact=5))
    for one in (request, replace(request, epsilon=0.25, max_gap=0.0), *others):
        message = reserialise(wire.prefix_request_to_proto(one, condition_dtype="fp16"))
        assert wire.prefix_request_from_proto(message, info=INFO) == (one, "fp16")


def test_features_are_sent_unless_the_request_says_otherwise() -> None:
    assert read_request().features == "send"
    assert read_request(features=pb.FEATURE_MODE_RECOMPUTE).features == "recompute"


def test_absent_sampling_fields_take_the_checkpoints_own() -> None:
    image = pb.ImageRequest(protocol_version=wire.PROTOCOL_VERSION, prompt="a dog")
    request, dtype = wire.prefix_request_from_proto(pb.PrefixInjectRequest(image=image), info=INFO)
    assert request.sampling == INFO.sampling
    assert dtype == "fp32"
    image.sampling.temperature = 0.0
    greedy = wire.image_request_from_proto(reserialise(image), info=INFO)
    assert greedy.sampling == replace(INFO.sampling, temperature=0.0)


def test_prefix_round_trip() -> None:
    prefix = Prefix(
        session_id="s1",
        tokens=(1, 2, 299),
        condition=torch.randn(5, INFO.condition_dim),
        lease_seconds=10.5,
        unknown_words=("blorp",),
        timings=TIMINGS,
    )
    message = reserialise(wire.prefix_to_proto(prefix, condition_dtype="fp32"))
    result = wire.prefix_from_proto(message, info=INFO)
    assert torch.equal(result.condition, prefix.condition)
    assert replace(result, condition=prefix.condition) == prefix


# ---------------------------------------------------------------------------------- spans, stream


@pytest.mark.parametrize("dtype", PACKED_DTYPES)
@pytest.mark.parametrize("seed", range(20))
def test_batch_round_trip(seed: int, dtype: PackedDtype) -> None:
    batch = random_batch(seed)
    rounded = replace(batch, features=round_features(batch.features, dtype))
    for sent in (batch, rounded):
        message = reserialise(wire.verify_batch_to_proto(sent, dtype=dtype))
        result = wire.verify_batch_from_proto(message, info=INFO)
        assert_same_span(result, rounded)
        assert (result.epoch, result.wants_next) == (batch.epoch, batch.wants_next)
        assert (result.num_decided, result.run_on) == (batch.num_decided, batch.run_on)


@pytest.mark.parametrize("dtype", COMPACT)
def test_a_resume_brings_the_features_of_the_batches(dtype: PackedDtype) -> None:
    rng = random.Random(4)
    request = ImageRequest(prompt="a dog", sampling=SamplingParams(seed=1), num_prefix=3)
    history = random_span(rng, position=0, num_tokens=INFO.num_tokens)
    history = replace(history, features=round_features(history.features, dtype))
    resume = Resume(request=request, history=history, epoch=5)
    message = reserialise(wire.resume_to_proto(resume, dtype=dtype))
    result = wire.resume_from_proto(message, info=INFO)
    assert (result.request, result.epoch) == (request, 5)
    assert_same_span(result.history, history)


def test_a_span_without_kept_tokens_sends_no_features() -> None:
    batch = VerifyBatch(
        position=0,
        tokens=(1, 2),
        uncertain=(True, True),
        features=no_features(INFO.feature_dim),
    )
    message = wire.verify_batch_to_proto(batch, dtype="fp16")
    assert not message.span.HasField("features")
    assert_same_span(wire.verify_batch_from_proto(message, info=INFO), batch)


@pytest.mark.parametrize("mode", ["none", "recompute"])
def test_spans_bring_no_features_unless_they_are_sent(mode: FeatureMode) -> None:
    """A batch, and the history of a resume."""
    nothing = no_features(INFO.feature_dim)
    batch = replace(random_batch(1), features=nothing)
    assert batch.num_kept
    message = reserialise(wire.verify_batch_to_proto(batch, dtype="fp16"))
    assert not message.span.HasField("features")
    assert_same_span(wire.verify_batch_from_proto(message, info=INFO, mode=mode), batch)
    history = random_span(random.Random(4), position=0, num_tokens=INFO.num_tokens)
    history = replace(history, features=nothing)
    request = ImageRequest(prompt="a dog", sampling=SamplingParams(), features=mode)
    resume = Resume(request=request, history=history)
    result = wire.resume_from_proto(
        reserialise(wire.resume_to_proto(resume, dtype="fp16")), info=INFO
    )
    assert result.request == request
    assert_same_span(result.history, history)
    with pytest.raises(InvalidInput, match=rf"features: \[2, 16\]: leave it out: .*{mode}"):
        wire.verify_batch_from_proto(batch_message(), info=INFO, mode=mode)


@pytest.mark.parametrize("num_uncertain", [1, 8])
def test_tokens_alone_take_less_than_four_bytes_each(num_uncertain: int) -> None:
    """Beside the framing of a batch."""
    num_tokens = 32
    batch = VerifyBatch(
        position=0,
        tokens=(INFO.vocab_size - 1,) * num_tokens,
        uncertain=(False,) * (num_tokens - num_uncertain) + (True,) * num_uncertain,
        features=no_features(INFO.feature_dim),
    )
    assert wire.verify_batch_to_proto(batch, dtype="fp16").ByteSize() < 4 * num_tokens


def test_a_checkpoint_without_features() -> None:
    info = replace(INFO, feature_dim=0)
    batch = VerifyBatch(
        position=0, tokens=(1, 2), uncertain=(False, True), features=torch.zeros(1, 0)
    )
    message = wire.verify_batch_to_proto(batch, dtype="int8")
    assert not message.span.HasField("features")
    assert_same_span(wire.verify_batch_from_proto(message, info=info), batch)
    with pytest.raises(InvalidInput) as caught:
        wire.verify_batch_from_proto(message, info=INFO)
    assert caught.value.field == "features.shape"


def test_the_mask_is_packed_least_significant_bit_first() -> None:
    uncertain = (False, True, True) + (False,) * 5 + (True,)
    batch = VerifyBatch(
        position=0, tokens=(5,) * 9, uncertain=uncertain, features=torch.zeros(6, INFO.feature_dim)
    )
    message = wire.verify_batch_to_proto(batch, dtype="fp16")
    assert message.span.uncertain == bytes([0b110, 0b1])


def test_a_wire_image_is_small() -> None:
    """256 tokens, 30 % uncertain, features of width 64: under 40 KB up, in batches of three."""
    generator = torch.Generator().manual_seed(5)
    sizes = dict.fromkeys(COMPACT, 0)
    for position in range(0, 255, 3):
        batch = VerifyBatch(
            position=position,
            tokens=(4000, 16000, 9000),
            uncertain=(False, False, True),
            features=torch.randn(2, 64, generator=generator),
        )
        for dtype in COMPACT:
            body = wire.verify_batch_to_proto(batch, dtype=dtype)
            sizes[dtype] += pb.VerifyBatchRequest(batch=body).ByteSize()
    assert sizes["int8"] < 16_000
    assert sizes["fp16"] < 26_000


@pytest.mark.parametrize(
    "verdict",
    [
        Verdict(epoch=0, position=0, num_agreed=0, token=0, timings=TIMINGS),
        Verdict(epoch=2**31, position=10, num_agreed=3, token=299),
        Verdict(epoch=1, position=60, num_agreed=4, token=None),
        Verdict(epoch=1, position=10, num_agreed=4, token=None),
        Verdict(epoch=1, position=10, num_agreed=3, token=1, gaps=(0.0, 2.5, math.inf)),
    ],
)
def test_verdict_round_trip(verdict: Verdict) -> None:
    message = reserialise(wire.verdict_to_proto(verdict))
    assert wire.verdict_from_proto(message, info=INFO) == verdict


def counts(**changes: Any) -> wire.ImageCounts:
    values: dict[str, Any] = {
        "num_prefix": 3,
        "num_kept": 40,
        "num_agreed": 10,
        "num_drawn": 9,
        "num_corrected": 4,
        "num_fallback": 2,
        "num_round_trips": 15,
        "num_resumes": 1,
        "num_forwards": 21,
        "image_seconds": 1.25,
    }
    return wire.ImageCounts(**values | changes)


def test_finish_round_trip() -> None:
    message = reserialise(wire.finish_to_proto(counts()))
    assert wire.finish_from_proto(message, info=INFO) == counts()


# -------------------------------------------------------------------------------- refused messages


def batch_message(num_decided: int = 0, **changes: Any) -> pb.Batch:
    span: dict[str, Any] = {
        "position": 10,
        "tokens": [1, 2, 3],
        "uncertain": b"\x04",
        "features": wire.encode_tensor(torch.ones(2, INFO.feature_dim), dtype="fp16"),
    }
    return pb.Batch(span=pb.TokenSpan(**span | changes), num_decided=num_decided)


def read_batch(**changes: Any) -> VerifyBatch:
    return wire.verify_batch_from_proto(batch_message(**changes), info=INFO)


def read_request(**changes: Any) -> ImageRequest:
    values: dict[str, Any] = {"protocol_version": wire.PROTOCOL_VERSION, "prompt": "a dog"}
    return wire.image_request_from_proto(pb.ImageRequest(**values | changes), info=INFO)


def read_prefix(**changes: Any) -> Prefix:
    values = {"condition": wire.encode_tensor(torch.ones(2, INFO.condition_dim), dtype="fp32")}
    return wire.prefix_from_proto(pb.PrefixInjectResponse(**values | changes), info=INFO)


def read_verdict(**changes: Any) -> Verdict:
    values = {"position": 10, "num_agreed": 2, "token": 5}
    return wire.verdict_from_proto(pb.Verdict(**values | changes), info=INFO)


ANSWERED = VerifyBatch(
    position=60,
    tokens=(1, 2, 3),
    uncertain=(True,) * 3,
    features=torch.zeros(0, INFO.feature_dim),
)
ONE_KEPT: dict[str, Any] = {
    "uncertain": (True, False, True),
    "features": torch.zeros(1, INFO.feature_dim),
}


@pytest.mark.parametrize(
    ("batch", "num_agreed", "token", "field"),
    [
        ({}, 1, 9, None),
        ({}, 3, 9, None),
        ({"position": INFO.num_tokens - 3}, 3, None, None),
        ({"wants_next": False}, 3, None, None),
        ({"wants_next": False}, 3, 9, None),
        ({}, 4, 9, "num_agreed"),
        (ONE_KEPT, 2, 9, None),
        (ONE_KEPT, 1, 9, "num_agreed"),
        ({}, 3, None, "token"),
        ({}, 1, None, "token"),
        ({"wants_next": False}, 2, None, "token"),
    ],
)
def test_a_verdict_must_answer_its_batch(
    batch: dict[str, Any], num_agreed: int, token: int | None, field: str | None
) -> None:
    asked = replace(ANSWERED, **batch)
    verdict = Verdict(epoch=0, position=asked.position, num_agreed=num_agreed, token=token)
    if field is None:
        verdict.check_answers(asked, num_tokens=INFO.num_tokens)
    else:
        with pytest.raises(InvalidInput, match=f"^{field}"):
            verdict.check_answers(asked, num_tokens=INFO.num_tokens)


@pytest.mark.parametrize(("num_agreed", "count"), [(1, 3), (3, 1)])
def test_no_more_is_drawn_on_than_was_wanted(num_agreed: int, count: int) -> None:
    """Behind a difference as many as asked for, else none."""
    asked = replace(ANSWERED, run_on=2)
    start: dict[str, Any] = {"epoch": 0, "position": asked.position, "token": 9}
    verdict = Verdict(**start, num_agreed=num_agreed, run_on=(5,) * count)
    with pytest.raises(InvalidInput, match=f"^run_on: {count}: give"):
        verdict.check_answers(asked, num_tokens=INFO.num_tokens)
    Verdict(**start, num_agreed=1, run_on=(5,)).check_answers(asked, num_tokens=INFO.num_tokens)


def test_what_the_edge_has_decided_stands() -> None:
    asked = replace(ANSWERED, **ONE_KEPT | {"num_decided": 2})
    verdict = Verdict(epoch=0, position=asked.position, num_agreed=2, token=9)
    verdict.check_answers(asked, num_tokens=INFO.num_tokens, looks_at_kept=True)
    with pytest.raises(InvalidInput, match="^num_agreed: 1: what the edge has decided"):
        replace(verdict, num_agreed=1).check_answers(
            asked, num_tokens=INFO.num_tokens, looks_at_kept=True
        )


def test_kept_tokens_may_differ_where_the_cloud_looks_at_them() -> None:
    asked = replace(ANSWERED, **ONE_KEPT)
    verdict = Verdict(epoch=0, position=asked.position, num_agreed=1, token=9, gaps=(0.5,))
    verdict.check_answers(asked, num_tokens=INFO.num_tokens, looks_at_kept=True)
    with pytest.raises(InvalidInput, match="^gaps: 2: give 1"):
        replace(verdict, gaps=(0.5, 0.0)).check_answers(
            asked, num_tokens=INFO.num_tokens, looks_at_kept=True
        )


def read_finish(**changes: Any) -> wire.ImageCounts:
    return wire.finish_from_proto(wire.finish_to_proto(counts(**changes)), info=INFO)


def read_info(**changes: Any) -> ModelInfo:
    message = wire.model_info_to_proto(INFO)
    for name, value in changes.items():
        setattr(message, name, value)
    return wire.model_info_from_proto(message)


def read_sampling(**changes: Any) -> ImageRequest:
    return read_request(sampling=pb.SamplingParams(**changes))


WRONG_ROWS = wire.encode_tensor(torch.ones(3, INFO.feature_dim), dtype="fp16")
WRONG_WIDTH = wire.encode_tensor(torch.ones(2, INFO.feature_dim + 1), dtype="fp16")
ONE_AXIS = wire.encode_tensor(torch.ones(2 * INFO.feature_dim), dtype="fp16")
NOT_A_NUMBER = pb.Tensor(
    dtype=pb.DTYPE_FP16, shape=[2, INFO.feature_dim], data=b"\x00\x7e" * (2 * INFO.feature_dim)
)


@pytest.mark.parametrize(
    ("field", "read", "changes"),
    [
        ("tokens", read_batch, {"tokens": [], "uncertain": b"", "features": None}),
        ("tokens", read_batch, {"tokens": [0] * 33}),
        ("tokens[1]", read_batch, {"tokens": [1, 300, 3]}),
        ("tokens[2]", read_batch, {"tokens": [1, 2, 2**32 - 1]}),
        ("position", read_batch, {"position": 62}),
        ("position", read_batch, {"position": 2**32 - 1}),
        ("uncertain", read_batch, {"uncertain": b""}),
        ("uncertain", read_batch, {"uncertain": b"\x04\x00"}),
        ("uncertain", read_batch, {"uncertain": b"\x0c"}),
        ("features", read_request, {"features": 9}),
        ("features.shape", read_batch, {"features": None}),
        ("features.shape", read_batch, {"uncertain": b"\x07"}),
        ("features.shape", read_batch, {"features": WRONG_ROWS}),
        ("features.shape", read_batch, {"features": WRONG_WIDTH}),
        ("features.shape", read_batch, {"features": ONE_AXIS}),
        ("features.dtype", read_batch, {"features": pb.Tensor()}),
        ("features", read_batch, {"features": NOT_A_NUMBER}),
        ("protocol_version", read_request, {"protocol_version": 0}),
        ("protocol_version", read_request, {"protocol_version": 2}),
        ("prompt", read_request, {"prompt": "x" * 41}),
        ("num_prefix", read_request, {"num_prefix": 65}),
        ("num_decided", read_batch, {"num_decided": 4}),
        ("epsilon", read_request, {"epsilon": -0.1}),
        ("epsilon", read_request, {"epsilon": math.inf}),
        ("max_gap", read_request, {"max_gap": math.nan}),
        ("max_gap", read_request, {"max_gap": -1.0}),
        ("wavefront", read_request, {"wavefront": 9}),
        ("num_exact", read_request, {"num_exact": 65}),
        ("features", read_request, {"wavefront": 3, "features": pb.FEATURE_MODE_RECOMPUTE}),
        ("temperature", read_sampling, {"temperature": math.nan}),
        ("top_p", read_sampling, {"top_p": 0.0}),
        ("cfg_scale", read_sampling, {"cfg_scale": 0.5}),
        ("cfg_interval", read_sampling, {"cfg_interval": -2}),
        ("tokens", read_prefix, {"tokens": [0] * 65}),
        ("tokens[0]", read_prefix, {"tokens": [300]}),
        ("condition.dtype", read_prefix, {"condition": None}),
        ("condition.shape", read_prefix, {"condition": WRONG_WIDTH}),
        ("lease_seconds", read_prefix, {"lease_seconds": math.inf}),
        ("queue_seconds", read_prefix, {"timings": pb.Timings(queue_seconds=-1)}),
        ("num_agreed", read_verdict, {"num_agreed": 55}),
        ("token", read_verdict, {"token": 300}),
        ("token", read_verdict, {"num_agreed": 54}),
        ("compute_seconds", read_verdict, {"timings": pb.Timings(compute_seconds=math.nan)}),
        ("run_on", read_verdict, {"run_on": [300]}),
        ("run_on", read_verdict, {"num_agreed": 52, "run_on": [3, 4]}),
        ("gaps", read_verdict, {"gaps": [0.0, math.nan]}),
        ("gaps", read_verdict, {"gaps": [-0.5, 1.0]}),
        ("finish", read_finish, {"num_kept": 41}),
        ("num_corrected", read_finish, {"num_corrected": 10}),
        ("image_seconds", read_finish, {"image_seconds": -0.5}),
        ("protocol_version", read_info, {"protocol_version": 7}),
        ("grid_size", read_info, {"grid_size": 0}),
        ("grid_size", read_info, {"grid_size": 1025}),
        ("vocab_size", read_info, {"vocab_size": 0}),
        ("max_batch_tokens", read_info, {"max_batch_tokens": 0}),
    ],
)
def test_a_bad_field_is_refused_by_name(
    field: str, read: Callable[..., Any], changes: dict[str, Any]
) -> None:
    read()  # good without the changes
    with pytest.raises(InvalidInput) as caught:
        read(**changes)
    assert caught.value.field == field


def test_a_history_starts_at_zero() -> None:
    image = wire.image_request_to_proto(ImageRequest(prompt="a", sampling=SamplingParams()))
    message = pb.Resume(image=image, history=pb.TokenSpan(position=1))
    with pytest.raises(InvalidInput, match="position: 1: a history starts at 0"):
        wire.resume_from_proto(message, info=INFO)


def test_an_unknown_condition_dtype_is_refused() -> None:
    request = ImageRequest(prompt="a", sampling=SamplingParams())
    message = wire.prefix_request_to_proto(request)
    setattr(message, "condition_dtype", 17)  # noqa: B010 - not a member of the enum
    with pytest.raises(InvalidInput, match="condition_dtype: 17"):
        wire.prefix_request_from_proto(message, info=INFO)


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("prompt", ImageRequest(prompt="a \udcff", sampling=SamplingParams())),
        ("top_k", ImageRequest(prompt="a", sampling=SamplingParams(top_k=2**40))),
    ],
)
def test_what_protobuf_cannot_hold_is_the_users_mistake(field: str, request_: ImageRequest) -> None:
    with pytest.raises(InvalidInput) as caught:
        wire.image_request_to_proto(request_)
    assert caught.value.field == field


def test_random_bytes_are_refused_or_valid() -> None:
    """Noise from a peer is an InvalidInput or a batch within the limits, never another error."""
    rng = random.Random(6)
    num_refused = 0
    for _ in range(300):
        data = bytearray(batch_message().SerializeToString())
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        message = pb.Batch()
        try:
            message.ParseFromString(bytes(data))
        except Exception as error:
            assert type(error).__name__ == "DecodeError"
            continue
        try:
            batch = wire.verify_batch_from_proto(message, info=INFO)
        except InvalidInput:
            num_refused += 1
        else:
            assert batch.end <= INFO.num_tokens
            assert max(batch.tokens) < INFO.vocab_size
            assert bool(torch.isfinite(batch.features).all())
    assert num_refused > 50


def test_names_of_the_service() -> None:
    assert wire.SERVICE_NAME == "ciar.v1.Collaboration"
    assert wire.MESSAGE_LIMIT_BYTES == 16 * 1024 * 1024
