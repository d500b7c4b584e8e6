"""MS-COCO captions as prompts, from the annotations that users hold.

One caption a picture of val2017, its longest (the first of these); the first 5,000 in a seeded
order.
"""

import json
from pathlib import Path

import numpy as np

from ciar.errors import InvalidInput
from ciar_bench.quality.folder import Caption

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
    """Prompts of a JSON Lines file, the n-th with seed n; other fields do not count.

    Raises `InvalidInput`, naming the line.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput("captions", str(path), f"give a JSON Lines file: {error}") from error
    found = []
    for number, line in enumerate(lines):
        try:
            prompt = json.loads(line)["prompt"]
        except (ValueError, KeyError, TypeError) as error:
            remedy = f'give an object with "prompt" ({error!r})'
            raise InvalidInput(f"captions, line {number + 1}", line, remedy) from error
        if not isinstance(prompt, str) or not prompt.strip():
            raise InvalidInput(f"captions, line {number + 1}", line, "give a prompt with words")
        found.append(Caption(prompt=prompt, seed=number))
    return found


def write_captions(path: Path, captions: list[dict[str, str]]) -> None:
    """One JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(c, ensure_ascii=False) + "\n" for c in captions))
