"""Tables from a tiny bundle: drawn once, gone on with, measured again only after a change."""

import csv
import json
import shutil
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from ciar.checkpoint import CONFIG_FILE, read_config
from ciar.errors import CheckpointError, InvalidInput
from ciar_bench.cli import app
from ciar_bench.methods.costs import Costs
from ciar_bench.quality.bootstrap import Estimate
from ciar_bench.quality.coco import read_captions
from ciar_bench.quality.folder import Caption, PictureFolder
from ciar_bench.quality.instruments import make_instruments
from ciar_bench.quality.measures import Scores
from ciar_bench.quality.report import Instruments
from ciar_bench.quality.scenes import DrawnScenes
from ciar_bench.routing import CEILING, DIFFERS, IMAGE, RANDOM, watch_bundle
from ciar_bench.tables import building, cells, drawing, measuring, timing
from ciar_bench.tables import cli as tables_cli
from ciar_bench.tables.building import TablePlan, build, build_risk, check, plan_routing, title_of
from ciar_bench.tables.cells import Cell, begin, missing, read_record
from ciar_bench.tables.contents import FLOOR, QUALITY, TABLES, Contents, Row
from ciar_bench.tables.drawing import draw_cells
from ciar_bench.tables.measuring import measure_cell
from ciar_bench.tables.risk import SHARES, risk_curves, risks_at
from ciar_bench.tables.timing import Timings, measure_timings
from ciar_bench.tables.writing import markdown_table, quality_columns, write_csv
from ciar_edge.models import EdgeModel, load_draft_model
from tests.tiny import write_bundle, write_eagle

COUNT, TIMED = 16, 4
SIDE = 8  # pixels
SMALL = Contents(
    title="Small",
    rows=(Row("Base AR", "base"), Row("CIAR, U", "interval-u"), Row("CoDe", "code")),
    quality=("FD-*", "disagreement"),
    costs=("speedup", "speedup, RTT 20 ms", "edge_ms", "calls"),
    sheets=("CoDe",),
)


class ToyFeatures:
    """Means of six parts of a picture."""

    name, label, width, fingerprint = "toy", "toy", 6, "1"

    def __call__(self, pictures: Tensor) -> Tensor:
        means: Tensor = pictures.float().reshape(len(pictures), 6, -1).mean(-1)
        return means


class NounCount:
    """A stand-in for a scorer: how many nouns a prompt has."""

    extractor, fingerprint = ToyFeatures(), "n"

    def score(self, features: Tensor, captions: Sequence[Caption]) -> dict[str, Scores]:
        counts = np.array([float(len(caption.nouns)) for caption in captions])
        return {"nouns": Scores(np.arange(len(captions)), counts)}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> TablePlan:
    root = tmp_path_factory.mktemp("tables")
    scenes = root / "scenes"
    scenes.mkdir()
    rng = np.random.default_rng(0)
    np.save(scenes / "images-00000.npy", rng.integers(0, 256, (24, SIDE, SIDE, 3), dtype=np.uint8))
    words = ("cat", "dog")
    lines = [
        {"captions": [f"a {words[i % 2]} on the beach"], "nouns": [words[i % 2]], "place": "beach"}
        for i in range(24)
    ]
    (scenes / "captions-00000.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    drawn = DrawnScenes(scenes)
    return TablePlan(
        out=root / "out",
        model=write_bundle(root / "model"),
        captions=drawn.captions[:COUNT],
        source="toy scenes",
        reference=drawn,
        instruments=Instruments(extractors=[ToyFeatures()]),
        num_workers=1,
        num_timed=TIMED,
    )


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(TABLES, "small", lambda _: SMALL)
    monkeypatch.setattr(building, "FIGURE_QUALITY", ("FD-*",))
    yield


def is_picture(path: Path) -> bool:
    with Image.open(path) as image:
        return min(image.size) > 50


def times(folder: Path, pattern: str) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob(pattern))}


@pytest.mark.usefixtures("small")
def test_a_table_is_built_and_kept(plan: TablePlan) -> None:
    table = build("small", plan)
    rows = dict(table.rows)
    assert list(rows) == ["Base AR", "CIAR, U", "CoDe"]
    assert rows["Base AR"]["calls"].value == 1
    assert rows["Base AR"]["speedup"].value == 1
    assert rows["Base AR"]["edge_ms"].value < rows["CIAR, U"]["edge_ms"].value
    assert rows["Base AR"]["disagreement"].value == 0
    assert rows["CoDe"]["calls"].value == round(0.3 * 16) / 16
    assert 0 < rows["CIAR, U"]["calls"].value < 1
    assert rows["CIAR, U"]["FD-toy / base"].value > 0
    assert "FD-toy / base" not in rows["Base AR"]
    assert table.floor["FD-toy / base"].value > 0
    assert table.floor["FD-toy"].value > 0
    assert table.floor["disagreement"].value > 0.2  # other seeds, other pictures
    with (plan.out / "small.csv").open() as file:
        found = list(csv.DictReader(file))
    assert [row["method"] for row in found] == [*rows, FLOOR]
    assert float(found[2]["calls"]) == rows["CoDe"]["calls"].value
    text = (plan.out / "small.md").read_text()
    quality, costs = text.split("## Costs")
    assert "| CoDe |" in quality and "| CoDe |" in costs
    assert f"| {FLOOR} |" in quality and f"| {FLOOR} |" not in costs
    assert f"{COUNT} captions of toy scenes, seeds 0 to 15, times of the first {TIMED};" in text
    assert is_picture(plan.out / "small-wall.jpg")
    assert is_picture(plan.out / "small-map-ciar-u.jpg")
    assert is_picture(plan.out / "small-fd-toy-base.png")
    assert is_picture(plan.out / "small-sheet-code.jpg")

    before = times(plan.cells, "*.json") | times(plan.cells, "*.png")
    build("small", plan)
    assert times(plan.cells, "*.json") | times(plan.cells, "*.png") == before


@pytest.mark.usefixtures("small")
def test_an_interrupted_cell_goes_on(plan: TablePlan) -> None:
    folder = build("small", plan).folders["CoDe"]
    first = read_record(folder, 3)
    (folder / "00003.json").unlink()
    before = times(folder, "0*.png")
    build("small", plan)
    changed = {path.name for path, time in times(folder, "0*.png").items() if before[path] != time}
    assert changed == {"00003.png"}
    assert read_record(folder, 3).image.tokens == first.image.tokens


def test_another_model_is_another_cell(plan: TablePlan, tmp_path: Path) -> None:
    other = write_bundle(tmp_path / "other", seed=1)
    cells = [Cell("interval", plan.model), Cell("interval", other), Cell("code", plan.model)]
    assert len({cell.folder(plan.cells) for cell in cells}) == 3
    assert Cell("interval", plan.model).folder(plan.cells) == cells[0].folder(plan.cells)


def test_a_drafter_of_eagle_changes_only_its_own_cells(plan: TablePlan, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path)
    cells = [Cell("interval", bundle), Cell("lantern", bundle)]
    before = [cell.inputs for cell in cells]
    (bundle / "eagle").mkdir()
    for name in ("config.json", "model.safetensors"):
        (bundle / "eagle" / name).write_bytes((bundle / "edge" / name).read_bytes())
    after = [cell.inputs for cell in cells]
    assert before[0] == after[0]
    assert before[1] != after[1]


def write_config(folder: Path, **values: Any) -> None:
    """Change some of the values in a model folder's configuration."""
    (folder / CONFIG_FILE).write_text(json.dumps(read_config(folder) | values))


@pytest.mark.parametrize(
    ("method", "is_its_own"),
    [
        ("interval", True),
        ("interval:wavefront=5", True),
        ("exact", True),
        ("code", True),
        ("never", True),
        ("base", False),
        ("jacobi", False),
        ("wavefront:window=5", False),
        ("eagle-1", False),
        ("eagle-2", False),
        ("lantern", False),
        ("lantern++", False),
    ],
)
def test_another_edge_changes_only_the_cells_that_draw_with_it(
    method: str, is_its_own: bool, tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path)
    before = Cell(method, bundle).inputs
    write_config(bundle / "edge", name="trained again")
    between = Cell(method, bundle).inputs
    write_config(bundle / "edge", calibration={})
    after = Cell(method, bundle).inputs
    assert (before != between) is (between != after) is is_its_own
    for part in ("cloud", "vq", "text"):
        write_config(bundle / part, name="another")
        assert Cell(method, bundle).inputs != after


@pytest.mark.parametrize("twin", ["code:share=0.3", "code:is_last=false"])
def test_two_spellings_are_one_cell(twin: str, plan: TablePlan, tmp_path: Path) -> None:
    one, other = Cell("code", plan.model), Cell(twin, plan.model)
    assert (one, one.folder(tmp_path)) == (other, other.folder(tmp_path))
    rows = (Row("Base AR", "base"), Row("CoDe", "code"), Row("first 30 %", twin))
    drawn = [plan.cell(row.method) for row in rows]
    timings = measure_timings(drawn, plan.captions, tmp_path, num_prompts=2)
    assert [cell.method for cell in drawn[1:]] == ["code", "code"]
    assert len(timings.costs["code"]) == 2


def test_models_of_equal_parts_share_their_pictures(plan: TablePlan, tmp_path: Path) -> None:
    copy = shutil.copytree(plan.model, tmp_path / "copy")
    twins = [Cell("code:share=0", model) for model in (plan.model, copy)]
    drawn: list[tuple[int, int]] = []
    folders = draw_cells(
        twins,
        tmp_path,
        plan.captions[:2],
        num_workers=1,
        progress=lambda done, total, _: drawn.append((done, total)),
    )
    assert drawn == [(2, 2)]
    assert len(set(folders.values())) == 1
    assert set(folders) == set(twins)


def test_more_captions_add_to_a_cell(plan: TablePlan, tmp_path: Path) -> None:
    cell, captions = Cell("code:share=0", plan.model), plan.captions
    (folder,) = draw_cells([cell], tmp_path, captions[:2], num_workers=1).values()
    before = times(folder, "0*.json")
    draw_cells([cell], tmp_path, captions[:4], num_workers=1)
    after = times(folder, "0*.json")
    assert len(after) == 4
    assert before.items() <= after.items()
    assert len((folder / "pictures.jsonl").read_text().splitlines()) == 4


def test_several_processes_draw_what_one_does(plan: TablePlan, tmp_path: Path) -> None:
    cell, captions = Cell("interval", plan.model), plan.captions[:6]
    alone, together = (
        draw_cells([cell], tmp_path / str(n), captions, num_workers=n)[cell] for n in (1, 2)
    )
    for index in range(6):
        images = [read_record(folder, index).image for folder in (alone, together)]
        assert images[0].tokens == images[1].tokens


class WatchedPool(ThreadPoolExecutor):
    """Threads instead of processes; `tasks_may_end` once the pool shuts down."""

    tasks_may_end = threading.Event()

    def __init__(self, num_workers: int, **_: object) -> None:
        super().__init__(num_workers)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait=False, cancel_futures=cancel_futures)
        self.tasks_may_end.set()
        super().shutdown(wait=wait)


def test_an_error_does_not_wait_for_what_has_not_begun(
    plan: TablePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []

    def draw_some(*task: object) -> int:
        begun.append(task)
        if len(begun) == 1:
            raise InvalidInput("picture", 0, "draw another")
        assert WatchedPool.tasks_may_end.wait(60)
        return 1

    monkeypatch.setattr(drawing, "ProcessPoolExecutor", WatchedPool)
    monkeypatch.setattr(drawing, "draw_some", draw_some)
    monkeypatch.setattr(drawing, "PICTURES_PER_TASK", 1)
    with pytest.raises(InvalidInput, match="draw another"):
        draw_cells([Cell("base", plan.model)], tmp_path, plan.captions, num_workers=2)
    assert len(begun) <= 3  # of 16: both threads were busy


def test_an_interrupted_picture_is_missing(
    plan: TablePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another picture of the caption was there: its tokens are not those of the new one."""
    cell, captions = Cell("code:share=0", plan.model), plan.captions[:2]
    (folder,) = draw_cells([cell], tmp_path, captions, num_workers=1).values()

    def stop_behind(path: Path, *_: object) -> None:
        path.write_bytes(b"another picture")
        raise KeyboardInterrupt

    monkeypatch.setattr(cells, "save_picture", stop_behind)
    others = [captions[0], replace(captions[1], seed=9)]
    with pytest.raises(KeyboardInterrupt):
        draw_cells([cell], tmp_path, others, num_workers=1)
    assert missing(folder, captions) == missing(folder, others) == [1]


def test_a_picture_of_another_caption_is_missing(plan: TablePlan, tmp_path: Path) -> None:
    cell, captions = Cell("code:share=0", plan.model), plan.captions[:2]
    (folder,) = draw_cells([cell], tmp_path, captions, num_workers=1).values()
    assert missing(folder, captions) == []
    assert missing(folder, [captions[0], replace(captions[1], prompt="a cow")]) == [1]
    (folder / "inputs.json").write_text("{}")
    assert begin(cell, tmp_path) == folder
    assert missing(folder, captions) == [0, 1]


def test_a_cell_of_another_version_is_missing(
    plan: TablePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell, captions = Cell("code:share=0", plan.model), plan.captions[:2]
    draw_cells([cell], tmp_path, captions, num_workers=1)
    assert missing(begin(cell, tmp_path), captions) == []
    monkeypatch.setattr(cells, "VERSION", cells.VERSION + 1)
    assert missing(begin(cell, tmp_path), captions) == [0, 1]


def test_a_cell_of_another_calibration_is_missing(plan: TablePlan, tmp_path: Path) -> None:
    cell, captions = Cell("interval", plan.model), plan.captions[:2]
    config_path = plan.model / "edge" / CONFIG_FILE
    text = config_path.read_text()
    config = json.loads(text)
    draw_cells([cell], tmp_path, captions, num_workers=1)
    assert missing(begin(cell, tmp_path), captions) == []
    config["calibration"]["interval"] = [0.5 * q for q in config["calibration"]["interval"]]
    config_path.write_text(json.dumps(config))
    try:
        assert missing(begin(cell, tmp_path), captions) == [0, 1]
    finally:
        config_path.write_text(text)


def test_the_index_has_the_prompts_of_as_many_other_captions(
    plan: TablePlan, tmp_path: Path
) -> None:
    cell, captions = Cell("code:share=0", plan.model), plan.captions[:2]
    draw_cells([cell], tmp_path, captions, num_workers=1)
    others = [replace(caption, prompt="a beach") for caption in captions]
    (folder,) = draw_cells([cell], tmp_path, others, num_workers=1).values()
    assert PictureFolder(folder).captions == tuple(others)


def test_other_captions_of_the_same_pictures_are_measured_again(
    plan: TablePlan, tmp_path: Path
) -> None:
    cell, captions = Cell("code:share=0", plan.model), plan.captions[:2]
    instruments = Instruments(scorers=[NounCount()])
    for nouns in ((), ("cat",), ("cat", "dog")):
        asked = [replace(caption, nouns=nouns) for caption in captions]
        (folder,) = draw_cells([cell], tmp_path, asked, num_workers=1).values()
        found = measure_cell(folder, folder, plan.reference, instruments)
        assert found["nouns"].value == len(nouns)


@pytest.fixture
def floor(plan: TablePlan, tmp_path: Path) -> tuple[list[Path], Instruments]:
    """Two folders of few pictures, and what to measure them with."""
    sets = [Cell("code:share=0", plan.model, again) for again in (0, 1)]
    folders = draw_cells(sets, tmp_path, plan.captions[:4], num_workers=1)
    return list(folders.values()), Instruments(scorers=[NounCount()])


def test_a_damaged_file_of_numbers_is_measured_again(
    plan: TablePlan, floor: tuple[list[Path], Instruments]
) -> None:
    (base, again), instruments = floor
    expected = measure_cell(base, base, plan.reference, instruments)
    noise = measuring.measure_floor(again, base, plan.reference, instruments)
    kept = base / measuring.KEPT, again / measuring.KEPT_FLOOR
    whole = [path.read_bytes() for path in kept]
    for damaged in (whole[0][:100], b"", b"\xff\xfe", b"[]", b"{}"):
        for path in kept:
            path.write_bytes(damaged)
        assert measure_cell(base, base, plan.reference, instruments) == expected
        assert measuring.measure_floor(again, base, plan.reference, instruments) == noise
        assert [path.read_bytes() for path in kept] == whole


def test_numbers_of_another_version_are_measured_again(
    plan: TablePlan, floor: tuple[list[Path], Instruments], monkeypatch: pytest.MonkeyPatch
) -> None:
    (base, again), instruments = floor

    def measured() -> list[bool]:
        """Whether each file was written again."""
        paths = base / measuring.KEPT, again / measuring.KEPT_FLOOR
        before = [path.stat().st_ino if path.exists() else 0 for path in paths]
        measure_cell(base, base, plan.reference, instruments)
        measuring.measure_floor(again, base, plan.reference, instruments)
        return [path.stat().st_ino != one for path, one in zip(paths, before, strict=True)]

    assert measured() == [True, True]
    assert measured() == [False, False]
    monkeypatch.setattr(measuring, "VERSION", measuring.VERSION + 1)
    assert measured() == [True, True]


def test_a_damaged_file_of_times_is_measured_again(
    plan: TablePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []

    def time_all(*_: object, **__: object) -> dict[str, list[Costs]]:
        runs.append(1)
        return {"base": [Costs(cloud_seconds=2)]}

    monkeypatch.setattr(timing, "time_all", time_all)
    cell = Cell("base", plan.model)
    for expected in (1, 1):
        measure_timings([cell], plan.captions, tmp_path)
        assert len(runs) == expected
    (path,) = tmp_path.glob("timings-*.json")
    path.write_bytes(path.read_bytes()[:-5])
    found = measure_timings([cell], plan.captions, tmp_path)
    assert (len(runs), found.costs["base"][0].cloud_seconds) == (2, 2)


def test_the_inputs_of_a_cell_are_written_as_a_whole(
    plan: TablePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a cell is never begun anew because its stamp was cut off."""
    written = []
    monkeypatch.setattr(cells, "replace_file", lambda path, data: written.append((path, data)))
    folder = begin(Cell("base", plan.model), tmp_path)
    assert [path for path, _ in written] == [folder / cells.INPUTS]
    assert list(folder.iterdir()) == []


def test_a_further_set_has_seeds_of_its_own(plan: TablePlan) -> None:
    captions = plan.captions
    again = Cell("base", plan.model, 1).captions(captions)
    assert not {c.seed for c in captions} & {c.seed for c in again}
    assert [c.prompt for c in captions] == [c.prompt for c in again]


def test_a_table_names_the_model_and_the_variant(plan: TablePlan, tmp_path: Path) -> None:
    name = title_of(plan.model)
    assert name == read_config(plan.model / "cloud")["name"]
    assert title_of(write_bundle(tmp_path / "run" / "bundle")) == name
    variant = write_bundle(tmp_path / "run" / "variants" / "plain" / "bundle")
    assert title_of(variant) == f"{name}, draft `plain`"


def test_losses_need_their_variants(plan: TablePlan) -> None:
    with pytest.raises(InvalidInput, match="variants"):
        build("losses", plan)


def test_a_drafter_of_eagle_is_missed_before_anything_is_drawn(
    plan: TablePlan, tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path)
    check("card", replace(plan, model=bundle))
    with pytest.raises(CheckpointError, match="--kind eagle"):
        check("main", replace(plan, model=bundle))
    write_eagle(bundle)
    check("main", replace(plan, model=bundle))


def test_a_calibration_is_missed_before_anything_is_drawn(plan: TablePlan, tmp_path: Path) -> None:
    rows = TABLES["losses"](load_draft_model(plan.model / "edge")).rows
    trained = sorted({row.variant for row in rows} - {""})
    bundles = [write_bundle(tmp_path / name / "bundle") for name in trained]
    whole = replace(plan, model=write_bundle(tmp_path / "bundle"), variants=tmp_path)
    check("risk", whole)
    check("losses", whole)
    write_config(whole.model / "edge", calibration={"entropy": [0.01 * i for i in range(101)]})
    with pytest.raises(InvalidInput, match="interval.*ciar-train draft"):
        check("risk", whole)
    with pytest.raises(InvalidInput, match="interval.*ciar-train draft"):
        watch_bundle(whole.model, ["a cat"], share=0.3)
    check("losses", whole)
    write_config(bundles[-1] / "edge", calibration={})
    with pytest.raises(InvalidInput, match="interval.*ciar-train draft"):
        check("losses", whole)


def test_rollouts_of_another_calibration_share_or_version_are_made_anew(
    plan: TablePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, Tensor]] = []

    def watch(*_: object, **__: object) -> dict[str, Tensor]:
        made.append({IMAGE: torch.tensor([len(made)])})
        return made[-1]

    monkeypatch.setattr(building, "watch_bundle", watch)
    model = write_bundle(tmp_path / "bundle")
    plan = replace(plan, out=tmp_path / "out", model=model)

    def number() -> int:
        return int(plan_routing(plan, model)[IMAGE])

    assert [number(), number()] == [0, 0]
    write_config(model / "edge", calibration={"interval": [0.01 * i for i in range(101)]})
    assert [number(), number()] == [1, 1]
    write_config(model / "vq", name="another")  # rollouts are never painted
    assert number() == 1
    monkeypatch.setattr(building, "DEFAULT_BUDGET", 0.5)
    assert [number(), number()] == [2, 2]
    monkeypatch.setattr(building, "ROLLOUTS", building.ROLLOUTS + 1)
    assert [number(), number()] == [3, 3]


def test_a_variant_may_be_the_model_itself(
    plan: TablePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = (Row("Base AR", "base"), Row("start; width", "interval", "plain"))
    contents = Contents(
        title="Losses",
        rows=rows,
        quality=("disagreement",),
        costs=(),
        routing=("AUROC, the draws differ",),
    )
    monkeypatch.setitem(TABLES, "losses", lambda _: contents)
    model = write_bundle(tmp_path / "plain" / "bundle")
    found = dict(build("losses", replace(plan, model=model, variants=tmp_path)).rows)
    assert 0 <= found["start; width"]["AUROC, the draws differ"].value <= 1
    assert "AUROC, the draws differ" not in found["Base AR"]


@pytest.mark.parametrize("name", TABLES)
def test_every_row_names_a_method_once(name: str, plan: TablePlan) -> None:
    edge: EdgeModel = load_draft_model(plan.model / "edge")
    contents = TABLES[name](edge)
    keys = [(row.method, row.variant) for row in contents.rows]
    assert contents.rows[0].method == "base"
    assert len(set(keys)) == len(keys)
    assert len({row.label for row in contents.rows}) == len(keys)
    for row in contents.rows:
        assert Cell(row.method, plan.model).inputs["method"]


# Risk


def test_risk_counts_what_differs_and_was_kept() -> None:
    scores = torch.tensor([0.4, 0.1, 0.3, 0.2])
    differs = torch.tensor([1.0, 0.0, 1.0, 1.0])
    assert risks_at(scores, differs, [0.0, 0.25, 0.5, 1.0]) == [0.75, 0.5, 0.25, 0.0]


def test_the_score_that_knows_leaves_the_least() -> None:
    generator = torch.Generator().manual_seed(0)
    tv = torch.rand(400, generator=generator)
    values = {
        "entropy": tv + 0.5 * torch.rand(400, generator=generator),
        RANDOM: torch.rand(400, generator=generator),
        CEILING: tv,
        DIFFERS: (torch.rand(400, generator=generator) < tv).float(),
        IMAGE: torch.arange(400) // 20,
    }
    found = {one.score: one for one in risk_curves(values)}
    assert list(found) == ["entropy", RANDOM, CEILING]
    at = {name: one.risks[0.3].value for name, one in found.items()}
    assert at[CEILING] < at["entropy"] < at[RANDOM]
    assert found[CEILING].aurocs["TV above its median"].value == 1
    for one in found.values():
        risks = [one.risks[share].value for share in SHARES]
        assert risks == sorted(risks, reverse=True)
        assert one.risks[0.3].low <= one.risks[0.3].value <= one.risks[0.3].high


def test_the_risk_table_is_written(plan: TablePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "risk_curves", lambda values, **_: risk_curves(values)[:3])
    build_risk(plan)
    text = (plan.out / "risk.md").read_text()
    assert "AUROC" in text
    assert f"{COUNT} captions of toy scenes, seeds 0 to 15;" in text  # it has no times
    assert is_picture(plan.out / "risk.png")


# Timings and writing


def test_speedups_compare_images_of_one_prompt() -> None:
    def costs(seconds: float, trips: int) -> Costs:
        return Costs(cloud_seconds=seconds, round_trips=trips)

    timings = Timings(
        machine="m",
        costs={"base": [costs(2, 1), costs(4, 1)], "fast": [costs(1, 11), costs(2, 11)]},
    )
    assert timings.speedup("fast").value == 2
    assert timings.speedup("base").value == 1
    assert timings.speedup("fast", rtt=1).value == pytest.approx((3 / 12 + 5 / 13) / 2)


def test_bytes_take_their_time_on_a_link() -> None:
    costs = Costs(
        cloud_seconds=1, edge_seconds=2, round_trips=3, uplink_bytes=40, downlink_bytes=10
    )
    assert costs.latency(rtt=0.5) == 4.5
    assert costs.latency(rtt=0.5, bandwidth=10) == 9.5
    timings = Timings(
        machine="m", costs={"base": [costs] * 2, "small": [Costs(cloud_seconds=4)] * 2}
    )
    assert timings.speedup("small", rtt=0.5, bandwidth=10).value == pytest.approx(9.5 / 4)


def test_columns_of_quality_are_those_that_were_measured() -> None:
    one = Estimate(1, 1, 1)
    measured = (
        "FID",
        "FID / base",
        "CMMD-ViT-B-32",
        "CMMD-ViT-B-32 - base",
        "F1-Inception",
        "calls",
    )
    rows = [("a", dict.fromkeys(measured, one)), ("b", {"disagreement": one, "HPSv2": one})]
    assert quality_columns(rows, QUALITY) == [
        "FID",
        "FID / base",
        "F1-Inception",
        "CMMD-ViT-B-32",
        "CMMD-ViT-B-32 - base",
        "HPSv2",
        "disagreement",
    ]


def test_numbers_are_shown_with_their_ends(tmp_path: Path) -> None:
    rows = [
        ("a", {"calls": Estimate(0.3, 0.28, 0.321), "uplink_bytes": Estimate(2048, 2048, 2048)}),
        ("b", {"calls": Estimate(1, 1, 1), "risk at 30.0%": Estimate(2e-4, 1e-4, 3e-4)}),
    ]
    columns = ("FID", "calls", "uplink_bytes", "risk at 30.0%")
    paired = [("c", {"place-top1 - base": Estimate(-0.02, -0.04, 0)})]
    shown = markdown_table([*rows, *paired], ["place-top1 - base"]).splitlines()
    assert shown[2:] == ["| c | -2.00 points (-4.00 to 0.00) |"]
    lines = markdown_table(rows, columns).splitlines()
    assert lines[0] == "|  | calls | up, KiB | risk at 30.0% |"
    assert lines[2] == "| a | 30.0 % (28.0 to 32.1) | 2.00 |  |"
    assert lines[3] == "| b | 100 % |  | 0.020 % (0.010 to 0.030) |"
    write_csv(tmp_path / "t.csv", rows, columns)
    assert (tmp_path / "t.csv").read_text().splitlines()[2] == "b,1,1,1,,,,0.0002,0.0001,0.0003"


# The command, with prompts and photographs instead of scenes


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "val"
    folder.mkdir()
    rng = np.random.default_rng(1)
    for index in range(20):
        pixels = rng.integers(0, 256, (12, 18, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.jpg")
    return folder


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "captions.jsonl"
    lines = [json.dumps({"prompt": f"a cat of {i}", "file": f"{i}.jpg"}) for i in range(20)]
    path.write_text("\n".join(lines))
    return path


def test_a_table_of_prompts_and_photographs(
    plan: TablePlan, photographs: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TABLES, "small", lambda _: SMALL)
    monkeypatch.setattr(tables_cli, "NAMES", ("small",))
    toy = Instruments(extractors=[ToyFeatures()])
    monkeypatch.setattr(tables_cli, "make_instruments", lambda **_: toy)
    out = prompts.parent / "out"
    options = ["--captions", str(prompts), "--reference", str(photographs), "--size", "8"]
    options += ["--model", str(plan.model), "--out", str(out), "--count", "16", "--workers", "1"]
    done = CliRunner().invoke(app, ["table", "small", *options])
    assert done.exit_code == 0, done.output
    text = (out / "small.md").read_text()
    assert "16 captions of captions.jsonl, seeds 0 to 15" in text
    assert "FD-toy" in text
    assert (photographs / "features-toy-8.npy").exists()


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("main", CheckpointError, "--kind eagle"),
        ("all", InvalidInput, "variants"),
        ("losses", InvalidInput, "variants"),
    ],
)
def test_a_table_says_what_is_missing_before_it_draws(
    name: str,
    error: type[Exception],
    words: str,
    plan: TablePlan,
    photographs: Path,
    prompts: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built: list[str] = []
    monkeypatch.setattr(tables_cli, "NAMES", ("card", "main", "losses", "risk"))
    monkeypatch.setattr(tables_cli, "make_instruments", lambda **_: Instruments())
    monkeypatch.setattr(tables_cli, "build", lambda name, _: built.append(name))
    if name == "all":
        monkeypatch.setattr(tables_cli, "NAMES", ("card", "losses", "risk"))
    options = ["--captions", str(prompts), "--reference", str(photographs), "--count", "16"]
    where = ["--model", str(plan.model), "--out", str(prompts.parent / "out")]
    done = CliRunner().invoke(app, ["table", name, *options, *where])
    assert isinstance(done.exception, error)
    assert words in str(done.exception)
    assert built == []


@pytest.mark.parametrize(
    "command",
    [
        ["table", "card", "--out", "out"],
        ["quality", "pictures", "--reference", "real"],
        ["train-scorer", "--scenes", "s", "--held-out", "h", "--out", "s.safetensors"],
        ["reconstruction", "scenes"],
    ],
)
def test_a_device_that_is_not_there_is_named_first(command: list[str]) -> None:
    done = CliRunner().invoke(app, [*command, "--device", "nowhere"])
    assert isinstance(done.exception, InvalidInput)
    assert done.exception.field == "device"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ([], "scenes"),
        (["--captions", "c.jsonl"], "scenes"),
        (["--scenes", ".", "--size", "8"], "scenes"),
        (["--captions", "missing.jsonl", "--reference", "."], "prompts"),
    ],
)
def test_sources_of_a_table_are_checked(options: list[str], field: str, plan: TablePlan) -> None:
    where = ["--model", str(plan.model), "--out", "out"]
    done = CliRunner().invoke(app, ["table", "main", *options, *where])
    assert isinstance(done.exception, InvalidInput)
    assert done.exception.field == field


@pytest.mark.parametrize("line", ["{}", "[]", "a cat", '{"prompt": " "}', '{"prompt": 3}'])
def test_a_bad_caption_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_text('{"prompt": "a cat"}\n' + line)
    with pytest.raises(InvalidInput, match="line 2"):
        read_captions(path)


def test_an_unknown_extractor_lists_the_known(plan: TablePlan) -> None:
    with pytest.raises(InvalidInput, match="efficientnet, inception, clip"):
        make_instruments(extractors="resnet", model=plan.model)
