"""What to measure with, by the names that commands take."""

from pathlib import Path

from ciar.errors import InvalidInput
from ciar_bench.quality.clip import (
    CLIP_MODEL,
    CLIP_WEIGHTS,
    ClipFeatures,
    clip_scorer,
    hps_scorer,
)
from ciar_bench.quality.features import EfficientNetFeatures, FeatureExtractor, InceptionFeatures
from ciar_bench.quality.report import Instruments, PictureScorer
from ciar_bench.quality.scorer import CaptionScorer, find_scorer
from ciar_train.progress import Progress, say_nothing

EXTRACTORS = ("efficientnet", "inception", "clip")


def make_instruments(
    *,
    extractors: str,
    model: Path,
    scorer: str = "",
    clip_model: str = CLIP_MODEL,
    clip_weights: str = CLIP_WEIGHTS,
    hps_weights: str = "",
    device: str = "cpu",
    progress: Progress = say_nothing,
) -> Instruments:
    """extractors: some of `EXTRACTORS`, separated by commas; clip brings the CLIP score.

    scorer: a caption scorer, its file or its name; it reads captions with the text encoder of the
        bundle `model`.
    clip_weights: a tag of open_clip, or a path.  hps_weights: a path; empty: no HPSv2.
    Raises `InvalidInput`, and `MissingExtra` for CLIP without its library.
    """
    found: list[FeatureExtractor] = []
    scorers: list[PictureScorer] = []
    for name in extractors.split(","):
        if name == "efficientnet":
            found.append(EfficientNetFeatures(device=device))
        elif name == "inception":
            found.append(InceptionFeatures(device=device))
        elif name == "clip":
            clip = ClipFeatures(clip_model, clip_weights, device=device)
            found.append(clip)
            scorers.append(clip_scorer(clip))
        else:
            raise InvalidInput("extractor", name, f"give some of {', '.join(EXTRACTORS)}")
    if scorer:
        maxima = EfficientNetFeatures(has_maxima=True, device=device)
        scorers.append(CaptionScorer(find_scorer(scorer), model / "text", extractor=maxima))
    if hps_weights:
        scorers.append(hps_scorer(hps_weights, device=device))
    return Instruments(extractors=found, scorers=scorers, progress=progress)
