"""Paints a plan: the place, the things from far to near, the weather."""

import numpy as np

from ciar_train.scenes.atlas import Atlas
from ciar_train.scenes.backgrounds import BackgroundBank, has_own_sun
from ciar_train.scenes.canvas import Canvas
from ciar_train.scenes.colour import Array
from ciar_train.scenes.layout import Layout
from ciar_train.scenes.nouns import Vocabulary
from ciar_train.scenes.places import PLAIN, find_place
from ciar_train.scenes.places_sky import paint_plain
from ciar_train.scenes.plan import Plan
from ciar_train.scenes.recipe import Recipe
from ciar_train.scenes.things import Box, put_thing
from ciar_train.scenes.weather import paint_fog, paint_rain, paint_snowfall


class Renderer:
    """Paints plans of one recipe; the same plan gives the same picture."""

    def __init__(
        self,
        recipe: Recipe,
        vocabulary: Vocabulary,
        atlas: Atlas,
        *,
        backgrounds: BackgroundBank | None,
    ) -> None:
        if backgrounds is not None:
            backgrounds.check(recipe)
        self._recipe = recipe
        self._vocabulary = vocabulary
        self._atlas = atlas
        self._backgrounds = backgrounds

    def render(self, plan: Plan) -> tuple[Array, tuple[Box, ...]]:
        """The picture, uint8 [size, size, 3], and where its things are, from far to near."""
        rng = np.random.default_rng(plan.paint_seed)
        canvas = self._background(plan, rng)
        snap = self._recipe.snap
        layout = Layout(
            plan,
            canvas.zones,
            rng,
            vocabulary=self._vocabulary,
            atlas=self._atlas,
            mirrored=self._recipe.mirrored,
        )
        boxes = [
            put_thing(canvas, each, plan, self._atlas, snap=snap) for each in layout.placements()
        ]
        if plan.time == "fog":
            paint_fog(canvas)
        if plan.time == "rain" and find_place(plan.place).kind not in ("floor", "surface", "under"):
            paint_rain(canvas)
        if canvas.is_snowing and self._recipe.may_snow:
            paint_snowfall(canvas)
        return canvas.to_bytes(), tuple(boxes)

    def _background(self, plan: Plan, rng: np.random.Generator) -> Canvas:
        recipe, atlas = self._recipe, self._atlas
        if self._backgrounds is not None and plan.place != PLAIN:
            return self._backgrounds.canvas(plan, rng, recipe=recipe, atlas=atlas)
        canvas = Canvas(
            recipe.size,
            rng,
            atlas=atlas,
            style=plan.style,
            time=plan.time,
            texture=recipe.texture,
        )
        canvas.has_sun = not has_own_sun(plan)
        if plan.wall is not None:
            paint_plain(canvas, plan.wall)
        else:
            find_place(plan.place).paint(canvas)
        return canvas
