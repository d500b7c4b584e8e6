"""Backgrounds painted once and used many times: a bank of pictures mapped into memory.

From a bank a picture takes a background at random, its colours jittered and, if the recipe allows,
half the time mirrored.
That makes drawing three to five times as fast; several backgrounds of every place, time and style
keep it varied. A bank is two files, `NAME.bin` (uint8 [n, size, size, 3]) and `NAME.json`.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ciar.errors import InvalidInput
from ciar.output_file import replace_file, replacing
from ciar_train.progress import Progress, say_nothing
from ciar_train.scenes.atlas import Atlas
from ciar_train.scenes.canvas import Canvas, Zones
from ciar_train.scenes.places import PLAIN, find_place, place_names
from ciar_train.scenes.plan import Plan, times_in
from ciar_train.scenes.recipe import Recipe

if TYPE_CHECKING:
    from ciar_train.scenes.generator import SceneGenerator

_BACKGROUND_SEED = 77
_SUNS = ("sun", "moon", "crescent moon", "saturn")


def has_own_sun(plan: Plan) -> bool:
    """Whether a thing in the picture is a sun or moon: the sky then shows no other."""
    return any(thing.noun in _SUNS for thing in plan.things)


class BackgroundBank:
    """Painted backgrounds of one recipe's places, times and styles."""

    def __init__(self, path: Path | str) -> None:
        index_path, pixels_path = _paths(path)
        if not self.exists(path):
            raise InvalidInput("backgrounds", str(path), "there is no bank: build it first")
        index = json.loads(index_path.read_text(encoding="utf-8"))
        self._path = path
        self._size: int = index["size"]
        self._texture: float = index["texture"]
        self._items: dict[str, list[dict[str, Any]]] = index["items"]
        pixels = np.memmap(pixels_path, np.uint8, "r")
        self._pixels = pixels.reshape(-1, self._size, self._size, 3)

    @staticmethod
    def exists(path: Path | str) -> bool:
        """Whether there is a whole bank at a path."""
        return _paths(path)[0].is_file()

    @classmethod
    def open(cls, path: Path | str) -> "BackgroundBank":
        """The bank at a path, named without its endings.

        Raises:
            InvalidInput: there is no bank.
        """
        return cls(path)

    @classmethod
    def build(
        cls,
        generator: "SceneGenerator",
        path: Path | str,
        *,
        progress: Progress = say_nothing,
    ) -> "BackgroundBank":
        """Paint the backgrounds of the generator's recipe, and one without a sun of each.

        `progress` is called with (done, total, what).
        """
        recipe, atlas = generator.recipe, generator.atlas
        index_path, pixels_path = _paths(path)
        index_path.parent.mkdir(parents=True, exist_ok=True)
        items: dict[str, list[dict[str, Any]]] = {}
        variants = list(_variants(recipe, recipe.num_backgrounds))
        with replacing(pixels_path) as part, part.open("wb") as file:
            for number, variant in enumerate(variants):
                canvas = variant.paint(recipe, atlas, number)
                file.write(canvas.to_bytes().tobytes())
                items.setdefault(variant.key, []).append(_describe(canvas, number))
                progress(number + 1, len(variants), "backgrounds")
            index_path.unlink(missing_ok=True)  # it comes last: where it is, the bank is whole
        index = {"size": recipe.size, "texture": recipe.texture, "items": items}
        replace_file(index_path, json.dumps(index).encode())
        return cls(path)

    def check(self, recipe: Recipe) -> None:
        """Compare the bank with a recipe.

        Raises:
            InvalidInput: it was painted at another size or texture, or lacks backgrounds.
        """
        is_alike = (self._size, self._texture) == (recipe.size, recipe.texture)
        if not is_alike or any(each.key not in self._items for each in _variants(recipe, 1)):
            remedy = "was built for another recipe: build one for this recipe"
            raise InvalidInput("backgrounds", str(self._path), remedy)

    def canvas(
        self, plan: Plan, rng: np.random.Generator, *, recipe: Recipe, atlas: Atlas
    ) -> Canvas:
        """A random background for a plan, mirrored or not, as a canvas to paint on."""
        key = _key(plan.place, plan.time, plan.style, has_sun=not has_own_sun(plan))
        items = self._items[key]
        item = items[int(rng.integers(len(items)))]
        canvas = Canvas(
            recipe.size,
            rng,
            atlas=atlas,
            style=plan.style,
            time=plan.time,
            texture=recipe.texture,
        )
        pixels = self._pixels[item["number"]]
        if rng.random() < 0.5 and recipe.mirrored:
            pixels = pixels[:, ::-1]
        gains = rng.uniform(1 - recipe.jitter, 1 + recipe.jitter, 3)  # of red, green and blue
        canvas.image = pixels * (gains / 255).astype(np.float32)
        canvas.zones = Zones(**item["zones"])
        canvas.horizon = item["horizon"]
        canvas.ambient = np.array(item["ambient"], np.float32)
        canvas.haze = np.array(item["haze"], np.float32)
        canvas.is_snowing = item["is_snowing"]
        canvas.time = item["time"]
        return canvas


@dataclass(frozen=True, kw_only=True)
class _Variant:
    place: str
    time: str
    style: str
    has_sun: bool

    @property
    def key(self) -> str:
        return _key(self.place, self.time, self.style, has_sun=self.has_sun)

    def paint(self, recipe: Recipe, atlas: Atlas, number: int) -> Canvas:
        """Paint the place, with random choices that depend on the number alone."""
        canvas = Canvas(
            recipe.size,
            np.random.default_rng([number, _BACKGROUND_SEED]),
            atlas=atlas,
            style=self.style,
            time=self.time,
            texture=recipe.texture,
        )
        canvas.has_sun = self.has_sun
        find_place(self.place).paint(canvas)
        return canvas


def _variants(recipe: Recipe, per: int) -> Iterator[_Variant]:
    """Every background of the recipe, `per` times with a sun (by chance) and once without."""
    for place in place_names():
        if place == PLAIN or (recipe.places is not None and place not in recipe.places):
            continue
        for time, style in product(dict.fromkeys(times_in(recipe, place)), recipe.styles):
            for k in range(per):
                yield _Variant(place=place, time=time, style=style, has_sun=True)
                if k == 0:
                    yield _Variant(place=place, time=time, style=style, has_sun=False)


def _describe(canvas: Canvas, number: int) -> dict[str, Any]:
    """What a canvas holds besides its pixels, as JSON."""
    return {
        "number": number,
        "zones": asdict(canvas.zones),
        "horizon": float(canvas.horizon),
        "ambient": [float(v) for v in canvas.ambient],
        "haze": [float(v) for v in canvas.haze],
        "is_snowing": canvas.is_snowing,
        "time": canvas.time,
    }


def _key(place: str, time: str, style: str, *, has_sun: bool) -> str:
    return f"{place}|{time}|{style}|{'sun' if has_sun else 'no sun'}"


def _paths(path: Path | str) -> tuple[Path, Path]:
    path = Path(path)
    return path.with_name(path.name + ".json"), path.with_name(path.name + ".bin")
