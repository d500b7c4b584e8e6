"""CLIP through open_clip, when the user has its weights: features, CLIP score, HPSv2.

    n pictures   D width of a feature

The CLIP score is 100 max(cos, 0), as in torchmetrics (Hessel et al. 2021 have another factor).
HPSv2 (Wu et al. 2023) is the same cosine in a CLIP ViT-H-14 trained on human choices, so its
weights are all it takes.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ciar.errors import InvalidInput, MissingExtra
from ciar_bench.quality.folder import Caption
from ciar_bench.quality.measures import Scores

CLIP_MODEL, CLIP_WEIGHTS = "ViT-L-14-336-quickgelu", "openai"  # those of CMMD
HPS_MODEL = "ViT-H-14"
TEXT_BATCH = 64


class ClipFeatures:
    """Pictures to CLIP's image features.

    model: an architecture of open_clip.  pretrained: a tag of its, fetched on first use, or a path.
    """

    def __init__(
        self, model: str = CLIP_MODEL, pretrained: str = CLIP_WEIGHTS, *, device: str = "cpu"
    ) -> None:
        try:
            import open_clip
        except ImportError as error:
            raise MissingExtra(
                "CLIP needs open_clip: install it with pip install 'ciar[quality]'"
            ) from error
        try:
            self._model, _, self._prepare = open_clip.create_model_and_transforms(
                model, pretrained=pretrained, device=device, require_pretrained=True
            )
        except (RuntimeError, OSError, ValueError) as error:
            raise InvalidInput(
                "pretrained", pretrained, f"give weights of {model}: {error}"
            ) from error
        self._model.eval()
        self._tokenize = open_clip.get_tokenizer(model)
        self._device = device
        self.name, self.label = f"clip-{model}", f"CLIP-{model}"
        self.width = len(self.encode_captions(["a"])[0])
        self.fingerprint = weights_fingerprint(self._model.state_dict())

    @torch.inference_mode()
    def __call__(self, pictures: Tensor) -> Tensor:
        """uint8 [n, 3, H, W] -> float32 [n, D]"""
        rows = [
            self._prepare(Image.fromarray(picture.permute(1, 2, 0).numpy())) for picture in pictures
        ]
        features: Tensor = self._model.encode_image(torch.stack(rows).to(self._device))
        return features.float().cpu()

    @torch.inference_mode()
    def encode_captions(self, captions: Sequence[str]) -> Tensor:
        """-> float32 [n, D]"""
        rows = []
        for first in range(0, len(captions), TEXT_BATCH):
            ids = self._tokenize(list(captions[first : first + TEXT_BATCH]))
            rows.append(self._model.encode_text(ids.to(self._device)).float().cpu())
        return torch.cat(rows)


class ClipScorer:
    """100 max(cos, 0) of a picture and its prompt. name: of the score."""

    def __init__(self, extractor: ClipFeatures, *, name: str) -> None:
        self.extractor, self._name = extractor, name
        self.fingerprint = extractor.fingerprint

    def score(self, features: Tensor, captions: Sequence[Caption]) -> dict[str, Scores]:
        """Of image features [n, D] and their captions."""
        texts = self.extractor.encode_captions([caption.prompt for caption in captions])
        cosines = F.cosine_similarity(features, texts).double()
        return {self._name: Scores(np.arange(len(captions)), 100 * cosines.clamp(min=0).numpy())}


def clip_scorer(extractor: ClipFeatures) -> ClipScorer:
    """The CLIP score with these features."""
    return ClipScorer(extractor, name=f"{extractor.label}-score")


def hps_scorer(weights: str, *, device: str = "cpu") -> ClipScorer:
    """HPSv2. weights: path of HPS_v2_compressed.pt or HPS_v2.1_compressed.pt."""
    return ClipScorer(ClipFeatures(HPS_MODEL, weights, device=device), name="HPSv2")


def weights_fingerprint(state: dict[str, Any]) -> str:
    """16 hex digits of a SHA-256 over the sums of all tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {float(tensor.double().sum())!r}\n".encode())
    return digest.hexdigest()[:16]
