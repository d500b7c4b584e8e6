"""MS-COCO captions as prompts, from the annotations that users hold.

One caption a picture of val2017, its longest (the first of these); the first 5,000 in a seeded
order.
"""

import json
from pathlib import Path

import numpy as np

from ciar.errors import InvalidInput
from ciar_bench.quality.folder import Caption
from ciar_cloud.text_features import read_prompts

NUM_CAPTIONS = 5000


def coco_captions(
    annotations: Path, *, count: int = NUM_CAPTIONS, seed: int = 0
) -> list[dict[str, str]]:
    """`prompt` and `file` of each, of `captions_val2017.json`. Raises `InvalidInput`."""
    try:
        values = json.loads(annotations.read_text())
        files = {image["id"]: image["file_name"] for image in values["images"]}
        longest: dict[int, str] = {}
        for note in sorted(values["annotations"], key=lambda note: note["id"]):
            caption = " ".join(note["caption"].split())
            if len(caption) > len(longest.get(note["image_id"], "")):
                longest[note["image_id"]] = caption
        pairs = [{"prompt": longest[i], "file": files[i]} for i in sorted(longest)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        remedy = f"give COCO's captions_val2017.json ({error!r})"
        raise InvalidInput("annotations", str(annotations), remedy) from error
    order = np.random.default_rng(seed).permutation(len(pairs))
    return [pairs[i] for i in order[:count]]


def read_captions(path: Path) -> list[Caption]:
    """Prompts of a JSON Lines file, the n-th with seed n. Raises `InvalidInput`."""
    return [Caption(prompt=prompt, seed=n) for n, prompt in enumerate(read_prompts(path))]


def write_captions(path: Path, captions: list[dict[str, str]]) -> None:
    """One JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(c, ensure_ascii=False) + "\n" for c in captions))
