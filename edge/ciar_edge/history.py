"""What the edge knows that the cloud knows of one image: enough to rebuild its session anywhere.

    known tokens x_0 .. x_{n-1}, each decided by the cloud, or kept by the edge, with its code if
    codes are sent

Only verdicts change it. What was drafted since the last verdict, or decided alone because a verdict
was late, is not in it: the next batch carries that again.

Taking a verdict only notes it, since a token waits for that; what follows from the verdicts is
worked out when somebody asks.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ciar.types import TokenSpan, Verdict, VerifyBatch
from ciar_edge.result import Origin, Origins, origins_of


@dataclass(frozen=True, kw_only=True, eq=False)
class _Known:
    token: int
    origin: Origin
    code: Tensor | None = None  # [feature_dim] of a token the edge kept, if it was sent

    @property
    def is_kept(self) -> bool:
        return self.origin in (Origin.KEPT, Origin.FALLBACK)


class History:
    """The known tokens of one session."""

    def __init__(self, prefix: tuple[int, ...], *, num_tokens: int, feature_dim: int) -> None:
        self._tokens = [_Known(token=token, origin=Origin.PREFIX) for token in prefix]
        self._noted: list[tuple[VerifyBatch, Verdict]] = []  # not yet in _tokens
        self._num_tokens = num_tokens
        self._feature_dim = feature_dim
        self._fallbacks: set[int] = set()  # positions asked about in vain

    def __len__(self) -> int:
        return len(self._known())

    def take(self, batch: VerifyBatch, verdict: Verdict) -> None:
        """The batch was answered: what stands of it is known, and the cloud's tokens behind it."""
        self._noted.append((batch, verdict))

    def _known(self) -> list[_Known]:
        """All tokens, after what was noted."""
        for batch, verdict in self._noted:
            self._append(batch, verdict)
        self._noted.clear()
        return self._tokens

    def _append(self, batch: VerifyBatch, verdict: Verdict) -> None:
        tokens = self._tokens
        assert batch.position <= len(tokens), f"{batch.position} leaves a gap behind {len(tokens)}"
        rows = iter(batch.features)
        del tokens[batch.position :]
        for token, is_uncertain in zip(
            batch.tokens[: verdict.num_agreed], batch.uncertain, strict=False
        ):
            position = len(tokens)
            if is_uncertain:
                tokens.append(_Known(token=token, origin=Origin.AGREED))
            else:
                origin = Origin.FALLBACK if position in self._fallbacks else Origin.KEPT
                tokens.append(_Known(token=token, origin=origin, code=next(rows, None)))
        if verdict.token is not None:
            is_correction = verdict.num_agreed < len(batch.tokens)
            origin = Origin.CORRECTED if is_correction else Origin.DRAWN
            tokens.append(_Known(token=verdict.token, origin=origin))
            if is_correction:  # what was decided behind it is void
                self._fallbacks = {p for p in self._fallbacks if p < len(tokens) - 1}
        tokens += [_Known(token=token, origin=Origin.DRAWN) for token in verdict.run_on]

    def miss(self, batch: VerifyBatch) -> None:
        """The batch was not answered in time: the edge decides its uncertain tokens alone."""
        self._known()  # verdicts before it do not know of it
        asked = (batch.position + i for i, flag in enumerate(batch.uncertain) if flag)
        self._fallbacks.update(asked)

    def span(self, end: int) -> TokenSpan:
        """The first `end` known tokens, as a resume tells them: the cloud's own are uncertain."""
        known = self._known()[:end]
        codes = [item.code for item in known if item.code is not None]
        width = self._feature_dim
        return TokenSpan(
            position=0,
            tokens=tuple(item.token for item in known),
            uncertain=tuple(not item.is_kept for item in known),
            features=torch.stack(codes) if codes else torch.zeros(0, width),  # [kept, F]
        )

    def origins(self) -> Origins:
        """Counts over the whole image: what follows the last verdict was decided by the edge."""
        found = [item.origin for item in self._known()]
        for position in range(len(found), self._num_tokens):
            found.append(Origin.FALLBACK if position in self._fallbacks else Origin.KEPT)
        return origins_of(found)
