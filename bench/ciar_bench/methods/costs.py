"""What an image cost, by one definition for every method.

Counted are payloads, without framing: a token id takes log2 V bits, a number 16 bits. Text encoding
and the VQ decoder are left out, as are weights: they cost every method the same.
"""

import math
from dataclasses import dataclass, fields

BYTES_PER_NUMBER = 2  # condition rows, features and hidden states travel as float16


@dataclass(kw_only=True)
class Costs:
    """Adds up while an image is drawn.

    forwards: cloud forward passes one after another; the prefill is one, as it brings token 0.
    positions: rows that went through the target, both branches of guidance, condition included.
    decided: tokens that the cloud chose in the end.
    round_trips: requests that the edge waited for, the first included.
    cloud_seconds: the target and what the cloud decides by it.  edge_seconds: all the rest.
    """

    forwards: int = 0
    positions: int = 0
    decided: int = 0
    round_trips: int = 0
    uplink_bytes: int = 0
    downlink_bytes: int = 0
    cloud_seconds: float = 0.0
    edge_seconds: float = 0.0

    def latency(self, *, rtt: float, bandwidth: float = math.inf) -> float:
        """Seconds over a link with that round-trip time (s) and bandwidth each way (bytes/s)."""
        link = self.round_trips * rtt + (self.uplink_bytes + self.downlink_bytes) / bandwidth
        return self.cloud_seconds + self.edge_seconds + link


# What was counted. Seconds are told of images drawn one at a time (see `ciar_bench.tables.timing`).
COUNTS = tuple(name for field in fields(Costs) if not (name := field.name).endswith("_seconds"))


@dataclass(frozen=True, kw_only=True)
class DrawnImage:
    """tokens: [T].  origins: who decided each (see `ciar_edge.result.Origin`), where that differs.

    scores: of each token, NaN where nobody looked.
    """

    tokens: tuple[int, ...]
    costs: Costs
    origins: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()

    @property
    def cloud_calls(self) -> float:
        """Forward passes a token: 1 for the base."""
        return self.costs.forwards / len(self.tokens)


def pay_whole_image(costs: Costs, prompt: str, *, num_tokens: int, vocab_size: int) -> None:
    """The cloud drew it alone, in one request: prompt up, all ids down."""
    costs.decided, costs.round_trips = num_tokens, 1
    costs.uplink_bytes = len(prompt.encode())
    costs.downlink_bytes = id_bytes(num_tokens, vocab_size)


def id_bytes(count: int, num_values: int) -> int:
    """Bytes of `count` ids from 0 to `num_values - 1`."""
    return math.ceil(count * math.log2(max(num_values, 2)) / 8)


def number_bytes(count: int) -> int:
    return BYTES_PER_NUMBER * count
