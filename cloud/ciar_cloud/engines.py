"""What runs the model, as the server sees it: a thread of its own process, or engine processes."""

import asyncio
import math
from collections.abc import Callable
from typing import Any, Protocol

from ciar.session import SessionState
from ciar.types import VerifyBatch
from ciar_cloud.bundle import CloudModel, FrontModel
from ciar_cloud.config import ServeConfig
from ciar_cloud.engine_process import EnginePlan, build_engine
from ciar_cloud.fleet import Fleet
from ciar_cloud.kv_budget import read_bytes
from ciar_cloud.observer import Observer
from ciar_cloud.scheduler import Outcome


class Place(Protocol):
    """A session's seat. state: what is known of its image between its works."""

    @property
    def state(self) -> SessionState: ...


class AnyEngine(Protocol):
    """`Engine` and `Fleet`; a place is for the engine that gave it."""

    died: asyncio.Event

    @property
    def is_ready(self) -> bool: ...
    @property
    def num_waiting(self) -> int: ...
    @property
    def num_slots(self) -> int: ...
    @property
    def num_slots_in_use(self) -> int: ...
    @property
    def seconds_stuck(self) -> float: ...

    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    def end_stuck(self, seconds: float) -> None: ...
    def check_room(self, caller: str = "", *, share: float = 1.0) -> None: ...
    def open(self, state: SessionState, *, caller: str = "") -> Any: ...
    def close(self, seat: Any) -> None: ...

    def draw(
        self,
        seat: Any,
        until: int,
        deliver: Callable[[Outcome], None],
        *,
        deadline: float = math.inf,
    ) -> None: ...

    def verify(
        self,
        seat: Any,
        batch: VerifyBatch,
        deliver: Callable[[Outcome], None],
        *,
        deadline: float = math.inf,
    ) -> None: ...


def make_engine(model: FrontModel, config: ServeConfig, observer: Observer) -> AnyEngine:
    """As the settings say. A single process needs all of the model."""
    plans = [
        EnginePlan(
            folder=str(model.folder / "cloud"),
            draft=str(model.draft_folder or ""),
            device=device,
            dtype=config.dtype,
            threads=config.threads,
            slots=config.slots,
            kv_budget=read_bytes(config.kv_budget),
            min_idle_seconds=config.min_idle_seconds,
            max_step_positions=config.max_step_positions,
            max_chunk_rows=config.max_chunk_rows,
            cuda_graphs=config.cuda_graphs,
            slow_step_seconds=config.slow_step_seconds,
        )
        for device in config.devices
    ]
    if not config.single_process:
        return Fleet(plans, max_queue=config.max_queue, observer=observer)
    assert isinstance(model, CloudModel), "the model is loaded here"
    return build_engine(plans[0], model.target, model.draft, observer, max_queue=config.max_queue)
