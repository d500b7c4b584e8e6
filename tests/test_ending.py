"""What a signal does to the edge, whenever it comes."""

import asyncio
import os
import signal
from contextlib import suppress

import pytest

from ciar_edge.ending import EXIT_TERMINATED, Ending

ENDS = [(signal.SIGINT, KeyboardInterrupt, None), (signal.SIGTERM, SystemExit, EXIT_TERMINATED)]


@pytest.mark.parametrize(("number", "kind", "code"), ENDS)
def test_a_signal_that_c_code_swallowed_ends_the_next_run_at_once(
    number: signal.Signals, kind: type[BaseException], code: int | None
) -> None:
    begun = []

    async def draw() -> None:
        begun.append(True)
        await asyncio.sleep(60)

    with Ending() as ending:
        with suppress(kind):
            os.kill(os.getpid(), number)
        with pytest.raises(kind) as caught:
            ending.run(draw())
    assert not begun
    assert getattr(caught.value, "code", None) == code


@pytest.mark.parametrize(("number", "kind", "code"), ENDS)
def test_a_signal_cancels_what_runs_and_lets_it_clean_up(
    number: signal.Signals, kind: type[BaseException], code: int | None
) -> None:
    cleaned = []

    async def draw() -> None:
        asyncio.get_running_loop().call_later(0.01, os.kill, os.getpid(), number)
        try:
            await asyncio.sleep(60)
        finally:
            cleaned.append(True)

    with Ending() as ending, pytest.raises(kind):
        ending.run(draw())
    assert cleaned


def test_without_a_signal_it_returns_and_the_handlers_are_as_before() -> None:
    async def three() -> int:
        return 3

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Ending() as ending:
        assert ending.run(three()) == 3
        with pytest.raises(KeyboardInterrupt):  # after the loop, too
            os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_task_that_cancels_itself_is_no_signal() -> None:
    async def give_up() -> None:
        raise asyncio.CancelledError

    with Ending() as ending, pytest.raises(asyncio.CancelledError):
        ending.run(give_up())
