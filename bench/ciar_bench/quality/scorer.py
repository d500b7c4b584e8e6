"""A scorer of captions for pictures in the manner of the drawn scenes, and probes on them.

    n pictures   U captions   W, C widths of their features   E width of the space they share

Frozen features of pictures (EfficientNet-Lite0, means and maxima) and of captions (the mean over
word pieces of the bundle's text encoder) go through two heads of two layers into one space, where
the cosine is the score (as in CLIP, Radford et al. 2021, whose loss trains them). Two linear probes
on the same picture features name the place and the things (attributes in the manner of GenEval,
Ghosh et al. 2023).

A scorer is NAME.safetensors, matrices as int8 with a scale a row, beside NAME.json: what it knows,
how it was trained, and what it reaches on held-out scenes.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ciar.checkpoint import fingerprint, from_dict, load_into
from ciar.errors import CheckpointError, PairMismatch
from ciar.int8 import unpack_state_dict
from ciar.models.text_encoder import TextEncoder
from ciar_bench.quality.features import EfficientNetFeatures, FeatureExtractor
from ciar_bench.quality.fetch import sha256_of
from ciar_bench.quality.folder import Caption
from ciar_bench.quality.measures import Scores
from ciar_train.export import as_int8

KIND = "caption-scorer"
TEXT_BATCH = 64
SUFFIX = ".safetensors"


@dataclass(frozen=True, kw_only=True)
class HeadsConfig:
    """Sizes, and the words the probes know."""

    image_width: int
    text_width: int
    nouns: tuple[str, ...]
    places: tuple[str, ...]
    hidden: int = 256
    width: int = 256


class Heads(nn.Module):
    """All that is trained. `mean` and `deviation` [W] standardize picture features."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, config: HeadsConfig) -> None:
        super().__init__()
        self.config = config
        self.image = two_layers(config.image_width, config.hidden, config.width)
        self.text = two_layers(config.text_width, config.hidden, config.width)
        self.nouns = nn.Linear(config.image_width, len(config.nouns))
        self.places = nn.Linear(config.image_width, len(config.places))
        self.register_buffer("mean", torch.zeros(config.image_width))
        self.register_buffer("deviation", torch.ones(config.image_width))

    def standardize(self, features: Tensor) -> Tensor:
        """[n, W] -> [n, W]"""
        return (features - self.mean) / self.deviation

    def embed_pictures(self, standard: Tensor) -> Tensor:
        """[n, W] -> [n, E] of length 1"""
        return F.normalize(self.image(standard), dim=-1)

    def embed_captions(self, sentences: Tensor) -> Tensor:
        """[U, C] -> [U, E] of length 1"""
        return F.normalize(self.text(sentences), dim=-1)


def two_layers(width_in: int, hidden: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width_in, hidden), nn.GELU(), nn.Dropout(0.2), nn.Linear(hidden, width_out)
    )


def sentence_vectors(encoder: TextEncoder, captions: Sequence[str]) -> Tensor:
    """Mean features of each caption, [U, C]. Captions of like length go together."""
    order = sorted(range(len(captions)), key=lambda i: len(captions[i]))
    out = torch.empty(len(captions), encoder.config.dim)
    for first in range(0, len(order), TEXT_BATCH):
        picked = order[first : first + TEXT_BATCH]
        rows = encoder.encode([captions[i] for i in picked])
        out[picked] = torch.stack([row.mean(0) for row in rows]).cpu()
    return out


class CaptionScorer:
    """A trained scorer with the frozen parts it needs.

    text_folder: `text/` of the bundle. Raises `PairMismatch` if it is not the one trained with.
    """

    def __init__(
        self, path: Path, text_folder: Path, *, extractor: FeatureExtractor | None = None
    ) -> None:
        self.heads, self.metadata = load_scorer(path)
        self.fingerprint = sha256_of(path)[:16]
        self.extractor = extractor or EfficientNetFeatures(has_maxima=True)
        found = {"extractor": self.extractor.fingerprint, "text": fingerprint(text_folder)}
        for part, value in found.items():
            if self.metadata[part] != value:
                raise PairMismatch(
                    f"{path}: trained with another {part}: {self.metadata[part]}, here is {value}"
                )
        self._encoder = TextEncoder.load(text_folder)

    @torch.inference_mode()
    def score(self, features: Tensor, captions: Sequence[Caption]) -> dict[str, Scores]:
        """Of picture features [n, W] and their captions.

        caption-score: cosine of picture and prompt.
        place-top1: 1 if the probe's first place is the prompt's; of prompts that say a place.
        object-top5: share of the own things among the probe's first five; of pictures with things.
        """
        standard = self.heads.standardize(features)
        sentences = sentence_vectors(self._encoder, [caption.prompt for caption in captions])
        pictures, texts = self.heads.embed_pictures(standard), self.heads.embed_captions(sentences)
        everyone = np.arange(len(captions))
        return {
            "caption-score": Scores(everyone, (pictures * texts).sum(-1).double().numpy()),
            "place-top1": place_hits(self.heads, standard, captions),
            "object-top5": object_hits(self.heads, standard, captions, top=5),
        }


def place_hits(heads: Heads, standard: Tensor, captions: Sequence[Caption]) -> Scores:
    """Standardized features [n, W] -> 1 or 0 for each caption that says a place the probe knows."""
    places = heads.config.places
    known = [i for i, caption in enumerate(captions) if caption.place in places]
    guesses = heads.places(standard[known]).argmax(-1).tolist()
    hits = [places[g] == captions[i].place for i, g in zip(known, guesses, strict=True)]
    return Scores(np.array(known, dtype=np.int64), np.array(hits, dtype=np.float64))


def object_hits(heads: Heads, standard: Tensor, captions: Sequence[Caption], *, top: int) -> Scores:
    """Share of the own nouns among the first `top`, for captions whose nouns the probe knows."""
    index = {noun: number for number, noun in enumerate(heads.config.nouns)}
    known = [
        i for i, c in enumerate(captions) if c.nouns and all(noun in index for noun in c.nouns)
    ]
    logits = heads.nouns(standard[known])
    guesses = logits.topk(min(top, len(index)), dim=-1).indices.tolist()
    shares = [
        float(np.mean([index[noun] in guess for noun in captions[i].nouns]))
        for i, guess in zip(known, guesses, strict=True)
    ]
    return Scores(np.array(known, dtype=np.int64), np.array(shares, dtype=np.float64))


def save_scorer(path: Path, heads: Heads, metadata: dict[str, Any]) -> None:
    """Write NAME.safetensors and NAME.json.

    metadata: fingerprints `extractor` and `text`, `training`, `held_out`.
    """
    config = vars(heads.config)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(as_int8(heads), path)
    note = path.with_suffix(".json")
    note.write_text(json.dumps({"kind": KIND, "heads": config} | metadata, indent=1) + "\n")
    path.chmod(note.stat().st_mode)  # save_file lets nobody else read it


def load_scorer(path: Path) -> tuple[Heads, dict[str, Any]]:
    """Heads in float32 ready for use, and the metadata. Raises `CheckpointError`."""
    try:
        metadata = json.loads(path.with_suffix(".json").read_text())
        state = unpack_state_dict(load_file(path))
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if metadata.get("kind") != KIND:
        raise CheckpointError(f"{path}: kind {metadata.get('kind')!r}, expected {KIND!r}")
    heads = Heads(from_dict(HeadsConfig, metadata["heads"], where=f"{path}: heads"))
    load_into(heads, state, where=path)
    return heads.eval().requires_grad_(False), metadata


def find_scorer(scorer: str | Path) -> Path:
    """A scorer by its file, or by name among those of the wheel or the source tree."""
    path = Path(scorer)
    package = Path(str(files("ciar")))
    named = f"{scorer}{SUFFIX}"
    for candidate in (
        path,
        package / "_models" / "scorers" / named,
        package.parents[1] / "models" / "scorers" / named,
    ):
        if candidate.is_file():
            return candidate
    raise CheckpointError(
        f"scorer: {str(scorer)!r}: no such file; train one with `ciar-bench train-scorer`"
    )
