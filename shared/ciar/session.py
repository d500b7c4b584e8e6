"""What the cloud knows of one image, and the works on it: drawing a prefix, verifying a batch.

Pure bookkeeping around `Target.extend`, shared by the cloud's engine and by `LocalVerifier`. A work
hands out feeds and takes the logits that come back, until it has its result; it may take several
steps (a prefix) or one (a verify, unless it draws on behind a difference).

    known tokens    x_0 .. x_{n-1}; the last one is never cached
    cached tokens   the first `num_cached` of them, -1 while not even the condition is prefilled

Positions are ranks of the order in which the tokens are drawn (`ciar.order`). Because the cloud's
token at a position depends only on (seed, position, known tokens, features), anything here can be
repeated, rolled back or rebuilt in another slot without changing a token. A batch that comes twice
finds the verdict it had: see `SessionState.answer_to`.
"""

import math
import zlib
from collections.abc import Iterable, Sequence, Set
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ciar.errors import InvalidInput
from ciar.feed import Feed, Scatter
from ciar.order import ids, order_of
from ciar.sampling import Noise, coupled_draw, coupled_gap
from ciar.types import ImageRequest, TokenSpan, Verdict, VerifyBatch

NOT_PREFILLED = -1


class SessionState:
    """One image in the cloud.

    condition: [L, condition_dim] text features of the prompt.
    """

    def __init__(
        self,
        request: ImageRequest,
        condition: Tensor,
        *,
        num_tokens: int,
        vocab_size: int,
        feature_dim: int,
    ) -> None:
        self.request = request
        self.condition = condition
        self.num_tokens = num_tokens
        self.vocab_size = vocab_size
        self.tokens: list[int] = []
        self.kept: set[int] = set()  # positions of known tokens that the edge decided
        self.features = torch.zeros(num_tokens, feature_dim)  # theirs, if they are sent; else zero
        self.noise = Noise(request.sampling.seed, vocab_size=vocab_size)
        self.order = order_of(math.isqrt(num_tokens), request.wavefront)
        self.num_cached = NOT_PREFILLED
        self.epoch = 0
        self.answers: dict[tuple[int, int], Answer] = {}  # by epoch and position
        self._fed_end = NOT_PREFILLED  # tokens cached behind the last feed, if all of them stand
        self._is_part = False  # whether another feed must follow that one

    @property
    def is_recomputed(self) -> bool:
        """Whether features are made here."""
        return self.request.features == "recompute"

    @property
    def is_complete(self) -> bool:
        return len(self.tokens) == self.num_tokens

    def forget_cache(self) -> None:
        """The slot is lost, or holds garbage after a failed step: the next feed starts over."""
        self.num_cached = NOT_PREFILLED

    def restore(self, history: TokenSpan) -> None:
        """Take over known tokens and features from the edge (resume).

        The next feed rebuilds the cache.
        """
        if history.position != 0:
            raise InvalidInput(
                "history.position", history.position, "a resume starts at position 0"
            )
        self.check_span(history, field="history")
        self.tokens, self.kept = [], set()
        self._append(history, len(history.tokens))
        self.forget_cache()

    def adopt(
        self, tokens: Sequence[int], kept: Iterable[int], features: Tensor, epoch: int
    ) -> None:
        """Take over what another process knew of this image; features: [known, F], or no rows."""
        self.tokens, self.kept = list(tokens), set(kept)
        self.features[: len(features)] = features
        self.epoch = epoch
        self.forget_cache()

    def is_void(self, batch: VerifyBatch) -> bool:
        """Whether the batch was drafted before a difference the edge had not heard of.

        No forward is spent on it.
        """
        return batch.epoch < self.epoch

    def check_batch(self, batch: VerifyBatch) -> None:
        """Raise `InvalidInput` for a batch that cannot follow what is known."""
        if batch.position > len(self.tokens):
            raise InvalidInput(
                "position",
                batch.position,
                f"skips tokens: the next unknown position is {len(self.tokens)}",
            )
        if not batch.tokens:
            raise InvalidInput("tokens", [], "a batch holds at least one token")
        self.check_span(batch, field="batch")
        if len(batch.tokens) > self.order.max_batch_tokens:
            remedy = f"along a wavefront give at most {self.order.max_batch_tokens}"
            raise InvalidInput("tokens", f"{len(batch.tokens)} tokens", remedy)

    def check_span(self, span: TokenSpan, *, field: str) -> None:
        if span.position < 0 or span.end > self.num_tokens:
            raise InvalidInput(
                f"{field}.position",
                span.position,
                f"tokens {span.position}..{span.end - 1} leave 0..{self.num_tokens - 1}",
            )
        for token in span.tokens:
            if not 0 <= token < self.vocab_size:
                raise InvalidInput(
                    f"{field}.tokens", token, f"give codebook ids from 0 to {self.vocab_size - 1}"
                )
        width, mode = self.features.shape[1], self.request.features
        if mode != "send" and span.features.numel():
            raise InvalidInput(
                f"{field}.features",
                tuple(span.features.shape),
                f"leave them out: this image's are {mode!r}",
            )
        if mode == "send" and span.num_kept and span.features.shape != (span.num_kept, width):
            raise InvalidInput(
                f"{field}.features",
                tuple(span.features.shape),
                f"give {span.num_kept} rows (one a kept token) of width {width}",
            )
        if not bool(span.features.isfinite().all()):
            raise InvalidInput(f"{field}.features", "NaN or infinity", "send finite numbers")

    def roll_back(self, position: int) -> None:
        """Forget every token from `position` on."""
        del self.tokens[position:]
        self.features[position:] = 0
        self.kept = {p for p in self.kept if p < position}
        self.num_cached = min(self.num_cached, position)
        self.answers = {
            key: answer
            for key, answer in self.answers.items()
            if key[0] >= self.epoch and key[1] < position
        }

    def answer_to(self, batch: VerifyBatch) -> Verdict | None:
        """The verdict that this very batch got before, if nothing has undone it since."""
        answer = self.answers.get((batch.epoch, batch.position))
        if answer is None or self.is_void(batch) or answer[0] != digest(batch):
            return None
        _, num_agreed, token = answer
        return Verdict(
            epoch=batch.epoch, position=batch.position, num_agreed=num_agreed, token=token
        )

    def take(self, batch: VerifyBatch, verdict: Verdict) -> None:
        """Know what the verdict on a batch says, whoever found it.

        A difference makes older batches void. A verdict taken before changes nothing.
        """
        if self.answer_to(batch) is not None:
            return
        self.epoch = max(self.epoch, batch.epoch)
        self.roll_back(batch.position)
        self.accept(batch, verdict.num_agreed, *verdict.drawn)
        self.settle(batch, verdict)

    def settle(self, batch: VerifyBatch, verdict: Verdict) -> None:
        """A batch has its verdict, and what that one says is known."""
        if verdict.num_agreed < len(batch.tokens):
            self.epoch = max(self.epoch, batch.epoch + 1)
        else:
            answer = digest(batch), verdict.num_agreed, verdict.token
            self.answers[batch.epoch, batch.position] = answer

    def feed(
        self,
        slot: int,
        *,
        wanted: range,
        drafted: VerifyBatch | None = None,
        max_rows: int | None = None,
    ) -> Feed:
        """What it takes to get the logits of the tokens at the positions `wanted`: all known and
        drafted tokens that they depend on and the cache lacks.

        wanted: consecutive, up to the one behind what is known and drafted; or none, from there on.
        max_rows: feed so many rows at most, where that is possible: the condition, and what gives
        logits, are never divided. Then `take_part` says that another feed must follow.
        """
        tokens = self.tokens + list(drafted.tokens) if drafted else self.tokens
        least, end = self.order.span(wanted)
        kept = self._kept_with(drafted) if self.is_recomputed else None
        start = self._start(least, end, is_first_kept=kept is not None and 0 in kept)
        position = max(start, 0)
        part_end = self._end_of_part(start, least, max_rows)
        self._is_part = part_end is not None
        if part_end is not None:
            end, wanted = part_end, range(0)
        self._fed_end = end
        codes = self._codes(drafted, position, end)
        fed = ids(tokens[:end])
        feed = Feed(
            slot=slot,
            num_condition=len(self.condition),
            position=position,
            tokens=fed[position:],
            before=fed[:position],
            cfg_scale=self.request.sampling.cfg_scale,
            cfg_interval=self.request.sampling.cfg_interval,
            condition=self.condition if start == NOT_PREFILLED else None,
            features=codes if bool(codes.any()) else None,
            kept=None if kept is None else flags(kept, position, end),
            num_outputs=len(wanted),
        )
        return feed if self.order.is_raster else self._along_wavefront(feed, tokens, wanted)

    def _codes(self, drafted: VerifyBatch | None, position: int, end: int) -> Tensor:
        """Features [end - position, F] of known and drafted tokens."""
        codes = self.features[position:end]
        if drafted and len(drafted.features):
            own = kept_positions(drafted)
            fed = [i for i, p in enumerate(own) if position <= p < end]
            codes = codes.clone()
            codes[[own[i] - position for i in fed]] = drafted.features[fed].float()
        return codes

    def _along_wavefront(self, feed: Feed, tokens: Sequence[int], wanted: range) -> Feed:
        """The same tokens where they stand in the picture, and the stand-ins behind them."""
        rows = self.order.rows(feed.position, feed.position + len(feed.tokens), wanted)
        cells, num_stand_ins = ids(rows.cells), len(rows.cells) - rows.num_tokens
        grids = self.order.grids(rows, tokens, unknown=self.vocab_size)
        features = feed.features
        return replace(
            feed,
            tokens=grids.gather(1, cells[:, None])[:, 0],
            before=None,
            features=None if features is None else F.pad(features, (0, 0, 0, num_stand_ins)),
            scatter=Scatter(
                positions=cells,
                grids=grids,
                sees=self.order.sees(rows),
                outputs=ids(rows.outputs),
            ),
        )

    def _kept_with(self, drafted: VerifyBatch | None) -> Set[int]:
        """Positions that the edge decided, those of a batch included."""
        return self.kept.union(kept_positions(drafted)) if drafted else self.kept

    def take_part(self) -> bool:
        """Whether the last feed was a part of what is needed; it is in the cache then."""
        if not self._is_part:
            return False
        self.num_cached, self._is_part = self._fed_end, False
        return True

    def _end_of_part(self, start: int, most: int, max_rows: int | None) -> int | None:
        """Where a feed of `max_rows` ends that begins at `start`; None: it need not be divided.

        most: position before which no logits are wanted.
        """
        if max_rows is None:
            return None
        position = max(start, 0)
        room = max_rows - (len(self.condition) if start == NOT_PREFILLED else 0)
        is_prompt = start == NOT_PREFILLED and not self.is_recomputed  # else the first token, too
        end = max(position + room, position + (not is_prompt))
        return end if end < most else None

    def _start(self, least: int, end: int, *, is_first_kept: bool) -> int:
        """First position to feed: `least`, or an earlier one, so that there is one before `end`.

        NOT_PREFILLED: the condition first (it brings logits for position 0, and what the code of a
        kept token there is made of, if it is made here).
        """
        start = min(self.num_cached, least, end - 1)
        return NOT_PREFILLED if not start and is_first_kept else start

    def accept(self, drafted: TokenSpan | None, count: int, *drawn: int) -> None:
        """`count` drafted tokens stand, and those that the cloud has drawn follow them."""
        if drafted:
            self._append(drafted, count)
        self.num_cached = min(self._fed_end, len(self.tokens))
        self.tokens += drawn

    def draw(self, logits: Tensor, position: int) -> int:
        """The cloud's own token at a position, from its logits [V]."""
        cell = self.order.cells[position]
        return coupled_draw(logits, cell, self.request.sampling, self.noise)

    def _append(self, span: TokenSpan, count: int) -> None:
        self.tokens += span.tokens[:count]
        kept = [p for p in kept_positions(span) if p < span.position + count]
        self.kept.update(kept)
        if len(span.features):
            self.features[kept] = span.features[: len(kept)].float()


Answer = tuple[int, int, int | None]
"""Of a batch: its digest, how many of its tokens stand, and the token behind them."""


def digest(batch: VerifyBatch) -> int:
    """Tells batches of the same epoch and position apart."""
    content = (batch.tokens, batch.uncertain, batch.wants_next, batch.num_decided, batch.run_on)
    return zlib.crc32(batch.features.numpy().tobytes(), zlib.crc32(repr(content).encode()))


def flags(positions: Set[int], first: int, end: int) -> Tensor:
    """Which of `first` .. `end - 1` are among them: [end - first] bool."""
    return torch.tensor([p in positions for p in range(first, end)], dtype=torch.bool)


def kept_positions(span: TokenSpan) -> list[int]:
    """Absolute positions of the tokens the edge decided alone."""
    return [span.position + i for i, is_uncertain in enumerate(span.uncertain) if not is_uncertain]


class PrefixWork:
    """Draw until `until` tokens are known: the prefix, or with T the whole image (the base)."""

    def __init__(self, session: SessionState, until: int) -> None:
        self.session = session
        self.until = until

    @property
    def is_done(self) -> bool:
        return len(self.session.tokens) >= self.until

    def feed(self, slot: int, *, max_rows: int | None = None) -> Feed:
        return self.session.feed(slot, wanted=self._wanted, max_rows=max_rows)

    @property
    def _wanted(self) -> range:
        """The rest of a wave: one token in raster order."""
        first = len(self.session.tokens)
        return range(first, min(self.session.order.wave(first).stop, self.until))

    def receive(self, logits: Tensor) -> bool:
        """Take the logits of the last feed; true when the work is done."""
        session = self.session
        if session.take_part():
            return False
        pairs = zip(self._wanted, logits, strict=True)
        session.accept(None, 0, *[session.draw(row, position) for position, row in pairs])
        return self.is_done


class VerifyWork:
    """Extend by a batch and compare its uncertain tokens with the cloud's own draws, in one step
    unless feeds are divided. Behind a difference draw on, a token a step, if that is wanted.

    Construct it when its step begins, after the session's earlier works: it rolls the session back
    to the batch.
    """

    verdict: Verdict

    def __init__(self, session: SessionState, batch: VerifyBatch) -> None:
        session.check_batch(batch)
        self.session = session
        self.batch = batch
        self._end: int | None = None  # of what is to be drawn, once the batch is compared
        session.epoch = max(session.epoch, batch.epoch)
        session.roll_back(batch.position)

    @property
    def draws_on(self) -> bool:
        """Whether its batch is compared; what is left to do is to draw behind a difference."""
        return self._end is not None

    def feed(self, slot: int, *, max_rows: int | None = None) -> Feed:
        session, batch = self.session, self.batch
        if self.draws_on:
            known = len(session.tokens)
            return session.feed(slot, wanted=range(known, known + 1), max_rows=max_rows)
        end = min(batch.end + batch.wants_next, session.num_tokens)
        wanted = range(self._first_needed, end)
        return session.feed(slot, wanted=wanted, drafted=batch, max_rows=max_rows)

    def receive(self, logits: Tensor) -> bool:
        """Take the logits of the last feed; true when the work is done."""
        session = self.session
        if session.take_part():
            return False
        if self._end is None:
            self.verdict = self._judge(logits)
            is_different = self.verdict.num_agreed < len(self.batch.tokens)
            self._end = len(session.tokens) + (self.batch.run_on if is_different else 0)
        else:
            token = session.draw(logits[0], len(session.tokens))
            session.accept(None, 0, token)
            self.verdict = replace(self.verdict, run_on=(*self.verdict.run_on, token))
        if len(session.tokens) < min(self._end, session.num_tokens):
            return False
        session.settle(self.batch, self.verdict)
        return True

    def _judge(self, logits: Tensor) -> Verdict:
        """From the logits of all tokens to compare, and of the one behind them if it is wanted."""
        session, batch, first = self.session, self.batch, self._first_needed
        count, token, gaps = len(batch.tokens), None, []
        for index, drafted in enumerate(batch.tokens):
            tolerance = self._tolerance(index)
            if tolerance == math.inf and not session.request.looks_at_kept:
                continue
            own, gap = self._compare(logits[batch.position + index - first], index)
            if own != drafted and (gap > tolerance or not tolerance):
                count, token = index, own
                break
            gaps.append(gap)
        if token is None and batch.wants_next and batch.end < session.num_tokens:
            token = session.draw(logits[batch.end - first], batch.end)
        session.accept(batch, count, *(() if token is None else (token,)))
        return Verdict(
            epoch=batch.epoch,
            position=batch.position,
            num_agreed=count,
            token=token,
            gaps=tuple(gaps) if session.request.looks_at_kept else (),
        )

    def _tolerance(self, index: int) -> float:
        """How far a token may fall short."""
        request = self.session.request
        if index < self.batch.num_decided:
            return math.inf
        if not self.batch.uncertain[index]:
            return request.max_gap
        return 0.0 if self.batch.position + index < request.num_exact else request.epsilon

    def _compare(self, logits: Tensor, index: int) -> tuple[int, float]:
        """The cloud's own token in place of a drafted one, and the gap of that one."""
        session, batch = self.session, self.batch
        sampling, noise = session.request.sampling, session.noise
        cell, token = session.order.cells[batch.position + index], batch.tokens[index]
        return coupled_gap(logits, cell, sampling, noise, token=token)

    @property
    def _first_needed(self) -> int:
        """Position of the first token to compare, or the one after the batch."""
        if self.session.request.looks_at_kept:
            return self.batch.position
        flags = self.batch.uncertain
        return self.batch.position + (flags.index(True) if True in flags else len(flags))
