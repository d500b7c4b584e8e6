"""What the files are, and which parts of a bundle they become."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ciar.checkpoint import CONFIG_FILE, fingerprint, read_config
from ciar.errors import CheckpointError, InvalidInput
from ciar_cloud.convert import llamagen
from ciar_cloud.convert.reader import Tensors, files_of, read_files, sha256_of
from ciar_cloud.convert.writer import MAX_SHARD_BYTES, write_folder

DTYPES = {
    "keep": None,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
CARD = "README.md"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a user may say.

    stage: of a LlamaGen transformer that is no published file.
    grid_size, num_heads: of one that is neither stage nor has heads of 64.
    dtype: to store the transformer in, one of `DTYPES`.
    """

    stage: int | None = None
    grid_size: int | None = None
    num_heads: int | None = None
    dtype: str = "keep"
    max_bytes: int = MAX_SHARD_BYTES

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InvalidInput("dtype", self.dtype, f"give one of {', '.join(DTYPES)}")
        if self.stage and self.grid_size:
            raise InvalidInput("grid-size", self.grid_size, "give a stage or a grid size, not both")


@dataclass(frozen=True, kw_only=True)
class Part:
    """What was written. source: where from.  sha256: of that, if it is one file."""

    folder: Path
    source: Path
    sha256: str
    what: str


def convert(
    sources: Sequence[Path],
    out: Path,
    settings: Settings,
    *,
    on_tensor: Callable[[str], None] = lambda _: None,
) -> list[Part]:
    """Write the parts of a bundle that the sources hold; parts that are there already stay.

    A source is a file, or a folder of safetensors. Raises `InvalidInput`, `CheckpointError`,
    `OutputError`.
    """
    if not sources:
        raise InvalidInput("source", None, "give at least one checkpoint")
    parts = [convert_one(source, out, settings, on_tensor) for source in sources]
    check_codebooks(out)
    write_card(out, parts)
    return parts


def convert_one(
    source: Path, out: Path, settings: Settings, on_tensor: Callable[[str], None]
) -> Part:
    paths = files_of(source)
    tensors: Tensors = read_files(paths)
    sha256 = sha256_of(paths[0]) if len(paths) == 1 else ""
    release = llamagen.RELEASES.get(sha256)
    if llamagen.is_transformer(tensors):
        if llamagen.HF_MARK in tensors:
            tensors = llamagen.from_hf(tensors)
        grid_size, name = settings.grid_size, f"llamagen-{settings.grid_size}"
        if not grid_size:
            configuration = read_json(source / CONFIG_FILE) if source.is_dir() else None
            stage = llamagen.stage_of(
                given=settings.stage, release=release, configuration=configuration
            )
            grid_size, name = llamagen.GRIDS[stage], f"llamagen-t2i-stage{stage}"
        config = llamagen.transformer_config(
            tensors, grid_size=grid_size, num_heads=settings.num_heads
        )
        entries = llamagen.target_entries(tensors, config, DTYPES[settings.dtype])
        values = llamagen.target_configuration(config, name=name)
        folder, what = out / "cloud", f"LlamaGen transformer, {grid_size} x {grid_size} tokens"
    elif llamagen.is_tokenizer(tensors):
        vq, entries = llamagen.tokenizer_entries(tensors)
        values = {"kind": "vq", "vq": asdict(vq)}
        folder, what = out / "vq", f"LlamaGen tokenizer, {vq.codebook_size} codes"
    else:
        names = ", ".join(sorted(tensors)[:3])
        raise CheckpointError(
            f"{source}: none of the checkpoints that are known (it begins with {names}); known are "
            "LlamaGen's text-to-image transformer and its VQ tokenizer"
        )
    write_folder(folder, values, entries, max_bytes=settings.max_bytes, on_tensor=on_tensor)
    return Part(folder=folder, source=source, sha256=sha256, what=what)


def read_json(path: Path) -> dict[str, Any] | None:
    """A configuration beside the weights, if there is one."""
    if not path.exists():
        return None
    try:
        values: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    return values


def check_codebooks(out: Path) -> None:
    """Raise `CheckpointError` if both are there and speak of different codes."""
    if not all((out / part / CONFIG_FILE).exists() for part in ("cloud", "vq")):
        return
    vocab = read_config(out / "cloud")["transformer"]["vocab_size"]
    codes = read_config(out / "vq")["vq"]["codebook_size"]
    if vocab != codes:
        raise CheckpointError(
            f"{out}: the transformer has {vocab} codes and the tokenizer {codes}: "
            "they belong to different models"
        )


def write_card(out: Path, parts: Sequence[Part]) -> None:
    """What was converted from what, and under which licence."""
    lines = [
        "# Converted model",
        "",
        "| part | what | from | SHA-256 |",
        "| --- | --- | --- | --- |",
    ]
    for part in parts:
        name = part.folder.name
        lines.append(f"| `{name}/` | {part.what} | {part.source.name} | {part.sha256} |")
    if (out / "cloud" / CONFIG_FILE).exists():
        lines += ["", f"Fingerprint of `cloud/`: {fingerprint(out / 'cloud')}."]
    lines += ["", f"Licence of the weights: {llamagen.LICENCE}."]
    (out / CARD).write_text("\n".join(lines) + "\n")
