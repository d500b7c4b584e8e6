"""One step: a forward pass over the works of several sessions, and what is left when it fails.

A step that fails is tried again in halves, down to the works that fail by themselves: these alone
end with `EngineError`, and their caches are forgotten. A feed that is too large for the memory left
is divided as far as it can be. (Evicting idle sessions would free nothing: all slots are allocated
once, at the start.) Feeding again is harmless: it stores the same rows in the same places.
"""

import gc
import logging

import torch
from torch import Tensor

from ciar.errors import CiarError, EngineError
from ciar.feed import Feed
from ciar.session import PrefixWork, VerifyWork
from ciar.target import Target
from ciar_cloud.scheduler import Job

log = logging.getLogger(__name__)

Work = PrefixWork | VerifyWork
Running = tuple[Job, Work, Feed]
Result = bool | CiarError
"""Whether a work is done, or what went wrong with it."""

OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")


class DeviceLost(Exception):
    """The device fails every step from now on: a new process may do better."""


class StepRunner:
    """max_chunk_rows: of one work in a step, where its feed can be divided."""

    def __init__(self, target: Target, *, max_chunk_rows: int) -> None:
        self._target = target
        self._max_chunk_rows = max_chunk_rows

    def feed(self, job: Job, work: Work) -> Running:
        assert job.seat.slot is not None, "a job of a step has a slot"
        return job, work, work.feed(job.seat.slot, max_rows=self._max_chunk_rows)

    def run(self, running: list[Running]) -> list[Result]:
        """One forward pass, or several if it fails. Raises `DeviceLost`."""
        try:
            logits = self._target.extend([feed for _, _, feed in running])
        except Exception as error:  # whatever a device can raise
            if isinstance(error, torch.AcceleratorError):
                raise DeviceLost(f"the device is lost: {error}") from error
            failure = error  # and no traceback, whose frames hold tensors
            log.warning("a step over %d sessions failed: %s", len(running), error)
        else:
            return [self._receive(*one) for one in zip(running, logits, strict=True)]
        if is_out_of_memory(failure):
            free_memory()
        failure = failure.with_traceback(None)
        if len(running) > 1:
            half = len(running) // 2
            return self.run(running[:half]) + self.run(running[half:])
        return [self._go_on_alone(*running[0], failure)]

    def _go_on_alone(self, job: Job, work: Work, feed: Feed, failure: Exception) -> Result:
        """A work whose step failed, for itself."""
        if is_out_of_memory(failure):
            assert job.seat.slot is not None, "it was fed"
            smaller = work.feed(job.seat.slot, max_rows=feed.num_new_rows // 2)
            if smaller.num_new_rows < feed.num_new_rows:
                return self.run([(job, work, smaller)])[0]
        log.error("a work failed alone: %r", failure)
        job.seat.state.forget_cache()
        return EngineError(f"the model step failed: {failure}")

    def _receive(self, running: Running, logits: Tensor) -> Result:
        job, work, _ = running
        if bool(logits.isfinite().all()):
            return work.receive(logits)
        job.seat.state.forget_cache()
        return EngineError("the model gave logits that are not finite numbers")


def is_out_of_memory(error: Exception) -> bool:
    """CPU allocators raise plain RuntimeErrors."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)


def free_memory() -> None:
    """What the failed step held, and what allocators keep."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
