"""A decoded image leaves the edge: as a PNG that says how it came about, a token map, and a report.

fallbacks + kept + what the cloud decided (prefix, agreed, corrected, drawn) = T
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ciar.picture import picture_metadata, save_picture
from ciar_edge.config import Mode
from ciar_edge.result import ImageResult
from ciar_edge.token_map import draw_token_map


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawing:
    """A decoded image and what it was asked for.

    pixels: uint8 RGB [H, W, 3].  fingerprint: of the target checkpoint.
    """

    prompt: str
    seed: int
    mode: Mode
    fingerprint: str
    router: str  # that the result came from; `exact` asks none
    result: ImageResult
    pixels: Tensor
    warnings: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int | float]:
        """How the tokens came about and what they cost: the names of the report."""
        result = self.result
        return {
            "prefix_tokens": result.prefix_tokens,
            "cloud_calls": result.cloud_calls,
            "cloud_forwards": result.cloud_forwards,
            "cloud_decided": result.cloud_decided,
            "round_trips": result.round_trips,
            "uplink_bytes": result.uplink_bytes,
            "downlink_bytes": result.downlink_bytes,
            "fallbacks": result.fallbacks,
            "resumes": result.resumes,
            "seconds": round(result.seconds, 6),
        }

    @property
    def metadata(self) -> dict[str, str]:
        """The text chunks of the PNG."""
        return picture_metadata(
            prompt=self.prompt,
            seed=self.seed,
            fingerprint=self.fingerprint,
            mode=self.mode,
            counts=self.counts,
        )

    def save(self, path: Path) -> None:
        """Write the picture; raises `OutputError`."""
        save_picture(path, self.pixels, self.metadata)

    def save_map(self, path: Path) -> None:
        """Write the picture with its token map and its uncertainty; raises `OutputError`."""
        result = self.result
        sheet = draw_token_map(self.pixels, origins=result.origins, scores=result.scores)
        save_picture(path, sheet, self.metadata)

    def report(self, *, output: Path, extra: Mapping[str, Any]) -> dict[str, Any]:
        """The object that `--json` prints.  extra: further entries, behind the standard ones."""
        tokens = self.result.tokens
        return {
            "prompt": self.prompt,
            "seed": self.seed,
            "mode": self.mode,
            "tokens": list(tokens),
            "grid": round(len(tokens) ** 0.5),
            **self.counts,
            "output": str(output),
            "fingerprint": self.fingerprint,
            "origins": {str(origin): count for origin, count in self.result.counts.items()},
            **extra,
            "warnings": list(self.warnings),
        }


def warnings_of(result: ImageResult) -> tuple[str, ...]:
    """What the user should know about the image, a line each."""
    lines = []
    if result.unknown_words:
        words = ", ".join(repr(word) for word in result.unknown_words)
        lines.append(f"unknown words, drawn without them: {words}")
    if result.resumes:
        times = "once" if result.resumes == 1 else f"{result.resumes} times"
        lines.append(f"the cloud was lost and the session resumed {times}; the image is unchanged")
    if result.lost:
        lines.append(f"the cloud was lost and the edge finished alone: {result.lost}")
    if result.fallbacks:
        lines.append(
            f"{result.fallbacks} uncertain tokens were decided by the edge for want of an answer"
        )
    return tuple(lines)
