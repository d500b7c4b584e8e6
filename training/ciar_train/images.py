"""Drawn pictures on disk, as `ciar-train scenes` leaves them: shards of images beside captions."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ciar.errors import InvalidInput
from ciar_train.gpu import moved
from ciar_train.scenes.dataset import caption_lines

CPU = torch.device("cpu")


class SceneFolder:
    """All shards of a folder, read through memory maps.

    Images come out as float32 [B, 3, H, W] in [-1, 1], channels last in memory, captions as lists
    of alternatives.
    """

    def __init__(self, folder: Path) -> None:
        paths = sorted(folder.glob("images-*.npy"))
        if not paths:
            raise InvalidInput("data", str(folder), "draw pictures first: ciar-train scenes")
        self.folder, self.paths = folder, paths
        self.shards = [np.load(path, mmap_mode="r") for path in paths]
        self.starts = np.cumsum([0] + [len(shard) for shard in self.shards])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def images(self, indices: Tensor, device: torch.device = CPU) -> Tensor:
        shard_of = np.searchsorted(self.starts, indices.numpy(), side="right") - 1
        picks = [
            self.shards[shard][index - self.starts[shard]]
            for shard, index in zip(shard_of, indices.tolist(), strict=True)
        ]
        pixels = moved(torch.from_numpy(np.stack(picks)), device)  # [B, H, W, 3] uint8
        return pixels.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)

    def captions(self) -> list[list[str]]:
        """All captions, image after image. Raises `InvalidInput` unless every image has some."""
        found: list[list[str]] = []
        for path, shard in zip(self.paths, self.shards, strict=True):
            lines = caption_lines(path)
            if len(lines) != len(shard):
                has = f"{path.name} has {len(shard)} pictures and {len(lines)} lines of captions"
                remedy = f"{has}: draw it again with ciar-train scenes"
                raise InvalidInput("data", str(self.folder), remedy)
            found += (json.loads(line)["captions"] for line in lines)
        return found
