"""What is seen of an image while it is drawn: a bar on a terminal, else lines; on stderr."""

import math
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ciar.types import Verdict, VerifyBatch
from ciar_edge.result import CLOUD_DECIDED, ImageResult, Observer, Origin, Silent

NUM_LINES = 4  # an image, when there is no terminal


class Display(Observer, Protocol):
    """An observer with a place on the screen as long as its context lasts."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


def make_display(console: Console, *, is_quiet: bool) -> Display:
    """A bar where it can be drawn, lines where it cannot, nothing if that is wanted."""
    if is_quiet:
        return NoDisplay()
    return Bar(console) if console.is_terminal else Lines(console)


class NoDisplay(Silent):
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class _Tally(NoDisplay):
    """Counts what the displays show."""

    num_tokens = num_known = num_cloud = num_round_trips = 0

    def on_start(self, *, num_tokens: int, num_prefix: int) -> None:
        self.num_tokens = num_tokens

    def on_token(self, *, position: int, token: int, origin: Origin, score: float) -> None:
        self.num_known += 1
        self.num_cloud += origin in CLOUD_DECIDED

    def on_call(self, *, batch: VerifyBatch, verdict: Verdict, seconds: float) -> None:
        self.num_round_trips += 1

    @property
    def counts(self) -> str:
        """The cloud's share: of the tokens known so far, those that it drew or confirmed."""
        share = self.num_cloud / max(1, self.num_known)
        return (
            f"{self.num_known}/{self.num_tokens} tokens, cloud {share:.0%}, "
            f"{self.num_round_trips} round trips"
        )


class Bar(_Tally):
    """One line that is redrawn, and cleared in the end."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("drawing"),
            BarColumn(),
            TextColumn("{task.fields[counts]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task("drawing", total=None, counts="starting")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def on_start(self, *, num_tokens: int, num_prefix: int) -> None:
        super().on_start(num_tokens=num_tokens, num_prefix=num_prefix)
        self._progress.update(self._task, total=num_tokens)

    def on_token(self, *, position: int, token: int, origin: Origin, score: float) -> None:
        super().on_token(position=position, token=token, origin=origin, score=score)
        self._progress.update(self._task, completed=self.num_known, counts=self.counts)


class Lines(_Tally):
    """A line each quarter of the image."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def on_token(self, *, position: int, token: int, origin: Origin, score: float) -> None:
        super().on_token(position=position, token=token, origin=origin, score=score)
        step = math.ceil(self.num_tokens / NUM_LINES)
        if self.num_known % step == 0 or self.num_known == self.num_tokens:
            self._console.print(self.counts, highlight=False, soft_wrap=True)


def summary(result: ImageResult) -> str:
    """One line on a finished image."""
    return (
        f"cloud calls {result.cloud_calls:.1%} of {len(result.tokens)} tokens, "
        f"{result.round_trips} round trips, {result.uplink_bytes / 1000:.1f} KB up, "
        f"{result.downlink_bytes / 1000:.1f} KB down, {result.seconds:.2f} s"
    )
