"""Losses and calls of images drawn with a static threshold, by rollouts of the whole protocol.

The contexts change with the threshold, so each has rollouts of its own, of the same prompts and
seeds. What was measured is kept in a file a threshold: an interrupted measurement goes on.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ciar.certificate import sampling_of
from ciar.checkpoint import fingerprint
from ciar.errors import InvalidInput
from ciar.output_file import replace_file
from ciar.prefix import prefix_length
from ciar.target import TargetModel
from ciar.text import load_text
from ciar.types import SamplingParams
from ciar.uncertainty import TENSOR_SCORES
from ciar_edge.agreement import Agreement
from ciar_edge.models import EdgeModel, load_draft_model
from ciar_train.calibrate import Recorder
from ciar_train.model_images import at_once, batches
from ciar_train.progress import Progress, say_nothing
from ciar_train.rollouts import Rollout, roll_out


@dataclass(frozen=True, kw_only=True)
class Tally:
    """One number an image: wrong among the kept tokens; calls and tokens not kept, a token."""

    losses: list[float]
    calls: list[float]
    sent: list[float]


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """A pair of models, how it draws, and what."""

    target: TargetModel
    edge: EdgeModel
    target_print: str
    draft_print: str
    conditions: list[Tensor]
    first_seed: int
    router: str
    sampling: SamplingParams
    prefix_rate: float

    @classmethod
    def load(
        cls,
        folder: Path,
        prompts: Sequence[str],
        *,
        first_seed: int,
        router: str | None,
        sampling: SamplingParams,
        prefix_rate: float,
        device: str,
    ) -> "Subject":
        """Of a bundle. router: None: the model's.  Raises `InvalidInput`, `CheckpointError`."""
        edge, encoder = load_draft_model(folder / "edge"), load_text(folder / "text")
        edge.draft.to(device)
        router = router or edge.router
        if router not in TENSOR_SCORES:
            raise InvalidInput("router", router, f"give one of {', '.join(TENSOR_SCORES)}")
        return cls(
            target=TargetModel.load(folder / "cloud", device=device),
            edge=edge,
            target_print=fingerprint(folder / "cloud"),
            draft_print=fingerprint(folder / "edge"),
            conditions=[encoder.encode([prompt])[0] for prompt in prompts],
            first_seed=first_seed,
            router=router,
            sampling=sampling,
            prefix_rate=prefix_rate,
        )

    def thresholds(self, shares: Sequence[float]) -> list[float]:
        """Of the calibration: what so large a share of its scores is above, safest first."""
        if self.router not in self.edge.calibration:
            raise InvalidInput("router", self.router, "the model has no calibration of this score")
        row = self.edge.calibration[self.router]
        return sorted({row[round(100 * (1 - share))] for share in shares})

    def measure(self, threshold: float, *, progress: Progress = say_nothing) -> Tally:
        total = self.target.config.num_tokens
        num_prefix = prefix_length(self.prefix_rate, total)
        tally = Tally(losses=[], calls=[], sent=[])
        for span in batches(len(self.conditions), at_once(self.target)):
            rollout = roll_out(
                self.target,
                self.edge.draft,
                [self.conditions[i] for i in span],
                seeds=[self.first_seed + i for i in span],
                sampling=self.sampling,
                num_prefix=num_prefix,
                keep=Recorder(self.router, threshold, [self.router]).keep,
            )
            tally.losses.extend(losses(rollout))
            tally.sent.extend((~rollout.kept).double().mean(dim=1).tolist())
            differs = rollout.drafted != rollout.drawn
            for kept, wrong in zip(rollout.kept.tolist(), differs.tolist(), strict=True):
                tally.calls.append(num_calls(kept, wrong, num_prefix=num_prefix) / total)
            progress(span.stop, len(self.conditions), f"threshold {threshold:g}")
        return tally

    def measure_once(self, threshold: float, kept_in: Path, *, progress: Progress) -> Tally:
        """`measure`, unless a whole file in the folder has it."""
        what = {
            "models": [self.target_print, self.draft_print],
            "conditions": hashlib.sha256(torch.cat(self.conditions).numpy().tobytes()).hexdigest(),
            "first_seed": self.first_seed,
            "router": self.router,
            "sampling": sampling_of(self.sampling),
            "prefix_rate": self.prefix_rate,
            "threshold": threshold,
        }
        name = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
        path = kept_in / f"{name}.json"
        tally = read_tally(path)
        if tally is None:
            tally = self.measure(threshold, progress=progress)
            kept_in.mkdir(parents=True, exist_ok=True)
            replace_file(path, json.dumps(what | asdict(tally)).encode())
        return tally


def read_tally(path: Path) -> Tally | None:
    """None: there is none, or half of one."""
    try:
        found = json.loads(path.read_text())
        return Tally(losses=found["losses"], calls=found["calls"], sent=found["sent"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def losses(rollout: Rollout) -> list[float]:
    """Of each image, the share of kept tokens that the cloud would have drawn otherwise."""
    wrong = (rollout.kept & (rollout.drafted != rollout.drawn)).sum(dim=1)
    shares: list[float] = (wrong.double() / rollout.kept.sum(dim=1).clamp(min=1)).tolist()
    return shares


def num_calls(kept: Sequence[bool], differs: Sequence[bool], *, num_prefix: int) -> int:
    """Cloud calls of an image drawn in `blocking`, as `ciar_edge.decoder` makes them.

    A verdict that agrees brings the next token along.
    """
    agreement, has_bonus, count = Agreement(), False, num_prefix
    for is_kept, is_different in zip(kept[num_prefix:], differs[num_prefix:], strict=True):
        if is_kept or has_bonus:
            has_bonus = False
            continue
        count += 1
        has_bonus = agreement.is_likely and not is_different
        agreement.learn(int(not is_different), 1)
    return count


def stacked(tallies: Sequence[Tally]) -> list[np.ndarray]:
    """Losses [n] of each."""
    return [np.array(tally.losses) for tally in tallies]
