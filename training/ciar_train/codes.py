"""Scenes as a transformer sees them: token grids beside text features, stored once.

    tokens.npy     uint16 [N, T]      raster token ids
    captions.npy   int64 [N, K]       which of the U different captions picture n has
    features.npy   float16 [rows, C]  text features of the different captions, one after another
    starts.npy     int64 [U + 1]      where each of them begins
    source.json                       what tokens and captions were made of

They are read through memory maps. A picture is 512 bytes at T = 256, so a million fit where
thousands of pixel images would.
"""

import hashlib
import json
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ciar.models.text_encoder import TextEncoder
from ciar.models.vq import VQModel
from ciar.output_file import replace_file, replacing
from ciar_train.images import SceneFolder
from ciar_train.progress import Progress, say_nothing

SOURCE_FILE = "source.json"
SOURCES = {
    "pictures": "number of pictures",
    "vq": "tokenizer",
    "text": "text encoder",
}


@dataclass(frozen=True, eq=False)
class Conditions:
    """Left-padded text features of a batch: [B, L, C] float32, and which rows are real: [B, L]."""

    features: Tensor
    mask: Tensor


class CodeFolder:
    """Reads what `write_codes` wrote."""

    tokens: np.ndarray
    captions: np.ndarray

    def __init__(self, folder: Path) -> None:
        self.tokens = read_tokens(folder)
        self.features = np.load(folder / "features.npy", mmap_mode="r")
        self.starts = np.load(folder / "starts.npy")
        self.captions = np.load(folder / "captions.npy")

    @property
    def num_captions(self) -> int:
        return int(self.captions.shape[1])

    def __len__(self) -> int:
        return len(self.tokens)

    def part(self, pictures: slice) -> "CodeFolder":
        """Some of its pictures; they share the features."""
        found = copy(self)
        found.tokens, found.captions = self.tokens[pictures], self.captions[pictures]
        return found

    def first_caption(self, index: int) -> Tensor:
        """Text features [L, C] float16 of a picture."""
        entry = self.captions[index, 0]
        return torch.from_numpy(
            np.array(self.features[self.starts[entry] : self.starts[entry + 1]])
        )

    def token_batch(self, indices: Tensor) -> Tensor:
        """[B, T] int64."""
        return torch.from_numpy(self.tokens[indices.numpy()].astype(np.int64))

    def condition_batch(self, indices: Tensor, captions: Tensor) -> Conditions:
        """Features of caption `captions[i]` of picture `indices[i]`."""
        entries = self.captions[indices.numpy(), captions.numpy()]
        ends = self.starts[entries + 1][:, None]
        lengths = ends[:, 0] - self.starts[entries]
        offsets = np.arange(-lengths.max(), 0)  # [L], from each caption's end
        is_real = offsets >= -lengths[:, None]  # [B, L]
        rows = self.features[np.where(is_real, ends + offsets, 0)]  # [B, L, C] float16
        mask = torch.from_numpy(is_real)
        return Conditions(torch.from_numpy(rows).float() * mask[..., None], mask)


def pad_left(rows: list[Tensor]) -> Conditions:
    """Ragged feature rows [L_i, C] to one left-padded batch."""
    longest = max(len(r) for r in rows)
    features = torch.stack([F.pad(r, (0, 0, longest - len(r), 0)) for r in rows])
    lengths = torch.tensor([len(r) for r in rows])
    return Conditions(features, torch.arange(longest) >= longest - lengths[:, None])


def write_codes(
    scenes: SceneFolder,
    vq: VQModel,
    text: TextEncoder,
    folder: Path,
    *,
    batch_size: int = 64,
    progress: Progress = say_nothing,
) -> CodeFolder:
    """Tokenize pictures and encode captions, unless that was done before.

    What other pictures or another model were used for is made again.
    """
    write_tokens(scenes, vq, folder, batch_size=batch_size, progress=progress)
    source = {"pictures": len(scenes), "text": weights_print(text)}
    if is_to_do(folder, "captions", source):
        features, starts, captions = caption_features(scenes, text, batch_size, progress)
        save(folder / "features.npy", features)
        save(folder / "starts.npy", starts)
        save(folder / "captions.npy", captions)
        note_source(folder, "captions", source)
    return CodeFolder(folder)


def write_tokens(
    scenes: SceneFolder,
    vq: VQModel,
    folder: Path,
    *,
    batch_size: int = 64,
    progress: Progress = say_nothing,
) -> None:
    """Tokenize pictures, unless that was done before for as many and with this tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    of_vq = weights_print(vq.encoder, vq.quant_conv, vq.quantize)  # its decoder may learn on
    source = {"pictures": len(scenes), "vq": of_vq}
    if is_to_do(folder, "tokens", source):
        save(folder / "tokens.npy", picture_tokens(scenes, vq, batch_size, progress))
        note_source(folder, "tokens", source)


def is_to_do(folder: Path, name: str, source: dict[str, Any]) -> bool:
    """Whether NAME.npy has to be made. One that was made of something else is removed first."""
    path, before = folder / f"{name}.npy", read_source(folder).get(name)
    if not path.exists():
        return True
    if before == source:
        return False
    reason = "nothing says what it was made of"
    if before:
        changed = [what for key, what in SOURCES.items() if before.get(key) != source.get(key)]
        reason = f"another {' and '.join(changed)}"
    print(f"{path}: {reason}: made again; what was trained before has learned from the old one")
    path.unlink()
    return True


def read_source(folder: Path) -> dict[str, Any]:
    """What codes were made of; nothing where that is not known."""
    try:
        found = json.loads((folder / SOURCE_FILE).read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def note_source(folder: Path, name: str, source: dict[str, Any]) -> None:
    noted = json.dumps(read_source(folder) | {name: source}, indent=1)
    replace_file(folder / SOURCE_FILE, noted.encode())


def weights_print(*modules: nn.Module) -> str:
    """16 hex digits that change with the weights."""
    digest = hashlib.sha256()
    for name, weight in (pair for module in modules for pair in module.state_dict().items()):
        digest.update(f"{name} {list(weight.shape)}".encode())
        digest.update(weight.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def read_tokens(folder: Path) -> np.ndarray:
    """uint16 [N, T], through a memory map."""
    tokens: np.ndarray = np.load(folder / "tokens.npy", mmap_mode="r")
    return tokens


def save(path: Path, array: np.ndarray) -> None:
    """A file that exists is whole."""
    with replacing(path) as part, part.open("wb") as file:
        np.save(file, array)


@torch.inference_mode()
def picture_tokens(
    scenes: SceneFolder, vq: VQModel, batch_size: int, progress: Progress
) -> np.ndarray:
    device = vq.quantize.embedding.weight.device
    out = []
    for first in range(0, len(scenes), batch_size):
        indices = torch.arange(first, min(first + batch_size, len(scenes)))
        ids = vq.encode(scenes.images(indices, device))
        out.append(ids.flatten(1).cpu().numpy().astype(np.uint16))
        progress(int(indices[-1]) + 1, len(scenes), "tokens")
    return np.concatenate(out)


def caption_features(
    scenes: SceneFolder, text: TextEncoder, batch_size: int, progress: Progress
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of the different captions, where each begins, and which ones each picture has.

    Prompts of like length go together, so that little is padding.
    """
    captions = scenes.captions()
    unique = sorted({c for row in captions for c in row}, key=lambda c: (len(c.split()), c))
    number = {caption: index for index, caption in enumerate(unique)}
    encoded: list[np.ndarray] = []
    lengths: list[int] = []
    for first in range(0, len(unique), batch_size):
        batch = unique[first : first + batch_size]
        rows = text.encode(batch)
        encoded.append(torch.cat(rows).half().cpu().numpy())
        lengths += [len(r) for r in rows]
        progress(first + len(batch), len(unique), "captions")
    starts = np.cumsum([0, *lengths])
    indices = np.array([[number[c] for c in row] for row in captions])
    return np.concatenate(encoded), starts, indices
