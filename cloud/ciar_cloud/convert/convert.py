"""What the files are, and which parts of a bundle they become."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ciar.checkpoint import CONFIG_FILE, fingerprint, make_folder, read_config
from ciar.errors import CheckpointError, InvalidInput
from ciar.models.chameleon import ChameleonConfig
from ciar.output_file import replace_file
from ciar_cloud.bundle import DTYPES as SERVED_DTYPES
from ciar_cloud.convert import anole, llamagen, t5, vq
from ciar_cloud.convert.reader import Tensors, files_of, forget, read_files, sha256_of
from ciar_cloud.convert.target import target_configuration, target_entries
from ciar_cloud.convert.writer import MAX_SHARD_BYTES, write_folder, writing_to

DTYPES: Mapping[str, torch.dtype | None] = {"keep": None, **SERVED_DTYPES}
CARD = "README.md"
CHAMELEON, CHAMELEON_LICENCE = "chameleon", "Chameleon Research License (Meta)"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a user may say.

    stage: of a LlamaGen transformer that is no published file.
    grid_size, num_heads: of one that is neither stage nor has heads of 64.
    dtype: to store the transformer in, one of `DTYPES`.
    accepted: licences that need it: `CHAMELEON`.
    """

    stage: int | None = None
    grid_size: int | None = None
    num_heads: int | None = None
    dtype: str = "keep"
    accepted: frozenset[str] = frozenset()
    max_bytes: int = MAX_SHARD_BYTES

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InvalidInput("dtype", self.dtype, f"give one of {', '.join(DTYPES)}")
        if unknown := sorted(self.accepted - {CHAMELEON}):
            raise InvalidInput("accept-license", unknown[0], f"give {CHAMELEON}, or none")
        if self.stage and self.grid_size:
            raise InvalidInput("grid-size", self.grid_size, "give a stage or a grid size, not both")


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """A file, or a folder. configuration: of the folder.  sha256: of the weights if one file."""

    path: Path
    tensors: Tensors
    configuration: dict[str, Any] | None
    sha256: str

    @classmethod
    def open(cls, path: Path) -> "Source":
        files = files_of(path)
        return cls(
            path=path,
            tensors=read_files(files),
            configuration=read_json(path / CONFIG_FILE) if path.is_dir() else None,
            sha256=sha256_of(files[0]) if len(files) == 1 else "",
        )


@dataclass(frozen=True, kw_only=True)
class Part:
    """What was written. what: in words."""

    folder: Path
    source: Source
    what: str
    licence: str


OnTensor = Callable[[str], None]


def convert(
    sources: Sequence[Path],
    out: Path,
    settings: Settings,
    *,
    on_tensor: OnTensor = lambda _: None,
) -> list[Part]:
    """Write the parts of a bundle that the sources hold; parts that are there already stay.

    A source is a file, or a folder of weights. Raises `InvalidInput`, `CheckpointError`,
    `OutputError`.
    """
    if not sources:
        raise InvalidInput("source", None, "give at least one checkpoint")
    with made(out):
        parts = [convert_one(Source.open(path), out, settings, on_tensor) for path in sources]
        check_codebooks(out)
        write_card(out, parts)
    return parts


@contextmanager
def made(out: Path) -> Iterator[None]:
    """With the folder there, which is known before any checkpoint is read; not if it stays empty.

    Raises `OutputError`.
    """
    is_new = not os.path.exists(out)
    make_folder(out, field="out")
    try:
        yield
    finally:
        if is_new and not any(out.iterdir()):
            out.rmdir()


def convert_one(source: Source, out: Path, settings: Settings, on_tensor: OnTensor) -> Part:
    def forgetting(name: str) -> None:
        forget(source.tensors)
        on_tensor(name)

    for is_kind, convert_kind in KINDS:
        if is_kind(source.tensors):
            return convert_kind(source, out, settings, forgetting)
    names = ", ".join(sorted(source.tensors)[:3])
    raise CheckpointError(
        f"{source.path}: none of the checkpoints that are known (it begins with {names}); known "
        "are the transformers of LlamaGen and Anole, T5, and the VQ tokenizers of LlamaGen and "
        "Chameleon"
    )


def convert_transformer(source: Source, out: Path, settings: Settings, on_tensor: OnTensor) -> Part:
    tensors = source.tensors
    if llamagen.HF_MARK in tensors:
        tensors = llamagen.from_hf(tensors)
    grid_size, name = settings.grid_size, f"llamagen-{settings.grid_size}"
    if not grid_size:
        stage = llamagen.stage_of(
            given=settings.stage,
            release=llamagen.RELEASES.get(source.sha256),
            configuration=source.configuration,
        )
        grid_size, name = llamagen.GRIDS[stage], f"llamagen-t2i-stage{stage}"
    config = llamagen.transformer_config(tensors, grid_size=grid_size, num_heads=settings.num_heads)
    write_folder(
        out / "cloud",
        target_configuration(config, name=name, sampling=llamagen.SAMPLING),
        target_entries(tensors, config, DTYPES[settings.dtype]),
        max_bytes=settings.max_bytes,
        on_tensor=on_tensor,
    )
    what = f"LlamaGen transformer, {grid_size} x {grid_size} tokens"
    return Part(folder=out / "cloud", source=source, what=what, licence=llamagen.LICENCE)


def convert_tokenizer(source: Source, out: Path, settings: Settings, on_tensor: OnTensor) -> Part:
    if vq.is_llamagen(source.tensors):
        name, licence = "LlamaGen", llamagen.LICENCE
        config, entries = vq.llamagen_entries(source.tensors)
    else:
        check_accepted(settings, source.path)
        name, licence = "Chameleon", CHAMELEON_LICENCE
        config, entries = vq.chameleon_entries(source.tensors)
    write_folder(
        out / "vq",
        {"kind": "vq", "vq": asdict(config)},
        entries,
        max_bytes=settings.max_bytes,
        on_tensor=on_tensor,
    )
    what = f"{name} tokenizer, {config.codebook_size} codes"
    return Part(folder=out / "vq", source=source, what=what, licence=licence)


def check_accepted(settings: Settings, path: Path) -> None:
    """Raise `InvalidInput` unless the user has accepted the licence of Chameleon's weights."""
    if CHAMELEON not in settings.accepted:
        raise InvalidInput(
            "accept-license",
            None,
            f"{path} is under the {CHAMELEON_LICENCE}: its weights, and the pictures drawn with "
            "them, may be used for non-commercial research only, and passed on only under it with "
            f"its notice. If you have read and accept it, give --accept-license {CHAMELEON}",
        )


def convert_anole(source: Source, out: Path, settings: Settings, on_tensor: OnTensor) -> Part:
    """Target and prompts; the tokenizer of pictures too where its decoder is in the files."""
    check_accepted(settings, source.path)
    folder = source.path if source.path.is_dir() else source.path.parent
    vocabulary = anole.read_vocabulary(source.configuration, folder)
    config = anole.sizes(
        source.tensors,
        vocabulary,
        grid_size=settings.grid_size or ChameleonConfig.grid_size,
        num_heads=settings.num_heads,
    )
    renamed = anole.renamed(source.tensors, config, vocabulary)
    entries = target_entries(renamed, config, DTYPES[settings.dtype])
    anole.write_prompts(
        source.tensors, config, vocabulary, folder, out / "text", on_tensor=on_tensor
    )
    write_folder(
        out / "cloud",
        target_configuration(config, name="anole", sampling=anole.SAMPLING),
        entries,
        max_bytes=settings.max_bytes,
        on_tensor=on_tensor,
    )
    if f"{vq.PREFIX}{vq.DECODER_MARK}" in source.tensors:
        convert_tokenizer(source, out, settings, on_tensor)
    what = f"Chameleon transformer (Anole), {config.grid_size} x {config.grid_size} tokens"
    return Part(folder=out / "cloud", source=source, what=what, licence=CHAMELEON_LICENCE)


def convert_text(source: Source, out: Path, settings: Settings, on_tensor: OnTensor) -> Part:
    if source.configuration is None:
        raise CheckpointError(
            f"{source.path}: no {CONFIG_FILE} beside it: give the folder of the whole model"
        )
    width = t5.write_encoder(
        source.tensors,
        source.configuration,
        source.path,
        out / "text",
        max_bytes=settings.max_bytes,
        on_tensor=on_tensor,
    )
    what = f"T5 encoder of width {width}"
    return Part(folder=out / "text", source=source, what=what, licence=t5.LICENCE)


Convert = Callable[[Source, Path, Settings, OnTensor], Part]
KINDS: tuple[tuple[Callable[[Tensors], bool], Convert], ...] = (
    (llamagen.is_transformer, convert_transformer),
    (anole.is_transformer, convert_anole),
    (vq.is_llamagen, convert_tokenizer),
    (vq.is_chameleon, convert_tokenizer),
    (t5.is_encoder, convert_text),
)


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
    heads = ("part", "what", "from", "SHA-256", "licence")
    rows = [
        (f"`{p.folder.name}/`", p.what, p.source.path.name, p.source.sha256, p.licence)
        for p in parts
    ]
    lines = ["# Converted model", ""]
    lines += [f"| {' | '.join(row)} |" for row in (heads, ("---",) * len(heads), *rows)]
    if (out / "cloud" / CONFIG_FILE).exists():
        lines += ["", f"Fingerprint of `cloud/`: {fingerprint(out / 'cloud')}."]
    with writing_to(out):
        replace_file(out / CARD, ("\n".join(lines) + "\n").encode())
