"""What a caption scorer is trained on: frozen features of scenes, kept beside them.

N pictures   K captions of each   U different captions   W, C widths of their features
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ciar.checkpoint import fingerprint
from ciar.models.text_encoder import TextEncoder
from ciar.picture import load_vq
from ciar_bench.quality.feature_cache import cached_array, picture_features
from ciar_bench.quality.features import FeatureExtractor
from ciar_bench.quality.scenes import DrawnScenes, Reconstructed
from ciar_bench.quality.scorer import sentence_vectors
from ciar_train.progress import Progress, say_nothing


@dataclass(frozen=True, kw_only=True, eq=False)
class SceneFeatures:
    """A folder of scenes.

    real: [N, W] of the pictures.  rebuilt: [N, W] of them after their way through the tokenizer.
    sentences: [U, C] of the different captions.  captions: int64 [N, K], which of them each has.
    """

    scenes: DrawnScenes
    real: Tensor
    rebuilt: Tensor
    sentences: Tensor
    captions: Tensor


def scene_features(
    scenes: DrawnScenes,
    bundle: Path,
    extractor: FeatureExtractor,
    *,
    progress: Progress = say_nothing,
) -> SceneFeatures:
    """Computed, or read if that was done before. bundle: its tokenizer and text encoder."""
    vq = load_vq(bundle / "vq")
    rebuilt = Reconstructed(scenes, vq, fingerprint=fingerprint(bundle / "vq"))
    rows = [line["captions"] for line in scenes.lines]
    unique = sorted({caption for row in rows for caption in row})
    number = {caption: index for index, caption in enumerate(unique)}

    def encode() -> np.ndarray:
        progress(0, len(unique), "captions")
        return sentence_vectors(TextEncoder.load(bundle / "text"), unique).numpy()

    source = {"text": fingerprint(bundle / "text"), **scenes.source()}
    sentences = cached_array(scenes.folder / f"sentences{scenes.tag}.npy", source, encode)
    return SceneFeatures(
        scenes=scenes,
        real=picture_features(scenes, extractor, progress=progress),
        rebuilt=picture_features(rebuilt, extractor, progress=progress),
        sentences=torch.from_numpy(sentences),
        captions=torch.tensor([[number[caption] for caption in row] for row in rows]),
    )
