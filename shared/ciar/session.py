"""What the cloud knows of one image, and the works on it: drawing a prefix, verifying a batch.

Pure bookkeeping around `Target.extend`, shared by the cloud's engine and by `LocalVerifier`. A work
hands out feeds and takes the logits that come back, until it has its result; it may take several
steps (a prefix) or one (a verify).

    known tokens    x_0 .. x_{n-1}; the last one is never cached
    cached tokens   the first `num_cached` of them, -1 while not even the condition is prefilled

Because the cloud's token at a position depends only on (seed, position, known tokens, features),
anything here can be repeated, rolled back or rebuilt in another slot without changing a token.
"""

import torch
from torch import Tensor

from ciar.errors import InvalidInput
from ciar.sampling import Noise, coupled_draw
from ciar.target import Feed
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
        self.features = torch.zeros(num_tokens, feature_dim)  # zero where the edge did not decide
        self.noise = Noise(request.sampling.seed, vocab_size=vocab_size)
        self.num_cached = NOT_PREFILLED
        self.epoch = 0

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
        self.tokens = []
        self._append(history, len(history.tokens))
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
        width = self.features.shape[1]
        if span.num_kept and span.features.shape != (span.num_kept, width):
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
        self.num_cached = min(self.num_cached, position)

    def feed(self, slot: int, *, first_needed: int, drafted: VerifyBatch | None = None) -> Feed:
        """All known and drafted tokens that the cache lacks, the last only for what follows it.

        It begins early enough to get logits from `first_needed` on, which the first row predicts.
        """
        tokens = self.tokens + list(drafted.tokens) if drafted else self.tokens
        start = self._start(first_needed)
        position = max(start, 0)
        end = min(len(tokens), self.num_tokens - 1)  # nothing follows the last of an image
        if drafted and not drafted.wants_next:
            end = min(end, len(tokens) - 1)
        codes = self.features[position:end]
        if drafted and drafted.num_kept:
            kept = [p - position for p in kept_positions(drafted) if p < end]
            codes = codes.clone()
            codes[kept] = drafted.features[: len(kept)].float()
        ids = torch.tensor(tokens[:end], dtype=torch.long)
        return Feed(
            slot=slot,
            num_condition=len(self.condition),
            position=position,
            tokens=ids[position:],
            before=ids[:position],
            cfg_scale=self.request.sampling.cfg_scale,
            cfg_interval=self.request.sampling.cfg_interval,
            condition=self.condition if start == NOT_PREFILLED else None,
            features=codes if bool(codes.any()) else None,
            num_outputs=max(0, end - first_needed + 1),
        )

    def _start(self, first_needed: int) -> int:
        """First position to feed, so that there is at least one.

        NOT_PREFILLED: the condition first (it brings logits for position 0).
        """
        return min(self.num_cached, first_needed - 1, self.num_tokens - 2)

    def accept(self, drafted: TokenSpan | None, count: int, token: int | None) -> None:
        """`count` drafted tokens stand and `token`, if any, follows them."""
        if drafted:
            self._append(drafted, count)
        if token is not None:
            self.tokens.append(token)
        self.num_cached = len(self.tokens) - 1

    def _append(self, span: TokenSpan, count: int) -> None:
        self.tokens += span.tokens[:count]
        kept = [p for p in kept_positions(span) if p < span.position + count]
        if kept:
            self.features[kept] = span.features[: len(kept)].float()


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

    def feed(self, slot: int) -> Feed:
        return self.session.feed(slot, first_needed=len(self.session.tokens))

    def receive(self, logits: Tensor) -> bool:
        """Take the logits of the last feed; true when the work is done."""
        session = self.session
        sampling, noise = session.request.sampling, session.noise
        token = coupled_draw(logits[-1], len(session.tokens), sampling, noise)
        session.accept(None, 0, token)
        return self.is_done


class VerifyWork:
    """Extend by a batch in one step and compare its uncertain tokens with the cloud's own draws.

    Construct it when its step begins, after the session's earlier works: it rolls the session back
    to the batch.
    """

    verdict: Verdict

    def __init__(self, session: SessionState, batch: VerifyBatch) -> None:
        session.check_batch(batch)
        self.session = session
        self.batch = batch
        session.epoch = max(session.epoch, batch.epoch)
        session.roll_back(batch.position)

    def feed(self, slot: int) -> Feed:
        return self.session.feed(slot, first_needed=self._first_needed, drafted=self.batch)

    def receive(self, logits: Tensor) -> bool:
        """Take the logits of the feed; always done after one.

        A difference makes older batches void.
        """
        session, batch = self.session, self.batch
        first = self._first_needed
        count, token = len(batch.tokens), None
        for index, is_uncertain in enumerate(batch.uncertain):
            if is_uncertain:
                own = self._draw(logits, batch.position + index, first)
                if own != batch.tokens[index]:
                    count, token = index, own
                    session.epoch = batch.epoch + 1
                    break
        if token is None and batch.wants_next and batch.end < session.num_tokens:
            token = self._draw(logits, batch.end, first)
        session.accept(batch, count, token)
        self.verdict = Verdict(
            epoch=batch.epoch, position=batch.position, num_agreed=count, token=token
        )
        return True

    def _draw(self, logits: Tensor, position: int, first: int) -> int:
        session = self.session
        sampling, noise = session.request.sampling, session.noise
        return coupled_draw(logits[position - first], position, sampling, noise)

    @property
    def _first_needed(self) -> int:
        """Position of the first uncertain token, or the one after the batch."""
        flags = self.batch.uncertain
        return self.batch.position + (flags.index(True) if True in flags else len(flags))
