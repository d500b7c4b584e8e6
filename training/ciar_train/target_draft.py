"""`ciar-train draft --target MODEL`: an edge model for a target that was made elsewhere.

The target's weights stay as they are, however large: the cloud's half of phi is a file of its own.

    OUT/cloud    the target, with phi.safetensors
    OUT/edge     the draft
    OUT/vq, OUT/text

OUT is MODEL itself, or a folder of links to it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from ciar.checkpoint import (
    CONFIG_FILE,
    PHI_FILE,
    fingerprint,
    make_folder,
    read_config,
    read_sampling,
    write_tensors,
)
from ciar.errors import InvalidInput
from ciar.int8 import pack_state_dict, unpack_state_dict
from ciar.models.inter_head import DraftModel
from ciar.output_file import replacing
from ciar.target import TargetModel
from ciar_train.codes import CodeFolder
from ciar_train.draft_job import DraftJob
from ciar_train.draft_step import TARGET_FILE, write_targets
from ciar_train.eagle import export_eagle, train_eagle
from ciar_train.export import export_draft, is_matrix
from ciar_train.loop import World
from ciar_train.plans import EdgePlan
from ciar_train.progress import Progress

LINKED = ("vq", "text")
INJECTION = "injection.weight"


@dataclass(frozen=True, kw_only=True)
class TargetDraft:
    """model: bundle with the target.  data: what `ciar-train extract` made with it.

    run: keeps the state; an interrupted training goes on.  dtype: of the target's weights.
    is_sharded: share its layers out among the processes.
    """

    model: Path
    data: Path
    plan: EdgePlan
    run: Path
    out: Path
    world: World
    progress: Progress
    dtype: torch.dtype = torch.float32
    is_sharded: bool = False

    def train(self) -> None:
        """The edge, to OUT/edge.

        Raises `InvalidInput` and `CheckpointError` before any work if something does not fit.
        """
        job = self._job()
        trainer = job.run()
        packed = pack_state_dict({INJECTION: trainer.target.injection.weight}, quantize=is_matrix)
        trainer.target.injection.weight.data.copy_(unpack_state_dict(packed)[INJECTION])
        calibration = job.calibration(trainer)
        if self.world.is_main:
            self._write(trainer.draft, packed, calibration)

    def train_eagle(self) -> None:
        """The drafter of EAGLE for the same target, on the same contexts, to OUT/eagle."""
        plan = self.plan.eagle
        if plan is None:
            raise InvalidInput("kind", "eagle", "give a plan that has a table [eagle]")
        if self.is_sharded:
            raise InvalidInput("shard-target", True, "leave it out: EAGLE's drafter has no such")
        job = self._job()
        contexts, held_out = job.contexts()
        model = train_eagle(
            job.target,
            plan,
            self.plan.draft.shape,
            contexts=contexts,
            held_out=held_out,
            run_folder=self.run / "eagle",
            world=self.world,
        )
        if self.world.is_main:
            self._link()
            export_eagle(model, self.out / "eagle")

    def _job(self) -> DraftJob:
        if self.plan.held_out < 1:
            raise InvalidInput("held_out", self.plan.held_out, "give the plan at least one picture")
        codes = self._codes()
        self._check_out()
        self._claim()
        device = "cpu" if self.is_sharded else str(self.world.device)
        target = TargetModel.load(self.model / "cloud", device=device, dtype=self.dtype)
        count = min(self.plan.held_out, len(codes) // 2)
        return DraftJob(
            target=target,
            train=codes.part(slice(None, -count)),
            held_out=codes.part(slice(-count, None)),
            plan=self.plan.draft,
            head=self.plan.head,
            sampling=read_sampling(self.model / "cloud"),
            folder=self.run,
            world=self.world,
            progress=self.progress,
            is_sharded=self.is_sharded,
        )

    def _codes(self) -> CodeFolder:
        if not (self.data / "captions.npy").exists():
            raise InvalidInput("data", str(self.data), "make it first: ciar-train extract")
        codes = CodeFolder(self.data)
        sizes = read_config(self.model / "cloud")
        shape = sizes["transformer"]
        found = {
            "tokens a picture": (codes.tokens.shape[1], int(shape["grid_size"]) ** 2),
            "width of text features": (codes.features.shape[1], int(shape["condition_dim"])),
        }
        for what, (have, wanted) in found.items():
            if have != wanted:
                remedy = f"{what}: {have}, the target has {wanted}: extract with this target"
                raise InvalidInput("data", str(self.data), remedy)
        if self.plan.head.feature_dim != sizes["feature_dim"]:
            raise InvalidInput(
                "feature_dim",
                self.plan.head.feature_dim,
                f"the target has {sizes['feature_dim']}: give the plan the same",
            )
        if len(codes) < 4:
            raise InvalidInput("data", str(self.data), f"{len(codes)} pictures: give four or more")
        return codes

    @property
    def _is_in_place(self) -> bool:
        return self.out.resolve() == self.model.resolve()

    def _check_out(self) -> None:
        make_folder(self.out, field="out")
        there = self.out / "cloud" / CONFIG_FILE
        if self._is_in_place or not there.exists():
            return
        if there.resolve() != (self.model / "cloud" / CONFIG_FILE).resolve():
            raise InvalidInput("out", str(self.out), "holds another model: give another folder")

    def _claim(self) -> None:
        """The run folder is for one target, with its half of phi or without."""
        current, stamp = fingerprint(self.model / "cloud"), self.run / TARGET_FILE
        if stamp.exists() and current not in json.loads(stamp.read_text()):
            raise InvalidInput(
                "run", str(self.run), "holds a draft of another target: give another folder"
            )
        if self.world.is_main and not stamp.exists():
            write_targets(self.run, {current})
        self.world.wait()

    def _link(self) -> None:
        if not self._is_in_place:
            link_files(self.model / "cloud", self.out / "cloud")
            for part in LINKED:
                link(self.model / part, self.out / part)

    def _write(
        self,
        draft: DraftModel,
        injection: Mapping[str, Tensor],
        calibration: Mapping[str, list[float]],
    ) -> None:
        cloud, stamp = self.out / "cloud", self.run / TARGET_FILE
        self._link()
        with replacing(cloud / PHI_FILE) as part:
            write_tensors(part, injection)
            target_print = print_with(cloud, part)
            # Before the cloud has it: an interruption leaves one that the run is known for.
            write_targets(self.run, {*json.loads(stamp.read_text()), target_print})
        export_draft(
            draft,
            self.out / "edge",
            name=str(read_config(cloud).get("name", self.model.name)),
            target_fingerprint=target_print,
            calibration=calibration,
        )


def print_with(cloud: Path, phi: Path) -> str:
    """The fingerprint that a target gets with another half of phi."""
    with TemporaryDirectory(dir=cloud.parent, prefix=".ciar-") as found:
        folder = Path(found)
        link_files(cloud, folder)
        (folder / PHI_FILE).symlink_to(phi)
        return fingerprint(folder)


def link_files(source: Path, out: Path) -> None:
    """Links to all files of a model folder but the half of phi of another draft."""
    out.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.name != PHI_FILE:
            link(path, out / path.name)


def link(source: Path, out: Path) -> None:
    if not out.exists() and source.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        out.symlink_to(source.resolve(), target_is_directory=source.is_dir())
