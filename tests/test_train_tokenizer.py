"""The tokenizer's codebook in several processes."""

import json
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from ciar.models.vq import VQConfig, VQModel
from ciar_train.images import SceneFolder
from ciar_train.loop import World
from ciar_train.plan import TrainingPlan
from ciar_train.tokenizer import CodeTracker, TokenizerLoss, train_tokenizer

CONFIG = VQConfig(
    codebook_size=32,
    codebook_dim=4,
    channels=8,
    channel_multipliers=(1, 1, 1),
    num_res_blocks=1,
    z_channels=8,
    norm_groups=4,
)
LOSS = TokenizerLoss(dead_below=2.0)  # so that codes move in every step
ALONE = World(0, 1, torch.device("cpu"))


def scene_folder(folder: Path, *, count: int = 16, shard: int = 0) -> SceneFolder:
    """A shard of random pictures of 16 pixels a side with a caption each, as `draw` leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    colors = np.random.default_rng(shard).integers(0, 256, (count, 2, 2, 3), dtype=np.uint8)
    np.save(folder / f"images-{shard:05d}.npy", colors.repeat(8, axis=1).repeat(8, axis=2))
    lines = [json.dumps({"captions": [f"a dog {shard} {i}"]}) for i in range(count)]
    (folder / f"captions-{shard:05d}.jsonl").write_text("\n".join(lines) + "\n")
    return SceneFolder(folder)


def as_one_of_two(rank: int, folder: Path) -> None:
    """Count one batch together, then train; leaves the weights as RANK.pt."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'meeting'}",
        rank=rank,
        world_size=2,
        timeout=timedelta(minutes=1),
    )
    world = World(rank, 2, torch.device("cpu"))
    count_together(world)
    pictures = SceneFolder(folder / "scenes")
    plan = TrainingPlan(steps=4, batch_size=8, lr=1e-2, warmup_steps=1)
    run_folder = folder / f"run-{rank}"
    model = train_tokenizer(
        CONFIG, plan, LOSS, data=pictures, held_out=pictures, run_folder=run_folder, world=world
    )
    torch.save(model.state_dict(), folder / f"{rank}.pt")
    world.leave()


def count_together(world: World) -> None:
    """Codes follow the latents of both processes as those of one that has all of them."""
    torch.manual_seed(0)
    vq = VQModel(CONFIG)
    z, ids = torch.randn(4, 4, 3, 3), torch.randint(32, (4, 3, 3))
    both, one = CodeTracker(vq, LOSS, world), CodeTracker(vq, LOSS, ALONE)
    both.update(z[world.rank :: 2], ids[world.rank :: 2], None)
    one.update(z, ids, None)
    torch.testing.assert_close(both.counts, one.counts)
    torch.testing.assert_close(both.sums, one.sums)


def test_processes_keep_one_codebook(tmp_path: Path) -> None:
    scene_folder(tmp_path / "scenes")
    with get_context("spawn").Pool(2) as pool:
        pool.starmap(as_one_of_two, [(rank, tmp_path) for rank in range(2)], chunksize=1)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())
    start = VQModel(CONFIG).quantize.embedding.weight
    assert not torch.equal(first["quantize.embedding.weight"], start)
