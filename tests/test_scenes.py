"""Captioned scenes: determinism, what a recipe allows, English, splits, shards, packing, fetching.

The artwork is made here: discs in a colour of their own for every emoji that the nouns need.
"""

import base64
import hashlib
import io
import json
import os
import re
import tarfile
import threading
import zlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ciar.errors import InvalidInput
from ciar_train.scenes import (
    Atlas,
    BackgroundBank,
    Recipe,
    Scene,
    SceneGenerator,
    draw,
    pack_atlas,
    render,
    unpack_atlas,
)
from ciar_train.scenes.colour import TINTS, hsv_to_rgb, main_hue, recolour, rgb_to_hsv
from ciar_train.scenes.glyphs import IconSet, WebpSet, code_names, feet_of, trim
from ciar_train.scenes.nouns import all_nouns, home_of, place_weights
from ciar_train.scenes.packing import PackWriter
from ciar_train.scenes.placement import with_skin_tone
from ciar_train.scenes.places import all_places, place_names
from ciar_train.scenes.plan import is_held_out, times_in
from ciar_train.scenes.registry import ArtworkError, Package, fetch_package, find_registry
from ciar_train.scenes.tables import read_toml
from ciar_train.scenes.words import plural, with_article

STYLES = ("fluent3d", "noto", "twemoji", "fluentflat")
SCENERY = ("🌲", "🌳", "🌴", "🌵", "🪴", "🌷", "🌼", "🌹", "🌻", "🪸", "🌍")
SMALL = Recipe(
    size=32,
    styles={"fluent3d": 0.6, "noto": 0.4},
    nouns=("dog", "cat", "lion", "apple", "car", "tree", "house", "sailboat", "bee", "girl"),
    places=("beach", "meadow", "snow", "table", "street", "lake", "plain"),
    times=("day", "night"),
    max_count=2,
    num_backgrounds=1,
)


def disc(emoji: str, size: int = 20) -> Image.Image:
    """A disc with a foot, in a colour that belongs to the emoji."""
    seed = zlib.crc32(emoji.encode())
    image = Image.new("RGBA", (size, size))
    drawing = ImageDraw.Draw(image)
    colour = (64 + seed % 191, 64 + seed // 256 % 191, 64 + seed // 65536 % 191, 255)
    drawing.ellipse((1, 1, size - 2, size - 4), fill=colour)
    drawing.rectangle((size // 4, size - 5, size // 2, size - 1), fill=colour)
    return image


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed atlas with a disc for every noun in every style."""
    emojis = [emoji for noun in all_nouns().values() for emoji in noun.emojis]
    writer = PackWriter(size=20)
    for style in STYLES:
        for emoji in dict.fromkeys([*emojis, *SCENERY]):
            image = disc(emoji)
            writer.add(style, emoji, image, feet=feet_of(image))
    path = tmp_path_factory.mktemp("pack") / "atlas.pak"
    writer.save(path)
    return path


@pytest.fixture(scope="module")
def atlas_path(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("atlas")
    unpack_atlas(pack, folder)
    return folder


@pytest.fixture(scope="module")
def atlas(atlas_path: Path) -> Atlas:
    return Atlas(atlas_path)


# ---- determinism

KNOWN_CAPTIONS = {
    0: ("three gentlemen in a snowy landscape", "a cartoon of three men"),
    1: (
        "a ferry and an orangutan on a blue background",
        "a ferry and an orangutan on a blue background",
    ),
    2: (
        "Cheese to the right of a plate of spaghetti on a desk.",
        "some cheese to the right of a plate of spaghetti",
    ),
    3: (
        "a flat illustration of a white guitar in the living room",
        "A white guitar in a living room.",
    ),
    5: (
        "a motorboat and a person swimming in the ocean",
        "a speedboat and a swimmer in the water during the day",
    ),
    8: ("a top hat placed on a wooden table", "a top hat lying on a table"),
    13: (
        "a pair of tigers standing on the farm in rainy weather",
        "A flat drawing of a pair of tigers standing in a farm field in the rain.",
    ),
    21: ("a flat illustration of a brown snowflake over a city", "a brown snowflake over a city"),
    34: ("3 melons on a table", "three melons"),
    55: ("an ox on the street on a sunny day", "an ox standing downtown"),
    12345: ("a little tokyo tower on the road", "A little tower on a highway by night."),
}


def test_same_index_gives_same_scene_in_any_order(atlas: Atlas) -> None:
    one, other = SceneGenerator(atlas, SMALL), SceneGenerator(atlas, SMALL)
    first = [one.sample(index, num_captions=3) for index in range(40)]
    for index in reversed(range(40)):
        scene = other.sample(index, num_captions=3)
        assert np.array_equal(scene.image, first[index].image)
        assert scene.captions == first[index].captions
        assert scene.plan == first[index].plan
        assert scene.boxes == first[index].boxes


@pytest.mark.parametrize("index", KNOWN_CAPTIONS)
def test_known_captions_stay(atlas: Atlas, index: int) -> None:
    """Numbers are names of scenes: a change here makes every drawn data set a different one."""
    scene = SceneGenerator(atlas, Recipe(size=16)).sample(index, num_captions=2)
    assert scene.captions == KNOWN_CAPTIONS[index]


def test_more_captions_leave_the_first_ones_alone(atlas: Atlas) -> None:
    generator = SceneGenerator(atlas, SMALL)
    assert (
        generator.sample(3, num_captions=5).captions[:2]
        == generator.sample(3, num_captions=2).captions
    )


def test_seed_changes_everything(atlas: Atlas) -> None:
    scenes = [SceneGenerator(atlas, replace(SMALL, seed=seed)).sample(0) for seed in (0, 1)]
    assert not np.array_equal(scenes[0].image, scenes[1].image)


def test_every_place_is_painted_at_every_time(atlas: Atlas) -> None:
    """No place is left black, none breaks at one of its times."""
    for place in place_names():
        for time in dict.fromkeys(all_places()[place].times):
            recipe = Recipe(size=16, places=(place,), times=(time,))
            image = SceneGenerator(atlas, recipe).sample(0).image
            assert image.shape == (16, 16, 3)
            assert image.dtype == np.uint8
            assert image.std() > 1 or place == "plain", (place, time)


def test_things_are_painted_in_their_boxes(atlas: Atlas) -> None:
    """On a plain background only the box and the shadow near it differ from the background."""
    recipe = replace(SMALL, places=("plain",), two_objects=False, max_count=1, size=64)
    generator = SceneGenerator(atlas, recipe)
    for index in range(20):
        scene = generator.sample(index)
        left, top, right, bottom = (round(64 * v) for v in scene.boxes[0].corners)
        inside = scene.image[max(top, 0) : bottom, max(left, 0) : right].astype(int)
        corner = scene.image[1, 1].astype(int)
        assert np.abs(inside - corner).max() > 20
        assert np.abs(scene.image[:2].astype(int) - corner).max() < 20 or top < 4


@pytest.mark.parametrize("snap", [2, 4])
def test_things_snap_to_tokens(atlas: Atlas, snap: int) -> None:
    recipe = replace(SMALL, size=64, snap=snap)
    generator = SceneGenerator(atlas, recipe)
    free = SceneGenerator(atlas, replace(recipe, snap=1))
    for index in range(30):
        scene, other = generator.sample(index), free.sample(index)
        assert scene.captions == other.captions
        for box, near in zip(scene.boxes, other.boxes, strict=True):
            left, top, _, bottom = (round(64 * v) for v in box.corners)
            assert left % snap == top % snap == bottom % snap == 0
            assert (bottom - top) % (2 * snap) == 0
            assert abs(bottom / 64 - near.corners[3]) < snap / 64


def test_things_and_backgrounds_are_mirrored_only_if_asked(atlas: Atlas, tmp_path: Path) -> None:
    recipe = replace(
        SMALL, size=64, nouns=("dog", "car"), places=("plain",), two_objects=False, max_count=1
    )
    either = SceneGenerator(atlas, recipe)
    one_way = SceneGenerator(atlas, replace(recipe, mirrored=False))
    num_mirrored = 0
    for index in range(40):
        scene, other = one_way.sample(index), either.sample(index)
        assert scene.boxes == other.boxes
        left, top, right, bottom = (round(64 * v) for v in scene.boxes[0].corners)
        box = np.s_[max(top, 0) : bottom, max(left, 0) : right]
        ours, theirs = scene.image[box].astype(int), other.image[box].astype(int)
        if np.abs(ours - theirs).mean() > 4:
            num_mirrored += 1
            assert np.abs(ours - theirs[:, ::-1]).mean() < 4
    assert 8 < num_mirrored < 32

    recipe = replace(recipe, places=("street",), jitter=0.0, num_backgrounds=1)
    bank = BackgroundBank.build(SceneGenerator(atlas, recipe), tmp_path / "bank")
    for mirrored, count in ((False, 1), (True, 2)):
        asked = replace(recipe, mirrored=mirrored)
        plan = replace(SceneGenerator(atlas, asked).sample(0).plan, time="day", style="noto")
        rng = np.random.default_rng(0)
        found = {
            bank.canvas(plan, rng, recipe=asked, atlas=atlas).to_bytes().tobytes()
            for _ in range(20)
        }
        assert len(found) == count


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_tints_and_sizes_come_as_often_as_the_recipe_says(atlas: Atlas, share: float) -> None:
    recipe = replace(SMALL, nouns=("car",), two_objects=False, max_count=1, places=("street",))
    generator = SceneGenerator(atlas, replace(recipe, tinted=share, resized=share))
    things = [scene.plan.things[0] for scene in map(generator.sample, range(40)) if scene.nouns]
    assert len(things) > 20
    for thing in things:
        assert (thing.colour is not None) == bool(share)
        assert (thing.size is not None) == bool(share)


def test_tinted_things_are_painted_in_their_tint(atlas: Atlas) -> None:
    recipe = replace(SMALL, nouns=("car",), places=("plain",), two_objects=False, max_count=1)
    generator = SceneGenerator(atlas, replace(recipe, size=64))
    tints = set()
    for index in range(80):
        scene = generator.sample(index)
        if scene.colour in ("red", "green", "blue", "purple", "orange"):
            left, top, right, bottom = scene.boxes[0].corners
            x, y = round(32 * (left + right)), round(32 * (top + bottom))
            hue, saturation, _ = rgb_to_hsv(scene.image[y, x] / 255)
            assert saturation > 0.4
            assert abs((float(hue) - TINTS[scene.colour][0] + 0.5) % 1 - 0.5) < 0.03
            tints.add(scene.colour)
    assert len(tints) >= 3


# ---- recipes


def test_it_snows_only_where_the_recipe_allows(
    atlas: Atlas, monkeypatch: pytest.MonkeyPatch
) -> None:
    snowing: list[object] = []
    monkeypatch.setattr(render, "paint_snowfall", snowing.append)
    recipe = Recipe(size=32, places=("snow",), times=("day",))
    list(scenes(atlas, recipe, 30))
    assert not snowing
    list(scenes(atlas, replace(recipe, times=("day", "snowfall")), 30))
    assert snowing


def scenes(atlas: Atlas, recipe: Recipe, count: int = 200, **options: Any) -> Iterator[Scene]:
    generator = SceneGenerator(atlas, replace(recipe, size=16), **options)
    return (generator.sample(index, num_captions=2) for index in range(count))


def test_recipe_restricts_scenes(atlas: Atlas) -> None:
    seen_places: set[str] = set()
    seen_nouns: set[str] = set()
    seen_times: set[str] = set()
    for scene in scenes(atlas, SMALL, 300):
        assert SMALL.nouns is not None and SMALL.places is not None
        assert set(scene.nouns) <= set(SMALL.nouns)
        assert scene.place in SMALL.places
        assert scene.style in SMALL.styles
        assert scene.time in ("day", "night")
        assert all(thing.count <= 2 for thing in scene.plan.things)
        assert (len(scene.nouns) == 2) == (scene.relation is not None)
        seen_places.add(scene.place)
        seen_nouns.update(scene.nouns)
        seen_times.add(scene.time)
    assert seen_places == set(SMALL.places or ())
    assert seen_nouns == set(SMALL.nouns or ())
    assert seen_times == {"day", "night"}


def test_single_things_only(atlas: Atlas) -> None:
    recipe = replace(SMALL, two_objects=False, max_count=1)
    for scene in scenes(atlas, recipe, 300):
        assert len(scene.nouns) <= 1
        assert scene.relation is None
        assert len(scene.boxes) == len(scene.nouns)


def test_count_of_boxes_is_count_of_things(atlas: Atlas) -> None:
    counts = set()
    for scene in scenes(atlas, Recipe(two_objects=False), 300):
        assert len(scene.boxes) == sum(thing.count for thing in scene.plan.things)
        counts.add(len(scene.boxes))
    assert counts == {0, 1, 2, 3, 4, 5, 6}


def test_places_suit_their_nouns(atlas: Atlas) -> None:
    outdoors = {p.name for p in all_places().values() if p.kind == "ground"}
    for scene in scenes(atlas, Recipe()):
        for name in scene.nouns[:1]:
            noun = all_nouns()[name]
            assert scene.place in {*place_weights(noun.category), home_of(noun), "lake"} | outdoors


def test_without_common_time_a_place_keeps_its_first() -> None:
    assert times_in(Recipe(times=("rain",)), "stage") == ("day",)
    assert set(times_in(Recipe(times=("rain", "night")), "beach")) == {"rain", "night"}
    assert times_in(Recipe(), "snow").count("snowfall") == 2


def test_left_is_left_and_above_is_above(atlas: Atlas) -> None:
    for scene in scenes(atlas, SMALL, 400):
        boxes = {box.noun: box.corners for box in scene.boxes}
        if scene.relation not in ("left of", "right of", "above", "under") or len(boxes) < 2:
            continue
        a, b = (boxes[noun] for noun in scene.nouns)
        if scene.relation == "left of":
            assert a[0] + a[2] < b[0] + b[2]
        elif scene.relation == "right of":
            assert a[0] + a[2] > b[0] + b[2]
        else:
            upper, lower = (a, b) if scene.relation == "above" else (b, a)
            assert upper[1] + upper[3] < lower[1] + lower[3]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 8}, "size: 8"),
        ({"size": 64.5}, "size: 64.5"),
        ({"size": "64"}, "a whole number"),
        ({"max_count": 7}, "max_count: 7"),
        ({"texture": -1}, "texture: -1"),
        ({"texture": float("nan")}, "texture: nan"),
        ({"num_backgrounds": 0}, "num_backgrounds: 0"),
        ({"jitter": 0.3}, "jitter: 0.3"),
        ({"snap": 0}, "snap: 0"),
        ({"snap": 33}, "snap: 33"),
        ({"tinted": 1.5}, "tinted: 1.5"),
        ({"resized": -0.1}, "resized: -0.1"),
        ({"mirrored": 1}, "mirrored: 1"),
        ({"seed": -1}, "seed: -1"),
        ({"styles": {}}, "styles"),
        ({"styles": {"noto": 0}}, "styles.noto: 0"),
        ({"nouns": "dog"}, "use a list of names"),
        ({"places": []}, "leave it out for all"),
        ({"weather": []}, "weather"),
    ],
)
def test_recipe_refuses(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(message)):
        Recipe.from_table(fields)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe(nouns=("dog", "unicycle")), "nouns: 'unicycle'"),
        (Recipe(places=("attic",)), "places: 'attic'"),
        (Recipe(times=("noon",)), "times: 'noon'"),
        (Recipe(styles={"openmoji": 1}), "styles: 'openmoji'"),
        (Recipe(nouns=("whale",), places=("desert",)), "underwater"),
        (Recipe(nouns=("zebra",), styles={"twemoji": 1}), "no artwork in twemoji"),
    ],
)
def test_generator_refuses(atlas: Atlas, recipe: Recipe, message: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(message)):
        SceneGenerator(atlas, recipe)


def test_recipe_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "size.toml"
    path.write_text('[scenes]\nsize = 32\nnouns = ["dog"]\n[scenes.styles]\nnoto = 1\n')
    recipe = Recipe.load(path, table="scenes")
    assert recipe == Recipe(size=32, nouns=("dog",), styles={"noto": 1})
    assert Recipe.from_table(json.loads(json.dumps(recipe.to_table()))) == recipe
    with pytest.raises(InvalidInput, match=r"no table \[data\]"):
        Recipe.load(path, table="data")


# ---- words


@pytest.mark.parametrize(
    ("singular", "expected"),
    [
        ("dog", "dogs"),
        ("bus", "buses"),
        ("box", "boxes"),
        ("peach", "peaches"),
        ("toothbrush", "toothbrushes"),
        ("cherry tree", "cherry trees"),
        ("butterfly", "butterflies"),
        ("monkey", "monkeys"),
        ("mouse", "mice"),
        ("woman", "women"),
        ("sheep", "sheep"),
        ("goose", "geese"),
        ("knife", "knives"),
        ("potato", "potatoes"),
        ("cactus", "cacti"),
        ("person", "people"),
        ("cup of coffee", "cups of coffee"),
        ("loaf of bread", "loaves of bread"),
        ("person riding a bicycle", "people riding bicycles"),
        ("bird on a branch", "birds on branches"),
        ("man in a suit", "men in a suit"),
    ],
)
def test_plural(singular: str, expected: str) -> None:
    assert plural(singular) == expected


@pytest.mark.parametrize(
    ("phrase", "article"),
    [
        ("dog", "a"),
        ("apple", "an"),
        ("orange cat", "an"),
        ("hourglass", "an"),
        ("house", "a"),
        ("unicorn", "a"),
        ("umbrella", "an"),
        ("ufo", "a"),
        ("suv", "an"),
        ("one-eyed cat", "a"),
        ("euro coin", "a"),
        ("8 ball", "a"),
    ],
)
def test_article(phrase: str, article: str) -> None:
    assert with_article(phrase) == f"{article} {phrase}"


# Articles, numbers, sizes, relations, openings: words that name neither a thing nor a place.
GLUE = {
    *re.findall(
        r"\w+",
        """a an the some two 2 three 3 four 4 five 5 six 6 pair couple of several many group bunch
        small tiny little big large huge grey violet light and next to left right in front behind
        under above on side center middle picture image drawing 3d render cartoon illustration flat
        there is are background wall""",
    ),
    *TINTS,
}
VERBS = {word for verbs in read_toml("wording.toml")["verbs"].values() for word in verbs}


def known_phrases(scene: Scene) -> set[str]:
    """Everything a caption of the scene may name: its things, its place, its time."""
    phrases = {*VERBS, "in the sky"}
    for name in scene.nouns:
        noun = all_nouns()[name]
        words = [noun.name, *noun.synonyms]
        phrases |= {*words, *(plural(word) for word in words)}
    place = all_places()[scene.place]
    phrases |= {*place.phrases, *place.titles, *place.over, *place.on_water, *place.by_water}
    phrases.add(place.over_sun or "in the sky")
    return phrases | set(read_toml("wording.toml")["times"][scene.time])


def other_words(scene: Scene) -> Iterator[set[str]]:
    """The words of each caption that name neither its things nor its place and time."""
    known = sorted(known_phrases(scene) - {""}, key=len, reverse=True)
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, known))})(?!\w)")
    for caption in scene.captions:
        yield set(pattern.sub(" ", caption.rstrip(".").lower()).split())


def test_captions_name_only_what_is_painted(atlas: Atlas) -> None:
    for scene in scenes(atlas, Recipe()):
        for words in other_words(scene):
            assert words <= GLUE, (scene.captions, scene.plan)


def test_captions_name_colours_and_counts_of_the_plan(atlas: Atlas) -> None:
    spoken = {"grey": "gray", "violet": "purple"}
    for scene in scenes(atlas, replace(SMALL, max_count=6)):
        tints = {thing.colour for thing in scene.plan.things} | {scene.plan.wall}
        if scene.plan.wall == "light blue":
            tints.add("blue")
        for words in other_words(scene):
            named = {spoken.get(word, word) for word in words} & set(TINTS)
            assert named <= tints, (scene.captions, scene.plan)
            for count, numbers in ((2, {"two", "2", "pair", "couple"}), (3, {"three", "3"})):
                if numbers & words:
                    assert scene.plan.things[0].count == count


def test_articles_in_captions_fit(atlas: Atlas) -> None:
    for scene in scenes(atlas, Recipe()):
        for caption in scene.captions:
            for article, word in re.findall(r"\b(an?) (\w+)", caption.lower()):
                assert with_article(word) == f"{article} {word}", caption


# ---- splits


def test_splits_share_no_pair_of_noun_and_place(atlas: Atlas) -> None:
    pairs: dict[str, set[tuple[str, str]]] = {"train": set(), "test": set()}
    for split in pairs:
        for scene in scenes(atlas, Recipe(), 150, split=split):
            new = {(noun, scene.place) for noun in scene.nouns}
            held_out = {pair for pair in new if is_held_out(*pair)}
            assert (split == "test") == bool(held_out)
            pairs[split] |= held_out if split == "test" else new
    assert pairs["train"] and pairs["test"]
    assert not pairs["train"] & pairs["test"]


def test_split_without_pairs_is_refused(atlas: Atlas) -> None:
    recipe = Recipe(size=16, nouns=("dog",), places=("plain",))
    with pytest.raises(InvalidInput, match="no pair of noun and place"):
        SceneGenerator(atlas, recipe, split="test").sample(0)


# ---- backgrounds


def test_bank_holds_what_the_recipe_allows(atlas: Atlas, tmp_path: Path) -> None:
    recipe = replace(SMALL, num_backgrounds=2)
    generator = SceneGenerator(atlas, recipe)
    steps = []
    bank = BackgroundBank.build(
        generator, tmp_path / "bank", progress=lambda *step: steps.append(step)
    )
    # beach, meadow, snow, table, street, lake; two times; two styles; two and one without a sun
    assert (tmp_path / "bank.bin").stat().st_size == 6 * 2 * 2 * 3 * 32 * 32 * 3
    assert steps[-1] == (72, 72, "backgrounds")
    again = BackgroundBank.open(tmp_path / "bank")
    first = SceneGenerator(atlas, recipe, backgrounds=bank)
    second = SceneGenerator(atlas, recipe, backgrounds=again)
    for index in range(40):
        one, other, painted = first.sample(index), second.sample(index), generator.sample(index)
        assert np.array_equal(one.image, other.image)
        assert one.captions == painted.captions
        assert one.plan == painted.plan


@pytest.mark.parametrize("jitter", [0.0, 0.2])
def test_backgrounds_of_a_bank_vary_by_the_jitter(
    atlas: Atlas, tmp_path: Path, jitter: float
) -> None:
    recipe = replace(SMALL, places=("beach",), times=("day",), styles={"noto": 1}, jitter=jitter)
    bank = BackgroundBank.build(SceneGenerator(atlas, recipe), tmp_path / "bank")
    generator = SceneGenerator(atlas, recipe, backgrounds=bank)
    scenes = [generator.sample(index) for index in range(300)]
    empty = [scene.image for scene in scenes if not scene.boxes]
    assert len(empty) > 4
    kinds = {min(image.tobytes(), image[:, ::-1].tobytes()) for image in empty}
    assert len(kinds) == (1 if jitter == 0 else len(empty))


def test_bank_of_another_recipe_is_refused(atlas: Atlas, tmp_path: Path) -> None:
    bank = BackgroundBank.build(SceneGenerator(atlas, SMALL), tmp_path / "bank")
    for recipe in (replace(SMALL, size=64), replace(SMALL, texture=0.5), Recipe(size=32)):
        with pytest.raises(InvalidInput, match="another recipe"):
            SceneGenerator(atlas, recipe, backgrounds=bank)
    with pytest.raises(InvalidInput, match="no bank"):
        BackgroundBank.open(tmp_path / "nothing")


def test_a_bank_that_is_interrupted_is_none(atlas: Atlas, tmp_path: Path) -> None:
    def stop(done: int, total: int, what: str) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        BackgroundBank.build(SceneGenerator(atlas, SMALL), tmp_path / "bank", progress=stop)
    assert not any(tmp_path.iterdir())


# ---- shards


def drawn(folder: Path) -> dict[str, str]:
    """Digests of the drawn files."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.suffix in (".npy", ".jsonl")
    }


def test_draw_is_the_same_for_any_number_of_workers(atlas_path: Path, tmp_path: Path) -> None:
    for num_workers in (1, 2):
        draw(
            SMALL,
            atlas_path,
            tmp_path / str(num_workers),
            start=7,
            count=50,
            num_captions=2,
            num_workers=num_workers,
            shard_size=20,
            backgrounds_path=tmp_path / "backgrounds",
        )
    files = drawn(tmp_path / "1")
    assert [name for name in files if name.endswith("npy")] == [
        f"images-0000{k}.npy" for k in range(3)
    ]
    assert files == drawn(tmp_path / "2")
    images = np.load(tmp_path / "1" / "images-00002.npy")
    assert images.shape == (10, 32, 32, 3)
    lines = (tmp_path / "1" / "captions-00002.jsonl").read_text().splitlines()
    generator = SceneGenerator(
        Atlas(atlas_path), SMALL, backgrounds=BackgroundBank.open(tmp_path / "backgrounds")
    )
    scene = generator.sample(7 + 49, num_captions=2)
    assert np.array_equal(images[-1], scene.image)
    assert json.loads(lines[-1]) == {
        "captions": list(scene.captions),
        "nouns": list(scene.nouns),
        "place": scene.place,
        "time": scene.time,
        "style": scene.style,
    }


def test_draw_goes_on_where_it_stopped(atlas_path: Path, tmp_path: Path) -> None:
    run = partial(draw, SMALL, atlas_path, tmp_path, num_captions=1, shard_size=8)
    run(count=24)
    before = drawn(tmp_path)
    kept = tmp_path / "images-00000.npy"
    kept_at = kept.stat().st_mtime_ns
    (tmp_path / "images-00001.npy").unlink()  # as if the run had ended before the last rename
    (tmp_path / "images-00002.npy.partial").write_bytes(b"half a shard")
    steps: list[tuple[int, int, str]] = []
    run(count=24, progress=lambda *step: steps.append(step))
    assert drawn(tmp_path) == before
    assert kept.stat().st_mtime_ns == kept_at
    assert steps == [(16, 24, "scenes"), (24, 24, "scenes")]
    run(count=28)  # more of the same
    assert len(np.load(tmp_path / "images-00003.npy")) == 4
    assert {name: drawn(tmp_path)[name] for name in before} == before
    run(count=4)  # fewer are there already
    assert {name: drawn(tmp_path)[name] for name in before} == before


def test_a_shard_with_too_few_captions_is_drawn_again(atlas_path: Path, tmp_path: Path) -> None:
    run = partial(draw, SMALL, atlas_path, tmp_path, num_captions=1, shard_size=3)
    run(count=6)
    before = drawn(tmp_path)
    captions = tmp_path / "captions-00000.jsonl"
    captions.write_text(captions.read_text().splitlines()[0])
    (tmp_path / "captions-00001.jsonl").unlink()
    run(count=6)
    assert drawn(tmp_path) == before


def test_draw_refuses_a_folder_of_other_scenes(atlas_path: Path, tmp_path: Path) -> None:
    draw(SMALL, atlas_path, tmp_path, count=2)
    with pytest.raises(InvalidInput, match="another recipe"):
        draw(replace(SMALL, seed=1), atlas_path, tmp_path, count=2)
    with pytest.raises(InvalidInput, match="another start"):
        draw(SMALL, atlas_path, tmp_path, start=1, count=2)
    with pytest.raises(InvalidInput, match="count: 0"):
        draw(SMALL, atlas_path, tmp_path, count=0)


# ---- artwork


def test_pack_and_unpack(atlas: Atlas, atlas_path: Path, tmp_path: Path) -> None:
    pack_atlas(atlas_path, tmp_path / "again.pak", max_side=20, quality=100, styles=("noto",))
    unpack_atlas(tmp_path / "again.pak", tmp_path / "again")
    again = Atlas(tmp_path / "again")
    assert again.styles == ("noto",)
    assert again.emojis("noto") == atlas.emojis("noto")
    for emoji in list(atlas.emojis("noto"))[:50]:
        one, other = atlas.get("noto", emoji), again.get("noto", emoji)
        assert one is not None and other is not None
        a, b = np.asarray(one.image).astype(int), np.asarray(other.image).astype(int)
        assert np.array_equal(a[..., 3], b[..., 3])
        opaque = a[..., 3] == 255
        assert np.abs(a - b)[opaque].mean() < 6
        assert (one.foot_left, one.foot_right) == (other.foot_left, other.foot_right)


def test_packing_shrinks_to_the_side(atlas_path: Path, tmp_path: Path) -> None:
    pack_atlas(atlas_path, tmp_path / "small.pak", max_side=10, styles=("noto",))
    unpack_atlas(tmp_path / "small.pak", tmp_path / "small")
    sprite = Atlas(tmp_path / "small").get("noto", "🐕")
    assert sprite is not None
    assert sprite.image.size == (10, 10)


def test_what_is_no_atlas_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="holds no atlas"):
        Atlas(tmp_path)
    (tmp_path / "x.pak").write_bytes(b"PK\x03\x04")
    with pytest.raises(InvalidInput, match="no packed atlas"):
        unpack_atlas(tmp_path / "x.pak", tmp_path / "x")


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.5, 0.999])
def test_a_pack_that_is_cut_off_is_refused(pack: Path, tmp_path: Path, share: float) -> None:
    whole, path = pack.read_bytes(), tmp_path / "short.pak"
    path.write_bytes(whole[: 9 + int(share * (len(whole) - 9))])
    with pytest.raises(InvalidInput, match="short.pak.*is cut off or damaged"):
        unpack_atlas(path, tmp_path / "x")
    assert not (tmp_path / "x" / "index.json").exists()


def test_a_pack_whose_sprites_are_damaged_is_refused(pack: Path, tmp_path: Path) -> None:
    whole = pack.read_bytes()
    (tmp_path / "x.pak").write_bytes(whole[:-5000] + bytes(5000))
    with pytest.raises(InvalidInput, match="is cut off or damaged"):
        unpack_atlas(tmp_path / "x.pak", tmp_path / "x")


def test_feet_and_trim() -> None:
    image = Image.new("RGBA", (40, 40))
    image.paste(disc("🐕"), (7, 9))
    trimmed = trim(image)
    assert trimmed is not None
    assert trimmed.height == 19  # the disc begins a pixel below its upper edge
    left, right = feet_of(trimmed)
    assert (round(left * trimmed.width), round(right * trimmed.width)) == (4, 10)
    assert trim(Image.new("RGBA", (8, 8))) is None


@pytest.mark.parametrize("tint", ["red", "green", "blue", "purple"])
def test_recoloured_sprite_has_the_tint(tint: str) -> None:
    sprite = np.asarray(disc("🚗", 48), np.float32) / 255
    sprite[..., :3] = (0.9, 0.2, 0.1)
    sprite[:10, :, :3] = 0.5  # a grey part keeps its colour
    tinted = recolour(sprite, tint=tint, main=main_hue(sprite))
    assert np.array_equal(tinted[:10], sprite[:10])
    assert np.array_equal(tinted[..., 3], sprite[..., 3])
    hue = rgb_to_hsv(tinted[20:, :, :3])[0]
    assert np.abs((hue - TINTS[tint][0] + 0.5) % 1 - 0.5).max() < 0.01


def test_hsv_round_trip() -> None:
    colours = np.random.default_rng(0).random((50, 3))
    assert np.allclose(hsv_to_rgb(*rgb_to_hsv(colours)), colours)


def test_names_and_tones_of_emoji() -> None:
    assert code_names("🛶") == ("1f6f6", "1f6f6-fe0f")
    assert code_names("🛳️") == ("1f6f3-fe0f", "1f6f3", "1f6f3-fe0f-fe0f")
    assert with_skin_tone("🧍‍♂️", "🏽") == "🧍🏽‍♂️"
    assert with_skin_tone("🧍", "") == "🧍"


def tarball(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def integrity(content: bytes) -> str:
    return "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A package registry on the loopback: its address and the folder that it serves."""
    folder = tmp_path / "registry"
    folder.mkdir()
    handler = partial(QuietHandler, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", folder
    server.shutdown()
    thread.join()
    server.server_close()


def publish(url: str, folder: Path, content: bytes) -> None:
    """Put version 1.0.0 of @art/set onto the registry."""
    (folder / "@art" / "set").mkdir(parents=True, exist_ok=True)
    (folder / "set.tgz").write_bytes(content)
    metadata = {"dist": {"tarball": f"{url}/set.tgz", "integrity": integrity(content)}}
    (folder / "@art" / "set" / "1.0.0").write_text(json.dumps(metadata))


def test_fetched_package_is_checked_and_kept(registry: tuple[str, Path], tmp_path: Path) -> None:
    url, folder = registry
    image = io.BytesIO()
    disc("🐕").save(image, "WEBP", lossless=True)
    content = tarball({"assets/1f415.webp": image.getvalue(), "README.md": b"art"})
    publish(url, folder, content)
    package = Package(name="@art/set", version="1.0.0", integrity=integrity(content))
    path = fetch_package(package, tmp_path / "packages", registry=url)
    assert path.read_bytes() == content
    glyphs = WebpSet(path)
    drawn_dog = glyphs.draw("🐕", 20)
    assert drawn_dog is not None
    assert np.array_equal(np.asarray(drawn_dog)[..., 3], np.asarray(disc("🐕"))[..., 3])
    assert glyphs.draw("🐈", 20) is None

    publish(url, folder, tarball({"assets/1f415.webp": b"other"}))
    assert fetch_package(package, tmp_path / "packages", registry=url) == path  # kept
    path.unlink()
    with pytest.raises(ArtworkError, match=r"@art/set 1\.0\.0: .* another tarball"):
        fetch_package(package, tmp_path / "packages", registry=url)


def test_unreachable_registry_is_named_with_the_remedy(
    registry: tuple[str, Path], tmp_path: Path
) -> None:
    package = Package(name="@art/missing", version="2.0.0", integrity="sha512-")
    with pytest.raises(ArtworkError, match=r"@art/missing 2\.0\.0 could not be fetched .*check"):
        fetch_package(package, tmp_path, registry=registry[0])


def test_registry_of_npm_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:1/npm/")
    assert find_registry() == "http://127.0.0.1:1/npm"
    assert find_registry("http://127.0.0.1:2/") == "http://127.0.0.1:2"


def test_icons_are_found_by_alias_and_rendered(tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    icons = {
        "width": 10,
        "height": 10,
        "icons": {"dog": {"body": '<rect width="10" height="5" fill="#f00"/>'}},
        "aliases": {"hound": {"parent": "dog"}},
    }
    path = tmp_path / "set.tgz"
    files = {"icons.json": icons, "chars.json": {"1f415": "hound"}}
    path.write_bytes(tarball({name: json.dumps(table).encode() for name, table in files.items()}))
    image = IconSet(path).draw("🐕", 20)
    assert image is not None
    pixels = np.asarray(image)
    assert pixels.shape == (20, 20, 4)
    assert (pixels[2, 2] == (255, 0, 0, 255)).all()
    assert pixels[15, 10, 3] == 0
    assert IconSet(path).draw("🐈", 20) is None


@pytest.mark.skipif("CIAR_ATLAS" not in os.environ, reason="CIAR_ATLAS names no atlas folder")
def test_real_atlas_draws_every_noun() -> None:
    atlas = Atlas(os.environ["CIAR_ATLAS"])
    for noun in all_nouns().values():
        assert any(atlas.has("noto", emoji) for emoji in noun.emojis), noun.name
    generator = SceneGenerator(atlas, Recipe())
    for index, captions in KNOWN_CAPTIONS.items():
        assert generator.sample(index, num_captions=2).captions == captions
