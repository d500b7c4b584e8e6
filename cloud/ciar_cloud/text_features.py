"""`ciar-cloud text-features`: features of prompts, kept for where their encoder is not."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError

from ciar.checkpoint import make_folder
from ciar.errors import InvalidInput
from ciar.models.cached_features import CachedFeatures
from ciar.output_file import output_error
from ciar.text import load_text

BATCH = 16


def read_prompts(path: Path) -> list[str]:
    """A JSON Lines file of objects with `prompt`, or a text file with a prompt a line.

    Raises `InvalidInput`, naming the line.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput("prompts", str(path), f"give a text file: {error}") from error
    prompts = []
    for number, line in enumerate(lines, start=1):
        prompt = line
        if path.suffix == ".jsonl":
            try:
                prompt = json.loads(line)["prompt"]
            except (ValueError, KeyError, TypeError) as error:
                remedy = f'give an object with "prompt" ({error!r})'
                raise InvalidInput(f"prompts, line {number}", line, remedy) from error
        if not isinstance(prompt, str) or not prompt.strip():
            raise InvalidInput(f"prompts, line {number}", line, "give a prompt with words")
        prompts.append(prompt)
    if not prompts:
        raise InvalidInput("prompts", str(path), "give at least one: it is empty")
    return prompts


def write_features(
    text: Path, prompts: Sequence[str], out: Path, *, on_prompts: Callable[[int, int], None]
) -> None:
    """text: the encoder's folder.  out: a folder that can take its place, with float16 rows.

    Raises `OutputError` if nothing can be written there, as far as can be told before any work.
    """
    make_folder(out, field="output")
    encoder, unique = load_text(text), list(dict.fromkeys(prompts))
    rows = []
    for first in range(0, len(unique), BATCH):
        batch = unique[first : first + BATCH]
        rows += [one.to(torch.float16) for one in encoder.encode(batch)]
        on_prompts(len(rows), len(unique))
    try:
        CachedFeatures.save(out, unique, rows, max_tokens=encoder.max_tokens)
    except OSError as error:
        raise output_error(out, error, field="output") from error
    except SafetensorError as error:  # its own word for an OSError
        raise output_error(out, OSError(str(error)), field="output") from error
