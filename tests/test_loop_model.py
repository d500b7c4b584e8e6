"""The model of the loops: times are those one works out by hand, and counts the decoder's."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from ciar_bench.cli import app
from ciar_bench.gantt import Watch, draw_gantt
from ciar_bench.latency import Cell, Round
from ciar_bench.latency_model import costs_of, model_images, tokens_of
from ciar_bench.loop_model import LOOPS, Costs, Timeline, Token, base, blocking, optimistic
from ciar_bench.loop_model import tokens_like as random_tokens
from ciar_bench.slow_link import SlowLink
from ciar_edge.result import ImageResult, Origin
from tests.test_loop import Pair, Run, T, Watched, decode, pair, router_for

__all__ = ["pair"]  # the fixture

COSTS = Costs(draft=1.0, step=10.0, row=0.5, trip=4.0)
KEPT = Token(False, False, 0.0)
AGREED = Token(True, False, 0.01)
DOUBTED = Token(True, False, 0.6)
DIFFERENT = Token(True, True, 0.99)


def test_the_base_is_a_trip_and_a_step_a_token() -> None:
    image = base(7, COSTS)
    assert (image.seconds, image.forwards, image.positions) == (4 + 7 * 10, 7, 7)


def test_blocking_waits_for_every_question() -> None:
    costs = COSTS
    assert blocking([KEPT] * 8, costs, num_prefix=2).seconds == 24 + 6 * 1
    image = blocking([KEPT, KEPT, DIFFERENT, KEPT], costs, num_prefix=0)
    assert image.seconds == 4 + 3 * 1 + 4 + costs.of_step(4) + 1  # with the token behind it
    assert (image.forwards, image.round_trips, image.drafts) == (1, 1, 5)
    image = blocking([AGREED, AGREED, KEPT], costs, num_prefix=0)  # the second came along
    assert image.round_trips == 1 and image.seconds == 4 + 1 + 4 + costs.of_step(2) + 1


def test_optimistic_hides_what_stands() -> None:
    image = optimistic([DOUBTED, *[KEPT] * 3], COSTS, num_prefix=0)
    assert image.round_trips == 1 and image.drafts == 4
    assert image.seconds == 4 + 1 + max(3, 4 + COSTS.of_step(2))


def test_optimistic_goes_back_to_a_difference() -> None:
    tokens = [Token(True, True, 0.6), *[KEPT] * 3]
    image = optimistic(tokens, COSTS, num_prefix=0)
    in_vain = [span for span in image.spans if span.lane == "edge, in vain"]
    assert len(in_vain) == 3 and image.drafts == 1 + 3 + 3
    assert image.seconds == 4 + 1 + 4 + COSTS.of_step(2) + 3


def test_what_hardly_differs_is_asked_about_with_what_follows() -> None:
    image = optimistic([AGREED, AGREED, KEPT], COSTS, num_prefix=0)
    assert image.round_trips == 1 and image.positions == 3
    assert image.seconds == 4 + 3 + 4 + COSTS.of_step(3)


@pytest.mark.parametrize(("trip", "run_on"), [(4.0, 0), (10.0, 1), (35.0, 3)])
def test_behind_a_difference_the_cloud_draws_while_nothing_else_comes(
    trip: float, run_on: int
) -> None:
    """It knows how long that is from the first verdict on; kept tokens end it."""
    costs = Costs(draft=1.0, step=10.0, row=0.0, trip=trip)
    image = optimistic([DIFFERENT] * 6 + [KEPT] * 9, costs, num_prefix=0)
    num_alone = 1 + run_on  # what each verdict but the first decides
    assert image.round_trips == 1 + math.ceil(5 / num_alone)
    assert image.forwards == 6 + (num_alone * (image.round_trips - 1) - 5)


def test_nobody_drafts_behind_what_will_not_stand() -> None:
    image = optimistic([DIFFERENT, *[KEPT] * 3], COSTS, num_prefix=0)
    assert image.drafts == 4 and not any(s.lane == "edge, in vain" for s in image.spans)


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("trip", [0.0, 30.0])
def test_nobody_does_two_things_at_once(name: str, trip: float) -> None:
    costs = Costs(draft=1.0, step=10.0, row=0.5, trip=trip)
    for seed in range(20):
        tokens = random_tokens(0.4, 0.6, num_tokens=64, seed=seed)
        image = LOOPS[name](tokens, costs, 4)
        for who in ("edge", "cloud"):
            spans = sorted(
                ((s.start, s.end) for s in image.spans if s.lane.startswith(who)), key=lambda s: s
            )
            assert all(a[1] <= b[0] + 1e-9 for a, b in zip(spans, spans[1:], strict=False))
        assert image.seconds >= max(s.end for s in image.spans)
        assert image.seconds >= image.forwards * 10.0 if name == "base" else image.forwards < 64
        drafted = sum(s.lane.startswith("edge") for s in image.spans)
        assert name == "base" or drafted == image.drafts


def test_independent_tokens_have_the_shares_they_are_given() -> None:
    tokens = random_tokens(0.3, 0.7, num_tokens=40_000, seed=0)
    asked = [token for token in tokens if token.is_uncertain]
    assert len(asked) / len(tokens) == pytest.approx(0.3, abs=0.01)
    assert sum(t.differs for t in asked) / len(asked) == pytest.approx(0.3, abs=0.02)
    sure = [t for t in asked if t.doubt < 0.05]
    assert sum(t.differs for t in sure) / len(sure) < 0.05, "doubts tell"


def modelled(images: Sequence[ImageResult], name: Any) -> tuple[list[Timeline], Cell]:
    rounds = [
        Round(images={name: image}, overheads={name: [0.002]}, spans={}, chunk_seconds={2: 0.01})
        for image in images
    ]
    cell = Cell(link=SlowLink(), carrier="straight", rounds=rounds)
    return model_images(cell, name, lambda score: 0.3), cell


def test_the_model_makes_the_calls_that_the_decoder_makes(pair: Pair, run: Run) -> None:
    """Blocking: as many round trips, forwards and drafts, image by image."""
    images = [run(decode(pair, seed=s, router=router_for(pair, threshold=0.4))) for s in range(12)]
    found, cell = modelled(images, "blocking")
    for image, model in zip(images, found, strict=True):
        assert model.round_trips == image.round_trips
        assert model.forwards == image.cloud_forwards
    assert costs_of(cell, "blocking").trip == 0.002
    tokens = tokens_of(images[0], lambda score: 0.3)
    assert [t.is_uncertain for t in tokens] == [o is not Origin.KEPT for o in images[0].origins]


def test_the_bases_steps_are_its_own(pair: Pair, run: Run) -> None:
    """Others wait for steps that are slower than a line through C(1) has it."""
    image = run(decode(pair, router=router_for(pair, threshold=0.4)))
    alone = replace(image, cloud_compute_seconds=0.009 * 40, cloud_forwards=40)
    chunks = {2: 0.018, 4: 0.020, 8: 0.024}
    images: Any = {"base": alone, "blocking": image}
    one = Round(images=images, overheads={}, spans={}, chunk_seconds=chunks)
    cell = Cell(link=SlowLink(), carrier="straight", rounds=[one])
    assert costs_of(cell, "base").step == pytest.approx(0.009)
    assert 0.009 < costs_of(cell, "blocking").step < 0.018


@pytest.mark.parametrize("wavefront", [0, 2])
@pytest.mark.parametrize("mode", ["blocking", "optimistic"])
def test_an_edge_drafts_one_token_after_another(
    pair: Pair, run: Run, mode: str, wavefront: int
) -> None:
    watch = Watch()
    cloud = Watched(pair.cloud, seconds=0.005)
    router = router_for(pair, budget=0.5)
    result = run(decode(pair, cloud, router=router, observer=watch, mode=mode, wavefront=wavefront))
    spans = [span for span in watch.spans(result) if span.lane.startswith("edge")]
    assert len(spans) == result.drafts
    assert sum(span.lane == "edge" for span in spans) == T - result.prefix_tokens
    assert all(one.end <= other.start for one, other in pairwise(spans))
    assert all(span.start <= span.end for span in spans) and spans[0].start > 0


def test_an_image_is_watched_and_drawn(pair: Pair, run: Run, tmp_path: Path) -> None:
    watch = Watch()
    result = run(decode(pair, observer=watch, mode="optimistic"))
    spans = watch.spans(result)
    assert len(watch.overheads) == result.round_trips
    num_drafts = sum(s.lane.startswith("edge") for s in spans)
    assert num_drafts == result.drafts
    assert sum(s.lane == "edge" for s in spans) == len(result.tokens)
    draw_gantt(tmp_path / "gantt.png", [("an image", spans), ("the same", spans)])
    with Image.open(tmp_path / "gantt.png") as picture:
        assert picture.width > 1000 and len(picture.getcolors(2**16) or []) > 4


def test_the_command_prints_what_the_model_says(tmp_path: Path) -> None:
    options = ["model", "--rtt", "0,20", "-u", "0.3", "-a", "0.7", "--json"]
    done = CliRunner().invoke(app, [*options, "--gantt", str(tmp_path / "model.png")])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert list(found) == ["RTT 0 ms", "RTT 20 ms"]
    near, far = found.values()
    assert near["base"]["image"] == pytest.approx(1.4e-3 + 256 * 9e-3)
    assert near["optimistic"]["image"] < near["blocking"]["image"] < near["base"]["image"]
    assert far["blocking"]["image"] > near["blocking"]["image"] + 40 * 0.020
    assert (tmp_path / "model.png").exists()
    assert "optimistic" in CliRunner().invoke(app, options[:-1]).stdout
    wrong = CliRunner().invoke(app, ["model", "--prefix", "300"])
    assert "prefix: 300: give at most the 256" in str(wrong.exception)
