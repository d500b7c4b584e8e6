"""The seam between edge and cloud: whoever can open sessions and verify batches can be the cloud.

`ciar_edge.remote` implements it over gRPC. `ciar.local.LocalVerifier` is the oracle: the same
target model called in this process, which the remote one must equal token for token.
"""

from contextlib import AbstractAsyncContextManager
from typing import Protocol

from ciar.types import ImageRequest, ModelInfo, Prefix, Verdict, VerifyBatch


class Session(Protocol):
    """One image in the cloud: a slot lease that ends with the context it was opened in."""

    @property
    def prefix(self) -> Prefix: ...

    async def verify(self, batch: VerifyBatch) -> Verdict:
        """Extend the cloud's cache by the batch and compare its uncertain tokens.

        Raises `DeadlineExceeded` when the answer is late (the session stays usable: roll back and
        go on with a higher epoch) and `CloudUnavailable` or `SessionLost` when the session is gone
        for good.
        """
        ...


class Verifier(Protocol):
    async def info(self) -> ModelInfo: ...

    def open(self, request: ImageRequest) -> AbstractAsyncContextManager[Session]:
        """PrefixInject, then a session that lasts as long as the context."""
        ...
