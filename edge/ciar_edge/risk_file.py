"""A threshold that keeps to a risk from picture to picture, in a file between them.

Late verification tells of each picture what share of its kept tokens the cloud would not have
drawn; `ciar.risk_tracker` moves the threshold by it. Edges that share a file share the threshold: a
picture is drawn at the one of its start, and what it lost moves whatever the others have left.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ciar.checkpoint import from_dict
from ciar.errors import CheckpointError, InvalidInput, OutputError
from ciar.file_lock import locked
from ciar.output_file import output_error, replace_file
from ciar.risk_tracker import STEP_SIZE, RiskTracker
from ciar.router import DEFAULT_BUDGET

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class RiskState:
    """draft, router, risk: what the threshold is for.  rank: of the threshold, see `RiskTracker`.

    num_images, lost: pictures so far, and the sum of their losses.
    """

    draft: str
    router: str
    risk: float
    rank: float = 1 - DEFAULT_BUDGET
    num_images: int = 0
    lost: float = 0.0
    version: int = VERSION

    def __post_init__(self) -> None:
        if not -STEP_SIZE * self.num_images <= self.rank <= 1:
            raise ValueError(f"rank {self.rank} is none")
        if not 0 <= self.lost <= self.num_images:
            raise ValueError(f"{self.num_images} pictures do not lose {self.lost}")


class RiskFile:
    """tau: the threshold on the score, for the next picture."""

    def __init__(
        self, path: Path, risk: float, *, draft: str, router: str, quantiles: Sequence[float]
    ) -> None:
        """Read the file, or begin one.

        draft: fingerprint of the draft model.  quantiles: of the router's score.  Raises
        `InvalidInput` for a file of another model, router or risk, `CheckpointError` for a damaged
        one, `OutputError` where none can be written.
        """
        self.path = path
        self._new = RiskState(draft=draft, router=router, risk=risk)
        self._quantiles = quantiles
        with self._locked():
            state = self._read()
            self._write(state)  # before anything is drawn: whether it can be
        self.tau = self._tracker(state).tau

    def learn(self, loss: float) -> RiskState:
        """A picture was drawn at `tau`, and so much of what it kept differed.

        Raises as the constructor: the file may be another one by now.
        """
        with self._locked():
            state = self._read()
            tracker = self._tracker(state)
            tracker.learn(loss)
            state = replace(
                state,
                rank=tracker.rank,
                num_images=state.num_images + 1,
                lost=state.lost + loss,
            )
            self._write(state)
        return state

    def _tracker(self, state: RiskState) -> RiskTracker:
        return RiskTracker(state.risk, self._quantiles, start=state.rank)

    def _read(self) -> RiskState:
        try:
            found = from_dict(RiskState, json.loads(self.path.read_text()), where=str(self.path))
        except FileNotFoundError:
            return self._new
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"{self.path}: no file of --risk-file: {error}") from error
        for name in ("version", "draft", "router", "risk"):
            own, other = getattr(found, name), getattr(self._new, name)
            if own != other:
                remedy = f"it keeps the threshold for {name} {own}, not {other}: give another file"
                raise InvalidInput("risk_file", str(self.path), remedy)
        return found

    def _write(self, state: RiskState) -> None:
        text = json.dumps(asdict(state), indent=1) + "\n"
        try:
            replace_file(self.path, text.encode())
        except OSError as error:
            raise output_error(self.path, error, field="risk_file") from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One edge at a time, in the folder of the file."""
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(self.path))
            except OSError as error:
                raise OutputError(f"risk_file: {self.path}: {error.strerror}") from error
            yield
