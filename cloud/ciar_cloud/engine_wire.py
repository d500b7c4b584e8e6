"""What server and engine process tell each other over their socket.

A frame is a length, the length of its head, the head in JSON and the float32 arrays that it names,
row-major, in the byte order of the machine. Nothing is pickled: what came from an edge reaches the
engine as numbers and text.

    server -> engine    open, close, draw, verify
    engine -> server    ready, failed, started, step (outcomes, observations, slots in use), log

Seats and works go by numbers that the server gives them, times by the machine's monotonic clock.
"""

import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from ciar import errors
from ciar.errors import CiarError, EngineError
from ciar.session import SessionState
from ciar.types import ImageRequest, SamplingParams, Timings, Verdict, VerifyBatch
from ciar_cloud.scheduler import Outcome

PREFIX = struct.Struct("=II")  # bytes behind it, and how many of them are the head
Head = dict[str, Any]


def encode_frame(head: Mapping[str, Any], tensors: Sequence[Tensor] = ()) -> bytes:
    """tensors: float32, on the CPU."""
    shapes = {"shapes": [list(tensor.shape) for tensor in tensors]} if tensors else {}
    text = json.dumps({**head, **shapes}, separators=(",", ":")).encode()
    arrays = b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors)
    return PREFIX.pack(len(text) + len(arrays), len(text)) + text + arrays


class FrameReader:
    """Frames out of bytes as they come."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[Head, list[Tensor]]]:
        """Heads and tensors of the frames that are whole now."""
        self._bytes += data
        while len(self._bytes) >= PREFIX.size:
            length, head_length = PREFIX.unpack_from(self._bytes)
            end = PREFIX.size + length
            if len(self._bytes) < end:
                return
            frame = bytes(self._bytes[PREFIX.size : end])
            del self._bytes[:end]
            head = json.loads(frame[:head_length])
            shapes = head.get("shapes")
            yield head, read_arrays(frame[head_length:], shapes) if shapes else []


def read_arrays(data: bytes, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    values = torch.frombuffer(bytearray(data), dtype=torch.float32) if data else torch.zeros(0)
    parts = torch.split(values, [math.prod(shape) for shape in shapes])
    return [part.view(*shape) for part, shape in zip(parts, shapes, strict=True)]


# ------------------------------------------------------------------------------ server -> engine


def open_frame(seat: int, state: SessionState, *, caller: str) -> bytes:
    """A session with all that is known of it."""
    known = len(state.tokens)
    has_features = bool(state.features[:known].any())
    answers = [[*key, *answer] for key, answer in state.answers.items()]
    request = asdict(state.request)
    head = {"do": "open", "seat": seat, "caller": caller, "request": request, "answers": answers}
    head |= {"tokens": state.tokens, "kept": sorted(state.kept), "epoch": state.epoch}
    features = state.features[: known if has_features else 0]
    return encode_frame(head, [state.condition.float(), features])


def state_from_frame(
    head: Head, tensors: Sequence[Tensor], *, num_tokens: int, vocab_size: int, feature_dim: int
) -> SessionState:
    sampling = SamplingParams(**head["request"].pop("sampling"))
    state = SessionState(
        ImageRequest(**head["request"], sampling=sampling),
        tensors[0],
        num_tokens=num_tokens,
        vocab_size=vocab_size,
        feature_dim=feature_dim,
    )
    state.adopt(head["tokens"], head["kept"], tensors[1], head["epoch"])
    for epoch, position, *answer in head["answers"]:
        state.answers[epoch, position] = (answer[0], answer[1], answer[2])
    return state


def verify_frame(head: Head, batch: VerifyBatch) -> bytes:
    """head: whose batch, and until when it is wanted."""
    content = {
        "position": batch.position,
        "tokens": batch.tokens,
        "uncertain": batch.uncertain,
        "epoch": batch.epoch,
        "wants_next": batch.wants_next,
        "num_decided": batch.num_decided,
        "run_on": batch.run_on,
    }
    features = [batch.features.float()] if len(batch.features) else []
    return encode_frame({"do": "verify", "batch": content, **head}, features)


def batch_from_frame(head: Head, tensors: Sequence[Tensor], *, nothing: Tensor) -> VerifyBatch:
    """nothing: the features of a batch that brings none."""
    content = head["batch"]
    tokens, uncertain = tuple(content.pop("tokens")), tuple(content.pop("uncertain"))
    features = tensors[0] if tensors else nothing
    return VerifyBatch(tokens=tokens, uncertain=uncertain, features=features, **content)


# ------------------------------------------------------------------------------ engine -> server


def outcome_to_json(outcome: Outcome) -> Head | None:
    if outcome is None:
        return None
    if isinstance(outcome, CiarError):
        return {"error": error_to_json(outcome)}
    if isinstance(outcome, Timings):
        return {"timings": vars(outcome)}
    return {"verdict": vars(outcome) | {"timings": vars(outcome.timings)}}


def outcome_from_json(value: Head | None) -> Outcome:
    if value is None:
        return None
    if "error" in value:
        return error_from_json(value["error"])
    if "timings" in value:
        return Timings(**value["timings"])
    verdict = value["verdict"]
    parts = {name: tuple(verdict[name]) for name in ("gaps", "run_on")}
    return Verdict(**verdict | parts | {"timings": Timings(**verdict["timings"])})


def error_to_json(error: CiarError) -> Head:
    return {"class": type(error).__name__, "text": str(error), "fields": vars(error)}


def error_from_json(value: Head) -> CiarError:
    """The same error, its text and fields as they were."""
    kind = getattr(errors, value["class"], EngineError)
    error: CiarError = kind.__new__(kind)
    error.args = (value["text"],)
    vars(error).update(value["fields"])
    return error


class Recorder:
    """An `Observer` that remembers what it is told, for the server's own to hear of it."""

    def __init__(self) -> None:
        self._events: list[tuple[str, Head]] = []

    def __getattr__(self, name: str) -> Any:
        def record(**told: Any) -> None:
            values = {k: vars(v) if isinstance(v, Timings) else v for k, v in told.items()}
            self._events.append((name, values))

        if name.startswith("_"):
            raise AttributeError(name)
        return record

    def take(self) -> list[tuple[str, Head]]:
        """What was told since the last call."""
        events = self._events[:]
        del self._events[: len(events)]
        return events


def replay(events: Sequence[tuple[str, Head]], observer: Any) -> None:
    """Tell an `Observer` what a `Recorder` was told."""
    for name, values in events:
        if "timings" in values:
            values["timings"] = Timings(**values["timings"])
        getattr(observer, name)(**values)
