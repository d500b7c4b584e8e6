"""What a caption scorer reaches on scenes it was not trained on."""

import numpy as np
import torch
from torch import Tensor

from ciar_bench.quality.folder import Caption
from ciar_bench.quality.scene_features import SceneFeatures
from ciar_bench.quality.scorer import Heads, object_hits, place_hits

NUM_CANDIDATES = 1000


@torch.inference_mode()
def judge(heads: Heads, data: SceneFeatures, features: Tensor) -> dict[str, float]:
    """Of features [N, W] of the pictures of `data`, each with its first caption.

    retrieval@k: a caption with the same words is among the first k of 1,000 captions.
    scene@1: the first caption is of a scene with the same things in the same place.
    matched, mismatched: mean score with the own caption and with all of other scenes.
    The probes are asked for what is in the picture, whether its caption says so or not.
    """
    count = min(NUM_CANDIDATES, len(features))
    lines = data.scenes.lines
    standard = heads.standardize(features)
    captions = data.captions[:count, 0]
    scores = (
        heads.embed_pictures(standard[:count]) @ heads.embed_captions(data.sentences[captions]).T
    )
    order = scores.argsort(dim=1, descending=True)  # [pictures, captions]
    is_same = captions[order] == captions[:, None]
    contents = [(tuple(line["nouns"]), line["place"]) for line in lines[:count]]
    numbers = {content: number for number, content in enumerate(dict.fromkeys(contents))}
    scene = torch.tensor([numbers[content] for content in contents])
    is_other = scene[:, None] != scene
    truths = [
        Caption(prompt="", seed=0, nouns=tuple(line["nouns"]), place=line["place"])
        for line in lines
    ]
    found = {
        "retrieval@1": float(is_same[:, 0].float().mean()),
        "retrieval@5": float(is_same[:, :5].any(1).float().mean()),
        "scene@1": float((scene[order[:, 0]] == scene).float().mean()),
        "matched": float(scores.diagonal().mean()),
        "mismatched": float(scores[is_other].mean()),
        "place-top1": float(np.mean(place_hits(heads, standard, truths).values)),
        "object-top1": float(np.mean(object_hits(heads, standard, truths, top=1).values)),
        "object-top5": float(np.mean(object_hits(heads, standard, truths, top=5).values)),
    }
    return {name: round(value, 4) for name, value in found.items()}
