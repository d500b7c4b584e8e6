"""The values that pass between rooms: requests, batches, verdicts.

Plain data that knows no gRPC and no model. Positions are ranks 0..T-1 of the order in which the
tokens of an image are drawn: raster order, unless it is drawn along a wavefront (`ciar.order`). A
token is *known* once both sides hold it.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ciar.errors import InvalidInput, PairMismatch
from ciar.feature_mode import FeatureMode, check_feature_mode
from ciar.tolerance import check_tolerances

MAX_SEED = 2**64 - 1


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """The sampling view of a distribution: guidance, temperature, top-k, top-p, in this order.

    Both sides use the same.

    seed: keys the noise together with the cell of the picture (0..2^64-1).
    temperature: 0 is greedy, a test mode.
    top_k: keep the k largest logits, 0 keeps all.
    top_p: keep the smallest nucleus of this mass, 1 keeps all.
    cfg_scale: guidance; 1 turns it off.
    cfg_interval: c of 0 or more guides tokens 0 to c + 1 only, as LlamaGen's own; -1 guides all.
    """

    seed: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    cfg_scale: float = 3.0
    cfg_interval: int = -1

    def __post_init__(self) -> None:
        if not 0 <= self.seed <= MAX_SEED:
            raise InvalidInput("seed", self.seed, "give an integer from 0 to 2^64-1")
        if not (math.isfinite(self.temperature) and 0 <= self.temperature <= 100):
            raise InvalidInput(
                "temperature", self.temperature, "give a number from 0 (greedy) to 100"
            )
        if self.top_k < 0:
            raise InvalidInput("top_k", self.top_k, "give 0 (off) or a positive count")
        if not 0 < self.top_p <= 1:
            raise InvalidInput("top_p", self.top_p, "give a probability above 0 and at most 1")
        if not (math.isfinite(self.cfg_scale) and 1 <= self.cfg_scale <= 100):
            raise InvalidInput("cfg_scale", self.cfg_scale, "give a number from 1 (off) to 100")
        if not -1 <= self.cfg_interval < 2**31:
            raise InvalidInput("cfg_interval", self.cfg_interval, "give -1 (off) or a position")


@dataclass(frozen=True, kw_only=True)
class ImageRequest:
    """One image to be: what the cloud must know to open, or to rebuild, its session.

    num_prefix: tokens the cloud draws before the edge starts (`floor(rho * T)`).
    fingerprint: of the checkpoint pair the edge holds; the cloud refuses another one. Empty: do
        not check.
    epsilon: how far an uncertain token's perturbed score may fall short of the best one, in nats,
        for it to stand; 0: it stands if the cloud draws it, too.
    max_gap: the same for kept tokens; infinity: they stand, and nobody looks.
    features: what kept tokens enter the cloud with.
    wavefront: tokens that a row is behind the row above, see `ciar.order`; 0: raster order.
    num_exact: leading tokens that epsilon is not for: a prefix that the edge drafts.
    """

    prompt: str
    sampling: SamplingParams
    num_prefix: int = 0
    fingerprint: str = ""
    epsilon: float = 0.0
    max_gap: float = math.inf
    features: FeatureMode = "send"
    wavefront: int = 0
    num_exact: int = 0

    def __post_init__(self) -> None:
        check_feature_mode(self.features, wavefront=self.wavefront)
        check_tolerances(self.epsilon, self.max_gap)

    @property
    def looks_at_kept(self) -> bool:
        """Whether the cloud compares the tokens that the edge kept, too."""
        return self.max_gap < math.inf


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What a cloud serves, and its limits."""

    name: str
    family: str
    fingerprint: str
    grid_size: int  # tokens a side; T = grid_size ** 2
    vocab_size: int
    condition_dim: int  # width of the condition rows sent to the edge
    feature_dim: int  # width of the interval-feature code
    max_prompt_chars: int
    max_batch_tokens: int
    sampling: SamplingParams = field(default_factory=SamplingParams)  # the checkpoint's defaults
    can_recompute: bool = False  # it has the draft model, too, and makes features itself

    @property
    def num_tokens(self) -> int:
        return self.grid_size**2

    def check_features(self, features: FeatureMode) -> None:
        """Raise `PairMismatch` for features that this cloud cannot make."""
        if features == "recompute" and not self.can_recompute:
            raise PairMismatch(
                f"features: recompute: the cloud serves {self.name} without its draft model; give "
                "send or none, or a cloud with the model's edge folder beside its cloud folder"
            )


@dataclass(frozen=True, kw_only=True)
class Timings:
    """What a call cost in the cloud."""

    queue_seconds: float = 0.0  # accepted until its step began
    compute_seconds: float = 0.0  # the model steps it took part in
    num_forwards: int = 0  # sequential cloud forward passes
    num_positions: int = 0  # fed, summed over forwards (each runs cond and uncond rows)


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """The answer to PrefixInject: an open session, its first tokens, and the prompt's condition."""

    session_id: str
    tokens: tuple[int, ...]
    condition: Tensor  # [num_valid, condition_dim] float32, projected, padding left out
    lease_seconds: float  # the stream must attach within this time
    unknown_words: tuple[str, ...] = ()  # words of the prompt that the text encoder has never seen
    timings: Timings = field(default_factory=Timings)

    @property
    def num_calls(self) -> int:
        """Cloud calls it is accounted for: its forward passes, a token each if it does not say."""
        return self.timings.num_forwards or len(self.tokens)


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenSpan:
    """Consecutive tokens from `position` on; the edge alone decided some (kept, not `uncertain`).

    features: [num_kept, feature_dim] float32, one interval-feature code per kept token, in order;
        no rows unless the image's features are sent.
    """

    position: int
    tokens: tuple[int, ...]
    uncertain: tuple[bool, ...]
    features: Tensor

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.uncertain):
            raise InvalidInput(
                "uncertain",
                len(self.uncertain),
                f"give one flag for each of the {len(self.tokens)} tokens",
            )
        num_kept = self.num_kept
        if self.features.ndim != 2 or (num_kept and len(self.features) not in (0, num_kept)):
            raise InvalidInput(
                "features",
                tuple(self.features.shape),
                f"give one row for each of the {num_kept} kept tokens, or none",
            )

    @property
    def num_kept(self) -> int:
        return sum(not flag for flag in self.uncertain)

    @property
    def end(self) -> int:
        """Position after the last token."""
        return self.position + len(self.tokens)


@dataclass(frozen=True, kw_only=True, eq=False)
class VerifyBatch(TokenSpan):
    """Drafted tokens for the cloud.

    Kept ones extend its cache, uncertain ones are compared with its own draw.

    epoch: grows each time the edge rolls back; answers to older epochs are void.
    num_decided: leading tokens that the edge has decided already, for want of a verdict: they stand
        even where kept tokens are looked at.
    wants_next: if the whole batch stands, also the cloud's token behind it. That one takes another
        row of the forward pass: the last token of the batch.
    run_on: so many tokens are wanted behind a difference, each of which takes a forward pass.
    """

    epoch: int = 0
    wants_next: bool = True
    num_decided: int = 0
    run_on: int = 0


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The cloud's answer to a batch.

    num_agreed: leading tokens of the batch that stand, kept ones before the first difference
        included.
    token: the cloud's own token at `position + num_agreed`, the first difference or the next
        position; None after the last position of the image, and where none was wanted.
    gaps: how far the perturbed score of each token that stands falls short of the best one, in
        nats, if kept tokens are looked at; empty when they are not, or the batch came twice.
    run_on: the cloud's tokens behind `token`, where that one is at a difference.
    """

    epoch: int
    position: int
    num_agreed: int
    token: int | None
    timings: Timings = field(default_factory=Timings)
    gaps: tuple[float, ...] = ()
    run_on: tuple[int, ...] = ()

    @property
    def num_calls(self) -> int:
        """Cloud calls it is accounted for: its forward passes, one at least."""
        return max(1, self.timings.num_forwards)

    @property
    def drawn(self) -> tuple[int, ...]:
        """All of the cloud's own tokens that it brings, from `position + num_agreed` on."""
        return () if self.token is None else (self.token, *self.run_on)

    def check_answers(
        self, batch: VerifyBatch, *, num_tokens: int, looks_at_kept: bool = False
    ) -> None:
        """Raise `InvalidInput` if it cannot be the answer to the batch."""
        size = len(batch.tokens)
        if self.num_agreed > size:
            raise InvalidInput("num_agreed", self.num_agreed, f"the batch has {size} tokens")
        if self.num_agreed < batch.num_decided:
            raise InvalidInput("num_agreed", self.num_agreed, "what the edge has decided stands")
        is_kept = self.num_agreed < size and not batch.uncertain[self.num_agreed]
        if is_kept and not looks_at_kept:
            raise InvalidInput("num_agreed", self.num_agreed, "kept tokens stand")
        is_needed = self.num_agreed < size or (batch.wants_next and batch.end < num_tokens)
        if self.token is None and is_needed:
            raise InvalidInput("token", None, "give the cloud's own")
        most = batch.run_on if self.num_agreed < size else 0
        if len(self.run_on) > most:
            raise InvalidInput("run_on", len(self.run_on), f"give {most} at most")
        if self.gaps and len(self.gaps) != self.num_agreed:
            raise InvalidInput("gaps", len(self.gaps), f"give {self.num_agreed}, one a token")


@dataclass(frozen=True, kw_only=True, eq=False)
class Resume:
    """All a replica needs to continue a session it has never seen, token for token.

    history: every known token from position 0, prefix and cloud-decided ones marked `uncertain`
        (they carry no features).
    """

    request: ImageRequest
    history: TokenSpan
    epoch: int = 0


def no_features(feature_dim: int) -> Tensor:
    """[0, feature_dim]: the features of a span that brings none."""
    return torch.zeros(0, feature_dim)
