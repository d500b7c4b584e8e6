"""Fixtures for every test.

grpc.aio is bound to the first event loop of a process that uses it, so all coroutines of a test run
share one loop: tests are plain functions that call `run(coroutine)`, never `asyncio.run`.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
import uvloop

from ciar.target import Target
from ciar_cloud.bundle import CloudModel, load_cloud_model
from ciar_cloud.solo import draw_alone
from tests.cloud_client import request as image_request
from tests.tiny import PROMPT, write_bundle

T = TypeVar("T")
Run = Callable[[Coroutine[Any, Any, T]], T]


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> None:
    """Tiny models are slower on several threads, and sums then depend on how many there are."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Commands run in this process set up its log."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


@pytest.fixture(scope="session")
def event_loop_for_session() -> Iterator[asyncio.AbstractEventLoop]:
    loop = uvloop.new_event_loop()
    yield loop
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


@pytest.fixture(scope="session")
def run(event_loop_for_session: asyncio.AbstractEventLoop) -> Run[Any]:
    """Run a coroutine to its end on the loop of the session: `result = run(f(x))`."""

    def run_until_complete(coroutine: Coroutine[Any, Any, Any]) -> Any:
        return event_loop_for_session.run_until_complete(coroutine)

    return run_until_complete


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model on disk."""
    return write_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def model(bundle: Path) -> CloudModel:
    """Its cloud's half, loaded."""
    return load_cloud_model(str(bundle))


@pytest.fixture(scope="module")
def truth(model: CloudModel) -> Callable[[int], list[int]]:
    """The cloud's own image of a seed."""
    (features,) = model.encoder.encode([PROMPT])
    target = Target(model.target, num_slots=1)
    return lambda seed: list(draw_alone(target, image_request(seed), features).tokens)
