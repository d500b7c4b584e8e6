"""The target model at work: slots, guidance and one operation, `extend`.

Prefill, catch-up and verify differ only in length. A feed hands over tokens the cache has not seen,
starting at the last known one (which is never cached), and gets the guided logits that follow each
of them:

    feed(position p, tokens x_p .. x_{p+k-1})  ->  logits for positions p+1 .. p+k       [k, V]
    with a condition (prefill)                 ->  logits for positions 0 .. k           [1 + k, V]

or for the last `num_outputs` of these positions, which saves the output head on catch-up tokens.

A token the edge kept enters as `E(x) + W f`, with the code f of its interval (zero for all others).

    L condition rows of this prompt   k tokens fed   D width   V codebook size   F feature width
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ciar.checkpoint import load_into, read_config, read_weights, to_device
from ciar.families import make_transformer, read_sizes
from ciar.models.kv_cache import KVCache, Segment
from ciar.models.transformer import TransformerConfig
from ciar.models.uncond_prefix import UncondPrefix
from ciar.sampling import guide, scale_at
from ciar.static_steps import NUM_SPARE, StaticSteps


class Float32Linear(nn.Linear):
    """Computes in float32, whatever dtype comes, and gives that back: it can be trained beside
    layers of less precision.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype)


class TargetModel(nn.Module):
    """A transformer and the cloud's half of phi, as one model folder."""

    def __init__(self, config: TransformerConfig, *, feature_dim: int) -> None:
        super().__init__()
        self.transformer = make_transformer(config)
        self.injection = nn.Linear(feature_dim, config.dim, bias=False)
        nn.init.zeros_(self.injection.weight)

    @property
    def config(self) -> TransformerConfig:
        return self.transformer.config

    @property
    def feature_dim(self) -> int:
        return self.injection.in_features

    def with_own_injection(self) -> "TargetModel":
        """The same transformer beside a copy of the injection, in float32, to be trained."""
        own = Float32Linear(self.feature_dim, self.config.dim, bias=False)
        own.load_state_dict(self.injection.state_dict())
        found = copy.copy(self)
        found._modules = {**self._modules, "injection": own.to(self.injection.weight.device)}
        return found

    @classmethod
    def load(
        cls, folder: Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> "TargetModel":
        """Load `NAME/cloud`; raises `CheckpointError`."""
        config = read_config(folder)
        sizes = read_sizes(config, where=folder)
        with torch.device("meta"):
            model = cls(sizes, feature_dim=int(config["feature_dim"]))
        load_into(model, read_weights(folder, dtype=dtype), where=folder)
        model.transformer.rebuild_tables("cpu")  # not in the weights: still on the meta device
        to_device(model, device=device, dtype=dtype)
        model.transformer.rebuild_tables(device)
        return model


@dataclass(frozen=True, kw_only=True, eq=False)
class Scatter:
    """Fed tokens that are no sequence: a tree of drafts, or tokens of several rows of the picture.

    positions: [k] where in the picture each token stands.
    grids: [k, T] the tokens it follows, itself included; V where unknown.
    sees: [k, n + k] bool, which of the n image rows in the cache and of those fed it attends to.
    """

    positions: Tensor
    grids: Tensor
    sees: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Feed:
    """One session's share of a step.

    condition: [L, condition_dim] text features to prefill first; None when the slot holds them.
    num_condition: L, in both cases.
    position: of the first fed token: as many image rows are in the cache.
    tokens: [k] ids, may be empty only in a prefill.
    features: [k, F] codes, zero rows for tokens the edge did not decide; None when all are zero.
    before: [position] ids of the tokens before them; models with `neighbours` look at these.
    num_outputs: logits wanted, for the last so many positions; None: for all.
    scatter: where the tokens stand, if they are no sequence.
    """

    slot: int
    num_condition: int
    position: int
    tokens: Tensor
    cfg_scale: float
    cfg_interval: int = -1
    condition: Tensor | None = None
    features: Tensor | None = None
    before: Tensor | None = None
    num_outputs: int | None = None
    scatter: Scatter | None = None

    @property
    def num_new_rows(self) -> int:
        return len(self.tokens) + (self.num_condition if self.condition is not None else 0)

    @property
    def first_output(self) -> int:
        """The first of the new rows whose logits are wanted.

        All but one condition rows predict nothing.
        """
        if self.num_outputs is not None:
            return self.num_new_rows - self.num_outputs
        return self.num_condition - 1 if self.condition is not None else 0

    @property
    def output_positions(self) -> Tensor:
        """Of the tokens that the wanted logits predict: [num outputs]."""
        if self.scatter is not None:
            return self.scatter.positions[self.first_output :] + 1
        first = self.position + 1
        if self.condition is not None:
            first -= self.num_condition  # the last condition row predicts token 0
        return first + torch.arange(self.first_output, self.num_new_rows)

    def scale(self, device: torch.device) -> float | Tensor:
        """Of guidance, for the wanted logits."""
        if self.cfg_interval < 0:
            return self.cfg_scale
        return scale_at(self.output_positions.to(device), self.cfg_scale, self.cfg_interval)


class Output(NamedTuple):
    """What follows the tokens of a feed.

    logits: guided, float32 [num outputs, V].
    hidden: [2, num outputs, D] what the output head saw, conditional and unconditional.
    """

    logits: Tensor
    hidden: Tensor


class Target:
    """A target model with KV slots.

    Each slot holds the conditional and the unconditional sequence of one session.
    """

    ROWS = 2

    def __init__(
        self,
        model: TargetModel,
        *,
        num_slots: int,
        num_spare: int = 0,
        is_padded: bool | None = None,
        has_static_steps: bool = False,
    ) -> None:
        """num_spare, is_padded: see `KVCache`.  has_static_steps: see `static_steps`."""
        self.model = model
        self.config = model.config
        weight = model.transformer.tok_embeddings.weight
        self.cache = KVCache(
            self.config,
            num_slots=num_slots + has_static_steps,
            num_rows=self.ROWS,
            num_spare=num_spare + NUM_SPARE * has_static_steps,
            device=weight.device,
            dtype=weight.dtype,
            is_padded=is_padded,
        )
        # Steps of fixed shapes replay a prompt as a whole.
        self._uncond = None if has_static_steps else UncondPrefix(model.transformer, self.cache)
        self._static = StaticSteps(model.transformer, self.cache) if has_static_steps else None

    def extend(self, feeds: Sequence[Feed]) -> list[Tensor]:
        """One forward pass for all feeds.

        Returns each one's guided logits, float32 [num outputs, V].
        """
        return [output.logits for output in self.outputs(feeds)]

    @torch.inference_mode()
    def outputs(self, feeds: Sequence[Feed]) -> list[Output]:
        """As `extend`, with the hidden states behind the logits."""
        transformer = self.model.transformer
        inputs, ropes, parts, followers = zip(*(self._pack(feed) for feed in feeds), strict=True)
        segments = [segment for own in parts for segment in own]
        hidden = self._hidden(torch.cat(inputs), torch.cat(ropes), segments)
        blocks = torch.split(hidden, [len(x) for x in inputs])
        wanted = []
        for feed, block, following in zip(feeds, blocks, followers, strict=True):
            first = self._num_alone(feed)
            both = block[first:].view(self.ROWS, feed.num_new_rows - first, -1)
            rows = both[:, feed.first_output - first :]  # [2, k, D]
            if following is not None:
                rows = transformer.recall(rows, following[feed.first_output :])
            wanted.append(rows)
        sizes = [w.shape[1] for w in wanted]
        logits = transformer.output(torch.cat(wanted, dim=1))  # [2, sum k, V]
        shares = torch.split(logits, sizes, dim=1)  # [2, k, V] each
        return [
            Output(guide(own[0], own[1], feed.scale(own.device)), hidden=rows)
            for feed, own, rows in zip(feeds, shares, wanted, strict=True)
        ]

    def _hidden(self, x: Tensor, rope: Tensor, segments: Sequence[Segment]) -> Tensor:
        """Packed inputs [N, D] and their rotary rows [N, d/2, 2] to hidden states [N, D]."""
        if self._static is not None and self._static.fits(segments):
            return self._static.hidden(x, rope, segments)
        return self.model.transformer.hidden(x, rope, self.cache.attend(segments))

    def condition_rows(self, condition: Tensor) -> Tensor:
        """Text features [L, condition_dim] -> projected rows [L, D] the edge layer starts from."""
        return self.model.transformer.condition_rows(condition)

    def _known(self, feed: Feed) -> tuple[Tensor, int]:
        """Token ids, and where among them the fed ones begin."""
        transformer, tokens, first = self.model.transformer, feed.tokens, 0
        if transformer.neighbours is not None and feed.position:
            assert feed.before is not None, "this model looks at the tokens before"
            tokens, first = torch.cat([feed.before, tokens]), feed.position
        return tokens.to(transformer.rope.device), first

    def _image_rows(self, feed: Feed) -> tuple[Tensor, Tensor | None, Tensor]:
        """Inputs [k, D] of the fed tokens, followers [k, J], rotary rows [2 or 1, k, d/2, 2]."""
        transformer = self.model.transformer
        if feed.scatter is not None:
            assert feed.condition is None, "a prefill is a sequence"
            positions = feed.scatter.positions.to(transformer.rope.device)
            grids = feed.scatter.grids.to(positions.device)
            return (
                *transformer.scattered_inputs(grids, positions),
                transformer.scattered_rope(feed.num_condition, positions),
            )
        tokens, first = self._known(feed)
        rope = transformer.fed_rope(feed.num_condition, feed.position, len(feed.tokens))
        return *transformer.inputs(tokens, first), rope

    def _pack(self, feed: Feed) -> tuple[Tensor, Tensor, list[Segment], Tensor | None]:
        """Packed inputs [N, D], their rotary rows, where they go, and the followers [new, J].

        First the conditional rows, then the unconditional ones; of a prompt first those that the
        unconditional branch need not compute (`UncondPrefix`).
        """
        transformer, rows = self.model.transformer, feed.num_condition
        x, followers, rope = self._image_rows(feed)
        if feed.features is not None:
            x = x + self.model.injection(feed.features.to(x))
        both = x.expand(self.ROWS, -1, -1)
        if feed.condition is not None:
            assert feed.position == 0, "a prefill starts at the first token"
            prompt = transformer.prompt_rows(feed.condition.to(x))
            both = torch.cat([prompt, both], dim=1)  # [2, L + k, D]
            rope = torch.cat([transformer.prompt_rope(rows), rope], dim=1)
            if followers is not None:
                followers = F.pad(followers, (0, 0, rows, 0), value=self.config.vocab_size)
        rope = rope.expand(self.ROWS, -1, -1, -1)
        first = self._num_alone(feed)
        packed = torch.cat([both[0, :first], both[:, first:].flatten(0, 1)])
        turns = torch.cat([rope[0, :first], rope[:, first:].flatten(0, 1)])
        return packed, turns, self._segments(feed, first), followers

    def _segments(self, feed: Feed, first: int) -> list[Segment]:
        """Of a feed whose `first` rows are of the conditional sequence alone."""
        rows, alone = feed.num_condition, []
        start = 0 if feed.condition is not None else rows + feed.position
        if first and self._uncond is not None:
            self._uncond.copy_to(feed.slot, rows)
            alone = [Segment(slot=feed.slot, start=0, count=first, is_first_only=True)]
        sees = F.pad(feed.scatter.sees, (rows, 0), value=True) if feed.scatter else None
        both = Segment(
            slot=feed.slot,
            start=start + first,
            count=feed.num_new_rows - first,
            sees=sees,
            num_hidden=self.model.transformer.num_hidden(rows),
        )
        return [*alone, both]

    def _num_alone(self, feed: Feed) -> int:
        """How many rows, from the first, are fed to the conditional sequence alone: all of a prompt
        but the last, which predicts the first token.
        """
        is_shared = feed.condition is not None and self._uncond is not None
        return feed.num_condition - 1 if is_shared else 0
