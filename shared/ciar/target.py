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
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ciar.checkpoint import load_into, read_config, read_weights, to_device
from ciar.families import make_transformer, read_sizes
from ciar.feed import Feed
from ciar.models.inter_head import DraftModel
from ciar.models.kv_cache import KVCache, Segment
from ciar.models.transformer import TransformerConfig
from ciar.models.uncond_prefix import UncondPrefix
from ciar.redraft import Redraft
from ciar.sampling import guide
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
        draft: DraftModel | None = None,
    ) -> None:
        """num_spare, is_padded: see `KVCache`.  has_static_steps: see `static_steps`.

        draft: makes the features of feeds that want them made here.
        """
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
        self._redraft = draft and Redraft(
            draft, self.condition_rows, num_slots=num_slots, is_padded=is_padded
        )

    def extend(self, feeds: Sequence[Feed]) -> list[Tensor]:
        """One forward pass for all feeds.

        Returns each one's guided logits, float32 [num outputs, V].
        """
        return [output.logits for output in self.outputs(feeds)]

    @torch.inference_mode()
    def outputs(self, feeds: Sequence[Feed]) -> list[Output]:
        """As `extend`, with the hidden states behind the logits."""
        transformer = self.model.transformer
        packed = (self._pack(*one) for one in zip(feeds, self._codes(feeds), strict=True))
        inputs, ropes, parts, followers = zip(*packed, strict=True)
        segments = [segment for own in parts for segment in own]
        hidden = self._hidden(torch.cat(inputs), torch.cat(ropes), segments)
        blocks = torch.split(hidden, [len(x) for x in inputs])
        wanted = []
        for feed, block, following in zip(feeds, blocks, followers, strict=True):
            first, outputs = self._num_alone(feed), feed.outputs
            both = block[first:].view(self.ROWS, feed.num_new_rows - first, -1)
            behind = (
                outputs - first
                if isinstance(outputs, Tensor)
                else slice(outputs.start - first, None)
            )
            rows = both[:, behind]  # [2, k, D]
            if following is not None:
                rows = transformer.recall(rows, following[outputs])
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
        transformer = self.model.transformer
        return transformer.condition_rows(condition.to(transformer.tok_embeddings.weight))

    def _codes(self, feeds: Sequence[Feed]) -> list[Tensor | None]:
        """Interval-feature codes [k, F] of each feed's tokens, None where all are zero."""
        own = [feed for feed in feeds if feed.kept is not None]
        if not own:
            return [feed.features for feed in feeds]
        assert self._redraft, "codes are made with a draft model"
        made = iter(self._redraft.codes(own))
        return [feed.features if feed.kept is None else next(made) for feed in feeds]

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
            positions = feed.scatter.positions.to(transformer.rope.device)
            grids = feed.scatter.grids.to(positions.device)
            return (
                *transformer.scattered_inputs(grids, positions),
                transformer.scattered_rope(feed.num_condition, positions),
            )
        tokens, first = self._known(feed)
        rope = transformer.fed_rope(feed.num_condition, feed.position, len(feed.tokens))
        return *transformer.inputs(tokens, first), rope

    def _pack(
        self, feed: Feed, codes: Tensor | None
    ) -> tuple[Tensor, Tensor, list[Segment], Tensor | None]:
        """Packed inputs [N, D], their rotary rows, where they go, and the followers [new, J].

        First the conditional rows, then the unconditional ones; of a prompt first those that the
        unconditional branch need not compute (`UncondPrefix`).
        """
        transformer, rows = self.model.transformer, feed.num_condition
        x, followers, rope = self._image_rows(feed)
        if codes is not None:
            x = x + self.model.injection(codes.to(x))
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
        both = Segment(
            slot=feed.slot,
            start=start + first,
            count=feed.num_new_rows - first,
            sees=self._sees(feed, first),
            num_hidden=self.model.transformer.num_hidden(rows),
        )
        return [*alone, both]

    def _sees(self, feed: Feed, first: int) -> Tensor | None:
        """Of the new rows behind the first ones [new - first, all rows]; None: all up to itself."""
        if feed.scatter is None:
            return None
        rows = feed.num_condition
        sees = F.pad(feed.scatter.sees, (rows, 0), value=True)
        if feed.condition is None:
            return sees
        prompt = torch.ones(rows, sees.shape[1], dtype=torch.bool).tril()
        return torch.cat([prompt[first:], sees])

    def _num_alone(self, feed: Feed) -> int:
        """How many rows, from the first, are fed to the conditional sequence alone: all of a prompt
        but the last, which predicts the first token.
        """
        is_shared = feed.condition is not None and self._uncond is not None
        return feed.num_condition - 1 if is_shared else 0
